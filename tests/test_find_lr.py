"""The range test: its arithmetic against closed forms, and what the command leaves."""

import csv
import itertools
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, record_of, rows_of

from cifar_resnet import find_lr, train
from cifar_resnet.find_lr import RangeTest, longest_fall, middle_of_the_good


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


def test_the_command_leaves_curve_table_and_suggestions_and_a_line_that_trains(capsys):
    arguments = [*TINY, "range_test.steps=40", "range_test.probe_steps=20", "optimizer=adam", "range_test.min_lr=1e-5"]
    assert find_lr.main(arguments) == 0
    (folder,) = Path("outputs/find_lr").iterdir()
    found = json.loads((folder / "lr_range_test.json").read_text())
    assert {"probe", "steepest", "valley", "minimum"} <= found.keys()
    with (folder / "lr_range_test.csv").open() as file:
        smoothed = [float(row["smoothed_loss"]) for row in csv.DictReader(file)]
    probes = {float(rate): loss for rate, loss in found["probes"].items()}
    assert found["probe"] == pytest.approx(middle_of_the_good(probes, start=smoothed[len(smoothed) // 10]))
    assert len(found["probes"]) == 4
    with (folder / "lr_range_test.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert float(rows[0]["lr"]) == pytest.approx(1e-5)
    assert len(rows) <= 40
    assert (folder / "lr_range_test.png").read_bytes()[:4] == b"\x89PNG"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cifar-train")]
    assert train.main(shlex.split(line)[1:]) == 0


def test_the_first_loss_is_that_of_a_fresh_network(cifar_train, run_dirs):
    """At a learning rate of nearly nothing the test's losses are those of the untrained network."""
    settings = ["range_test.steps=100", "range_test.min_lr=1e-9", "range_test.suggest=valley"]
    assert find_lr.main([*TINY, *settings, "augment=none", "optimizer=adam"]) == 0
    (folder,) = Path("outputs/find_lr").iterdir()
    with (folder / "lr_range_test.csv").open() as file:
        losses = [float(row["loss"]) for row in csv.DictReader(file)]
    assert cifar_train("optimizer.lr=1e-12", "augment=none") == 0
    (run_dir,) = [run for run in run_dirs() if run.parent.name == "train"]
    assert np.mean(losses[:5]) == pytest.approx(float(rows_of(run_dir)[0]["train/loss"]), rel=1e-3)


def test_max_lr_auto_finds_a_rate_and_trains_with_it(cifar_train, run_dirs):
    short = ["range_test.steps=40", "range_test.probe_steps=20"]
    assert cifar_train("scheduler=one_cycle", "scheduler.max_lr=auto", "trainer.max_epochs=2", *short) == 0
    (run_dir,) = run_dirs()
    found = json.loads((run_dir / "lr_range_test.json").read_text())
    peak = record_of(run_dir)["config"]["scheduler"]["max_lr"]
    assert peak == pytest.approx(found[found["suggested"]], rel=1e-2)
    assert (run_dir / "lr_range_test.png").exists()
    assert cifar_train("scheduler=one_cycle", f"scheduler.max_lr={peak}", "trainer.max_epochs=2") == 0
    with_auto, with_number = (
        torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"] for run in run_dirs()
    )
    assert all(torch.equal(value, with_number[name]) for name, value in with_auto.items())


def test_probes_need_no_schedule_of_the_users_own(capsys):
    """Whose peak may lie above theirs."""
    own = ["scheduler=one_cycle", "scheduler.min_lr=0.05", "range_test.steps=40", "range_test.probe_steps=20"]
    assert find_lr.main([*TINY, "optimizer=adam", "optimizer.lr=0.1", *own]) == 0


@pytest.mark.parametrize(
    ("setting", "answer"),
    [
        ("range_test.steps=null", "range_test.steps is null. Give 20 or more"),
        ("range_test.min_lr=200", "range_test goes up from min_lr to max_lr. Got 200"),
        ("range_test.min_lr=1e-300", "Got 1e-300 and 100.0; give rates from 1e-12 to 1e6"),
        ("range_test.steps=5", "Got 5; give 20 or more"),
        ("range_test.probe_steps=5", "range_test.probe_steps counts batches. Got 5; give 20 or more"),
        ("range_test.suggest=best", "unknown range_test.suggest. Got 'best'"),
        ("range_test.smoothing=1", "Got 1"),
        ("range_test.max_lr=2e-5", "no learning rate between 1e-05 and 2e-05 brought the loss down"),
        ("modl=resnet20", "See cifar-find-lr --help"),
        ("-m", "leave out -m"),
        ("dry_run=true", "leave them out"),
        ("trainer.devices=2", "a range test runs on one device"),
        ("trainer.accelerator=abacus", "abacus"),
        ("optimizer.lr=0", "learning rate"),
    ],
)
def test_mistakes_get_one_line_and_no_folder(capsys, setting, answer):
    assert find_lr.main([*TINY, "range_test.steps=20", setting]) == 2
    captured = capsys.readouterr()
    assert answer in captured.err
    assert captured.err.count("\n") == 1
    assert not Path("outputs").exists()
