"""What each of the processes of a training does, once the first has chosen a configuration and a folder."""

import time
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from omegaconf import DictConfig

from cifar_resnet import callbacks, processes, ranks, runs, terminal
from cifar_resnet.build import build_data_and_model, build_trainer
from cifar_resnet.constraints import plain
from cifar_resnet.data import DataModule
from cifar_resnet.models import Classifier
from cifar_resnet.narration import narrated
from cifar_resnet.quoting import command_line
from cifar_resnet.range_test import RangeTest
from cifar_resnet.results.record import begin_record, test_and_record
from cifar_resnet.terminal import log, summary


def train_and_test(
    cfg: DictConfig,
    data: DataModule,
    model: Classifier,
    extra_callbacks: Sequence[Callback],
    range_test: RangeTest | None,
    start: float,
) -> dict:
    """What each of the processes does, when there is a folder; the first one's record is the run's."""
    run_dir = Path(cfg.run_dir)
    trainer = build_trainer(cfg, data, model, extra_callbacks)
    model.config = plain(cfg)
    record = begin_record(cfg, data, model, trainer)
    to_continue = f"to continue: {command_line('cifar-train', f'resume={run_dir}')}"
    with narrated(cfg, record, run_dir, range_test, to_continue):
        if cfg.compile:
            model.compile()
        record |= fit(trainer, model, data, run_dir, start)
        test_and_record(cfg, record, trainer, model, data)
        if trainer.is_global_zero:
            log.info(f"\n{summary(record)}")
    return record


def fit(
    trainer: Trainer, model: LightningModule, data: LightningDataModule, run_dir: Path, start: float
) -> dict[str, object]:
    """Train to the end, from where it stopped if it was begun before; how much that was, and how long it took.

    start: of the whole command, by time.perf_counter.
    """
    last = runs.last_checkpoint(run_dir)
    throughput, machine = (callbacks.of(trainer, kind) for kind in (callbacks.Throughput, callbacks.Machine))
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
    return train_and_test(cfg, *build_data_and_model(cfg), (), None, time.perf_counter())
