"""Images of another size than their own, for a part of a training."""

import itertools
from collections.abc import Sequence
from typing import Annotated

import torch.nn.functional as F
from annotated_types import Interval, Len
from torch import Tensor

from cifar_resnet.constraints import Count, ImageSize, check
from cifar_resnet.errors import refuse_if


def resized(images: Tensor, size: int) -> Tensor:
    """Bilinear, pixels taken for squares, not for points. images: (N, C, H, W); returns (N, C, size, size)."""
    if images.shape[2:] == (size, size):
        return images
    return F.interpolate(images, size=(size, size), mode="bilinear", align_corners=False)


class ProgressiveResize:
    """Smaller training images in the first epochs, whose steps cost less (Tan & Le 2021, EfficientNetV2, section 4).

    Images are augmented as they are, and resized after that. Validation and test are not touched.

    sizes: sides of the images in each phase but the last, in pixels; the last phase has images of their own size.
    until: where each of these phases ends, as a fraction of all epochs, rounded to whole ones; the last epoch has its
        images' own size, however few epochs there are.
    epochs: of the whole training.
    """

    def __init__(
        self,
        sizes: Annotated[Sequence[ImageSize], Len(1)] = (24, 28),
        until: Annotated[Sequence[Annotated[float, Interval(gt=0, lt=1)]], Len(1)] = (0.33, 0.67),
        epochs: Count = 1,
    ):
        check(ProgressiveResize, locals())
        refuse_if(
            len(sizes) != len(until),
            f"resize.until says where the phase of each of resize.sizes ends. Got {list(until)} for {list(sizes)}; "
            f"give as many",
        )
        refuse_if(
            any(later <= earlier for earlier, later in itertools.pairwise(until)),
            f"resize.until must rise: each phase ends after the one before. Got {list(until)}",
        )
        self.sizes, self.ends = list(sizes), [min(round(fraction * epochs), epochs - 1) for fraction in until]

    def __str__(self) -> str:
        """Such as "24 pixels up to epoch 3, 28 up to epoch 6"."""
        starts = [0, *self.ends]
        phases = [phase for phase in zip(self.sizes, self.ends, starts, strict=False) if phase[1] > phase[2]]
        return ", ".join(f"{size}{' pixels' * (not n)} up to epoch {end}" for n, (size, end, _) in enumerate(phases))

    def check_image_size(self, image_size: int) -> None:
        refuse_if(
            max(self.sizes) > image_size,
            f"resize.sizes must not be larger than the images. Got {max(self.sizes)} for {image_size} pixels; give "
            f"less",
        )

    def size_in(self, epoch: int) -> int | None:
        """The side of this epoch's images, in pixels; None for their own. epoch: counted from 0."""
        return next((size for size, end in zip(self.sizes, self.ends, strict=True) if epoch < end), None)
