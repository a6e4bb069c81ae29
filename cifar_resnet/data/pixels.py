"""Pixels of a batch by their places: one index over all of them, so that moving any is a single gather."""

import functools

import torch
from torch import Tensor


@functools.lru_cache(maxsize=16)
def numbers(count: int, step: int, device: torch.device) -> Tensor:
    """0, step, 2 * step, …: (count,) int64."""
    return torch.arange(0, count * step, step, device=device)


def pixel_numbers(images: Tensor, rows: Tensor, columns: Tensor, sources: Tensor | None = None) -> Tensor:
    """Which of all pixels, (N * H * W, C), is the one at (row, column) of image number `source`; None: of one's own.

    images: (N, C, H, W); the others int64, broadcast to (M, height, width), the shape of the result.
    """
    num_images, _, height, width = images.shape
    if sources is None:
        starts = numbers(num_images, height * width, images.device)[:, None, None]
    else:
        starts = sources * (height * width)
    return starts + rows * width + columns


def gather(images: Tensor, rows: Tensor, columns: Tensor, sources: Tensor | None = None) -> Tensor:
    """The pixels at these places: (M, C, height, width), channels_last. Arguments as in `pixel_numbers`."""
    index, channels = pixel_numbers(images, rows, columns, sources), images.shape[1]
    pixels = images.permute(0, 2, 3, 1).reshape(-1, channels).index_select(0, index.flatten())
    return pixels.view(*index.shape, channels).permute(0, 3, 1, 2)
