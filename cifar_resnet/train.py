"""cifar-train: fit, test the checkpoint that validation chose, and leave a run folder.

    cifar-train model=resnet50 trainer.max_epochs=300
    cifar-train -m model=resnet20,resnet56 optimizer.lr=0.05,0.1
    cifar-train resume=outputs/train/<run folder>
    cifar-train model=resnet50 resume=auto        # begins, or goes on where the same command was stopped

The same as `python -m cifar_resnet.train` and `python cifar_resnet/train.py`.
"""

import contextlib
import json
import logging
import os
import shutil
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from cifar_resnet import limits, runs
from cifar_resnet.command import Composer, Job, RunError, UsageError, check_settings, usage_errors
from cifar_resnet.command import main as command_main

if TYPE_CHECKING:
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.loggers import Logger

    from cifar_resnet.data import DataModule
    from cifar_resnet.find_lr import RangeTest
    from cifar_resnet.models import Classifier

log = logging.getLogger("cifar_resnet")

RESUME_MAY_CHANGE = ("resume", "data.root", "trainer.accelerator", "trainer.devices", "trainer.strategy")
SET_BY_US = ("trainer.default_root_dir", "trainer.benchmark", "optimizer.fused")  # from other settings
AUTO = "auto"  # of resume: begin, or go on where the same command was stopped; of scheduler.max_lr: find it
FAILURE = "failure.txt"  # in the folder of a job that failed: why
RUN_DIR_VARIABLE = "CIFAR_RESNET_RUN_DIR"  # tells the other processes of a multi-device run where the first one writes


def main(argv: Sequence[str] | None = None) -> int:
    return command_main("train", run, argv, refuse)


def refuse(jobs: list[Job], is_sweep: bool) -> None:
    """UsageError for what cannot be asked for together."""
    cfg = jobs[0].cfg
    if cfg.dry_run and cfg.resume:
        raise UsageError("dry_run describes what the command names, resume goes on with something else: give one")
    if is_sweep and any(job.cfg.resume or job.cfg.run_dir for job in jobs):
        raise UsageError("a sweep names and resumes its runs itself: leave out run_dir and resume")
    if is_sweep and any(job.cfg.ensemble.size != 1 for job in jobs):
        raise UsageError("a sweep trains one network after the other: leave out ensemble.size, or -m")
    if is_sweep and any(job.cfg.trainer.devices != 1 for job in jobs):
        raise UsageError("a sweep trains on one device at a time. Leave out trainer.devices, or train without -m")
    if cfg.resume and cfg.resume != AUTO:
        resumed(jobs[0])
    elif cfg.run_dir and not cfg.resume and not cfg.dry_run and "LOCAL_RANK" not in os.environ:
        with usage_errors():
            runs.check_new(Path(cfg.run_dir))


def run(jobs: list[Job], is_sweep: bool) -> int:
    """Train each job; the exit code: 0, or 1 where a job of a sweep failed."""
    from cifar_resnet.terminal import set_up_logging

    set_up_logging()
    if jobs[0].cfg.dry_run:
        for job in jobs:
            describe(job)
        return 0
    if is_sweep:
        return sweep(jobs)
    if jobs[0].cfg.ensemble.size > 1:
        from cifar_resnet.ensemble import train_side_by_side

        return train_side_by_side(jobs[0])
    start_or_resume(jobs[0])
    return 0


def train(overrides: Sequence[str] = (), config_dir: str | None = None) -> dict:
    """What `cifar-train` does with these overrides, from Python; returns the run's record.

    overrides: such as ["model=resnet20", "trainer.max_epochs=15"]. config_dir: a folder of one's own choices.
    Raises UsageError, with one line that says what is wrong with them.
    """
    from cifar_resnet.terminal import set_up_logging

    (job,) = Composer("train", config_dir).jobs(list(overrides))
    refuse([job], is_sweep=False)
    check_settings([job.cfg])
    if job.cfg.ensemble.size > 1:
        raise UsageError("train() answers with the record of one run: leave out ensemble.size, or use cifar-train")
    set_up_logging()
    return start_or_resume(job)


def start_or_resume(job: Job) -> dict:
    """Train, unless the run that is to be resumed has finished before; the record."""
    from cifar_resnet.terminal import summary

    cfg = begun_or_new(job) if job.cfg.resume == AUTO else resumed(job) if job.cfg.resume else job.cfg
    if cfg.resume and (record := runs.read_record(Path(cfg.resume))):
        log.info(f"this run has finished before\n\n{summary(record)}")
        return record
    fit(cfg)
    return runs.read_record(Path(cfg.run_dir))


def describe(job: Job) -> None:
    """Print the network, stage by stage; nothing is read, allocated or written."""
    import torch

    from cifar_resnet.models.size import parts
    from cifar_resnet.terminal import print_table, size_table

    cfg = job.cfg
    with usage_errors(), torch.device("meta"):
        data = instantiate(cfg.data, augment=cfg.augment, _convert_="all")
        model = instantiate(cfg.model, num_classes=data.num_classes, _convert_="all")
        log.info(" ".join([cfg.choices.model, *job.varying]))
        print_table(size_table(parts(model, data.image_shape)))
        model.check_budget()


def sweep(jobs: list[Job]) -> int:
    """One job after the other, each in its own folder; those that have finished before are not trained again."""
    from cifar_resnet.terminal import print_table, sweep_table

    varying = list(dict.fromkeys(override for job in jobs for override in job.varying))
    folder = runs.sweep_dir(runs.parent_dir(jobs[0].cfg), [*jobs[0].arguments, *jobs[0].overrides], varying)
    names = runs.distinct_slugs([job.varying for job in jobs])
    with usage_errors():
        folder.mkdir(parents=True, exist_ok=True)
    records, reasons = [], []
    with images_kept():
        for number, (job, name) in enumerate(zip(jobs, names, strict=True), 1):
            run_dir = folder / name
            log.info(f"\njob {number} of {len(jobs)}: {' '.join(job.varying)}")
            try:
                check_same_job(job.cfg, run_dir)
                if record := runs.read_record(run_dir):
                    log.info("finished before")
                    (run_dir / FAILURE).unlink(missing_ok=True)  # of what came after its record
                else:
                    record = train_in(run_dir, job.cfg)
            except Exception as error:
                record = None
                reasons.append(f"{' '.join(job.varying)}: {reason_of(error)}")
            records.append((job.varying, record))
    print_table(sweep_table(records))
    if reasons:
        log.error(f"  {len(reasons)} of {len(jobs)} jobs failed; the same command again trains only those\n")
        log.error("".join(f"    {reason}\n" for reason in reasons))
    log.info(f"  compare them: tensorboard --logdir {folder}")
    return 1 if reasons else 0


def reason_of(error: Exception, whole: bool = False) -> str:
    """What it says, if it was made to be read; of any other its last line, or with `whole` the traceback."""
    if isinstance(error, (UsageError, RunError)):
        return str(error)
    lines = traceback.format_exception(error) if whole else traceback.format_exception_only(error)[-1:]
    return "".join(lines).strip()


def train_in(run_dir: Path, cfg: DictConfig, watchers: Sequence["Callback"] = ()) -> dict:
    """Train in this folder, from where it stopped if it was begun before; the record. A failure leaves its reason."""
    failure = run_dir / FAILURE
    failure.unlink(missing_ok=True)
    try:
        begun = (run_dir / runs.CONFIG).is_file()
        if begun and not any(run_dir.glob("checkpoints/*.ckpt")):  # nothing to go on from, and perhaps mended since
            shutil.rmtree(run_dir)
            begun = False
        cfg = runs.load_config(run_dir) if begun else cfg
        cfg.run_dir, cfg.resume = str(run_dir), str(run_dir) if begun else None
        fit(cfg, watchers)
    except Exception as error:
        text = reason_of(error, whole=True)
        log.error(f"error: {text}")
        run_dir.mkdir(parents=True, exist_ok=True)
        runs.write_atomically(failure, f"{text}\n")
        raise
    return runs.read_record(run_dir)


def resumed(job: Job) -> DictConfig:
    """The configuration that the run folder holds, with what a change of machine may change."""
    given = [override.partition("=")[0] for override in job.overrides]
    if refused := [key for key in given if key not in RESUME_MAY_CHANGE]:
        raise UsageError(
            f"resume continues a run with the configuration it began with. Got {', '.join(refused)} as well; "
            f"leave that out, or start a new run"
        )
    if not isinstance(job.cfg.resume, str):
        raise UsageError(f"resume needs a run folder. Got resume={job.cfg.resume}")
    run_dir = Path(job.cfg.resume)
    with usage_errors():
        cfg = runs.load_config(run_dir)
        if not os.access(run_dir, os.W_OK):
            raise PermissionError(f"resume writes into the run folder. Got {run_dir}, which is not writable")
    if (run_dir.parent / runs.TOGETHER).is_dir() and not runs.read_record(run_dir):
        raise UsageError(
            f"a member of an ensemble goes on with the others, by the command that began them. Got {run_dir}"
        )
    for key in given:
        OmegaConf.update(cfg, key, OmegaConf.select(job.cfg, key))
    cfg.run_dir = cfg.resume
    return cfg


def begun_or_new(job: Job) -> DictConfig:
    """The run that this command began before, or else a new one: in a folder that the command itself names."""
    asked = [text for text in job.overrides if not text.startswith(("resume=", "run_dir="))]
    name = "-".join(filter(None, ["auto", runs.slug(asked), runs.digest([*job.arguments, *asked])]))
    run_dir = Path(job.cfg.run_dir or runs.parent_dir(job.cfg) / name)
    if not (run_dir / runs.CONFIG).is_file():
        job.cfg.run_dir, job.cfg.resume = str(run_dir), None
        return job.cfg
    with usage_errors():
        cfg = runs.load_config(run_dir)
    before = [text for text in cfg.overrides if not text.startswith(("resume=", "run_dir="))]
    if before != asked:
        raise UsageError(
            f"run_dir holds a run of another command. Got {run_dir}, begun with {' '.join(before) or 'no settings'}; "
            f"give another run_dir, or leave it out"
        )
    cfg.run_dir = cfg.resume = str(run_dir)
    return cfg


def build(cfg: DictConfig) -> tuple["DataModule", "Classifier", str]:
    """The data, read and split, the network with its optimizer and schedule, and the precision to train it in."""
    from lightning.pytorch import seed_everything
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from cifar_resnet.memory import keep_freed_memory

    keep_freed_memory()
    with usage_errors(MisconfigurationException):
        seed_everything(cfg.seed, workers=True, verbose=False)
        precision = instantiate(cfg.precision, accelerator=cfg.trainer.accelerator)
        limits.check(cfg, files=False)  # it may be that of a run folder
        settle(cfg)
        data = data_of(cfg)
        recipe = {"optimizer": cfg.optimizer, "scheduler": cfg.get("scheduler")}
        if cfg.distill.teacher is not None:
            recipe["distillation"] = cfg.distill
        model = instantiate(cfg.model, num_classes=data.num_classes, **recipe, _convert_="all")
        model.check_budget()
        model.build_optimizer(total_steps=1)  # so that it complains now, if it does
        if data.train is None:
            data.prepare_data()
            data.load()
        model.fit_to(data.sample())
        if model.distillation:
            model.distillation.check(data.classes, data.image_size)
    return data, model, precision


@contextlib.contextmanager
def images_kept() -> Iterator[None]:
    """Within this, trainings on the same images read them once: the jobs of a sweep, the trials of a search."""
    global _kept
    if _kept is not None:  # this is within another
        yield
        return
    _kept = {}
    try:
        yield
    finally:
        _kept = None


_kept: dict[str, "DataModule"] | None = None  # by its settings, the data module of the training before


def data_of(cfg: DictConfig) -> "DataModule":
    data = instantiate(cfg.data, augment=cfg.augment, _convert_="all")
    if _kept is not None:
        settings = OmegaConf.to_container(cfg.data, resolve=True)
        of_the_images = {key: value for key, value in settings.items() if key not in ("seed", "batch_size")}
        key = json.dumps([cfg.trainer.accelerator, of_the_images], sort_keys=True)
        if key in _kept and _kept[key].train is not None:  # a job that failed early has read nothing
            data.adopt(_kept[key])
        _kept.clear()
        _kept[key] = data
    return data


def fit(cfg: DictConfig, watchers: Sequence["Callback"] = ()) -> None:
    """Fit, test the checkpoint that validation chose, and leave the record.

    Without validation images (data.num_val=0) the last epoch is tested.
    watchers: callbacks beside those of the configuration.
    """
    from cifar_resnet.terminal import announcement, log_to, summary

    start = time.perf_counter()
    found = find_max_lr(cfg) if is_max_lr_sought(cfg) else None
    data, model, precision = build(cfg)
    run_dir = open_run_dir(cfg)
    try:
        trainer = trainer_of(cfg, data, model, precision, watchers)
    except UsageError:
        if not cfg.resume:
            runs.discard(run_dir)
        raise
    model.config = OmegaConf.to_container(cfg, resolve=True)
    record = described(cfg, data, model, precision, trainer)
    with log_to(run_dir / "train.log"):
        log.info(announcement(record))
        if found:
            found.save(run_dir)
        for warning in warnings_about(cfg):
            log.warning(f"warning: {warning}\n")
        if cfg.compile:
            model.compile()
        with ends_said(f"to continue: cifar-train resume={run_dir}"):
            record |= run_trainer(trainer, model, data, run_dir)
            conclude(cfg, record, trainer, model, data, start)
        if trainer.is_global_zero:
            log.info(f"\n{summary(record)}")


@contextlib.contextmanager
def ends_said(how_to_go_on: str) -> Iterator[None]:
    """Around a training and its test: what ends them early is said as it is everywhere else."""
    from cifar_resnet.callbacks import said_as_interrupted

    try:
        with said_as_interrupted():
            yield
    except BaseException as error:
        log.info(f"\nstopped before its end; {how_to_go_on}")
        if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
            raise RunError(f"a file could not be written ({error}); what had been finished is kept") from error
        raise


def trainer_of(
    cfg: DictConfig, data: "DataModule", model: "Classifier", precision: str, watchers: Sequence["Callback"] = ()
) -> "Trainer":
    """The trainer with its callbacks and loggers; UsageError where the model, or Lightning, cannot work with it."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from cifar_resnet import checkpoints
    from cifar_resnet.callbacks import Interruption, Throughput, WholeCheckpoints

    last = last_checkpoint(Path(cfg.run_dir))
    with usage_errors(MisconfigurationException):
        callbacks = callbacks_of(cfg)
        for name in {"best", "last"} & callbacks.keys():
            where = Path(callbacks[name].dirpath, f"{callbacks[name].filename}.ckpt")
            if where.resolve() != last.with_name(f"{name}.ckpt").resolve():
                raise ValueError(f"other commands look for {last.with_name(f'{name}.ckpt')}. Got {where}")
        if not data.has_val and "early_stopping" in callbacks:
            raise ValueError(
                "early stopping looks at validation images. Got data.num_val=0; give some, or leave it out"
            )
        if not data.has_val:
            callbacks.pop("best", None)
            cfg.trainer.limit_val_batches = 0
        if not {"best", "last"} & callbacks.keys():
            raise ValueError("nothing would be left to test: keep callbacks.last, or callbacks.best")
        before = checkpoints.resumable(last, model.state_dict()) if last.exists() else None
        if before:
            check_same(cfg, before["config"])
        check_best(cfg, last)
        loggers = loggers_of(cfg, before["global_step"] if before else 0 if cfg.resume else None)
        everyone = [Throughput(), *callbacks.values(), *watchers, Interruption(last)]
        plugins = [WholeCheckpoints()]
        trainer = instantiate(cfg.trainer, precision=precision, callbacks=everyone, logger=loggers, plugins=plugins)
        model.check(trainer)
    return trainer


def check_best(cfg: DictConfig, last: Path) -> None:
    """Before a training goes on: without its last checkpoint it cannot, with a damaged best one it would be in vain."""
    from cifar_resnet import checkpoints

    best = last.with_name("best.ckpt")
    if not cfg.resume or not best.exists():
        return
    try:
        epoch = checkpoints.read(best)["epoch"]
    except ValueError as error:
        raise ValueError(f"{error}; take it away, and the best of the epochs to come is kept") from error
    if last.exists():
        return
    table = Path(cfg.run_dir) / runs.METRICS
    epochs = max(epoch + 1, len(runs.read_metrics(table)) if table.exists() else 0)
    if epochs > 1:  # in the first one it may have been killed between the two
        raise ValueError(f"nothing to go on from. Got {last.parent} without {last.name}; begin a new run")


def check_same(cfg: DictConfig, before: dict | None) -> None:
    """What a run began with must not change below it, or its end would be that of neither."""
    if before is None:  # networks side by side: each has its own
        return
    if changed := differences(before, OmegaConf.to_container(cfg, resolve=True)):
        raise ValueError(
            f"config.yaml has been changed since the run began. Got another {', '.join(changed)}; change it back, "
            f"or start a new run"
        )


def check_same_job(cfg: DictConfig, run_dir: Path) -> None:
    """What a job of a sweep left behind must be of the recipe as it is now."""
    if not (run_dir / runs.CONFIG).is_file() or not any(run_dir.glob("checkpoints/*.ckpt")):
        return
    before = runs.load_config(run_dir)
    cfg = cfg.copy()
    cfg.run_dir = before.run_dir = str(run_dir)
    if changed := differences(*(OmegaConf.to_container(each, resolve=True) for each in (before, cfg))):
        raise UsageError(
            f"its recipe has changed since this job was trained. Got another {', '.join(changed)} than in {run_dir}; "
            f"take that folder away, or give another name=…"
        )


def differences(before: dict, now: dict) -> list[str]:
    """Settings that decide what comes out, and are not the same in two configurations."""
    found = []
    for key in ("seed", "data", "augment", "model", "optimizer", "scheduler", "averaging", "distill", "trainer"):
        old, new = before.get(key), now.get(key)
        if not isinstance(old, dict) or not isinstance(new, dict):
            old, new = {"": old}, {"": new}
        names = [name for name in old.keys() & new.keys() if old[name] != new[name] and new[name] != AUTO]
        found += [".".join(filter(None, (key, name))) for name in sorted(names)]
    return [name for name in found if name not in (*RESUME_MAY_CHANGE, *SET_BY_US)]


def last_checkpoint(run_dir: Path) -> Path:
    return run_dir / "checkpoints" / "last.ckpt"


def described(
    cfg: DictConfig, data: "DataModule", model: "Classifier", precision: str, trainer: "Trainer"
) -> dict[str, object]:
    """What a run's record says before there is anything to say about its training."""
    from cifar_resnet.models.size import num_macs, num_parameters

    return {
        "name": cfg.name,
        "run_dir": cfg.run_dir,
        "network": cfg.choices.model,
        "data": cfg.choices.data,
        "parameters": num_parameters(model),
        "macs": num_macs(model, data.image_shape),
        **data.state(),
        "device": runs.device_name(trainer.strategy.root_device),
        "precision": precision,
    }


def run_trainer(trainer: "Trainer", model: "Classifier", data: "DataModule", run_dir: Path) -> dict[str, float]:
    """Train to the end, from where it stopped if it was begun before; how much that was, and how long it took."""
    from cifar_resnet.callbacks import Throughput

    last = last_checkpoint(run_dir)
    trainer.fit(model, data, ckpt_path=last if last.exists() else None)
    (throughput,) = [callback for callback in trainer.callbacks if isinstance(callback, Throughput)]
    return {
        "epochs": trainer.current_epoch,
        "steps": trainer.global_step,
        "images": throughput.images,
        "train_seconds": throughput.seconds,
        "images_per_second": throughput.images / throughput.seconds,
    }


def conclude(
    cfg: DictConfig, record: dict, trainer: "Trainer", model: "Classifier", data: "DataModule", start: float
) -> None:
    """Test the network, complete its record, and leave that with everything that shows how it went.

    start: of the whole command, by time.perf_counter.
    """
    import torch
    from lightning.pytorch.loggers import TensorBoardLogger

    from cifar_resnet.answers import FILE, Answers

    run_dir = Path(record["run_dir"])
    best = run_dir / "checkpoints" / "best.ckpt"
    is_best = "best" in cfg.callbacks and data.has_val and best.exists()
    chosen = best if is_best else last_checkpoint(run_dir)
    test = trainer.test(model, data, ckpt_path=chosen, verbose=False)[0] if cfg.test else {}
    checkpoint = torch.load(chosen, map_location="cpu", weights_only=True)
    metrics = checkpoint["metrics"] | test
    record |= {
        "selected": "best on validation" if is_best else "last",
        "epoch": checkpoint["epoch"] + 1,
        "training_flops": 6 * record["macs"] * record["images"],  # the backward pass taken for two forward ones
        "seconds": time.perf_counter() - start,
        "metrics": metrics,
        "commit": runs.commit(),
        "versions": runs.versions(),
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "config": model.config,
    }
    if not trainer.is_global_zero:
        return
    if cfg.test:
        log_probs = torch.cat(model.test_log_probs)
        images, labels = (tensor[: len(log_probs)] for tensor in data.test.tensors)
        Answers.about(images, log_probs, labels).save(run_dir / FILE)
    runs.write_record(run_dir, record)
    groups = {group: model.config[group] for group in cfg.choices if group in model.config}
    # under names of their own, and at the end: in a curve of theirs, a point at an earlier step hides all others
    scores = {f"final/{name}": value for name, value in metrics.items()}
    for logger in trainer.loggers:
        shown = {"metrics": scores, "step": record["steps"]} if isinstance(logger, TensorBoardLogger) else {}
        logger.log_hyperparams(groups, **shown)
        logger.save()
    if cfg.page:
        try:
            show(run_dir, record, data, chosen, trainer.loggers)
        except Exception as error:  # everything that counts is there by now
            log.warning(
                f"warning: no page was made ({reason_of(error)}); cifar-evaluate checkpoint={run_dir} makes one"
            )


def show(run_dir: Path, record: dict, data: "DataModule", chosen: Path, loggers: Sequence["Logger"]) -> None:
    """Draw what came out: a page in the run folder, and the same figures in TensorBoard."""
    from lightning.pytorch.loggers import TensorBoardLogger

    from cifar_resnet import metrics, page
    from cifar_resnet.answers import FILE, Answers
    from cifar_resnet.inference import Ensemble
    from cifar_resnet.terminal import summary_facts

    facts = {name: text for name, text in summary_facts(record).items() if name != "look next"}
    blocks = page.curves(run_dir)
    if (run_dir / FILE).exists():
        answers = Answers.load(run_dir / FILE)
        temperature = None
        if data.has_val:
            ensemble = Ensemble([chosen], accelerator=data.train.device.type, precision=record["precision"])
            images, labels = data.val.tensors
            temperature = metrics.fit_temperature(ensemble.about(images)[0], labels)
        blocks += page.answers(answers.log_probs, answers.labels, data.test.tensors[0], data.classes, temperature)
    page.write(run_dir / "page.html", run_dir.name, facts, blocks, record["config"])
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            for block in blocks:
                if block.figure:
                    logger.experiment.add_figure(block.name, block.figure, record["steps"])


def callbacks_of(cfg: DictConfig) -> dict[str, "Callback"]:
    averaging = {"averaging": instantiate(cfg.averaging)} if "averaging" in cfg else {}
    return dict(instantiate(cfg.callbacks)) | averaging


def loggers_of(cfg: DictConfig, first_step: int | None) -> list["Logger"]:
    """first_step: of a training that goes on, whose curves then forget what had been drawn from there on."""
    found = []
    for settings in cfg.logger.values():
        is_tensorboard = settings._target_.endswith("TensorBoardLogger")
        found.append(instantiate(settings, **({"purge_step": first_step} if is_tensorboard else {})))
    return found


def is_max_lr_sought(cfg: DictConfig) -> bool:
    return (cfg.get("scheduler") or {}).get("max_lr") == AUTO


def find_max_lr(cfg: DictConfig) -> "RangeTest":
    """Replace scheduler.max_lr=auto by what a range test suggests."""
    from cifar_resnet.find_lr import range_test

    found = range_test(cfg)
    cfg.scheduler.max_lr = found.suggestion
    log.info(f"  learning rate {found.suggestion:.3g} at the peak, found by a range test\n")
    return found


def warnings_about(cfg: DictConfig) -> Iterator[str]:
    """What may well not be meant."""
    if "early_stopping" in cfg.callbacks and cfg.choices.get("scheduler") not in ("constant", None):
        yield (
            f"early stopping may end the training before scheduler={cfg.choices.scheduler} has brought the learning "
            f"rate down, which is where most of the accuracy comes from"
        )


def settle(cfg: DictConfig) -> None:
    """Let go of what other settings rule out."""
    if cfg.trainer.deterministic:
        cfg.trainer.benchmark = False  # cuDNN's trials could end in another algorithm each time
    if cfg.trainer.gradient_clip_val and cfg.optimizer.get("fused"):
        cfg.optimizer.fused = False  # Lightning does not clip for an optimizer that could scale gradients itself


def open_run_dir(cfg: DictConfig) -> Path:
    """The folder that this run writes to; a new one holds the configuration by the time this returns."""
    if inherited := os.environ.get(RUN_DIR_VARIABLE) if "LOCAL_RANK" in os.environ else None:
        cfg.run_dir = inherited
    elif not cfg.resume:
        with usage_errors():
            cfg.run_dir = str(runs.create_run_dir(cfg))
            runs.save_config(Path(cfg.run_dir), cfg)
    os.environ[RUN_DIR_VARIABLE] = cfg.run_dir
    return Path(cfg.run_dir)


if __name__ == "__main__":
    sys.exit(main())
