"""Whether enough is left for another training."""

import pytest

from cifar_resnet.budget import Budget, seconds_of, time_budget


@pytest.mark.parametrize(
    ("limit", "seconds"), [("01:02:03:04", 93784), ("00:00:10:00", 600), ({"hours": 1.5}, 5400), ({"days": 1}, 86400)]
)
def test_seconds(limit, seconds):
    assert seconds_of(limit) == seconds


@pytest.mark.parametrize(
    ("now", "before", "expected"),
    [
        (100.0, [], None),
        (699.0, [], None),  # nothing tells how long the first will take
        (700.0, [], "0:00 of sweep.max_time=10:00 were left"),
        (900.0, [50.0], "0:00 of sweep.max_time=10:00 were left"),
        (400.0, [50.0, 290.0, 10.0], None),
        (400.0, [50.0, 301.0], "5:00 of sweep.max_time=10:00 were left, and one before took 5:01"),
    ],
)
def test_nothing_is_begun_that_would_not_end(now, before, expected):
    assert time_budget("sweep.max_time", "00:00:10:00", 100.0, lambda: now).lack(before) == expected


def test_without_a_limit_there_is_always_time():
    assert time_budget("sweep.max_time", None, 0.0, lambda: 1e12).lack([1e12]) is None


def test_arithmetic_has_a_budget_too():
    spent = 0.0
    budget = Budget("search.max_flops", 1e15, lambda: spent, "{:.1e}".format)
    assert budget.lack([2e14]) is None
    spent = 8e14
    assert budget.lack([1e14]) is None
    assert budget.lack([1e14, 3e14]) == "2.0e+14 of search.max_flops=1.0e+15 were left, and one before took 3.0e+14"
