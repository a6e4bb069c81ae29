"""Run folders that are damaged, changed or another's: one line, nothing trained in vain, nothing lost."""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import TINY, record_of

from cifar_resnet import evaluate, export, find_lr, predict, report, search, train

LONG = ("trainer.max_epochs=3", "run_dir=run")


@pytest.fixture
def begun(cifar_train, crash) -> Path:
    """A run of three epochs, stopped after two."""
    crash(2)
    with pytest.raises(RuntimeError):
        cifar_train(*LONG)
    crash(None)
    return Path("run")


def error_of(capsys) -> str:
    err = capsys.readouterr().err
    (line,) = err.splitlines()
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


LAST = "run/checkpoints/last.ckpt"
DAMAGE = {
    "last gone": (Path(LAST).unlink, "without last.ckpt"),
    "last empty": (lambda: Path(LAST).write_bytes(b""), "not a readable checkpoint"),
    "last of another program": (lambda: torch.save({"global_step": 3}, LAST), "without pytorch-lightning_version"),
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


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_run_is_not_resumed(begun, capsys, damage):
    spoil, message = DAMAGE[damage]
    spoil()
    before = everything(begun)
    assert train.main(["resume=run"]) == 2
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
    assert train.main(["resume=run"]) == 2
    assert f"Got another {key}" in error_of(capsys)


@pytest.mark.parametrize("resume", ["5", "true", "[run]", "{run: 1}"])
def test_resume_takes_a_folder(capsys, resume):
    assert train.main([f"resume={resume}"]) == 2
    assert "resume needs a run folder" in error_of(capsys)


def test_a_run_that_lost_its_best_checkpoint_keeps_the_best_of_the_rest(begun):
    Path("run/checkpoints/best.ckpt").unlink()
    assert train.main(["resume=run"]) == 0
    assert record_of(begun)["epoch"] == 3
    assert record_of(begun)["selected"] == "best on validation"


def test_a_damaged_table_of_epochs_stops_no_training(begun):
    Path("run/metrics.csv").write_bytes(b"\xff\xfe,\n")
    with pytest.warns(UserWarning, match="begins anew"):
        assert train.main(["resume=run"]) == 0
    assert record_of(begun)["epochs"] == 3


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["resume="], "resume is empty"),
        (["resume=run", "dry_run=true"], "dry_run describes"),
        (["distill.teacher="], "distill.teacher is empty"),
        (["distill.teacher=[]"], "distill.teacher names nobody"),
        (["--config-dir"], "expected one argument"),
        (["--config-dir", ""], "--config-dir must be a folder"),
        (["callbacks.best.dirpath=elsewhere"], "other commands look for"),
        (["callbacks.last.filename=final"], "other commands look for"),
        (["+trainer.max_steps=3"], "trainer.max_steps is not for cifar-train"),
        (["+trainer.fast_dev_run=true"], "trainer.fast_dev_run is not for"),
        (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches counts batches. Got 0"),
        (["trainer.limit_train_batches=0"], "nothing would be trained"),
        (["+model.num_classes=5"], "the data says how many classes"),
        (["callbacks=early_stopping", "data.num_val=0"], "early stopping looks at validation images"),
        (["augment.crop_padding=32"], "augment.crop_padding must be smaller than the images"),
        (["augment.cutout_size=1000"], "augment.cutout_size would cover"),
        (["data.mean=[0,0]"], "data.mean has a number for red, green and blue"),
        (["optimizer._target_=torch.optim.Sgd"], "_target_ names nothing. Got torch.optim.Sgd"),
        (["-m", "seed=0,1", "output_dir=file"], "Got file"),
        (["trainer.limit_test_batches=0"], "to leave the test out: test=false"),
        (["callbacks.best.monitor=test/acc"], "nothing to go by. Got monitor=test/acc; give val/acc"),
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/los"],
            "has nothing to go by. Got monitor=val",
        ),
        ([f"name={'n' * 300}"], "so long a name. Got one of 300 letters"),
    ],
)
def test_what_could_only_fail_or_be_ignored_later_is_refused(cifar_train, capsys, overrides, message):
    Path("file").write_text("")
    assert cifar_train(*overrides) == 2
    assert message in error_of(capsys)
    assert [path.name for path in Path().iterdir()] == ["file"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "# @package _global_\ntrainr: {max_epochs: 1}\n",
            "unknown key trainr in a file of settings. Did you mean tra",
        ),
        ("trainer: {max_epochs: 1}\n", "# @package _global_"),
        ("# @package _global_\ntrainer: [1\n", "expected"),
        ("# @package _global_\ndefaults: [mine]\n", ""),
    ],
)
def test_mistakes_in_a_recipe_of_ones_own(cifar_train, capsys, text, message):
    Path("conf/experiment").mkdir(parents=True)
    Path("conf/experiment/mine.yaml").write_text(text)
    assert cifar_train("--config-dir", "conf", "experiment=mine") == 2
    assert message in error_of(capsys)
    assert not Path("outputs").exists()


@pytest.fixture
def own_run(trained) -> Path:
    return Path(shutil.copytree(trained, "own"))


@pytest.mark.parametrize("content", ["", '{"metrics": ', "[1, 2]", "{}", '{"metrics": {}}'])
def test_a_damaged_record_is_named_by_all_that_read_it(own_run, capsys, content):
    (own_run / "result.json").write_text(content)
    before = everything(Path())
    for main, arguments in (
        (report.main, ["own"]), (train.main, ["resume=own"]), (evaluate.main, ["checkpoint=."]),
        (export.main, ["checkpoint=own"]),
    ):  # fmt: skip
        assert main(arguments) == 2
        assert "result.json" in error_of(capsys)
    assert everything(Path()) == before


def test_a_damaged_table_of_epochs_is_named_before_anything_is_written(own_run, capsys):
    (own_run / "metrics.csv").write_text("epoch,train/loss\nx,y\n")
    before = everything(Path())
    for main, arguments in ((report.main, ["own"]), (evaluate.main, ["checkpoint=own"])):
        assert main(arguments) == 2
        assert "metrics.csv" in error_of(capsys)
    assert everything(Path()) == before


def test_answers_that_are_none_are_not_compared(own_run, trained, capsys):
    for log_probs in (np.full((50, 10), np.nan, np.float32), np.zeros((5, 10), np.float32), np.zeros(50, np.float32)):
        np.savez(own_run / "predictions.npz", log_probs=log_probs, labels=np.zeros(50, int), images_hash="x")
        assert report.main(["compare", str(own_run), str(trained)]) == 2
        assert "not readable" in error_of(capsys)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["own", "by=[optimizer.learning_rate]"], "no run has the setting optimizer.learning_rate"),
        (["own", "by=seed"], "by is a list of settings"),
        (["own", "pivot=[1,2]"], "pivot is a list of settings"),
        (["compare", "own", "own", "resamples=0"], "resamples must be 1 or more"),
        (["compare", "own", "own", "resamples=1.5"], "resamples must be a whole number"),
    ],
)
def test_mistakes_to_the_report(own_run, capsys, arguments, message):
    assert report.main(arguments) == 2
    assert message in error_of(capsys)
    assert not Path("outputs").exists()


def test_evaluate_needs_a_real_accelerator_and_a_name(own_run, capsys):
    for arguments, message in (
        (["checkpoint="], "checkpoint is empty"), (["checkpoint=own", "accelerator=tpu"], "no such accelerator here"),
    ):  # fmt: skip
        assert evaluate.main(arguments) == 2
        assert message in error_of(capsys)


def test_answers_go_through_links_and_into_pipes(own_run, capsys):
    from PIL import Image

    Image.new("RGB", (32, 32)).save("picture.png")
    Path("real.csv").write_text("before")
    Path("link.csv").symlink_to("real.csv")
    assert predict.main(["checkpoint=own", "input=picture.png", "output=link.csv"]) == 0
    assert Path("link.csv").is_symlink()
    assert "picture.png" in Path("real.csv").read_text()
    os.mkfifo("pipe.csv")
    read: list[str] = []
    reader = threading.Thread(target=lambda: read.append(Path("pipe.csv").read_text()), daemon=True)
    reader.start()
    assert predict.main(["checkpoint=own", "input=picture.png", "output=pipe.csv"]) == 0
    reader.join()
    assert "picture.png" in read[0]
    assert Path("pipe.csv").is_fifo()


def test_searches_and_range_tests_leave_nothing_where_they_cannot_begin(capsys):
    for main, arguments, message in (
        (search.main, ["search.seed=-1"], "search.seed is a seed"),
        (search.main, ["optimizer.lr=interval(0,inf)"], "an interval goes from"),
        (find_lr.main, ["output_dir=/dev/null"], "Got /dev/null"),
        (find_lr.main, ["optimizer.lr=-1"], "optimizer.lr must not be negative"),
    ):
        assert main([*TINY, *arguments]) == 2
        assert message in error_of(capsys)
        assert not list(Path().iterdir())


def test_an_archive_names_each_class_once(own_run, capsys):
    labels = np.array([0, 1, 2] * 4)
    np.savez("twice.npz", images=np.zeros((12, 32, 32, 3), np.uint8), labels=labels, classes=["disk", "disk", "ring"])
    assert evaluate.main(["checkpoint=own", "data=files", "data.test=twice.npz"]) == 2
    assert "two classes of one name" in error_of(capsys)


def test_a_whole_record_is_read(own_run):
    record = json.loads((own_run / "result.json").read_text())
    assert train.main(["resume=own"]) == 0
    assert record_of(own_run) == record
