"""Mixup, CutMix and RICAP: training images made of several, each with labels in proportion.

Who is mixed with whom, and how much, is drawn for each image by itself.
"""

from typing import Literal, NamedTuple

import torch
from torch import Generator, Tensor

from cifar_resnet.constraints import Positive, Probability, check
from cifar_resnet.data.pixels import gather


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
    return gather(images, source_rows, source_columns, sources=of_quarter(partners))


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

    def __call__(self, images: Tensor, generator: Generator) -> tuple[Tensor, MixPlan]:
        """images: (N, C, H, W), normalised, channels_last; returns the mixed ones and what they are made of.

        generator: on the images' device.
        """
        num_images, _, height, width = images.shape
        device = images.device
        own = torch.arange(num_images, device=device)
        others = torch.rand(3 if self.kind == "ricap" else 1, num_images, generator=generator, device=device).argsort(1)
        shares = beta(self.alpha, (2, num_images), generator)
        if self.probability < 1:
            kept = torch.rand(num_images, generator=generator, device=device) >= self.probability
            others, shares = torch.where(kept, own, others), torch.where(kept, 1.0, shares)
        if self.kind == "mixup":
            mixed, weights = mixup(images, others[0], shares[0]), torch.stack([shares[0], 1 - shares[0]])
        elif self.kind == "cutmix":
            box = draw_box(shares[0], height, width, generator)
            area = (box[1] - box[0]) * (box[3] - box[2]) / (height * width)
            mixed, weights = cutmix(images, others[0], box), torch.stack([1 - area, area])
        else:
            top, left = (shares[0] * height).round().long(), (shares[1] * width).round().long()
            heights = torch.stack([top, top, height - top, height - top])
            widths = torch.stack([left, width - left, left, width - left])
            free = torch.stack([height - heights, width - widths]) + 1
            offsets = (torch.rand(free.shape, generator=generator, device=device) * free).long()
            weights = heights * widths / (height * width)
            others = torch.cat([own[None], others])
            return ricap(images, others, torch.stack([top, left]), offsets), MixPlan(others, weights)
        return mixed, MixPlan(torch.cat([own[None], others]), weights)


def beta(alpha: float, shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Drawn from Beta(alpha, alpha), as float32."""
    device = generator.device
    if alpha == 1:
        return torch.rand(shape, generator=generator, device=device)
    # in float64: a small alpha's numbers would come out as 0, and two of them as 0 / 0
    concentrations = torch.full((2, *shape), alpha, dtype=torch.float64, device=device)
    one, other = torch._standard_gamma(concentrations, generator)
    return (one / (one + other)).float()


def draw_box(shares: Tensor, height: int, width: int, generator: Generator) -> Tensor:
    """A box of 1 - share of the area, around a random pixel, cut at the border: (4, N) (CutMix, algorithm A1)."""
    bounds = []
    for length in (height, width):
        reach = (length * (1 - shares).sqrt()).long() // 2
        centre = torch.randint(length, shares.shape, generator=generator, device=shares.device)
        bounds += [(centre - reach).clamp_(min=0), (centre + reach).clamp_(max=length)]
    return torch.stack(bounds)
