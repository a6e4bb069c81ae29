"""Intervals, against images drawn by a plain loop and against what theory says."""

import numpy as np
import pytest
import torch
from scipy import stats

from cifar_resnet.results import bootstrap, metrics


def test_intervals_are_those_of_scores_computed_anew_for_each_draw(predictions):
    log_probs, labels = (part[:600] for part in predictions)
    found = bootstrap.of_scores(log_probs, labels, 100, seed=0)
    generator, each = torch.Generator().manual_seed(0), {name: [] for name in found}
    for part in bootstrap.in_parts(100, 600):
        for count in bootstrap.counts(600, part, generator):
            rows = torch.arange(600).repeat_interleave(count.long())
            scores = metrics.scores(log_probs[rows], labels[rows])
            for name in each:
                each[name].append(scores[name])
    error = metrics.scores(log_probs, labels)["calibration_error"]
    for name, ends in found.items():
        low, high = np.quantile(each[name], [0.025, 0.975])
        if name == "calibration_error":
            low, high = max(0, 2 * error - high), 2 * error - low
        assert ends == pytest.approx([low, high], abs=1e-5), name


def test_an_accuracys_interval_is_as_wide_as_the_binomial_says(predictions):
    log_probs, labels = (part[:600] for part in predictions)
    low, high = bootstrap.of_scores(log_probs, labels, 2000, seed=0)["acc"]
    acc = metrics.accuracy(log_probs, labels)
    expected = np.array(stats.binom.interval(0.95, 600, acc)) / 600
    assert [low, high] == pytest.approx(expected, abs=0.006)


def test_an_image_is_drawn_under_all_conditions_together(predictions):
    log_probs, labels = (part[:600] for part in predictions)
    once = bootstrap.of_scores(log_probs, labels, 100, seed=0)
    twice = bootstrap.of_scores(log_probs.repeat(2, 1), labels.repeat(2), 100, seed=0, conditions=2)
    for name, ends in once.items():
        assert ends == pytest.approx(twice[name])


def test_the_mean_of_values(predictions):
    log_probs, labels = (part[:600] for part in predictions)
    values = -log_probs.gather(1, labels[:, None])[:, 0].double()
    low, high = bootstrap.of_mean(values, 2000, seed=3)
    expected = stats.norm.interval(0.95, values.mean().item(), values.std().item() / 600**0.5)
    assert [low, high] == pytest.approx(expected, rel=0.03)


def test_memory_is_bounded_and_every_resample_counted():
    assert bootstrap.in_parts(120, 10_000) == [50, 50, 20]
    assert bootstrap.in_parts(3, 2_000_000) == [1, 1, 1]
    assert bootstrap.in_parts(7, 1) == [7]
