"""What a network, or an ensemble, predicted for a labelled set: kept with a run, to be looked into and compared."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cifar_resnet.data.loaders import LabelledImages
from cifar_resnet.errors import refuse_if
from cifar_resnet.images import content_hash
from cifar_resnet.runs import replacing

FILE = "predictions.npz"


@dataclass
class Predictions:
    """log_probs: (N, num_classes) float32; labels: (N,) int64; both on the CPU, wherever they were.

    images_hash: of the images, in their order.
    indices: (N,) int64, ascending: which images of the set these are, counted from 0; num_images: how many that has.
        None for all of it.
    files: of each of these images the name of its file; None where they have none.
    conditions: how many times the same images come, one condition after the other.
    """

    log_probs: Tensor
    labels: Tensor
    images_hash: str
    indices: Tensor | None = None
    num_images: int | None = None
    files: list[str] | None = None
    conditions: int = 1

    def __post_init__(self) -> None:
        self.log_probs, self.labels = self.log_probs.float().cpu(), self.labels.cpu()
        if self.indices is None:
            self.indices, self.num_images = torch.arange(len(self.labels)), len(self.labels)

    @classmethod
    def of(
        cls,
        images: Tensor | LabelledImages,
        log_probs: Tensor,
        labels: Tensor,
        order: Tensor | None = None,
        files: Sequence[str] | None = None,
    ) -> "Predictions":
        """Of a set of images or a part of it, in the order of the set.

        images: (M, C, H, W) uint8 and labels: (M,), of the whole set. order: (N,) int64, which of the images each row
        of log_probs is about; None where they are all, in their order. files: the names of all of the set's.
        """
        if order is None:
            indices = torch.arange(len(labels))
        else:
            indices, rows = order.cpu().sort()
            log_probs = log_probs[rows.to(log_probs.device)]
        names = [files[index] for index in indices.tolist()] if files else None
        own: Any = images
        if not isinstance(images, Tensor):
            own = images.in_parts(indices)
        elif order is not None:  # else they may be more than memory holds, in their file
            own = images.cpu()[indices]
        return cls(log_probs, labels.cpu()[indices], content_hash(own), indices, len(labels), names)

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        with np.load(path, allow_pickle=False) as arrays:
            log_probs, labels = (torch.from_numpy(arrays[name]) for name in ("log_probs", "labels"))
            refuse_if(
                log_probs.ndim != 2 or labels.shape != log_probs.shape[:1] or not log_probs.numel(),
                f"it holds {tuple(log_probs.shape)} predictions for {tuple(labels.shape)} labels",
            )
            refuse_if(log_probs.isnan().any(), "it holds predictions that are no numbers")
            found = cls(log_probs, labels, str(arrays["images_hash"]))
            if "indices" in arrays:  # earlier versions left none
                found.indices, found.num_images = torch.from_numpy(arrays["indices"]), int(arrays["num_images"])
            if "conditions" in arrays:
                found.conditions = int(arrays["conditions"])
            if "files" in arrays:
                found.files = arrays["files"].tolist()
            refuse_if(
                found.indices.shape != labels.shape or found.num_images < len(labels),
                f"it holds the places of {tuple(found.indices.shape)} images for {tuple(labels.shape)} labels",
            )
            return found

    def save(self, path: Path) -> None:
        arrays: dict[str, Any] = {
            "log_probs": self.log_probs,
            "labels": self.labels,
            "images_hash": self.images_hash,
            "indices": self.indices,
            "num_images": self.num_images,
            "conditions": self.conditions,
        }
        if self.files:
            arrays["files"] = np.array(self.files)
        with replacing(path) as file:
            np.savez(file, **arrays)

    @property
    def share(self) -> str:
        """Such as "all 10,000", or "500 of 10,000"."""
        count = len(self.labels)
        return f"all {count:,}" if count == self.num_images else f"{count:,} of {self.num_images:,}"
