"""What a run says while it trains: a line for each epoch, and in a terminal a bar below them."""

import time
from typing import Any

import rich
from lightning.pytorch import Callback, LightningModule, Trainer
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from cifar_resnet.terminal import duration, log

HEADER = "epoch      train loss    acc     val loss    acc          lr   images/s      left"


class Progress(Callback):
    """One line per epoch with both losses and accuracies, learning rate, images/s and the time left."""

    bar: RichProgress | None = None
    last_line = 0  # the epoch that it was about

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        loop, batches = trainer.fit_loop, int(trainer.num_training_batches)
        done = loop.epoch_loop.batch_progress.current.completed if loop.restarted_mid_epoch else 0
        self.epochs_before, self.start = trainer.current_epoch + done / batches, time.perf_counter()
        self.images, self.epoch_start = 0, self.start  # for an epoch that goes on in its middle
        log.info(HEADER)
        console = rich.get_console()
        if console.is_terminal and trainer.is_global_zero:
            self.bar = RichProgress(
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:3.0f}%  {task.fields[speed]} images/s "),
                TimeRemainingColumn(),
                console=console,
                refresh_per_second=2,
                transient=True,
            )
            self.task = self.bar.add_task(
                "train",
                total=trainer.max_epochs * batches,
                completed=round(self.epochs_before * batches),
                epoch=trainer.current_epoch + 1,
                epochs=trainer.max_epochs,
                speed="…",
            )
            self.bar.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images, self.epoch_start = 0, time.perf_counter()
        if self.bar:
            self.bar.update(self.task, epoch=trainer.current_epoch + 1)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.bar:
            self.images += len(batch[1]) * trainer.world_size
            speed = self.images / (time.perf_counter() - self.epoch_start)
            self.bar.update(self.task, advance=1, speed=f"{speed:,.0f}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        metrics, epoch = trainer.callback_metrics, trainer.current_epoch + 1
        self.last_line = epoch
        seconds_per_epoch = (time.perf_counter() - self.start) / (epoch - self.epochs_before)

        def cell(name: str, form: str, width: int) -> str:
            value = metrics[name].item() if name in metrics else None
            if value is None:
                return " " * width
            return f"{value:{form if abs(value) < 1000 or ',' in form else '.3g'}}".rjust(width)

        log.info(
            f"{epoch:4d}/{trainer.max_epochs:<4d} {cell('train/loss', '.4f', 11)} {cell('train/acc', '.2%', 7)}"
            f"  {cell('val/loss', '.4f', 9)} {cell('val/acc', '.2%', 7)}"
            f"  {trainer.optimizers[0].param_groups[0]['lr']:10.3g} {cell('train/images_per_second', ',.0f', 10)}"
            f" {duration(seconds_per_epoch * (trainer.max_epochs - epoch)):>9}"
        )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.last_line == trainer.current_epoch + 1:  # an end that nobody saw coming is validated last of all
            self.on_train_epoch_end(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, pl_module)
