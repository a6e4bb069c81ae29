"""How a command ends when it cannot do what was asked: one line for the user, and an exit code."""

import contextlib
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
        cause = (isinstance(error, InstantiationException) and error.__cause__) or error
        key = re.search(r"full_key: (\S+)", str(error))
        is_of_a_file = isinstance(cause, OSError) and cause.filename and cause.strerror
        text = f"{cause.strerror}. Got {cause.filename}; give another place" if is_of_a_file else one_line(cause)
        raise UsageError(f"{key[1]}: {text}" if key and not isinstance(cause, ValueError) else text) from error


def one_line(error: BaseException) -> str:
    """The error's text, or where it has none its class, without line breaks."""
    return " ".join(str(error).split()) or type(error).__name__


def first_sentence(error: BaseException) -> str:
    return re.split(r"(?<=[a-z0-9])[.:] ", one_line(error))[0]
