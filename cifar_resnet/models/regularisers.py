"""Noise for the inside of residual networks. All of it is drawn in training only, and for each image by itself."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def drop_block(features: Tensor, probability: float | Tensor, size: int) -> Tensor:
    """Zero size x size squares of each feature map, and scale up what stays (Ghiasi et al. 2018, algorithm 1).

    features: (N, C, H, W), of any floating type. probability: the share of values to zero, expected where squares do
    not overlap. A map smaller than the square loses the whole of itself or nothing.
    """
    num_images, channels, height, width = features.shape
    tall, wide = min(size, height), min(size, width)
    corners = (num_images, channels, height - tall + 1, width - wide + 1)  # upper left ones: squares stay inside
    seed_probability = probability * (height * width) / (tall * wide) / (corners[2] * corners[3])
    seeds = (torch.rand(corners, device=features.device) < seed_probability).float()
    # in float32: a sum of ones in float16 would end at 65,504
    kept = 1 - F.max_pool2d(F.pad(seeds, (wide - 1, wide - 1, tall - 1, tall - 1)), (tall, wide), stride=1)
    return features * (kept * (kept.numel() / kept.sum().clamp(min=1))).to(features.dtype)


class DropBlock(nn.Module):
    """`drop_block` with a probability that rises linearly over the training, as in section 3 of the paper.

    progress: how much of the training is done, 0 to 1; the classifier keeps it up to date.
    """

    progress: Tensor

    def __init__(self, probability: float, size: int):
        super().__init__()
        self.probability, self.size = probability, size
        # a tensor, not a number: with that, every step would be compiled anew
        self.register_buffer("progress", torch.ones(()), persistent=False)

    def forward(self, features: Tensor) -> Tensor:
        return drop_block(features, self.probability * self.progress, self.size) if self.training else features

    def extra_repr(self) -> str:
        return f"probability={self.probability}, size={self.size}"


class ScaleApart(torch.autograd.Function):
    """Multiplies by one factor on the way forward and by another on the way back."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, forward_scale: Tensor, backward_scale: Tensor) -> Tensor:
        ctx.save_for_backward(backward_scale)
        return features * forward_scale

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (backward_scale,) = ctx.saved_tensors
        return gradient * backward_scale, None, None


class ShakeDrop(nn.Module):
    """Shake a residual branch, or leave it, image by image (Yamada et al. 2018, equation 6).

    With probability `survival` an image's branch stays; otherwise it is scaled by a number from -1 to 1 on the way
    forward and by another from 0 to 1 on the way back. In eval mode the branch is scaled by the expected factor.
    """

    def __init__(self, survival: float):
        super().__init__()
        self.survival = survival

    def forward(self, features: Tensor) -> Tensor:
        if not self.training:
            return features * self.survival
        draws = torch.rand(3, len(features), 1, 1, 1, device=features.device)
        stays = draws[0] < self.survival
        forward_scale = torch.where(stays, 1.0, draws[1] * 2 - 1).to(features.dtype)
        backward_scale = torch.where(stays, 1.0, draws[2]).to(features.dtype)
        return ScaleApart.apply(features, forward_scale, backward_scale)

    def extra_repr(self) -> str:
        return f"survival={self.survival}"


def chain(*modules: nn.Module | None) -> nn.Module:
    """Those that are there, one after the other."""
    present = [module for module in modules if module is not None]
    return present[0] if len(present) == 1 else nn.Sequential(*present) if present else nn.Identity()
