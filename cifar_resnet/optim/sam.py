"""Sharpness-aware minimisation around any optimizer (Foret et al. 2021, arXiv 2010.01412)."""

import contextlib
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cifar_resnet.constraints import NonNegative, Positive, check


class SAM(torch.optim.Optimizer):
    """Steps with the gradient found at the worst point nearby: `perturb` goes there, `restore` comes back.

    `two_passes` does both within the backward pass, so that to everybody else this is the base optimizer: its
    parameter groups, its state, one step for each batch. A step whose gradients are not finite is left out.

    base: builds the optimizer that steps, from parameters, lr and weight_decay.
    lr, weight_decay: the base's; None for its own.
    rho: how far away the worst point is looked for.
    adaptive: measure that distance relative to each weight (ASAM, Kwon et al. 2021, arXiv 2102.11600).
    eta: added to the weights' sizes there, so that those near zero move as well.
    """

    def __init__(
        self,
        params: Iterable,
        base: Callable[..., torch.optim.Optimizer],
        lr: Positive | None = None,
        weight_decay: NonNegative | None = None,
        rho: Positive = 0.05,
        adaptive: bool = False,
        eta: NonNegative = 0.01,
    ):
        check(SAM, locals())
        given = {"lr": lr, "weight_decay": weight_decay}
        self.base = base(params, **{name: value for name, value in given.items() if value is not None})
        self.rho, self.adaptive, self.eta = rho, adaptive, eta
        super().__init__(self.base.param_groups, self.base.defaults)
        self.param_groups, self.state = self.base.param_groups, self.base.state
        self.spares_scale = True  # by which the first pass, whose gradients nobody keeps, may overflow as well
        self.moved: list[Tensor] = []  # weights, and what they were before `perturb`
        self.saved: list[Tensor] = []

    def parameters(self) -> list[Tensor]:
        return [parameter for group in self.param_groups for parameter in group["params"]]

    @torch.no_grad()
    def perturb(self) -> Tensor:
        """Move along the gradients, by rho; returns their norm. The scale of the loss makes no difference."""
        parameters = [parameter for parameter in self.parameters() if parameter.grad is not None]
        gradients: tuple[Tensor, ...] | list[Tensor] = [parameter.grad for parameter in parameters]
        if self.adaptive:
            sizes = torch._foreach_add(torch._foreach_abs(parameters), self.eta)
            gradients = torch._foreach_mul(gradients, sizes)
        norm = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
        if self.adaptive:
            gradients = torch._foreach_mul(gradients, sizes)
        self.moved, self.saved = parameters, [torch.empty_like(parameter) for parameter in parameters]
        torch._foreach_copy_(self.saved, parameters)
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
    def step(self, closure: Callable | None = None) -> Any:
        loss = None if closure is None else torch.enable_grad()(closure)()
        found_inf = getattr(self, "found_inf", None)  # where a loss scaler has looked before
        if found_inf is None:
            gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
            if not gradients:
                return loss
            found_inf, unscaled = (torch.full((), value, device=gradients[0].device) for value in (0.0, 1.0))
            torch._amp_foreach_non_finite_check_and_unscale_(gradients, found_inf, unscaled)
        self.left_out = found_inf
        if self.skips_on_device:
            self.base.found_inf, self.base.grad_scale = found_inf, getattr(self, "grad_scale", None)  # type: ignore[attr-defined]
            self.base.step()
        elif not found_inf:
            self.base.step()
        return loss

    @property
    def skips_on_device(self) -> bool:
        """Whether the base leaves a step out where the device finds gradients that are not finite, and nobody asks."""
        return any(getattr(self.base, name, False) for name in ("skips_on_device", "_step_supports_amp_scaling"))

    def state_dict(self) -> dict:
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict) -> None:
        self.base.load_state_dict(state_dict)
        self.param_groups, self.state = self.base.param_groups, self.base.state


def two_passes(optimizer: SAM, loss: Tensor, loss_again: Callable[[], Tensor]) -> None:
    """Add the gradients of SAM to those that are there: those at the worst point near the weights, for the same batch.

    In the backward pass, and not in the optimizer's step: clipping, loss scaling, accumulation and the count of steps
    then see one backward pass. With accumulation each batch looks for its own worst point, and on several devices each
    rank for that of its own batch (m-sharpness, section 4.1): only the second pass may exchange gradients.

    loss: of the first pass, for this batch. loss_again: the loss of the same batch, scaled alike, at the weights as
    they are by then. Both passes have to see the same pixels and the same dropout masks, and only the first may move
    BatchNorm's statistics: see `RngState` and `frozen_statistics`.
    """
    parameters = optimizer.parameters()
    accumulated = [parameter.grad for parameter in parameters]
    optimizer.zero_grad()
    loss.backward()
    norm = optimizer.perturb()
    for parameter, gradient in zip(parameters, accumulated, strict=True):
        parameter.grad = gradient  # before the second pass: what it exchanges is their sum
    # a step that began with gradients that were not finite must not pass for a good one, on any rank: 1 keeps, nan
    # spoils the gradients, which is exchanged with them
    verdict = 1 + (norm - norm)
    try:
        (loss_again() * verdict).backward()
    finally:
        optimizer.restore()


class RngState:
    """The random state of this moment, or a kept one, to come back to: torch's, NumPy's and Python's.

    state: by whose it is, as `state` gives it; those that it lacks stay as they are.
    """

    def __init__(self, device: torch.device, state: dict[str, Any] | None = None):
        self.device, self.on_gpu = device, device.type == "cuda"
        self.state = state or self.latest()

    def latest(self) -> dict[str, Any]:
        state: Any = np.random.get_state()
        kind, keys, *place = state
        return {
            "cpu": torch.get_rng_state(),
            **({"cuda": torch.cuda.get_rng_state(self.device)} if self.on_gpu else {}),
            "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), *place],
            "python": random.getstate(),
        }

    def restore(self) -> None:
        torch.set_rng_state(self.state["cpu"])
        if self.on_gpu and "cuda" in self.state:
            torch.cuda.set_rng_state(self.state["cuda"], self.device)
        if "numpy" in self.state:
            kind, keys, *place = self.state["numpy"]
            np.random.set_state((kind, keys.numpy().astype(np.uint32), *place))
        if "python" in self.state:
            random.setstate(self.state["python"])

    @contextlib.contextmanager
    def repeated(self) -> Iterator[None]:
        """Within this, what was drawn from then on is drawn again."""
        before = RngState(self.device)
        self.restore()
        try:
            yield
        finally:
            before.restore()


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm still normalises by the batch, but its running statistics stay."""
    norms = [
        module
        for module in model.modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
