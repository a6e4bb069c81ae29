"""Mixup, CutMix and RICAP: training images made of several, each with labels in proportion.

Who is mixed with whom, and how much, is drawn for each image by itself.
"""

from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from cifar_resnet.constraints import Positive, Probability, check
from cifar_resnet.data.policies import gather, to_device


class MixPlan(NamedTuple):
    """What each image is made of: of K images of the batch, numbered by `partners`, with `weights` that sum to 1."""

    partners: Tensor  # (K, N) int64
    weights: Tensor  # (K, N) float32

    def probabilities(self, labels: Tensor, num_classes: int) -> Tensor:
        """Labels (N,) as the weights of their classes: (N, num_classes)."""
        return (torch.nn.functional.one_hot(labels, num_classes)[self.partners] * self.weights[:, :, None]).sum(0)


def mixup(images: Tensor, partners: Tensor, weights: Tensor) -> Tensor:
    """weights * image + (1 - weights) * partner (Zhang et al. 2018, arXiv 1710.09412).

    images: (N, C, H, W), normalised; partners: (N,) int64; weights: (N,).
    """
    own = weights[:, None, None, None]
    return images * own + images.index_select(0, partners) * (1 - own)


def cutmix(images: Tensor, partners: Tensor, box: Tensor) -> Tensor:
    """The partner's pixels inside a box (Yun et al. 2019, arXiv 1905.04899).

    images: (N, C, H, W); partners: (N,) int64; box: (4, N): top, bottom, left, right, the second of each excluded.
    """
    top, bottom, left, right = box[:, :, None, None, None]
    rows = torch.arange(images.shape[2], device=images.device)[:, None]
    columns = torch.arange(images.shape[3], device=images.device)
    inside = (top <= rows) & (rows < bottom) & (left <= columns) & (columns < right)
    mixed = torch.where(inside, images.index_select(0, partners), images)
    return mixed.contiguous(memory_format=torch.channels_last)


def ricap(images: Tensor, partners: Tensor, corner: Tensor, offsets: Tensor) -> Tensor:
    """Crops of four images, side by side around a corner (Takahashi et al. 2018, arXiv 1811.09030).

    images: (N, C, H, W), channels_last; partners: (4, N) int64: upper left, upper right, lower left, lower right;
    corner: (2, N): the first row of the lower and the first column of the right crops; offsets: (2, 4, N): the row and
    column where each crop begins in its image.
    """
    num_images, _, height, width = images.shape
    rows = torch.arange(height, device=images.device)[:, None].expand(num_images, height, width)
    columns = torch.arange(width, device=images.device).expand(num_images, height, width)
    lower, right = rows >= corner[0, :, None, None], columns >= corner[1, :, None, None]
    quarter = lower * 2 + right * 1

    def of_quarter(values: Tensor) -> Tensor:  # (4, N), one for each crop, to (N, H, W), one for each pixel
        return (
            values.t()[:, :, None].expand(-1, -1, width * height).gather(1, quarter.flatten(1)[:, None]).view_as(rows)
        )

    source_rows = of_quarter(offsets[0]) + rows - lower * corner[0, :, None, None]
    source_columns = of_quarter(offsets[1]) + columns - right * corner[1, :, None, None]
    return gather(images, of_quarter(partners), source_rows, source_columns)


class Mixing:
    """Draws the numbers for one of the three, and mixes.

    kind: "mixup", "cutmix" or "ricap".
    alpha: of the Beta(alpha, alpha) that weights are drawn from; None for the paper's: 1, for RICAP 0.3.
    probability: of an image to be mixed.
    """

    def __init__(
        self, kind: Literal["mixup", "cutmix", "ricap"], alpha: Positive | None = None, probability: Probability = 1.0
    ):
        check(Mixing, locals())
        self.kind, self.probability = kind, probability
        self.alpha = alpha if alpha is not None else {"ricap": 0.3}.get(kind, 1.0)

    def __call__(self, images: Tensor, random: np.random.Generator) -> tuple[Tensor, MixPlan]:
        """images: (N, C, H, W), normalised, channels_last; returns the mixed ones and what they are made of."""
        num_images, _, height, width = images.shape
        device = images.device
        own, kept = np.arange(num_images), random.random(num_images) >= self.probability
        draws = random.beta(self.alpha, self.alpha, (2, num_images))
        others = [np.where(kept, own, random.permutation(num_images)) for _ in range(3)]
        if self.kind == "mixup":
            partners, weights = np.stack([own, others[0]]), np.stack([draws[0], 1 - draws[0]])
            mixed = mixup(images, to_device(others[0], device), to_device(draws[0].astype(np.float32), device))
        elif self.kind == "cutmix":
            box = self.draw_box(draws[0], height, width, random)
            area = (box[1] - box[0]) * (box[3] - box[2]) / (height * width)
            partners, weights = np.stack([own, others[0]]), np.stack([1 - area, area])
            mixed = cutmix(images, to_device(others[0], device), to_device(box, device))
        else:
            corner = np.round(draws * [[height], [width]]).astype(np.int64)
            corner[:, kept] = [[height], [width]]  # one crop, of the whole
            heights = np.stack([corner[0], corner[0], height - corner[0], height - corner[0]])
            widths = np.stack([corner[1], width - corner[1], corner[1], width - corner[1]])
            offsets = random.integers(0, np.stack([height - heights, width - widths]) + 1)
            partners, weights = np.stack([own, *others]), heights * widths / (height * width)
            mixed = ricap(images, *(to_device(values, device) for values in (partners, corner, offsets)))
        return mixed, MixPlan(to_device(partners, device), to_device(weights.astype(np.float32), device))

    @staticmethod
    def draw_box(share: np.ndarray, height: int, width: int, random: np.random.Generator) -> np.ndarray:
        """A box of 1 - share of the area, around a random pixel, cut at the border: (4, N) (CutMix, algorithm A1)."""
        bounds = []
        for length in (height, width):
            reach = (length * np.sqrt(1 - share)).astype(np.int64) // 2
            centre = random.integers(length, size=len(share))
            bounds += [np.clip(centre - reach, 0, length), np.clip(centre + reach, 0, length)]
        return np.stack(bounds)
