"""Schedules against torch's own, and by their defining points."""

import pytest
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, MultiStepLR, OneCycleLR

from cifar_resnet.errors import UsageError
from cifar_resnet.optim import constant, cosine, linear, multistep, one_cycle

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
        (one_cycle, {"max_lr": -1.0}, "max_lr must be a number above 0 or auto or null. Got -1.0"),
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
