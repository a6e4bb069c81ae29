"""Training on the part of each batch that is worth it: a small network goes first, and finds the hard images."""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor

from cifar_resnet.constraints import FractionAboveZero, check
from cifar_resnet.models.summary import num_macs, num_parameters


class Selection:
    """Of each batch the images with the highest loss by a proxy, which learns from all of them at the same time.

    As in the 96% form of Jordan's speed records; that small networks can choose for large ones is Coleman et al. 2020
    (arXiv 1906.11829). Not a module, so that no network counts, exports or averages its proxy; checkpoints keep it
    beside the network, to go on with.

    proxy: a classifier with an optimizer; its learning rate follows the same schedule as that of the network.
    share: of each batch, which the network is trained on, rounded to whole images, at least one. Its metrics of the
        training are of these alone.
    """

    def __init__(self, proxy: LightningModule, share: FractionAboveZero = 0.5):
        check(Selection, locals())
        self.proxy: Any = proxy
        self.share = share
        self.restored: dict[str, Any] = {}

    def __str__(self) -> str:
        """Such as "50% of each batch, selected by a SpeedNet of 145,104 parameters"."""
        network = f"{type(self.proxy).__name__} of {num_parameters(self.proxy):,} parameters"
        return f"{self.share:.0%} of each batch, selected by a {network}"

    def begin(self, model: LightningModule, total_steps: int) -> None:
        """On the network's device, before its first step, or before the first after a restart."""
        self.model, self.device_type = model, model.device.type
        self.proxy.monitor = model.monitor
        self.proxy.to(model.device, memory_format=torch.channels_last).train()
        self.optimizer, self.scheduler = self.proxy.build_optimizer(total_steps, model.trainer.max_epochs)
        for name, state in self.restored.items():
            getattr(self, name).load_state_dict(state)
        self.restored = {}

    def __call__(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """The hardest images of a batch and their labels, in the order that they had; the proxy takes its step.

        images: (N, C, H, W), normalised. labels: (N,), or probabilities, (N, num_classes).
        """
        in_float16 = torch.is_autocast_enabled(self.device_type) and (
            torch.get_autocast_dtype(self.device_type) == torch.float16
        )
        # in float16 its gradients would need a scale of their own
        with torch.autocast(self.device_type, enabled=False) if in_float16 else contextlib.nullcontext():
            logits = self.proxy(images)
            loss = self.proxy.loss_of(images, logits, labels)
        self.loss = loss.detach()
        with torch.autocast(self.device_type, enabled=False):
            loss.backward()
            self.exchange_gradients()
            self.optimizer.step()  # SAM's is that of its base
            self.optimizer.zero_grad()
        losses = F.cross_entropy(logits.detach().float(), labels, reduction="none")
        count = max(1, round(self.share * len(losses)))
        hardest = losses.topk(count, sorted=False).indices.sort().values
        return images[hardest], labels[hardest]

    def exchange_gradients(self) -> None:
        """Of several ranks, so that all have one proxy; each chooses of its own images."""
        if (count := self.model.trainer.world_size) > 1:
            for parameter in self.proxy.parameters():
                if parameter.grad is not None:
                    torch.distributed.all_reduce(parameter.grad)
                    parameter.grad /= count

    def training_macs(self, network_macs: float, passes: int, image_shape: tuple[int, int, int]) -> int:
        """`Classifier.training_macs` of network and proxy. network_macs: of the network, for each image of its own."""
        # a record multiplies it all with the network's passes, of which the proxy takes one
        return round(self.share * network_macs + 3 * num_macs(self.proxy, image_shape) / passes)

    def state_dict(self) -> dict[str, Any]:
        parts = {"proxy": self.proxy, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """What `begin` goes on from."""
        self.restored = state
