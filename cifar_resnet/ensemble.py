"""ensemble.size: networks that differ in nothing but their seed, trained side by side on one device.

What is left is what a sweep over the seed would leave: a folder for each member, as if it had been trained alone.
"""

import logging
import time
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf, open_dict

from cifar_resnet import runs
from cifar_resnet.command import Job, UsageError, usage_errors
from cifar_resnet.train import (
    build,
    conclude,
    described,
    ends_said,
    find_max_lr,
    images_kept,
    is_max_lr_sought,
    last_checkpoint,
    run_trainer,
    trainer_of,
    warnings_about,
)

log = logging.getLogger("cifar_resnet")


def train_side_by_side(job: Job) -> int:
    """Train the members of this job, unless that has been done before; the exit code."""
    from cifar_resnet.terminal import print_table, sweep_table

    cfg = job.cfg
    refuse(cfg)
    asked = [text for text in job.overrides if not text.startswith(("seed=", "ensemble.size="))]
    name = "-".join(filter(None, ["ensemble", runs.slug(asked), runs.digest([*job.arguments, *job.overrides])]))
    folder = runs.parent_dir(cfg) / name
    seeds = range(cfg.seed, cfg.seed + cfg.ensemble.size)
    run_dirs = [folder / f"seed-{seed}" for seed in seeds]
    if (run_dirs[0] / runs.CONFIG).is_file():  # begun before
        cfg = runs.load_config(run_dirs[0])
    members = [member_of(cfg, run_dir, asked, seed) for run_dir, seed in zip(run_dirs, seeds, strict=True)]
    records = [runs.read_record(run_dir) for run_dir in run_dirs]
    if all(records):
        log.info("this ensemble has been trained before")
    else:
        records = train_members(folder, members)
    varying = [[f"seed={seed}"] for seed in seeds]
    print_table(sweep_table(list(zip(varying, records, strict=True))))
    log.info(f"  as an ensemble: cifar-evaluate checkpoint={folder}")
    return 0


def refuse(cfg: DictConfig) -> None:
    """UsageError for what networks side by side cannot have; what only the network can tell, it tells itself."""
    if cfg.resume or cfg.run_dir:
        raise UsageError(
            "an ensemble names and resumes its runs itself, by the same command again: leave out run_dir and resume"
        )
    if cfg.compile:
        raise UsageError("networks side by side are not compiled. Got compile=true; leave it out, or ensemble.size=1")
    if "early_stopping" in cfg.callbacks:
        raise UsageError("networks side by side end together. Got early stopping; give callbacks=default")
    if "last" not in cfg.callbacks:
        raise UsageError("networks side by side go on from callbacks.last. Got ~callbacks.last; leave that out")
    best = cfg.callbacks.get("best")
    if best and best.monitor not in ("val/acc", "val/loss"):
        raise UsageError(f"a member is chosen by val/acc or val/loss. Got callbacks.best.monitor={best.monitor}")


def member_of(cfg: DictConfig, run_dir: Path, asked: Sequence[str], seed: int) -> DictConfig:
    """The configuration of one network, as if it were to be trained alone."""
    member = cfg.copy()
    member.seed, member.ensemble.size = seed, 1
    member.run_dir = str(run_dir)
    member.overrides = [*asked, f"seed={seed}"]
    return member


def train_members(folder: Path, members: Sequence[DictConfig]) -> list[dict]:
    """Train them all, from where that stopped if it was begun before; their records."""
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from cifar_resnet.callbacks import MemberCheckpoints
    from cifar_resnet.models import SideBySide
    from cifar_resnet.terminal import announcement, log_to

    start = time.perf_counter()
    found = None
    with images_kept():
        if is_max_lr_sought(members[0]):
            found = find_max_lr(members[0])
            for member in members:
                member.scheduler.max_lr = found.suggestion
        built = [build(member) for member in members]
    (data, _, precision), models = built[0], [model for _, model, _ in built]
    data.seeds = [member.data.seed for member in members]
    everyone = SideBySide(models)
    for model, member in zip(models, members, strict=True):
        model.config = OmegaConf.to_container(member, resolve=True)

    together, run_dirs = members[0].copy(), [Path(member.run_dir) for member in members]
    shared = folder / runs.TOGETHER
    together.run_dir = str(shared)
    with open_dict(together):
        best = together.callbacks.pop("best", None)  # each member has its own
    monitor, mode = (best.monitor, best.mode) if best and data.has_val else (None, "max")
    splitting = MemberCheckpoints(last_checkpoint(shared), run_dirs, monitor, mode)
    trainer = trainer_of(together, data, everyone, precision, [splitting])
    with usage_errors(OSError):
        for member, run_dir in zip(members, run_dirs, strict=True):
            run_dir.mkdir(parents=True, exist_ok=True)
            runs.save_config(run_dir, member)
        shared.mkdir(exist_ok=True)
    records = [
        described(member, data, model, precision, trainer) for member, model in zip(members, models, strict=True)
    ]
    with log_to(shared / "train.log"):
        first = records[0] | {"network": f"{len(members)} x {records[0]['network']}, each", "run_dir": str(folder)}
        log.info(announcement(first))
        if found:
            found.save(shared)
        for warning in warnings_about(together):
            log.warning(f"warning: {warning}\n")
        with ends_said("the same command again goes on"):
            trained = run_trainer(trainer, everyone, data, shared)
    splitting.complete(everyone)
    for key in ("images", "images_per_second"):
        trained[key] /= len(members)
    for member, model, record in zip(members, models, records, strict=True):
        record |= trained | {"side_by_side": len(members)}
        with usage_errors(MisconfigurationException):
            tester = tester_of(member, precision)
        with ends_said("the same command again goes on"):
            conclude(member, record, tester, model, data, start)
    return records


def tester_of(cfg: DictConfig, precision: str):
    from hydra.utils import instantiate

    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return instantiate(cfg.trainer, precision=precision, **quiet)
