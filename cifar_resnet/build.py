"""From a configuration to data, network and trainer, each refused in one line where it cannot be."""

import contextlib
import inspect
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import DeviceStatsMonitor, LearningRateMonitor
from lightning.pytorch.strategies import StrategyRegistry
from omegaconf import DictConfig, OmegaConf

from cifar_resnet import callbacks, checkpoints, constraints, hardware, preflight, processes, resume, runs, trackers
from cifar_resnet.data import DataModule, OwnImages
from cifar_resnet.data.loaders import limited
from cifar_resnet.errors import UsageError, as_usage_error, refuse_if
from cifar_resnet.initialisation import seen_before, start_from
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models import Classifier
from cifar_resnet.models.distillation import check_teacher
from cifar_resnet.models.parallel import check_strategy
from cifar_resnet.monitored import mode_of
from cifar_resnet.precision import ScaledPrecision
from cifar_resnet.terminal import log

# a trainer that leaves nothing
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "profiler": None}


@as_usage_error()
def build_data_and_model(cfg: DictConfig) -> tuple[DataModule, Classifier]:
    """The data, read and split, and the network with its optimizer, schedule and teachers: all that draws is seeded."""
    hardware.keep_freed_memory()
    constraints.check_config(cfg)
    resolve_conflicts(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg)
    check_limits(cfg, data)
    # before the network, whose weights are drawn after theirs
    teachers = [(path, checkpoints.load(path, cfg.get("trust") or ())) for path in preflight.teachers_of(cfg)]
    model = build_model(cfg, data)
    for network, about in networks_of(model):
        with about:
            network.check_budget()
            network.build_optimizer(total_steps=1)  # so that it complains now, if it does
    if data.train is None:
        data.prepare_data()
        data.load()
    asked = next((text for text in cfg.get("overrides") or () if text.startswith("data.num_val=")), None)
    refuse_if(
        data.has_own_val and asked not in (None, "data.num_val=null"),
        f"the data has validation images of its own; data.num_val=0 would train on them as well. Got {asked}; leave it "
        f"out",
    )
    if data.trains_on_own_val and not asked:
        log.warning(
            "warning: the data has validation images of its own, and a recipe's data.num_val=0 trains on them; "
            "data.num_val=null holds them out\n"
        )
    if cfg.test and is_share(cfg.trainer.get("limit_test_batches")):
        data.load_test()
    check_limits(cfg, data)
    if model.has_unfitted():
        model.init_whitening(data.sample())
    for network, about in networks_of(model):
        with about:
            network.weigh_classes(data.class_counts)
    if cfg.get("init") and not begun_before(cfg):  # or it has weights by now
        log.info(f"starts with {start_from(model, cfg.init)}\n")
        if seen := seen_before(cfg.init, data, constraints.values_in(cfg.data, resolve=True)):
            log.warning(f"warning: init has been trained on some of the {seen}. Their scores are too good to go by\n")
    model.seed, model.data_state, model.is_prepared = data.seed, data.state(), True
    checkpoints.check_data(model.data_state, constraints.values_in(cfg, resolve=True))
    for path, teacher in teachers:
        check_teacher(path, teacher, data.image_sizes, data.class_names)
    if teachers:
        model.distillation = instantiate(cfg.distill, teacher=[teacher for _, teacher in teachers])
    return data, model


def sketch(cfg: DictConfig, check_budget: bool = True) -> tuple[DataModule, Classifier]:
    """Data and network without images and weights: nothing is read, and no memory is taken."""
    constraints.check_config(cfg)
    with as_usage_error(), torch.device("meta"):
        resolve_conflicts(cfg)
        data = new_data(cfg)
        check_limits(cfg, data)
        model = build_model(cfg, data)
        for network, about in networks_of(model) if check_budget else ():
            with about:
                network.check_budget()
    return data, model


def build_model(cfg: DictConfig, data: DataModule) -> Classifier:
    # before the network, which may leave its own arguments as they are
    schedule = schedule_of(cfg)
    recipe = {
        "optimizer": instantiate(cfg.optimizer, _convert_="all"),
        "scheduler": schedule and instantiate(schedule, _convert_="all"),
    }
    model = build_network(cfg.model, data, recipe)
    if cfg.get("selection"):
        settings = {key: value for key, value in cfg.selection.items() if key != "proxy"}
        with about_the_proxy():
            proxy = build_network(cfg.selection.proxy, data, recipe)
        model.selection = instantiate(settings, proxy=proxy)
    check_last_image(data, model)
    return model


def check_last_image(data: DataModule, model: Classifier) -> None:
    """UsageError where a step has one image for a network, and that is too few."""
    size, selection = min(data.image_sizes), model.selection
    num_images = selection.count(data.batch_size) if selection else data.batch_size
    for network, left in zip(model.all_networks(), (num_images, data.batch_size), strict=False):
        of_share = f" with selection.share={selection.share}" if selection and left != data.batch_size else ""
        refuse_if(
            left == 1 and not network.takes_one_image(size),
            f"{type(network).__name__} cannot be trained on one image of {size} pixels at a time: its batch norm would "
            f"see one value a channel. Got data.batch_size={data.batch_size}{of_share}; give a larger one",
        )


def networks_of(model: Classifier) -> Iterator[tuple[Classifier, contextlib.AbstractContextManager]]:
    """The network, and what selects its images; each with what a complaint of it is to be raised within."""
    return zip(model.all_networks(), (contextlib.nullcontext(), about_the_proxy()), strict=False)


@contextlib.contextmanager
def about_the_proxy() -> Iterator[None]:
    """Within this a network complains of its settings as of those of `selection.proxy`."""
    try:
        with as_usage_error():
            yield
    except UsageError as error:
        raise UsageError(re.sub(r"(?<![\w/.])model[.](?=[a-z_]+\b)", "selection.proxy.", str(error))) from error


def build_network(settings: DictConfig, data: DataModule, recipe: dict[str, Any]) -> Classifier:
    network = instantiate(settings, num_classes=data.num_classes, **recipe, _convert_="all")
    checkpoints.check_loadable(network)
    network.check_unset()
    network.check_parts()
    for size in data.image_sizes:
        network.check_image_size(size)
    network.check_training_output(data.image_size)
    return network


def new_data(cfg: DictConfig) -> DataModule:
    seed = {} if "seed" in cfg.data else {"seed": cfg.seed}  # of a YAML without our defaults
    return instantiate(cfg.data, augment=cfg.augment, resize=cfg.get("resize"), **seed, _convert_="all")


def schedule_of(cfg: DictConfig) -> dict | None:
    """What builds the schedule: the group's own settings are its maker's, but for when it moves."""
    if cfg.get("scheduler") is None:
        return None
    make = constraints.values_in(cfg.scheduler, resolve=True) | {"_partial_": True}
    when = {key: make.pop(key) for key in ("interval", "monitor") if key in make}
    if parts := make.get("schedulers"):
        make["schedulers"] = [part | {"_partial_": True} for part in parts]
    return {"_target_": "cifar_resnet.optim.Schedule", "make": make, **when}


def build_data(cfg: DictConfig) -> DataModule:
    """The data module; where `kept_images` is on, with what the one before has read of the same images."""
    data = new_data(cfg)
    if isinstance(data, OwnImages):
        data.order_classes(classes_before(cfg))
    if _kept is not None:
        # neither seed nor batch_size changes an image; the accelerator decides where they lie
        others = {"seed": None, "batch_size": None, "accelerator": cfg.trainer.accelerator}
        others["classes"] = getattr(data, "classes", None)
        settings = constraints.values_in(cfg.data, resolve=True) | others
        if _kept.get("settings") == settings and _kept["data"].train is not None:  # or that job failed before it read
            data.adopt(_kept["data"])
        _kept.update(settings=settings, data=data)
    return data


def classes_before(cfg: DictConfig) -> list[str]:
    """The classes, in their order, of the run that goes on in this folder, or with its ensemble; none of a new run."""
    last = begun_before(cfg)
    return constraints.value_at(checkpoints.contents(last), "data.classes", []) if last else []


def begun_before(cfg: DictConfig) -> Path | None:
    """The checkpoint that the run goes on from, in this folder or with its ensemble; None of a new run."""
    own = Path(cfg.run_dir or ".")
    places = map(runs.last_checkpoint, (own, own.parent / runs.TOGETHER) if cfg.run_dir else ())
    return next((place for place in places if place.exists()), None)


@contextlib.contextmanager
def kept_images() -> Iterator[None]:
    """Within this, trainings on the same images read them once: the jobs of a sweep, the trials of a search."""
    global _kept
    outer, _kept = _kept, {} if _kept is None else _kept
    try:
        yield
    finally:
        _kept = outer


def keep_images() -> None:
    """From here on, as within `kept_images`; where that is around this, until its end."""
    global _kept
    _kept = {} if _kept is None else _kept


_kept: dict[str, Any] | None = None  # `settings` and `data`, the module, of the training before


@as_usage_error()
def build_trainer(
    cfg: DictConfig, data: DataModule, model: Classifier, extra_callbacks: Sequence[Callback] = ()
) -> Trainer:
    """The trainer with its callbacks and loggers; refuses what a run in `cfg.run_dir` could not go on from."""
    last = runs.last_checkpoint(cfg.run_dir)
    own = build_callbacks(cfg, data.has_val)
    before = checkpoints.resumable(last, model.state_dict()) if last.exists() else {}
    refuse_if(
        before and model.selection and "selection" not in before,
        f"nothing for the proxy that selects images to go on from. Got {last}, without it; begin a new run",
    )
    # `resume.keep_global_batch` has set it by the number of processes
    is_shared = len(before.get("mid_epoch_state", ())) != processes.num_processes(cfg)
    resume.check_same_config(cfg, before.get("config"), ["data.batch_size"] if is_shared else [])
    resume.check_same_data(data.state(), before.get("data"))
    check_best(cfg, last)
    check_same_validation(cfg, before.get("config"))
    loggers = trackers.build(cfg, before.get("global_step", 0 if cfg.resume else None))
    max_time = constraints.values_in(cfg.trainer, resolve=True).get("max_time")
    ours = [
        callbacks.TimeLimit(max_time or None),
        callbacks.StepGraph(cfg.get("graph", False)),
        callbacks.Throughput(),
        callbacks.Ending(),
        callbacks.Machine(),
        *own,
        *extra_callbacks,
        callbacks.MidEpochState(),
        callbacks.Interruption(last),
    ]
    no_val = {} if data.has_val else {"limit_val_batches": 0}
    trainer = new_trainer(cfg, model, callbacks=ours, max_time=None, logger=loggers, **no_val)
    batches, limit = len(data.train) // (data.batch_size * trainer.world_size), trainer.limit_train_batches
    check_limits(cfg, data, trainer.world_size)
    check_accumulation(cfg, min(batches, limit) if isinstance(limit, int) else int(batches * limit))
    if cfg.trainer.get("profiler"):
        profiler = trainer.profiler  # type: ignore[attr-defined]
        profiler.dirpath = profiler.dirpath or cfg.run_dir
        profiler.filename = profiler.filename or "profile"  # or it would report to a silent logger
    return trainer


@as_usage_error()
def new_trainer(cfg: DictConfig, model: Classifier, **options: Any) -> Trainer:
    """Lightning's trainer as `cfg` says but for these options; UsageError for what it could not do with this model."""
    processes.refuse_own_starters(cfg)
    accelerator = cfg.trainer.accelerator
    precision = instantiate(cfg.precision, accelerator=accelerator)
    if cfg.precision.precision == "auto" and precision == "16-mixed":
        optimizer, _ = model.build_optimizer(total_steps=1)
        if getattr(optimizer, "spares_scale", False) and hardware.cuda_has_bf16():
            precision = "bf16-mixed"  # which needs no loss scale
    plugins: list[Any] = [checkpoints.AtomicCheckpointIO(), processes.environment()]
    if precision.endswith("-mixed"):
        plugins.append(ScaledPrecision(precision, hardware.device_type(accelerator)))
        precision = None
    trainer = instantiate(cfg.trainer, precision=precision, plugins=plugins, **options)
    if trainer.world_size > 1:
        processes.spare_lightnings_signals(trainer)
    check_strategy(trainer)
    return trainer


def check_accumulation(cfg: DictConfig, batches: int) -> None:
    """UsageError where a step would need more batches than an epoch has."""
    needed = cfg.trainer.get("accumulate_grad_batches") or 1
    refuse_if(
        batches < needed > 1,
        f"a step would need more batches than an epoch has. Got trainer.accumulate_grad_batches={needed} for "
        f"{batches}; give no more than that",
    )


def build_callbacks(cfg: DictConfig, has_val: bool) -> list[Callback]:
    check_callbacks(cfg, has_val)
    found = dict(instantiate(cfg.callbacks))
    if cfg.get("averaging"):
        found["averaging"] = instantiate(cfg.averaging)
    if not has_val:
        found.pop("best", None)
    if not cfg.get("logger"):
        found.pop("learning_rate", None)
        needy = next((name for name in found if isinstance(found[name], (LearningRateMonitor, DeviceStatsMonitor))), "")
        refuse_if(
            needy,
            f"callbacks.{needy} sends what it sees to a logger. Got logger=none; give a logger, or leave it out",
        )
    return list(found.values())


def check_callbacks(cfg: DictConfig, has_val: bool) -> None:
    """UsageError for callbacks that have nothing to go by, or leave nothing to test. has_val: any validation images."""
    is_validated = has_val and cfg.trainer.get("limit_val_batches") != 0
    for name, node in cfg.callbacks.items():
        monitor, mode = (argument_of(node, key) for key in ("monitor", "mode"))
        if monitor is None:
            continue
        mode_of(monitor, mode, f"callbacks.{name}")
        refuse_if(
            monitor.startswith("val/") and name != "best" and not is_validated,
            f"callbacks.{name} looks at validation images, by monitor={monitor}. Got data.num_val="
            f"{cfg.data.get('num_val')}, trainer.limit_val_batches={cfg.trainer.get('limit_val_batches')}; give some, "
            f"or monitor=train/loss, or leave it out",
        )
    refuse_if(
        "last" not in cfg.callbacks and not (has_val and "best" in cfg.callbacks),
        "nothing would be left to test: keep callbacks.last, or callbacks.best and validation images; beside ours a "
        "choice of your own is callbacks=[default,mine]",
    )
    for name in {"best", "last"} & cfg.callbacks.keys():
        node = cfg.callbacks[name]
        refuse_if(
            Path(str(node.get("dirpath"))).absolute() != Path(str(cfg.run_dir), "checkpoints").absolute()
            or node.get("filename") != name,
            f"other commands look for the run folder's checkpoints/{name}.ckpt. Got "
            f"{constraints.values_in(node).get('dirpath')}/{node.get('filename')}.ckpt; leave it so",
        )


def argument_of(node: DictConfig, name: str) -> Any:
    """What a callback will be called with, be it by default; None where it takes no such argument."""
    arguments = inspect.signature(constraints.imported(node._target_)).parameters if "_target_" in node else {}
    default = arguments[name].default if name in arguments else None
    return node.get(name, None if default is inspect.Parameter.empty else default)


def check_best(cfg: DictConfig, last: Path) -> None:
    """Before a training goes on: without its last checkpoint it cannot, with a damaged best one it would be in vain."""
    best = last.with_name("best.ckpt")
    if not cfg.resume or not best.exists():
        return
    try:
        epochs = checkpoints.read(best)["epoch"] + 1
    except ValueError as error:
        raise ValueError(f"{error}; take it away, and the best of the epochs to come is kept") from error
    # in the first epoch it may have been killed between the two
    refuse_if(
        not last.exists() and max(epochs, len(runs.read_metrics(Path(cfg.run_dir) / runs.METRICS))) > 1,
        f"nothing to go on from. Got {last.parent} without {last.name}; begin a new run",
    )


def check_same_validation(cfg: DictConfig, before: dict | None) -> None:
    """What epochs are chosen by must stay the same part of the validation images. before: the checkpoint's config."""
    limit = cfg.trainer.get("limit_val_batches")
    if before and (is_share(limit) or (isinstance(limit, int) and limit > 0)):
        size, earlier = cfg.data.eval_batch_size, constraints.value_at(before, "data.eval_batch_size")
        refuse_if(
            size != earlier,
            f"trainer.limit_val_batches counts batches of data.eval_batch_size images. Got {size}, where it was "
            f"{earlier} in the epochs before; leave it as it was",
        )


def is_share(limit: float | None) -> bool:
    """Whether it limits batches to a share of them, and not to a number."""
    return isinstance(limit, float) and 0 < limit < 1


def check_limits(cfg: DictConfig, data: DataModule, world_size: int = 1) -> None:
    """A share of the batches that is less than one of them, of those splits whose images have been counted."""
    for split, count in data.num_batches(world_size).items():
        key = f"limit_{split}_batches"
        limit, is_used = cfg.trainer.get(key), split != "test" or cfg.test
        refuse_if(
            is_used and is_share(limit) and count and limited(count, limit) == 0,
            f"trainer.{key} is less than one batch. Got {limit} of {count}; give a number of batches, such as 1, or a "
            f"share of them, or lower data.{'' if split == 'train' else 'eval_'}batch_size",
        )


def resolve_conflicts(cfg: DictConfig) -> None:
    """Settings that bear on each other: let go of what others rule out, and refuse what contradicts itself."""
    trainer = cfg.trainer
    runs.parent_dir(cfg)
    refuse_if(
        trainer.get("limit_train_batches") == 0,
        "nothing would be trained. Got trainer.limit_train_batches=0; give a number, or null for all",
    )
    refuse_if(
        trainer.get("limit_test_batches") == 0,
        "nothing would be tested. Got trainer.limit_test_batches=0; to leave the test out: test=false",
    )
    for place in ("model", "selection.proxy"):
        given = OmegaConf.select(cfg, f"{place}.num_classes")
        refuse_if(
            given is not None,
            f"the data says how many classes there are. Got {place}.num_classes={given}; leave it out",
        )
    refuse_if(
        cfg.model.get("class_weights") == "balanced" and cfg.data.get("balanced_sampling"),
        "either makes up for uneven classes. Got model.class_weights=balanced and data.balanced_sampling=true; leave "
        "one of them out",
    )
    refuse_if(
        cfg.get("selection") and not cfg.selection.get("proxy"),
        "what selects images is a network. Got a selection without a proxy; give model@selection.proxy=tiny_speednet",
    )
    views = OmegaConf.select(cfg, "selection.proxy.tta") or "none"
    refuse_if(views != "none", f"a proxy sees each image once. Got selection.proxy.tta={views}; leave it out")
    strategy = trainer.get("strategy")
    # of those that come as a class `check_strategy` tells
    shards = ("fsdp", "deepspeed", "model_parallel")
    known = ["auto", *(name for name in StrategyRegistry.available_strategies() if not name.startswith(shards))]
    refuse_if(
        isinstance(strategy, str) and strategy not in known,
        f"trainer.strategy must be one of Lightning's that leave each device the whole network. Got {strategy!r}; give "
        f"auto, or ddp",
    )
    device = hardware.device_type(constraints.select(cfg, "trainer.accelerator"))
    refuse_if(
        trainer.get("sync_batchnorm") and device != "cuda",
        f"trainer.sync_batchnorm needs CUDA. Got trainer.accelerator={trainer.get('accelerator')}, which is {device} "
        f"here; leave it out, and each device normalises by its own part of a batch",
    )
    has_val = cfg.data.get("num_val") != 0
    refuse_if(
        trainer.get("limit_val_batches") == 0
        and has_val
        and str(OmegaConf.select(cfg, "callbacks.best.monitor")).startswith("val/"),
        "no epoch would be validated, so none could be chosen. Got trainer.limit_val_batches=0; to train on every "
        "image and keep the last epoch, give data.num_val=0",
    )
    check_callbacks(cfg, has_val)
    if isinstance(limit := trainer.get("limit_train_batches"), int):
        check_accumulation(cfg, limit)
    refuse_if(
        (trainer.get("min_epochs") or 0) > trainer.max_epochs,
        f"a training cannot be longer than its longest. Got trainer.min_epochs={trainer.get('min_epochs')} and "
        f"trainer.max_epochs={trainer.max_epochs}; give no more than that",
    )
    monitor = OmegaConf.select(cfg, "scheduler.monitor") or ""
    refuse_if(
        monitor.startswith("val/") and (cfg.data.get("num_val") == 0 or trainer.get("limit_val_batches") == 0),
        f"scheduler.monitor={monitor} needs validation images. Got none; give some, or scheduler.monitor=train/loss",
    )
    callbacks.StepGraph(cfg.get("graph", False))  # refuses what it could not mean
    if trainer.get("deterministic"):
        trainer.benchmark = False  # cuDNN's trials could end in another algorithm each time
    # refuses a precision that the accelerator does not have
    instantiate(cfg.precision, accelerator=constraints.select(cfg, "trainer.accelerator"))
