"""Whether the numbers are still numbers."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from cifar_resnet.constraints import Count, check
from cifar_resnet.errors import CALMER, Diverged
from cifar_resnet.optim import SAM


class FiniteLoss(Callback):
    """Ends a training whose loss or gradients are no longer finite, and counts skipped steps.

    On several devices a loss that is not finite on one of them ends all, at the same step.

    Those are what loss scaling skipped, or SAM, which leaves out a step whose gradients are not finite, so that the
    loss stays as it was. All of them, from the first on, are logged as train/skipped_steps. A scaler halves its scale
    with each, so that some in a row are in order; `MAX_SKIPPED` are not.

    every_n_steps: how often a GPU is asked, which has to wait for it; a CPU is asked after each step.
    """

    MAX_SKIPPED = 20  # the scale of 65,536 that a scaler begins with is 1/16 by then

    def __init__(self, every_n_steps: Count = 50):
        check(FiniteLoss, locals())
        self.every_n_steps = every_n_steps
        self.skipped, self.skipped_in_a_row = 0, 0
        self.scales: list[Tensor] = []  # after each step since it was last asked
        self.left_out: list[Tensor] = []  # for each of these, not 0 where SAM has skipped it

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # of losses: finite as long as each of them is
        self.total, self.total_of_proxy = torch.zeros(2, device=pl_module.device).unbind()
        self.skipped_in_a_row, self.steps_before = 0, trainer.global_step
        self.scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.scale = self.scaler and self.scaler.get_scale()  # it has no tensor of it before the first step
        sam = next((each for each in trainer.optimizers if isinstance(each, SAM)), None)
        self.sam = sam if self.scaler is None else None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        selection = getattr(pl_module, "selection", None)
        self.total += outputs["loss"]
        if selection:
            self.total_of_proxy += selection.loss
        is_step = trainer.global_step > self.steps_before  # and no batch that only adds its gradients
        if is_step and self.scaler is not None:
            self.scales.append(self.scaler._get_scale_async().clone())
        if is_step and self.sam is not None:
            self.left_out.append(self.sam.left_out)
        is_last = trainer.is_last_batch or trainer.should_stop
        is_asked = is_last or (batch_idx + 1) % self.every_n_steps == 0 or pl_module.device.type == "cpu"
        # of several processes none ends alone
        if is_asked and not trainer.strategy.reduce_boolean_decision(
            bool((self.total + self.total_of_proxy).isfinite())
        ):
            loss = trainer.strategy.reduce(outputs["loss"].clone()).item()  # the ranks' mean is not finite either
            diverged = getattr(pl_module, "diverged", None)
            whose = f" with seed {', '.join(map(str, diverged()))}" if diverged else ""
            total_of_proxy = trainer.strategy.reduce(self.total_of_proxy.clone()).item()
            if not math.isfinite(total_of_proxy):
                loss, whose = total_of_proxy, " from the proxy that selects images,"
            # before the first step no rate has moved the weights
            remedy = f"give {CALMER}" if self.steps_before else "look at the network, its init and data.std"
            remedy += "" if "32" in str(trainer.precision) else ", or give precision=32-true"
            raise Diverged(f"the loss is no longer finite. Got {loss}{whose}{where(trainer)}; {remedy}")
        self.steps_before = trainer.global_step
        if is_asked:
            self.count_skipped()
        if self.skipped_in_a_row >= self.MAX_SKIPPED:
            who = "SAM" if self.sam else "loss scaling"
            remedy = "look at the network, or give" if self.sam else "give precision=bf16-mixed or 32-true,"
            raise Diverged(
                f"the gradients are no longer finite. Got {self.skipped_in_a_row} steps in a row that {who} "
                f"skipped{where(trainer)}; {remedy} {CALMER}"
            )

    def count_skipped(self) -> None:
        """Those whose gradients were not finite; a scaler answers with a smaller scale."""
        for scale in torch.stack(self.scales).tolist() if self.scales else ():
            self.count(scale < self.scale)
            self.scale = scale
        for found_inf in torch.stack(self.left_out).tolist() if self.left_out else ():
            self.count(found_inf != 0)
        self.scales, self.left_out = [], []

    def count(self, is_skipped: bool) -> None:
        self.skipped += is_skipped
        self.skipped_in_a_row = self.skipped_in_a_row + 1 if is_skipped else 0

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.scaler is not None or self.sam is not None:
            pl_module.log("train/skipped_steps", float(self.skipped), sync_dist=True)  # as many on each rank

    def state_dict(self) -> dict:
        self.count_skipped()
        return {"skipped": self.skipped}

    def load_state_dict(self, state_dict: dict) -> None:
        self.skipped = state_dict["skipped"]


def where(trainer: Trainer) -> str:
    rate = trainer.optimizers[0].param_groups[0]["lr"]
    return f" by step {trainer.global_step} (epoch {trainer.current_epoch + 1}) at a learning rate of {rate:.3g}"
