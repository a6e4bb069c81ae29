"""Muon for the filters of convolutions, SGD for everything else, as one optimizer (Jordan et al. 2024)."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from cifar_resnet.constraints import Count, FractionBelowOne, NonNegative, check


def orthogonalise(matrices: Tensor, steps: int = 5) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: singular values come to lie around 1.

    matrices: (B, rows, columns). In bfloat16, by `steps` Newton-Schulz iterations.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # of the quintic that pulls singular values towards 1
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for weights of four dimensions; SGD with the same momentum for all others.

    A filter is a row: weights (out, in, k, k) are flattened to (out, in * k * k), as torch.optim.Muon wants them.

    ns_steps: Newton-Schulz iterations; fewer leave a gradient's weakest directions weaker.
    lr, weight_decay: of the filters. The decay is decoupled: lr * weight_decay of each weight goes at each step.
    momentum, nesterov: of both, unless
    other_momentum: SGD's.
    other_lr_factor: SGD's learning rate / lr.
    other_weight_decay: SGD's, coupled as usual.
    unit_filters: keep each layer's filters at a mean norm of 1, so that lr is the share of a layer that a step changes
        (as in Jordan's airbench94_muon).
    """

    def __init__(
        self,
        params: Iterable,
        lr: NonNegative = 0.02,
        weight_decay: NonNegative = 0.01,
        momentum: FractionBelowOne = 0.95,
        nesterov: bool = True,
        ns_steps: Count = 5,
        other_lr_factor: NonNegative = 5.0,
        other_momentum: FractionBelowOne | None = None,
        other_weight_decay: NonNegative = 5e-4,
        unit_filters: bool = False,
    ):
        check(Muon, locals())
        groups = []
        for group in [group if isinstance(group, dict) else {"params": [group]} for group in params]:
            filters = [parameter for parameter in group["params"] if parameter.ndim == 4]
            others = [parameter for parameter in group["params"] if parameter.ndim != 4]
            decay = min(other_weight_decay, group.get("weight_decay", other_weight_decay))
            rates = {"lr": lr * other_lr_factor, "weight_decay": decay}
            groups += [{**group, "params": filters, "muon": True}, {**group, **rates, "params": others, "muon": False}]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "weight_decay": weight_decay})
        self.momentum, self.other_momentum = momentum, momentum if other_momentum is None else other_momentum
        self.nesterov, self.ns_steps, self.unit_filters = nesterov, ns_steps, unit_filters

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Tensor | None:
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            update = self.step_filters if group["muon"] else self.step_others
            if parameters:
                update(parameters, group["lr"], group["weight_decay"])
        return loss

    def momenta(self, parameters: list[Tensor]) -> list[Tensor]:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return [self.state[parameter]["momentum_buffer"] for parameter in parameters]

    def step_filters(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        for shape in dict.fromkeys(parameter.shape for parameter in parameters):
            alike = [parameter for parameter in parameters if parameter.shape == shape]  # multiplied at once
            gradients, momenta = [parameter.grad for parameter in alike], self.momenta(alike)
            torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
            updates = torch._foreach_lerp(gradients, momenta, self.momentum) if self.nesterov else momenta
            flat = torch.stack([update.flatten(1) for update in updates])
            # a tall matrix's update is smaller than its size deserves
            scale = max(1.0, flat.shape[1] / flat.shape[2]) ** 0.5
            directions = orthogonalise(flat, self.ns_steps).view(len(alike), *shape).unbind()
            if self.unit_filters:
                torch._foreach_div_(alike, torch._foreach_norm(alike))
                torch._foreach_mul_(alike, shape[0] ** 0.5)
            torch._foreach_mul_(alike, 1 - lr * weight_decay)
            torch._foreach_add_(alike, directions, alpha=-lr * scale)

    def step_others(self, parameters: list[Tensor], lr: float, weight_decay: float) -> None:
        gradients = [parameter.grad for parameter in parameters]
        if weight_decay:
            gradients = torch._foreach_add(gradients, parameters, alpha=weight_decay)
        momenta = self.momenta(parameters)
        torch._foreach_mul_(momenta, self.other_momentum)
        torch._foreach_add_(momenta, gradients)
        updates = torch._foreach_add(gradients, momenta, alpha=self.other_momentum) if self.nesterov else momenta
        torch._foreach_add_(parameters, updates, alpha=-lr)
