"""Sharpness-aware minimisation around any optimizer (Foret et al. 2021, arXiv 2010.01412)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from cifar_resnet import limits


class SAM(Optimizer):
    """Steps with the gradient found at the worst point nearby: `perturb` goes there, `restore` comes back.

    `Classifier` does both within its backward pass, so that to everybody else this is the base optimizer: its
    parameter groups, its state, one step for each batch. A step whose gradients are not finite is left out.

    base: builds the optimizer that steps, from parameters, lr and weight_decay.
    rho: how far away the worst point is looked for.
    adaptive: measure that distance relative to each weight (ASAM, Kwon et al. 2021, arXiv 2102.11600).
    eta: added to the weights' sizes there, so that those near zero move as well.
    """

    def __init__(
        self,
        params: Iterable,
        base: Callable[..., Optimizer],
        lr: float = 0.1,
        weight_decay: float = 0.0,
        rho: float = 0.05,
        adaptive: bool = False,
        eta: float = 0.01,
    ):
        limits.require("optimizer", rho=rho, eta=eta)
        self.base = base(params, lr=lr, weight_decay=weight_decay)
        self.rho, self.adaptive, self.eta = rho, adaptive, eta
        super().__init__(self.base.param_groups, self.base.defaults)
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self.moved: list[Tensor] = []
        self.saved: list[Tensor] = []

    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def perturb(self) -> Tensor:
        """Move along the gradients, by rho; returns their norm. The scale of the loss makes no difference."""
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        gradients = [parameter.grad for parameter in parameters]
        if self.adaptive:
            sizes = torch._foreach_add(torch._foreach_abs(parameters), self.eta)
            gradients = torch._foreach_mul(gradients, sizes)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self.adaptive:
            gradients = torch._foreach_mul(gradients, sizes)
        self.moved, self.saved = parameters, [parameter.clone() for parameter in parameters]
        # gradients of nothing but zeros lead nowhere, not to a division by zero
        length = self.rho / norm.clamp(min=torch.finfo(norm.dtype).tiny)
        torch._foreach_add_(parameters, torch._foreach_mul(gradients, length))
        return norm

    @torch.no_grad()
    def restore(self) -> None:
        """Back to the weights before `perturb`, to the bit."""
        torch._foreach_copy_(self.moved, self.saved)
        self.moved, self.saved = [], []

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Tensor | None:
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        finite = torch.stack(torch._foreach_norm(gradients)).sum().isfinite()
        if all(group.get("fused") for group in self.base.param_groups):
            self.base.found_inf = 1 - finite.float()  # which its kernels ask for on the device: nothing waits
            self.base.step()
        elif finite:
            self.base.step()
        return loss

    def state_dict(self) -> dict:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        self.base.load_state_dict(state_dict)
        self.param_groups, self.state = self.base.param_groups, self.base.state
