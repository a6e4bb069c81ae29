"""Accumulated gradients against a plain loop: each step is the mean of the batches that it has."""

import copy

import pytest
import torch
from helpers import TINY, assert_equal, last_of, record_of, write_files
from lightning.pytorch import Callback, Trainer
from torch import nn
from torch.nn.functional import cross_entropy

from cifar_resnet import cli
from cifar_resnet.compose import Composer
from cifar_resnet.instantiation import instantiate
from cifar_resnet.precision import ScaledPrecision

SCALE = 256.0


class Setting(Callback):
    """A training of an epoch of 5 batches, without what is random, and what went into it."""

    def __init__(
        self,
        accumulate: int,
        precision: str = "32-true",
        limit: float | None = None,
        clip: float | None = None,
        fused: bool = False,
    ):
        overrides = ["augment=none", "optimizer.lr=0.05", f"optimizer.fused={fused}", "model.label_smoothing=0"]
        cfg = Composer("train").jobs([*TINY, *overrides])[0].cfg
        torch.manual_seed(1)
        self.data = instantiate(cfg.data, augment=cfg.augment, _convert_="all")
        recipe = {"optimizer": cfg.optimizer, "scheduler": cfg.scheduler}
        self.model = instantiate(cfg.model, num_classes=10, **recipe, _convert_="all")
        self.start, self.batches = copy.deepcopy(self.model), []
        self.accumulate, self.precision, self.clip = accumulate, precision, clip
        scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        plugins = [ScaledPrecision("16-mixed", "cpu", scaler)] if precision == "16-mixed" else []
        length = {"max_epochs": 1, "limit_train_batches": limit, "accumulate_grad_batches": accumulate}
        quiet = (
            "logger",
            "enable_checkpointing",
            "enable_progress_bar",
            "enable_model_summary",
            "num_sanity_val_steps",
        )
        self.trainer = Trainer(
            **length,
            **dict.fromkeys(quiet, 0),
            accelerator="cpu",
            precision=None if plugins else precision,
            plugins=plugins,
            callbacks=[self],
            gradient_clip_val=clip,
            use_distributed_sampler=False,
        )
        self.trainer.fit(self.model, self.data)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batches.append(batch)


def by_hand(setting: Setting) -> nn.Module:
    model = setting.start.to(memory_format=torch.channels_last).train()
    steps = [setting.batches[at : at + setting.accumulate] for at in range(0, len(setting.batches), setting.accumulate)]
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(steps))
    dtype = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(setting.precision)
    scaler = torch.amp.GradScaler("cpu", init_scale=SCALE, enabled=dtype == torch.float16)
    for batches in steps:
        optimizer.zero_grad()
        for images, labels in batches:
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                loss = cross_entropy(model(images), labels) / len(batches)
            scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if setting.clip:
            nn.utils.clip_grad_norm_(model.parameters(), setting.clip)
        scaler.step(optimizer)
        scaler.update()
        schedule.step()
    return model


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize(
    ("accumulate", "limit", "clip", "steps"),
    [(2, None, None, 3), (3, None, 0.5, 2), (4, None, None, 2), (5, None, None, 1), (3, 4, None, 2), (2, 0.6, None, 2)],
)
def test_an_epochs_last_step_is_the_mean_of_the_batches_that_it_has(precision, accumulate, limit, clip, steps):
    setting = Setting(accumulate, precision, limit, clip)
    assert setting.trainer.global_step == steps
    expected = dict(by_hand(setting).named_parameters())
    for name, value in setting.model.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=1e-6 if precision == "32-true" else 2e-4)


@pytest.mark.parametrize("fused", [False, True])
def test_gradients_are_clipped_as_they_are_without_their_loss_scale(fused):
    setting = Setting(1, "16-mixed", clip=0.1, fused=fused)
    expected = dict(by_hand(setting).named_parameters())
    for name, value in setting.model.named_parameters():
        torch.testing.assert_close(value, expected[name], rtol=0, atol=2e-4)


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", ["sgd", "sam"])
def test_resumed_within_an_epoch_the_last_step_is_as_without_a_stop(cifar_train, run_dirs, send, optimizer):
    command = [
        f"optimizer={optimizer}",
        "trainer.accumulate_grad_batches=3",
        "trainer.max_epochs=2",
        "optimizer.lr=0.05",
    ]
    assert cifar_train(*command) == 0
    send(3)  # the first of the second epoch's two, of 3 and 2 batches
    assert cifar_train(*command, "run_dir=mine") == 143
    send(None)
    assert cli.train(["resume=mine"]) == 0
    whole, resumed = run_dirs()[0], run_dirs()[0].parents[2] / "mine"
    assert record_of(whole)["steps"] == record_of(resumed)["steps"] == 4
    assert_equal(last_of(whole)["state_dict"], last_of(resumed)["state_dict"])


@pytest.mark.slow
def test_networks_side_by_side_take_their_last_step_as_alone(cifar_train, run_dirs):
    command = ["trainer.accumulate_grad_batches=4", "optimizer.lr=0.05", "augment=none"]
    assert cifar_train(*command, "name=alone") == 0
    assert cifar_train(*command, "ensemble.size=2") == 0
    alone, *both = (last_of(each)["state_dict"] for each in run_dirs() if "together" not in each.parts)
    torch.testing.assert_close(both[0], alone, rtol=1e-3, atol=1e-4)


AFTER = """
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler

class Own(GradientAccumulationScheduler, Checkpoint):  # Lightning has these last
    pass
"""
SCHEDULING = "+callbacks.x={_target_: lightning.pytorch.callbacks.GradientAccumulationScheduler, scheduling: {0: 2}}"


def test_lightnings_own_scheduler_of_accumulation_is_the_same_training_and_goes_on_within_an_epoch(
    cifar_train, tmp_path, send, monkeypatch
):
    """With a schedule that comes down to 0, DropBlock that rises by step, and a signal in the middle of an epoch."""
    options = ["trainer.max_epochs=2", "scheduler=cosine", "model.drop_block=0.1", "model.drop_block_size=3"]
    assert cifar_train(*options, "trainer.accumulate_grad_batches=2", "run_dir=plain") == 0
    assert cifar_train(*options, SCHEDULING, "run_dir=scheduled") == 0
    send(4)  # in the second epoch, with three batches to come
    assert cifar_train(*options, SCHEDULING, "run_dir=resumed") == 143
    send(None)
    assert cli.train(["resume=resumed"]) == 0
    send(4)
    # one that comes after all of ours, as a network's own configure_callbacks are put
    later = ["+callbacks.x._target_=after.Own", "+callbacks.x.scheduling={0:2}", "trust=[after]"]
    write_files(tmp_path, {"after.py": AFTER})
    monkeypatch.syspath_prepend(tmp_path)
    assert cifar_train(*options, *later, "run_dir=later") == 143
    send(None)
    assert cli.train(["resume=later", "trust=[after]"]) == 0
    for name in ("scheduled", "resumed", "later"):
        for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
            assert_equal(last_of(tmp_path / name)[key], last_of(tmp_path / "plain")[key], key)
