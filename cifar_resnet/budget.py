"""A limit on a whole sweep or search, within which nothing is begun that would not end."""

import functools
import math
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from cifar_resnet.terminal import duration


class Budget:
    """Whether enough is left for another training.

    setting: that limits it, such as "search.max_flops". limit: math.inf for none. spent: how much has been by now.
    form: such an amount for people.
    """

    def __init__(self, setting: str, limit: float, spent: Callable[[], float], form: Callable[[float], str]):
        self.setting, self.limit, self.spent, self.form = setting, limit, spent, form

    def lack(self, before: Iterable[float]) -> str | None:
        """Why there is too little for another; None where there is enough, or where nothing tells what it would take.

        before: what each training so far has taken.
        """
        if self.limit == math.inf:
            return None
        left, most = self.limit - self.spent(), max(before, default=0.0)
        if left > most:
            return None
        return f"{self.form(max(left, 0))} of {self.setting}={self.form(self.limit)} were left" + (
            f", and one before took {self.form(most)}" if most and left > 0 else ""
        )


def time_budget(
    setting: str, limit: str | Mapping[Any, float] | None, began: float, now: Callable[[], float]
) -> Budget:
    """limit: "DD:HH:MM:SS", or a mapping with keys as datetime.timedelta has them; None for none. began: when the time
    began to run. now: the same clock's time."""
    seconds = math.inf if limit is None else seconds_of(limit)
    return Budget(setting, seconds, functools.partial(elapsed, began, now), duration)


def elapsed(began: float, now: Callable[[], float]) -> float:  # by name, for a launcher's workers get it pickled
    return now() - began


def seconds_of(limit: str | Mapping[Any, float]) -> float:
    if isinstance(limit, str):
        limit = dict(zip(("days", "hours", "minutes", "seconds"), map(int, limit.split(":")), strict=True))
    return timedelta(**limit).total_seconds()
