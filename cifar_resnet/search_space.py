"""Where a search looks: an interval or choices, in each round a narrower range around the best so far."""

import math
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from cifar_resnet.overrides import Interval


def shorten(value: object, domain: Interval | list[str]) -> object:
    """Four digits are enough of a searched number, or as many as tell a thousand apart in the whole domain."""
    if not isinstance(value, float) or not isinstance(domain, Interval):
        return value
    decimals = -math.floor(math.log10((domain.high - domain.low) / 1000))
    if value:
        decimals = max(decimals, 3 - math.floor(math.log10(abs(value))))
    return max(domain.low, min(domain.high, round(value, decimals)))


def distribution(domain: Interval | list[str], best: Any, share: float) -> BaseDistribution:
    """Where to draw from: that share of an interval around the best value, all of it where there is none yet."""
    if isinstance(domain, list):
        return CategoricalDistribution(domain)
    low, high = (domain.low, domain.high) if best is None else narrowed(domain, best, share)
    if isinstance(domain.low, int):
        return IntDistribution(math.floor(low), math.ceil(high), log=domain.log)
    return FloatDistribution(low, high, log=domain.log)


def narrowed(domain: Interval, best: float, share: float) -> tuple[float, float]:
    """A range of that share of the domain's width around the best value, moved where it would leave the domain."""
    forth, back = (math.log, math.exp) if domain.log else (float, float)
    low, high = forth(domain.low), forth(domain.high)
    width = (high - low) * share
    start = min(max(forth(best) - width / 2, low), high - width)
    # rounding must leave neither the best nor the domain outside
    return max(domain.low, min(best, back(start))), min(domain.high, max(best, back(start + width)))
