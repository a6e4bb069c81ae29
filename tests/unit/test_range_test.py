"""The range test: its arithmetic against closed forms, and scheduler.max_lr=auto."""

import itertools
import json
import math
import signal
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from helpers import TINY, assert_equal, last_of, record_of
from lightning.pytorch.callbacks import Timer

from cifar_resnet import cli
from cifar_resnet.compose import Composer
from cifar_resnet.models import ResNet
from cifar_resnet.optim import constant
from cifar_resnet.range_test import RangeTest, longest_fall, middle_of_the_good, train_briefly


def bowl(rates: np.ndarray) -> np.ndarray:
    """A loss that falls fastest at 0.01, is lowest at 0.1 and then rises."""
    x = np.log10(rates)
    return 2.3 - 1 / (1 + np.exp(-6 * (x + 2))) + 30 * np.maximum(0, x + 1) ** 2 - 0.01 * np.minimum(x + 6, 5)


def run_on_bowl(noise: float) -> RangeTest:
    test = RangeTest(smoothing=0.5)
    random = np.random.default_rng(0)
    for step in range(test.steps):
        if not test.add(float(bowl(np.array(test.rate(step))) + noise * random.standard_normal())):
            break
    return test


def test_rates_are_evenly_spaced_on_a_log_axis():
    test = RangeTest(min_lr=1e-4, max_lr=1.0, steps=41)
    rates = [test.rate(step) for step in range(41)]
    assert (rates[0], rates[-1]) == (1e-4, pytest.approx(1.0))
    ratios = [b / a for a, b in itertools.pairwise(rates)]
    assert ratios == pytest.approx([10**0.1] * 40)


@pytest.mark.parametrize("noise", [0.0, 0.02])
def test_suggestions_find_the_points_of_a_known_curve(noise):
    test = run_on_bowl(noise)
    found = test.suggestions
    assert found["steepest"] == pytest.approx(0.01, rel=0.6)
    assert found["minimum"] == pytest.approx(0.01, rel=0.6)
    assert test.edge == pytest.approx(0.135, rel=0.2)  # 30 (x + 1)² is half of the fall, 0.52, at 10**-0.87
    assert test.candidates == pytest.approx([test.edge / 4 / 10 ** (half / 2) for half in range(4)], rel=0.01)
    assert 1e-3 < found["valley"] < 0.1


def test_smoothing_is_a_mean_that_forgets():
    test = RangeTest(smoothing=0.8)
    losses = [3.0, 1.0, 2.0, 2.5]
    for loss in losses:
        test.add(loss)
    weights = [0.8**3, 0.8**2, 0.8, 1.0]
    expected = sum(w * x for w, x in zip(weights, losses, strict=True)) / sum(weights)
    assert test.smoothed[-1] == pytest.approx(expected)


def test_it_stops_where_the_loss_diverges_or_is_not_a_number():
    test = run_on_bowl(0.0)
    assert len(test.losses) < test.steps
    assert max(test.smoothed[:-1]) <= 4 * min(test.smoothed)
    assert not test.add(float("nan"))
    assert len(test.losses) == len(test.rates) == len(test.smoothed)


def test_how_far_the_loss_may_rise_is_a_setting():
    test = RangeTest(divergence=2, smoothing=0)
    assert [test.add(loss) for loss in (1.0, 1.9, 2.1)] == [True, True, False]


def test_the_middle_of_the_rates_that_do_as_well_as_the_best():
    """Within 0.02, 2% of a fall of 1, on lines between the probes."""
    best_inside = middle_of_the_good({1.0: 2.0, 0.1: 1.0, 0.01: 1.04, 0.001: 1.2}, start=2.0)
    assert np.log10(best_inside) == pytest.approx((-1 + 0.02 + -1 - 0.5) / 2)
    flat = middle_of_the_good({1.0: 1.1, 0.1: 1.01, 0.01: 1.0, 0.001: 1.015}, start=2.0)
    assert np.log10(flat) == pytest.approx((-3 + -1 + 1 / 9) / 2)
    diverged = middle_of_the_good({1.0: float("inf"), 0.1: 1.0, 0.01: 1.0}, start=2.0)
    assert np.log10(diverged) == pytest.approx(-1.5)


def test_the_longest_fall_is_the_longest_decreasing_subsequence():
    values = np.array([5.0, 9.0, 4.0, 8.0, 7.0, 3.0, 6.0, 2.0, 10.0])
    first, last = longest_fall(values)
    assert (first, last) == (1, 7)  # 9 8 7 6 2, or 9 8 7 3 2


@pytest.mark.slow
def test_max_lr_auto_finds_a_rate_and_trains_with_it(cifar_train, run_dirs):
    short = ["range_test.steps=40", "range_test.probe_steps=20"]
    assert cifar_train("scheduler=one_cycle", "scheduler.max_lr=auto", "trainer.max_epochs=2", *short) == 0
    (run_dir,) = run_dirs()
    found = json.loads((run_dir / "lr_range_test.json").read_text())
    peak = record_of(run_dir)["config"]["scheduler"]["max_lr"]
    assert peak == pytest.approx(found[found["suggested"]], rel=1e-2)
    assert (run_dir / "lr_range_test.png").exists()
    assert cifar_train("scheduler=one_cycle", f"scheduler.max_lr={peak}", "trainer.max_epochs=2") == 0
    with_auto, with_number = (last_of(each)["state_dict"] for each in run_dirs())
    assert_equal(with_auto, with_number)


def test_probes_of_which_none_brings_the_loss_down_give_no_rate(monkeypatch, capsys):
    lengths = iter([40, 20, 20, 20, 20])

    def trained(cfg, lr, steps, scheduler, goes_on):
        assert steps == next(lengths)
        if steps == 20:
            return [2.3, math.inf]
        falls = [*np.linspace(2.3, 1.0, 30), *np.linspace(1.0, 9.0, 10)]
        return [loss for loss in falls if goes_on(loss)]

    monkeypatch.setattr("cifar_resnet.range_test.train_briefly", trained)
    assert cli.find_lr([*TINY, "range_test.steps=40", "range_test.probe_steps=20"]) == 2
    error = capsys.readouterr().err
    assert "none of the short trainings brought the loss down. Got learning rates of [" in error
    assert "give range_test.probe_steps a larger value, or range_test.suggest=valley" in error


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_signal_ends_a_range_test_as_it_ends_a_training(cifar_train, run_dirs, send, number, code, capsys):
    send(3, number)
    assert cli.find_lr([*TINY, "range_test.steps=40"]) == code
    assert f"stopped by {number.name}" in capsys.readouterr().err
    assert not list(Path("outputs").glob("find_lr/*"))
    assert cifar_train("scheduler=one_cycle", "scheduler.max_lr=auto", "range_test.steps=40") == code
    assert run_dirs() == []


def test_what_a_range_test_found_is_known_for_it_as_soon_as_there_is_a_folder(cifar_train, run_dirs, monkeypatch):
    """Or the same command, which finds another, would not go on."""
    short = ["range_test.steps=40", "range_test.suggest=minimum", "resume=auto"]
    command = ["scheduler=one_cycle", "scheduler.max_lr=auto", *short]
    with monkeypatch.context() as patch:
        patch.setattr("cifar_resnet.train.build_trainer", Mock(side_effect=RuntimeError("the power went out")))
        with pytest.raises(RuntimeError, match="power"):
            cifar_train(*command)
    assert cifar_train(*command) == 0
    (run_dir,) = run_dirs()
    found = json.loads((run_dir / "lr_range_test.json").read_text())
    assert record_of(run_dir)["config"]["scheduler"]["max_lr"] == pytest.approx(found["minimum"], rel=1e-2)


@pytest.mark.parametrize(("lasts", "batches"), [(7, 7), (99, 12)])
def test_what_bounds_a_training_does_not_bound_a_range_test(monkeypatch, lasts, batches):
    """It ends where the loss diverges, and not before all its batches."""
    monkeypatch.setattr(Timer, "time_elapsed", lambda self, *stage: 1e9)
    bounds = ["trainer.min_epochs=2", "trainer.max_epochs=2", "trainer.max_time=00:00:00:01"]
    (job,) = Composer("find_lr").jobs([*TINY, *bounds])
    losses = []
    train_briefly(job.cfg, 1e-3, 12, constant, lambda loss: losses.append(loss) or len(losses) < lasts)
    assert len(losses) == batches


def test_a_range_test_looks_at_images_of_one_size(monkeypatch):
    forward, seen = ResNet.forward, set()

    def note(self, images):
        seen.add((len(images), images.shape[-1]))
        return forward(self, images)

    monkeypatch.setattr(ResNet, "forward", note)
    resize = ["resize=progressive", "resize.sizes=[16]", "resize.until=[0.5]", "trainer.max_epochs=2"]
    (job,) = Composer("find_lr").jobs([*TINY, *resize])
    train_briefly(job.cfg, 1e-3, 12, constant, lambda loss: True)
    assert {size for count, size in seen if count > 1} == {32}


def test_a_range_test_takes_the_steps_that_a_training_would(monkeypatch):
    """Of so many batches each, which decides how large a learning rate they bear."""
    forward, seen = ResNet.forward, []

    def note(self, images):
        seen.append(len(images))
        return forward(self, images)

    monkeypatch.setattr(ResNet, "forward", note)
    (job,) = Composer("find_lr").jobs([*TINY, "trainer.accumulate_grad_batches=2"])
    losses = train_briefly(job.cfg, 1e-3, 6, constant, lambda loss: True)
    assert len(losses) == 6
    # an epoch's five batches are two steps of two and one of one
    assert seen.count(40) == 10
