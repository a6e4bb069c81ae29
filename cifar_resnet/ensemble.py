"""ensemble.size: networks that differ in nothing but their seed, trained side by side on one device.

What is left is what a sweep over the seed would leave: a folder for each member, as if it had been trained alone. What
they have in common, such as the log, TensorBoard's curves and the checkpoint that all go on from, is in `together`.
"""

import time
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from cifar_resnet import callbacks, claims, processes, resume, runs, sweep, trackers, train
from cifar_resnet.build import (
    QUIET,
    build_callbacks,
    build_data_and_model,
    build_trainer,
    kept_images,
    new_trainer,
)
from cifar_resnet.compose import Job
from cifar_resnet.constraints import plain
from cifar_resnet.data import DataModule, StackedData
from cifar_resnet.errors import as_usage_error, refuse_if
from cifar_resnet.models import StackedEnsemble
from cifar_resnet.narration import narrated
from cifar_resnet.quoting import command_line
from cifar_resnet.results.record import begin_record, test_and_record
from cifar_resnet.terminal import log, print_table


def run(jobs: list[Job]) -> int:
    """Train the members of this one job, unless that has been done before; the exit code."""
    (job,) = jobs
    cfg = job.cfg
    refuse(cfg)
    asked = [text for text in job.overrides if not text.startswith(("seed=", "ensemble.size="))]
    digest = runs.digest([*job.composer.arguments, *job.overrides])
    folder = runs.parent_dir(cfg) / "-".join(filter(None, ["ensemble", runs.slug(asked), digest]))
    run_dirs = {seed: folder / f"seed-{seed}" for seed in range(cfg.seed, cfg.seed + cfg.ensemble.size)}
    records = [runs.read_record(run_dir) for run_dir in run_dirs.values()]
    for member in members_of(cfg, run_dirs, asked):
        resume.check_same_job(member, Path(member.run_dir))
    if (run_dirs[cfg.seed] / runs.CONFIG).is_file():  # begun before
        cfg = resume.load_begun(run_dirs[cfg.seed], cfg)
    if all(records):
        log.info("this ensemble has been trained before")
    else:
        with kept_images():
            records = train_members(cfg, folder, run_dirs, asked)
    print_table(sweep.table_of([([f"seed={seed}"], record) for seed, record in zip(run_dirs, records, strict=True)]))
    log.info(f"  as an ensemble: {command_line('cifar-evaluate', f'checkpoint={folder}')}")
    return 0


def refuse(cfg: DictConfig) -> None:
    """UsageError for what networks side by side cannot have; what only the network can tell, it tells itself."""
    count = processes.num_processes(cfg)
    for holds, text in (
        (count > 1, f"networks are trained side by side on one device. Got {count}; give trainer.devices=1"),
        (cfg.dry_run, "dry_run describes one network. Got ensemble.size as well; leave that out"),
        (
            cfg.resume or cfg.run_dir,
            "an ensemble names and resumes its runs itself, by the same command again: leave out run_dir and resume",
        ),
        (
            cfg.get("selection"),
            "networks side by side share their batches, of which each would select its own part. Got ensemble.size="
            f'{cfg.ensemble.size}; leave selection out, or train one after the other: -m "seed=range(0,…)"',
        ),
        (cfg.compile, "networks side by side are not compiled. Got compile=true; leave it out, or ensemble.size=1"),
        (
            callbacks.have_early_stopping(cfg.callbacks),
            "networks side by side end together. Got early stopping; give callbacks=default",
        ),
        (
            "last" not in cfg.callbacks,
            "networks side by side go on from callbacks.last. Got ~callbacks.last; leave that out",
        ),
        (
            OmegaConf.select(cfg, "scheduler.max_lr") == resume.AUTO,
            "each network would find a peak of its own. Got scheduler.max_lr=auto; give the learning rate that "
            "cifar-find-lr suggests, or ensemble.size=1",
        ),
    ):
        refuse_if(holds, text)


def members_of(cfg: DictConfig, run_dirs: dict[int, Path], asked: list[str]) -> list[DictConfig]:
    """The configuration of each, as if it were to be trained alone."""
    return [
        OmegaConf.merge(  # type: ignore[misc]
            cfg,
            {"seed": seed, "ensemble": {"size": 1}, "overrides": [*asked, f"seed={seed}"]},
            {"run_dir": str(run_dir)},
        )
        for seed, run_dir in run_dirs.items()
    ]


def train_members(cfg: DictConfig, folder: Path, run_dirs: dict[int, Path], asked: list[str]) -> list[dict]:
    """Train a network for each seed, all from where that stopped if it was begun before; their records.

    folder: of the ensemble. run_dirs: by seed. asked: the overrides, but for the seed.
    """
    start = time.perf_counter()
    runs.check_writable(folder)
    members = members_of(cfg, run_dirs, asked)
    modules, models = zip(*map(build_data_and_model, members), strict=True)
    data, everyone, shared = modules[0], StackedEnsemble(models), folder / runs.TOGETHER
    together: Any = OmegaConf.merge(
        members[0], {"run_dir": str(shared), "resume": str(shared) if shared.is_dir() else None}
    )
    with open_dict(together):
        together.callbacks.pop("best", None)  # each member has its own
    with as_usage_error():
        splitting = member_checkpoints(members[0], data, runs.last_checkpoint(shared), list(run_dirs.values()))
        tables = [
            callbacks.MemberMetricsCSV(str(run_dir / runs.METRICS), number)
            for number, run_dir in enumerate(run_dirs.values())
            if "metrics" in cfg.callbacks
        ]
        trainer = build_trainer(together, data, everyone, [*tables, splitting])
        everyone.check_members()
        everyone.config = plain(together)
        for member, model in zip(members, models, strict=True):
            model.config = plain(member)
    records = [begin_record(*each, trainer) for each in zip(members, modules, models, strict=True)]
    whole = records[0] | {"network": f"{len(members)} x {records[0]['network']}, each", "run_dir": str(folder)}
    with (
        claims.held(shared),
        trackers.opened(together, trainer.loggers),
        narrated(together, whole, shared, how_to_go_on="the same command again goes on"),
    ):
        with as_usage_error():
            for member, run_dir in zip(members, run_dirs.values(), strict=True):
                run_dir.mkdir(exist_ok=True)
                runs.save_config(run_dir, member)
        if getattr(trainer.precision_plugin, "scaler", None):
            log.warning(
                "warning: in 16-mixed, a step whose gradients overflow in one network is left out by all of them; "
                "precision=bf16-mixed has no such steps\n"
            )
        trained = train.fit(trainer, everyone, StackedData(modules), shared, start) | {"side_by_side": len(members)}
        splitting.complete(everyone)
        trained |= {key: trained[key] / len(members) for key in ("images", "images_per_second")}
        trained["images_by_size"] = {size: n / len(members) for size, n in trained["images_by_size"].items()}
        for member, model, record in zip(members, models, records, strict=True):
            record |= trained
            test_and_record(member, record, new_trainer(member, model, **QUIET), model, data)
    return records


def member_checkpoints(
    cfg: DictConfig, data: DataModule, whole: Path, run_dirs: list[Path]
) -> callbacks.MemberCheckpoints:
    """What keeps each member's best epoch, as `callbacks.best` says of one that is trained alone. cfg: of a member."""
    alone = build_callbacks(cfg, data.has_val)  # refuses what a run of its own could not have
    best: Any = next((callback for callback in alone if getattr(callback, "filename", None) == "best"), None)
    return callbacks.MemberCheckpoints(whole, run_dirs, best.monitor if best else None)
