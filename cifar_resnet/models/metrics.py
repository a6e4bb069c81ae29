"""What an epoch adds up to, without a wait for the device."""

import torch
from torch import Tensor
from torchmetrics import Metric


class Mean(Metric):
    """Of numbers whose sums over batches are given; of several ranks the mean over all of their images."""

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self) -> None:
        super().__init__()
        for name in ("total", "count"):
            self.add_state(name, torch.zeros(()), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: int) -> None:
        """total: of a batch, on the device; count: its images."""
        self.total += total
        self.count += count

    def reset(self) -> None:
        """Where the numbers lie they stay: a recorded step goes on adding there."""
        kept = self.total.zero_(), self.count.zero_()
        super().reset()
        self.total, self.count = kept

    def compute(self) -> Tensor:
        return self.total / self.count
