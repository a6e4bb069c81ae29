"""Runs that are stopped, fail, cannot write or are damaged: what was finished stays, and the rest goes on."""

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_equal, last_of, record_of, rows_of, rows_without_speed, without_speed
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.summary.writer import event_file_writer

import cifar_resnet
from cifar_resnet import cli, resume
from cifar_resnet.checkpoints import AtomicCheckpointIO
from cifar_resnet.compose import Composer
from cifar_resnet.models import Classifier


def same_rows(*folders: Path) -> bool:
    """Whether their epochs are the same, but for their speed."""
    first, *others = map(rows_without_speed, folders)
    return all(rows == first for rows in others)


# Stopped and resumed


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=sgd", "scheduler=cosine", "augment=randaugment", "augment.mixing=cutmix", "model.drop_block=0.1"),
        ("optimizer=adam", "scheduler=one_cycle", "precision=bf16-mixed"),
        ("optimizer=sam", "scheduler=linear", "precision=bf16-mixed"),
        pytest.param(("optimizer=muon", "scheduler=constant", "trainer.gradient_clip_val=1"), marks=pytest.mark.slow),
        pytest.param(
            (
                "optimizer=adamw",
                "scheduler=multistep",
                "trainer.accumulate_grad_batches=2",
                "trainer.gradient_clip_val=1",
            ),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_crashed_stopped_and_resumed_equals_never_stopped_to_the_last_bit(
    cifar_train, run_dirs, crash, send, overrides, capsys
):
    """Killed after two of four epochs, stopped within the third, and resumed each time."""
    overrides = [*overrides, "trainer.max_epochs=4", "model.dropout=0.2"]
    assert cifar_train(*overrides) == 0
    crash(2)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train(*overrides)
    whole, resumed = run_dirs()
    assert f"to continue: cifar-train resume={resumed.relative_to(Path.cwd())}" in capsys.readouterr().out
    assert not (resumed / "result.json").exists()
    crash(None)
    resume = [f"resume={resumed.relative_to(Path.cwd())}"]
    send(2 * last_of(whole)["global_step"] // 4 + 2)
    assert cli.train(resume) == 143
    send(None)
    assert cli.train(resume) == 0
    assert len(run_dirs()) == 2
    a, b = last_of(whole), last_of(resumed)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_equal(a[key], b[key], key)
    assert same_rows(whole, resumed)
    metrics = [without_speed(record_of(run)["metrics"]) for run in (whole, resumed)]
    assert metrics[0] == metrics[1]
    assert record_of(whole)["epoch"] == record_of(resumed)["epoch"]


@pytest.mark.slow
def test_stopped_in_the_first_epoch_and_resumed_equals_never_stopped(cifar_train, run_dirs, send, capsys):
    """With an average of the weights."""
    overrides = ["averaging=ema", "averaging.decay=0.7", "augment=cutmix", "model.stochastic_depth=0.3"]
    assert cifar_train(*overrides) == 0
    send(3)
    assert cifar_train(*overrides) == 128 + signal.SIGTERM
    assert "stopped after step 3 by SIGTERM" in capsys.readouterr().err
    whole, resumed = run_dirs()
    assert last_of(resumed)["global_step"] == 3
    send(None)
    assert cli.train([f"resume={resumed}"]) == 0
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        assert_equal(last_of(whole)[key], last_of(resumed)[key], key)
    assert same_rows(whole, resumed)
    assert record_of(whole)["metrics"]["test/loss"] == record_of(resumed)["metrics"]["test/loss"]


BY_EPOCH = """
import torch
from lightning.pytorch import Callback
from cifar_resnet.models import ResNet

class ByEpoch(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        torch.rand(3)  # which moves what dropout draws
        trainer.datamodule.augment.cutout_probability = 0.2 * trainer.current_epoch

class Shrinks(Callback):  # what it does is in the checkpoint, where it keeps nothing itself
    def on_train_epoch_start(self, trainer, pl_module):
        next(iter(trainer.train_dataloader))
        pl_module.fc.weight.data *= 0.5
        for group in trainer.optimizers[0].param_groups:
            group["weight_decay"] *= 0.5
        for state in trainer.optimizers[0].state.values():
            state.get("momentum_buffer", torch.zeros(())).zero_()

class ByItself(ResNet):
    def on_train_epoch_start(self):
        super().on_train_epoch_start()
        self.label_smoothing = 0.1 * self.current_epoch

class Counts(Callback):
    epochs = 0
    def on_train_epoch_start(self, trainer, pl_module):
        self.epochs += 1
    def state_dict(self):
        return {"epochs": self.epochs}
    def load_state_dict(self, state_dict):
        self.epochs = state_dict["epochs"]

class CountsOtherwise(Counts):
    state_dict = Callback.state_dict
    def on_save_checkpoint(self, trainer, pl_module, checkpoint):
        checkpoint["callbacks"]["Counts"] = {"epochs": self.epochs}
    def on_load_checkpoint(self, trainer, pl_module, checkpoint):
        self.epochs = checkpoint["callbacks"]["Counts"]["epochs"]
"""


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "options",
    [
        ["+callbacks.x._target_=by_epoch.ByEpoch"],
        ["+callbacks.x._target_=by_epoch.Shrinks"],
        ["+callbacks.x._target_=by_epoch.Shrinks", "optimizer=muon"],
        ["model._target_=by_epoch.ByItself"],
        ["+callbacks.x._target_=lightning.pytorch.callbacks.StochasticWeightAveraging", "+callbacks.x.swa_lrs=0.01",
         "+callbacks.x.swa_epoch_start=1", "+callbacks.x.annealing_epochs=3"],
    ],
)  # fmt: skip
def test_what_a_callback_does_at_an_epochs_start_holds_where_that_goes_on_in_its_middle(
    cifar_train, tmp_path, monkeypatch, send, options
):
    (tmp_path / "by_epoch.py").write_text(BY_EPOCH)
    monkeypatch.syspath_prepend(tmp_path)
    options = [*options, "trust=[by_epoch]", "trainer.max_epochs=4", "model.dropout=0.2", "scheduler=constant"]
    assert cifar_train(*options, "run_dir=whole") == 0
    send(8)  # in the second epoch of five steps each
    assert cifar_train(*options, "run_dir=resumed") == 143
    send(None)
    assert cli.train(["resume=resumed", "trust=[by_epoch]"]) == 0
    for key in ("state_dict", "optimizer_states"):
        assert_equal(last_of(tmp_path / "whole")[key], last_of(tmp_path / "resumed")[key], key)
    assert same_rows(tmp_path / "whole", tmp_path / "resumed")


@pytest.mark.parametrize("kind", ["Counts", "CountsOtherwise"])
def test_what_keeps_count_of_epochs_counts_none_twice(cifar_train, tmp_path, monkeypatch, send, kind):
    (tmp_path / "by_epoch.py").write_text(BY_EPOCH)
    monkeypatch.syspath_prepend(tmp_path)
    send(8)
    options = [f"+callbacks.x._target_=by_epoch.{kind}", "trust=[by_epoch]", "trainer.max_epochs=3"]
    assert cifar_train(*options, "run_dir=run") == 143
    send(None)
    assert cli.train(["resume=run", "trust=[by_epoch]"]) == 0
    (counts,) = [state for name, state in last_of(tmp_path / "run")["callbacks"].items() if "Counts" in name]
    assert counts == {"epochs": 3}


def test_a_moved_run_resumes_with_its_best_score(cifar_train, run_dirs, crash):
    crash(2)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train("trainer.max_epochs=3", "optimizer.lr=1e-9")  # no epoch improves on the first
    (run_dir,) = run_dirs()
    moved = Path("elsewhere")
    run_dir.rename(moved)
    crash(None)
    assert cli.train([f"resume={moved}"]) == 0
    accuracies = [float(row["val/acc"]) for row in rows_of(moved)]
    assert len(accuracies) == 3
    assert record_of(moved)["epoch"] == accuracies.index(max(accuracies)) + 1
    assert last_of(moved)["epoch"] == 2
    assert not run_dir.exists()


def test_a_finished_run_is_not_trained_again(cifar_train, run_dirs, capsys):
    cifar_train()
    (run_dir,) = run_dirs()
    before, record = last_of(run_dir), record_of(run_dir)
    capsys.readouterr()
    assert cli.train([f"resume={run_dir}"]) == 0
    assert "finished before" in capsys.readouterr().out
    assert_equal(last_of(run_dir)["state_dict"], before["state_dict"])
    assert record_of(run_dir) == record
    assert cli.train([f"resume={run_dir}", "optimizer.lr=1"]) == 2
    assert "Got optimizer.lr as well" in capsys.readouterr().err


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
    # the network first, of the data what there is room for, and one digest of it all
    name = r"auto-model-resnet-cifar_depth-8_widths-4-8-8_max_epochs-4_[a-z0-9_.-]+_lr-0\.05-[0-9a-f]{6}"
    assert re.fullmatch(name, resumed.name)
    assert_equal(last_of(whole)["state_dict"], last_of(resumed)["state_dict"])
    assert_equal(last_of(whole)["optimizer_states"], last_of(resumed)["optimizer_states"])
    assert same_rows(whole, resumed)
    before = record_of(resumed)
    assert cifar_train(*command) == 0
    assert "finished before" in capsys.readouterr().out
    assert record_of(resumed) == before
    assert cifar_train("trainer.max_epochs=2", "optimizer.lr=0.05", "resume=auto") == 0  # another command: another run
    assert len(run_dirs()) == 3


def test_resume_auto_in_a_folder_of_ones_own(cifar_train, capsys):
    Path("mine").mkdir()
    Path("mine/config.yaml.part").write_text("data: {")  # killed before its configuration was whole
    assert cifar_train("resume=auto", "run_dir=mine") == 0
    assert cifar_train("resume=auto", "run_dir=mine", "seed=3") == 2
    assert "run_dir holds a run of another command. Got mine" in capsys.readouterr().err
    assert record_of(Path("mine"))["config"]["seed"] == 0
    before = sorted(Path("mine").rglob("*"))
    assert cifar_train("run_dir=mine") == 2
    assert "to continue it, resume=mine" in capsys.readouterr().err
    assert sorted(Path("mine").rglob("*")) == before


@pytest.mark.slow
def test_a_run_killed_between_its_first_two_checkpoints_begins_anew(cifar_train, run_dirs, monkeypatch):
    assert cifar_train("trainer.max_epochs=2") == 0

    def fail_at_last(self, checkpoint, path, storage_options=None):
        if Path(path).name == "last.ckpt":
            raise RuntimeError("power")
        save(self, checkpoint, path)

    save = AtomicCheckpointIO.save_checkpoint
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", fail_at_last)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train("trainer.max_epochs=2", "resume=auto")
    monkeypatch.setattr(AtomicCheckpointIO, "save_checkpoint", save)
    whole, killed = run_dirs()
    assert [path.name for path in killed.glob("checkpoints/*")] == ["best.ckpt"]
    assert cifar_train("trainer.max_epochs=2", "resume=auto") == 0
    assert run_dirs() == [whole, killed]
    assert_equal(last_of(whole)["state_dict"], last_of(killed)["state_dict"])


# Signals


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
    assert cli.train([f"resume={run_dir}"]) == 0
    assert record_of(run_dir)["epochs"] == 1


@pytest.mark.quick_cases(1)
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
    assert cli.train([f"resume={run_dir}"]) == 0
    assert "test/acc" in record_of(run_dir)["metrics"]


# Curves


@pytest.fixture
def event_files_in_order(monkeypatch):
    """TensorBoard reads the files of one second by a number that counts all of a process: 10 would come before 9."""
    monkeypatch.setattr(event_file_writer, "_global_uid", event_file_writer.AtomicCounter(0))


def test_a_run_that_begins_anew_draws_its_curves_anew(cifar_train, monkeypatch, event_files_in_order):
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


@pytest.mark.slow
def test_tensorboard_has_no_point_twice(cifar_train, run_dirs, crash, send, event_files_in_order):
    overrides = ["trainer.max_epochs=3", "trainer.log_every_n_steps=1"]
    assert cifar_train(*overrides) == 0
    send(8)
    assert cifar_train(*overrides) == 143
    send(None)
    whole, resumed = run_dirs()
    crash(2)
    with pytest.raises(RuntimeError, match="power"):
        cli.train([f"resume={resumed}"])
    crash(None)
    assert cli.train([f"resume={resumed}"]) == 0
    points = []
    for run_dir in (whole, resumed):
        events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
        tags = [tag for tag in events.Tags()["scalars"] if "per_second" not in tag]
        points.append({tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags})
    assert points[0] == points[1]


# Writing


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("what", ["metrics.csv.part", "predictions.npz.part", "result.json.part"])
@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), PermissionError(13, "Permission denied")])
def test_a_file_that_cannot_be_written_ends_the_run_with_one_line_and_loses_nothing(
    cifar_train, run_dirs, monkeypatch, capsys, what, error
):
    open_path = Path.open

    def refuse(self, mode="r", *args, **kwargs):
        if self.name.startswith(what.removesuffix("part")) and self.suffix == ".part" and "w" in mode:
            raise error
        return open_path(self, mode, *args, **kwargs)

    assert cifar_train("trainer.max_epochs=2") == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", refuse)
        assert cifar_train("trainer.max_epochs=2") == 1
    assert f"a file could not be written ({error})" in error_of(capsys)
    whole, broken = run_dirs()
    assert not (broken / "result.json").exists()
    if what != "metrics.csv.part":  # that comes first of all
        assert last_of(broken)["epoch"] == 1
        assert cli.train([f"resume={broken}"]) == 0
        assert record_of(broken)["metrics"]["test/loss"] == record_of(whole)["metrics"]["test/loss"]


@pytest.mark.slow
def test_killed_five_times_at_random_a_run_ends_as_if_left_alone():
    """The short form; 50 kills for each of four recipes: python benchmarks/kills.py."""
    script = Path(cifar_resnet.__file__).parents[1] / "benchmarks" / "kills.py"
    command = [sys.executable, str(script), "--kills", "5", "--epochs", "30", "sgd"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count(" equal") == 4


def test_without_a_checkpoint_of_each_epoch_a_stop_at_its_end_saves_one(cifar_train, send):
    assert cifar_train("trainer.max_epochs=3", "run_dir=whole") == 0
    send(5)  # the last of the first epoch's five
    assert cifar_train("trainer.max_epochs=3", "run_dir=stopped", "~callbacks.last") == 143
    send(None)
    assert cli.train(["resume=stopped"]) == 0
    whole, stopped = (torch.load(f"{name}/checkpoints/best.ckpt", weights_only=True) for name in ("whole", "stopped"))
    assert_equal(whole["state_dict"], stopped["state_dict"], "weights")


@pytest.mark.slow
def test_in_a_sweep_what_keeps_no_checkpoint_to_go_on_from_begins_anew(cifar_train, monkeypatch, capsys):
    command = ("-m", "seed=0", "trainer.max_epochs=3", "~callbacks.last")
    training_step = Classifier.training_step

    def fail_later(self, *batch):
        if self.current_epoch == 2:
            raise RuntimeError("the power went out")
        return training_step(self, *batch)

    with monkeypatch.context() as patch:
        patch.setattr(Classifier, "training_step", fail_later)
        assert cifar_train(*command) == 1
    assert list(Path("outputs").rglob("best.ckpt"))
    assert cifar_train(*command) == 0


def test_what_a_resumed_run_was_given_is_in_the_line_that_goes_on(cifar_train, run_dirs, send, capsys):
    send(3)
    assert cifar_train("trainer.max_epochs=2") == 143
    (run_dir,) = run_dirs()
    send(6)
    capsys.readouterr()
    given = ["data.eval_batch_size=20", "trainer.max_time=00:01:00:00", "page=false"]
    assert cli.train([f"resume={run_dir}", *given]) == 143
    line = re.search(r"to continue: cifar-train (.*)", capsys.readouterr().out)[1]
    assert line == f"resume={run_dir} trainer.max_time=00:01:00:00 data.eval_batch_size=20"


@pytest.mark.slow
def test_a_test_of_all_images_is_not_replaced_by_one_of_a_part(cifar_train, run_dirs, capsys):
    assert cifar_train("data.eval_batch_size=20", "trainer.limit_test_batches=1") == 0
    (run_dir,) = run_dirs()
    assert cli.train([f"resume={run_dir}", "trainer.limit_test_batches=null"]) == 0
    assert record_of(run_dir)["num_tested"] == 50
    assert cli.train([f"resume={run_dir}"]) == 0
    assert record_of(run_dir)["num_tested"] == 50
    assert "this run has finished before" in capsys.readouterr().out


# Damaged, changed or another's


@pytest.fixture(scope="module")
def stopped(tmp_path_factory) -> Path:
    """A run of three epochs, stopped after two; to be copied."""
    folder = tmp_path_factory.mktemp("stopped") / "run"
    step = Classifier.on_train_epoch_start

    def stop(self):
        if self.current_epoch == 2:
            raise RuntimeError("the power went out")
        step(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "on_train_epoch_start", stop)
        with pytest.raises(RuntimeError, match="power"):
            cli.train([*TINY, "trainer.max_epochs=3", f"run_dir={folder}"])
    return folder


@pytest.fixture
def begun(stopped) -> Path:
    return Path(shutil.copytree(stopped, "run"))


def error_of(capsys) -> str:
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def changed_checkpoint(path: Path, **changes: object) -> None:
    torch.save(torch.load(path, weights_only=True) | changes, path)


def without(path: Path, key: str) -> None:
    content = torch.load(path, weights_only=True)
    del content[key]
    torch.save(content, path)


LAST = Path("run/checkpoints/last.ckpt")
DAMAGE = {
    "last gone": (LAST.unlink, "without last.ckpt"),
    "last empty": (lambda: LAST.write_bytes(b""), "not a readable checkpoint"),
    "last of another program": (lambda: torch.save({"global_step": 3}, LAST), "not a checkpoint of this version"),
    "last of another version": (lambda: changed_checkpoint(LAST, format=1), "with format 1; train anew, or use"),
    "last without optimizer": (lambda: without(LAST, "optimizer_states"), "without optimizer_states"),
    "last of another network": (
        lambda: changed_checkpoint(LAST, state_dict={"fc.weight": torch.zeros(2)}), "of another network",
    ),
    "best cut": (lambda: Path("run/checkpoints/best.ckpt").write_bytes(b"PK\x03\x04"), "take it away"),
    "config empty": (lambda: Path("run/config.yaml").write_text(""), "not the configuration of a run"),
    "config cut": (lambda: Path("run/config.yaml").write_text("data: [1"), "configuration that cannot be read"),
    "config binary": (lambda: Path("run/config.yaml").write_bytes(b"\xff\xfe\x00"), "cannot be read"),
    "config a list": (lambda: Path("run/config.yaml").write_text("[1, 2]"), "not the configuration of a run"),
    "record cut": (lambda: Path("run/result.json").write_text('{"metrics": '), "record that cannot be read"),
    "record a list": (lambda: Path("run/result.json").write_text("[1]"), "not the record of a run"),
}  # fmt: skip


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_not_resumed_and_stays_as_it_is(begun, capsys, damage):
    spoil, message = DAMAGE[damage]
    spoil()
    before = everything(begun)
    assert cli.train(["resume=run"]) == 2
    assert message in error_of(capsys)
    assert everything(begun) == before


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [("batch_size: 40", "batch_size: 20", "data.batch_size"), ("seed: 0\ntest", "seed: 7\ntest", "seed"),
     ("max_epochs: 3", "max_epochs: 9", "trainer.max_epochs"), ("num_val: 40", "num_val: 60", "data.num_val")],
)  # fmt: skip
def test_a_configuration_changed_below_a_run_is_refused(begun, capsys, old, new, key):
    text = Path("run/config.yaml").read_text()
    assert old in text
    Path("run/config.yaml").write_text(text.replace(old, new))
    assert cli.train(["resume=run"]) == 2
    message = error_of(capsys)
    assert f"Got another {key}" in message
    assert "change it back, or start a new run" in message


def test_a_run_that_lost_its_best_checkpoint_keeps_the_best_of_the_rest(begun):
    Path("run/checkpoints/best.ckpt").unlink()
    assert cli.train(["resume=run"]) == 0
    assert record_of(begun)["epoch"] == 3
    assert record_of(begun)["selected"] == "best on validation"


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("damage", "kept"),
    [
        (lambda text: text.replace(b"\n1,", b"\n\xff\xfe,", 1), ["2"]),
        (lambda text: text[: text.index(b"\n2,") + 8], ["1"]),
        (lambda text: text[:-2], ["1"]),
        (lambda text: text.replace(b"\n1,", b"\n1,7,", 1), ["2"]),
        (lambda text: text.replace(b"epoch,", b"era,", 1), []),
    ],
    ids=["no text", "cut short", "the last number cut short", "a column too many", "another table"],
)
def test_a_damaged_table_of_epochs_stops_no_training_and_nothing_of_it_is_lost(begun, damage, kept, capsys):
    whole = Path("run/metrics.csv").read_bytes()
    damaged = damage(whole)
    assert damaged != whole
    Path("run/metrics.csv").write_bytes(damaged)
    capsys.readouterr()
    assert cli.train(["resume=run"]) == 0
    assert re.search(rf"warning: {len(kept)} epochs of the table can be read.*keeps the rest", capsys.readouterr().out)
    assert [row["epoch"] for row in rows_of(begun)] == [*kept, "3"]
    (aside,) = Path("run").glob("metrics.csv.damaged-*")
    assert aside.read_bytes() == damaged


def test_how_many_processes_a_run_is_of_is_asked_of_its_own_configuration(cifar_train):
    """As torchrun's are, which were told resume=<run folder> alone."""
    assert cifar_train("run_dir=run") == 0
    config = Path("run/config.yaml")
    config.write_text(config.read_text().replace("devices: 1", "devices: 2"))
    (job,) = Composer("train").jobs(["resume=run"])
    assert resume.as_it_will_be(job).trainer.devices == 2
    assert (job.cfg.trainer.devices, job.cfg.run_dir) == (1, None)
