"""Learning-rate schedules: each takes the optimizer and the number of steps of the whole training.

Shapes are given in fractions of the training and factors of the optimizer's own learning rate, so that
`trainer.max_epochs` and `optimizer.lr` change without touching the schedule. Each schedule is a closed form of the
step: continuing from a checkpoint needs no more than the step's number.
"""

import math
from collections.abc import Callable, Sequence
from typing import Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from cifar_resnet.constraints import Count, Fraction, NonNegative, Positive, check
from cifar_resnet.errors import refuse_if

# from 1 down to 0 as progress goes from 0 to 1
DESCENTS: dict[str, Callable[[float], float]] = {
    "cosine": lambda progress: (1 + math.cos(math.pi * progress)) / 2,
    "linear": lambda progress: 1 - progress,
}


def with_warmup(
    optimizer: Optimizer, total_steps: int, warmup_fraction: float, end_factor: float, shape: str
) -> LambdaLR:
    """Rising linearly through the warm-up, then down to `end_factor` through the rest."""
    warmup_steps = round(warmup_fraction * total_steps)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return (step + 1) / warmup_steps
        progress = min((step - warmup_steps) / max(1, total_steps - warmup_steps), 1.0)
        return end_factor + (1 - end_factor) * DESCENTS[shape](progress)

    return LambdaLR(optimizer, factor)


def cosine(
    optimizer: Optimizer, total_steps: int, warmup_fraction: Fraction = 0.0, end_factor: Fraction = 0.0
) -> LambdaLR:
    """Half a cosine from the learning rate down to `end_factor` of it (Loshchilov & Hutter 2017, without restarts)."""
    check(cosine, locals())
    return with_warmup(optimizer, total_steps, warmup_fraction, end_factor, "cosine")


def linear(
    optimizer: Optimizer, total_steps: int, warmup_fraction: Fraction = 0.0, end_factor: Fraction = 0.0
) -> LambdaLR:
    """A straight line from the learning rate down to `end_factor` of it."""
    check(linear, locals())
    return with_warmup(optimizer, total_steps, warmup_fraction, end_factor, "linear")


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    peak_fraction: Fraction = 0.25,
    start_factor: Fraction = 0.04,
    end_factor: Fraction = 0.0,
    shape: Literal["cosine", "linear"] = "cosine",
    max_lr: Positive | Literal["auto"] | None = None,
    min_lr: NonNegative | None = None,
    peak_epoch: NonNegative | None = None,
    epochs: Count | None = None,
) -> LambdaLR:
    """From `start_factor` up to the learning rate at `peak_fraction`, and down to `end_factor` (Smith & Topin 2018).

    shape: both ways "cosine", or "linear".
    The same in other words, each of which goes before what it replaces: max_lr, the learning rate at the peak, for the
    optimizer's ("auto": cifar-train finds it by a range test before it comes here); min_lr, where it starts and ends,
    for the factors; peak_epoch, of `epochs`, for peak_fraction.
    """
    check(one_cycle, locals())
    descent, lr = DESCENTS[shape], optimizer.param_groups[0]["lr"]
    refuse_if(
        isinstance(max_lr, str),
        f"scheduler.max_lr has not been found yet. Got {max_lr}; give a learning rate, or null",
    )
    refuse_if(
        lr == 0 and max_lr is not None,
        f"scheduler.max_lr is reached from optimizer.lr. Got {lr} there; give more than 0",
    )
    peak, scale = (lr, 1.0) if max_lr is None else (max_lr, max_lr / lr)
    if min_lr is not None:
        refuse_if(
            min_lr > peak or peak == 0,
            f"scheduler.min_lr lies below the peak. Got {min_lr}; give 0 to {peak}",
        )
        start_factor = end_factor = min_lr / peak
    if peak_epoch is not None:
        refuse_if(
            peak_epoch > (epochs or 0),
            f"scheduler.peak_epoch is one of the training's. Got {peak_epoch}; give 0 to {epochs}",
        )
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
    milestones: Sequence[Fraction] = (0.5, 0.75),
    factor: NonNegative = 0.1,
    warmup_fraction: Fraction = 0.0,
) -> LambdaLR:
    """The learning rate times `factor` after each milestone, a fraction of all steps (He et al. 2015, section 4.2)."""
    check(multistep, locals())
    warmup_steps, *steps = [round(fraction * total_steps) for fraction in (warmup_fraction, *milestones)]

    def decay(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return rise * factor ** sum(step >= milestone for milestone in steps)

    return LambdaLR(optimizer, decay)


def constant(optimizer: Optimizer, total_steps: int, warmup_fraction: Fraction = 0.0) -> LambdaLR:
    """The learning rate throughout, after a linear warm-up."""
    check(constant, locals())
    return with_warmup(optimizer, total_steps, warmup_fraction, end_factor=1.0, shape="linear")
