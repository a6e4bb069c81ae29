"""Whole runs: what is trained, what is tested, and what they leave behind."""

import io
import logging
import math
import os
import re
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import rich
import torch
from helpers import TINY, last_of, record_of, rows_of, write_files
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet import cli, load
from cifar_resnet.api import train
from cifar_resnet.data import Augment, Synthetic
from cifar_resnet.errors import UsageError
from cifar_resnet.models import Classifier, ResNet
from cifar_resnet.models.regularisers import DropBlock
from cifar_resnet.results.predictions import Predictions


def test_a_run_leaves_everything_in_its_folder(cifar_train, run_dirs, capsys):
    assert cifar_train("trainer.max_epochs=2", "name=demo", "optimizer.lr=0.05") == 0
    (run_dir,) = run_dirs()
    assert run_dir.parent == Path.cwd() / "outputs" / "demo"
    assert re.match(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-model-resnet-cifar_depth-8_widths-4-8-8", run_dir.name)
    names = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    files = {"config.yaml", "result.json", "metrics.csv", "train.log", "augmented_batch.png"}
    assert files | {"checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= names

    record = record_of(run_dir)
    assert record["network"] == "resnet_cifar"
    assert record["epochs"] == 2
    assert record["steps"] == 2 * 5
    assert (record["num_train"], record["num_val"]) == (200, 40)
    assert record["config"]["optimizer"]["lr"] == 0.05
    assert record["parameters"] == sum(p.numel() for p in load(run_dir).parameters())
    assert {"val/acc", "val/loss", "test/acc", "test/loss", "train/images_per_second"} <= record["metrics"].keys()
    assert {"commit", "versions", "device", "precision", "macs", "seconds", "split_hash"} <= record.keys()

    rows = rows_of(run_dir)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert float(rows[-1]["lr"]) == 0.0
    assert {"train/loss", "train/acc", "val/loss", "val/acc", "train/images_per_second"} <= rows[0].keys()

    output = capsys.readouterr().out
    assert f"{record['metrics']['test/acc']:.2%} accuracy" in output
    assert str(run_dir.relative_to(Path.cwd())) in output
    assert "look next" in (run_dir / "train.log").read_text()


def test_an_epochs_learning_rate_is_that_at_its_end_whichever_steps_are_logged(cifar_train, run_dirs):
    assert cifar_train("trainer.max_epochs=4", "optimizer.lr=0.05", "trainer.log_every_n_steps=7") == 0
    (run_dir,) = run_dirs()
    expected = [0.05 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in (1, 2, 3, 4)]
    assert [float(row["lr"]) for row in rows_of(run_dir)] == pytest.approx(expected)
    assert "lr" not in record_of(run_dir)["metrics"]


@pytest.mark.slow
def test_a_run_that_validates_nothing_and_tests_a_part_says_so(cifar_train, run_dirs, capsys):
    overrides = ["~callbacks.best", "trainer.limit_val_batches=0", "trainer.limit_test_batches=1"]
    assert cifar_train(*overrides, "data.eval_batch_size=20", "page=true") == 0
    assert re.search(r"validation +none", capsys.readouterr().out)
    (run_dir,) = run_dirs()
    assert len(Predictions.load(run_dir / "predictions.npz").labels) == 20
    assert (run_dir / "page.html").exists()


def test_tensorboard_shows_curves_picture_and_hyperparameters(cifar_train, run_dirs):
    assert cifar_train("trainer.max_epochs=2", "trainer.log_every_n_steps=1") == 0
    (run_dir,) = run_dirs()
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    tags = events.Tags()
    curves = {"train/loss", "train/acc", "val/loss", "val/acc", "lr", "train/images_per_second", "test/acc"}
    assert curves <= set(tags["scalars"])
    assert {event.step for event in events.Scalars("lr")} == set(range(10))
    for tag, count in {"val/acc": 2, "train/loss": 2, "test/acc": 1, "tested_epoch/val/acc": 1}.items():
        steps = [event.step for event in events.Scalars(tag)]
        assert len(steps) == count, tag
        assert min(steps) > 0, tag
    assert tags["images"] == ["augmented_batch"]
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_tensorboards_scores_of_the_tested_epoch_are_named_so_and_lie_where_its_curves_have_them(cifar_train, run_dirs):
    """A schedule that ruins the network at the end: the best epoch is not the last."""
    overrides = ["trainer.max_epochs=3", "scheduler=one_cycle", "scheduler.peak_fraction=1.0", "optimizer.lr=30"]
    assert cifar_train(*overrides, "scheduler.start_factor=0.001", "trainer.log_every_n_steps=1", "page=true") == 0
    (run_dir,) = run_dirs()
    record = record_of(run_dir)
    assert record["epoch"] < 3
    assert record["step"] == record["epoch"] * 5
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0}).Reload()
    scalars = events.Tags()["scalars"]
    assert not [tag for tag in scalars if tag.startswith("final/")]
    for name, value in record["metrics"].items():
        (shown,) = events.Scalars(f"tested_epoch/{name}")
        assert shown.value == pytest.approx(value)
        if not name.startswith("test/"):
            assert (shown.step, shown.value) in [(point.step, point.value) for point in events.Scalars(name)]
    (last,) = [point.step for point in events.Images("curves")]
    for figure in ("confusion", "reliability", "mistakes"):
        assert [point.step for point in events.Images(figure)] == [record["step"] - 1] != [last]


@pytest.mark.slow
def test_a_checkpoint_loads_by_its_path_in_a_fresh_process(cifar_train, run_dirs):
    cifar_train("model.dropout=0.1")
    (run_dir,) = run_dirs()
    program = """
import sys, torch
from cifar_resnet import load
model = load(sys.argv[1])
checkpoint = torch.load(sys.argv[1], weights_only=True)
assert checkpoint["data"]["classes"][0] == "disk" and len(checkpoint["data"]["mean"]) == 3
assert checkpoint["data"]["split_hash"] and checkpoint["config"]["model"]["widths"] == [4, 8, 8]
assert not model.training
torch.save(model(torch.ones(2, 3, 32, 32)), "logits.pt")
"""
    path = run_dir / "checkpoints" / "best.ckpt"
    subprocess.run([sys.executable, "-c", program, str(path)], check=True)
    expected = ResNet.load_from_checkpoint(path, weights_only=True, map_location="cpu").eval()(torch.ones(2, 3, 32, 32))
    assert torch.equal(torch.load("logits.pt"), expected)


def test_from_python_a_training_is_one_call_and_answers_with_its_record():
    record = train([*TINY, "run_dir=mine"])
    assert record == record_of(Path("mine"))
    assert record["metrics"].keys() >= {"val/acc", "test/acc"}


def test_the_checkpoint_that_validation_chose_is_tested_and_the_test_set_read_once(
    cifar_train, run_dirs, test_images, monkeypatch
):
    """A schedule that ruins the network at the end: the best epoch is not the last."""
    reads = []
    read = Synthetic.read
    monkeypatch.setattr(Synthetic, "read", lambda self, train: reads.append(train) or read(self, train))
    overrides = ["trainer.max_epochs=4", "scheduler=one_cycle", "scheduler.peak_fraction=1.0", "optimizer.lr=30"]
    assert cifar_train(*overrides, "scheduler.start_factor=0.001") == 0
    assert reads == [True, False]
    (run_dir,) = run_dirs()
    accuracies = [float(row["val/acc"]) for row in rows_of(run_dir)]
    record = record_of(run_dir)
    assert record["epoch"] == accuracies.index(max(accuracies)) + 1 < 4
    assert record["metrics"]["val/acc"] == max(accuracies)
    images = record["train_seconds"] * record["images_per_second"]
    assert images == pytest.approx(4 * 200)  # all epochs, not those up to the best

    images, labels = test_images(run_dir)
    with torch.no_grad():
        logits = load(run_dir)(images)
    assert record["metrics"]["test/acc"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert record["metrics"]["test/loss"] == pytest.approx(loss, rel=1e-4)


def test_without_validation_images_the_last_epoch_is_kept(cifar_train, run_dirs):
    assert cifar_train("data.num_val=0", "trainer.max_epochs=2") == 0
    (run_dir,) = run_dirs()
    assert [path.name for path in (run_dir / "checkpoints").iterdir()] == ["last.ckpt"]
    record = record_of(run_dir)
    assert (record["selected"], record["epoch"], record["num_train"]) == ("last", 2, 240)
    assert "val/acc" not in record["metrics"]


def test_early_stopping_ends_a_run_early(cifar_train, run_dirs, capsys):
    overrides = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "trainer.max_epochs=9"]
    assert cifar_train(*overrides, "optimizer.lr=1e-9", "callbacks.early_stopping.min_delta=0.5") == 0
    assert record_of(run_dirs()[0])["epochs"] == 2
    assert "early stopping may end the training before scheduler=cosine" in capsys.readouterr().out


def test_max_epochs_alone_rescales_the_schedule(cifar_train, run_dirs):
    cifar_train("trainer.max_epochs=3", "scheduler=one_cycle")
    assert float(rows_of(run_dirs()[0])[-1]["lr"]) == pytest.approx(0, abs=1e-9)


def test_label_smoothing_changes_the_training_loss_only(cifar_train, run_dirs):
    still = ("optimizer.lr=1e-12", "augment=none")
    cifar_train(*still)
    cifar_train(*still, "model.label_smoothing=0.5")
    plain, smooth = (record_of(run)["metrics"] for run in run_dirs())
    assert abs(smooth["train/loss"] - plain["train/loss"]) > 1e-4
    assert smooth["val/loss"] == pytest.approx(plain["val/loss"], rel=1e-6)


def test_a_dry_run_prints_the_network_and_leaves_nothing(cifar_train, capsys):
    assert cifar_train("dry_run=true", "model.depth=8,14", "-m") == 0
    output = capsys.readouterr().out
    assert "model.depth=8" in output
    assert "stages.2" in output
    assert "8 x 8 x 8" in output
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("augment", ["mixup", "cutmix", "ricap"])
def test_accuracy_on_mixed_images_is_of_the_class_they_show_most_of(cifar_train, run_dirs, augment, monkeypatch):
    """A classifier that reads the target off a perfect oracle scores 100%, whatever is mixed."""
    step = ResNet.training_step

    def oracle(self, batch, batch_idx):
        images, targets = batch
        assert targets.shape == (40, 10)
        forward, self.forward = self.forward, lambda _: forward(images) * 0 + targets * 100
        try:
            return step(self, batch, batch_idx)
        finally:
            self.forward = forward

    monkeypatch.setattr(ResNet, "training_step", oracle)
    assert cifar_train(f"augment={augment}") == 0
    assert record_of(run_dirs()[0])["metrics"]["train/acc"] == 1


def test_drop_block_rises_over_the_training(cifar_train, monkeypatch):
    progress = []
    forward = DropBlock.forward

    def watched(self, features):
        if self.training:
            progress.append(self.progress.item())
        return forward(self, features)

    monkeypatch.setattr(DropBlock, "forward", watched)
    assert cifar_train("model.drop_block=0.2", "trainer.max_epochs=2") == 0
    assert progress == pytest.approx([step / 10 for step in range(10) for _ in range(2)])


def test_alternating_flips_mirror_each_image_in_every_other_epoch(cifar_train, monkeypatch):
    flips = {}
    call = Augment.__call__

    def watched(self, images, normalise, randomness):
        for image, flip in zip(images, randomness.flip_mask.tolist(), strict=True):
            flips.setdefault(image.numpy().tobytes(), []).append(flip)
        return call(self, images, normalise, randomness)

    monkeypatch.setattr(Augment, "__call__", watched)
    assert cifar_train("augment.flip=alternating", "trainer.max_epochs=3") == 0
    assert all(seen in ([True, False, True], [False, True, False]) for seen in flips.values())
    assert 60 < sum(seen[0] for seen in flips.values()) < 140  # of 200


@pytest.mark.slow
def test_compile_leaves_checkpoint_keys_alone(cifar_train, run_dirs, monkeypatch):
    compiled = []
    real_compile = torch.nn.Module.compile
    monkeypatch.setattr(
        Classifier, "compile", lambda self: compiled.append(1) or real_compile(self, backend="eager"), raising=False
    )
    cifar_train()
    cifar_train("compile=true")
    assert compiled == [1]
    plain, other = (last_of(run)["state_dict"] for run in run_dirs())
    assert plain.keys() == other.keys()
    load(run_dirs()[1])


def test_the_network_computes_in_channels_last_from_uint8_on_the_device(cifar_train, monkeypatch):
    seen = []
    forward = ResNet.forward

    def spy(self, images):
        if self.training:
            weights_last = self.stages[0][0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
            images_last = images.is_contiguous(memory_format=torch.channels_last)
            seen.append((weights_last, images_last, self.trainer.datamodule.train.images.dtype))
        return forward(self, images)

    monkeypatch.setattr(ResNet, "forward", spy)
    cifar_train()
    assert set(seen) == {(True, True, torch.uint8)}


def test_augmentation_runs_in_training_only(cifar_train, monkeypatch):
    stages = []
    call = Augment.__call__

    def spy(self, images, *arguments):
        stages.append(len(images))
        return call(self, images, *arguments)

    monkeypatch.setattr(Augment, "__call__", spy)
    cifar_train("trainer.max_epochs=2")
    assert stages == [40] * 10  # 2 epochs of 5 batches; none of the 40 validation or 50 test images


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    "what", ["~scheduler", "~callbacks.best", "~callbacks.last", "~callbacks.metrics", "~logger.tensorboard"]
)
def test_what_a_training_can_do_without_may_be_taken_away(cifar_train, run_dirs, what):
    assert cifar_train(what) == 0
    (run_dir,) = run_dirs()
    assert record_of(run_dir)["epochs"] == 1


def test_a_callback_that_saves_before_the_first_step_is_let(cifar_train, tmp_path, monkeypatch):
    text = "from lightning.pytorch import Callback\nclass Early(Callback):\n"
    text += "    def on_fit_start(self, trainer, module):\n        trainer.save_checkpoint('early.ckpt')\n"
    write_files(tmp_path, {"saves_early.py": text})
    monkeypatch.syspath_prepend(tmp_path)
    assert cifar_train("+callbacks.early._target_=saves_early.Early", "trust=[saves_early]") == 0
    assert Path("early.ckpt").exists()


def test_a_recipe_may_say_that_there_is_no_averaging(cifar_train, tmp_path):
    write_files(tmp_path, {"mine/experiment/plain.yaml": "# @package _global_\naveraging: null\n"})
    assert cifar_train("--config-dir", "mine", "experiment=plain") == 0


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "overrides",
    [
        ["++trainer.max_epochs=1", "++model.dropout=0.1"],
        ["model.kernel_sizes=[3,1,3]", "trainer.num_sanity_val_steps=1"],
        ["data.num_val=0.2", "optimizer.momentum=0.5", "augment.policy=null", "trainer.gradient_clip_val=null"],
    ],
)
def test_what_is_unusual_but_right_trains(cifar_train, overrides):
    assert cifar_train(*overrides) == 0


@pytest.mark.slow
def test_two_processes_train_one_network(run_dirs):
    """DDP on two CPU processes: one folder, half the batches each."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cifar_resnet.train", *TINY, "data.batch_size=20"]
    command += ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=2"]
    command += ["run_dir=outputs/ours"]  # which is no new folder any more for the second process
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    (run_dir,) = run_dirs()
    record = record_of(run_dir)
    assert record["steps"] == 2 * 5
    assert len(rows_of(run_dir)) == 2


def test_a_terminal_shows_a_bar_with_speed_and_time_left(cifar_train):
    screen = io.StringIO()
    rich.reconfigure(force_terminal=True, width=100, file=screen)
    try:
        assert cifar_train("trainer.max_epochs=2") == 0
    finally:
        rich.reconfigure()
    shown = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", screen.getvalue())
    assert re.search(r"epoch 2/2 .*\d+%  [\d,]+ images/s +\d:\d\d:\d\d", shown)


def test_a_logger_without_scores_for_hyperparameters_loses_no_result(cifar_train, run_dirs):
    csv_logger = "+logger.csv={_target_:lightning.pytorch.loggers.CSVLogger,save_dir:logs}"
    assert cifar_train(csv_logger) == 0
    assert record_of(run_dirs()[0])["epochs"] == 1


def test_log_handlers_do_not_pile_up(cifar_train):
    cifar_train()
    before = len(logging.getLogger("cifar_resnet").handlers)
    cifar_train()
    assert len(logging.getLogger("cifar_resnet").handlers) == before


def test_a_page_that_cannot_be_made_costs_nothing_else(cifar_train, run_dirs, monkeypatch, capsys):
    monkeypatch.setattr("cifar_resnet.results.page.write", lambda *args: 1 / 0)
    assert cifar_train("page=true") == 0
    assert "no page was made (ZeroDivisionError: division by zero)" in capsys.readouterr().out
    assert "test/acc" in record_of(run_dirs()[0])["metrics"]


def test_a_loss_that_is_not_finite_ends_the_run_with_one_line(cifar_train, run_dirs, capsys):
    assert cifar_train("optimizer.lr=1e25", "trainer.max_epochs=3") == 1
    captured = capsys.readouterr()
    (line,) = captured.err.splitlines()
    assert "the loss is no longer finite. Got nan" in line
    assert re.search(r"by step \d+ \(epoch 1\) at a learning rate of \d\.\d+e\+24", line)
    assert "give a lower optimizer.lr" in line
    assert "Traceback" not in captured.out
    assert not (run_dirs()[0] / "result.json").exists()


def test_predictions_go_through_links_and_into_pipes(trained):
    Image.new("RGB", (32, 32)).save("picture.png")
    Path("real.csv").write_text("before")
    Path("link.csv").symlink_to("real.csv")
    command = [f"checkpoint={trained}", "input=picture.png"]
    assert cli.predict([*command, "output=link.csv"]) == 0
    assert Path("link.csv").is_symlink()
    assert "picture.png" in Path("real.csv").read_text()
    os.mkfifo("pipe.csv")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe.csv").read_text()), daemon=True)
    reader.start()
    assert cli.predict([*command, "output=pipe.csv"]) == 0
    reader.join()
    assert "picture.png" in read[0]
    assert Path("pipe.csv").is_fifo()


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ("model=resnet20", r"overrides are a list of texts. Got 'model=resnet20'; give such as \['model=resnet20'\]"),
        (["dry_run=true"], "Got dry_run=true; leave it out, or use cifar-train"),
        (["data=image_folder", "data.root=nowhere"], "Got nowhere, which is not there"),
    ],
)
def test_the_python_function_refuses_what_it_cannot_do_before_anything_is_built(overrides, message, monkeypatch):
    monkeypatch.setattr("cifar_resnet.train.train_run", lambda cfg: pytest.fail("it went on"))
    with pytest.raises(UsageError, match=message):
        train(overrides)
