"""Schedules against torch's own, and by their defining points."""

from functools import partial

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import (
    CosineAnnealingLR,
    CyclicLR,
    LinearLR,
    MultiStepLR,
    OneCycleLR,
    ReduceLROnPlateau,
    SequentialLR,
)

from cifar_resnet.errors import UsageError
from cifar_resnet.optim import Schedule, constant, cosine, linear, multistep, one_cycle

STEPS = 40


def optimizer() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2)


def rates(make, **options) -> list[float]:
    """The learning rate at each step, and after the last."""
    sgd = optimizer()
    scheduler = make(sgd, **options)
    found = []
    for _ in range(STEPS):
        found.append(sgd.param_groups[0]["lr"])
        sgd.step()
        scheduler.step()
    return [*found, sgd.param_groups[0]["lr"]]


def test_cosine_equals_torchs():
    expected = rates(CosineAnnealingLR, T_max=STEPS, eta_min=0.02)
    assert rates(cosine, total_steps=STEPS, end_factor=0.1) == pytest.approx(expected)


def test_linear_equals_torchs():
    expected = rates(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=STEPS)
    assert rates(linear, total_steps=STEPS, end_factor=0.1) == pytest.approx(expected)


def test_one_cycle_in_rates_and_epochs_equals_one_cycle_in_factors():
    """0.0017 up to 0.017 at epoch 5 of 20 and back, as a project put it."""
    words = {"max_lr": 0.017, "min_lr": 0.0017, "peak_epoch": 5, "epochs": 20, "shape": "linear"}
    found = rates(one_cycle, total_steps=STEPS, **words)
    assert [found[0], found[10], found[40]] == pytest.approx([0.0017, 0.017, 0.0017])
    assert found[5] == pytest.approx((0.0017 + 0.017) / 2)
    factors = {"peak_fraction": 0.25, "start_factor": 0.1, "end_factor": 0.1, "shape": "linear"}
    assert found == pytest.approx([rate * 0.017 / 0.2 for rate in rates(one_cycle, total_steps=STEPS, **factors)])


def test_a_greatest_rate_is_that_of_the_optimizer_and_groups_keep_their_multiples():
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (1.0, 0.2)]
    optimizer = torch.optim.SGD(groups, lr=0.2)
    schedule = one_cycle(optimizer, STEPS, peak_fraction=0.0, max_lr=0.4)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([2.0, 0.4])
    assert schedule.get_last_lr() == pytest.approx([2.0, 0.4])


def test_multistep_equals_torchs():
    expected = rates(MultiStepLR, milestones=[20, 30], gamma=0.2)
    assert rates(multistep, total_steps=STEPS, milestones=[0.5, 0.75], factor=0.2) == pytest.approx(expected)


@pytest.mark.parametrize(("shape", "strategy"), [("cosine", "cos"), ("linear", "linear")])
def test_one_cycle_equals_torchs(shape, strategy):
    options = {"max_lr": 0.2, "pct_start": 0.25, "div_factor": 10, "final_div_factor": 2, "cycle_momentum": False}
    # torch's cycle of n steps has its last rate at step n - 1 and its peak at pct_start * n - 1: 41 and 11/41 fit ours
    expected = rates(OneCycleLR, total_steps=STEPS + 1, anneal_strategy=strategy, **(options | {"pct_start": 11 / 41}))
    found = rates(one_cycle, total_steps=STEPS, peak_fraction=0.25, start_factor=0.1, end_factor=0.05, shape=shape)
    assert found == pytest.approx(expected)


def test_constant_after_a_linear_warmup():
    assert rates(constant, total_steps=STEPS, warmup_fraction=0.1) == pytest.approx([0.05, 0.1, 0.15] + [0.2] * 38)


@pytest.mark.parametrize("make", [cosine, linear, multistep])
def test_warmup_rises_to_the_learning_rate(make):
    found = rates(make, total_steps=STEPS, warmup_fraction=0.25)
    assert found[:10] == pytest.approx([0.02 * step for step in range(1, 11)])
    assert max(found) == pytest.approx(0.2)


@pytest.mark.parametrize("make", [cosine, linear, one_cycle, multistep, constant])
def test_a_longer_training_stretches_the_shape(make):
    """Every second rate of twice as many steps is the rate of the shorter training."""

    def factors(total_steps):
        scheduler = make(optimizer(), total_steps=total_steps)
        return [scheduler.lr_lambdas[0](step) for step in range(total_steps)]

    assert factors(2 * STEPS)[::2] == pytest.approx(factors(STEPS))


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (cosine, {"warmup_fraction": 5}, "warmup_fraction must be a number from 0 to 1. Got 5"),
        (cosine, {"end_factor": -1}, "end_factor must be a number from 0 to 1. Got -1"),
        (one_cycle, {"peak_fraction": 1.5}, "peak_fraction must be a number from 0 to 1. Got 1.5"),
        (one_cycle, {"shape": "square"}, "shape must be cosine or linear. Got 'square'"),
        (one_cycle, {"max_lr": -1.0}, "max_lr must be a number above 0, auto or null. Got -1.0"),
        (
            one_cycle,
            {"max_lr": "auto"},
            "scheduler.max_lr has not been found yet. Got auto; give a learning rate",
        ),
        (one_cycle, {"max_lr": 0.1, "min_lr": 0.2}, "scheduler.min_lr lies below the peak. Got 0.2; give 0 to 0.1"),
        (one_cycle, {"peak_epoch": 9, "epochs": 5}, "scheduler.peak_epoch is one of .* Got 9; give 0 to 5"),
        (linear, {"end_factor": 2}, "end_factor must be a number from 0 to 1. Got 2"),
        (multistep, {"milestones": [0.5, 150]}, r"milestones\[1\] must be a number from 0 to 1. Got 150"),
        (constant, {"warmup_fraction": -0.1}, "warmup_fraction must be a number from 0 to 1. Got -0.1"),
    ],
)
def test_impossible_shapes_are_refused(make, options, message):
    with pytest.raises(UsageError, match=f"^{message}"):
        make(optimizer(), total_steps=STEPS, **options)


# Schedules of torch's own and of others, and when they move

EPOCHS = 8


def factor(step: int) -> float:
    return 1 / (1 + step)


def by_hand(interval: str, make) -> list[float]:
    """The rate of each step by a plain loop over epochs of five steps, and after the last."""
    sgd = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)
    scheduler, found = make(sgd), []
    for _ in range(EPOCHS):
        for _ in range(STEPS // EPOCHS):
            found.append(sgd.param_groups[0]["lr"])
            sgd.step()
            if interval == "step":
                scheduler.step()
        if interval == "epoch":
            scheduler.step()
    return [*found, sgd.param_groups[0]["lr"]]


def warmed_up(optimizer):
    parts = [lr_scheduler.LinearLR(optimizer, total_iters=2), lr_scheduler.ExponentialLR(optimizer, 0.5)]
    return lr_scheduler.SequentialLR(optimizer, parts, milestones=[2])


CASES = {
    "StepLR": (partial(lr_scheduler.StepLR, step_size=3), None, "epoch"),
    "StepLR by step": (partial(lr_scheduler.StepLR, step_size=3), "step", "step"),
    "MultiStepLR": (partial(lr_scheduler.MultiStepLR, milestones=[2, 5]), None, "epoch"),
    "ExponentialLR": (partial(lr_scheduler.ExponentialLR, gamma=0.7), None, "epoch"),
    "CosineAnnealingLR": (partial(CosineAnnealingLR, T_max=EPOCHS), None, "epoch"),
    "CosineAnnealingWarmRestarts": (partial(lr_scheduler.CosineAnnealingWarmRestarts, T_0=3), None, "epoch"),
    "PolynomialLR": (partial(lr_scheduler.PolynomialLR, total_iters=STEPS), "step", "step"),
    "LambdaLR": (partial(lr_scheduler.LambdaLR, lr_lambda=factor), None, "epoch"),
    "LambdaLR by step": (partial(lr_scheduler.LambdaLR, lr_lambda=factor), "step", "step"),
    "MultiplicativeLR": (partial(lr_scheduler.MultiplicativeLR, lr_lambda=factor), None, "epoch"),
    "CyclicLR": (partial(lr_scheduler.CyclicLR, base_lr=0.01, max_lr=0.1, step_size_up=7), None, "step"),
    "OneCycleLR": (partial(OneCycleLR, max_lr=0.3, total_steps=STEPS), None, "step"),
    "OneCycleLR by epoch": (partial(OneCycleLR, max_lr=0.3, total_steps=EPOCHS), "epoch", "epoch"),
}


def sgd_with_momentum() -> torch.optim.Optimizer:
    return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.2, momentum=0.9)


@pytest.mark.parametrize("case", CASES)
def test_a_schedule_of_torchs_moves_when_torchs_documentation_has_it_move(case):
    make, interval, expected = CASES[case]
    schedule = Schedule(make, interval)
    assert schedule.interval == expected
    assert schedule.rates(sgd_with_momentum(), STEPS, EPOCHS) == pytest.approx(by_hand(expected, make))


def cyclic(sgd: torch.optim.Optimizer) -> CyclicLR:
    return CyclicLR(sgd, 0.01, 0.4, step_size_up=10)


class Cycle(CyclicLR):
    def __init__(self, optimizer):
        super().__init__(optimizer, 0.01, 0.4, step_size_up=10)


@pytest.mark.parametrize(
    "make",
    [
        cyclic,
        Cycle,
        lambda sgd: OneCycleLR(sgd, 0.4, total_steps=STEPS),
        lambda sgd: SequentialLR(sgd, [LinearLR(sgd), cyclic(sgd)], milestones=[5]),
    ],
    ids=["CyclicLR", "a class of its", "OneCycleLR", "a part"],
)
def test_a_function_that_gives_what_counts_steps_moves_by_steps(make):
    schedule = Schedule(make)
    schedule.build(optimizer(), total_steps=STEPS, epochs=4)
    assert schedule.interval == "step"
    assert Schedule(make).rates(optimizer(), STEPS, epochs=4) == pytest.approx(rates(make))
    epochs = Schedule(lambda sgd: OneCycleLR(sgd, 0.4, total_steps=4))
    epochs.build(optimizer(), total_steps=STEPS, epochs=4)
    assert epochs.interval == "epoch"
    asked = Schedule(make, interval="epoch")
    asked.build(optimizer(), total_steps=STEPS, epochs=4)
    assert asked.interval == "epoch"


def test_a_function_that_gives_a_plateau_needs_no_argument_for_it():
    def plateau(sgd):
        return ReduceLROnPlateau(sgd)

    schedule = Schedule(plateau)
    for _ in range(2):  # once it is known for one
        schedule.build(optimizer(), total_steps=STEPS, epochs=4)
        assert schedule.goes_by_metric


def test_the_length_is_filled_in_where_it_is_left_out():
    for interval, length in (("step", STEPS), ("epoch", EPOCHS)):
        found = Schedule(partial(OneCycleLR, max_lr=0.3), interval).rates(sgd_with_momentum(), STEPS, EPOCHS)
        assert found == pytest.approx(by_hand(interval, partial(OneCycleLR, max_lr=0.3, total_steps=length)))
    by_parts = partial(OneCycleLR, max_lr=0.3, epochs=EPOCHS, steps_per_epoch=STEPS // EPOCHS)
    assert Schedule(by_parts).rates(sgd_with_momentum(), STEPS, EPOCHS) == pytest.approx(by_hand("step", by_parts))


def test_schedules_of_schedules_are_made_of_their_parts():
    parts = [partial(lr_scheduler.LinearLR, total_iters=2), partial(lr_scheduler.ExponentialLR, gamma=0.5)]
    sequential = Schedule(partial(lr_scheduler.SequentialLR, schedulers=parts, milestones=[2]))
    assert sequential.rates(optimizer(), STEPS, EPOCHS) == pytest.approx(by_hand("epoch", warmed_up))
    chained = Schedule(partial(lr_scheduler.ChainedScheduler, schedulers=parts))
    expected = [0.2 * 0.5**epoch * min(1, (1 + epoch) / 3 if epoch < 2 else 1) for epoch in range(EPOCHS + 1)]
    assert chained.rates(optimizer(), STEPS, EPOCHS)[:: STEPS // EPOCHS] == pytest.approx(expected)


def test_a_function_of_the_optimizer_and_the_number_of_steps_is_a_schedule():
    def own(optimizer, total_steps):
        return LinearLR(optimizer, 1.0, 0.5, total_steps)

    found = Schedule(own).rates(optimizer(), STEPS, EPOCHS)
    assert found == pytest.approx([0.2 * (1 - 0.5 * step / STEPS) for step in range(STEPS + 1)])


@pytest.mark.parametrize(("monitor", "mode"), [(None, "min"), ("val/loss", "min"), ("val/acc", "max")])
def test_what_a_plateau_goes_by_says_which_way_is_up(monitor, mode):
    schedule = Schedule(ReduceLROnPlateau, monitor=monitor)
    assert schedule.interval == "epoch"
    assert schedule.build(optimizer(), STEPS, EPOCHS).mode == mode
    assert schedule.rates(optimizer(), STEPS, EPOCHS) is None


class Tangled:
    """A callable whose state is more than plain values."""

    def __init__(self):
        self.network = torch.nn.Linear(1, 1)

    def __call__(self, step: int) -> float:
        return 1.0


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (partial(lr_scheduler.StepLR), {}, r"scheduler\.step_size has no default. Give it: scheduler\.step_size=…"),
        (ReduceLROnPlateau, {"interval": "step"}, "goes by what an epoch measured. Got scheduler.interval=step"),
        (
            partial(ReduceLROnPlateau, mode="max"),
            {},
            "scheduler.mode follows .* Got max for the loss; leave it",
        ),
        (
            partial(ReduceLROnPlateau, mode="min"),
            {"monitor": "val/acc"},
            "scheduler.mode .* Got min for val/acc",
        ),
        (
            partial(CosineAnnealingLR, T_max=3),
            {"monitor": "val/acc"},
            "is for ReduceLROnPlateau. Got val/acc for",
        ),
        (ReduceLROnPlateau, {"monitor": "test/acc"}, "monitor must be val/acc, val/loss, .* Got 'test/acc'"),
        (cosine, {"interval": "batch"}, "interval must be step, epoch or null. Got 'batch'"),
        (
            partial(OneCycleLR, max_lr=1.0, total_steps=7),
            {},
            "OneCycleLR ends before .* Got 7 of 40 steps; leave",
        ),
        (lambda optimizer: 3, {}, "a schedule is called with the optimizer .* Got int from <lambda>; give LambdaLR"),
        (partial(lr_scheduler.LambdaLR, lr_lambda=Tangled()), {}, "kept in checkpoints as plain values. Got LambdaLR"),
    ],
)
def test_schedules_that_cannot_work_are_told_what_to_write(make, options, message):
    with pytest.raises(UsageError, match=message):
        Schedule(make, **options).build(sgd_with_momentum(), STEPS, EPOCHS)


@pytest.mark.parametrize(
    "make", [partial(OneCycleLR, max_lr=1.0), partial(lr_scheduler.CyclicLR, base_lr=0.1, max_lr=1)]
)
def test_a_schedule_that_would_undo_the_rates_of_parts_is_refused(make):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in (0.1, 6.4)]
    with pytest.raises(UsageError, match=r"gives all weights one learning rate. Got .*\[0.1, 6.4\]"):
        Schedule(make).build(torch.optim.SGD(groups, momentum=0.9), STEPS)
