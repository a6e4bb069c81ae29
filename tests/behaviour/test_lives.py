"""A run of several lives: what its record counts is of all of them, where they differ is said, and what may differ."""

import time
from pathlib import Path

import pytest
import torch
from helpers import assert_equal, last_of, record_of
from lightning.fabric.utilities.exceptions import MisconfigurationException

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


@pytest.mark.slow
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


@pytest.mark.quick_cases(1)
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
    monkeypatch.setattr("cifar_resnet.hardware.cpu_prefers_bf16", lambda: True)
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train("trainer.max_epochs=2", "precision=auto")
    crash(None)
    monkeypatch.setattr("cifar_resnet.hardware.cpu_prefers_bf16", lambda: False)
    assert cli.train([f"resume={run_dirs()[0]}"]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if "goes on with" in line]
    assert line.index("32-true") < line.index("where it was") < line.index("bf16-mixed")
    assert [each["precision"] for each in record_of(run_dirs()[0])["machines"]] == ["bf16-mixed", "32-true"]


# What a life may do otherwise than the one before


CHANGES = [
    "test=false", "page=true", "trainer.limit_test_batches=2", "data.eval_batch_size=20", "logger=csv",
    "trainer.log_every_n_steps=3", "trainer.profiler=null",
]  # fmt: skip


@pytest.mark.slow
def test_settings_that_bear_on_test_and_looks_alone_may_change_and_the_weights_are_those_of_an_undisturbed_run(
    cifar_train, run_dirs, crash
):
    assert cifar_train("trainer.max_epochs=2") == 0
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train("trainer.max_epochs=2")
    crash(None)
    whole, resumed = run_dirs()
    assert cli.train([f"resume={resumed}", *CHANGES]) == 0
    assert_equal(last_of(whole)["state_dict"], last_of(resumed)["state_dict"])
    record = record_of(resumed)
    assert "test/acc" not in record["metrics"]
    assert record["metrics"]["val/acc"] == record_of(whole)["metrics"]["val/acc"]
    assert (resumed / "page.html").exists()


@pytest.mark.parametrize("change", ["optimizer.lr=1", "trainer.limit_val_batches=1", "data.batch_size=20"])
def test_settings_that_bear_on_the_training_may_not_change(trained, capsys, change):
    assert cli.train([f"resume={trained}", change]) == 2
    assert f"Got {change.partition('=')[0]} as well" in capsys.readouterr().err


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("is_edited", [False, True], ids=["by an override", "by an edit"])
def test_a_run_that_failed_in_its_test_is_tested_with_another_limit(cifar_train, run_dirs, monkeypatch, is_edited):
    """As by a share of less than a batch, before that was refused at once."""
    with monkeypatch.context() as patch:
        patch.setattr("cifar_resnet.build.check_limits", lambda *given: None)
        with pytest.raises(MisconfigurationException):
            cifar_train("trainer.limit_test_batches=0.5")
    (run_dir,) = run_dirs()
    assert cli.train([f"resume={run_dir}"]) == 2
    if is_edited:
        text = (run_dir / "config.yaml").read_text()
        (run_dir / "config.yaml").write_text(text.replace("limit_test_batches: 0.5", "limit_test_batches: 1"))
    assert cli.train([f"resume={run_dir}", *([] if is_edited else ["trainer.limit_test_batches=1"])]) == 0
    assert record_of(run_dir)["num_tested"] == 50


@pytest.mark.slow
@pytest.mark.parametrize(
    ("begun", "asked", "expected"),
    [
        (["test=false"], ["test=true"], 50),
        (["data.eval_batch_size=20", "trainer.limit_test_batches=1"], ["trainer.limit_test_batches=null"], 50),
        (["test=false"], ["test=true", "data.eval_batch_size=20", "trainer.limit_test_batches=1"], 20),
    ],
)
def test_a_finished_run_is_tested_where_that_is_asked_for_and_not_trained(
    cifar_train, run_dirs, capsys, begun, asked, expected
):
    assert cifar_train(*begun) == 0
    (run_dir,) = run_dirs()
    before, weights = record_of(run_dir), last_of(run_dir)["state_dict"]
    capsys.readouterr()
    assert cli.train([f"resume={run_dir}", *asked]) == 0
    assert "finished before" not in capsys.readouterr().out
    record = record_of(run_dir)
    assert record["num_tested"] == expected
    assert record["config"]["test"] is True
    for key in ("train_seconds", "images", "epochs", "steps", "epoch"):
        assert record[key] == before[key]
    assert_equal(last_of(run_dir)["state_dict"], weights)
    assert cli.train([f"resume={run_dir}", *asked]) == 0
    assert "finished before" in capsys.readouterr().out
    assert cli.train([f"resume={run_dir}", "test=false"]) == 0
    assert record_of(run_dir) == record  # nothing is taken away


@pytest.mark.slow
def test_epochs_are_not_chosen_by_two_different_parts(cifar_train, run_dirs, crash, capsys):
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train("trainer.max_epochs=2", "trainer.limit_val_batches=1", "data.eval_batch_size=20")
    crash(None)
    (run_dir,) = run_dirs()
    assert cli.train([f"resume={run_dir}", "data.eval_batch_size=40"]) == 2
    assert "Got 40, where it was 20 in the epochs before" in capsys.readouterr().err
    assert cli.train([f"resume={run_dir}"]) == 0
