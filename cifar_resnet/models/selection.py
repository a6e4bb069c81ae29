"""Training on the part of each batch that is worth it: a small network goes first, and finds the hard images."""

import contextlib
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_

from cifar_resnet.constraints import FractionAboveZero, check
from cifar_resnet.models.summary import num_macs, num_parameters


class Selection:
    """Of each batch the images that a proxy finds hardest; it learns from all of them at the same time.

    After the 96% form of Jordan's speed records, whose proxy is trained beforehand, on the hard images alone; that
    small networks can choose for large ones is Coleman et al. 2020 (arXiv 1906.11829). Hard is what the proxy's
    prediction is far from: by cross-entropy, less the labels' own entropy, which only mixed images have, weighted as
    the proxy weighs classes.

    Not a module, so that no network counts, exports or averages its proxy; checkpoints keep it beside the network, to
    go on with.

    proxy: a classifier with an optimizer. It takes a step for each batch, with its gradients clipped as those of the
        network are, and its learning rate follows the network's schedule; in 16-mixed it stays in float32.
    share: of each batch, which the network is trained on, rounded to whole images, at least one. Its metrics of the
        training are of these alone.
    """

    def __init__(self, proxy: LightningModule, share: FractionAboveZero = 0.5):
        check(Selection, locals())
        self.proxy: Any = proxy
        self.share = share
        self.optimizer: Any = None
        self.scheduler: Any = None
        self.restored: dict[str, Any] = {}

    def describe(self, batch_size: int) -> str:
        """Such as "512 of each 1,024 images, selected by a SpeedNet of 146,136 parameters"."""
        network = f"{type(self.proxy).__name__} of {num_parameters(self.proxy):,} parameters"
        return f"{self.count(batch_size):,} of each {batch_size:,} images, selected by a {network}"

    def count(self, batch_size: int) -> int:
        """How many images of such a batch the network is trained on."""
        return max(1, round(self.share * batch_size))

    def begin(self, model: LightningModule, total_steps: float, epochs: float) -> None:
        """On the network's device, before its first step, or before the first after a restart; both lengths are the
        whole training's."""
        self.trainer, self.device_type = model.trainer, model.device.type
        self.proxy.to(model.device, memory_format=torch.channels_last).train()
        self.proxy.hold_frozen_parts()
        if self.trainer.world_size > 1:  # as DDP does with the network
            for tensor in (*self.proxy.parameters(), *self.proxy.buffers()):
                torch.distributed.broadcast(tensor.data, src=0)
        self.optimizer, self.scheduler = self.proxy.build_optimizer(total_steps, epochs)
        for name, part in self.restored.items():
            getattr(self, name).load_state_dict(part)
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
            self.step(loss)
        hardest = self.distances(logits.detach().float(), labels).topk(self.count(len(images)), sorted=False).indices
        hardest = hardest.sort().values
        return images[hardest], labels[hardest]

    def step(self, loss: Tensor) -> None:
        loss.backward()
        parameters = [parameter for parameter in self.proxy.parameters() if parameter.requires_grad]
        if (ranks := self.trainer.world_size) > 1:  # so that all have one proxy; each selects of its own images
            gradients = [torch.zeros_like(each) if each.grad is None else each.grad for each in parameters]
            whole = torch.cat([gradient.flatten() for gradient in gradients])
            torch.distributed.all_reduce(whole)
            for parameter, mean in zip(parameters, (whole / ranks).split([g.numel() for g in gradients]), strict=True):
                parameter.grad = mean.view_as(parameter).contiguous(memory_format=format_of(parameter))
        if limit := self.trainer.gradient_clip_val:
            by_value = self.trainer.gradient_clip_algorithm == "value"
            (clip_grad_value_ if by_value else clip_grad_norm_)(parameters, limit)
        self.optimizer.step()  # SAM's is that of its base
        self.optimizer.zero_grad()

    def distances(self, logits: Tensor, labels: Tensor) -> Tensor:
        """How far each prediction is from its labels: (N,)."""
        weights = self.proxy.loss_weights
        losses = F.cross_entropy(logits, labels, weights, reduction="none")
        if labels.ndim == 1:
            return losses
        own = torch.special.entr(labels.float())
        return losses - (own if weights is None else own * weights).sum(1)

    def state_dict(self) -> dict[str, Any]:
        parts = {"proxy": self.proxy, "optimizer": self.optimizer, "scheduler": self.scheduler}
        return {name: part.state_dict() for name, part in parts.items() if part is not None}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there when it begins."""
        self.restored = state

    def macs(self, image_shape: tuple[int, int, int]) -> int:
        """Multiply-adds that the proxy takes for an image of shape (C, H, W), the backward pass taken for two."""
        return 3 * num_macs(self.proxy, image_shape)


def format_of(tensor: Tensor) -> torch.memory_format:
    is_last = tensor.ndim == 4 and tensor.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format
