"""What a run says while it trains: a line for each epoch, and in a terminal a bar below them."""

import logging
import time

import rich
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from cifar_resnet.terminal import duration

log = logging.getLogger(__name__)

HEADER = "epoch      train loss    acc     val loss    acc          lr   images/s      left"


class Progress(ProgressBar):
    """One line per epoch with both losses and accuracies, learning rate, images/s and the time left."""

    def __init__(self):
        super().__init__()
        self.bar: RichProgress | None = None
        self.enabled = True

    def disable(self) -> None:  # Lightning calls this on all ranks but the first
        self.enabled = False

    def enable(self) -> None:
        self.enabled = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.first_epoch, self.start = trainer.current_epoch, time.perf_counter()
        self.images, self.epoch_start = 0, self.start  # for an epoch that goes on in its middle
        if not self.enabled:
            return
        log.info(HEADER)
        console = rich.get_console()
        if console.is_terminal:
            self.bar = RichProgress(
                TextColumn("epoch {task.fields[epoch]}/{task.fields[epochs]}"),
                BarColumn(bar_width=None),
                TextColumn("{task.percentage:3.0f}%  {task.fields[speed]} images/s "),
                TimeRemainingColumn(),
                console=console,
                refresh_per_second=2,
                transient=True,
            )
            batches = int(trainer.num_training_batches)
            self.task = self.bar.add_task(
                "train",
                total=trainer.max_epochs * batches,
                completed=trainer.current_epoch * batches,
                epoch=trainer.current_epoch + 1,
                epochs=trainer.max_epochs,
                speed="…",
            )
            self.bar.start()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.images, self.epoch_start = 0, time.perf_counter()
        if self.bar:
            self.bar.update(self.task, epoch=trainer.current_epoch + 1)

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        if self.bar:
            self.images += len(batch[1]) * trainer.world_size
            speed = self.images / (time.perf_counter() - self.epoch_start)
            self.bar.update(self.task, advance=1, speed=f"{speed:,.0f}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.enabled:
            log.info(self.epoch_line(trainer))

    def epoch_line(self, trainer: Trainer) -> str:
        metrics, epoch = trainer.callback_metrics, trainer.current_epoch + 1
        elapsed = time.perf_counter() - self.start
        left = elapsed / (epoch - self.first_epoch) * (trainer.max_epochs - epoch)

        def cell(name: str, form: str, width: int) -> str:
            return f"{metrics[name].item():{form}}".rjust(width) if name in metrics else " " * width

        return (
            f"{epoch:4d}/{trainer.max_epochs:<4d} {cell('train/loss', '.4f', 11)} {cell('train/acc', '.2%', 7)}"
            f"  {cell('val/loss', '.4f', 9)} {cell('val/acc', '.2%', 7)}"
            f"  {trainer.optimizers[0].param_groups[0]['lr']:10.3g}"
            f" {cell('train/images_per_second', ',.0f', 10)} {duration(left):>9}"
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.stop()

    def stop(self) -> None:
        if self.bar:
            self.bar.stop()
            self.bar = None
