"""The count of steps that 16-bit loss scaling skipped, with a real scaler."""

import math
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_equal, record_of, rows_of
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.strategies import SingleDeviceStrategy

from cifar_resnet.callbacks import FiniteLoss
from cifar_resnet.data import Synthetic
from cifar_resnet.errors import Diverged
from cifar_resnet.models import ResNet


def skipped_after(finite: list[bool], callback: FiniteLoss, scaler: torch.amp.GradScaler, accumulate: int = 1) -> float:
    """The count after so many steps, some of which have gradients that are not finite, of `accumulate` batches each."""
    logged = {}

    def log(name, value, sync_dist):
        logged[name] = value

    model = SimpleNamespace(device=torch.device("cpu"), log=log)
    weight = torch.ones(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    trainer = SimpleNamespace(
        precision_plugin=SimpleNamespace(scaler=scaler), is_last_batch=False, should_stop=False,
        optimizers=[optimizer], global_step=0, current_epoch=0, strategy=SingleDeviceStrategy(),
    )  # fmt: skip
    callback.on_train_start(trainer, model)
    for index, is_finite in enumerate(finite):
        optimizer.zero_grad()
        loss = weight.sum()
        for _ in range(accumulate - 1):  # which add their gradients
            callback.on_train_batch_end(trainer, model, {"loss": loss.detach()}, None, index)
        scaler.scale(loss if is_finite else loss * torch.inf).backward()
        scaler.step(optimizer)
        scaler.update()
        trainer.global_step += 1
        callback.on_train_batch_end(trainer, model, {"loss": loss.detach()}, None, index)
    callback.on_train_epoch_end(trainer, model)
    return logged["train/skipped_steps"]


@pytest.mark.parametrize("finite", [[False], [False, True, True], [True, False, False, True], [True, True]])
def test_every_skipped_step_is_counted_the_first_as_well(finite):
    # a scale grows again after so many good steps
    scaler = torch.amp.GradScaler("cpu", growth_interval=2)
    assert skipped_after(finite, FiniteLoss(), scaler) == finite.count(False)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_training_whose_every_step_is_skipped_ends(accumulate):
    callback, scaler = FiniteLoss(), torch.amp.GradScaler("cpu")
    with pytest.raises(Diverged, match=r"gradients are no longer finite. Got 20 steps in a row .* give precision=bf16"):
        skipped_after([True, *[False] * 20], callback, scaler, accumulate)


def test_steps_skipped_now_and_then_are_in_order():
    finite = [False] * 19 + [True] + [False] * 19
    assert skipped_after(finite, FiniteLoss(), torch.amp.GradScaler("cpu")) == 38


def test_a_training_that_goes_on_counts_on():
    callback, scaler = FiniteLoss(), torch.amp.GradScaler("cpu")
    skipped_after([False, True], callback, scaler)
    resumed, resumed_scaler = FiniteLoss(), torch.amp.GradScaler("cpu")
    resumed.load_state_dict(callback.state_dict())
    resumed_scaler.load_state_dict(scaler.state_dict())
    assert skipped_after([True, False], resumed, resumed_scaler) == 2
    assert_equal(resumed.state_dict(), {"skipped": 2.0})


def test_a_training_in_half_precision_logs_how_many_steps_it_skipped():
    torch.manual_seed(0)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**30)  # which overflows, and is halved, at first
    data = Synthetic(num_train=200, num_test=10, num_val=0, batch_size=5)
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        plugins=[MixedPrecision("16-mixed", "cpu", scaler)],
        callbacks=[FiniteLoss()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        limit_val_batches=0,
    )
    model = ResNet(depth=8, widths=[4, 4, 4], optimizer=partial(torch.optim.SGD, lr=0.01))
    trainer.fit(model, data)
    halvings = 30 - math.log2(scaler.get_scale())
    assert 3 < halvings < 40
    assert trainer.callback_metrics["train/skipped_steps"] == halvings


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "val/loss is no longer finite. Got nan with "),
        (["data.num_val=0"], "test/loss is no longer finite. Got nan with "),
        (["data.num_val=0", "ensemble.size=2"], "test/loss is no longer finite. Got nan with "),
    ],
)
def test_a_network_that_its_last_step_led_astray_is_no_result(cifar_train, capsys, options, message):
    """Its training's loss was that of the weights before."""
    assert cifar_train("optimizer.lr=1e30", "trainer.limit_train_batches=1", *options) == 1
    out = capsys.readouterr()
    assert message in out.err
    assert "to continue" not in out.out
    assert not list(Path("outputs").rglob("result.json"))


def test_an_epoch_that_was_led_astray_costs_nothing_where_another_is_chosen(cifar_train, run_dirs):
    by_loss = "callbacks.best.monitor=val/loss"
    rising = ["scheduler=one_cycle", "scheduler.peak_fraction=1.0", "scheduler.start_factor=1e-3"]
    assert cifar_train("trainer.max_epochs=5", *rising, "optimizer.lr=30", "data.num_val=120", by_loss) == 0
    (run_dir,) = run_dirs()
    assert not all(math.isfinite(float(row["val/loss"])) for row in rows_of(run_dir))
    assert record_of(run_dir)["epoch"] < 5
    assert math.isfinite(record_of(run_dir)["metrics"]["test/loss"])
