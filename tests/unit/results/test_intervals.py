"""Intervals of scores, against closed forms and plain sums."""

import math

import numpy as np
import pytest

from cifar_resnet.results.intervals import summary


@pytest.mark.parametrize(("freedom", "points"), [(1, 400_000), (4, 40_000), (20, 40_000)])
def test_intervals_of_a_mean_leave_two_and_a_half_percent_on_each_side(freedom, points):
    """Student's density, integrated by a plain sum."""
    values = np.random.default_rng(0).random(freedom + 1)
    found = summary(values.tolist(), is_share=False)
    reach = (found.high - found.low) / 2 * math.sqrt(freedom + 1) / np.std(values, ddof=1)
    x = np.linspace(-reach, reach, points)
    density = (1 + x**2 / freedom) ** (-(freedom + 1) / 2)
    scale = math.gamma((freedom + 1) / 2) / (math.sqrt(freedom * math.pi) * math.gamma(freedom / 2))
    assert np.trapezoid(density, x) * scale == pytest.approx(0.95, abs=1e-5)
    assert (found.low + found.high) / 2 == pytest.approx(np.mean(values))


@pytest.mark.parametrize(("right", "count"), [(0, 40), (4, 40), (40, 40), (8742, 10_000)])
def test_the_interval_of_one_run_is_wilsons_of_its_test_images(right, count):
    """Where the score differs from the share by 1.96 standard errors of the share it would be."""
    found = summary([right / count], count)
    share, z = right / count, 1.959963984540054
    for end in (found.low, found.high):
        assert 0 <= end <= 1
        assert abs(share - end) == pytest.approx(z * math.sqrt(end * (1 - end) / count), abs=1e-9)
    assert (found.n, found.sd, found.interval) == (1, None, "Wilson")


def test_intervals_of_shares_stay_between_none_and_all():
    for values in ([0.0, 0.2], [0.9, 1.0], [0.05, 0.5, 0.97]):
        found = summary(values)
        assert 0 <= found.low < np.mean(values) < found.high <= 1


def test_seeds_that_all_score_the_same_do_not_make_it_certain():
    found = summary([0.2, 0.2, 0.2], 40)
    assert found.interval == "Wilson"
    assert found.low < 0.2 - 0.05 < 0.2 + 0.05 < found.high
    assert summary([0.2, 0.2, 0.2]).interval == ""  # nor is there one where nobody knows of how many images


def test_of_no_values_nothing_is_said():
    assert summary([]).plain() == [0, "", "", "", "", ""]
    assert summary([]).spread() == summary([]).ends() == ""
