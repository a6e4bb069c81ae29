"""Whether the numbers are still numbers."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_resnet.constraints import Count, check
from cifar_resnet.errors import Diverged


class FiniteLoss(Callback):
    """Ends a training whose loss is no longer finite, and counts the steps that 16-bit loss scaling skipped.

    All of them, from the first on, are logged as train/skipped_steps.

    every_n_steps: how often a GPU is asked, which has to wait for it; a CPU is asked after each step.
    """

    def __init__(self, every_n_steps: Count = 50):
        check(FiniteLoss, locals())
        self.every_n_steps, self.skipped = every_n_steps, torch.zeros(())

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.is_finite = torch.ones((), dtype=torch.bool, device=pl_module.device)
        self.skipped = self.skipped.to(pl_module.device)
        self.scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.scale = self.scaler and self.scaler.get_scale()  # it has no tensor of it before the first step

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs, batch, batch_idx: int) -> None:
        self.is_finite &= outputs["loss"].isfinite()
        if self.scaler is not None:
            scale = self.scaler._get_scale_async()
            self.skipped += scale < self.scale  # which is how a scaler answers to gradients that are not finite
            self.scale = scale.clone()
        is_last = trainer.is_last_batch or trainer.should_stop
        is_asked = is_last or (batch_idx + 1) % self.every_n_steps == 0 or pl_module.device.type == "cpu"
        if is_asked and not self.is_finite:
            whose = f" with seed {', '.join(map(str, pl_module.diverged()))}" if hasattr(pl_module, "diverged") else ""
            raise Diverged(
                f"the loss is no longer finite. Got {outputs['loss'].item()}{whose} by step {trainer.global_step} "
                f"(epoch {trainer.current_epoch + 1}) at a learning rate of "
                f"{trainer.optimizers[0].param_groups[0]['lr']:.3g}; give a lower optimizer.lr, "
                f"scheduler.warmup_fraction=0.05, trainer.gradient_clip_val=1"
                + ("" if "32" in str(trainer.precision) else ", or precision=32-true")
            )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.scaler is not None:
            pl_module.log("train/skipped_steps", self.skipped)

    def state_dict(self) -> dict:
        return {"skipped": self.skipped.item()}

    def load_state_dict(self, state_dict: dict) -> None:
        self.skipped = torch.tensor(state_dict["skipped"])
