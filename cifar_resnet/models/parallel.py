"""One network on several devices, by DDP: each rank holds all of it, and gradients are exchanged."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, DeepSpeedStrategy, SingleDeviceStrategy
from torch.nn.parallel import DistributedDataParallel

from cifar_resnet.errors import refuse_if


def check_strategy(trainer: Trainer) -> None:
    """UsageError for a strategy by which the network would not be trained as it is on one device.

    SAM and Muon look at whole weights, and a weight's shape says whether it decays; one that is sharded has neither.
    """
    refuse_if(
        not isinstance(trainer.strategy, (DDPStrategy, SingleDeviceStrategy))
        or isinstance(trainer.strategy, DeepSpeedStrategy),  # a kind of DDPStrategy, for Lightning
        f"trainer.strategy must leave each device the whole network. Got {type(trainer.strategy).__name__}; give auto, "
        f"or ddp",
    )
    if isinstance(trainer.strategy, DDPStrategy) and trainer.strategy.root_device.type == "cuda":
        # Lightning wraps the network in DDP on a stream of its own and trains on another. torch has the one wait for
        # the other, for each weight: right, if not for nothing, and not to be warned of in each run
        torch.autograd.graph.set_warn_on_accumulate_grad_stream_mismatch(False)


def ddp_of(model: LightningModule) -> DistributedDataParallel | None:
    """What exchanges the gradients of a network in training, where its trainer has such."""
    network = model.trainer.model
    return network if isinstance(network, DistributedDataParallel) else None


def keep_gradients(model: LightningModule) -> bool:
    """Within a forward pass: leave its gradients to their rank; whether they would have been exchanged."""
    if (ddp := ddp_of(model)) is None:
        return False
    would_exchange, ddp.require_backward_grad_sync = ddp.require_backward_grad_sync, False
    return would_exchange


def exchanged(model: LightningModule, method: str, *arguments: object, exchange: bool) -> Any:
    """What this method of the network returns, its gradients exchanged among the ranks if `exchange`, as training_step
    is called: DDP looks out for gradients of what went through its own forward pass alone."""
    if (ddp := ddp_of(model)) is None:
        return getattr(model, method)(*arguments)
    ddp.require_backward_grad_sync = exchange
    return model.trainer.strategy._forward_redirection(ddp, model, method, *arguments)


def share_statistics(model: LightningModule) -> None:
    """Before a validation: give all ranks the first one's BatchNorm statistics.

    DDP would do so in each rank's first forward pass, and wait for ranks that have nothing to validate.
    """
    if ddp := ddp_of(model):
        for buffer in model.buffers():
            torch.distributed.broadcast(buffer, src=0)
        ddp.require_forward_param_sync = False
