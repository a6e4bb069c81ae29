"""Augmentation against slow references, one image at a time."""

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as reference

from cifar_resnet.data import Synthetic
from cifar_resnet.data.augment import Augment, Randomness, crop_and_flip, cutout, random_centres, random_offsets
from cifar_resnet.images import Normalise

MEAN, STD = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])


def random_images(count: int, height: int = 32, width: int = 32) -> torch.Tensor:
    images = torch.randint(256, (count, 3, height, width), dtype=torch.uint8)
    return images.contiguous(memory_format=torch.channels_last)


def randomness(num_images: int, seed: int = 0) -> Randomness:
    generator = torch.Generator().manual_seed(seed)
    return Randomness(generator, np.random.default_rng(seed), torch.rand(num_images, generator=generator) < 0.5)


@pytest.mark.parametrize(("mode", "reference_mode"), [("zero", "constant"), ("reflect", "reflect")])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (9, 14)])
def test_crop_and_flip_equals_torchvision_on_each_image(mode, reference_mode, height, width):
    images = random_images(60, height, width)
    down, right = torch.randint(-4, 5, (2, 60))
    flips = torch.rand(60) < 0.5
    result = crop_and_flip(images, down, right, flips, padding=4, mode=mode)
    for index, image in enumerate(images):
        padded = reference.pad(image, [4, 4, 4, 4], padding_mode=reference_mode)
        expected = reference.crop(padded, 4 + int(down[index]), 4 + int(right[index]), height, width)
        if flips[index]:
            expected = reference.horizontal_flip(expected)
        assert torch.equal(result[index], expected)


def test_cutout_zeroes_the_square_around_each_centre():
    images = torch.rand(80, 3, 32, 32).contiguous(memory_format=torch.channels_last) + 1
    rows, columns = torch.randint(32, (2, 80))
    for size in (1, 7, 8, 40):
        expected = images.clone()
        for image, row, column in zip(expected, rows.tolist(), columns.tolist(), strict=True):
            top, left = row - size // 2, column - size // 2
            image[:, max(top, 0) : max(top + size, 0), max(left, 0) : max(left + size, 0)] = 0
        assert torch.equal(cutout(images.clone(), rows, columns, size), expected)


def test_every_image_gets_its_own_numbers():
    images = random_images(1).expand(500, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    augmented, _ = Augment(crop_padding=4, cutout_probability=1.0)(images, Normalise(MEAN, STD), randomness(500))
    assert len(augmented.unique(dim=0)) > 490


def test_offsets_and_centres_are_uniform():
    generator = torch.Generator().manual_seed(0)
    down, right = random_offsets(90_000, 4, generator)
    rows, columns = random_centres(90_000, 30, 20, generator)
    for values, low, high in ((down, -4, 4), (right, -4, 4), (rows, 0, 29), (columns, 0, 19)):
        shares = torch.bincount(values - low).float() / len(values)
        assert len(shares) == high - low + 1
        assert (shares - 1 / len(shares)).abs().max() < 0.005
    assert torch.corrcoef(torch.stack([down.float(), right.float()]))[0, 1].abs() < 0.01


@pytest.mark.parametrize(("flip", "expected"), [("none", 0.0), ("random", 0.5), ("alternating", 0.5)])
def test_flips_mirror_half_of_the_images(flip, expected):
    images = random_images(1).expand(4000, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    augment = Augment(crop_padding=0, flip=flip, cutout_size=0)
    augmented, _ = augment(images, torch.Tensor.float, randomness(4000))
    flipped = (augmented == images[0].flip(-1)).all((1, 2, 3)).float().mean()
    assert abs(flipped - expected) < 0.03


def test_no_augmentation_leaves_images_as_they_are():
    images = random_images(5)
    augment = Augment(crop_padding=0, flip="none", cutout_size=0)
    augmented, plan = augment(images, torch.Tensor.float, randomness(5))
    assert torch.equal(augmented, images.float())
    assert plan is None


@pytest.mark.parametrize(
    "options",
    [
        {"crop_padding": -1},
        {"padding_mode": "wrap"},
        {"flip": "never"},
        {"cutout_size": -8},
        {"cutout_probability": -0.1},
        {"policy": "fast"},
        {"mixing": "blend"},
        {"mixing": "mixup", "mixing_alpha": -1.0},
    ],
)
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match=f"^{[*options][-1]} must be .*Got"):
        Augment(**options)


def test_shifts_as_wide_as_the_image_are_refused():
    Synthetic(augment=Augment(crop_padding=31))
    with pytest.raises(ValueError, match=r"Got 32 for 32 pixels"):
        Synthetic(augment=Augment(crop_padding=32))


def test_alternating_flips_follow_their_mask():
    images, drawn = random_images(50), randomness(50)
    augment = Augment(crop_padding=0, flip="alternating", cutout_size=0)
    first, _ = augment(images, torch.Tensor.float, drawn)
    second, _ = augment(images, torch.Tensor.float, drawn._replace(flip_mask=~drawn.flip_mask))
    assert torch.equal(first, second.flip(-1))
    assert torch.equal(first[drawn.flip_mask], images[drawn.flip_mask].flip(-1).float())


def test_cutout_probability():
    images = random_images(4000, 16, 16)
    augment = Augment(crop_padding=0, flip="none", cutout_size=4, cutout_probability=0.3)
    augmented, _ = augment(images, lambda batch: batch.float() + 1, randomness(4000))
    cut = (augmented == 0).flatten(1).any(1)
    assert abs(cut.float().mean() - 0.3) < 0.03
    assert torch.equal(augmented[~cut], images[~cut].float() + 1)


@pytest.mark.parametrize("policy", ["autoaugment", "randaugment", "trivialaugment"])
def test_policies_change_most_images(policy):
    images = random_images(1, 32, 32).expand(300, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    augment = Augment(crop_padding=0, flip="none", policy=policy, cutout_size=0)
    augmented, _ = augment(images, torch.Tensor.float, randomness(300))
    assert len(augmented.unique(dim=0)) > 20
    again, _ = augment(images, torch.Tensor.float, randomness(300))
    assert torch.equal(augmented, again)


@pytest.mark.parametrize("kind", ["mixup", "cutmix", "ricap"])
def test_mixing_says_what_it_mixed(kind):
    augmented, plan = Augment(mixing=kind)(random_images(20), torch.Tensor.float, randomness(20))
    assert augmented.shape == (20, 3, 32, 32)
    torch.testing.assert_close(plan.weights.sum(0), torch.ones(20))


@pytest.mark.parametrize("image_size", [8, 32])
def test_the_largest_cutout_that_is_admitted_leaves_something_of_some_image(image_size):
    size = 2 * image_size - 2
    Augment(cutout_size=size).check_image_size(image_size)
    with pytest.raises(ValueError, match="would cover every image"):
        Augment(cutout_size=size + 1).check_image_size(image_size)
    rows, columns = (each.flatten() for each in torch.meshgrid(*[torch.arange(image_size)] * 2, indexing="ij"))
    images = torch.ones(image_size**2, 1, image_size, image_size).contiguous(memory_format=torch.channels_last)
    assert cutout(images.clone(), rows, columns, size).any()
    assert not cutout(images, rows, columns, size + 1).any()
