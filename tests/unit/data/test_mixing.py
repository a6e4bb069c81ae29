"""Mixup, CutMix and RICAP against loops over images, and what becomes of the labels."""

import pytest
import torch

from cifar_resnet.data.augment import Augment
from cifar_resnet.data.mixing import Mixing, MixPlan, beta, cutmix, draw_box, mixup, ricap
from cifar_resnet.errors import UsageError


def images(count: int) -> torch.Tensor:
    return torch.randn(count, 3, 12, 10).contiguous(memory_format=torch.channels_last)


def test_mixup_equals_a_loop():
    x, partners, weights = images(7), torch.randperm(7), torch.rand(7)
    mixed = mixup(x, partners, weights)
    for i in range(7):
        torch.testing.assert_close(mixed[i], weights[i] * x[i] + (1 - weights[i]) * x[partners[i]])


def test_cutmix_equals_a_loop():
    x, partners = images(30), torch.randperm(30)
    rows, columns = torch.randint(13, (2, 30)).sort(0).values, torch.randint(11, (2, 30)).sort(0).values
    mixed = cutmix(x, partners, torch.cat([rows, columns]))
    for i in range(30):
        expected = x[i].clone()
        (top, bottom), (left, right) = rows[:, i].tolist(), columns[:, i].tolist()
        expected[:, top:bottom, left:right] = x[partners[i], :, top:bottom, left:right]
        assert torch.equal(mixed[i], expected)
    assert mixed.is_contiguous(memory_format=torch.channels_last)


def test_ricap_equals_a_loop():
    x, partners = images(25), torch.randint(25, (4, 25))
    corner = torch.stack([torch.randint(13, (25,)), torch.randint(11, (25,))])
    offsets = torch.zeros(2, 4, 25, dtype=torch.long)
    expected = torch.empty_like(x)
    for i in range(25):
        row, column = corner[:, i].tolist()
        sizes = [(row, column), (row, 10 - column), (12 - row, column), (12 - row, 10 - column)]
        for k, (height, width) in enumerate(sizes):
            top, left = int(torch.randint(13 - height, ())), int(torch.randint(11 - width, ()))
            offsets[0, k, i], offsets[1, k, i] = top, left
            crop = x[partners[k, i], :, top : top + height, left : left + width]
            target_row, target_column = (0, row)[k // 2], (0, column)[k % 2]
            expected[i, :, target_row : target_row + height, target_column : target_column + width] = crop
    assert torch.equal(ricap(x, partners, corner, offsets), expected)


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "ricap"])
def test_weights_are_those_of_the_pixels(kind):
    """Image i is all i: what a mixed image holds of each value is what its label must hold of each class."""
    count = 40
    x = torch.arange(count).float()[:, None, None, None].expand(count, 3, 12, 10)
    x = x.contiguous(memory_format=torch.channels_last)
    mixed, plan = Mixing(kind)(x, torch.Generator().manual_seed(0))
    target = plan.probabilities(torch.arange(count), count)
    torch.testing.assert_close(target.sum(1), torch.ones(count))
    torch.testing.assert_close(mixed.mean((1, 2, 3)), target @ torch.arange(count).float())
    if kind != "mixup":
        held = torch.stack([(mixed[:, 0] == value).float().mean((1, 2)) for value in range(count)], 1)
        torch.testing.assert_close(held, target)
    assert len(plan.weights[0].unique()) > 10  # each image has numbers of its own


def test_a_box_has_the_share_that_was_drawn_but_where_the_border_cuts_it():
    shares = torch.linspace(0, 1, 2_000)
    top, bottom, left, right = draw_box(shares, 32, 24, torch.Generator().manual_seed(0))
    side = (1 - shares).sqrt()
    for first, last, length in ((top, bottom, 32), (left, right, 24)):
        inside = (first > 0) & (last < length)
        assert inside.float().mean() > 0.3
        assert ((last - first)[inside] - length * side[inside]).abs().max() <= 2
        assert (last - first <= length * side).all()
        middle = (first + last)[inside & (shares > 0.9)] / 2 / length
        assert middle.min() < 0.2  # around any pixel
        assert middle.max() > 0.8


def test_what_an_augmentation_is_told_of_mixing_arrives():
    mixing = Augment(mixing="mixup", mixing_alpha=0.2, mixing_probability=0.75).mixing
    _, plan = mixing(images(4_000), torch.Generator().manual_seed(0))
    shares = plan.weights[0][plan.weights[0] != 1]
    assert abs(len(shares) / 4_000 - 0.75) < 0.03
    assert shares.var().item() == pytest.approx(1 / 4 / (2 * 0.2 + 1), abs=0.01)  # of Beta(0.2, 0.2)


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "ricap"])
def test_probability_leaves_the_others_as_they_are(kind):
    x = images(400)
    mixed, plan = Mixing(kind, probability=0.25)(x, torch.Generator().manual_seed(0))
    same = torch.isclose(mixed, x, atol=1e-5).flatten(1).all(1)
    assert 0.7 < same.float().mean() < 0.85
    own = plan.probabilities(torch.arange(400), 400).diagonal()
    assert (own[same] > 0.999).float().mean() > 0.99


def test_mixup_weights_follow_the_beta_distribution():
    _, plan = Mixing("mixup", alpha=0.2)(torch.zeros(20_000, 1, 1, 1), torch.Generator().manual_seed(0))
    assert abs(plan.weights[0].double().var() - 1 / (4 * (2 * 0.2 + 1))) < 0.005  # of Beta(a, a): 1 / (4 (2a + 1))


@pytest.mark.parametrize("alpha", [0.01, 0.3, 1.0, 2.0])
def test_shares_follow_the_beta_distribution_and_are_numbers_for_a_small_alpha(alpha):
    drawn = beta(alpha, (200_000,), torch.Generator().manual_seed(0)).double()
    assert drawn.isfinite().all()
    assert abs(drawn.mean() - 0.5) < 0.005
    variance, fourth = ((drawn - 0.5) ** 2).mean(), ((drawn - 0.5) ** 4).mean()
    assert abs(variance - 1 / (4 * (2 * alpha + 1))) < 0.002
    assert abs(fourth / variance**2 - (3 - 6 / (2 * alpha + 3))) < 0.02  # its kurtosis


def test_probabilities_add_up_where_partners_share_a_class():
    plan = MixPlan(torch.tensor([[0, 1], [1, 0]]), torch.tensor([[0.7, 0.4], [0.3, 0.6]]))
    assert torch.allclose(plan.probabilities(torch.tensor([2, 2]), 3), torch.tensor([0.0, 0.0, 1.0]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kind": "blend"}, "kind must be mixup, cutmix or ricap. Got 'blend'"),
        ({"kind": "mixup", "alpha": 0.0}, "alpha must be a number above 0 or null. Got 0.0"),
        ({"kind": "mixup", "probability": 2.0}, "probability must be a number from 0 to 1. Got 2.0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Mixing(**options)
