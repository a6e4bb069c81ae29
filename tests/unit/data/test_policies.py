"""Batched policies against torchvision's, one image at a time."""

import numpy as np
import pytest
import torch
from torchvision.transforms import InterpolationMode, v2

from cifar_resnet.data import policies
from cifar_resnet.data.augment import Augment
from cifar_resnet.data.policies import AutoAugment, Choice, RandAugment, TrivialAugment, apply, packed, unpacked

SIZE = 32
THEIRS = {"randaugment": v2.RandAugment(), "trivialaugment": v2.TrivialAugmentWide()}
THEIRS["autoaugment"] = v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10)
OURS = {"randaugment": RandAugment(), "trivialaugment": TrivialAugment(), "autoaugment": AutoAugment()}


def pictures(count: int) -> torch.Tensor:
    """Smooth, noisy, dark, flat and two-coloured images."""
    torch.manual_seed(0)
    smooth = torch.nn.functional.interpolate(torch.rand(count, 3, 5, 5) * 255, size=(SIZE, SIZE), mode="bicubic")
    images = (smooth + 20 * torch.randn(count, 3, SIZE, SIZE)).clamp(0, 255)
    images[1] = images[1] / 4
    images[2] = 77
    images[3, :, :, :16], images[3, :, :, 16:] = 10, 200
    return images.to(torch.uint8).contiguous(memory_format=torch.channels_last)


CASES = [
    (name, strength)
    for name, strengths in {
        "Identity": [0], "ShearX": [0.27, -0.99], "ShearY": [0.3, -0.5], "TranslateX": [7.6, -31.0],
        "TranslateY": [4.2, -14.5], "Rotate": [17.3, -135], "Brightness": [0.4, -0.9], "Color": [0.9, -0.6],
        "Contrast": [0.5, -0.9], "Sharpness": [0.8, -0.9], "Posterize": [8, 5, 2], "Solarize": [1.0, 0.7, 0.0],
        "AutoContrast": [0], "Equalize": [0], "Invert": [0],
    }.items()
    for strength in strengths
]  # fmt: skip


@pytest.mark.parametrize(("name", "strength"), CASES)
def test_every_operation_equals_torchvisions(name, strength):
    images = pictures(40)
    ours = apply(images, Choice(np.full(40, name), np.full(40, float(strength))))
    theirs = THEIRS["autoaugment"]
    options = {"interpolation": InterpolationMode.NEAREST, "fill": theirs._fill}
    expected = [theirs._apply_image_or_video_transform(image, name, float(strength), **options) for image in images]
    difference = (ours.int() - torch.stack(expected).int()).abs()
    assert difference.max() <= 1  # a level may fall to the other side where theirs divides and ours multiplies
    assert (difference > 0).float().mean() < 0.02
    assert ours.is_contiguous(memory_format=torch.channels_last)


def test_each_image_gets_its_own_operation():
    images = pictures(len(CASES))
    names, strengths = np.array([name for name, _ in CASES]), np.array([float(strength) for _, strength in CASES])
    together = apply(images, Choice(names, strengths))
    for index in range(len(CASES)):
        one = slice(index, index + 1)
        assert torch.equal(together[one], apply(images[one], Choice(names[one], strengths[one])))


@pytest.mark.parametrize("policy", ["randaugment", "trivialaugment"])
def test_strengths_are_torchvisions(policy):
    space = THEIRS[policy]._AUGMENTATION_SPACE
    if policy == "randaugment":
        ours = policies.strengths(31, 0.3, 150 / 331 * SIZE, 30, 0.9, 4)
    else:
        ours = policies.strengths(31, 0.99, 32.0, 135, 0.99, 6)
    assert ours.keys() == space.keys()
    for name, (magnitudes, signed) in space.items():
        expected = magnitudes(31, SIZE, SIZE)
        assert ours[name].signed == signed
        np.testing.assert_allclose(ours[name].values, 0 if expected is None else expected.numpy(), atol=1e-5)


def test_sub_policies_and_their_strengths_are_torchvisions():
    theirs = THEIRS["autoaugment"]
    expected = theirs._get_policies(v2.AutoAugmentPolicy.CIFAR10)
    assert [[(n, p, s) for n, p, s in pair] for pair in policies.SUB_POLICIES] == [
        [(name, probability, bin_ or 0) for name, probability, bin_ in pair] for pair in expected
    ]
    ours = policies.strengths(10, 0.3, 150 / 331 * SIZE, 30, 0.9, 4)
    for name, (magnitudes, signed) in theirs._AUGMENTATION_SPACE.items():
        values = magnitudes(10, SIZE, SIZE)
        if values is not None:
            assert ours[name].signed == signed
            np.testing.assert_allclose(ours[name].values, values.numpy(), atol=1e-5)


def drawn(choice: Choice) -> set[tuple[str, float]]:
    return {
        (str(name), round(abs(float(strength)) + 1e-4, 2))
        for name, strength in zip(choice.operations, choice.strengths, strict=True)
    }


def theirs_at(policy: str, name: str, bin_: int, num_bins: int) -> tuple[str, float]:
    values, _ = THEIRS[policy]._AUGMENTATION_SPACE[name]
    values = values(num_bins, SIZE, SIZE)
    return name, round(float(values[bin_]) + 1e-4, 2) if values is not None else 0.0


@pytest.mark.parametrize(("policy", "bins"), [("randaugment", [9]), ("trivialaugment", range(31))])
def test_what_is_drawn_is_what_torchvision_draws(policy, bins):
    choice, *_ = OURS[policy](60_000, SIZE, np.random.default_rng(0))
    assert drawn(choice) == {
        theirs_at(policy, name, bin_, 31) for name in THEIRS[policy]._AUGMENTATION_SPACE for bin_ in bins
    }


def test_each_step_of_autoaugment_draws_what_torchvisions_does():
    sub_policies = THEIRS["autoaugment"]._get_policies(v2.AutoAugmentPolicy.CIFAR10)
    for step, choice in enumerate(OURS["autoaugment"](100_000, SIZE, np.random.default_rng(0))):
        expected = {theirs_at("autoaugment", pair[step][0], pair[step][2] or 0, 10) for pair in sub_policies}
        assert drawn(choice) - {("Identity", 0.0)} == expected


def test_randaugment_draws_every_operation_alike_at_one_strength():
    first, second = RandAugment(num_ops=2, magnitude=9)(28_000, SIZE, np.random.default_rng(0))
    names, counts = np.unique(first.operations, return_counts=True)
    assert set(names) == set(THEIRS["randaugment"]._AUGMENTATION_SPACE)
    assert abs(counts / 28_000 - 1 / 14).max() < 0.01
    assert (first.operations == second.operations).mean() < 0.1
    rotations = first.strengths[first.operations == "Rotate"]
    np.testing.assert_allclose(np.abs(rotations), 9)  # 30 degrees * 9 / 30
    assert 0.45 < (rotations > 0).mean() < 0.55


def test_number_and_strength_of_randaugments_operations_arrive():
    choices = Augment(policy="randaugment", num_ops=3, magnitude=20).policy(5_000, SIZE, np.random.default_rng(0))
    assert len(choices) == 3
    for choice in choices:
        np.testing.assert_allclose(np.abs(choice.strengths[choice.operations == "Rotate"]), 20)  # 30 degrees * 20 / 30


def test_trivialaugment_draws_every_strength():
    (choice,) = TrivialAugment()(60_000, SIZE, np.random.default_rng(0))
    rotations = np.abs(choice.strengths[choice.operations == "Rotate"])
    bins, counts = np.unique(np.round(rotations / 135 * 30), return_counts=True)
    assert bins.tolist() == list(range(31))
    assert abs(counts / len(rotations) - 1 / 31).max() < 0.015


def test_autoaugment_applies_sub_policies_with_their_probabilities():
    first, second = AutoAugment()(100_000, SIZE, np.random.default_rng(0))
    for step, choice in enumerate((first, second)):
        for name in np.unique(choice.operations):
            expected = sum(p for pair in policies.SUB_POLICIES for n, p, _ in [pair[step]] if n == name) / 25
            if name == "Identity":
                expected = sum(1 - pair[step][1] for pair in policies.SUB_POLICIES) / 25
            assert abs((choice.operations == name).mean() - expected) < 0.01, name


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_ops": 0}, "num_ops must be a whole number, 1 or more. Got 0"),
        ({"magnitude": 31}, "magnitude must be a whole number from 0 to 30. Got 31"),
        ({"magnitude": -1}, "magnitude must be a whole number from 0 to 30. Got -1"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RandAugment(**options)


def test_what_is_sent_to_a_gpu_in_one_parcel_comes_out_of_it_again():
    arrays = [
        np.arange(3),
        np.random.rand(5, 1, 1).astype(np.float32),
        np.arange(0),
        np.random.rand(7, 2, 3).astype(np.float32),
    ]
    for array, tensor in zip(arrays, unpacked(packed(arrays), arrays), strict=True):
        assert torch.equal(tensor, torch.from_numpy(array))
