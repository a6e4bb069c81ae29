"""Going on within an epoch."""

import copy
import itertools
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BatchSizeFinder,
    GradientAccumulationScheduler,
    LambdaCallback,
    LearningRateFinder,
    StochasticWeightAveraging,
)
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils._pytree import tree_map
from torchmetrics import Metric

from cifar_resnet.models import Classifier
from cifar_resnet.optim import RngState
from cifar_resnet.seeds import seed_all, seed_for
from cifar_resnet.terminal import log


class MidEpochState(Callback):
    """Keeps in each checkpoint what it takes to go on with the next step, and takes it up again.

    `mid_epoch_state` is a list with an entry for each process: its place in the order of the images and the state of
    its augmentation, its random state, and the metrics of the epoch so far but those of validation and test, whose
    names say so. Another number of processes goes on at the same place of the order and with the same metrics, and
    draws anew.
    """

    def __init__(self) -> None:
        self.restored: list[dict] = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        own = {
            "sampler": sampler.state_dict() if (sampler := placed(trainer.train_dataloader)) else {},
            "rng": RngState(pl_module.device).state,
            "metrics": {
                # on the host: what is on a GPU would be brought to that GPU by each process that hears of it
                name: tree_map(lambda each: each.cpu(), dict(metric.metric_state))
                for name, metric in pl_module.named_modules()
                if isinstance(metric, Metric)
                and not any(part.startswith(("val_", "test_")) for part in name.split("."))
            },
        }
        everyone = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(everyone, own)
        checkpoint["mid_epoch_state"] = everyone

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        self.restored = checkpoint["mid_epoch_state"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fit_loop.restarted_mid_epoch:
            # once all others, of which some come later, have begun, and before the first batch is made
            self.late = LambdaCallback(on_train_start=self.go_on)
            trainer.callbacks.append(self.late)  # type: ignore[attr-defined]

    def go_on(self, trainer: Trainer, pl_module: Any) -> None:
        trainer.callbacks.remove(self.late)  # type: ignore[attr-defined]
        begin_epoch_again(trainer, pl_module)
        # not by Lightning's own way for loaders: that comes too early, before what it should load into is there
        if self.restored:
            if len(self.restored) == trainer.world_size:
                own = self.restored[trainer.global_rank]
                RngState(pl_module.device, own["rng"]).restore()
            else:
                own = shared_out(self.restored, trainer.is_global_zero)
                seed_all(seed_for("network", pl_module.seed, trainer.global_step, trainer.global_rank))
            if own["sampler"] and (sampler := placed(trainer.train_dataloader)):
                sampler.load_state_dict(own["sampler"])
            else:
                log.warning("warning: batches come from a loader of your own, whose order begins anew in this epoch")
            for name, states in own["metrics"].items():
                metric: Any = pl_module.get_submodule(name)
                for state, value in states.items():
                    setattr(metric, state, tree_map(lambda each: each.to(pl_module.device), value))
                metric._update_count = 1  # or it would warn that it has seen nothing
        self.restored = []


def begin_epoch_again(trainer: Trainer, module: LightningModule) -> None:
    """Call the hooks of an epoch's start, of which Lightning calls none where one goes on in its middle, of all that
    act by it and keep nothing in checkpoints. What they do to weights and optimizers is in the checkpoint."""
    acting = [callback for callback in trainer.callbacks if acts_by_epoch(callback)]  # type: ignore[attr-defined]
    is_others = not type(module).__module__.startswith("cifar_resnet.")
    acts_itself = is_others and is_overridden("on_train_epoch_start", module, Classifier)
    if not (acting or acts_itself):
        return
    weights = copy.deepcopy(module.state_dict())
    states = [copy.deepcopy(optimizer.state_dict()) for optimizer in trainer.optimizers]
    for callback in acting:
        callback.on_train_epoch_start(trainer, module)
    if acts_itself:
        module.on_train_epoch_start()
    module.load_state_dict(weights)
    for optimizer, state in zip(trainer.optimizers, states, strict=True):
        optimizer.load_state_dict(state)


def acts_by_epoch(callback: Callback) -> bool:
    """Whether it must see the start of such an epoch: one that keeps nothing. Of others nobody knows whether that would
    be once too often; of Lightning's own it is two."""
    if type(callback).__module__.startswith(("lightning.", "pytorch_lightning.")):
        return isinstance(callback, (GradientAccumulationScheduler, StochasticWeightAveraging))
    keeps = any(is_overridden(name, callback, Callback) for name in ("state_dict", "on_save_checkpoint"))
    is_ours = type(callback).__module__.startswith("cifar_resnet.")
    return not (keeps or is_ours or isinstance(callback, (BatchSizeFinder, LearningRateFinder)))


def placed(loader: Any) -> Any:
    """What knows its place in the order of the images; None of a loader of one's own, and before there is one."""
    sampler = getattr(loader, "sampler", None)
    return sampler if hasattr(sampler, "state_dict") else None


def added_up(parts: list) -> Any:
    """Of a metric's state, which is a sum, or a list of what it was given."""
    return list(itertools.chain.from_iterable(parts)) if isinstance(parts[0], list) else sum(parts)


def shared_out(states: list[dict], is_first: bool) -> dict:
    """What one of another number of processes goes on with: the first has counted what all of them had."""
    metrics = {
        name: {state: added_up([each["metrics"][name][state] for each in states]) * is_first for state in counts}
        for name, counts in states[0]["metrics"].items()
    }
    place = {key: value for key, value in states[0]["sampler"].items() if key == "num_given"}
    return {"sampler": place, "metrics": metrics}
