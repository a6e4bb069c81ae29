"""Pictures of a run."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

from cifar_resnet.constraints import Count, check
from cifar_resnet.models import Classifier
from cifar_resnet.results import tiles
from cifar_resnet.results.plots import save_figure, schedule_by_epoch, schedule_figure


class AugmentedBatch(Callback):
    """Shows the first training batch as the network sees it, with its classes: a PNG, on the page, in TensorBoard."""

    def __init__(self, path: str, num_images: Count = 64):
        check(AugmentedBatch, locals())
        self.path, self.num_images = Path(path), num_images

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: Classifier, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step or batch_idx or not trainer.is_global_zero:
            return
        mean, std = (values[:, None, None] for values in pl_module.pixel_stats(torch.device("cpu")))
        images, labels = (part[: self.num_images].float().cpu() for part in batch)
        pixels = ((images * std + mean).clamp(0, 1) * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        grid = tiles.write(self.path, pixels, captions_of(labels, pl_module.data_state["classes"]))
        for writer in [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]:
            writer.add_image("augmented_batch", grid, 0, dataformats="HWC")


def captions_of(labels: Tensor, classes: Sequence[str]) -> list[str]:
    """Of mixed images the classes with their shares. labels: (N,), or the classes' shares, (N, num_classes)."""
    if labels.ndim == 1:
        return [classes[label] for label in labels.long().tolist()]
    each = [
        [(share, classes[place]) for place, share in enumerate(shares) if share > 0.005] for shares in labels.tolist()
    ]
    return [
        shares[0][1] if len(shares) == 1 else ", ".join(f"{name} {share:.0%}" for share, name in sorted(shares)[::-1])
        for shares in each
    ]


class ScheduleCurve(Callback):
    """Draws the learning rate of the whole training before its first step, or where metrics decide on it after all."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.rates: list[float] = []  # of each epoch, where no more is known

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        if pl_module.schedule and trainer.max_epochs != -1 and pl_module.total_steps != math.inf:
            optimizer = pl_module.new_optimizer()  # another, for its rate is moved
            steps = int(pl_module.total_steps)
            self.draw(trainer, pl_module.schedule.rates(optimizer, steps, trainer.max_epochs) or [])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        if pl_module.schedule and pl_module.schedule.goes_by_metric:
            self.rates[trainer.current_epoch :] = [trainer.optimizers[0].param_groups[0]["lr"]]

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_global_zero and self.rates:
            save_figure(self.path, schedule_by_epoch(self.rates))

    def draw(self, trainer: Trainer, rates: list[float]) -> None:
        if trainer.is_global_zero and rates:
            save_figure(self.path, schedule_figure(rates, trainer.max_epochs))

    def state_dict(self) -> dict:
        return {"rates": self.rates} if self.rates else {}

    def load_state_dict(self, state_dict: dict) -> None:
        self.rates = state_dict.get("rates", [])
