"""A first layer that need not be learned: it decorrelates what small patches of the training images show."""

from typing import Any

import torch
from torch import Tensor, nn


class Whitening(nn.Conv2d):
    """A convolution whose filters are the principal components of patches, scaled to equal variance, and their
    negatives, so that a ReLU behind it loses nothing (Page 2019, "How to train your ResNet" 8; Jordan 2024, section
    3.2).

    `init_whitening` fits the filters, which then stay; the bias is learned.
    out_channels is 2 * in_channels * kernel_size².

    is_unfitted: whether the filters are still random, neither fitted nor loaded.
    """

    is_unfitted = True

    def __init__(self, in_channels: int, kernel_size: int, padding: int = 0, eps: float = 5e-4):
        super().__init__(in_channels, 2 * in_channels * kernel_size**2, kernel_size, padding=padding)
        self.eps = eps
        self.weight.requires_grad_(False)
        nn.init.zeros_(self.bias)

    @torch.no_grad()
    def init_whitening(self, images: Tensor) -> None:
        """images: (N, C, H, W), as they come in; a few thousand suffice."""
        half, count = self.out_channels // 2, 0
        height, width = self.kernel_size
        second_moments = torch.zeros(half, half, dtype=torch.float64)
        for some in images.split(250):  # all patches at once would take a gigabyte
            # not nn.functional.unfold: its threads wait for each other at every image, on a busy CPU for over a minute
            windows = some.unfold(2, height, 1).unfold(3, width, 1)  # (N, C, rows, columns, height, width)
            patches = windows.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(0, 2).double()
            second_moments += (patches.T @ patches).cpu()
            count += len(patches)
        variances, components = torch.linalg.eigh(second_moments / count)
        filters = (components / (variances + self.eps).sqrt()).T.flip(0)  # the strongest first
        self.weight.copy_(torch.cat([filters, -filters]).view_as(self.weight))
        self.is_unfitted = False

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        super()._load_from_state_dict(state_dict, prefix, *args)
        self.is_unfitted &= f"{prefix}weight" not in state_dict
