"""How a command ends when it cannot do what was asked: one line for the user, and an exit code."""

import contextlib
import errno
import os
import re
from collections.abc import Iterator

from hydra.errors import InstantiationException


class UsageError(ValueError):
    """A user's mistake: its text says what was wrong, what was given and what to do instead."""

    exit_code = 2


def refuse_if(condition: object, text: str) -> None:
    """Raise UsageError with this text where the condition holds."""
    if condition:
        raise UsageError(text)


class RunError(Exception):
    """A run that could not go on, through nobody's mistake: its text says what happened and what may help."""

    exit_code = 1


# against a divergence
CALMER = (
    "a lower optimizer.lr, trainer.gradient_clip_val=1, or a slower rise: scheduler.warmup_fraction=0.05, of one_cycle "
    "a larger scheduler.peak_fraction"
)


class Diverged(RunError):
    """A training whose loss is no longer finite."""


class Interrupted(BaseException):
    """A run that was asked to stop, and has saved where it was. signal: the signal's number."""

    def __init__(self, text: str, signal: int):
        super().__init__(text)
        self.exit_code = 128 + signal  # as a shell counts


@contextlib.contextmanager
def as_usage_error() -> Iterator[None]:
    """Turn a constructor's complaint about its arguments into a UsageError of one line."""
    try:
        yield
    except (ValueError, TypeError, OSError, InstantiationException) as error:
        if isinstance(error, (UsageError, BrokenPipeError)) or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        cause = innermost(error)
        if trouble := disk_trouble(cause):
            raise RunError(trouble) from error
        key = re.search(r"full_key: (\S+)", str(error))
        text = one_line(cause)
        if isinstance(cause, OSError) and cause.filename and cause.strerror:
            remedy = "give one that you may use" if isinstance(cause, PermissionError) else "give another place"
            text = f"{cause.strerror}. Got {cause.filename}; {remedy}"
        raise UsageError(f"{key[1]}: {text}" if key and not isinstance(cause, ValueError) else text) from error


def innermost(error: BaseException) -> BaseException:
    """What a constructor raised, where one configuration may be within another."""
    while isinstance(error, InstantiationException) and error.__cause__:
        error = error.__cause__
    return error


def one_line(error: BaseException) -> str:
    """The error's text, or where it has none its class, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


# what CUDA says of a device that does not serve, and what may help
GPU_TROUBLE = {
    "no kernel image is available": "this build of torch has nothing for so old, or so new, a GPU: install one that "
    "does, from pytorch.org",
    "busy or unavailable": "another process has the GPU for itself: wait for it, let CUDA_VISIBLE_DEVICES name another",
    "driver on your system is too old": "install a newer driver, or a torch for this one",
}


PARTS = [(2, "half"), (3, "a third"), (5, "a fifth"), (7, "a seventh")]  # that a batch may be divided into


def disk_trouble(error: BaseException) -> str | None:
    """What to say of an error that lies with the disk, and not with what was asked for; None for any other."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO):
        return of_a_file(error)
    return None


def of_a_file(error: OSError) -> str:
    """What to say of an error in the middle of what had begun."""
    what = "the disk has failed" if error.errno == errno.EIO else "a file could not be written"
    return f"{what} ({one_line(error)}); what had been finished is kept"


def gpu_trouble(error: BaseException, trains: bool = True, batch_size: int = 1, accumulated: int = 1) -> str | None:
    """What to say of an error that lies with the GPU; None for any other, such as a mistake of ours that runs there.

    trains: whether a training met it, of so many images in a batch, and so many batches in a step.
    """
    prefix, text = ("data.", "trainer.") if trains else ("", ""), one_line(error)
    if type(error).__name__ == "OutOfMemoryError":  # torch's, which need not be imported for this
        tried = re.search(r"Tried to allocate \S+ \S+(?=\.)", text)
        smaller = f"give a smaller {prefix[0]}batch_size"
        if batch_size > 1:
            times, share = next((each for each in PARTS if batch_size % each[0] == 0), PARTS[0])
            smaller = (
                f"with data.batch_size={batch_size}; data.batch_size={batch_size // times} "
                f"trainer.accumulate_grad_batches={times * accumulated} takes "
                f"{'about ' * (batch_size % times > 0)}as many images a step with {share} of the memory"
            )
        got = tried[0] if tried else text
        return f"out of memory on the GPU. Got: {got}; {smaller}; nvidia-smi shows who else uses it"
    help = next((help for sign, help in GPU_TROUBLE.items() if sign in text and isinstance(error, RuntimeError)), None)
    return help and f"{str(error).splitlines()[0]}; {help}, or give {prefix[1]}accelerator=cpu"


def first_sentence(error: BaseException) -> str:
    return re.split(r"(?<=[a-z0-9])[.:] ", one_line(error))[0]
