"""Telling other images apart, against plain loops."""

import numpy as np
import pytest
import torch
from helpers import by_pairs

from cifar_resnet.results import bootstrap, ood


@pytest.fixture
def scores() -> tuple[torch.Tensor, torch.Tensor]:
    """Of 60 images inside and 90 outside, with ties."""
    random = np.random.default_rng(0)
    inside, outside = random.normal(1, 1, 60).round(1), random.normal(0, 1, 90).round(1)
    return torch.from_numpy(inside), torch.from_numpy(outside)


def false_positives(inside, outside) -> float:
    """At the highest of all scores that at least 95% inside reach."""
    values = sorted({*inside, *outside}, reverse=True)
    threshold = next(value for value in values if np.mean([one >= value for one in inside]) >= 0.95)
    return np.mean([one >= threshold for one in outside])


def test_auroc_and_false_positives_equal_plain_loops(scores):
    inside, outside = scores
    (found,) = ood.compare({"energy": inside}, {"energy": outside}, 10, 0).values()
    assert found["auroc"] == pytest.approx(by_pairs(inside.tolist(), outside.tolist()))
    assert found["fpr_at_95"] == pytest.approx(false_positives(inside.tolist(), outside.tolist()))


def test_images_that_count_several_times_are_as_if_they_were_there_so_often(scores):
    inside, outside = scores
    generator = torch.Generator().manual_seed(1)
    ours, theirs = bootstrap.counts(60, 5, generator), bootstrap.counts(90, 5, generator)
    assert (ours.sum(1) == 60).all()
    found = ood.separation(inside, outside, ours, theirs)
    for row, (auroc, fpr) in enumerate(zip(*found, strict=True)):
        many, others = (
            values.repeat_interleave(count[row].long()).tolist()
            for values, count in ((inside, ours), (outside, theirs))
        )
        assert auroc.item() == pytest.approx(by_pairs(many, others))
        assert fpr.item() == pytest.approx(false_positives(many, others))


def test_intervals_hold_what_they_are_of_and_narrow_with_more_images(scores):
    inside, outside = scores
    widths = []
    for times in (1, 16):
        (found,) = ood.compare({"energy": inside.repeat(times)}, {"energy": outside.repeat(times)}, 300, 0).values()
        low, high = found["auroc_interval"]
        assert low < found["auroc"] < high
        widths.append(high - low)
    assert widths[1] < widths[0] / 3


def test_what_lies_apart_is_told_apart():
    inside, outside = torch.linspace(2, 3, 50), torch.linspace(0, 1, 40)
    (found,) = ood.compare({"energy": inside}, {"energy": outside}, 10, 0).values()
    assert (found["auroc"], found["fpr_at_95"]) == (1.0, 0.0)


def test_neighbours_are_those_of_a_plain_search():
    generator = torch.Generator().manual_seed(0)
    features, known = torch.randn(30, 8, generator=generator), torch.randn(200, 8, generator=generator)
    found = ood.nearest_similarity(features, known, 7)
    for feature, similarity in zip(features.numpy(), found.tolist(), strict=True):
        own = feature / np.linalg.norm(feature)
        distances = sorted(np.linalg.norm(own - other / np.linalg.norm(other)) for other in known.numpy())
        assert similarity == pytest.approx(-distances[6], abs=1e-5)
