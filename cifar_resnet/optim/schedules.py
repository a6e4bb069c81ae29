"""Learning-rate schedules: each takes the optimizer and the number of steps of the whole training.

Shapes are given in fractions of the training and factors of the optimizer's own learning rate, so that
`trainer.max_epochs` and `optimizer.lr` change without touching the schedule. Each schedule is a closed form of the
step: continuing from a checkpoint needs no more than the step's number.
"""

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cifar_resnet import limits


def half_cosine(progress: float) -> float:
    """1 down to 0 as progress goes from 0 to 1."""
    return (1 + math.cos(math.pi * progress)) / 2


def with_warmup(shape: Callable[[float], float], total_steps: int, warmup_fraction: float) -> Callable[[int], float]:
    """A factor for each step: rising linearly through the warm-up, then `shape` of the progress through the rest."""
    warmup_steps = round(warmup_fraction * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        return shape(min((step - warmup_steps) / max(1, total_steps - warmup_steps), 1.0))

    return factor


def cosine(optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.0, end_factor: float = 0.0) -> LambdaLR:
    """Half a cosine from the learning rate down to `end_factor` of it (Loshchilov & Hutter 2017, without restarts)."""
    limits.require("scheduler", warmup_fraction=warmup_fraction, end_factor=end_factor)

    def shape(progress: float) -> float:
        return end_factor + (1 - end_factor) * half_cosine(progress)

    return LambdaLR(optimizer, with_warmup(shape, total_steps, warmup_fraction))


def linear(optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.0, end_factor: float = 0.0) -> LambdaLR:
    """A straight line from the learning rate down to `end_factor` of it."""
    limits.require("scheduler", warmup_fraction=warmup_fraction, end_factor=end_factor)

    def shape(progress: float) -> float:
        return end_factor + (1 - end_factor) * (1 - progress)

    return LambdaLR(optimizer, with_warmup(shape, total_steps, warmup_fraction))


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    peak_fraction: float = 0.25,
    start_factor: float = 0.04,
    end_factor: float = 0.0,
    shape: str = "cosine",
    max_lr: float | str | None = None,
    min_lr: float | None = None,
    peak_epoch: float | None = None,
    epochs: int | None = None,
) -> LambdaLR:
    """From `start_factor` up to the learning rate at `peak_fraction`, and down to `end_factor` (Smith & Topin 2018).

    shape: both ways "cosine", or "linear".
    The same in other words, each of which goes before what it replaces: max_lr, the learning rate at the peak, for the
    optimizer's ("auto": cifar-train finds it by a range test before it comes here); min_lr, where it starts and ends,
    for the factors; peak_epoch, of `epochs`, for peak_fraction.
    """
    limits.require(
        "scheduler",
        peak_fraction=peak_fraction,
        start_factor=start_factor,
        end_factor=end_factor,
        shape=shape,
        max_lr=max_lr,
    )
    descents = {"cosine": half_cosine, "linear": lambda progress: 1 - progress}
    descent = descents[shape]
    lr = optimizer.param_groups[0]["lr"]
    if isinstance(max_lr, str):
        raise ValueError(f"scheduler.max_lr has not been found yet. Got {max_lr}; give a learning rate, or null")
    peak = lr if max_lr is None else max_lr
    if lr == 0 and max_lr is not None:
        raise ValueError(f"scheduler.max_lr is reached from optimizer.lr. Got {lr} there; give more than 0")
    scale = 1.0 if max_lr is None else max_lr / lr
    if min_lr is not None:
        if not 0 <= min_lr <= peak or peak == 0:
            raise ValueError(f"scheduler.min_lr lies below the peak. Got {min_lr}; give 0 to {peak}")
        start_factor = end_factor = min_lr / peak
    if peak_epoch is not None:
        if not 0 <= peak_epoch <= (epochs or 0):
            raise ValueError(f"scheduler.peak_epoch is one of the training's. Got {peak_epoch}; give 0 to {epochs}")
        peak_fraction = peak_epoch / epochs

    def factor(step: int) -> float:
        progress = min(step / total_steps, 1.0)
        if progress < peak_fraction:
            rise = 1 - descent(progress / peak_fraction)
            return scale * (start_factor + (1 - start_factor) * rise)
        fall = descent((progress - peak_fraction) / (1 - peak_fraction or 1.0))
        return scale * (end_factor + (1 - end_factor) * fall)

    return LambdaLR(optimizer, factor)


def multistep(
    optimizer: Optimizer,
    total_steps: int,
    milestones: Sequence[float] = (0.5, 0.75),
    factor: float = 0.1,
    warmup_fraction: float = 0.0,
) -> LambdaLR:
    """The learning rate times `factor` after each milestone, a fraction of all steps (He et al. 2015, section 4.2)."""
    limits.require("scheduler", warmup_fraction=warmup_fraction, milestones=milestones)
    steps = [round(milestone * total_steps) for milestone in milestones]
    warmup_steps = round(warmup_fraction * total_steps)

    def decay(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return rise * factor ** sum(step >= milestone for milestone in steps)

    return LambdaLR(optimizer, decay)


def constant(optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.0) -> LambdaLR:
    """The learning rate throughout, after a linear warm-up."""
    limits.require("scheduler", warmup_fraction=warmup_fraction)
    return LambdaLR(optimizer, with_warmup(lambda progress: 1.0, total_steps, warmup_fraction))
