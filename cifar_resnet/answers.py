"""What a network, or an ensemble, said about a labelled set: kept with a run, to be looked into and compared."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

FILE = "predictions.npz"


@dataclass
class Answers:
    """log_probs: (N, num_classes) float32; labels: (N,) int64; images_hash: of the images, in their order."""

    log_probs: Tensor
    labels: Tensor
    images_hash: str

    @classmethod
    def about(cls, images: Tensor, log_probs: Tensor, labels: Tensor) -> "Answers":
        """images: (N, C, H, W) uint8."""
        pixels = images.cpu().permute(0, 2, 3, 1).contiguous().numpy()
        return cls(log_probs.float().cpu(), labels.cpu(), hashlib.sha256(pixels).hexdigest()[:16])

    @classmethod
    def load(cls, path: Path) -> "Answers":
        with np.load(path, allow_pickle=False) as arrays:
            log_probs, labels = (torch.from_numpy(arrays[name]) for name in ("log_probs", "labels"))
            if log_probs.ndim != 2 or labels.shape != log_probs.shape[:1] or not log_probs.numel():
                raise ValueError(f"it holds {tuple(log_probs.shape)} answers for {tuple(labels.shape)} labels")
            if log_probs.isnan().any():
                raise ValueError("it holds answers that are no numbers")
            return cls(log_probs, labels, str(arrays["images_hash"]))

    def save(self, path: Path) -> None:
        part = path.with_name(f"{path.name}.part")
        with part.open("wb") as file:
            np.savez(file, log_probs=self.log_probs, labels=self.labels, images_hash=self.images_hash)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
