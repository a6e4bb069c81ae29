"""Test-time augmentation: what a network makes of several pictures of one image."""

import math

import torch
from torch import Tensor, nn


def views(images: Tensor, tta: str) -> list[tuple[float, Tensor]]:
    """The pictures of each image that are asked about, and their weights, which sum to 1.

    images: (N, C, H, W). tta: "none"; "flip": also mirrored; "flip_shift": both again, shifted by a pixel up and left
    and by a pixel down and right, borders reflected, at half the weight (Jordan 2024, arXiv 2404.00498, section 3.5).
    """
    weighted = [(1.0, images)]
    if tta == "none":
        return weighted
    if tta == "flip_shift":
        padded = nn.functional.pad(images, (1, 1, 1, 1), mode="reflect")
        weighted = [(0.5, images), (0.25, padded[:, :, :-2, :-2]), (0.25, padded[:, :, 2:, 2:])]
    return [(weight / 2, view) for weight, image in weighted for view in (image, image.flip(3))]


def log_probabilities(network: nn.Module, images: Tensor, tta: str = "none") -> Tensor:
    """(N, num_classes) float32: the logarithm of the views' mean probability. images: as the network wants them."""
    weighted = [network(view).float().log_softmax(1) + math.log(weight) for weight, view in views(images, tta)]
    return torch.stack(weighted).logsumexp(0)
