"""Which run a command goes on with, and what must not have changed since that began."""

import os
from collections.abc import Iterable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cifar_resnet import runs
from cifar_resnet.compose import Job
from cifar_resnet.errors import as_usage_error, refuse_if
from cifar_resnet.trust import check_targets, named_in, named_in_files

# what a run may go on with another value of: where it is computed, and what bears on its test and its looks alone
MAY_CHANGE = (
    "resume", "trust", "data.root", "data.device", "trainer.accelerator", "trainer.devices", "trainer.strategy", "test",
    "page", "logger", "data.eval_batch_size", "trainer.limit_test_batches", "trainer.log_every_n_steps",
    "trainer.profiler",
)  # fmt: skip
SET_BY_US = ("trainer.default_root_dir", "trainer.benchmark", "optimizer.fused")  # from other settings
RECIPE = ("seed", "data", "augment", "model", "optimizer", "scheduler", "averaging", "distill", "trainer")
AUTO = "auto"  # of resume: begin, or go on where the same command was stopped; of scheduler.max_lr: find it


@as_usage_error()
def chosen_run(job: Job) -> DictConfig:
    """The configuration of the run that this job means: a new one, or where `resume` says so one begun before."""
    cfg = job.cfg
    refuse_if(
        cfg.dry_run and cfg.resume,
        "dry_run describes what the command names, resume goes on with something else: give one",
    )
    if cfg.resume:
        return find_or_create(job) if cfg.resume == AUTO else begun_run(job)
    if cfg.run_dir and not cfg.dry_run and "LOCAL_RANK" not in os.environ:
        runs.check_new(Path(cfg.run_dir))
    return cfg


def begun_run(job: Job) -> DictConfig:
    """The configuration that the run folder holds, with what a change of machine may change."""
    given = [override.partition("=")[0] for override in job.overrides]
    refuse_if(
        refused := [key for key in given if key not in MAY_CHANGE],
        f"resume continues a run with the configuration it began with. Got {', '.join(refused)} as well; "
        f"leave that out, or start a new run",
    )
    refuse_if(
        not isinstance(job.cfg.resume, str),
        f"resume needs a run folder. Got resume={job.cfg.resume}",
    )
    run_dir = Path(job.cfg.resume)
    cfg = load_begun(run_dir, job.cfg, named_in_files(job.composer.folders[1:]))
    refuse_if(
        not os.access(run_dir, os.W_OK),
        f"resume writes into the run folder. Got {run_dir}, which is not writable",
    )
    refuse_if(
        (run_dir.parent / runs.TOGETHER).is_dir() and not runs.read_record(run_dir),
        f"a member of an ensemble goes on with the others, by the command that began them. Got {run_dir}",
    )
    for key in given:
        OmegaConf.update(cfg, key, OmegaConf.select(job.cfg, key), merge=False)
    cfg.run_dir = cfg.resume
    return cfg


def find_or_create(job: Job) -> DictConfig:
    """The run that this command began before, or else a new one: in a folder that the command itself names."""
    asked = without_folders(job.overrides)
    name = "-".join(filter(None, ["auto", runs.slug(asked), runs.digest([*job.composer.arguments, *asked])]))
    run_dir = Path(job.cfg.run_dir or runs.parent_dir(job.cfg) / name)
    is_begun = (run_dir / runs.CONFIG).is_file()
    cfg = load_begun(run_dir, job.cfg) if is_begun else job.cfg
    refuse_if(
        (before := without_folders(cfg.overrides)) != asked,
        f"run_dir holds a run of another command. Got {run_dir}, begun with {' '.join(before) or 'no settings'}; "
        f"give another run_dir, or leave it out",
    )
    cfg.run_dir, cfg.resume = str(run_dir), str(run_dir) if is_begun else None
    return cfg


def load_begun(run_dir: Path, now: DictConfig, named: Iterable[str] = ()) -> DictConfig:
    """The configuration that a run folder holds, once nothing strange would be built of it; to be run there.

    now: what the command is composed of. named: what its files name beside.
    """
    cfg = runs.load_config(run_dir)
    cfg.run_dir = str(run_dir)
    check_targets(cfg, run_dir / runs.CONFIG, {*named_in(now), *named}, now.get("trust") or ())
    return cfg


def without_folders(overrides: list[str]) -> list[str]:
    return [text for text in overrides if not text.startswith(("resume=", "run_dir="))]


def check_same_config(cfg: DictConfig, before: dict | None) -> None:
    """What a run began with must not change below it, or its end would be that of neither. before: its checkpoint's."""
    refuse_if(
        changed := differences(before, OmegaConf.to_container(cfg, resolve=True)) if before else [],
        f"config.yaml has been changed since the run began. Got another {', '.join(changed)}; change it back, "
        f"or start a new run",
    )


def check_same_job(cfg: DictConfig, run_dir: Path) -> None:
    """What a job of a sweep left behind must be of the recipe as it is now."""
    if runs.can_go_on(run_dir):
        before, cfg = runs.load_config(run_dir), cfg.copy()
        cfg.run_dir = before.run_dir = str(run_dir)
        refuse_if(
            changed := differences(*(OmegaConf.to_container(each, resolve=True) for each in (before, cfg))),
            f"its recipe has changed since this job was trained. Got another {', '.join(changed)} than in {run_dir}; "
            f"take that folder away, or give another name=…",
        )


def differences(before: dict, now: dict) -> list[str]:
    """Settings that decide what comes out, and are not the same in two configurations."""
    found = []
    for key in RECIPE:
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            found += [f"{key}.{name}" for name in sorted(old.keys() & new.keys()) if old[name] != new[name] != AUTO]
        elif old != new != AUTO:
            found.append(key)
    return [name for name in found if name not in (*MAY_CHANGE, *SET_BY_US)]
