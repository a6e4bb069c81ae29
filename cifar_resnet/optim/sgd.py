"""torch's SGD, whose momentum starts from zeros."""

from collections.abc import Callable
from typing import Any

import torch


class SGD(torch.optim.SGD):
    """torch.optim.SGD with its arguments, safe to fuse under a loss scale.

    torch's fused kernel takes its momentum from memory that its first step fills. Where a loss scale was too high, that
    step is skipped on the device, and all that follow would build on whatever the memory held (torch 2.15).
    """

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        for group in self.param_groups if not self.state else ():
            for parameter in group["params"] if group["momentum"] else ():
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return super().step(closure)
