"""Runs that are stopped, fail or cannot write: what was finished stays, and the rest can go on."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, assert_equal, last_of, record_of, rows_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet import train
from cifar_resnet.callbacks import FiniteLoss, WholeCheckpoints
from cifar_resnet.command import RunError
from cifar_resnet.data import Synthetic
from cifar_resnet.models import Classifier

# resume=auto


def test_resume_auto_begins_goes_on_and_ends_as_if_never_stopped(cifar_train, run_dirs, crash, capsys):
    command = ["trainer.max_epochs=4", "optimizer.lr=0.05", "trainer.log_every_n_steps=10", "resume=auto"]
    assert cifar_train(*command[:-1]) == 0
    crash(2)  # an epoch without a logged step
    with pytest.raises(RuntimeError, match="power"):
        cifar_train(*command)
    crash(None)
    assert cifar_train(*command) == 0
    whole, resumed = run_dirs()
    assert_equal(last_of(whole)["state_dict"], last_of(resumed)["state_dict"])
    assert_equal(last_of(whole)["optimizer_states"], last_of(resumed)["optimizer_states"])
    rows = [rows_of(run_dir) for run_dir in (whole, resumed)]
    for row in rows[0] + rows[1]:
        del row["train/images_per_second"]
    assert rows[0] == rows[1]
    before = record_of(resumed)
    assert cifar_train(*command) == 0
    assert "finished before" in capsys.readouterr().out
    assert record_of(resumed) == before
    assert cifar_train("trainer.max_epochs=2", "optimizer.lr=0.05", "resume=auto") == 0  # another command: another run
    assert len(run_dirs()) == 3


def test_resume_auto_in_a_folder_of_ones_own(cifar_train, capsys):
    assert cifar_train("resume=auto", "run_dir=mine") == 0
    assert cifar_train("resume=auto", "run_dir=mine", "seed=3") == 2
    assert "run_dir holds a run of another command. Got mine" in capsys.readouterr().err
    assert record_of(Path("mine"))["config"]["seed"] == 0


def test_a_run_killed_between_its_first_two_checkpoints_begins_anew(cifar_train, run_dirs, monkeypatch):
    assert cifar_train("trainer.max_epochs=2") == 0

    def fail_at_last(self, checkpoint, path, storage_options=None):
        if Path(path).name == "last.ckpt":
            raise RuntimeError("power")
        save(self, checkpoint, path)

    save = WholeCheckpoints.save_checkpoint
    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", fail_at_last)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train("trainer.max_epochs=2", "resume=auto")
    monkeypatch.setattr(WholeCheckpoints, "save_checkpoint", save)
    whole, killed = run_dirs()
    assert [path.name for path in killed.glob("checkpoints/*")] == ["best.ckpt"]
    assert cifar_train("trainer.max_epochs=2", "resume=auto") == 0
    assert run_dirs() == [whole, killed]
    assert_equal(last_of(whole)["state_dict"], last_of(killed)["state_dict"])


def test_a_run_killed_before_its_configuration_was_whole_begins_anew(cifar_train):
    Path("mine").mkdir()
    Path("mine/config.yaml.part").write_text("data: {")
    assert cifar_train("resume=auto", "run_dir=mine") == 0


# Numbers


def test_a_loss_that_is_not_finite_ends_the_run_with_one_line(cifar_train, run_dirs, capsys):
    assert cifar_train("optimizer.lr=1e25", "trainer.max_epochs=3") == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert "the loss is no longer finite. Got nan" in line
    assert re.search(r"by step \d+ \(epoch 1\) at a learning rate of \d\.\d+e\+24", line)
    assert "give a lower optimizer.lr" in line
    assert "Traceback" not in captured.out
    assert not (run_dirs()[0] / "result.json").exists()


def test_skipped_steps_are_counted_by_the_scale_that_they_halve():
    callback = FiniteLoss()
    scales = iter([64.0, 64.0, 32.0, 16.0, 16.0, 32.0])

    class Stand:
        device = torch.device("cpu")
        is_last_batch = False
        precision_plugin = None
        scaler = None

        def _get_scale_async(self):
            return torch.tensor(next(scales))

        def log(self, name, value):
            self.logged = {name: value.item()}

    stand = Stand()
    stand.precision_plugin = stand
    stand.scaler = stand
    callback.on_train_start(stand, stand)
    for step in range(6):
        callback.on_train_batch_end(stand, stand, {"loss": torch.tensor(1.0)}, None, step)
    callback.on_train_epoch_end(stand, stand)
    assert stand.logged == {"train/skipped_steps": 2}


# Writing


def test_a_full_disk_leaves_the_last_checkpoint_whole(cifar_train, run_dirs, monkeypatch, capsys):
    save, saved = torch.save, []

    def fill_up(checkpoint, file):
        saved.append(1)
        if len(saved) <= 2:  # best and last of the first epoch
            return save(checkpoint, file)
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_up)
    assert cifar_train("trainer.max_epochs=3") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "a checkpoint could not be written ([Errno 28] No space left on device)" in line
    (run_dir,) = run_dirs()
    assert last_of(run_dir)["epoch"] == 0
    assert not list(run_dir.rglob("*.part"))
    monkeypatch.setattr(torch, "save", save)
    assert train.main([f"resume={run_dir}"]) == 0
    assert record_of(run_dir)["epochs"] == 3


def test_a_process_killed_while_it_writes_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    io = WholeCheckpoints()
    io.save_checkpoint({"epoch": 0, "weights": torch.arange(1000)}, path)

    def die(checkpoint, file):
        file.write(b"half")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    if child := os.fork():
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        try:
            monkeypatch.setattr(torch, "save", die)
            io.save_checkpoint({"epoch": 1, "weights": torch.zeros(1000)}, path)
        finally:
            os._exit(0)  # never on with the tests of the parent
    assert (tmp_path / "last.ckpt.part").exists()
    assert torch.load(path, weights_only=True)["epoch"] == 0
    io.save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True)["epoch"] == 2


def test_the_first_checkpoint_that_fails_says_that_there_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="there is none yet"):
        WholeCheckpoints().save_checkpoint({"epoch": 0}, tmp_path / "file" / "last.ckpt")


@pytest.mark.parametrize("what", ["metrics.part", "predictions.npz.part", "result.json.part"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_file_that_cannot_be_written_ends_the_run_with_one_line_and_loses_nothing(
    cifar_train, run_dirs, monkeypatch, capsys, what, error
):
    open_path = Path.open

    def refuse(self, mode="r", *args, **kwargs):
        if self.name == what and "w" in mode:
            raise error
        return open_path(self, mode, *args, **kwargs)

    assert cifar_train("trainer.max_epochs=2") == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert cifar_train("trainer.max_epochs=2") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert f"a file could not be written ({error})" in line
    whole, broken = run_dirs()
    assert not (broken / "result.json").exists()
    if what != "metrics.part":  # that comes first of all
        assert last_of(broken)["epoch"] == 1
        assert train.main([f"resume={broken}"]) == 0
        assert record_of(broken)["metrics"]["test/loss"] == record_of(whole)["metrics"]["test/loss"]


def test_a_page_that_cannot_be_made_costs_nothing_else(cifar_train, run_dirs, monkeypatch, capsys):
    monkeypatch.setattr("cifar_resnet.page.write", lambda *args: 1 / 0)
    assert cifar_train("page=true") == 0
    assert "no page was made (ZeroDivisionError: division by zero)" in capsys.readouterr().out
    assert "test/acc" in record_of(run_dirs()[0])["metrics"]


# Sweeps


def test_a_recipe_of_ones_own_is_mended_and_never_mixed_with_what_it_was(cifar_train, capsys):
    def write(lr: str, momentum: str) -> None:
        text = f"_target_: torch.optim.SGD\n_partial_: true\nlr: {lr}\nmomentum: {momentum}\nweight_decay: 0\n"
        Path("mine/optimizer/own.yaml").write_text(text)

    Path("mine/optimizer").mkdir(parents=True)
    command = ["-m", "--config-dir", "mine", "optimizer=own", "seed=0,1", "trainer.gradient_clip_val=1"]
    write("1e25", "0.9")
    assert cifar_train(*command) == 1
    captured = capsys.readouterr()
    assert "the loss is no longer finite" in captured.out + captured.err
    write("0.01", "0.9")
    assert cifar_train(*command) == 0
    assert "finished before" not in capsys.readouterr().out
    assert cifar_train(*command) == 0
    assert capsys.readouterr().out.count("finished before") == 2
    write("0.01", "0.5")
    assert cifar_train(*command) == 1
    captured = capsys.readouterr()
    assert (
        "its recipe has changed since this job was trained. Got another optimizer.momentum"
        in captured.out + captured.err
    )
    Path("other/optimizer").mkdir(parents=True)
    Path("mine/optimizer/own.yaml").rename("other/optimizer/own.yaml")
    assert cifar_train(*("other" if text == "mine" else text for text in command)) == 0
    assert "finished before" not in capsys.readouterr().out


def test_a_damaged_record_stops_its_own_job_alone(cifar_train, run_dirs, capsys):
    assert cifar_train("-m", "seed=0,1") == 0
    first, second = run_dirs()
    (first / "result.json").write_text("{")
    (second / "result.json").unlink()
    assert cifar_train("-m", "seed=0,1") == 1
    assert record_of(second)["epochs"] == 1
    assert "1 of 2 jobs failed" in capsys.readouterr().out


def test_a_sweep_with_failures_ends_and_tries_only_those_again(capsys):
    tiny = [text for text in TINY if not text.startswith(("data", "trainer"))]
    images, labels = Synthetic(num_train=120, num_test=40).read(train=True)
    for name in ("a", "b", "test"):
        np.savez(f"{name}.npz", images=images[:100].numpy(), labels=labels[:100].numpy())
    command = [
        "-m", *tiny, "data=files", "data.train=a.npz,b.npz,c.npz", "data.test=test.npz", "data.batch_size=20",
        "data.num_val=20", "seed=0,1", "trainer.max_epochs=1",
    ]  # fmt: skip
    assert train.main(command) == 1
    out = capsys.readouterr().out
    assert "2 of 6 jobs failed" in out
    assert out.count("c.npz, which is not there") >= 2
    results = sorted(Path("outputs").rglob("result.json"))
    assert len(results) == 4
    stamps = [path.stat().st_mtime_ns for path in results]
    failures = list(Path("outputs").rglob("failure.txt"))
    assert len(failures) == 2
    assert "c.npz" in failures[0].read_text()
    np.savez("c.npz", images=images[:100].numpy(), labels=labels[:100].numpy())
    assert train.main(command) == 0
    assert [path.stat().st_mtime_ns for path in results] == stamps
    assert len(list(Path("outputs").rglob("result.json"))) == 6
    assert not list(Path("outputs").rglob("failure.txt"))
    assert "failed" not in capsys.readouterr().out


# Signals


def test_stopped_in_the_first_epoch_and_resumed_equals_never_stopped(cifar_train, run_dirs, send, capsys):
    """With an average of the weights; other optimizers, schedules and epochs in test_train.py."""
    overrides = ["averaging=ema", "averaging.decay=0.7", "augment=cutmix", "model.stochastic_depth=0.3"]
    assert cifar_train(*overrides) == 0
    send(3)
    assert cifar_train(*overrides) == 128 + signal.SIGTERM
    assert "stopped after step 3 by SIGTERM" in capsys.readouterr().err
    whole, resumed = run_dirs()
    assert last_of(resumed)["global_step"] == 3
    send(None)
    assert train.main([f"resume={resumed}"]) == 0
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        assert_equal(last_of(whole)[key], last_of(resumed)[key], key)
    for a, b in zip(rows_of(whole), rows_of(resumed), strict=True):
        same = {key for key in a if key != "train/images_per_second"}
        assert {key: a[key] for key in same} == {key: b[key] for key in same}
    assert record_of(whole)["metrics"]["test/loss"] == record_of(resumed)["metrics"]["test/loss"]


def test_ctrl_c_has_an_exit_code_of_its_own_and_ends_a_sweep(cifar_train, run_dirs, send, capsys):
    send(3, signal.SIGINT)
    assert cifar_train("-m", "seed=0,1") == 130
    assert "by SIGINT" in capsys.readouterr().err
    assert len(run_dirs()) == 1
    send(None)
    assert cifar_train("-m", "seed=0,1") == 0
    assert len(list(Path("outputs").rglob("result.json"))) == 2


def test_handlers_are_given_back(cifar_train):
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    assert cifar_train() == 0
    assert (signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)) == before


def test_a_signal_in_the_last_epochs_validation_stops_before_the_test(cifar_train, run_dirs, monkeypatch):
    validation_step = Classifier.validation_step

    def stop(self, batch, batch_idx):
        os.kill(os.getpid(), signal.SIGTERM)
        return validation_step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "validation_step", stop)
    assert cifar_train() == 143
    (run_dir,) = run_dirs()
    assert not (run_dir / "result.json").exists()
    monkeypatch.setattr(Classifier, "validation_step", validation_step)
    assert train.main([f"resume={run_dir}"]) == 0
    assert record_of(run_dir)["epochs"] == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_in_the_test_has_its_exit_code_and_the_test_can_be_taken_again(
    cifar_train, run_dirs, monkeypatch, capsys, number
):
    test_step = Classifier.test_step

    def stop(self, batch, batch_idx):
        os.kill(os.getpid(), number)
        return test_step(self, batch, batch_idx)

    # a process that was started in the background, as these tests may be, ignores Ctrl-C
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(Classifier, "test_step", stop)
        assert cifar_train("data.eval_batch_size=10") == 128 + number
        assert signal.getsignal(signal.SIGINT) == signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert f"stopped by {signal.Signals(number).name}" in capsys.readouterr().err
    (run_dir,) = run_dirs()
    assert not (run_dir / "result.json").exists()
    monkeypatch.setattr(Classifier, "test_step", test_step)
    assert train.main([f"resume={run_dir}"]) == 0
    assert "test/acc" in record_of(run_dir)["metrics"]


def test_a_run_that_begins_anew_draws_its_curves_anew(cifar_train, monkeypatch):
    training_step = Classifier.training_step

    def fail(self, batch, batch_idx):
        if batch_idx == 3:
            raise RuntimeError("power")
        return training_step(self, batch, batch_idx)

    command = ["run_dir=mine", "resume=auto", "trainer.log_every_n_steps=1"]
    monkeypatch.setattr(Classifier, "training_step", fail)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train(*command)
    monkeypatch.setattr(Classifier, "training_step", training_step)
    assert cifar_train(*command) == 0
    events = EventAccumulator("mine/tensorboard").Reload()
    assert [event.step for event in events.Scalars("lr")] == list(range(5))


def test_tensorboard_has_no_point_twice(cifar_train, run_dirs, crash, send):
    overrides = ["trainer.max_epochs=3", "trainer.log_every_n_steps=1"]
    assert cifar_train(*overrides) == 0
    send(8)
    assert cifar_train(*overrides) == 143
    send(None)
    whole, resumed = run_dirs()
    crash(2)
    with pytest.raises(RuntimeError, match="power"):
        train.main([f"resume={resumed}"])
    crash(None)
    assert train.main([f"resume={resumed}"]) == 0
    points = []
    for run_dir in (whole, resumed):
        events = EventAccumulator(str(run_dir / "tensorboard"))
        events.Reload()
        tags = [tag for tag in events.Tags()["scalars"] if "per_second" not in tag]
        points.append({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags})
    assert points[0] == points[1]


def test_killed_five_times_at_random_a_run_ends_as_if_left_alone():
    """The short form; 50 kills for each of four recipes: python benchmarks/kills.py."""
    script = Path(train.__file__).parents[1] / "benchmarks" / "kills.py"
    command = [sys.executable, str(script), "--kills", "5", "--epochs", "30", "sgd"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" equal") == 4
