"""Several networks of one architecture, trained at once as one module."""

import contextlib
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from lightning.pytorch import Trainer
from torch import Tensor, nn
from torchvision.ops import StochasticDepth

from cifar_resnet.errors import refuse_if
from cifar_resnet.models.classifier import Classifier
from cifar_resnet.models.regularisers import ShakeDrop
from cifar_resnet.optim import SAM


class MixedPrecision(torch.overrides.TorchFunctionMode):
    """Convolutions in autocast's lower precision, norm layers in float32.

    torch.vmap takes convolutions apart before autocast would see them, and its norm layers know one dtype at a time.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is torch.conv2d:
            lower = torch.get_autocast_dtype(args[0].device.type)
            args = [arg.to(lower) if isinstance(arg, Tensor) else arg for arg in args]
        elif func is F.batch_norm:
            args = [args[0].float(), *args[1:]]
        return func(*args, **(kwargs or {}))


class StackedEnsemble(Classifier):
    """Stacks its members' weights and runs each layer for all of them at once; every member learns as if it were alone.

    A batch holds the members' batches, one behind the other, and so do the logits.

    members: alike in everything but their weights. What the training needs is taken from the first of them.
    """

    def __init__(self, members: Sequence[Classifier]):
        first = members[0]
        super().__init__(
            num_classes=first.train_acc.num_classes,
            label_smoothing=first.label_smoothing,
            decay_norm_and_bias=first.decay_norm_and_bias,
            bias_lr_factor=first.bias_lr_factor,
            tta=first.tta,
            optimizer=first.optimizer,
            scheduler=first.scheduler,
            distillation=first.distillation,
        )
        self.members = nn.ModuleList(members)
        self.seed, self.data_state = first.seed, first.data_state

    def check_trainer(self, trainer: Trainer) -> None:
        """ValueError for what networks side by side cannot have."""
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
        refuse_if(
            trainer.gradient_clip_val,
            f"gradients are clipped by one norm, which networks side by side would share. Got "
            f"trainer.gradient_clip_val={trainer.gradient_clip_val}; leave it out, or give ensemble.size=1",
        )
        refuse_if(
            trainer.world_size > 1,
            f"networks are trained side by side on one device. Got {trainer.world_size}; give trainer.devices=1",
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
        with MixedPrecision() if torch.is_autocast_enabled(images.device.type) else contextlib.nullcontext():
            logits = torch.vmap(logits_of, randomness="different")(parameters, moved, each)
        if self.training:
            with torch.no_grad():
                for name, tensor in moved.items():
                    torch._foreach_copy_([own[name] for own in buffers], list(tensor.unbind()))
        return logits.flatten(0, 1)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        # the mean over all members' images would give each a gradient too small
        return super().training_step(batch, batch_idx) * len(self.members)

    def evaluation_step(self, split: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        return super().evaluation_step(
            split, (images.repeat(len(self.members), 1, 1, 1), labels.repeat(len(self.members)))
        )

    def log_metrics(self, split: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """The members' mean, and each member's own under its number."""
        super().log_metrics(split, loss, logits, labels)
        found, shares = {}, (logits.chunk(len(self.members)), labels.chunk(len(self.members)))
        for number, (member, own_logits, own) in enumerate(zip(self.members, *shares, strict=True)):
            accuracy = found[f"{split}/acc_{number}"] = getattr(member, f"{split}_acc")
            accuracy.update(own_logits, own)
            if split != "train":
                mean = found[f"{split}/loss_{number}"] = getattr(member, f"{split}_loss")
                own_loss = F.cross_entropy(own_logits, own)
                mean.update(own_loss, torch.full_like(own_loss, len(own)))
        self.log_dict(found, on_step=False, on_epoch=True)

    def member_checkpoint(self, checkpoint: dict, number: int) -> dict:
        """Of this module's checkpoint what one member trained alone would have left, without the optimizer's state."""
        member, prefix, suffix = self.members[number], f"members.{number}.", f"_{number}"
        state, metrics = checkpoint["state_dict"], checkpoint["metrics"]
        return {
            key: checkpoint[key] for key in ("format", "epoch", "global_step", "pytorch-lightning_version", "data")
        } | {
            "state_dict": {
                name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)
            },
            "metrics": {
                name.removesuffix(suffix): value
                for name, value in metrics.items()
                if name.endswith(suffix) and name.removesuffix(suffix) in metrics
            },
            "hyper_parameters": dict(member.hparams),
            "architecture": member.architecture(),
            "config": member.config,
        }
