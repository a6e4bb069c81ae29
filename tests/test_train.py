"""Whole runs: what they leave behind, and that resuming one changes nothing."""

import io
import logging
import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import rich
import torch
from conftest import assert_equal, last_of, record_of, rows_of
from omegaconf import OmegaConf
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet import checkpoints, runs
from cifar_resnet.answers import Answers
from cifar_resnet.data import Augment, Synthetic
from cifar_resnet.models import Classifier, ResNet
from cifar_resnet.models.regularisers import DropBlock


def test_a_run_leaves_everything_in_its_folder(cifar_train, run_dirs, capsys):
    assert cifar_train("trainer.max_epochs=2", "name=demo", "optimizer.lr=0.05") == 0
    (run_dir,) = run_dirs()
    assert run_dir.parent == Path.cwd() / "outputs" / "demo"
    assert re.match(r"\d{4}-\d\d-\d\d_\d\d-\d\d-\d\d-data-synthetic_num_train-240", run_dir.name)
    names = {str(path.relative_to(run_dir)) for path in run_dir.rglob("*") if path.is_file()}
    files = {"config.yaml", "result.json", "metrics.csv", "train.log", "augmented_batch.png"}
    assert files | {"checkpoints/best.ckpt", "checkpoints/last.ckpt"} <= names

    record = record_of(run_dir)
    assert record["network"] == "resnet_cifar"
    assert record["epochs"] == 2
    assert record["steps"] == 2 * 5
    assert (record["num_train"], record["num_val"]) == (200, 40)
    assert record["config"]["optimizer"]["lr"] == 0.05
    assert record["parameters"] == sum(p.numel() for p in checkpoints.load(run_dir).parameters())
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


def test_a_run_that_validates_nothing_and_tests_a_part_says_so(cifar_train, run_dirs, capsys):
    overrides = ["~callbacks.best", "trainer.limit_val_batches=0", "trainer.limit_test_batches=1"]
    assert cifar_train(*overrides, "data.eval_batch_size=20", "page=true") == 0
    assert re.search(r"validation +none", capsys.readouterr().out)
    (run_dir,) = run_dirs()
    assert len(Answers.load(run_dir / "predictions.npz").labels) == 20
    assert (run_dir / "page.html").exists()


def test_tensorboard_shows_curves_picture_and_hyperparameters(cifar_train, run_dirs):
    assert cifar_train("trainer.max_epochs=2", "trainer.log_every_n_steps=1") == 0
    (run_dir,) = run_dirs()
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    tags = events.Tags()
    curves = {"train/loss", "train/acc", "val/loss", "val/acc", "lr", "train/images_per_second", "test/acc"}
    assert curves <= set(tags["scalars"])
    assert {event.step for event in events.Scalars("lr")} == set(range(10))
    for tag, count in {"val/acc": 2, "train/loss": 2, "test/acc": 1, "final/val/acc": 1}.items():
        steps = [event.step for event in events.Scalars(tag)]
        assert len(steps) == count, tag
        assert min(steps) > 0, tag
    assert tags["images"] == ["augmented_batch"]
    assert "_hparams_/session_start_info" in events.summary_metadata


def test_a_checkpoint_loads_by_its_path_in_a_fresh_process(cifar_train, run_dirs):
    cifar_train("model.dropout=0.1")
    (run_dir,) = run_dirs()
    program = """
import sys, torch
from cifar_resnet.checkpoints import load
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
        logits = checkpoints.load(run_dir)(images)
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


@pytest.mark.parametrize(
    "overrides",
    [
        ("optimizer=sgd", "scheduler=cosine", "augment=randaugment", "augment.mixing=cutmix", "model.drop_block=0.1"),
        ("optimizer=adam", "scheduler=one_cycle", "precision=bf16-mixed"),
        ("optimizer=sam", "scheduler=linear", "precision=bf16-mixed"),
        ("optimizer=muon", "scheduler=constant", "trainer.gradient_clip_val=1"),
        ("optimizer=adamw", "scheduler=multistep", "trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1"),
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
    from cifar_resnet import train

    resume = [f"resume={resumed.relative_to(Path.cwd())}"]
    send(2 * last_of(whole)["global_step"] // 4 + 2)
    assert train.main(resume) == 143
    send(None)
    assert train.main(resume) == 0
    assert len(run_dirs()) == 2
    a, b = last_of(whole), last_of(resumed)
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step"):
        assert_equal(a[key], b[key], key)
    speed = "train/images_per_second"
    drop_speed = [[{k: v for k, v in row.items() if k != speed} for row in rows_of(run)] for run in (whole, resumed)]
    assert drop_speed[0] == drop_speed[1]
    metrics = [{k: v for k, v in record_of(run)["metrics"].items() if k != speed} for run in (whole, resumed)]
    assert metrics[0] == metrics[1]
    assert record_of(whole)["epoch"] == record_of(resumed)["epoch"]


def test_a_moved_run_resumes_with_its_best_score(cifar_train, run_dirs, crash):
    crash(2)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train("trainer.max_epochs=3", "optimizer.lr=1e-9")  # no epoch improves on the first
    (run_dir,) = run_dirs()
    moved = Path("elsewhere")
    run_dir.rename(moved)
    crash(None)
    from cifar_resnet import train

    assert train.main([f"resume={moved}"]) == 0
    accuracies = [float(row["val/acc"]) for row in rows_of(moved)]
    assert len(accuracies) == 3
    assert record_of(moved)["epoch"] == accuracies.index(max(accuracies)) + 1
    assert last_of(moved)["epoch"] == 2
    assert not run_dir.exists()


def test_a_finished_run_is_not_trained_again(cifar_train, run_dirs, capsys):
    cifar_train()
    (run_dir,) = run_dirs()
    before = last_of(run_dir)
    capsys.readouterr()
    from cifar_resnet import train

    assert train.main([f"resume={run_dir}"]) == 0
    assert "finished before" in capsys.readouterr().out
    assert_equal(last_of(run_dir)["state_dict"], before["state_dict"])


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path):
    cfg = OmegaConf.create({"run_dir": None, "output_dir": str(tmp_path), "name": "x", "overrides": ["a.b=1"]})
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: runs.create_run_dir(cfg), range(40)))
    assert len(set(folders)) == 40
    assert all(folder.is_dir() for folder in folders)


def test_a_sweep_makes_one_named_folder_per_job_and_is_not_run_twice(cifar_train, run_dirs, capsys, monkeypatch):
    command = ("-m", "model.depth=8,14", "optimizer.lr=0.05,0.1,0.2")
    assert cifar_train(*command) == 0
    folders = run_dirs()
    expected = {f"depth-{depth}_lr-{rate}" for depth in (8, 14) for rate in (0.05, 0.1, 0.2)}
    assert {folder.name for folder in folders} == expected
    assert len({folder.parent for folder in folders}) == 1
    for folder in folders:
        model, optimizer = record_of(folder)["config"]["model"], record_of(folder)["config"]["optimizer"]
        assert folder.name == f"depth-{model['depth']}_lr-{optimizer['lr']}"
    table = capsys.readouterr().out
    assert table.count("depth-14_lr-") >= 3

    (folders[3] / "result.json").unlink()
    trained = []
    setup = Classifier.setup
    monkeypatch.setattr(Classifier, "setup", lambda self, stage: trained.append(stage) or setup(self, stage))
    assert cifar_train(*command) == 0
    assert trained == ["fit", "test"]
    assert len(run_dirs()) == 6


def test_a_job_that_fails_does_not_stop_the_sweep(cifar_train, run_dirs, capsys):
    assert cifar_train("-m", "optimizer.lr=-1,0.1") == 1
    assert [path.name for path in run_dirs()] == ["lr-0.1"]
    output = capsys.readouterr().out
    assert "optimizer.lr must not be negative. Got -1" in output
    assert "failed" in output


def test_a_sweep_without_one_good_job_does_not_begin(cifar_train, capsys):
    assert cifar_train("-m", "optimizer.lr=-1,-2") == 2
    assert "optimizer.lr must not be negative. Got -1" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


def test_early_stopping_ends_a_run_early(cifar_train, run_dirs):
    overrides = ["callbacks=early_stopping", "callbacks.early_stopping.patience=1", "trainer.max_epochs=9"]
    assert cifar_train(*overrides, "optimizer.lr=1e-9", "callbacks.early_stopping.min_delta=0.5") == 0
    assert record_of(run_dirs()[0])["epochs"] == 2


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


def test_a_network_over_its_budget_is_refused_before_data_is_read(cifar_train, monkeypatch, capsys):
    monkeypatch.setattr(Synthetic, "read", lambda self, train: pytest.fail("read"))
    assert cifar_train("model.max_params=100") == 2
    assert "too large for model.max_params=100" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


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
    turns = {}
    call = Augment.__call__

    def watched(self, images, normalise, draws):
        for image, turn in zip(images, draws.turns.tolist(), strict=True):
            turns.setdefault(image.numpy().tobytes(), []).append(turn)
        return call(self, images, normalise, draws)

    monkeypatch.setattr(Augment, "__call__", watched)
    assert cifar_train("augment.flip=alternating", "trainer.max_epochs=3") == 0
    assert all(seen in ([True, False, True], [False, True, False]) for seen in turns.values())
    assert 60 < sum(seen[0] for seen in turns.values()) < 140  # of 200


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
    checkpoints.load(run_dirs()[1])


def test_the_network_computes_in_channels_last_from_uint8_on_the_device(cifar_train, monkeypatch):
    seen = []
    forward = ResNet.forward

    def spy(self, images):
        if self.training:
            weights_last = self.stages[0][0].conv1.weight.is_contiguous(memory_format=torch.channels_last)
            images_last = images.is_contiguous(memory_format=torch.channels_last)
            seen.append((weights_last, images_last, self.trainer.datamodule.train.tensors[0].dtype))
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


def test_two_processes_train_one_network(tmp_path, run_dirs):
    """DDP on two CPU processes: one folder, half the batches each."""
    from conftest import TINY

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


def test_the_jobs_of_a_sweep_read_their_images_once(cifar_train, run_dirs, monkeypatch):
    reads = []
    read = Synthetic.read
    monkeypatch.setattr(Synthetic, "read", lambda self, train: reads.append(train) or read(self, train))
    assert cifar_train("-m", "seed=0,1", "optimizer.lr=0.1,0.2") == 0
    assert reads == [True, False]
    together = {path.name: record_of(path)["metrics"] for path in run_dirs()}
    alone = ["seed=1", "optimizer.lr=0.2"]
    assert cifar_train(*alone) == 0
    assert reads == [True, False] * 2
    assert record_of(run_dirs()[-1])["metrics"]["test/loss"] == together["seed-1_lr-0.2"]["test/loss"]
    assert cifar_train("-m", "data.num_val=40,60") == 0  # another split is read anew
    assert reads == [True, False] * 4


def test_a_job_that_fails_before_it_reads_leaves_the_next_nothing_to_take_over(cifar_train, run_dirs, monkeypatch):
    """With a source that, as CIFAR-10 does, knows its classes only once it has read."""
    read, classes = Synthetic.read, Synthetic.classes

    def read_and_learn_classes(self, train):
        self.classes = classes
        return read(self, train)

    monkeypatch.delattr(Synthetic, "classes")
    monkeypatch.setattr(Synthetic, "read", read_and_learn_classes)
    assert cifar_train("-m", "optimizer.lr=-1,0.1") == 1
    assert [path.name for path in run_dirs() if (path / "result.json").exists()] == ["lr-0.1"]
