"""Stopping when asked to, without losing a step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cifar_resnet.callbacks.ending import is_ending
from cifar_resnet.errors import Interrupted

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interruption(Callback):
    """On SIGTERM or Ctrl-C finishes the step at hand, saves a checkpoint and ends the training.

    A training that is resumed goes on with the next step. A second Ctrl-C ends it at once. Has to come after those
    callbacks that change the weights, such as an average of them.

    path: where the checkpoint goes.
    """

    def __init__(self, path: str | Path):
        self.path, self.received = Path(path), None  # the signal's number, once one has come
        self.handlers_before = contextlib.ExitStack()  # puts them back

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step = trainer.global_step
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            self.handlers_before.callback(signal.signal, number, signal.signal(number, self.note))

    def note(self, number: int, frame: object) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        has_stepped, self.last_step = trainer.global_step > self.last_step, trainer.global_step
        # gradients that are still being accumulated would be lost; the end of an epoch saves by itself
        if self.received and has_stepped and not trainer.is_last_batch and not is_ending(trainer):
            trainer.save_checkpoint(self.path)
            self.stop_if_asked(f"after step {trainer.global_step}")

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop_if_asked(f"after epoch {trainer.current_epoch}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.handlers_before.close()
        self.stop_if_asked("after the last epoch, before the test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.handlers_before.close()

    def stop_if_asked(self, when: str) -> None:
        if self.received:
            raise Interrupted(f"stopped {when} by {signal.Signals(self.received).name}", self.received)


@contextlib.contextmanager
def as_interrupted() -> Iterator[None]:
    """Where Lightning itself is asked to stop, outside of training steps: Interrupted, not its bare SystemExit."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as error:
        number = signal.SIGTERM if isinstance(error, SIGTERMException) else signal.SIGINT
        if number == signal.SIGINT and not isinstance(error.__context__, KeyboardInterrupt):
            raise
        signal.signal(signal.SIGINT, before)  # Lightning leaves it ignored
        raise Interrupted(f"stopped by {number.name}", number) from error
