"""Muon for the filters of convolutions, SGD for everything else, as one optimizer (Jordan et al. 2024)."""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from cifar_resnet.constraints import Count, FractionBelowOne, NonNegative, Positive, check


def orthogonalise(matrices: Tensor, steps: int = 5, scale: float = 1.0) -> Tensor:
    """The nearest (semi-)orthogonal matrices, roughly: singular values come to lie around `scale`.

    matrices: (B, rows, columns). In bfloat16, by `steps` Newton-Schulz iterations.
    """
    a, b, c = 3.4445, -4.7750, 2.0315  # of the quintic that pulls singular values towards 1
    tall = matrices.shape[1] > matrices.shape[2]
    x = (matrices.mT if tall else matrices).bfloat16()
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    for step in range(steps):
        last = scale if step == steps - 1 else 1.0
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a * last, alpha=last)
    return (x.mT if tall else x).to(matrices.dtype)


def as_rows(filters: Tensor) -> Tensor:
    """Each filter as a row, (out, in * k * k), without a copy: in the order in which its weights lie in memory.

    To exchange columns changes nothing of what makes a matrix orthogonal.
    """
    lies_last = filters.is_contiguous(memory_format=torch.channels_last)
    return (filters.permute(0, 2, 3, 1) if lies_last else filters).flatten(1)


def as_filters(rows: Tensor, like: Tensor) -> Tensor:
    """What `as_rows` has made of such filters."""
    if like.is_contiguous(memory_format=torch.channels_last):
        out, channels, height, width = like.shape
        return rows.view(out, height, width, channels).permute(0, 3, 1, 2)
    return rows.view_as(like)


def on_device(number: float | Tensor, device: torch.device) -> Tensor:
    """As a tensor there, (), for which nobody waits."""
    return number.float() if isinstance(number, Tensor) else torch.full((), number, device=device)


@contextlib.contextmanager
def undone_where(found_inf: Tensor | None, tensors: list[Tensor]) -> Iterator[None]:
    """What happens to the tensors within this has not happened where found_inf is not 0, which the device alone knows.

    found_inf: (), as `torch.amp.GradScaler` hands it to optimizers. tensors: each without gaps in memory.
    """
    if found_inf is None or not tensors:
        yield
        return
    before = torch.cat([in_a_row(tensor) for tensor in tensors])
    yield
    after = torch.cat([in_a_row(tensor) for tensor in tensors])
    chosen = torch.where(found_inf == 0, after, before).split([tensor.numel() for tensor in tensors])
    torch._foreach_copy_([in_a_row(tensor) for tensor in tensors], list(chosen))


def in_a_row(tensor: Tensor) -> Tensor:
    """Its numbers as they lie in memory: (numel,)."""
    return tensor.as_strided((tensor.numel(),), (1,))


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised, for weights of four dimensions; SGD with the same momentum for all others.

    A filter is a row: weights (out, in, k, k) are flattened to (out, in * k * k), as torch.optim.Muon wants them.
    A step whose gradients overflowed under a loss scale is left out on the device, as by torch's fused optimizers; that
    takes a copy of all weights, which `spares_scale` asks to be spared.

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
        lr: Positive = 0.02,
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
        self.skips_on_device = self.spares_scale = self.is_recordable = True
        params, groups = list(params), []
        for group in params if params and isinstance(params[0], dict) else [{"params": params}]:
            filters = [parameter for parameter in group["params"] if parameter.ndim == 4]
            others = [parameter for parameter in group["params"] if parameter.ndim != 4]
            decay = min(other_weight_decay, group.get("weight_decay", other_weight_decay))
            rates = {"lr": lr * other_lr_factor, "weight_decay": decay}
            groups += [{**group, "params": filters, "muon": True}, {**group, **rates, "params": others, "muon": False}]
        super().__init__([group for group in groups if group["params"]], {"lr": lr, "weight_decay": weight_decay})
        self.momentum, self.other_momentum = momentum, momentum if other_momentum is None else other_momentum
        self.nesterov, self.ns_steps, self.unit_filters = nesterov, ns_steps, unit_filters

    @torch.no_grad()
    def step(self, closure: Callable | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        groups = [[weight for weight in group["params"] if weight.grad is not None] for group in self.param_groups]
        weights = [weight for group in groups for weight in group]
        if (scale := getattr(self, "grad_scale", None)) is not None:
            torch._foreach_div_([weight.grad for weight in weights], scale)
        with undone_where(getattr(self, "found_inf", None), [*weights, *self.momenta(weights)]):
            for group, parameters in zip(self.param_groups, groups, strict=True):
                update = self.step_filters if group["muon"] else self.step_others
                if parameters:
                    update(parameters, on_device(group["lr"], parameters[0].device), group["weight_decay"])
        return loss

    def momenta(self, parameters: list[Tensor]) -> list[Tensor]:
        for parameter in parameters:
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
        return [self.state[parameter]["momentum_buffer"] for parameter in parameters]

    def step_filters(self, parameters: list[Tensor], lr: Tensor, weight_decay: float) -> None:
        gradients, momenta = [parameter.grad for parameter in parameters], self.momenta(parameters)
        torch._foreach_lerp_(momenta, gradients, 1 - self.momentum)
        updates = torch._foreach_lerp(gradients, momenta, self.momentum) if self.nesterov else momenta
        directions: list[Tensor] = [None] * len(parameters)
        alike: dict[tuple, list[int]] = {}  # to be multiplied at once
        for index, update in enumerate(updates):
            alike.setdefault((update.shape, update.stride()), []).append(index)
        for (shape, _), indices in alike.items():
            rows = torch.stack([as_rows(updates[index]) for index in indices])
            # a tall matrix's update is smaller than its size deserves
            scale = max(1.0, rows.shape[1] / rows.shape[2]) ** 0.5
            for index, direction in zip(indices, orthogonalise(rows, self.ns_steps, scale).unbind(), strict=True):
                directions[index] = as_filters(direction, updates[index])
            if self.unit_filters:
                own = [parameters[index] for index in indices]
                torch._foreach_div_(own, torch._foreach_norm(own))
                torch._foreach_mul_(own, shape[0] ** 0.5)
        torch._foreach_mul_(parameters, 1 - lr * weight_decay)
        torch._foreach_mul_(directions, -lr)
        torch._foreach_add_(parameters, directions)

    def step_others(self, parameters: list[Tensor], lr: Tensor, weight_decay: float) -> None:
        gradients: tuple[Tensor, ...] | list[Tensor] = [parameter.grad for parameter in parameters]
        if weight_decay:
            gradients = torch._foreach_add(gradients, parameters, alpha=weight_decay)
        momenta = self.momenta(parameters)
        torch._foreach_mul_(momenta, self.other_momentum)
        torch._foreach_add_(momenta, gradients)
        updates = torch._foreach_add(gradients, momenta, alpha=self.other_momentum) if self.nesterov else momenta
        torch._foreach_add_(parameters, torch._foreach_mul(updates, -lr))
