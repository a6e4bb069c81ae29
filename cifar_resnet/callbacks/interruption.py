"""Stopping when asked to, without losing a step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cifar_resnet.command import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption(Callback):
    """On SIGTERM or Ctrl-C finishes the step at hand, saves a checkpoint and ends the training.

    A training that is resumed goes on with the next step. A second Ctrl-C ends it at once. Has to come after those
    callbacks that change the weights, such as an average of them.

    path: where the checkpoint goes.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.received: int | None = None
        self.handlers: dict[int, object] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step = trainer.global_step
        if threading.current_thread() is threading.main_thread():
            self.handlers = {number: signal.signal(number, self.note) for number in SIGNALS}

    def note(self, number: int, frame: object) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        has_stepped, self.last_step = trainer.global_step > self.last_step, trainer.global_step
        # gradients that are still being accumulated would be lost; the end of an epoch saves by itself
        if self.received and has_stepped and not trainer.is_last_batch:
            trainer.save_checkpoint(self.path)
            self.stop(f"after step {trainer.global_step}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.received:
            self.stop(f"after epoch {trainer.current_epoch}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.restore()
        if self.received:
            self.stop("after the last epoch, before the test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.restore()

    def stop(self, when: str) -> None:
        raise Interrupted(f"stopped {when} by {signal.Signals(self.received).name}", self.received)

    def restore(self) -> None:
        for number, handler in self.handlers.items():
            signal.signal(number, handler)
        self.handlers = {}


@contextlib.contextmanager
def said_as_interrupted() -> Iterator[None]:
    """Where Lightning itself is asked to stop, outside of training steps: Interrupted, not its bare SystemExit."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        if isinstance(error, SIGTERMException):
            number = signal.SIGTERM
        elif isinstance(error.__context__, KeyboardInterrupt):
            number = signal.SIGINT
            signal.signal(number, before)  # Lightning leaves it ignored
        else:
            raise
        raise Interrupted(f"stopped by {number.name}", number) from error
