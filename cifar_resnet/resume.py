"""Which run a command goes on with, and what must not have changed since that began."""

import dataclasses
import functools
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_resnet import quoting, runs
from cifar_resnet.compose import Job
from cifar_resnet.constraints import plain, value_at, values_in
from cifar_resnet.errors import as_usage_error, refuse_if
from cifar_resnet.quoting import command_line
from cifar_resnet.recipe import AUTO, OF_THE_MACHINE, differences
from cifar_resnet.terminal import log
from cifar_resnet.trust import check_targets, named_in, named_in_files, needed_to_go_on

# what a run may go on with another value of: where it is computed, the places where the same images lie, how much time
# it has, and what bears on its test and its looks alone
MAY_CHANGE = (
    *quoting.OF_IMAGES, *OF_THE_MACHINE, "resume", "trust", "trainer.devices", "trainer.max_time", "test", "page",
    "logger", "data.eval_batch_size", "trainer.limit_test_batches",
)  # fmt: skip
MISSING = object()
SET_BY_US = ("trainer.default_root_dir", "trainer.benchmark")  # from other settings


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
    if cfg.run_dir and not cfg.dry_run:
        runs.check_new(Path(cfg.run_dir))
    return cfg


def as_it_will_be(job: Job) -> DictConfig:
    """The configuration that `chosen_run` would give, for a look at it beforehand."""
    return chosen_run(dataclasses.replace(job, cfg=job.cfg.copy())) if job.cfg.resume else job.cfg


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
    for key, value in (text.split("=", 1) for text in job.overrides):
        # of data it is the run's own configuration that tells which keys there are
        now = quoting.read(value) if key.startswith("data.") else OmegaConf.select(job.cfg, key)
        OmegaConf.update(cfg, key, now, merge=False)
    cfg.run_dir = cfg.resume
    return cfg


def find_or_create(job: Job) -> DictConfig:
    """The run that this command began before, or else a new one: in a folder that the command itself names."""
    asked = without_folders(job.overrides)
    telling = runs.in_telling_order(asked)
    told = runs.slug(telling, max_length=100).removesuffix(runs.digest(telling)).rstrip("_")  # one digest is enough
    name = "-".join(filter(None, ["auto", told, runs.digest([*job.composer.arguments, *asked])]))
    run_dir = Path(job.cfg.run_dir or runs.parent_dir(job.cfg) / name)
    is_begun = (run_dir / runs.CONFIG).is_file()
    cfg = load_begun(run_dir, job.cfg) if is_begun else job.cfg
    refuse_if(
        (before := without_folders(cfg.overrides)) != asked,
        f"run_dir holds a run of another command. Got {run_dir}, begun with {' '.join(before) or 'no settings'}; "
        f"give another run_dir, or leave it out",
    )
    check_same_job(job.cfg, run_dir)
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


@as_usage_error()
def keep_global_batch(cfg: DictConfig, before: tuple[int, int, object, bool] | None, count: int) -> None:
    """Have a step see as many images as before, where a run goes on with another number of processes, and say so.

    before: as `checkpoints.batches_before` gives it; count: the processes now. UsageError where they do not divide it.
    """
    if before is None:
        return
    earlier, batch_size, devices, is_within_epoch = before
    if count == earlier:
        begun = plain(runs.load_config(Path(cfg.run_dir)))
        nodes = [value_at(each, "trainer.num_nodes") for each in (begun, plain(cfg))]
        may_have_begun_on_more = devices in ("auto", -1, "-1") or nodes[0] != nodes[1]
        is_same_batch = batch_size == begun["data"]["batch_size"] or not may_have_begun_on_more
        if devices == begun["trainer"]["devices"] and is_same_batch:
            return  # as it began
    images = earlier * batch_size
    refuse_if(
        images % count,
        f"a step of this run sees {images} images, {batch_size} on each of {earlier} devices. Got {count} devices, "
        f"which do not divide them; give a number that does",
    )
    if count != earlier:
        log.warning(
            f"warning: goes on with {count} process{'es' * (count > 1)} where it was {earlier}: each now sees "
            f"{images // count} images a step (data.batch_size), all together {images} as before. Steps, schedule and "
            f"the order of images stay; augmentation draws anew{' within this epoch' * is_within_epoch}, so that it "
            f"will not end with the same weights, bit for bit\n"
        )
    cfg.data.batch_size = images // count


def how_to_go_on(cfg: DictConfig) -> str:
    """The command for it."""
    return (
        f"to continue: {command_line('cifar-train', f'resume={cfg.run_dir}', *given_anew(cfg), *needed_to_go_on(cfg))}"
    )


def given_anew(cfg: DictConfig) -> list[str]:
    """What this command gave beside resume, as overrides: the folder's own configuration does not hold it."""
    if not cfg.resume:
        return []
    begun, now = plain(runs.load_config(Path(cfg.run_dir))), plain(cfg)
    keys = [key for key in MAY_CHANGE if key not in ("resume", "trust", "logger")]  # the last is a group
    return [f"{key}={quoting.written(value)}" for key in keys if (value := value_at(now, key)) != value_at(begun, key)]


def without_folders(overrides: list[str]) -> list[str]:
    return [text for text in overrides if not text.startswith(("resume=", "run_dir="))]


def check_same_config(cfg: DictConfig, before: dict | None, also: Sequence[str] = ()) -> None:
    """What a run began with must not change below it, or its end would be that of neither.

    before: its checkpoint's. also: which keys may change, beside those that always may.
    """
    changed = differences(before, cfg, (*MAY_CHANGE, *SET_BY_US, *also), raw=cfg) if before else []
    refuse_if(
        changed,
        f"config.yaml, or what it refers to, has been changed since the run began. Got another {listed(changed)}; "
        f"change it back, or start a new run",
    )


def check_same_data(now: Mapping, before: Mapping | None) -> None:
    """The images must be those that the run began with. now, before: as `DataModule.state` has them."""
    refuse_if(
        changed := [key for key in now if key in (before or ()) and not is_same(now[key], before[key])],
        f"these are not the images that the run began with. Got another {listed(changed)}; give the place where those "
        f"are, or start a new run",
    )


def is_same(now: Any, before: Any) -> bool:
    """Measured numbers may be rounded otherwise on another machine."""
    is_measured = isinstance(now, list) and all(isinstance(value, float) for value in now)
    return all(map(functools.partial(math.isclose, rel_tol=1e-6), now, before)) if is_measured else now == before


def check_same_job(cfg: DictConfig, run_dir: Path) -> None:
    """What was trained, or begun, in this folder must be of the recipe as it is now."""
    record, raw = runs.read_record(run_dir), None
    if (run_dir / runs.CONFIG).is_file():
        raw = runs.load_config(run_dir)
        raw.run_dir = str(run_dir)
    before = as_begun(record["config"], raw) if record else raw and plain(raw)
    if not before:
        return
    now = cfg.copy()
    now.run_dir = str(run_dir)
    tests = [folder / f"{runs.RANGE_TEST}.json" for folder in (run_dir, run_dir.parent / runs.TOGETHER)]
    found_before = ["scheduler.max_lr"] if any(path.is_file() for path in tests) else []
    is_auto = OmegaConf.select(now, "scheduler.max_lr") == AUTO
    refuse_if(
        changed := differences(before, now, (*SET_BY_US, *(found_before if is_auto else ())), raw),
        f"its recipe has changed since this job was trained. Got another {listed(changed)} than in {run_dir}; "
        f"take that folder away, or give another name=… or hydra.sweep.dir=…",
    )


def as_begun(config: Mapping, raw: DictConfig | None) -> dict:
    """A finished run's configuration, but for what it went on with another value of.

    config: of its record. raw: what it began with, as its folder has it.
    """
    found = OmegaConf.create(dict(config))
    for key in (*MAY_CHANGE, "data.batch_size") if raw else ():  # the last by `keep_global_batch`
        begun = OmegaConf.select(raw, key, default=MISSING, throw_on_resolution_failure=False)
        if begun is not MISSING and not OmegaConf.is_dict(begun):
            OmegaConf.update(found, key, begun, merge=False)
    return values_in(found)


def listed(keys: Sequence[str]) -> str:
    return ", ".join(keys[:6]) + f" and {len(keys) - 6} more" * (len(keys) > 6)
