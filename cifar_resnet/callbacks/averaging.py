"""An average of the weights along the training, evaluated and kept in their place."""

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor


class EMA(WeightAveraging):
    """Exponential moving average of the weights and of the BatchNorm statistics, moved after each optimizer step.

    Validation, test and `state_dict` of a checkpoint see the average; training goes on from the weights themselves,
    which a checkpoint holds as `current_model_state`.

    decay: what remains of the average at each step. At step n it is at most (1 + n) / (10 + n), so that the random
    weights of the beginning are soon forgotten.
    """

    def __init__(self, decay: float = 0.995):
        if not 0 <= decay < 1:
            raise ValueError(f"averaging.decay is a share. Got {decay}; give 0 up to 1")
        super().__init__(use_buffers=True, multi_avg_fn=self.move)
        self.decay = decay

    @torch.no_grad()
    def move(self, averages: list[Tensor], latest: list[Tensor], num_averaged: Tensor) -> None:
        steps = self._latest_update_step  # a number on the host: num_averaged would make a GPU wait
        decay = min(self.decay, (1 + steps) / (10 + steps))
        if torch.is_floating_point(averages[0]):
            torch._foreach_lerp_(averages, latest, 1 - decay)
        else:  # counters, such as BatchNorm's of its batches
            torch._foreach_copy_(averages, latest)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        """To go on training takes the weights themselves; to test takes the average, which has been loaded by now."""
        if trainer.state.fn == TrainerFn.FITTING:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
