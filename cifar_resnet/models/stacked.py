"""Several networks of one architecture, trained at once as one module."""

import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch.core.hooks import ModelHooks
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric
from torchvision.ops import StochasticDepth

from cifar_resnet.errors import UsageError, refuse_if
from cifar_resnet.models.classifier import Classifier
from cifar_resnet.models.regularisers import ShakeDrop
from cifar_resnet.models.tta import log_probabilities
from cifar_resnet.optim import SAM

# what a network of its own may do otherwise, and this would do for it
OF_ONE = (
    "training_step", "loss", "whole_loss", "loss_of", "backward", "evaluation_step", "validation_step", "test_step",
    "parameter_groups", "new_optimizer", "build_optimizer", "configure_optimizers", "optimizer_step",
    "optimizer_zero_grad", "lr_scheduler_step", "configure_gradient_clipping", "configure_callbacks", "setup",
    *(name for name in vars(ModelHooks) if name.startswith("on_")),
)  # fmt: skip
SPEED = "train/images_per_second"  # of all members, as `callbacks.Throughput` logs it


class LayersOfMany(torch.overrides.TorchFunctionMode):
    """Convolutions in autocast's lower precision, norm layers in float32 and by torch's own kernels.

    torch.vmap takes convolutions apart before autocast would see them, its norm layers know one dtype at a time, and
    on the way to cuDNN's they ask for a memory format that it cannot tell.
    """

    def __torch_function__(
        self, func: Callable, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and torch.is_autocast_enabled(device := args[0].device.type):
            lower = torch.get_autocast_dtype(device)
            args = [arg.to(lower) if isinstance(arg, Tensor) else arg for arg in args]
        elif func is F.batch_norm:
            with torch.backends.cudnn.flags(enabled=False):
                return func(args[0].float(), *args[1:], **kwargs)
        return func(*args, **kwargs)


class StackedEnsemble(Classifier):
    """Stacks its members' weights and runs each layer for all of them at once; every member learns as if it were alone,
    but that dropout and its like draw other masks.

    A batch holds the members' batches, one behind the other, and so do the logits.

    members: alike in everything but their weights. What the training needs is taken from the first of them.
    """

    no_hyperparameters = (*Classifier.no_hyperparameters, "members")

    def __init__(self, members: Sequence[Classifier]):
        first = members[0]
        super().__init__(
            num_classes=first.hparams["num_classes"],
            label_smoothing=first.label_smoothing,
            class_weights=first.class_weights,
            decay_norm_and_bias=first.decay_norm_and_bias,
            bias_lr_factor=first.bias_lr_factor,
            freeze=first.freeze_parts,
            lr_factors=first.lr_factors,
            tta=first.tta,
            tta_below=first.tta_below,
            optimizer=first.optimizer,
            scheduler=first.scheduler,
            distillation=first.distillation,
        )
        self.members: Sequence[Classifier] = nn.ModuleList(members)  # type: ignore[assignment]  # which is one in use
        self.loss_weights = first.loss_weights
        self.seed, self.data_state, self.is_prepared = first.seed, first.data_state, first.is_prepared

    def is_within(self, name: str, part: str) -> bool:
        """Of any member."""
        return super().is_within(re.sub(r"^members[.][0-9]+[.]", "", name), part)

    def check_members(self) -> None:
        """ValueError for what networks side by side cannot have."""
        own = [name for name in OF_ONE if getattr(type(self.members[0]), name) is not getattr(Classifier, name)]
        if own:
            raise UsageError(
                f"networks side by side are trained as every Classifier is. Got a {own[0]} of "
                f"{type(self.members[0]).__name__}'s own; give ensemble.size=1, or train one after the other: -m "
                f'"seed=range(0,…)"'
            )
        refuse_if(
            isinstance(self.build_optimizer(total_steps=1)[0], SAM),
            "SAM looks for one worst point, which networks side by side would share. Got ensemble.size="
            f'{len(self.members)}; give another optimizer, or train one after the other: -m "seed=range(0,…)"',
        )
        refuse_if(
            self.schedule and self.schedule.goes_by_metric,
            "ReduceLROnPlateau would go by the mean of networks side by side, which share a schedule. Got "
            f"ensemble.size={len(self.members)}; give another scheduler, or ensemble.size=1",
        )
        skips = next((module for module in self.modules() if isinstance(module, (ShakeDrop, StochasticDepth))), None)
        refuse_if(
            skips,
            f"networks side by side cannot skip blocks each by its own chance. Got {type(skips).__name__}; leave it "
            f"out, or give ensemble.size=1",
        )

    def stacked(self, tensors: Sequence[dict[str, Tensor]]) -> dict[str, Tensor]:
        return {name: torch.stack([own[name] for own in tensors]) for name in tensors[0]}

    def forward(self, images: Tensor) -> Tensor:
        """Logits (members * N, num_classes) from images (members * N, C, H, W)."""
        buffers = [dict(member.named_buffers()) for member in self.members]
        parameters = self.stacked([dict(member.named_parameters()) for member in self.members])
        moved = self.stacked(buffers)

        def logits_of(parameters: dict[str, Tensor], buffers: dict[str, Tensor], images: Tensor) -> Tensor:
            return torch.func.functional_call(self.members[0], (parameters, buffers), (images,))

        each = images.unflatten(0, (len(self.members), -1))
        with LayersOfMany():
            logits = torch.vmap(logits_of, randomness="different")(parameters, moved, each)
        if self.training:
            with torch.no_grad():
                for name, tensor in moved.items():
                    torch._foreach_copy_([own[name] for own in buffers], list(tensor.unbind()))
        return logits.flatten(0, 1)

    def shares(self, *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
        """Each member's own part of these."""
        return zip(*(each.chunk(len(self.members)) for each in tensors), strict=True)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        self.losses = super().training_step(batch, batch_idx)
        return self.losses.sum()  # whose gradient is to each member that of its own loss

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What each member minimises, (members,), and the logits."""
        logits = self(images)
        return torch.stack([self.whole_loss(*own) for own in self.shares(images, logits, labels)]), logits

    def evaluation_step(self, split: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        count = len(self.members)
        images, labels = batch[0].repeat(count, 1, 1, 1), batch[1].repeat(count)
        log_probs = log_probabilities(self, images, self.tta, self.tta_below, count)
        losses = torch.stack([F.nll_loss(scores, own) for scores, own in self.shares(log_probs, labels)])
        self.update_metrics(split, losses, log_probs, labels)
        return log_probs

    def update_metrics(self, split: str, losses: Tensor, logits: Tensor, labels: Tensor) -> None:
        """The members' mean, and each member's own. losses: (members,)."""
        super().update_metrics(split, losses.mean(), logits, labels)
        for member, loss, own in zip(self.members, losses, self.shares(logits, labels), strict=True):
            member.update_metrics(split, loss, *own)

    def metrics(self, split: str) -> dict[str, Metric]:
        """The members' mean, and each member's own under its number."""
        found = super().metrics(split)
        for number, member in enumerate(self.members):
            found |= {f"{name}_{number}": metric for name, metric in member.metrics(split).items()}
        return found

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Each member by the norm of its own gradients."""
        if not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        for member in self.members:
            nn.utils.clip_grad_norm_(member.parameters(), gradient_clip_val)

    def diverged(self) -> list[int]:
        """The seeds of those whose latest loss is not finite."""
        finite = self.losses.isfinite().tolist()
        return [member.config["seed"] for member, is_finite in zip(self.members, finite, strict=True) if not is_finite]

    def member_metrics(self, metrics: dict[str, float], number: int) -> dict[str, float]:
        """Of this module's metrics those that one member would have had alone."""
        suffixes = [f"_{other}" for other in range(len(self.members))]
        owned = {name for name in metrics if all(f"{name}{suffix}" in metrics for suffix in suffixes)}
        each = {f"{name}{suffix}" for name in owned for suffix in suffixes}
        found = {
            name: metrics[f"{name}{suffixes[number]}"] if name in owned else value
            for name, value in metrics.items()
            if name not in each
        }
        if SPEED in found:
            found[SPEED] /= len(self.members)
        return found

    def member_checkpoint(self, checkpoint: dict, number: int) -> dict:
        """Of this module's checkpoint what one member trained alone would have left, without the optimizer's state."""
        member, prefix, state = self.members[number], f"members.{number}.", checkpoint["state_dict"]
        return {
            key: checkpoint[key] for key in ("format", "epoch", "global_step", "pytorch-lightning_version", "data")
        } | {
            "state_dict": {
                name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)
            },
            "metrics": self.member_metrics(checkpoint["metrics"], number),
            "hyper_parameters": dict(member.hparams),
            "architecture": member.architecture(),
            "config": member.config,
        }
