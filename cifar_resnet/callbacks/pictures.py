"""Pictures of a run."""

from pathlib import Path

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.optim.lr_scheduler import LambdaLR
from torchvision.utils import make_grid, save_image

from cifar_resnet.constraints import Count, check
from cifar_resnet.results.plots import save_figure, schedule_figure


class AugmentedBatch(Callback):
    """Shows the first training batch as the network sees it, as a PNG and in TensorBoard."""

    def __init__(self, path: str, num_images: Count = 64):
        check(AugmentedBatch, locals())
        self.path, self.num_images = Path(path), num_images

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        if trainer.global_step or batch_idx or not trainer.is_global_zero:
            return
        mean, std = (values[:, None, None] for values in pl_module.pixel_stats(torch.device("cpu")))
        images = batch[0][: self.num_images].float().cpu() * std + mean
        grid = make_grid(images.clamp(0, 1), nrow=max(1, round(len(images) ** 0.5)))
        save_image(grid, self.path)
        for writer in [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]:
            writer.add_image("augmented_batch", grid, 0)


class ScheduleCurve(Callback):
    """Draws the learning rate of the whole training before its first step."""

    def __init__(self, path: str):
        self.path = Path(path)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scheduler = pl_module.lr_schedulers()
        if trainer.is_global_zero and isinstance(scheduler, LambdaLR):  # the others do not know their future
            rates = [scheduler.base_lrs[0] * scheduler.lr_lambdas[0](step) for step in range(pl_module.total_steps + 1)]
            save_figure(self.path, schedule_figure(rates, trainer.max_epochs))
