"""cifar-search: where it looks, what it keeps, and that a stopped search loses nothing."""

import csv
import json
import math
import re
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from helpers import TINY

from cifar_resnet import cli, search
from cifar_resnet.compose import Composer
from cifar_resnet.errors import UsageError
from cifar_resnet.overrides import Interval
from cifar_resnet.search import Search
from cifar_resnet.search_space import narrowed

SMALL = [*TINY, "data.num_train=120"]


@pytest.fixture
def scored(monkeypatch):
    """Trials that train nothing: their validation accuracy peaks at a learning rate of 0.02."""
    seen = []

    def run_in(run_dir, cfg, run):
        lr = cfg.optimizer.lr
        seen.append(lr)
        run_dir.mkdir(parents=True, exist_ok=True)
        record = {"epochs": 5, "seconds": 100.0, "metrics": {"val/acc": 1 - 0.1 * abs(math.log10(lr / 0.02))}}
        (run_dir / "result.json").write_text(json.dumps(record))
        return record

    monkeypatch.setattr(search, "run_in", run_in)
    return seen


def trials_of(folder: str = "outputs/search") -> list[dict]:
    (path,) = Path(folder).glob("*/trials.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_random_search_narrows_around_the_best(scored):
    assert cli.search([*SMALL, "search.trials=8", "search.rounds=3", "search.narrow=0.3"]) == 0
    assert len(scored) == 24
    widths = []
    for round_ in range(3):
        logs = [math.log10(lr) for lr in scored[8 * round_ : 8 * round_ + 8]]
        widths.append(max(logs) - min(logs))
        if round_:
            assert widths[round_] <= 6 * 0.3**round_ + 0.01
            earlier = min(scored[: 8 * round_], key=lambda lr: abs(math.log10(lr / 0.02)))
            assert min(logs) - 0.01 <= math.log10(earlier) <= max(logs) + 6 * 0.3**round_
    assert widths[0] > 3  # of the six decades from 1e-6 to 1
    assert abs(math.log10(min(scored, key=lambda lr: abs(math.log10(lr / 0.02))) / 0.02)) < 0.15


@pytest.mark.slow
def test_the_best_is_printed_as_a_line_that_trains(scored, capsys):
    arguments = [*SMALL, "search.trials=3", "search.rounds=1", "model.dropout=choice(0.1,0.2)"]
    assert cli.search([*arguments, "optimizer.lr=tag(log,interval(0.001,0.1))", "trainer.max_epochs=2"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cifar-train ")]
    best = max(trials_of(), key=lambda trial: float(trial["val/acc"]))
    assert f"optimizer.lr={best['optimizer.lr']}" in line
    assert f"model.dropout={best['model.dropout']}" in line
    assert "search." not in line
    Composer("train").jobs(shlex.split(line)[1:])
    assert all(0.001 <= float(trial["optimizer.lr"]) <= 0.1 for trial in trials_of())
    assert {trial["model.dropout"] for trial in trials_of()} <= {"0.1", "0.2"}


@pytest.mark.slow
def test_the_same_command_again_repeats_no_trial_and_more_trials_go_on(scored):
    arguments = [*SMALL, "search.rounds=1"]
    assert cli.search([*arguments, "search.trials=3"]) == 0
    assert cli.search([*arguments, "search.trials=3"]) == 0
    assert len(scored) == 3
    assert cli.search([*arguments, "search.trials=5"]) == 0
    assert len(scored) == len(set(scored)) == 5


@pytest.mark.slow
def test_tpe_comes_to_look_near_the_peak(scored):
    assert cli.search([*SMALL, "search.method=tpe", "search.rounds=1", "search.trials=24"]) == 0
    near = [abs(math.log10(lr / 0.02)) < 1 for lr in scored]
    assert sum(near[10:]) > 7  # of 14; by chance, two decades of six, 5


@pytest.mark.slow
def test_a_search_killed_in_the_middle_goes_on_where_it_was():
    """SIGKILL during the second trial; started again, each trial has been trained once and all are there."""
    arguments = [*SMALL, "search.rounds=2", "search.trials=2", "trainer.max_epochs=3"]
    command = [sys.executable, "-c", "from cifar_resnet import cli; cli.search()", *arguments]
    with Path("log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    deadline = time.monotonic() + 120
    while not list(Path("outputs/search").glob("*/001-*/checkpoints/last.ckpt")):
        assert time.monotonic() < deadline, Path("log").read_text()
        assert process.poll() is None, Path("log").read_text()
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (first,) = Path("outputs/search").glob("*/000-*/result.json")
    written = first.stat().st_mtime_ns
    assert cli.search(arguments) == 0
    assert first.stat().st_mtime_ns == written
    trials = trials_of()
    assert [trial["state"] for trial in trials] == ["COMPLETE"] * 4
    folders = sorted(path.name for path in Path("outputs/search").glob("*/0*"))
    assert [re.match(r"\d+", name)[0] for name in folders] == ["000", "001", "002", "003"]
    assert len(list(Path("outputs/search").glob("*/*/result.json"))) == 4


@pytest.mark.slow
def test_whole_numbers_stay_whole_in_trials_that_train():
    arguments = [text for text in SMALL if not text.startswith("data.batch_size")]
    space = ["data.batch_size=interval(10,30)", "search.rounds=2", "search.trials=2"]
    assert cli.search([*arguments, *space]) == 0
    assert all(10 <= int(trial["data.batch_size"]) <= 30 for trial in trials_of())


@pytest.mark.slow
def test_a_trial_that_failed_is_tried_again(scored, monkeypatch):
    arguments = [*SMALL, "search.rounds=1", "search.trials=3"]
    run_in = search.run_in

    def failing(*rest):
        if len(scored) == 1:
            raise OSError("no space left on device")
        return run_in(*rest)

    monkeypatch.setattr(search, "run_in", failing)
    assert cli.search(arguments) == 0
    assert len(scored) == 1
    monkeypatch.setattr(search, "run_in", run_in)
    assert cli.search(arguments) == 0
    assert len(scored) == 3


@pytest.mark.slow
def test_a_trial_that_diverged_is_finished_and_never_the_best(capsys):
    space = ["optimizer.lr=choice(0.05,1e38)", "search.method=tpe", "search.trials=4"]
    assert cli.search([*SMALL, *space]) == 0
    states = {trial["optimizer.lr"]: trial["state"] for trial in trials_of()}
    assert states == {"0.05": "COMPLETE", "1e+38": "PRUNED"}
    assert "diverged" in capsys.readouterr().out
    number = len(trials_of())
    assert cli.search([*SMALL, *space]) == 0
    assert len(trials_of()) == number == 4


def test_trials_leave_the_test_images_alone():
    assert cli.search([*SMALL, "search.rounds=1", "search.trials=1"]) == 0
    (record,) = Path("outputs/search").glob("*/*/result.json")
    assert not [name for name in json.loads(record.read_text())["metrics"] if name.startswith("test")]


@pytest.mark.slow
def test_a_hopeless_trial_ends_early(monkeypatch):
    monkeypatch.setattr(optuna.pruners.MedianPruner, "prune", lambda self, study, trial: trial.number == 1)
    arguments = [*SMALL, "trainer.max_epochs=3", "search.method=tpe", "search.rounds=1", "search.trials=2"]
    assert cli.search(arguments) == 0
    assert [trial["state"] for trial in trials_of()] == ["COMPLETE", "PRUNED"]
    (record,) = Path("outputs/search").glob("*/001-*/result.json")
    assert json.loads(record.read_text())["epochs"] == 1


@pytest.mark.parametrize("log", [True, False])
@pytest.mark.parametrize("best", [0.001, 0.02, 1.0])
def test_a_narrower_range_holds_the_best_and_stays_inside(log, best):
    low, high = narrowed(Interval(0.001, 1.0, log), best, 0.25)
    assert 0.001 <= low <= best <= high <= 1.0
    width = math.log(high / low) / math.log(1000) if log else (high - low) / 0.999
    assert width == pytest.approx(0.25)


def test_spaces_are_read_from_the_command_line():
    fixed, space = Composer("search").space(
        ["model=resnet20", "optimizer.lr=tag(log,interval(1e-3,1))", "data.batch_size=interval(64,256)",
         "optimizer=choice(sgd,adam)"]
    )  # fmt: skip
    assert fixed == ["model=resnet20"]
    assert space == {
        "optimizer.lr": Interval(1e-3, 1, True),
        "data.batch_size": Interval(64, 256, False),
        "optimizer": ["sgd", "adam"],
    }
    assert isinstance(space["data.batch_size"].low, int)
    with pytest.raises(UsageError, match="numbers above 0"):
        Composer("search").space(["optimizer.lr=tag(log,interval(0,1))"])


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match=r"Got 1\.5"):
        Search(narrow=1.5)


@pytest.mark.slow
def test_no_trial_is_begun_that_would_not_end_in_the_time_of_the_search(scored, monkeypatch, capsys):
    """By a clock that each trial moves by as much as it says it took."""
    monkeypatch.setattr(search.runs, "time_in", lambda folder: 100.0 * len(scored))
    command = [*SMALL, "search.trials=4", "search.rounds=2"]
    assert cli.search([*command, "search.max_time=00:00:04:10"]) == 0
    assert len(scored) == 2
    out = capsys.readouterr()
    assert "6 of 8 trials were not begun: 0:50 of search.max_time=4:10 were left" in out.out + out.err
    assert len(trials_of()) == 2
    assert cli.search([*command, "search.max_time=00:00:03:30"]) == 0  # another limit is no other search
    assert len(scored) == 4
    assert cli.search(command) == 0
    assert len(trials_of()) == len(scored) == 8


def test_a_trial_that_was_begun_is_left_too_where_there_is_no_time(scored, monkeypatch):
    command = [*SMALL, "search.trials=3", "search.rounds=1"]
    run_in, moments = search.run_in, [0.0]

    def stopped(run_dir, cfg, run):
        if len(scored) == 1:
            raise KeyboardInterrupt
        return run_in(run_dir, cfg, run)

    monkeypatch.setattr(search, "run_in", stopped)
    assert cli.search(command) == 130
    monkeypatch.setattr(search, "run_in", run_in)
    monkeypatch.setattr(search.runs, "time_in", lambda folder: moments.append(moments[-1] + 90) or moments[-1])
    assert cli.search([*command, "search.max_time=00:00:01:20"]) == 0
    assert len(scored) == 1
    assert [trial["state"] for trial in trials_of()] == ["COMPLETE", "RUNNING"]
