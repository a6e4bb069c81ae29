"""How sure a score is: of several runs by how far they scatter, of one by how many images it was tested on."""

import statistics
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import ClassVar

from scipy import stats

LEVEL = 0.95


def ends(interval: Sequence[float], form: str = ".2%") -> str:
    """Of an interval, for people."""
    return " … ".join(f"{end:{form}}" for end in interval)


@dataclass
class Summary:
    """Of the values that several runs have of one metric.

    n: how many those are. mean, sd: None where there are too few values. low, high: of the 95% interval, None where
    there is none. interval: where it comes from, "t" or "Wilson", or empty.
    """

    n: int
    mean: float | None = None
    sd: float | None = None
    low: float | None = None
    high: float | None = None
    interval: str = ""

    NAMES: ClassVar = ("n", "mean", "sd", "low", "high", "interval")

    def plain(self) -> list[object]:
        """By `NAMES`, for a CSV."""
        return ["" if value is None else value for value in astuple(self)]

    def spread(self, form: str = ".2%") -> str:
        """The mean with its standard deviation, for people."""
        parts = [f"{value:{form}}" for value in (self.mean, self.sd) if value is not None]
        return " ± ".join(parts)

    def ends(self, form: str = ".2%") -> str:
        """Of the interval, for people."""
        return ends((self.low, self.high), form) if self.interval else ""


def summary(values: Sequence[float], num_images: int | None = None, is_share: bool = True) -> Summary:
    """Of one metric's values in runs that differ in their seed.

    The interval is that of the mean, by Student's t. Where there is one run, or all are equal, the runs say nothing of
    how sure it is: then it is Wilson's, of a share of the images (Wilson 1927; Brown, Cai and DasGupta 2001).

    num_images: that a share was counted on; None where that is not known, or is not the same for all.
    is_share: whether the values are shares, which lie in [0, 1]; so does their interval.
    """
    if not values:
        return Summary(0)
    count, mean = len(values), statistics.fmean(values)
    sd = statistics.stdev(values) if count > 1 else None
    if sd:
        low, high = stats.t.interval(LEVEL, count - 1, mean, sd / count**0.5)
        low, high = (max(0.0, low), min(1.0, high)) if is_share else (low, high)
        return Summary(count, mean, sd, float(low), float(high), "t")
    if is_share and num_images:
        right = min(num_images, round(mean * num_images))
        ends = stats.binomtest(right, num_images).proportion_ci(LEVEL, method="wilson")
        return Summary(count, mean, sd, float(ends.low), float(ends.high), "Wilson")
    return Summary(count, mean, sd)
