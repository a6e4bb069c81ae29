"""Augmentation of whole batches, on the device that holds them; every image gets its own random numbers.

Batches lie channels_last in memory, so that a row of pixels is one contiguous run: cropping and flipping are then a
single gather of pixels, and normalising is arithmetic on contiguous rows.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from cifar_resnet import limits
from cifar_resnet.data.mixing import Mixing, Parts
from cifar_resnet.data.policies import AutoAugment, RandAugment, TrivialAugment, apply


def random_offsets(num_images: int, padding: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """Vertical and horizontal displacement of each image's crop, (N,) each, uniform in -padding … padding."""
    draw = torch.randint(-padding, padding + 1, (2, num_images), generator=generator, device=generator.device)
    return draw[0], draw[1]


def random_flips(num_images: int, probability: float, generator: Generator) -> Tensor:
    """Which images to mirror: (N,) bool."""
    return torch.rand(num_images, generator=generator, device=generator.device) < probability


def random_centres(num_images: int, height: int, width: int, generator: Generator) -> tuple[Tensor, Tensor]:
    """A uniformly drawn pixel of each image: row and column, (N,) each."""
    rows = torch.randint(height, (num_images,), generator=generator, device=generator.device)
    columns = torch.randint(width, (num_images,), generator=generator, device=generator.device)
    return rows, columns


def crop_and_flip(images: Tensor, down: Tensor, right: Tensor, flips: Tensor, padding: int, mode: str) -> Tensor:
    """Cut a window of the original size out of each padded image, displaced by (down, right); mirror where `flips`.

    images: (N, C, H, W) of any type, channels_last; down, right: (N,) int64 in -padding … padding; flips: (N,) bool.
    mode: what lies beyond the border: "zero" (black), or "reflect" (mirrored without repeating the edge pixel).
    He et al. 2015, section 4.2.
    """
    num_images, channels, height, width = images.shape
    rows = torch.arange(height, device=images.device) + down[:, None]
    columns = torch.arange(width, device=images.device) + right[:, None]
    columns = torch.where(flips[:, None], columns.flip(1), columns)
    pixels = images.permute(0, 2, 3, 1)
    if mode == "reflect":
        rows = (height - 1) - ((height - 1) - rows.abs()).abs()
        columns = (width - 1) - ((width - 1) - columns.abs()).abs()
    elif padding:
        pixels = F.pad(pixels, (0, 0, padding, padding, padding, padding))
        rows, columns = rows + padding, columns + padding
    per_row, per_image = pixels.shape[2], pixels.shape[1] * pixels.shape[2]
    starts = torch.arange(num_images, device=images.device)[:, None] * per_image + rows * per_row
    index = starts[:, :, None] + columns[:, None, :]
    window = pixels.reshape(-1, channels).index_select(0, index.flatten())
    return window.view(num_images, height, width, channels).permute(0, 3, 1, 2)


def cutout(images: Tensor, rows: Tensor, columns: Tensor, size: int, spared: Tensor | None = None) -> Tensor:
    """Zero a size x size square of each image, in place, around its pixel (row, column) (DeVries & Taylor 2017).

    images: (N, C, H, W), normalised, so that 0 is the mean colour, channels_last; rows, columns: (N,) int64;
    spared: (N,) bool, the images to leave as they are.
    The square covers row - size // 2 … row - size // 2 + size - 1, and likewise the columns; it may leave the image.
    """
    num_images, channels, height, width = images.shape
    side = torch.arange(size, device=images.device) - size // 2
    # squares that leave the image write their edge twice instead: no mask over all the pixels
    square_rows = (rows[:, None] + side).clamp_(0, height - 1)
    square_columns = (columns[:, None] + side).clamp_(0, width - 1)
    starts = torch.arange(num_images, device=images.device)[:, None] * (height * width) + square_rows * width
    index = starts[:, :, None] + square_columns[:, None, :]
    pixels = images.permute(0, 2, 3, 1).view(-1, channels)
    if spared is None:
        pixels.index_fill_(0, index.flatten(), 0)
    else:  # written back times 0 or 1: to pick the others out would make a GPU wait for their number
        square = pixels.index_select(0, index.flatten()).view(num_images, -1) * spared[:, None]
        pixels.index_copy_(0, index.flatten(), square.view(-1, channels))
    return images


def normalise(images: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """(uint8 / 255 - mean) / std, channel by channel, as float32 in channels_last.

    images: (N, C, H, W) uint8, channels_last; mean, std: (C,), for pixels in [0, 1].
    """
    num_images, channels, height, width = images.shape
    # a row of pixels at a time: an inner loop over three channels would cost twenty times as much on a CPU
    rows = images.permute(0, 2, 3, 1).reshape(num_images, height, width * channels).float()
    rows.sub_((mean * 255).repeat(width)).mul_((1 / (std * 255)).repeat(width))
    return rows.view(num_images, height, width, channels).permute(0, 3, 1, 2)


class Draws(NamedTuple):
    """Where the random numbers of one batch come from: from the seed, the epoch and the rank.

    generator: on the images' device; host: for what has to be known before the device can work;
    turns: (N,) bool, the images to mirror on this visit if flips alternate.
    """

    generator: Generator
    host: np.random.Generator
    turns: Tensor


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
        crop_padding: int = 4,
        padding_mode: str = "zero",
        flip: str = "random",
        policy: str | None = None,
        num_ops: int = 2,
        magnitude: int = 9,
        cutout_size: int = 8,
        cutout_probability: float = 1.0,
        mixing: str | None = None,
        mixing_alpha: float | None = None,
        mixing_probability: float = 1.0,
    ):
        limits.require(
            "augment",
            crop_padding=crop_padding,
            padding_mode=padding_mode,
            flip=flip,
            policy=policy,
            cutout_size=cutout_size,
            cutout_probability=cutout_probability,
        )
        self.crop_padding = crop_padding
        self.padding_mode = padding_mode
        self.flip = flip
        randaugment = RandAugment(num_ops, magnitude)
        policies = {"autoaugment": AutoAugment(), "randaugment": randaugment, "trivialaugment": TrivialAugment()}
        self.policy = policies.get(policy)
        self.cutout_size = cutout_size
        self.cutout_probability = cutout_probability
        self.mixing = None if mixing is None else Mixing(mixing, mixing_alpha, mixing_probability)

    def check(self, image_size: int) -> None:
        """Refuse what images of this side cannot have."""
        limits.check_size(self.crop_padding, self.cutout_size, image_size)

    def __call__(
        self, images: Tensor, normalise: Callable[[Tensor], Tensor], draws: Draws
    ) -> tuple[Tensor, Parts | None]:
        """uint8 (N, C, H, W) in; float32, normalised and augmented, out, and how they were mixed. All channels_last."""
        num_images, _, height, width = images.shape
        generator = draws.generator
        if self.crop_padding or self.flip != "none":
            down, right = random_offsets(num_images, self.crop_padding, generator)
            probability = 0.5 if self.flip == "random" else 0.0
            flips = draws.turns if self.flip == "alternating" else random_flips(num_images, probability, generator)
            images = crop_and_flip(images, down, right, flips, self.crop_padding, self.padding_mode)
        if self.policy:
            for choice in self.policy(num_images, width, draws.host):
                images = apply(images, choice)
        images = normalise(images)
        if self.cutout_size:
            rows, columns = random_centres(num_images, height, width, generator)
            spared = None
            if self.cutout_probability < 1:
                spared = torch.rand(num_images, generator=generator, device=images.device) >= self.cutout_probability
            images = cutout(images, rows, columns, self.cutout_size, spared)
        return self.mixing(images, draws.host) if self.mixing else (images, None)
