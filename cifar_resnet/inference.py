"""What trained networks say about images, outside of any training."""

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from cifar_resnet import checkpoints, limits
from cifar_resnet.data.augment import normalise
from cifar_resnet.memory import keep_freed_memory
from cifar_resnet.models import Classifier
from cifar_resnet.models.tta import log_probabilities


def mean_probability(each: Tensor) -> Tensor:
    """An ensemble's log-probabilities from those of its members. each: (members, N, num_classes)."""
    return each.logsumexp(0) - math.log(len(each))


class Ensemble:
    """One or several trained networks on a device, and what they say about images as they come from a file.

    paths: .ckpt files or run folders. tta: see `models.tta`; None for each network's own.
    accelerator, precision: as Lightning names them.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        tta: str | None = None,
        accelerator: str = "auto",
        precision: str = "32-true",
    ):
        if tta is not None:
            limits.require("", tta=tta)
        keep_freed_memory()
        self.tta = tta
        try:
            self.fabric = Fabric(accelerator=accelerator, devices=1, precision=precision)
        except (RuntimeError, ImportError) as error:  # where there is none
            raise ValueError(f"no such accelerator here. Got {accelerator}; give auto, or cpu ({error})") from error
        self.device = self.fabric.device
        self.networks = [checkpoints.load(path) for path in paths]
        self.classes = self.networks[0].data_state["classes"]
        self.image_size = self.networks[0].data_state["image_size"]
        for path, network in zip(paths, self.networks, strict=True):
            for key, of_the_first in {"classes": self.classes, "image_size": self.image_size}.items():
                if network.data_state[key] != of_the_first:
                    raise ValueError(
                        f"an ensemble's networks share classes and image size. Got {path} with {key} "
                        f"{network.data_state[key]}, and {paths[0]} with {of_the_first}"
                    )
            network.to(self.device, memory_format=torch.channels_last)

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Each member's log-probabilities: (members, N, num_classes) float32, on the CPU.

        images: (N, 3, image_size, image_size) uint8.
        """
        images = images.to(self.device).contiguous(memory_format=torch.channels_last)
        with self.fabric.autocast():
            each = [
                log_probabilities(network, normalise(images, *network.constants(self.device)), self.tta or network.tta)
                for network in self.networks
            ]
        return torch.stack(each).cpu()

    def about(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """The same for any number of images, a batch at a time."""
        return torch.cat([self(batch) for batch in images.split(batch_size)], dim=1)


class Portable(nn.Module):
    """The layers with the normalisation in front: images of (N, 3, H, W), float32 in [0, 1], to logits."""

    def __init__(self, network: Classifier):
        super().__init__()
        mean, std = network.constants(torch.device("cpu"))
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])
        self.network = network
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)
