"""Learning-rate schedules: each takes the optimizer and the number of steps of the whole training.

Shapes are given in fractions of the training and factors of the optimizer's own learning rate, so that
`trainer.max_epochs` and `optimizer.lr` change without touching the schedule. Each schedule is a closed form of the
step: continuing from a checkpoint needs no more than the step's number.

`Schedule` says when one of these, one of torch's or one of a user's own moves.
"""

import inspect
import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

from torch.optim import Optimizer
from torch.optim.lr_scheduler import CyclicLR, LambdaLR, LRScheduler, OneCycleLR, ReduceLROnPlateau

from cifar_resnet.constraints import Count, Fraction, NonNegative, Positive, check
from cifar_resnet.errors import UsageError, refuse_if
from cifar_resnet.monitored import MODES, Monitor
from cifar_resnet.readable import why_unreadable

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
    optimizer: Optimizer,
    total_steps: int,
    warmup_fraction: Fraction = 0.0,
    end_factor: Fraction = 0.0,
) -> LambdaLR:
    """Half a cosine from the learning rate down to `end_factor` of it (Loshchilov & Hutter 2017, without restarts)."""
    check(cosine, locals())
    return with_warmup(optimizer, total_steps, warmup_fraction, end_factor, "cosine")


def linear(
    optimizer: Optimizer,
    total_steps: int,
    warmup_fraction: Fraction = 0.0,
    end_factor: Fraction = 0.0,
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
    optimizer's own, `optimizer.defaults["lr"]`, of which its groups may have multiples ("auto": cifar-train finds it by
    a range test before it comes here); min_lr, where it starts and ends, for the factors; peak_epoch, of `epochs`, for
    peak_fraction.
    """
    check(one_cycle, locals())
    descent, lr = DESCENTS[shape], optimizer.defaults["lr"]  # of its groups each may have a multiple of it
    if isinstance(max_lr, str):
        raise UsageError(f"scheduler.max_lr has not been found yet. Got {max_lr}; give a learning rate, or null")
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


class Schedule:
    """A learning-rate schedule, and when it moves.

    make: called with the optimizer, and where it takes that with total_steps: how often the schedule moves in the whole
        training. Gives one of torch's schedulers; of those that are made of others, these as `schedulers`.
    interval: whether it moves after each "step" or each "epoch"; None: after each step where it takes total_steps and
        for CyclicLR, after each epoch for all others.
    monitor: what ReduceLROnPlateau goes by, after epochs in which it was measured; None: the loss on validation images,
        or where there are none on training images. Its mode follows from this.
    """

    def __init__(
        self,
        make: Callable[..., LRScheduler],
        interval: Literal["step", "epoch"] | None = None,
        monitor: Monitor | None = None,
    ):
        check(Schedule, locals())
        target = make.func if isinstance(make, partial) else make
        self.make, self.monitor, self.name = make, monitor, getattr(target, "__name__", str(target))
        # of a function only what it makes tells
        self.goes_by_metric = inspect.isclass(target) and issubclass(target, ReduceLROnPlateau)
        refuse_if(
            interval == "step" and self.goes_by_metric,
            f"{self.name} goes by what an epoch measured. Got scheduler.interval=step; leave it out",
        )
        mode, metric = getattr(make, "keywords", {}).get("mode"), monitor or "the loss"
        expected = MODES[monitor or "val/loss"]
        refuse_if(
            self.goes_by_metric and mode not in (None, expected),
            f"scheduler.mode follows from what {self.name} goes by. Got {mode} for {metric}; leave it out",
        )
        for key in lacking(make):
            raise UsageError(f"scheduler.{key} has no default. Give it: scheduler.{key}=…")
        self.is_given = interval is not None
        self.interval = interval or ("step" if moves_by_step(make) else "epoch")

    def build(
        self, optimizer: Optimizer, total_steps: float, epochs: float = 1, monitor: Monitor = "val/loss"
    ) -> LRScheduler:
        """total_steps, epochs: of the whole training, math.inf where nobody knows. monitor: what goes for the
        schedule's own where that is None."""
        moves = total_steps if self.interval == "step" else epochs
        takes_mode = self.goes_by_metric and "mode" in parameters_of(self.make)  # else it is asked of what is made
        mode = {"mode": MODES[self.monitor or monitor]} if takes_mode else {}
        before = [group["lr"] for group in optimizer.param_groups]
        scheduler = made(self.make, optimizer, moves, **mode)
        refuse_if(
            not isinstance(scheduler, LRScheduler),
            f"a schedule is called with the optimizer and total_steps and gives one of torch.optim.lr_scheduler. "
            f"Got {type(scheduler).__name__} from {self.name}; give LambdaLR(optimizer, …), say",
        )
        self.goes_by_metric = isinstance(scheduler, ReduceLROnPlateau)
        # one whose own length is that of the epochs counts these
        if not self.is_given and is_cyclic(scheduler) and getattr(scheduler, "total_steps", None) != epochs:
            self.interval, moves = "step", total_steps
        refuse_if(
            self.monitor and not self.goes_by_metric,
            f"scheduler.monitor is for ReduceLROnPlateau. Got {self.monitor} for {self.name}; leave it out",
        )
        wanted = MODES[self.monitor or monitor]
        refuse_if(
            self.goes_by_metric and getattr(scheduler, "mode", None) != wanted,
            f"{self.name} goes by {self.monitor or monitor}. Got a ReduceLROnPlateau of another mode; give "
            f'mode="{wanted}"',
        )
        planned = getattr(scheduler, "total_steps", None) or moves
        refuse_if(
            planned < moves < math.inf,
            f"{self.name} ends before the training. Got {planned} of {moves} {self.interval}s; leave out its length, "
            f"which is filled in",
        )
        after = [group["lr"] for group in optimizer.param_groups]
        ratios = [(a * before[0], after[0] * b) for a, b in zip(after, before, strict=True)]
        refuse_if(
            isinstance(scheduler, (OneCycleLR, CyclicLR)) and not all(math.isclose(*pair) for pair in ratios),
            f"{self.name} gives all weights one learning rate. Got an optimizer or model.bias_lr_factor with "
            f"several, {before}; give rates as lists of the same ratios, or scheduler=one_cycle",
        )
        check_state(scheduler, self.name)
        return scheduler

    def rates(self, optimizer: Optimizer, total_steps: int, epochs: int) -> list[float] | None:
        """The learning rate of each step, and after the last one; None where it goes by what will be measured.

        optimizer: of no training, for its learning rate is moved.
        """
        scheduler = self.build(optimizer, total_steps, epochs)
        if self.goes_by_metric:
            return None
        if isinstance(scheduler, LambdaLR):
            moves = total_steps if self.interval == "step" else epochs
            found: list[Any] = [scheduler.base_lrs[0] * scheduler.lr_lambdas[0](move) for move in range(moves + 1)]
        else:
            found = simulated(scheduler, total_steps if self.interval == "step" else epochs)
        steps_per_epoch = total_steps / epochs
        places = range(total_steps + 1) if self.interval == "epoch" else ()
        return [found[min(int(step / steps_per_epoch), epochs)] for step in places] or found


def made(make: Callable[..., LRScheduler], optimizer: Optimizer, moves: float, **others: object) -> LRScheduler:
    """Call it with what it takes of these, and with what has been made of its parts."""
    parameters, given = parameters_of(make), getattr(make, "keywords", {})
    has_length = given.get("total_steps") or (given.get("epochs") and given.get("steps_per_epoch"))
    length = {"total_steps": moves} if "total_steps" in parameters and not has_length else {}
    refuse_if(
        length and moves == math.inf,
        "a schedule comes to its end with the training. Got one whose length nobody knows, of a loader without a "
        "length or without max_epochs; give max_epochs, and limit_train_batches or max_steps, or scheduler=None",
    )
    if parts := given.get("schedulers"):
        others |= {"schedulers": [made(part, optimizer, moves) for part in parts]}
    return make(**others, **length, optimizer=optimizer) if parts else make(optimizer, **others, **length)


def parameters_of(make: Callable) -> set[str]:
    try:
        return set(inspect.signature(make).parameters)
    except ValueError:  # of something built in
        return set()


def lacking(make: Callable) -> list[str]:
    """What it must be given beside the optimizer and total_steps."""
    try:
        parameters = list(inspect.signature(make).parameters.values())
    except ValueError:
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [each.name for each in parameters[1:] if each.kind in named and each.default is each.empty]
    return [name for name in needed if name not in ("optimizer", "total_steps")]


def moves_by_step(make: Callable) -> bool:
    """As far as it can be told from what makes it."""
    parts = getattr(make, "keywords", {}).get("schedulers") or ()
    is_of_steps = getattr(make, "func", make) is CyclicLR or "total_steps" in parameters_of(make)
    return is_of_steps or any(map(moves_by_step, parts))


def is_cyclic(scheduler: LRScheduler) -> bool:
    """Whether it, or a part of it, counts steps."""
    parts = getattr(scheduler, "_schedulers", ())
    return isinstance(scheduler, (OneCycleLR, CyclicLR)) or any(map(is_cyclic, parts))


def check_state(scheduler: LRScheduler, name: str) -> None:
    """UsageError where a checkpoint could not be read again with its state."""
    if error := why_unreadable(scheduler.state_dict()):
        raise UsageError(
            f"a schedule is kept in checkpoints as plain values. Got {name}, with more than such "
            f"({type(error).__name__}); write what it calls as functions"
        ) from error


def simulated(scheduler: LRScheduler, moves: int) -> list[float]:
    found = [scheduler.optimizer.param_groups[0]["lr"]]
    with warnings.catch_warnings(action="ignore"):  # for its optimizer makes no steps
        for _ in range(moves):
            scheduler.step()
            found.append(scheduler.optimizer.param_groups[0]["lr"])
    return found
