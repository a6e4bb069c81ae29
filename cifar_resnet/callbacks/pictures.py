"""Pictures of a run."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torchvision.utils import make_grid, save_image

from cifar_resnet.constraints import Count, check
from cifar_resnet.models import Classifier
from cifar_resnet.results.plots import save_figure, schedule_figure


class AugmentedBatch(Callback):
    """Shows the first training batch as the network sees it, as a PNG and in TensorBoard."""

    def __init__(self, path: str, num_images: Count = 64):
        check(AugmentedBatch, locals())
        self.path, self.num_images = Path(path), num_images

    def on_train_batch_start(  # type: ignore[override]
        self, trainer: Trainer, pl_module: Classifier, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step or batch_idx or not trainer.is_global_zero:
            return
        mean, std = (values[:, None, None] for values in pl_module.pixel_stats(torch.device("cpu")))
        images = batch[0][: self.num_images].float().cpu() * std + mean
        grid = make_grid(images.clamp(0, 1), nrow=max(1, round(len(images) ** 0.5)))
        save_image(grid, self.path)
        for writer in [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]:
            writer.add_image("augmented_batch", grid, 0)


class ScheduleCurve(Callback):
    """Draws the learning rate of the whole training before its first step, or where metrics decide on it after all."""

    def __init__(self, path: str):
        self.path = Path(path)
        self.rates: list[float] = []  # of each epoch, where no more is known

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        if pl_module.schedule:
            optimizer = pl_module.new_optimizer()  # another, for its rate is moved
            self.draw(trainer, pl_module.schedule.rates(optimizer, pl_module.total_steps, trainer.max_epochs) or [])

    def on_train_epoch_end(self, trainer: Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        if pl_module.schedule and pl_module.schedule.goes_by_metric:
            self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.draw(trainer, [rate for rate in self.rates for _ in range(2)])

    def draw(self, trainer: Trainer, rates: list[float]) -> None:
        if trainer.is_global_zero and rates:
            save_figure(self.path, schedule_figure(rates, trainer.max_epochs))

    def state_dict(self) -> dict:
        return {"rates": self.rates} if self.rates else {}

    def load_state_dict(self, state_dict: dict) -> None:
        self.rates = state_dict.get("rates", [])
