"""Learning-rate schedules: each takes the optimizer and the number of steps of the whole training.

Shapes are given in fractions of the training and factors of the optimizer's own learning rate, so that
`trainer.max_epochs` and `optimizer.lr` change without touching the schedule. Each schedule is a closed form of the
step: continuing from a checkpoint needs no more than the step's number.
"""

import math
from collections.abc import Callable, Sequence

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def check_fractions(**fractions: float) -> None:
    for name, fraction in fractions.items():
        if not 0 <= fraction <= 1:
            raise ValueError(f"scheduler.{name} is a fraction. Got {fraction}; give 0 to 1")


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
    check_fractions(warmup_fraction=warmup_fraction, end_factor=end_factor)

    def shape(progress: float) -> float:
        return end_factor + (1 - end_factor) * half_cosine(progress)

    return LambdaLR(optimizer, with_warmup(shape, total_steps, warmup_fraction))


def one_cycle(
    optimizer: Optimizer,
    total_steps: int,
    peak_fraction: float = 0.25,
    start_factor: float = 0.04,
    end_factor: float = 0.0,
    shape: str = "cosine",
) -> LambdaLR:
    """From `start_factor` up to the learning rate at `peak_fraction`, and down to `end_factor` (Smith & Topin 2018).

    shape: both ways "cosine", or "linear".
    """
    check_fractions(peak_fraction=peak_fraction, start_factor=start_factor, end_factor=end_factor)
    descents = {"cosine": half_cosine, "linear": lambda progress: 1 - progress}
    if shape not in descents:
        raise ValueError(f"unknown scheduler.shape. Got {shape!r}; give {' or '.join(descents)}")
    descent = descents[shape]

    def factor(step: int) -> float:
        progress = min(step / total_steps, 1.0)
        if progress < peak_fraction:
            return start_factor + (1 - start_factor) * (1 - descent(progress / peak_fraction))
        return end_factor + (1 - end_factor) * descent((progress - peak_fraction) / (1 - peak_fraction or 1.0))

    return LambdaLR(optimizer, factor)


def multistep(
    optimizer: Optimizer,
    total_steps: int,
    milestones: Sequence[float] = (0.5, 0.75),
    factor: float = 0.1,
    warmup_fraction: float = 0.0,
) -> LambdaLR:
    """The learning rate times `factor` after each milestone, a fraction of all steps (He et al. 2015, section 4.2)."""
    check_fractions(warmup_fraction=warmup_fraction, **{f"milestones[{i}]": m for i, m in enumerate(milestones)})
    steps = [round(milestone * total_steps) for milestone in milestones]
    warmup_steps = round(warmup_fraction * total_steps)

    def decay(step: int) -> float:
        rise = min(1.0, (step + 1) / warmup_steps) if warmup_steps else 1.0
        return rise * factor ** sum(step >= milestone for milestone in steps)

    return LambdaLR(optimizer, decay)


def constant(optimizer: Optimizer, total_steps: int, warmup_fraction: float = 0.0) -> LambdaLR:
    """The learning rate throughout, after a linear warm-up."""
    check_fractions(warmup_fraction=warmup_fraction)
    return LambdaLR(optimizer, with_warmup(lambda progress: 1.0, total_steps, warmup_fraction))
