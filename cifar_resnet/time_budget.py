"""A limit on the time of a whole sweep or search, in which nothing is begun that would not end."""

import math
from collections.abc import Callable, Iterable, Mapping
from datetime import timedelta
from typing import Any

from cifar_resnet.terminal import duration


class TimeBudget:
    """Whether there is time for another training.

    setting: such as "sweep.max_time". limit: "DD:HH:MM:SS", or a mapping with keys as datetime.timedelta has them; None
    for no limit. began: when the time began to run. now: the same clock's time.
    """

    def __init__(self, setting: str, limit: str | Mapping[Any, float] | None, began: float, now: Callable[[], float]):
        self.setting, self.began, self.now = setting, began, now
        self.seconds = math.inf if limit is None else seconds_of(limit)

    def lack(self, before: Iterable[float]) -> str | None:
        """Why there is no time for another; None where there is, or where nothing tells how long it would take.

        before: the seconds that each training so far has taken.
        """
        if self.seconds == math.inf:
            return None
        left, longest = self.began + self.seconds - self.now(), max(before, default=0.0)
        if left > longest:
            return None
        return f"{duration(max(left, 0))} of {self.setting}={duration(self.seconds)} were left" + (
            f", and the longest before took {duration(longest)}" if longest and left > 0 else ""
        )


def seconds_of(limit: str | Mapping[Any, float]) -> float:
    if isinstance(limit, str):
        limit = dict(zip(("days", "hours", "minutes", "seconds"), map(int, limit.split(":")), strict=True))
    return timedelta(**limit).total_seconds()
