"""cifar-train: fit, test the checkpoint that validation chose, and leave a run folder.

    cifar-train model=resnet50 trainer.max_epochs=300
    cifar-train -m model=resnet20,resnet56 optimizer.lr=0.05,0.1
    cifar-train "resume=outputs/train/<run folder>"
    cifar-train model=resnet50 resume=auto        # begins, or goes on where the same command was stopped

The same as `python -m cifar_resnet.train` and `python cifar_resnet/train.py`.
"""

import sys
from pathlib import Path
from typing import Any

if __name__ == "__main__":  # here, before torch is imported: help and mistakes are quick
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from cifar_resnet import cli

    sys.exit(cli.train())

import time
from collections.abc import Sequence

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig

from cifar_resnet import callbacks, checkpoints, constraints, processes, ranks, resume, runs, sweep, terminal, trackers
from cifar_resnet.build import build_data_and_model, build_trainer, keep_images, kept_images, networks_of, sketch
from cifar_resnet.compose import Job
from cifar_resnet.constraints import plain
from cifar_resnet.data import DataModule
from cifar_resnet.engine import BASIC
from cifar_resnet.gpus import claim_gpu
from cifar_resnet.models import Classifier
from cifar_resnet.models.summary import size_rows, summarize
from cifar_resnet.narration import narrated
from cifar_resnet.range_test import resolve_max_lr
from cifar_resnet.results.record import begin_record, test_and_record
from cifar_resnet.terminal import log, print_table, summary


def run(jobs: list[Job]) -> int:
    """Train each job; the exit code: 0, or 1 where a job of a sweep failed."""
    if jobs[0].in_sweep:
        sweep.refuse(jobs)
        if jobs[0].engine.launcher == BASIC:  # else the workers would have this process's one
            claim_gpu(jobs[0].cfg)
        waiting = sweep.unfinished(jobs)  # what has finished needs no images
        constraints.check_jobs(waiting, sketch)
    if jobs[0].cfg.dry_run:
        for job in jobs:
            describe(job)
    elif jobs[0].in_sweep:
        with kept_images():
            return sweep.sweep(jobs, train_job)
    else:
        train_run(resume.chosen_run(jobs[0]))  # jobs[0].cfg, but for resume=…
    return 0


def train_job(cfg: DictConfig) -> dict:
    """Train a job of a sweep, here or in a launcher's worker, whose next job finds the images in memory."""
    claim_gpu(cfg)
    keep_images()
    return train_run(cfg)


def train_run(cfg: DictConfig, extra_callbacks: Sequence[Callback] = ()) -> dict:
    """Train the run that `cfg` describes, from where it stopped if it was begun before; its record.

    extra_callbacks: beside those of the configuration.
    """
    if record := runs.finished(cfg):
        log.info(f"this run has finished before\n\n{summary(record)}")
        return record
    start = time.perf_counter()
    if cfg.resume:
        resume.keep_global_batch(cfg, checkpoints.batches_before(Path(cfg.run_dir)), processes.num_processes(cfg))
    range_test = resolve_max_lr(cfg)  # None but for scheduler.max_lr=auto
    data, model = build_data_and_model(cfg)
    first = range_test.save if range_test else None  # what the configuration has from it, it must be known for
    with runs.open_folder(cfg, first), processes.together(cfg):  # made only now; goes again if nothing comes of it
        return train_and_test(cfg, data, model, extra_callbacks, start)


def train_and_test(
    cfg: DictConfig,
    data: DataModule,
    model: Classifier,
    extra_callbacks: Sequence[Callback],
    start: float,
) -> dict:
    """What each of the processes does, when there is a folder; the first one's record is the run's."""
    run_dir = Path(cfg.run_dir)
    trainer = build_trainer(cfg, data, model, extra_callbacks)
    model.config = plain(cfg)
    record = begin_record(cfg, data, model, trainer)
    going_on = resume.how_to_go_on(cfg)
    with narrated(cfg, record, run_dir, going_on), trackers.opened(cfg, trainer.loggers):
        if cfg.compile:
            for network in model.all_networks():
                network.compile()
        record |= fit(trainer, model, data, run_dir, start)
        test_and_record(cfg, record, trainer, model, data)
        if trainer.is_global_zero:
            log.info(f"\n{summary(record)}")
    return record


def fit(
    trainer: Trainer, model: LightningModule, data: LightningDataModule, run_dir: Path, start: float
) -> dict[str, Any]:
    """Train to the end, from where it stopped if it was begun before; how much that was, and how long it took.

    start: of the whole command, by time.perf_counter.
    """
    last = runs.last_checkpoint(run_dir)
    throughput, machine = callbacks.of(trainer, callbacks.Throughput), callbacks.of(trainer, callbacks.Machine)
    throughput.command_start = start
    trainer.fit(model, data, ckpt_path=last if last.exists() else None)
    return {
        "epochs": callbacks.epochs_trained(trainer),
        "steps": trainer.global_step,
        **throughput.counts(),
        "machines": machine.machines,
    }


def follow() -> int:
    """Be one of the processes after the first, which says what to train; the exit code."""
    terminal.be_silent()
    return processes.follow(ranks.given(), train_along)


def train_along(cfg: DictConfig) -> dict:
    with processes.after_the_first():
        built = build_data_and_model(cfg)
    return train_and_test(cfg, *built, (), time.perf_counter())


def describe(job: Job) -> None:
    """Print the network, stage by stage; nothing is read, allocated or written."""
    data, model = sketch(resume.chosen_run(job), check_budget=False)
    log.info(" ".join([job.cfg.choices.model, *job.varying]))
    for network, about in networks_of(model):
        if network is not model:
            log.info("selection.proxy")
        print_table(*size_rows(summarize(network, data.image_shape)))
        with about:
            network.check_budget()
