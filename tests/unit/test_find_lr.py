"""cifar-find-lr: what it leaves, and that the line it prints trains."""

import csv
import json
import shlex
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, rows_of, write_files

from cifar_resnet import cli
from cifar_resnet.compose import Composer
from cifar_resnet.range_test import middle_of_the_good


def the_curve() -> tuple[Path, list[dict[str, str]]]:
    """The only folder that was left, and its table."""
    (folder,) = Path("outputs/find_lr").iterdir()
    with (folder / "lr_range_test.csv").open() as file:
        return folder, list(csv.DictReader(file))


@pytest.mark.slow
def test_the_command_leaves_curve_table_and_suggestions_and_a_line_that_trains(capsys):
    arguments = [*TINY, "range_test.steps=40", "range_test.probe_steps=20", "optimizer=adam", "range_test.min_lr=1e-5"]
    assert cli.find_lr(arguments) == 0
    folder, rows = the_curve()
    found = json.loads((folder / "lr_range_test.json").read_text())
    assert {"probe", "steepest", "valley", "minimum"} <= found.keys()
    smoothed = [float(row["smoothed_loss"]) for row in rows]
    probes = {float(rate): loss for rate, loss in found["probes"].items()}
    assert found["probe"] == pytest.approx(middle_of_the_good(probes, start=smoothed[len(smoothed) // 10]))
    assert len(found["probes"]) == 4
    assert float(rows[0]["lr"]) == pytest.approx(1e-5)
    assert len(rows) <= 40
    assert (folder / "lr_range_test.png").read_bytes()[:4] == b"\x89PNG"
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cifar-train")]
    assert cli.train(shlex.split(line)[1:]) == 0


@pytest.mark.slow
def test_the_line_trains_with_the_rate_that_was_found_whatever_a_recipe_says(capsys):
    recipe = "# @package _global_\ndefaults: [override /scheduler: one_cycle]\nscheduler: {max_lr: 0.4}\n"
    write_files(Path(), {"mine/experiment/peak.yaml": recipe})
    settings = ["range_test.steps=40", "range_test.suggest=valley", "--config-dir", "mine", "experiment=peak"]
    assert cli.find_lr([*TINY, *settings]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cifar-train")]
    (job,) = Composer("train", "mine").jobs([text for text in shlex.split(line)[1:] if "=" in text])
    assert job.cfg.scheduler.max_lr is None
    found = json.loads((the_curve()[0] / "lr_range_test.json").read_text())
    assert job.cfg.optimizer.lr == pytest.approx(found["valley"], rel=1e-2)


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_first_loss_is_that_of_a_fresh_network(cifar_train, run_dirs, accumulate):
    """At a learning rate of nearly nothing the test's losses are those of the untrained network."""
    settings = ["range_test.steps=100", "range_test.min_lr=1e-9", "range_test.suggest=valley"]
    settings += [f"trainer.accumulate_grad_batches={accumulate}"]
    assert cli.find_lr([*TINY, *settings, "augment=none", "optimizer=adam"]) == 0
    losses = [float(row["loss"]) for row in the_curve()[1]]
    assert cifar_train("optimizer.lr=1e-12", "augment=none") == 0
    (run_dir,) = [run for run in run_dirs() if run.parent.name == "train"]
    tolerance = 1e-3 if accumulate == 1 else 0.01  # the first five steps see half of the images
    assert np.mean(losses[:5]) == pytest.approx(float(rows_of(run_dir)[0]["train/loss"]), rel=tolerance)


@pytest.mark.slow
def test_probes_need_no_schedule_of_the_users_own(capsys):
    """Whose peak may lie above theirs."""
    own = ["scheduler=one_cycle", "scheduler.min_lr=0.05", "range_test.steps=40", "range_test.probe_steps=20"]
    assert cli.find_lr([*TINY, "optimizer=adam", "optimizer.lr=0.1", *own]) == 0
