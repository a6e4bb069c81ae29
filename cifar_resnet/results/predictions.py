"""What a network, or an ensemble, predicted for a labelled set: kept with a run, to be looked into and compared."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cifar_resnet.errors import refuse_if
from cifar_resnet.images import content_hash
from cifar_resnet.runs import replacing

FILE = "predictions.npz"


@dataclass
class Predictions:
    """log_probs: (N, num_classes) float32; labels: (N,) int64; both on the CPU, wherever they were.

    images_hash: of the images, in their order.
    """

    log_probs: Tensor
    labels: Tensor
    images_hash: str

    def __post_init__(self) -> None:
        self.log_probs, self.labels = self.log_probs.float().cpu(), self.labels.cpu()

    @classmethod
    def of(cls, images: Tensor, log_probs: Tensor, labels: Tensor) -> "Predictions":
        """images: (N, C, H, W) uint8."""
        return cls(log_probs, labels, content_hash(images))

    @classmethod
    def load(cls, path: Path) -> "Predictions":
        with np.load(path, allow_pickle=False) as arrays:
            log_probs, labels = (torch.from_numpy(arrays[name]) for name in ("log_probs", "labels"))
            refuse_if(
                log_probs.ndim != 2 or labels.shape != log_probs.shape[:1] or not log_probs.numel(),
                f"it holds {tuple(log_probs.shape)} predictions for {tuple(labels.shape)} labels",
            )
            refuse_if(log_probs.isnan().any(), "it holds predictions that are no numbers")
            return cls(log_probs, labels, str(arrays["images_hash"]))

    def save(self, path: Path) -> None:
        with replacing(path) as file:
            np.savez(file, log_probs=self.log_probs, labels=self.labels, images_hash=self.images_hash)
