"""Signals that ask a command to end."""

import contextlib
import signal
import threading
from collections.abc import Iterator

from cifar_resnet.errors import Interrupted

# the latter two: SLURM's, before a time limit; Windows has none of them
NAMES = ("SIGTERM", "SIGINT", "SIGUSR1", "SIGUSR2")
SIGNALS = tuple(getattr(signal, name) for name in NAMES if hasattr(signal, name))


@contextlib.contextmanager
def ended_by_signals(numbers: tuple[signal.Signals, ...]) -> Iterator[None]:
    """Within this, and where nobody else has asked to be told of it, such a signal ends the command in order."""
    with contextlib.ExitStack() as handlers_before:
        for number in numbers if threading.current_thread() is threading.main_thread() else ():
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                handlers_before.callback(signal.signal, number, signal.signal(number, end_in_order))
        yield


def end_in_order(number: int, frame: object) -> None:
    raise Interrupted(f"stopped by {signal.Signals(number).name}", number)
