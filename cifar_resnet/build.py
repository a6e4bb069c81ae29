"""From a configuration to data, network and trainer, each refused in one line where it cannot be."""

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from hydra.utils import instantiate
from lightning.pytorch import Callback, Trainer, seed_everything
from omegaconf import DictConfig, OmegaConf

from cifar_resnet import callbacks, checkpoints, constraints, hardware, preflight, resume, runs
from cifar_resnet.data import DataModule
from cifar_resnet.errors import as_usage_error, refuse_if
from cifar_resnet.models import Classifier
from cifar_resnet.optim import SAM

MONITORED = ("val/acc", "val/loss", "train/acc", "train/loss")  # what callbacks may go by
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}  # a trainer that leaves nothing


@as_usage_error()
def build_data_and_model(cfg: DictConfig) -> tuple[DataModule, Classifier]:
    """The data, read and split, and the network with its optimizer, schedule and teachers: all that draws is seeded."""
    hardware.keep_freed_memory()
    constraints.check_config(cfg)
    resolve_conflicts(cfg)
    seed_everything(cfg.seed, workers=True, verbose=False)
    data = build_data(cfg)
    # before the network, whose weights are drawn after theirs
    teachers = [(path, checkpoints.load(path)) for path in preflight.teachers_of(cfg)]
    model = build_model(cfg, data)
    model.check_budget()
    model.build_optimizer(total_steps=1)  # so that it complains now, if it does
    if data.train is None:
        data.prepare_data()
        data.load()
    model.init_whitening(data.sample())
    model.seed, model.data_state = data.seed, data.state()
    for path, teacher in teachers:
        check_teacher(path, teacher, data)
    if teachers:
        model.distillation = instantiate(cfg.distill, teacher=[teacher for _, teacher in teachers])
    return data, model


def sketch(cfg: DictConfig, check_budget: bool = True) -> tuple[DataModule, Classifier]:
    """Data and network without images and weights: nothing is read, and no memory is taken."""
    constraints.check_config(cfg)
    with as_usage_error(), torch.device("meta"):
        resolve_conflicts(cfg)
        data = instantiate(cfg.data, augment=cfg.augment, _convert_="all")
        model = build_model(cfg, data)
        if check_budget:
            model.check_budget()
    return data, model


def build_model(cfg: DictConfig, data: DataModule) -> Classifier:
    recipe = {"optimizer": cfg.optimizer, "scheduler": schedule_of(cfg)}
    model = instantiate(cfg.model, num_classes=data.num_classes, **recipe, _convert_="all")
    model.check_image_size(data.image_size)
    return model


def schedule_of(cfg: DictConfig) -> dict | None:
    """What builds the schedule: the group's own settings are its maker's, but for when it moves."""
    if cfg.get("scheduler") is None:
        return None
    make = OmegaConf.to_container(cfg.scheduler, resolve=True) | {"_partial_": True}
    when = {key: make.pop(key) for key in ("interval", "monitor") if key in make}
    if parts := make.get("schedulers"):
        make["schedulers"] = [part | {"_partial_": True} for part in parts]
    return {"_target_": "cifar_resnet.optim.Schedule", "make": make, **when}


def build_data(cfg: DictConfig) -> DataModule:
    """The data module; where `kept_images` is on, with what the one before has read of the same images."""
    data = instantiate(cfg.data, augment=cfg.augment, _convert_="all")
    if _kept is not None:
        # neither seed nor batch_size changes an image; the accelerator decides where they lie
        others = {"seed": None, "batch_size": None, "accelerator": cfg.trainer.accelerator}
        settings = OmegaConf.to_container(cfg.data, resolve=True) | others
        if _kept.get("settings") == settings and _kept["data"].train is not None:  # or that job failed before it read
            data.adopt(_kept["data"])
        _kept.update(settings=settings, data=data)
    return data


@contextlib.contextmanager
def kept_images() -> Iterator[None]:
    """Within this, trainings on the same images read them once: the jobs of a sweep, the trials of a search."""
    global _kept
    outer, _kept = _kept, {} if _kept is None else _kept
    try:
        yield
    finally:
        _kept = outer


_kept: dict[str, object] | None = None  # `settings` and `data`, the module, of the training before


def check_teacher(path: str, teacher: Classifier, data: DataModule) -> None:
    own = teacher.data_state
    refuse_if(
        own["image_size"] != data.image_size,
        f"a teacher must look at images of the student's size. Got {path}, trained on {own['image_size']} pixels, "
        f"and images of {data.image_size}; give another distill.teacher",
    )
    refuse_if(
        own["classes"] != list(data.classes),
        f"a teacher must know the student's classes. Got {path}, trained on {', '.join(own['classes'])}; give "
        f"another distill.teacher",
    )


@as_usage_error()
def build_trainer(
    cfg: DictConfig, data: DataModule, model: Classifier, extra_callbacks: Sequence[Callback] = ()
) -> Trainer:
    """The trainer with its callbacks and loggers; refuses what a run in `cfg.run_dir` could not go on from."""
    last = runs.last_checkpoint(cfg.run_dir)
    own = build_callbacks(cfg, data.has_val)
    if not data.has_val:
        cfg.trainer.limit_val_batches = 0
    before = checkpoints.resumable(last, model.state_dict()) if last.exists() else {}
    resume.check_same_config(cfg, before.get("config"))
    resume.check_same_data(data.state(), before.get("data"))
    check_best(cfg, last)
    # a training that goes on forgets the curves that had been drawn from there on
    purge = {"purge_step": before.get("global_step", 0 if cfg.resume else None)}
    loggers = [
        instantiate(settings, **(purge if settings._target_.endswith("TensorBoardLogger") else {}))
        for settings in cfg.logger.values()
    ]
    ours = [callbacks.Throughput(), *own, *extra_callbacks, callbacks.MidEpochState(), callbacks.Interruption(last)]
    return new_trainer(cfg, model, callbacks=ours, logger=loggers, plugins=[checkpoints.AtomicCheckpointIO()])


@as_usage_error()
def new_trainer(cfg: DictConfig, model: Classifier, **options: object) -> Trainer:
    """Lightning's trainer as `cfg` says but for these options; UsageError for what it could not do with this model."""
    trainer = instantiate(
        cfg.trainer, precision=instantiate(cfg.precision, accelerator=cfg.trainer.accelerator), **options
    )
    for callback in trainer.callbacks:
        monitor = getattr(callback, "monitor", None)
        refuse_if(
            monitor not in (None, *MONITORED),
            f"{type(callback).__name__} has nothing to go by. Got monitor={monitor}; "
            f"give {', '.join(MONITORED[:-1])} or {MONITORED[-1]}",
        )
    refuse_if(
        trainer.world_size > 1 and isinstance(model.build_optimizer(total_steps=1)[0], SAM),
        f"SAM trains on one device: each would look for a worst point of its own. "
        f"Got {trainer.world_size} devices; give trainer.devices=1, or another optimizer",
    )
    return trainer


def build_callbacks(cfg: DictConfig, has_val: bool) -> list[Callback]:
    found = dict(instantiate(cfg.callbacks))
    if "averaging" in cfg:
        found["averaging"] = instantiate(cfg.averaging)
    for name in {"best", "last"} & found.keys():
        expected = runs.last_checkpoint(cfg.run_dir).with_name(f"{name}.ckpt")
        where = Path(found[name].dirpath, f"{found[name].filename}.ckpt")
        refuse_if(
            where.resolve() != expected.resolve(), f"other commands look for {expected}. Got {where}; leave it so"
        )
    refuse_if(
        not has_val and "early_stopping" in found,
        "early stopping looks at validation images. Got data.num_val=0; give some, or leave it out",
    )
    if not has_val:
        found.pop("best", None)
    if not cfg.logger:
        found.pop("learning_rate", None)  # Lightning's monitor needs one
    refuse_if(
        not {"best", "last"} & found.keys(), "nothing would be left to test: keep callbacks.last, or callbacks.best"
    )
    return list(found.values())


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
    refuse_if(
        "num_classes" in cfg.model,
        f"the data says how many classes there are. Got model.num_classes={cfg.model.get('num_classes')}; leave it out",
    )
    every = trainer.get("check_val_every_n_epoch") or 1
    never = trainer.get("limit_val_batches") == 0 or every > trainer.max_epochs
    refuse_if(
        never and cfg.data.get("num_val") and "best" in cfg.callbacks,
        f"no epoch would be validated, so none could be chosen. Got trainer.limit_val_batches="
        f"{trainer.get('limit_val_batches')}, trainer.check_val_every_n_epoch={every} for {trainer.max_epochs} "
        f"epochs; to train on every image and keep the last epoch, give data.num_val=0",
    )
    monitor = OmegaConf.select(cfg, "scheduler.monitor") or ""
    refuse_if(
        monitor.startswith("val/") and (cfg.data.get("num_val") == 0 or trainer.get("limit_val_batches") == 0),
        f"scheduler.monitor={monitor} needs validation images. Got none; give some, or scheduler.monitor=train/loss",
    )
    if trainer.get("deterministic"):
        trainer.benchmark = False  # cuDNN's trials could end in another algorithm each time
    if trainer.get("gradient_clip_val") and cfg.optimizer.get("fused"):
        cfg.optimizer.fused = False  # Lightning does not clip for an optimizer that could scale gradients itself
    # refuses a precision that the accelerator does not have
    instantiate(cfg.precision, accelerator=constraints.select(cfg, "trainer.accelerator"))
