"""Going on within an epoch."""

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torchmetrics import Metric

from cifar_resnet.optim import RngState


class MidEpochState(Callback):
    """Keeps in each checkpoint what it takes to go on with the next step, and takes it up again.

    `mid_epoch_state` is a list with an entry for each process: its place in the order of the images and the state of
    its augmentation, its random state, and the training metrics of the epoch so far.
    """

    def __init__(self):
        self.restored: list[dict] = []

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        own = {
            "sampler": trainer.train_dataloader.sampler.state_dict(),
            "rng": RngState(pl_module.device).state,
            "metrics": {
                name: dict(metric.metric_state)
                for name, metric in pl_module.named_modules()
                if isinstance(metric, Metric) and name.rpartition(".")[2].startswith("train_")
            },
        }
        everyone = [own] * trainer.world_size
        if trainer.world_size > 1:
            torch.distributed.all_gather_object(everyone, own)
        checkpoint["mid_epoch_state"] = everyone

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        self.restored = checkpoint["mid_epoch_state"]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # not by Lightning's own way for loaders: that comes too early, before what it should load into is there
        if trainer.fit_loop.restarted_mid_epoch and trainer.global_rank < len(self.restored):
            own = self.restored[trainer.global_rank]
            trainer.train_dataloader.sampler.load_state_dict(own["sampler"])
            RngState(pl_module.device, own["rng"]).restore()
            for name, states in own["metrics"].items():
                metric = pl_module.get_submodule(name)
                for state, value in states.items():
                    setattr(metric, state, value.to(pl_module.device))
                metric._update_count = 1  # or it would warn that it has seen nothing
        self.restored = []
