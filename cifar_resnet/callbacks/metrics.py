"""What each epoch measured: its speed, and one row of a table."""

import shutil
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_resnet.errors import UsageError
from cifar_resnet.models import StackedEnsemble
from cifar_resnet.models.classifier import metrics_of
from cifar_resnet.runs import read_metrics, readable_metrics, write_table
from cifar_resnet.terminal import log


class Throughput(Callback):
    """Logs images/s of each training epoch, validation not counted, as train/images_per_second.

    What it counts is of all lives of a training, of each up to the checkpoint that the next went on from.
    """

    images_by_size: Counter[int]
    epoch_images: Counter[int]
    latest: float | None

    def __init__(self) -> None:
        # over all epochs, those before a resume included; images by their side in pixels
        self.images_by_size, self.seconds = Counter(), 0.0
        self.command_start = time.perf_counter()  # of the command, of this life
        self.earlier_seconds = 0.0  # of the commands of the lives before
        # of an epoch that goes on in its middle, what came before; of one that has ended, images/s
        self.epoch_images, self.epoch_seconds, self.latest = Counter(), 0.0, None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.start = self.now(trainer) - self.epoch_seconds

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.epoch_images, self.latest, self.start = Counter(), None, self.now(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        images, labels = batch
        self.epoch_images[images.shape[-1]] += len(labels) * trainer.world_size
        if trainer.is_last_batch:
            self.measure(trainer)

    def measure(self, trainer: Trainer) -> None:
        """Once an epoch: after its last batch, or where it was cut short, before its validation."""
        if self.latest is not None:
            return
        seconds = self.now(trainer) - self.start
        if trainer.world_size > 1:  # all know the same speed
            taken = torch.tensor(seconds, device=trainer.strategy.root_device)
            seconds = trainer.strategy.reduce(taken, reduce_op="mean").item()
        self.images_by_size += self.epoch_images
        self.seconds += seconds
        self.latest = self.epoch_images.total() / seconds

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self.measure(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.measure(trainer)
        pl_module.log("train/images_per_second", self.latest, sync_dist=True)

    def now(self, trainer: Trainer) -> float:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()  # twice an epoch: without it the queue's length would be measured
        return time.perf_counter()

    @property
    def images(self) -> int:
        return self.images_by_size.total()

    @property
    def command_seconds(self) -> float:
        """Since the command began, in this life and those before: all that is no training included."""
        return self.earlier_seconds + time.perf_counter() - self.command_start

    def counts(self) -> dict[str, float | dict[str, int]]:
        """As a run's record says them."""
        return {
            "images": self.images,
            "images_by_size": {str(size): count for size, count in sorted(self.images_by_size.items())},
            "train_seconds": self.seconds,
            "images_per_second": self.images / self.seconds,
            "seconds": self.command_seconds,
        }

    def state_dict(self) -> dict:
        images, seconds = dict(self.images_by_size), self.seconds
        whole = {"images_by_size": images, "seconds": seconds, "command_seconds": self.command_seconds}
        if self.latest is not None or not self.epoch_images:  # not within an epoch
            return whole
        return whole | {"epoch_images": dict(self.epoch_images), "epoch_seconds": time.perf_counter() - self.start}

    def load_state_dict(self, state_dict: dict) -> None:
        self.images_by_size, self.seconds = Counter(state_dict["images_by_size"]), state_dict["seconds"]
        self.earlier_seconds = state_dict.get("command_seconds", 0.0)
        self.epoch_images = Counter(state_dict.get("epoch_images", {}))
        self.epoch_seconds = state_dict.get("epoch_seconds", 0.0)


class MetricsCSV(Callback):
    """One row per epoch in a CSV file: epoch and step (both counted from 1), learning rate at its end, every metric.

    A resumed run keeps the rows of the epochs before it; of a damaged table those that are whole, and the file aside.
    """

    def __init__(self, path: str):
        self.path = Path(path)
        self.rows: list[Mapping[str, str | float]] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.current_epoch:
            try:
                rows = read_metrics(self.path)
            except UsageError as error:  # no reason to give a training up
                rows = readable_metrics(self.path)
                if trainer.is_global_zero:
                    aside = self.path.with_name(f"{self.path.name}.damaged-{trainer.current_epoch}")
                    shutil.copy(self.path, aside)
                    log.warning(
                        f"warning: {len(rows)} epochs of the table can be read, and {aside} keeps the rest: {error}"
                    )
            self.rows = [row for row in rows if int(row["epoch"]) <= trainer.current_epoch]

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch, rate = trainer.current_epoch + 1, trainer.optimizers[0].param_groups[0]["lr"]
        # on all ranks, for who asks first for a metric has the others' shares added up
        row = {"epoch": epoch, "step": trainer.global_step, "lr": rate, **self.metrics(trainer, pl_module)}
        self.rows = [*self.rows[: -1 if self.has_row(epoch) else None], row]
        if trainer.is_global_zero:
            names = list(dict.fromkeys(name for row in self.rows for name in row))
            write_table(self.path, [names, *([row.get(name, "") for name in names] for row in self.rows)])

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.has_row(trainer.current_epoch + 1):  # an end that nobody saw coming is validated last of all
            self.on_train_epoch_end(trainer, pl_module)

    def has_row(self, epoch: int) -> bool:
        return bool(self.rows) and int(self.rows[-1]["epoch"]) == epoch

    def metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, float]:
        return metrics_of(trainer)


class MemberMetricsCSV(MetricsCSV):
    """Of networks that are trained side by side one's own table. number: which of them, from 0."""

    def __init__(self, path: str, number: int):
        super().__init__(path)
        self.number = number

    def metrics(self, trainer: Trainer, pl_module: StackedEnsemble) -> dict[str, float]:  # type: ignore[override]
        return pl_module.member_metrics(metrics_of(trainer), self.number)
