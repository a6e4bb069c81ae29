"""cifar-search: where it looks, what it keeps, and that a stopped search loses nothing."""

import csv
import itertools
import json
import math
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import optuna
import pytest
import torch
from helpers import TINY, write_files
from omegaconf import OmegaConf

from cifar_resnet import claims, cli, search, train
from cifar_resnet.callbacks import Throughput
from cifar_resnet.compose import Composer
from cifar_resnet.errors import UsageError
from cifar_resnet.objective import CheapestTo
from cifar_resnet.overrides import Interval
from cifar_resnet.search import Search
from cifar_resnet.search_space import narrowed, shorten
from cifar_resnet.terminal import arithmetic

SMALL = [*TINY, "data.num_train=120"]


@pytest.fixture
def scored(monkeypatch):
    """Trials that train nothing: their validation accuracy peaks at a learning rate of 0.02."""
    seen = []

    def run_in(run_dir, cfg, run):
        lr = cfg.optimizer.lr
        seen.append(lr)
        run_dir.mkdir(parents=True, exist_ok=True)
        acc = 1 - 0.1 * abs(math.log10(lr / 0.02))
        record = {"epochs": 5, "seconds": 100.0, "training_flops": 2e12, "metrics": {"val/acc": acc}}
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


def test_the_seed_of_a_search_decides_what_is_drawn(scored):
    drawn = []
    for folder, seed in (("a", 0), ("b", 1), ("c", 0)):
        scored.clear()
        command = [*SMALL, "search.method=random", "search.rounds=1", "search.trials=3", f"search.seed={seed}"]
        assert cli.search([*command, f"output_dir={folder}"]) == 0
        drawn.append([*scored])
    first, other, again = drawn
    assert first == again
    assert not set(first) & set(other)


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
@pytest.mark.parametrize("space", ["optimizer.lr=interval(0.01,0.1)", "optimizer.lr=choice(0.01,0.02)"])
def test_a_training_that_failed_goes_on_from_its_checkpoint(space, crash, capsys):
    arguments = [*SMALL, space, "search.rounds=1", "search.trials=2", "trainer.max_epochs=3"]
    crash(1)
    assert cli.search(arguments) == 1
    assert "no trial was finished" in capsys.readouterr().out
    folders = sorted(Path("outputs/search").glob("*/0*"))
    crash(None)
    assert cli.search(arguments) == 0
    assert sorted(Path("outputs/search").glob("*/0*")) == folders  # no training was begun anew
    found = trials_of()
    assert [trial["state"] for trial in found] == ["COMPLETE"] * 2
    macs = {json.loads(path.read_text())["macs"] for path in Path("outputs/search").glob("*/*/result.json")}.pop()
    assert {float(trial["training_flops"]) for trial in found} == {6 * macs * 80 * 3}
    assert {int(trial["trial"]) for trial in found} == {int(folder.name[:3]) for folder in folders}
    assert f"cost        {arithmetic(2 * 6 * macs * 80 * 3)}, all" in capsys.readouterr().out


@pytest.mark.slow
def test_a_failed_training_that_was_finished_by_hand_counts(crash):
    arguments = [
        *SMALL,
        "optimizer.lr=interval(0.01,0.1)",
        "search.rounds=1",
        "search.trials=1",
        "trainer.max_epochs=3",
    ]
    crash(1)
    assert cli.search(arguments) == 1
    crash(None)
    (folder,) = Path("outputs/search").glob("*/0*")
    assert cli.train([f"resume={folder}"]) == 0
    written = (folder / "result.json").stat().st_mtime_ns
    assert cli.search(arguments) == 0
    assert (folder / "result.json").stat().st_mtime_ns == written
    assert [trial["state"] for trial in trials_of()] == ["COMPLETE"]
    assert list(Path("outputs/search").glob("*/0*")) == [folder]


@pytest.mark.slow
def test_of_a_search_with_a_target_too_even_where_it_had_failed_twice(crash, monkeypatch):
    arguments = [
        *SMALL,
        "optimizer.lr=interval(0.01,0.1)",
        "search.rounds=1",
        "search.trials=1",
        "trainer.max_epochs=3",
    ]
    arguments += ["search.target=0.001", "trainer.check_val_every_n_epoch=3"]
    crash(1)
    assert cli.search(arguments) == 1
    crash(None)
    with monkeypatch.context() as patch:
        patch.setattr(search, "run_in", lambda *rest: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
        assert cli.search(arguments) == 1
    (folder,) = Path("outputs/search").glob("*/0*")
    assert cli.train([f"resume={folder}"]) == 0
    assert cli.search(arguments) == 0
    (trial,) = trials_of()
    assert trial["flops_to_target"] == trial["training_flops"]


def test_a_disk_that_is_full_before_a_trial_begins_is_told_in_a_line(monkeypatch, capsys):
    monkeypatch.setattr(search.Search, "next_trial", lambda *args: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    assert cli.search([*SMALL, "search.trials=1"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a file could not be written ([Errno 28] No space left on device); what had been")


@pytest.mark.slow
def test_a_line_that_a_full_disk_has_cut_short_is_taken_away(scored, capsys):
    arguments = [*SMALL, "search.rounds=1"]
    assert cli.search([*arguments, "search.trials=2"]) == 0
    (log,) = Path("outputs/search").glob("*/trials.log")
    whole = log.read_bytes()
    log.write_bytes(whole + whole.splitlines()[-1][:20])
    assert cli.search([*arguments, "search.trials=3"]) == 0
    assert cli.search([*arguments, "search.trials=4"]) == 0
    assert len(scored) == 4
    assert log.read_bytes().startswith(whole)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_of_choices_alone_no_combination_is_tried_twice(scored, capsys, method):
    space = ["optimizer.lr=choice(0.01,0.02,0.1)", "model.dropout=choice(0,0.1)"]
    arguments = [*SMALL, *space, f"search.method={method}", "search.rounds=1"]
    assert cli.search([*arguments, "search.trials=4"]) == 0
    assert cli.search([*arguments, "search.trials=10"]) == 0
    assert "trial 6 of 6:" in (shown := capsys.readouterr().out)
    assert "there are no more combinations of these choices than 6" in shown
    assert "the same command again" not in shown
    tried = [(trial["optimizer.lr"], trial["model.dropout"]) for trial in trials_of()]
    assert len(tried) == 6
    assert set(tried) == set(itertools.product(["0.01", "0.02", "0.1"], ["0", "0.1"]))


@pytest.mark.slow
def test_of_choices_alone_what_failed_is_tried_again_the_next_time_only(scored, monkeypatch):
    arguments = [*SMALL, "optimizer.lr=choice(0.01,0.1)", "search.rounds=1", "search.trials=4"]
    run_in, failed = search.run_in, []

    def failing(run_dir, cfg, run):
        if cfg.optimizer.lr == 0.1:
            failed.append(run_dir)
            raise OSError("no space left on device")
        return run_in(run_dir, cfg, run)

    with monkeypatch.context() as patch:
        patch.setattr(search, "run_in", failing)
        assert cli.search(arguments) == 0
    assert len(failed) == 1
    assert cli.search(arguments) == 0
    assert scored == [0.01, 0.1]


@pytest.mark.slow
def test_a_trial_that_another_process_has_taken_over_is_left_to_it(scored, monkeypatch, capsys):
    arguments = [*SMALL, "search.rounds=1", "search.trials=2"]
    run_in, told = search.run_in, []

    def lost(run_dir, *rest):
        if not told:
            told.append(run_dir)
            raise claims.Lost("another process has taken this run over")
        return run_in(run_dir, *rest)

    monkeypatch.setattr(search, "run_in", lost)
    assert cli.search(arguments) == 0
    assert [trial["state"] for trial in trials_of()] == ["COMPLETE"] * 2  # the first by another process
    assert "warning: another process has taken this run over" in capsys.readouterr().out


@pytest.mark.slow
def test_in_a_database_trials_of_another_recipe_are_told_and_its_address_is_in_no_file(scored, tmp_path, capsys):
    space = ["search.rounds=1", "search.trials=1", f"search.storage=sqlite:///{tmp_path}/secret.db"]
    assert cli.search([*SMALL, *space]) == 0
    files = [path for path in Path("outputs").rglob("*") if path.is_file()]
    assert files
    assert not [path for path in files if b"secret" in path.read_bytes()]
    shutil.rmtree("outputs")
    own = write_recipe(0.8)
    assert cli.search([*SMALL, *space, *own]) == 0
    shutil.rmtree("outputs")
    capsys.readouterr()
    assert cli.search([*SMALL, *space, *write_recipe(0.7)]) == 2
    assert "Got another optimizer.momentum than in search.storage" in capsys.readouterr().err


def write_recipe(momentum: float) -> list[str]:
    """A user's own, by the same name whatever it holds."""
    Path("own/optimizer").mkdir(parents=True, exist_ok=True)
    Path("own/optimizer/mine.yaml").write_text(f"defaults:\n  - sgd\nmomentum: {momentum}\n")
    return ["--config-dir", "own", "optimizer=mine"]


@pytest.mark.slow
def test_with_fewer_trials_than_there_are_a_launcher_begins_none(scored):
    arguments = [*SMALL, "search.rounds=1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=1"]
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    launched = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "launch", lambda job, folder, count, call: launched.append(count))
        cli.search([*arguments, "search.trials=3"])
        cli.search([*[text for text in arguments if "launcher" not in text], "search.trials=3"])
        cli.search([*arguments, "search.trials=2"])
        cli.search([*[text for text in arguments if "rounds" not in text], "search.rounds=2", "search.trials=2"])
    assert launched == [3, 2]


@pytest.mark.slow
def test_a_trial_that_diverged_is_finished_and_never_the_best(capsys):
    space = ["optimizer.lr=choice(0.05,1e38)", "search.method=tpe", "search.trials=4"]
    assert cli.search([*SMALL, *space]) == 0
    states = {trial["optimizer.lr"]: trial["state"] for trial in trials_of()}
    assert states == {"0.05": "COMPLETE", "1e+38": "PRUNED"}
    macs = {json.loads(path.read_text())["macs"] for path in Path("outputs/search").glob("*/*/result.json")}.pop()
    # two steps of 40 images by the time that its loss was looked at
    assert {float(trial["training_flops"]) for trial in trials_of() if trial["state"] == "PRUNED"} == {6 * macs * 80}
    assert "diverged" in capsys.readouterr().out
    number = len(trials_of())
    assert cli.search([*SMALL, *space]) == 0
    assert len(trials_of()) == number == 2  # each of the two once


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


@pytest.mark.parametrize(
    ("low", "high", "value", "expected"),
    [
        (1e-6, 1.0, 0.00123456, 0.001235),
        (0.01, 1.0, 0.123456, 0.1235),
        (0.999, 0.9999, 0.99951234567, 0.9995123),
        (0.999, 0.99999, 0.9999899999, 0.99999),
        (-1.0, 1.0, 0.0, 0.0),
        (1.0, 1000.0, 512.3456, 512.3),
    ],
)
def test_numbers_have_digits_enough_to_differ_and_stay_within_the_interval(low, high, value, expected):
    assert shorten(value, Interval(low, high, log=False)) == expected


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


@pytest.mark.parametrize(
    ("overrides", "low", "high"),
    [
        (["model=speednet", "model.bias_lr_factor=interval(0.6,1.4)"], 0.6, 1.4),  # its YAML has 1
        (["optimizer.weight_decay=interval(0,1)"], 0.0, 1.0),
        (["data.max_train=interval(1000,5000)"], 1000, 5000),  # null
        (["data.num_val=interval(1000,5000)"], 1000, 5000),  # a number or a share
        (["trainer.max_epochs=interval(3,9)"], 3, 9),
        (["model.alpha=interval(24,96)", "model=choice(pyramidnet,pyramidnet272)"], 24, 96),  # the default has none
    ],
)
def test_what_an_argument_takes_decides_whether_an_interval_is_of_whole_numbers(overrides, low, high):
    found = Composer("search").space(overrides)[1][next(text for text in overrides if "interval" in text).split("=")[0]]
    assert (found.low, found.high) == (low, high)
    assert type(found.low) is type(found.high) is type(low)


def test_an_interval_of_whole_numbers_has_whole_ends():
    with pytest.raises(UsageError, match=r"is a whole number\. Got data\.batch_size=interval"):
        Composer("search").space(["data.batch_size=interval(10.5,30)"])


@pytest.mark.slow
def test_each_trial_may_find_its_own_peak(monkeypatch):
    monkeypatch.setattr(train, "resolve_max_lr", lambda cfg: OmegaConf.update(cfg, "scheduler.max_lr", 0.07))
    space = ["model.dropout=choice(0.1,0.2)", "scheduler=one_cycle", "scheduler.max_lr=auto", "search.trials=1"]
    assert cli.search([*SMALL, *space, "search.rounds=1"]) == 0
    (path,) = Path("outputs/search").glob("*/*/config.yaml")
    assert OmegaConf.load(path).scheduler.max_lr == 0.07


def test_a_rate_that_some_recipe_overrules_is_not_searched_for(tmp_path):
    for name, peak in (("a", ""), ("b", "scheduler:\n  max_lr: 0.1\n")):
        text = f"# @package _global_\ndefaults:\n  - override /scheduler: one_cycle\n{peak}"
        write_files(tmp_path, {f"mine/experiment/{name}.yaml": text})
    composer = Composer("search", "mine")
    with pytest.raises(UsageError, match=r"Got scheduler\.max_lr=0\.1 in a search for optimizer\.lr"):
        composer.examples(["experiment=choice(a,b)", "optimizer.lr=tag(log,interval(0.01,1))"])


def test_a_limit_of_arithmetic_does_not_go_with_what_is_not_counted(capsys):
    space = ["scheduler=one_cycle", "scheduler.max_lr=auto", "model.dropout=choice(0,0.1)"]
    assert cli.search([*SMALL, *space, "search.max_flops=1e15"]) == 2
    assert "search.max_flops knows nothing of the range tests" in capsys.readouterr().err


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
    told = "6 of 8 trials were not begun: 0:50 of search.max_time=4:10 were left, and one before took 1:40"
    assert told in out.out + out.err
    assert "goes on with them, and has as much time anew" in out.out + out.err
    assert len(trials_of()) == 2
    assert cli.search([*command, "search.max_time=00:00:03:30"]) == 0  # another limit is no other search
    assert len(scored) == 4
    assert cli.search(command) == 0
    assert len(trials_of()) == len(scored) == 8


@pytest.mark.slow
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


@pytest.mark.slow
def test_no_trial_is_begun_that_would_be_too_dear_for_what_is_left(scored, capsys):
    command = [*SMALL, "search.trials=4", "search.rounds=1"]
    assert cli.search([*command, "search.max_flops=5e12"]) == 0
    assert len(scored) == 2
    out = capsys.readouterr()
    told = "2 of 4 trials were not begun: 1 TFLOP of search.max_flops=5 TFLOP were left, and one before took 2 TFLOP"
    assert told in out.out + out.err
    assert "4 TFLOP, all trials together" in out.out
    assert "goes on with them, if given more" in out.out + out.err
    assert cli.search([*command, "search.max_flops=1e15"]) == 0  # another limit is no other search
    assert len(scored) == 4


COSTS = {"model.depth": [8, 14, 20], "trainer.max_epochs": [2, 4, 6]}


def accuracy_after(depth: int, epoch: int, epochs: int) -> float:
    """Of a training with a schedule: deeper is better, later is better, and the last epoch counts for more."""
    return 1 - 0.3 / math.sqrt(epoch) - 1 / depth + 0.1 * (epoch == epochs)


def cheapest_by_hand(target: float) -> tuple[int, int, int]:
    """FLOPs, and what takes them: depth, and epochs of the whole training."""
    found = [
        (epoch * 100 * 6 * depth, depth, epochs)
        for depth in COSTS["model.depth"]
        for epochs in COSTS["trainer.max_epochs"]
        for epoch in range(1, epochs + 1)
        if accuracy_after(depth, epoch, epochs) >= target
    ]
    return min(found)


@pytest.fixture
def played(monkeypatch):
    """Trainings of 100 images an epoch, for each of which a network takes as many multiply-adds as it is deep."""
    ended = []

    def train_run(cfg, extra_callbacks):
        (watch,) = extra_callbacks
        counted = Throughput()
        model = SimpleNamespace(passes=1, training_macs=lambda *shape: (3 * cfg.model.depth, 0))
        data = SimpleNamespace(image_shape=(3, 32, 32), image_sizes=[32], batch_size=20)
        trainer = SimpleNamespace(
            datamodule=data, callbacks=[counted], should_stop=False, callback_metrics={}, sanity_checking=False
        )
        watch.setup(trainer, model, "fit")
        for epoch in range(1, cfg.trainer.max_epochs + 1):
            counted.images_by_size[32], counted.latest, trainer.current_epoch = 100 * epoch, 1.0, epoch - 1
            acc = accuracy_after(cfg.model.depth, epoch, cfg.trainer.max_epochs)
            trainer.callback_metrics["val/acc"] = torch.tensor(acc, dtype=torch.float64)
            watch.on_validation_end(trainer, model)
            if trainer.should_stop:
                break
        ended.append((cfg.model.depth, cfg.trainer.max_epochs, epoch))
        flops = 6 * cfg.model.depth * 100 * epoch
        record = {"epochs": epoch, "seconds": 1.0, "training_flops": flops, "metrics": {"val/acc": acc}}
        Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
        (Path(cfg.run_dir) / "result.json").write_text(json.dumps(record))
        return record

    monkeypatch.setattr(search.train, "train_run", train_run)
    return ended


SPACE = [f"{key}=choice({','.join(map(str, values))})" for key, values in COSTS.items()]
COSTLY = [text for text in SMALL if not text.startswith(("model.depth", "trainer.max_epochs"))]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_the_cheapest_training_that_comes_to_a_target_is_found(played, capsys, method):
    trials = ["search.rounds=1", "search.trials=24", f"search.method={method}"]
    assert cli.search([*COSTLY, *SPACE, "search.target=0.83", *trials]) == 0
    flops, depth, epochs = cheapest_by_hand(0.83)
    *_, line = capsys.readouterr().out.splitlines()
    assert {f"model.depth={depth}", f"trainer.max_epochs={epochs}"} <= set(shlex.split(line))
    rows = trials_of()
    reached = [row for row in rows if row["state"] == "COMPLETE" and float(row["val/acc"]) >= 0.83]
    assert min(float(row["training_flops"]) for row in reached) == flops
    best = math.inf
    for row, (depth, epochs, epoch) in zip(rows, played, strict=True):
        cost, is_there = 600 * depth * epoch, accuracy_after(depth, epoch, epochs) >= 0.83
        assert float(row["training_flops"]) == cost
        # it ended there, or once it had become as dear as the cheapest, or else trained to its end
        assert is_there or cost >= best or epoch == epochs
        assert 600 * depth * (epoch - 1) < best
        assert (row["state"] == "PRUNED") == (not is_there and cost >= best and epoch < epochs)
        best = min(best, cost) if is_there else best
    assert (Path("outputs/search").glob("*/cost.png")).__next__().stat().st_size > 10_000


def test_what_others_are_at_is_not_left(scored):
    """Of three trials one has ended, another process is at one."""
    ours, theirs = (Search(rounds=1, trials=3, max_flops=5e12) for _ in range(2))
    jobs = Composer("search").jobs([*SMALL, "optimizer.lr=0.1"])
    jobs[0].space = {"optimizer.lr": Interval(0.01, 1.0, True)}
    for search_ in (ours, theirs):
        search_.open(jobs)
    first = ours.next_trial(0)
    first.set_user_attr("flops", 2e12)
    ours.study.tell(first, 0.5)
    assert ours.lack() is None
    running = theirs.next_trial(0)
    assert "1 TFLOP of search.max_flops=5 TFLOP were left" in ours.lack()
    (frozen,) = [each for each in ours.study.get_trials() if each.number == running.number]
    assert ours.lack(frozen) is None  # it may go on


def test_what_has_come_there_stays_so_whatever_it_goes_on_to_cost():
    study = optuna.create_study(direction="minimize")
    trial, objective = study.ask(), CheapestTo(0.9, lambda: 1e15)
    assert not objective.judge(trial, 0.8, 0.5e15, 0)
    assert objective.judge(trial, float(torch.tensor(0.9)), 0.9e15, 1)  # 0.8999999761581421
    assert objective.judge(trial, 0.95, 1.3e15, 2)
    assert trial.user_attrs == {"reached": 0.9e15}
    assert objective.value(0.95, trial.user_attrs) == 0.9e15
    assert objective.value(0.8, {}) > objective.value(0.85, {}) > 1e29


@pytest.mark.slow
def test_with_a_target_the_line_that_trains_says_how_long(played, capsys):
    space = ["model.depth=choice(14,20)", "trainer.max_epochs=4", "search.rounds=1", "search.trials=4"]
    assert cli.search([*COSTLY, *space, "search.target=0.8"]) == 0
    *_, line = capsys.readouterr().out.splitlines()
    assert "trainer.max_epochs=4" in shlex.split(line)


@pytest.mark.slow
def test_a_target_that_no_trial_comes_to_is_told(played, capsys):
    assert cli.search([*COSTLY, *SPACE, "search.target=0.99", "search.rounds=1", "search.trials=8"]) == 1
    out = capsys.readouterr()
    highest = max(accuracy_after(depth, epochs, epochs) for depth, epochs, _ in played)
    assert f"search.target=0.99. The best came to {highest:.2%}; search through longer" in out.out + out.err
    assert "to train with the best" not in out.out
    assert "not reached" in out.out


@pytest.mark.slow
def test_a_training_ends_as_soon_as_it_is_there():
    command = [*SMALL, "trainer.max_epochs=4", "search.target=0.02", "search.rounds=1", "search.trials=1"]
    assert cli.search(command) == 0
    (row,) = trials_of()
    (path,) = Path("outputs/search").glob("*/*/result.json")
    record = json.loads(path.read_text())
    assert record["epochs"] < 4
    assert record["metrics"]["val/acc"] >= 0.02
    assert float(row["training_flops"]) == record["training_flops"] == 6 * record["macs"] * record["images"]


def test_a_launchers_worker_waits_where_the_cost_of_others_decides_whether_there_is_another(monkeypatch):
    """Or the last pieces of a round would be taken, and dropped, while one dear trial is trained."""
    answers, waited = [2, 1, None], []
    monkeypatch.setattr(search, "claim_gpu", lambda cfg: None)
    monkeypatch.setattr(search, "keep_images", lambda: None)
    monkeypatch.setattr(search.time, "sleep", waited.append)

    class Asked:
        job = SimpleNamespace(cfg=None)

        def connect(self):
            pass

        def next_trial(self, round_):
            return answers.pop(0)

    search.one_trial(Asked(), 0, 0)
    assert not answers
    assert len(waited) == 2
