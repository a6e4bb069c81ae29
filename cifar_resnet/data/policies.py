"""AutoAugment, RandAugment and TrivialAugment for whole batches: every image gets operations and strengths of its own.

The operations, their strengths and CIFAR-10's sub-policies are those of torchvision.transforms.v2 for uint8 images with
nearest neighbours and black beyond the border; the tests compare with it. Which image gets what is drawn on the host,
so that images can be grouped by operation without asking a GPU how many there are.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Annotated, NamedTuple

import numpy as np
import torch
from annotated_types import Interval
from torch import Tensor

from cifar_resnet.constraints import Count, check
from cifar_resnet.data.pixels import gather

Magnitude = Annotated[int, Interval(ge=0, le=30)]


class Strengths(NamedTuple):
    """An operation's strengths, from weak to strong. signed: each is negated for half of the images."""

    values: np.ndarray
    signed: bool


NO_STRENGTH = Strengths(np.zeros(1), False)


def strengths(
    bins: int, shear: float, translate: float, rotate: float, enhance: float, bits: float
) -> dict[str, Strengths]:
    """Every operation's strengths, in `bins` steps up to the given ones.

    shear: a tangent; translate: pixels; rotate: degrees; enhance: distance from the factor 1 of brightness and its
    like; bits: of colour depth that posterize takes away.
    """
    up = np.linspace(0, 1, bins)
    return {
        "Identity": NO_STRENGTH,
        "ShearX": Strengths(up * shear, True),
        "ShearY": Strengths(up * shear, True),
        "TranslateX": Strengths(up * translate, True),
        "TranslateY": Strengths(up * translate, True),
        "Rotate": Strengths(up * rotate, True),
        "Brightness": Strengths(up * enhance, True),
        "Color": Strengths(up * enhance, True),
        "Contrast": Strengths(up * enhance, True),
        "Sharpness": Strengths(up * enhance, True),
        "Posterize": Strengths(np.round(8 - up * bits), False),
        "Solarize": Strengths(1 - up, False),  # the threshold, as a share of white
        "AutoContrast": NO_STRENGTH,
        "Equalize": NO_STRENGTH,
    }


class Choice(NamedTuple):
    """What happens next to each image: an operation's name and its strength, (N,) each."""

    operations: np.ndarray
    strengths: np.ndarray


def draw(names: np.ndarray, bins: np.ndarray, space: dict[str, Strengths], random: np.random.Generator) -> Choice:
    """The strengths that belong to operations (N,) and bins (N,), with random signs where they have one."""
    values, signs = np.zeros(len(names)), random.choice([-1.0, 1.0], len(names))
    for name, (of_bin, signed) in space.items():
        chosen = names == name
        values[chosen] = of_bin[np.minimum(bins[chosen], len(of_bin) - 1)] * (signs[chosen] if signed else 1)
    return Choice(names, values)


class RandAugment:
    """`num_ops` operations drawn for each image, all of one strength (Cubuk et al. 2019, arXiv 1909.13719).

    magnitude: 0 to 30.
    """

    def __init__(self, num_ops: Count = 2, magnitude: Magnitude = 9):
        check(RandAugment, locals())
        self.num_ops, self.magnitude = num_ops, magnitude

    def __call__(self, num_images: int, image_size: int, random: np.random.Generator) -> list[Choice]:
        space = strengths(31, 0.3, 150 / 331 * image_size, 30, 0.9, 4)
        names, bins = np.array(list(space)), np.full(num_images, self.magnitude)
        return [draw(random.choice(names, num_images), bins, space, random) for _ in range(self.num_ops)]


class TrivialAugment:
    """One operation of any strength for each image (Müller & Hutter 2021, arXiv 2103.10158, the wide space)."""

    def __call__(self, num_images: int, image_size: int, random: np.random.Generator) -> list[Choice]:
        space = strengths(31, 0.99, 32.0, 135, 0.99, 6)
        names = random.choice(np.array(list(space)), num_images)
        return [draw(names, random.integers(31, size=num_images), space, random)]


# CIFAR-10's sub-policies (Cubuk et al. 2018, arXiv 1805.09501, table 7): two of operation, probability, strength 0 to 9
SUB_POLICIES = [
    [("Invert", 0.1, 0), ("Contrast", 0.2, 6)],
    [("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)],
    [("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)],
    [("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)],
    [("AutoContrast", 0.5, 0), ("Equalize", 0.9, 0)],
    [("ShearY", 0.2, 7), ("Posterize", 0.3, 7)],
    [("Color", 0.4, 3), ("Brightness", 0.6, 7)],
    [("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)],
    [("Equalize", 0.6, 0), ("Equalize", 0.5, 0)],
    [("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)],
    [("Color", 0.7, 7), ("TranslateX", 0.5, 8)],
    [("Equalize", 0.3, 0), ("AutoContrast", 0.4, 0)],
    [("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)],
    [("Brightness", 0.9, 6), ("Color", 0.2, 8)],
    [("Solarize", 0.5, 2), ("Invert", 0.0, 0)],
    [("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)],
    [("Equalize", 0.2, 0), ("Equalize", 0.6, 0)],
    [("Color", 0.9, 9), ("Equalize", 0.6, 0)],
    [("AutoContrast", 0.8, 0), ("Solarize", 0.2, 8)],
    [("Brightness", 0.1, 3), ("Color", 0.7, 0)],
    [("Solarize", 0.4, 5), ("AutoContrast", 0.9, 0)],
    [("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)],
    [("AutoContrast", 0.9, 0), ("Solarize", 0.8, 3)],
    [("Equalize", 0.8, 0), ("Invert", 0.1, 0)],
    [("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 0)],
]


class AutoAugment:
    """One of CIFAR-10's 25 sub-policies for each image (Cubuk et al. 2018, arXiv 1805.09501)."""

    def __call__(self, num_images: int, image_size: int, random: np.random.Generator) -> list[Choice]:
        space = strengths(10, 0.3, 150 / 331 * image_size, 30, 0.9, 4) | {"Invert": NO_STRENGTH}
        drawn = random.integers(len(SUB_POLICIES), size=num_images)
        choices = []
        for step in range(2):
            names, probabilities, bins = (
                np.array([policy[step][part] for policy in SUB_POLICIES])[drawn] for part in range(3)
            )
            names = np.where(random.random(num_images) < probabilities, names, "Identity")
            choices.append(draw(names, bins, space, random))
        return choices


def apply(images: Tensor, choice: Choice) -> Tensor:
    """Each image's own operation. images: (N, 3, H, W) uint8, channels_last; returns the same kind."""
    images, work = images.clone(memory_format=torch.channels_last), []
    for names, numbers_for, operation in (
        (GEOMETRIC, matrices, transform),
        (LEVELS, levels_by_operation, map_levels),
        (["Color"], factors, saturate),
        (["Sharpness"], factors, sharpen),
    ):
        chosen = np.flatnonzero(np.isin(choice.operations, list(names)))
        if len(chosen):
            picked = Choice(choice.operations[chosen], choice.strengths[chosen])
            work.append((operation, [chosen, *numbers_for(picked, images.shape)], picked))
    numbers = iter(to_device([array for _, arrays, _ in work for array in arrays], images.device))
    for operation, arrays, picked in work:
        index, *own = itertools.islice(numbers, len(arrays))
        images.index_copy_(0, index, operation(images.index_select(0, index), picked, *own))
    return images


def to_device(arrays: Sequence[np.ndarray], device: torch.device) -> list[Tensor]:
    """All of them by one copy, for which nobody waits. arrays: of int64 or float32."""
    if device.type == "cpu":
        return [torch.from_numpy(array) for array in arrays]
    return unpacked(packed(arrays).pin_memory().to(device, non_blocking=True), arrays)


def places(arrays: Sequence[np.ndarray]) -> np.ndarray:
    """The byte at which each begins in a parcel of all, where its numbers may begin; and the parcel's length."""
    return np.cumsum([0, *(-(-array.nbytes // 8) * 8 for array in arrays)])


def packed(arrays: Sequence[np.ndarray]) -> Tensor:
    *starts, length = places(arrays)
    parcel = np.empty(length, np.uint8)
    for array, start in zip(arrays, starts, strict=True):
        parcel[start : start + array.nbytes] = array.ravel().view(np.uint8)
    return torch.from_numpy(parcel)


def unpacked(parcel: Tensor, arrays: Sequence[np.ndarray]) -> list[Tensor]:
    """Views of what `packed` has made of these arrays, wherever that is by now."""
    return [
        parcel[start : start + array.nbytes].view(torch.from_numpy(array).dtype).view(array.shape)
        for array, start in zip(arrays, places(arrays)[:-1], strict=True)
    ]


# from an output pixel to the one it shows: source = matrix @ (output, 1), of pixel centres with (0, 0) in the middle;
# `half` is half an image's side
GEOMETRIC: dict[str, Callable[[float, float], tuple]] = {
    "ShearX": lambda value, half: ((1, value, value * half), (0, 1, 0)),  # about the upper left corner
    "ShearY": lambda value, half: ((1, 0, 0), (value, 1, value * half)),
    "TranslateX": lambda value, half: ((1, 0, -int(value)), (0, 1, 0)),
    "TranslateY": lambda value, half: ((1, 0, 0), (0, 1, -int(value))),
    "Rotate": lambda value, half: (
        (np.cos(np.radians(value)), -np.sin(np.radians(value)), 0),
        (np.sin(np.radians(value)), np.cos(np.radians(value)), 0),
    ),
}


def matrices(choice: Choice, shape: Sequence[int]) -> list[np.ndarray]:
    """One for each image: (N, 2, 3). shape: (N, C, H, W)."""
    each = [
        GEOMETRIC[name](value, (shape[2] if name == "ShearX" else shape[3]) / 2)
        for name, value in zip(choice.operations, choice.strengths, strict=True)
    ]
    return [np.array(each, np.float32)]


def transform(images: Tensor, choice: Choice, matrices: Tensor) -> Tensor:
    """Shear, translate or rotate each image, by nearest neighbours, black beyond the border."""
    height, width = images.shape[2:]
    x = torch.arange(width, device=images.device) + 0.5 - width / 2
    y = torch.arange(height, device=images.device)[:, None] + 0.5 - height / 2
    along_x, along_y, shift = matrices[..., None, None].unbind(2)
    source = along_x * x + along_y * y + shift  # (N, 2, H, W)
    columns = (source[:, 0] + (width / 2 - 0.5)).round().long()
    rows = (source[:, 1] + (height / 2 - 0.5)).round().long()
    outside = (columns < 0) | (columns >= width) | (rows < 0) | (rows >= height)
    shown = gather(images, rows.clamp_(0, height - 1), columns.clamp_(0, width - 1))
    return shown.masked_fill_(outside[:, None], 0)


def luma(images: Tensor) -> Tensor:
    """Grey levels (ITU-R BT.601), rounded down: (N, H, W) float32."""
    red, green, blue = images.float().unbind(1)
    return (red * 0.2989 + green * 0.587 + blue * 0.114).floor()


def autocontrast_levels(values: Tensor, levels: Tensor, images: Tensor) -> Tensor:
    """Each channel stretched from black to white; one flat colour stays."""
    low, high = images.amin((2, 3)).float()[:, :, None], images.amax((2, 3)).float()[:, :, None]
    flat = high == low
    return torch.where(flat, levels, (levels - low) / torch.where(flat, 1, (high - low) / 255)).clamp(0, 255)


def equalize_levels(values: Tensor, levels: Tensor, images: Tensor) -> Tensor:
    """Each channel's levels spread so that its histogram is even; one flat colour stays."""
    pixels = images.flatten(2).long()
    histogram = pixels.new_zeros(*pixels.shape[:2], 256).scatter_add_(2, pixels, torch.ones_like(pixels))
    # what Pillow does: a step is 1/255 of the pixels that are not of the brightest level present
    brightest = images.amax((2, 3)).long()[:, :, None]
    step = (images[0, 0].numel() - histogram.gather(2, brightest)) // 255
    below = histogram.cumsum(2) - histogram
    spread = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    return torch.where(step == 0, levels, spread.float())


# from each level of each channel to its new one: (N, 3, 256) from strengths (N, 1, 1), levels (256,) and the images
LEVELS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "Brightness": lambda values, levels, images: (levels * (1 + values)).clamp(0, 255),
    "Contrast": lambda values, levels, images: (
        levels * (1 + values) + luma(images).mean((1, 2))[:, None, None] * -values
    ).clamp(0, 255),
    "Posterize": lambda values, levels, images: (levels / 2 ** (8 - values)).floor() * 2 ** (8 - values),
    "Solarize": lambda values, levels, images: torch.where(levels >= values * 255, 255 - levels, levels),
    "Invert": lambda values, levels, images: 255 - levels,
    "AutoContrast": autocontrast_levels,
    "Equalize": equalize_levels,
}


def levels_by_operation(choice: Choice, shape: Sequence[int]) -> list[np.ndarray]:
    """Of each operation, in the order of `np.unique`, its images and their strengths: (M,) each."""
    each = [np.flatnonzero(choice.operations == name) for name in np.unique(choice.operations)]
    return [array for chosen in each for array in (chosen, choice.strengths[chosen].astype(np.float32))]


def map_levels(images: Tensor, choice: Choice, *by_operation: Tensor) -> Tensor:
    """Replace every level of each channel by another."""
    num_images, channels = images.shape[:2]
    levels = torch.arange(256.0, device=images.device)
    table = torch.empty(num_images, channels, 256, device=images.device)
    for name, index, values in zip(np.unique(choice.operations), by_operation[::2], by_operation[1::2], strict=True):
        rows = LEVELS[name](values[:, None, None], levels, images.index_select(0, index))
        table.index_copy_(0, index, rows.expand(len(index), channels, 256))
    offsets = torch.arange(num_images * channels, device=images.device).view(num_images, 1, 1, channels) * 256
    index = images.permute(0, 2, 3, 1) + offsets
    return table.to(torch.uint8).flatten().index_select(0, index.flatten()).view(index.shape).permute(0, 3, 1, 2)


def factors(choice: Choice, shape: Sequence[int]) -> list[np.ndarray]:
    """1 + strength of each image: (N, 1, 1, 1)."""
    return [1 + choice.strengths.astype(np.float32)[:, None, None, None]]


def saturate(images: Tensor, choice: Choice, factor: Tensor) -> Tensor:
    """Blend with the grey image: 1 + strength of the colours."""
    return (images * factor + luma(images)[:, None] * (1 - factor)).clamp(0, 255).to(torch.uint8)


def sharpen(images: Tensor, choice: Choice, factor: Tensor) -> Tensor:
    """Blend with the smoothed image: 1 + strength of the details. The outermost pixels stay."""
    sharp = images.float()
    kernel = torch.ones(3, 1, 3, 3, device=images.device) / 13
    kernel[:, :, 1, 1] = 5 / 13
    smooth = torch.conv2d(sharp, kernel, groups=3).round()
    inside = sharp[:, :, 1:-1, 1:-1]
    inside += (smooth - inside) * (1 - factor)
    return sharp.clamp_(0, 255).to(torch.uint8)
