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


def log_probabilities(
    network: nn.Module, images: Tensor, tta: str = "none", below: float = 1.0, members: int = 1
) -> Tensor:
    """(N, num_classes) float32: the logarithm of the views' mean probability. images: as the network wants them.

    below: an image whose likeliest class has at least this probability in the image itself is asked about no further.
    members: so many networks in one, each with its own part of the images, which are the same in all.
    """
    found = network(images).float().log_softmax(1)
    if tta == "none":
        return found
    if below >= 1:
        return with_other_views(network, images, found, tta)
    is_unsure = found.amax(1) < math.log(below)
    asked = is_unsure.view(members, -1).any(0).repeat(members).nonzero().squeeze(1)
    if len(asked):
        first, some = found[asked], images[asked].contiguous(memory_format=torch.channels_last)
        found[asked] = torch.where(is_unsure[asked, None], with_other_views(network, some, first, tta), first)
    return found


def with_other_views(network: nn.Module, images: Tensor, first: Tensor, tta: str) -> Tensor:
    """The logarithm of all views' mean probability. first: log-probabilities of the images themselves."""
    (weight, _), *others = views(images, tta)
    weighted = [network(view).float().log_softmax(1) + math.log(share) for share, view in others]
    return torch.stack([first + math.log(weight), *weighted]).logsumexp(0)
