"""Stopping when asked to, without losing a step."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from cifar_resnet import claims
from cifar_resnet.callbacks.ending import is_ending
from cifar_resnet.errors import Interrupted
from cifar_resnet.signals import SIGNALS, end_in_order


class Interruption(Callback):
    """On SIGTERM, SIGUSR1, SIGUSR2 or Ctrl-C finishes the step at hand, saves a checkpoint and ends the training.

    A training that is resumed goes on with the next step. A second Ctrl-C ends it at once. Of several processes all
    stop after the same step, whichever was asked. Whoever had a handler of its own for the signal, as submitit has to
    queue a job again, is told of it then. Has to come after those callbacks that change the weights, such as an average
    of them. RunError where another process has taken the run over.

    path: where the checkpoint goes, in the run folder's checkpoints.
    """

    def __init__(self, path: str | Path):
        self.path, self.received = Path(path), 0  # the signal's number, once one has come
        self.handlers_before: dict[int, Any] = {}
        self.shared: SharedNumber | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.last_step = trainer.global_step
        if trainer.world_size > 1:
            self.shared = SharedNumber()
        for number in SIGNALS if threading.current_thread() is threading.main_thread() else ():
            self.handlers_before[number] = signal.signal(number, self.note)

    def note(self, number: int, frame: object) -> None:
        if self.received == signal.SIGINT == number:
            raise KeyboardInterrupt
        self.received = number

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        has_stepped, self.last_step = trainer.global_step > self.last_step, trainer.global_step
        claims.check_kept(self.path.parents[1])
        asked = self.shared.so_far(self.received) if self.shared else self.received
        # gradients that are still being accumulated would be lost; the end of an epoch saves by itself
        if asked and has_stepped and not trainer.is_last_batch and not is_ending(trainer):
            trainer.save_checkpoint(self.path)
            self.stop(asked, f"after step {trainer.global_step}")

    def on_validation_batch_end(self, *others: Any) -> None:
        claims.check_kept(self.path.parents[1])

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stop_if_asked(trainer, f"after epoch {trainer.current_epoch}")

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.put_handlers_back()
        self.stop_if_asked(trainer, "after the last epoch, before the test")

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.put_handlers_back()

    def put_handlers_back(self) -> None:
        for number, handler in self.handlers_before.items():
            signal.signal(number, handler)

    def stop_if_asked(self, trainer: Trainer, when: str) -> None:
        if asked := self.shared.now(self.received) if self.shared else self.received:
            if not any(getattr(each, "filename", None) == self.path.stem for each in trainer.checkpoint_callbacks):
                trainer.save_checkpoint(self.path)  # for the end of the epoch has not
            self.stop(asked, when)

    def stop(self, asked: int, when: str) -> None:
        theirs = self.handlers_before.get(self.received)
        if callable(theirs) and theirs not in (signal.default_int_handler, end_in_order):
            theirs(self.received, None)
        raise Interrupted(f"stopped {when} by {signal.Signals(asked).name}", asked)


class SharedNumber:
    """The largest number that any process has named, known to all of them after the same step.

    A group of its own, on the CPU: neither does a GPU wait for it nor does it come between gradients.
    """

    def __init__(self) -> None:
        self.group: Any = torch.distributed.new_group(backend="gloo")
        self.pending: tuple[Any, torch.Tensor] | None = None

    def so_far(self, number: int) -> int:
        """As of the call before, so that nobody waits: by now it has come round. 0 in the first."""
        found = self.result() if self.pending else 0
        self.send(number)
        return found

    def now(self, number: int) -> int:
        if self.pending:
            self.result()
        self.send(number)
        return self.result()

    def send(self, number: int) -> None:
        value = torch.tensor([number])
        maximum = torch.distributed.ReduceOp.MAX
        self.pending = torch.distributed.all_reduce(value, maximum, group=self.group, async_op=True), value

    def result(self) -> int:
        (work, value), self.pending = self.pending, None
        work.wait()
        return int(value)


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
