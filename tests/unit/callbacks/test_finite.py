"""The count of steps that 16-bit loss scaling skipped, with a real scaler."""

from types import SimpleNamespace

import pytest
import torch
from helpers import assert_equal

from cifar_resnet.callbacks import FiniteLoss


def skipped_after(finite: list[bool], callback: FiniteLoss, scaler: torch.amp.GradScaler) -> float:
    """The count after so many steps, some of which have gradients that are not finite."""
    logged = {}
    model = SimpleNamespace(device=torch.device("cpu"), log=lambda name, value: logged.update({name: value.item()}))
    trainer = SimpleNamespace(precision_plugin=SimpleNamespace(scaler=scaler), is_last_batch=False, should_stop=False)
    callback.on_train_start(trainer, model)
    weight = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    for index, is_finite in enumerate(finite):
        optimizer.zero_grad()
        loss = weight.sum()
        scaler.scale(loss if is_finite else loss * torch.inf).backward()
        scaler.step(optimizer)
        scaler.update()
        callback.on_train_batch_end(trainer, model, {"loss": loss.detach()}, None, index)
    callback.on_train_epoch_end(trainer, model)
    return logged["train/skipped_steps"]


@pytest.mark.parametrize("finite", [[False], [False, True, True], [True, False, False, True], [True, True]])
def test_every_skipped_step_is_counted_the_first_as_well(finite):
    # a scale grows again after so many good steps
    scaler = torch.amp.GradScaler("cpu", growth_interval=2)
    assert skipped_after(finite, FiniteLoss(), scaler) == finite.count(False)


def test_a_training_that_goes_on_counts_on():
    callback, scaler = FiniteLoss(), torch.amp.GradScaler("cpu")
    skipped_after([False, True], callback, scaler)
    resumed, resumed_scaler = FiniteLoss(), torch.amp.GradScaler("cpu")
    resumed.load_state_dict(callback.state_dict())
    resumed_scaler.load_state_dict(scaler.state_dict())
    assert skipped_after([True, False], resumed, resumed_scaler) == 2
    assert_equal(resumed.state_dict(), {"skipped": 2.0})
