"""A run of several lives: what its record counts is of all of them, and where they differ is said."""

import time
from pathlib import Path

import pytest
import torch
from helpers import last_of, record_of

from cifar_resnet import cli
from cifar_resnet.models import Classifier


@pytest.fixture
def clock(monkeypatch):
    """Have a thousand seconds go by at the start of an epoch, counted from 0, until called with None."""
    perf_counter, on_train_epoch_start = time.perf_counter, Classifier.on_train_epoch_start
    passed = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: perf_counter() + passed[0])

    def at(epoch):
        def start(self):
            passed[0] += 1000 * (self.current_epoch == epoch)
            on_train_epoch_start(self)

        monkeypatch.setattr(Classifier, "on_train_epoch_start", start)

    return at


def stop_and_resume(cifar_train, clock, send, overrides: list[str], step: int) -> None:
    """A thousand seconds in the first life, stopped at this step, and the rest in a second."""
    clock(0)
    send(step)
    assert cifar_train(*overrides) == 143
    send(None)
    clock(None)


@pytest.mark.parametrize("step", [6, 3], ids=["between epochs", "within one"])
def test_a_resumed_runs_seconds_are_those_of_all_its_lives(cifar_train, run_dirs, clock, send, step):
    stop_and_resume(cifar_train, clock, send, ["trainer.max_epochs=2"], step)
    (run_dir,) = run_dirs()
    assert cli.train([f"resume={run_dir}"]) == 0
    record = record_of(run_dir)
    assert 1000 < record["train_seconds"] < record["seconds"] < 1100
    assert record["images"] == 400
    assert record["images_per_second"] == pytest.approx(400 / record["train_seconds"])


def test_a_run_that_was_stopped_before_its_test_counts_its_training(cifar_train, run_dirs, clock, monkeypatch):
    clock(0)
    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "test_step", lambda self, batch, index: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            cifar_train()
    clock(None)
    (run_dir,) = run_dirs()
    assert cli.train([f"resume={run_dir}"]) == 0
    assert 1000 < record_of(run_dir)["train_seconds"] < record_of(run_dir)["seconds"] < 1100


def test_networks_side_by_side_count_all_their_lives_as_well(cifar_train, clock, send):
    command = ["ensemble.size=2", "trainer.max_epochs=2"]
    stop_and_resume(cifar_train, clock, send, command, 3)
    assert cifar_train(*command) == 0
    for path in Path("outputs").rglob("result.json"):
        record = record_of(path.parent)
        assert 1000 < record["train_seconds"] < record["seconds"] < 1100


def test_record_and_checkpoint_hold_the_number_of_threads(cifar_train, run_dirs):
    torch.set_num_threads(2)
    assert cifar_train() == 0
    (run_dir,) = run_dirs()
    record = record_of(run_dir)
    assert record["threads"] == 2
    (machine,) = record["machines"]
    assert machine == {key: record[key] for key in ("device", "precision", "threads")}
    assert last_of(run_dir)["callbacks"]["Machine"] == {"machines": [machine]}


@pytest.mark.parametrize(("threads", "is_said"), [(2, True), (1, False)])
def test_a_run_that_goes_on_with_another_number_of_threads_says_so(
    cifar_train, run_dirs, crash, capsys, threads, is_said
):
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train("trainer.max_epochs=2")
    crash(None)
    (run_dir,) = run_dirs()
    torch.set_num_threads(threads)
    capsys.readouterr()
    assert cli.train([f"resume={run_dir}"]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if "goes on with" in line]
    assert len(lines) == is_said
    assert all(f", {threads} thread" in line and ", 1 thread" in line for line in lines)
    assert all(line in (run_dir / "train.log").read_text() for line in lines)
    assert [machine["threads"] for machine in record_of(run_dir)["machines"]] == sorted({1, threads})


def test_a_run_that_goes_on_in_another_precision_says_so(cifar_train, run_dirs, crash, capsys, monkeypatch):
    """precision=auto means something else on another machine."""
    monkeypatch.setattr("cifar_resnet.hardware.cpu_has_bf16", lambda: True)
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train("trainer.max_epochs=2", "precision=auto")
    crash(None)
    monkeypatch.setattr("cifar_resnet.hardware.cpu_has_bf16", lambda: False)
    assert cli.train([f"resume={run_dirs()[0]}"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "goes on with" in line]
    assert line.index("32-true") < line.index("where it was") < line.index("bf16-mixed")
    assert [each["precision"] for each in record_of(run_dirs()[0])["machines"]] == ["bf16-mixed", "32-true"]
