"""Where a training ends: by its last epoch, early, by its time; and that an end is one, whatever comes after it."""

import contextlib
import math
import re
import signal
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from helpers import (
    TINY,
    assert_equal,
    last_of,
    record_of,
    rows_of,
    rows_without_speed,
    without_speed,
    write_files,
)  # fmt: skip
from lightning.pytorch.callbacks import timer
from optuna.pruners import MedianPruner
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet import checkpoints, cli, runs
from cifar_resnet.callbacks import FiniteLoss, MemberCheckpoints
from cifar_resnet.checkpoints import AtomicCheckpointIO
from cifar_resnet.models import Classifier
from cifar_resnet.results.record import epochs_in

STEPS = 5  # of an epoch
STILL = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "callbacks.early_stopping.min_delta=0.5")


def asks(**when: list[int]) -> str:
    arguments = "".join(f",{key}:{value}" for key, value in when.items())
    return f"+callbacks.asks={{_target_:helpers.Asks{arguments}}}".replace(" ", "")


def assert_same_end(whole: Path, resumed: Path) -> None:
    """The same weights, epochs and scores, whatever happened to the second on its way."""
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_equal(last_of(whole)[key], last_of(resumed)[key], key)
    assert rows_without_speed(whole) == rows_without_speed(resumed)
    a, b = record_of(whole), record_of(resumed)
    for key in ("epochs", "steps", "images", "epoch", "selected"):
        assert a[key] == b[key], key
    assert without_speed(a["metrics"]) == without_speed(b["metrics"])


# An early end


@contextlib.contextmanager
def without_power(owner: object, name: str) -> Iterator[None]:
    """Within this, whatever comes to this method fails."""

    def fail(*arguments: object, **named: object) -> None:
        raise RuntimeError("the power went out")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, fail)
        with pytest.raises(RuntimeError, match="power"):
            yield


EARLY = {
    "early stopping": STILL,
    "early stopping, averaged weights": (*STILL, "averaging=ema", "averaging.decay=0.9"),
    "early stopping by a loss": (*STILL, "callbacks.early_stopping.monitor=train/loss", "data.num_val=0"),
    "early stopping, not validated before": (
        *STILL, "callbacks.early_stopping.monitor=train/acc", "trainer.check_val_every_n_epoch=5", "averaging=ema",
    ),
    "at the end of an epoch": (asks(epochs=[2]),),
    "within an epoch": (asks(steps=[7]), "trainer.check_val_every_n_epoch=5"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("how", EARLY)
def test_an_early_end_is_an_end_to_a_run_that_lost_its_power_before_the_test(cifar_train, run_dirs, how, capsys):
    command = ["trainer.max_epochs=6", "optimizer.lr=1e-3", *EARLY[how]]
    assert cifar_train(*command) == 0
    (whole,) = run_dirs()
    epochs = record_of(whole)["epochs"]
    assert epochs == (1.4 if "within" in how else 2)
    assert f"ended early, after {epochs} of 6 epochs" in capsys.readouterr().out
    assert "val/acc" in record_of(whole)["metrics"] or "data.num_val=0" in command
    with without_power(Classifier, "test_step"):
        cifar_train(*command, "run_dir=mine")
    assert cli.train(["resume=mine", "trust=[helpers]"]) == 0
    assert "its training had ended; what is left is the test" in capsys.readouterr().out
    assert_same_end(whole, Path("mine"))
    assert record_of(Path("mine"))["train_seconds"] > 0


def test_who_asks_for_the_trainers_checkpoint_callback_is_told_of_the_best(cifar_train, run_dirs):
    told = (
        "{_target_:lightning.pytorch.callbacks.LambdaCallback,on_fit_end:{_target_:helpers.note_best,_partial_:true}}"
    )
    assert cifar_train(f"+callbacks.told={told}") == 0
    (run_dir,) = run_dirs()
    assert Path(run_dir, "best.txt").read_text() == str(run_dir / "checkpoints" / "best.ckpt")


@pytest.mark.slow
def test_an_early_end_that_lost_its_power_between_its_two_checkpoints_comes_again(cifar_train, run_dirs, monkeypatch):
    command = ["trainer.max_epochs=6", "callbacks.best.monitor=train/acc", asks(epochs=[3])]
    assert cifar_train(*command) == 0
    (whole,) = run_dirs()
    assert record_of(whole)["selected"] == "best in training"
    save = AtomicCheckpointIO.save_checkpoint

    def fail_at_the_last(self, checkpoint, path, storage_options=None):
        if checkpoint["ended"] and Path(path).name == "last.ckpt":
            raise RuntimeError("the power went out")
        save(self, checkpoint, path, storage_options)

    with monkeypatch.context() as patch:
        patch.setattr(AtomicCheckpointIO, "save_checkpoint", fail_at_the_last)
        with pytest.raises(RuntimeError, match="power"):
            cifar_train(*command, "run_dir=mine")
    assert last_of(Path("mine"))["epoch"] == 1
    assert cli.train(["resume=mine", "trust=[helpers]"]) == 0
    assert_same_end(whole, Path("mine"))


@pytest.mark.slow
def test_a_signal_in_the_step_that_asks_for_an_end_leaves_that_end(cifar_train, run_dirs, send):
    command = ["trainer.max_epochs=6", asks(steps=[7])]
    assert cifar_train(*command) == 0
    (whole,) = run_dirs()
    send(7)
    assert cifar_train(*command, "run_dir=mine") == 128 + signal.SIGTERM
    send(None)
    assert last_of(Path("mine"))["ended"]
    assert cli.train(["resume=mine", "trust=[helpers]"]) == 0
    assert_same_end(whole, Path("mine"))


@pytest.mark.slow
def test_networks_side_by_side_that_ended_early_go_straight_to_their_test(cifar_train):
    command = ["trainer.max_epochs=6", "ensemble.size=2", asks(epochs=[2])]
    assert cifar_train(*command, "output_dir=whole") == 0
    for owner, name in ((MemberCheckpoints, "complete"), (Classifier, "test_step")):
        with without_power(owner, name):
            cifar_train(*command)
    assert cifar_train(*command) == 0
    for seed in range(2):
        whole, resumed = (
            next(Path(each, "train").glob("ensemble-*")) / f"seed-{seed}" for each in ("whole", "outputs")
        )
        assert_equal(last_of(whole)["state_dict"], last_of(resumed)["state_dict"])
        a, b = record_of(whole), record_of(resumed)
        assert (a["epochs"], a["epoch"], a["metrics"]["test/loss"]) == (2, b["epoch"], b["metrics"]["test/loss"])
        assert b["epochs"] == 2


def trials() -> list[tuple[str, float]]:
    """Of a search, how each ended, and after how many epochs."""
    (folder,) = Path("outputs/search").glob("*")
    states = [line.split(",")[-1] for line in (folder / "trials.csv").read_text().split()[1:]]
    return [
        (state, record_of(path.parent)["epochs"])
        for state, path in zip(states, sorted(folder.glob("*/result.json")), strict=True)
    ]


@pytest.mark.slow
def test_a_hopeless_trial_stopped_before_its_record_is_not_trained_on_and_one_that_ended_itself_is_complete(
    monkeypatch,
):
    monkeypatch.setattr(MedianPruner, "prune", lambda self, study, trial: trial.number == 1)
    command = [*TINY, "data.num_train=120", "trainer.max_epochs=3", "search.method=tpe", "search.trials=2"]
    write_json = runs.write_json

    def interrupt(path: Path, content: dict) -> None:
        if path.name == runs.RECORD and content["epochs"] == 1:
            raise KeyboardInterrupt
        write_json(path, content)

    with monkeypatch.context() as patch:
        patch.setattr(runs, "write_json", interrupt)
        assert cli.search([*command, asks(epochs=[2])]) == 130
    assert cli.search([*command, asks(epochs=[2])]) == 0
    assert trials() == [("COMPLETE", 2), ("PRUNED", 1)]


# trainer.min_epochs


@pytest.mark.slow
@pytest.mark.parametrize(("epochs", "expected"), [([2], 6), ([2, 5], 5), ([3], 3)])
def test_a_request_before_min_epochs_is_over_with_its_epoch(cifar_train, run_dirs, crash, epochs, expected):
    """Whether it was killed and resumed in between, or not."""
    command = ["trainer.max_epochs=6", f"trainer.min_epochs={4 if expected > 3 else 3}", asks(epochs=epochs)]
    assert cifar_train(*command) == 0
    (whole,) = run_dirs()
    assert record_of(whole)["epochs"] == expected
    crash(2)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train(*command, "run_dir=mine")
    crash(None)
    assert cli.train(["resume=mine", "trust=[helpers]"]) == 0
    assert_same_end(whole, Path("mine"))


def test_early_stopping_decides_anew_at_each_epoch_from_min_epochs_on(cifar_train, run_dirs, monkeypatch):
    scores = iter([0.3, 0.2, 0.4, 0.5, 0.45, 0.4, 0.9])  # worse in the second, and from the fifth on

    def log_val(self):
        self.log_dict({"val/loss": 1.0, "val/acc": next(scores)})

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", log_val)
    own = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1"]
    assert cifar_train(*own, "trainer.max_epochs=7", "trainer.min_epochs=4") == 0
    assert record_of(run_dirs()[0])["epochs"] == 5


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    ("option", "scores", "epochs"),
    [
        ("stopping_threshold=0.94", [0.9, 0.93, 0.95, 0.96], 3),
        ("divergence_threshold=0.2", [0.5, 0.1, 0.6, 0.7], 2),
        ("check_finite=true", [0.5, math.nan, 0.6, 0.7], 2),
        ("check_finite=false", [0.5, math.nan, 0.6, 0.7], 4),
        ("min_delta=0.2", [0.5, 0.6, 0.65, 0.7], 3),
    ],
)
def test_early_stopping_has_thresholds(cifar_train, run_dirs, monkeypatch, option, scores, epochs):
    left = iter(scores)

    def log_val(self):
        self.log_dict({"val/loss": 1.0, "val/acc": next(left)})

    monkeypatch.setattr(Classifier, "on_validation_epoch_end", log_val)
    own = ["callbacks=early_stopping", "callbacks.early_stopping.patience=2", f"callbacks.early_stopping.{option}"]
    assert cifar_train(*own, "trainer.max_epochs=4", "callbacks.best.monitor=val/loss") == 0
    assert record_of(run_dirs()[0])["epochs"] == epochs


def test_a_training_without_a_limit_notes_its_time_for_a_life_that_has_one(cifar_train, crash):
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train("trainer.max_epochs=9", "run_dir=mine")
    crash(None)
    checkpoint = last_of(Path("mine"))
    assert checkpoint["callbacks"]["TimeLimit"]["time_elapsed"]["train"] > 0
    assert checkpoint["out_of_time"] is None
    checkpoint["callbacks"]["TimeLimit"]["time_elapsed"]["train"] = 3600.0
    torch.save(checkpoint, "mine/checkpoints/last.ckpt")
    assert cli.train(["resume=mine", "trainer.max_time=00:01:00:00"]) == 0
    assert record_of(Path("mine"))["epochs"] < 2


def test_training_scores_choose_an_epoch_where_none_is_validated(cifar_train, run_dirs):
    assert cifar_train("trainer.limit_val_batches=0", "callbacks.best.monitor=train/acc", "trainer.max_epochs=2") == 0
    assert record_of(run_dirs()[0])["selected"] == "best in training"


def test_without_a_schedule_no_score_is_called_a_rate(cifar_train, run_dirs):
    assert cifar_train("~scheduler") == 0
    (run_dir,) = run_dirs()
    assert not [name for name in record_of(run_dir)["metrics"] if name.startswith("lr")]
    assert not [name for name in last_of(run_dir)["metrics"] if name.startswith("lr")]


@pytest.mark.parametrize(("progress", "expected"), [((5, True), 3), ((2, False), 2.4), ((0, False), 2.0), (None, 3)])
def test_a_checkpoint_of_an_epoch_that_was_cut_short_says_so(progress, expected):
    checkpoint = {"epoch": 2}
    if progress:
        ready, is_last = progress
        batches = {"current": {"ready": ready}, "is_last_batch": is_last}
        checkpoint["loops"] = {"fit_loop": {"epoch_loop.batch_progress": batches}}
    assert epochs_in(checkpoint, SimpleNamespace(num_training_batches=5)) == expected


def test_a_request_within_an_epoch_before_min_epochs_is_over_with_that_epoch(cifar_train, run_dirs):
    assert cifar_train(asks(steps=[7, 17]), "trainer.max_epochs=5", "trainer.min_epochs=3") == 0
    assert record_of(run_dirs()[0])["epochs"] == 3.4


# Which epochs are validated


def val_column(run_dir: Path) -> list[int]:
    """The epochs that have validation scores."""
    return [int(row["epoch"]) for row in rows_of(run_dir) if row["val/acc"] and row["val/loss"]]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("overrides", "validated", "epochs"),
    [
        (["trainer.max_epochs=5"], [2, 4, 5], 5),
        (["trainer.max_epochs=4"], [2, 4], 4),
        (["trainer.max_epochs=5", "trainer.check_val_every_n_epoch=9"], [5], 5),
        (["trainer.max_epochs=5", asks(steps=[13])], [2, 3], 2.6),
        (["trainer.max_epochs=5", asks(steps=[15])], [2, 3], 3),
        (["trainer.max_epochs=5", asks(epochs=[3])], [2, 3], 3),
    ],
)
def test_every_second_epoch_and_the_last_are_validated_and_the_others_have_no_scores(
    cifar_train, run_dirs, overrides, validated, epochs, capsys
):
    assert cifar_train("trainer.check_val_every_n_epoch=2", *overrides, "callbacks.best.monitor=val/loss") == 0
    (run_dir,) = run_dirs()
    rows, record = rows_of(run_dir), record_of(run_dir)
    assert record["epochs"] == epochs
    assert val_column(run_dir) == validated
    assert all(row["train/loss"] and row["lr"] for row in rows)
    lines = re.findall(r"^ +(\d)/\d  (.*)$", capsys.readouterr().out, re.MULTILINE)
    assert [int(epoch) for epoch, line in lines if len(line.split()) == 7] == validated
    assert all(len(line.split()) == 5 for epoch, line in lines if int(epoch) not in validated)
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    assert len(events.Scalars("val/acc")) == len(validated)
    assert len(events.Scalars("train/acc")) == len(rows)
    # what the record says is of one epoch, that of the chosen checkpoint
    chosen = checkpoints.read(run_dir)["epoch"]
    assert chosen + 1 == validated[min(range(len(validated)), key=lambda i: float(rows[validated[i] - 1]["val/loss"]))]
    for name, value in record["metrics"].items():
        if not name.startswith("test/"):
            assert float(rows[chosen][name]) == value, name
    assert last_of(run_dir)["metrics"]["val/loss"] == float(rows[-1]["val/loss"])


@pytest.mark.slow
def test_an_epochs_checkpoint_has_no_scores_of_another_epoch(cifar_train, run_dirs, crash, send):
    command = ["trainer.check_val_every_n_epoch=2", "trainer.max_epochs=4"]
    assert cifar_train(*command) == 0
    crash(3)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train(*command, "run_dir=mine")
    crash(None)
    metrics = last_of(Path("mine"))["metrics"]
    assert not [name for name in metrics if name.startswith("val")]
    assert metrics["train/loss"] == float(rows_of(Path("mine"))[2]["train/loss"])
    send(3 * STEPS + 2)
    assert cli.train(["resume=mine", "trust=[helpers]"]) == 128 + signal.SIGTERM
    send(None)
    assert last_of(Path("mine"))["metrics"] == {}
    assert cli.train(["resume=mine", "trust=[helpers]"]) == 0
    assert_same_end(run_dirs()[0], Path("mine"))


@pytest.mark.slow
def test_networks_side_by_side_validate_their_last_epoch_and_choose_among_those_validated(cifar_train):
    command = ["trainer.max_epochs=3", "trainer.check_val_every_n_epoch=2", "ensemble.size=2", "optimizer.lr=1e-3"]
    assert cifar_train(*command, "callbacks.best.monitor=val/loss") == 0
    (folder,) = Path("outputs/train").glob("ensemble-*")
    rows = rows_of(folder / "together")
    assert not rows[0]["val/loss_1"]
    assert rows[1]["val/loss_1"] != rows[2]["val/loss_1"] != ""
    for number in range(2):
        record = record_of(folder / f"seed-{number}")
        assert record["metrics"]["val/loss"] == min(float(row[f"val/loss_{number}"]) for row in rows[1:])
        assert record["metrics"]["val/loss"] == float(rows[record["epoch"] - 1][f"val/loss_{number}"])


# trainer.max_time


@pytest.fixture
def a_second_a_step(monkeypatch):
    """A training's clock: each of its batches takes a second, and nothing else takes any."""
    seconds = []
    training_step = Classifier.training_step
    monkeypatch.setattr(Classifier, "training_step", lambda *args: seconds.append(1) or training_step(*args))
    monkeypatch.setattr(timer, "time", SimpleNamespace(monotonic=lambda: len(seconds)))


SEVEN = "trainer.max_time=00:00:00:07"


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("more", "epochs", "steps"),
    [
        (["averaging=ema"], 1.4, [5, 7]),
        (["trainer.accumulate_grad_batches=2"], 1.4, [3, 4]),  # of 2, 2 and 1 batches, and 2
        (["data.num_val=0"], 1.167, [6, 7]),
        (["trainer.check_val_every_n_epoch=4"], 1.4, [5, 7]),
    ],
)
def test_a_training_that_ran_out_of_time_is_validated_tested_and_counted_as_what_it_was(
    cifar_train, run_dirs, a_second_a_step, more, epochs, steps, capsys
):
    assert cifar_train("trainer.max_epochs=9", SEVEN, *more) == 0
    (run_dir,) = run_dirs()
    record, last, rows = record_of(run_dir), last_of(run_dir), rows_of(run_dir)
    assert (record["epochs"], record["steps"], record["images"]) == (epochs, steps[-1], 7 * 40)
    assert (last["global_step"], last["ended"]) == (steps[-1], True)
    assert [int(row["step"]) for row in rows] == steps
    assert record["epoch"] in (1, epochs)
    assert "test/acc" in record["metrics"]
    assert bool(rows[-1].get("val/acc")) == ("data.num_val=0" not in more)
    output = capsys.readouterr().out
    assert "warning: max_time may end the training before scheduler=cosine" in output
    assert f"ended early, after {epochs} of 9 epochs" in output
    assert f"{epochs} epochs in" in output


def test_smaller_images_are_warned_of_where_a_training_may_end_with_them(cifar_train, capsys):
    assert cifar_train("resize=progressive", "scheduler=constant", "trainer.max_time=00:01:00:00") == 0
    told = "warning: max_time may end the training before it has seen images of the size that"
    assert told in capsys.readouterr().out


@pytest.mark.slow
def test_the_time_before_a_resume_counts_and_an_end_by_time_is_an_end(cifar_train, run_dirs, a_second_a_step, send):
    command = ["trainer.max_epochs=9", SEVEN]
    assert cifar_train(*command) == 0
    send(3)
    assert cifar_train(*command, "run_dir=mine") == 143
    send(7)  # in the very step in which its time is over
    assert cli.train(["resume=mine", "trust=[helpers]"]) == 143
    send(None)
    assert not (Path("mine") / "result.json").exists()
    with without_power(Classifier, "test_step"):
        cli.train(["resume=mine", "trust=[helpers]"])
    assert cli.train(["resume=mine", "trust=[helpers]"]) == 0
    assert_same_end(run_dirs()[0], Path("mine"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "scheduler",
    [
        "_target_: torch.optim.lr_scheduler.StepLR\n_partial_: true\nstep_size: 1\ngamma: 0.5\n",
        "_target_: torch.optim.lr_scheduler.ReduceLROnPlateau\n_partial_: true\npatience: 0\nthreshold: 10.0\n"
        "monitor: train/loss\n",
    ],
)
def test_an_epoch_that_ran_out_of_time_moves_its_schedule_once(cifar_train, run_dirs, a_second_a_step, scheduler):
    write_files(Path(), {"mine/scheduler/mine.yaml": scheduler})
    command = ["--config-dir", "mine", "scheduler=mine", "trainer.max_epochs=4", "callbacks=early_stopping"]
    assert cifar_train(*command, "trainer.max_time=null") == 0
    assert cifar_train(SEVEN, *command, "run_dir=mine-run") == 0
    assert record_of(Path("mine-run"))["epochs"] == 1.4
    assert cli.train(["resume=mine-run", "trust=[helpers]", "trainer.max_time=null"]) == 0
    whole, mine = last_of(run_dirs()[0]), last_of(Path("mine-run"))
    assert_equal(mine["state_dict"], whole["state_dict"])
    assert_equal(mine["lr_schedulers"], whole["lr_schedulers"])
    stopping = [key for key in whole["callbacks"] if "EarlyStopping" in key]
    assert [mine["callbacks"][key]["wait_count"] for key in stopping] == [
        whole["callbacks"][key]["wait_count"] for key in stopping
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("time", "more"),
    [
        ("null", ["averaging=ema", "augment=randaugment", "model.dropout=0.2"]),
        ("00:00:01:00", ["trainer.accumulate_grad_batches=2"]),
        ("00:00:01:00", ["trainer.max_time=00:00:00:05"]),  # which is over with an epoch
    ],
)
def test_a_run_that_ran_out_of_time_goes_on_with_more(cifar_train, run_dirs, a_second_a_step, time, more, capsys):
    command = ["trainer.max_epochs=4", *more]
    assert cifar_train(*command, "trainer.max_time=null") == 0
    assert cifar_train(SEVEN, *command, "run_dir=mine") == 0
    before = record_of(Path("mine"))
    assert cli.train(["resume=mine", "trust=[helpers]"]) == 0  # which is over
    assert record_of(Path("mine")) == before
    capsys.readouterr()
    assert cli.train(["resume=mine", "trust=[helpers]", f"trainer.max_time={time}"]) == 0
    assert "tested before" in capsys.readouterr().out
    whole, mine = run_dirs()[0], Path("mine")
    assert record_of(mine)["epochs"] == 4
    assert_equal(last_of(mine)["state_dict"], last_of(whole)["state_dict"])
    assert [row["step"] for row in rows_of(mine)] == [row["step"] for row in rows_of(whole)]
    assert record_of(mine)["metrics"].keys() == record_of(whole)["metrics"].keys()


def test_a_training_that_ended_otherwise_does_not_go_on_for_more_time(cifar_train, a_second_a_step):
    assert cifar_train("trainer.max_epochs=3", "trainer.max_time=00:00:01:00", "run_dir=mine") == 0
    before = record_of(Path("mine"))
    assert cli.train(["resume=mine", "trust=[helpers]", "trainer.max_time=null"]) == 0
    assert record_of(Path("mine")) == before


def test_a_time_that_is_over_before_the_first_step_leaves_that_step(cifar_train, run_dirs, a_second_a_step):
    assert cifar_train("trainer.max_epochs=9", "trainer.max_time={seconds:1}", "trainer.accumulate_grad_batches=3") == 0
    record = record_of(run_dirs()[0])
    assert (record["epochs"], record["steps"]) == (0.6, 1)


def test_networks_side_by_side_that_ran_out_of_time_keep_their_best(cifar_train, a_second_a_step):
    assert cifar_train("trainer.max_epochs=9", "trainer.max_time=00:00:00:03", "ensemble.size=2") == 0
    (folder,) = Path("outputs/train").glob("ensemble-*")
    for number in range(2):
        record = record_of(folder / f"seed-{number}")
        assert (record["epochs"], record["epoch"], record["selected"]) == (0.6, 0.6, "best on validation")
        assert record["images"] == 3 * 40


def test_a_loss_that_is_not_finite_is_seen_in_an_epoch_that_was_cut_short(cifar_train, a_second_a_step, monkeypatch):
    """On a GPU, which is not asked after each step."""
    asked = FiniteLoss.on_train_batch_end

    class Gpu:
        device = torch.device("cuda")

    monkeypatch.setattr(
        FiniteLoss, "on_train_batch_end", lambda self, trainer, module, *args: asked(self, trainer, Gpu, *args)
    )
    assert cifar_train("trainer.max_time=00:00:00:03", "optimizer.lr=1e25") == 1
