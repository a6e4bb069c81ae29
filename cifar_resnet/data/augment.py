"""Augmentation of whole batches, on the device that holds them; every image gets its own random numbers.

Batches lie channels_last in memory, so that a row of pixels is one contiguous run: cropping and flipping are then a
single gather of pixels, and normalising is arithmetic on contiguous rows.
"""

import functools
from collections.abc import Callable
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Generator, Tensor

from cifar_resnet.constraints import Count, CountOrZero, Positive, Probability, check
from cifar_resnet.data.mixing import Mixing, MixPlan
from cifar_resnet.data.pixels import gather, pixel_numbers
from cifar_resnet.data.policies import AutoAugment, Magnitude, RandAugment, TrivialAugment, apply
from cifar_resnet.errors import refuse_if


def random_offsets(num_images: int, padding: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal displacement of each image's crop, (N,) each, uniform in -padding … padding."""
    down, right = torch.randint(-padding, padding + 1, (2, num_images), generator=generator, device=generator.device)
    return down, right


def random_mask(num_images: int, probability: float, generator: Generator) -> Tensor:
    """Which images to mirror, or to cut: (N,) bool."""
    return torch.rand(num_images, generator=generator, device=generator.device) < probability


def random_centres(num_images: int, height: int, width: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """A uniformly drawn pixel of each image: row and column, (N,) each."""
    device = generator.device
    rows, columns = (torch.randint(side, (num_images,), generator=generator, device=device) for side in (height, width))
    return rows, columns


def crop_and_flip(images: Tensor, down: Tensor, right: Tensor, flips: Tensor, padding: int, mode: str) -> Tensor:
    """Cut a window of the original size out of each padded image, displaced by (down, right); mirror where `flips`.

    images: (N, C, H, W) of any type, channels_last; down, right: (N,) int64 in -padding … padding; flips: (N,) bool.
    mode: what lies beyond the border: "zero" (black), or "reflect" (mirrored without repeating the edge pixel).
    He et al. 2015, section 4.2.
    """
    height, width = images.shape[2:]
    rows, columns = (windows(length, padding, mode, images.device) for length in (height, width))
    if mode == "zero" and padding:
        images = torch.nn.functional.pad(images, (padding, padding, padding, padding))
    return gather(images, rows[0][down][:, :, None], columns[flips.long(), right][:, None, :])


@functools.lru_cache(maxsize=16)
def windows(length: int, padding: int, mode: str, device: torch.device) -> Tensor:
    """For each displacement the places, along one side, of the pixels that a crop shows: (2, 2 * padding + 1, length).

    The second time mirrored. The displacements are 0 … padding, -padding … -1: an index as well, from the end. Places
    are those in the image, or in "zero" mode in the padded one.
    """
    displacements = torch.cat([torch.arange(padding + 1), torch.arange(-padding, 0)])
    places = torch.arange(length) + displacements[:, None]
    places = (length - 1) - ((length - 1) - places.abs()).abs() if mode == "reflect" else places + padding
    return torch.stack([places, places.flip(1)]).to(device)


def cutout(images: Tensor, rows: Tensor, columns: Tensor, size: int, kept: Tensor | None = None) -> Tensor:
    """Zero a size x size square of each image, in place, around its pixel (row, column) (DeVries & Taylor 2017).

    images: (N, C, H, W), normalised, so that 0 is the mean colour, channels_last; rows, columns: (N,) int64;
    kept: (N,) bool, the images to leave as they are.
    The square covers row - size // 2 … row - size // 2 + size - 1, and likewise the columns; it may leave the image.
    """
    num_images, channels, height, width = images.shape
    square_rows, square_columns = (squares(length, size, images.device) for length in (height, width))
    index = pixel_numbers(images, square_rows[rows][:, :, None], square_columns[columns][:, None, :]).flatten()
    pixels = images.permute(0, 2, 3, 1).view(-1, channels)  # no copy, for it is written to
    if kept is None:
        pixels.index_fill_(0, index, 0)
    else:  # written back times 0 or 1: to pick the others out would make a GPU wait for their number
        square = pixels.index_select(0, index).view(num_images, -1) * kept[:, None]
        pixels.index_copy_(0, index, square.view(-1, channels))
    return images


@functools.lru_cache(maxsize=16)
def squares(length: int, size: int, device: torch.device) -> Tensor:
    """For each centre the places of a square along one side: (length, size).

    A square that leaves the image has its edge several times instead: no mask over all the pixels.
    """
    side = torch.arange(size) - size // 2
    return (torch.arange(length)[:, None] + side).clamp_(0, length - 1).to(device)


class Randomness(NamedTuple):
    """Where the random numbers of one batch come from: from the seed, the epoch and the rank.

    generator: on the images' device; numpy_rng: for what has to be known before the device can work;
    flip_mask: (N,) bool, the images to mirror on this visit if flips alternate.
    """

    generator: Generator
    numpy_rng: np.random.Generator
    flip_mask: Tensor


class Augment:
    """What a training image goes through on each visit: random crop, flip, a policy, cutout, mixing with others.

    crop_padding: pixels that a crop may be displaced by, in each direction; 0 for no crop.
    padding_mode: "zero" or "reflect".
    flip: "random" mirrors half of the images on each visit; "alternating" draws once for each image, and mirrors it in
        every other epoch after that (Jordan 2024, arXiv 2404.00498, section 3.6); "none" leaves them, as letters and
        digits want it.
    policy: "autoaugment", "randaugment", "trivialaugment" or None (policies.py).
    num_ops, magnitude: RandAugment's.
    cutout_size: side of the square that cutout removes, in pixels; 0 for no cutout.
    cutout_probability: of an image to be cut.
    mixing: "mixup", "cutmix", "ricap" or None (mixing.py).
    mixing_alpha: of the Beta distribution of the shares; None for the paper's.
    mixing_probability: of an image to be mixed.
    """

    def __init__(
        self,
        crop_padding: CountOrZero = 2,
        padding_mode: Literal["zero", "reflect"] = "reflect",
        flip: Literal["random", "alternating", "none"] = "alternating",
        policy: Literal["autoaugment", "randaugment", "trivialaugment"] | None = None,
        num_ops: Count = 2,
        magnitude: Magnitude = 9,
        cutout_size: CountOrZero = 8,
        cutout_probability: Probability = 0.5,
        mixing: Literal["mixup", "cutmix", "ricap"] | None = None,
        mixing_alpha: Positive | None = None,
        mixing_probability: Probability = 1.0,
    ):
        check(Augment, locals())
        self.crop_padding, self.padding_mode, self.flip = crop_padding, padding_mode, flip
        policies: dict[str, AutoAugment | RandAugment | TrivialAugment] = {
            "autoaugment": AutoAugment(),
            "randaugment": RandAugment(num_ops, magnitude),
            "trivialaugment": TrivialAugment(),
        }
        self.policy = policies.get(policy)
        self.cutout_size, self.cutout_probability = cutout_size, cutout_probability
        self.mixing = mixing and Mixing(mixing, mixing_alpha, mixing_probability)

    def check_image_size(self, image_size: int) -> None:
        """Refuse what images of this side, in pixels, cannot have."""
        refuse_if(
            self.crop_padding >= image_size,
            f"augment.crop_padding must be smaller than the images, or nothing of them may be left. "
            f"Got {self.crop_padding} for {image_size} pixels; give less",
        )
        refuse_if(
            self.cutout_size >= 2 * image_size - 1,  # wherever its centre lies
            f"augment.cutout_size would cover every image of {image_size} pixels. Got {self.cutout_size}; give less",
        )

    def __call__(
        self, images: Tensor, normalise: Callable[[Tensor], Tensor], randomness: Randomness
    ) -> tuple[Tensor, MixPlan | None]:
        """uint8 (N, C, H, W) in; float32, normalised and augmented, out, and how they were mixed. All channels_last."""
        num_images, _, height, width = images.shape
        generator, numpy_rng, flips = randomness
        if self.crop_padding or self.flip != "none":
            down, right = random_offsets(num_images, self.crop_padding, generator)
            if self.flip != "alternating":
                flips = random_mask(num_images, 0.5 if self.flip == "random" else 0.0, generator)
            images = crop_and_flip(images, down, right, flips, self.crop_padding, self.padding_mode)
        for choice in self.policy(num_images, width, numpy_rng) if self.policy else ():
            images = apply(images, choice)
        images = normalise(images)
        if self.cutout_size:
            rows, columns = random_centres(num_images, height, width, generator)
            all_cut = self.cutout_probability == 1
            kept = None if all_cut else ~random_mask(num_images, self.cutout_probability, generator)
            images = cutout(images, rows, columns, self.cutout_size, kept)
        return self.mixing(images, generator) if self.mixing else (images, None)
