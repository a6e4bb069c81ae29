"""Weight averaging: EMA, evaluated in place of the weights; Lookahead, from which the training goes on."""

import math
import operator
from itertools import compress
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Callback, WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn

from cifar_resnet.constraints import Count, FractionAboveZero, FractionBelowOne, check
from cifar_resnet.errors import refuse_if
from cifar_resnet.models.classifier import planned_steps
from cifar_resnet.terminal import log


class EMA(WeightAveraging):
    """Exponential moving average of the weights and of the BatchNorm statistics, moved after each optimizer step.

    Validation, test and `state_dict` of a checkpoint see the average; training goes on from the weights themselves,
    which a checkpoint holds as `current_model_state`.

    decay: what remains of the average at each step. At step n it is at most (1 + n) / (10 + n), so that the random
    weights of the beginning are soon forgotten.
    """

    def __init__(self, decay: FractionBelowOne = 0.995):
        check(EMA, locals())
        super().__init__()
        self.decay = decay
        self.moves_within_step = False  # by `StepGraph`

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        if stage == "fit":
            self._latest_update_step = 0  # not of a training before
            self._average_model.to(memory_format=torch.channels_last)  # as the weights: or each would be moved alone

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_train_start(trainer, pl_module)
        self.share = torch.zeros((), device=pl_module.device)  # of the latest weights in the next average

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step > self._latest_update_step:  # else gradients are being accumulated
            if not self.moves_within_step:
                self.weigh()
                self.move(pl_module)
            self._latest_update_step = trainer.global_step

    def weigh(self) -> None:
        steps = self._latest_update_step
        self.share.fill_(1 - (min(self.decay, (1 + steps) / (10 + steps)) if steps else 0.0))

    @torch.no_grad()
    def move(self, pl_module: LightningModule) -> None:
        """Move the average. Not by AveragedModel's own method, which asks the GPU how often it has been called."""
        (moving, counters), (latest, latest_counters) = map(state_of, (self._average_model.module, pl_module))
        steps = torch._foreach_sub(latest, moving)
        torch._foreach_mul_(steps, self.share)
        torch._foreach_add_(moving, steps)
        if counters:
            torch._foreach_copy_(counters, latest_counters)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """To go on training takes the weights themselves; to test takes the average, which has been loaded by now."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


class Lookahead(Callback):
    """Some steps forward, one back: slow weights follow the trained ones, which then go on from there (Zhang et al.
    2019, algorithm 1).

    BatchNorm's statistics are weights in this, for they belong to them. The last of all planned steps is followed too;
    a training that ends before has the trained weights, unless it ends with one that is followed.

    every: so many of the optimizer's steps forward (k in the paper).
    share: of the way that the trained weights have gone, which the slow ones follow (alpha).
    start: the share of a training before the first of these steps; above 0 only its tail is affected.
    """

    def __init__(self, every: Count = 5, share: FractionAboveZero = 0.5, start: FractionBelowOne = 0.0):
        check(Lookahead, locals())
        self.every, self.share, self.start = every, share, start
        self.slow: list[torch.Tensor] = []  # empty before the start

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self.slow = []  # not of a training before

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.latest_step, self.total_steps = trainer.global_step, planned_steps(trainer)
        refuse_if(
            self.start and self.total_steps == math.inf,
            f"averaging.start is a share of the training. Got {self.start} of one whose length nobody knows; give "
            f"max_steps, or start=0",
        )
        self.first_step = round(self.start * self.total_steps) if self.start else 0
        if self.first_step + self.every > self.total_steps:
            log.warning(
                f"warning: averaging.every={self.every} is longer than what is left of {self.total_steps} steps, so "
                f"that the weights end {self.share:.0%} of the way from where it begins to where they come\n"
            )
        self.slow = [tensor.to(pl_module.device) for tensor in self.slow]
        self.begin(pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self.latest_step:  # gradients are being accumulated
            return
        self.latest_step = step = trainer.global_step
        if not self.slow:
            self.begin(pl_module)
        elif (step - self.first_step) % self.every == 0 or step == self.total_steps:
            self.follow(pl_module)

    def begin(self, pl_module: LightningModule) -> None:
        if not self.slow and self.latest_step >= self.first_step:
            self.slow = [tensor.detach().clone() for tensor in state_of(pl_module)[0]]

    @torch.no_grad()
    def follow(self, pl_module: LightningModule) -> None:
        latest, _ = state_of(pl_module)
        torch._foreach_lerp_(self.slow, latest, self.share)
        torch._foreach_copy_(latest, self.slow)

    def state_dict(self) -> dict:
        return {"slow": self.slow}

    def load_state_dict(self, state_dict: dict) -> None:
        self.slow = state_dict["slow"]


def state_of(module: torch.nn.Module) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    """Its parameters and floating buffers; and its counters, such as BatchNorm's of its batches."""
    found = [*module.parameters(), *module.buffers()]
    floating = [tensor.is_floating_point() for tensor in found]
    return list(compress(found, floating)), list(compress(found, map(operator.not_, floating)))
