"""Muon against torch.optim.Muon on flattened filters, and against torch.optim.SGD for the rest."""

import pytest
import torch
from helpers import record_of
from torch import nn

from cifar_resnet.optim import Muon
from cifar_resnet.optim.muon import orthogonalise


@pytest.mark.parametrize(
    ("ns_steps", "momenta", "nesterov"), [(2, (0.95, None), True), (5, (0.7, 0.9), True), (5, (0.9, 0.6), False)]
)
def test_filters_step_as_torchs_muon_and_the_rest_as_sgd(ns_steps, momenta, nesterov):
    torch.manual_seed(0)
    shapes = [(8, 3, 3, 3), (16, 8, 3, 3), (16, 8, 3, 3), (4, 8, 1, 1), (64, 2, 1, 1)]
    filters = [nn.Parameter(torch.randn(shape).contiguous(memory_format=torch.channels_last)) for shape in shapes]
    others = [nn.Parameter(torch.randn(10, 16)), nn.Parameter(torch.randn(10))]
    flat = [nn.Parameter(weight.detach().flatten(1).clone()) for weight in filters]
    twins = [nn.Parameter(weight.detach().clone()) for weight in others]
    momentum, other_momentum = momenta
    options = {"lr": 0.03, "weight_decay": 0.1, "ns_steps": ns_steps, "momentum": momentum, "nesterov": nesterov}
    others_options = {"other_lr_factor": 20 / 3, "other_weight_decay": 1e-2, "other_momentum": other_momentum}
    ours = Muon([*filters, *others], **options, **others_options)
    theirs = torch.optim.Muon(flat, **options)
    sgd = torch.optim.SGD(twins, lr=0.2, momentum=other_momentum or momentum, nesterov=nesterov, weight_decay=1e-2)
    for _ in range(5):
        for ours_, theirs_ in zip([*filters, *others], [*flat, *twins], strict=True):
            ours_.grad = torch.randn_like(ours_)
            theirs_.grad = ours_.grad.reshape(theirs_.shape).clone()
        for optimizer in (ours, theirs, sgd):
            optimizer.step()
    for weight, expected in zip(filters, flat, strict=True):
        torch.testing.assert_close(weight.flatten(1), expected, rtol=0, atol=1e-2)  # both in bfloat16
    for weight, expected in zip(others, twins, strict=True):
        torch.testing.assert_close(weight, expected)


@pytest.mark.parametrize("shape", [(16, 72), (72, 16), (30, 30)])
def test_singular_values_come_to_lie_around_one(shape):
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalise(torch.randn(3, *shape)))
    assert values.min() > 0.3
    assert values.max() < 1.4


def test_schedules_move_both_rates_and_spared_weights_are_not_decayed(cifar_train, run_dirs):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4, 2))
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    spared = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = Muon([{"params": decayed}, {"params": spared, "weight_decay": 0.0}], lr=0.02)
    groups = [(group["muon"], group["lr"], group["weight_decay"]) for group in optimizer.param_groups]
    assert groups == [(True, 0.02, 0.01), (False, 0.1, 5e-4), (False, 0.1, 0.0)]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.01, 0.05, 0.05]
    assert cifar_train("optimizer=muon", "trainer.max_epochs=2", "model.decay_norm_and_bias=false") == 0
    assert record_of(run_dirs()[0])["config"]["optimizer"]["other_lr_factor"] == 5


def test_unit_filters_keep_their_norm():
    weights = [nn.Parameter(torch.randn(8, 4, 3, 3)), nn.Parameter(torch.randn(8, 4, 3, 3) * 30)]
    optimizer = Muon(weights, lr=0.1, weight_decay=0.0, unit_filters=True)
    before = [weight.detach() / weight.norm() * 8**0.5 for weight in weights]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    for weight, start in zip(weights, before, strict=True):
        assert 0.2 < (weight - start).norm() / 8**0.5 / 0.1 < 1.3  # a step changes this share of a layer


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": -1.0}, "lr must be a number above 0. Got -1.0"),
        ({"momentum": 1.0}, "momentum must be a number from 0 to below 1. Got 1.0"),
        ({"other_lr_factor": -0.1}, "other_lr_factor must be a number, 0 or more. Got -0.1"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        Muon([nn.Parameter(torch.ones(1))], **options)


def test_a_step_that_overflowed_under_a_loss_scale_is_left_out_and_the_scale_taken_back():
    """As a scaler hands it over: `found_inf` and `grad_scale`; against the same steps without either."""
    torch.manual_seed(0)
    start = [torch.randn(8, 3, 3, 3).contiguous(memory_format=torch.channels_last), torch.randn(10, 16)]
    (scaled, plain) = ([nn.Parameter(weight.clone()) for weight in start] for _ in range(2))
    ours, reference = Muon(scaled, unit_filters=True), Muon(plain, unit_filters=True)
    ours.grad_scale = torch.tensor(256.0)
    for is_overflow in (False, True, False):
        ours.found_inf = torch.tensor(float(is_overflow))
        gradients = [torch.randn_like(weight) for weight in start]
        for weight, twin, gradient in zip(scaled, plain, gradients, strict=True):
            weight.grad, twin.grad = gradient * (torch.nan if is_overflow else 256), gradient
        ours.step()
        if not is_overflow:
            reference.step()
        for weight, twin in zip(scaled, plain, strict=True):
            torch.testing.assert_close(weight, twin)
            torch.testing.assert_close(*(o.state[w]["momentum_buffer"] for o, w in ((ours, weight), (reference, twin))))
