"""Trainings on a user's own folders of pictures, from the command line."""

import shutil
from pathlib import Path

import pytest
from helpers import TINY, assert_equal, last_of, record_of, write_files
from PIL import Image

from cifar_resnet import cli
from cifar_resnet.data import Synthetic

GIVEN = [
    *(text for text in TINY if not text.startswith("data")), "data=image_folder", "data.root=pets", "data.num_val=20",
    "data.batch_size=20", "trainer.max_epochs=2",
]  # fmt: skip


@pytest.fixture
def pets():
    """Ten classes, from 2 to 11, in a folder of that name."""
    for half, num_images in (("train", 100), ("test", 20)):
        images, labels = Synthetic(num_train=num_images, num_test=num_images).read(train=half == "train")
        for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
            folder = Path("pets", half, str(label + 2))
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")


@pytest.mark.slow
@pytest.mark.parametrize("side_by_side", [False, True])
def test_a_run_begun_before_goes_on_with_its_order_of_classes_to_the_last_bit(pets, crash, monkeypatch, side_by_side):
    """When names were sorted as texts: 10, 11, 2, 3, …"""
    given = [*GIVEN, *(["ensemble.size=2"] if side_by_side else ["run_dir=outputs/stopped"])]
    with monkeypatch.context() as before:
        before.setattr("cifar_resnet.folders.natural", str)
        crash(1)
        with pytest.raises(RuntimeError, match="power"):
            cli.train(given)
        crash(None)
        whole = ["output_dir=whole"] if side_by_side else ["run_dir=whole"]
        assert cli.train([*(text for text in given if "run_dir" not in text), *whole]) == 0
    assert cli.train(given if side_by_side else ["resume=outputs/stopped"]) == 0
    pattern = "**/together/checkpoints/last.ckpt" if side_by_side else "**/checkpoints/last.ckpt"
    resumed, never_stopped = (next(Path(folder).glob(pattern)).parents[1] for folder in ("outputs", "whole"))
    assert last_of(resumed)["data"]["classes"] == ["10", "11", *map(str, range(2, 10))]
    for key in ("state_dict", "data", "epoch"):
        assert_equal(last_of(resumed)[key], last_of(never_stopped)[key], key)


def test_it_is_said_beforehand_into_what_a_folder_without_splits_is_divided(pets, capsys):
    assert cli.train([*GIVEN, "data.root=pets/train", "trainer.max_epochs=1", "run_dir=outputs/run"]) == 0
    out = capsys.readouterr().out
    assert "image_folder: 60 images, 20 held out for validation" in out
    assert ", 20 kept for the test" in out.partition("train loss")[0]
    assert record_of(Path("outputs/run"))["num_test"] == 20


def test_validation_images_of_its_own_and_a_number_of_them_to_hold_out_are_no_pair(pets, run_dirs, capsys):
    shutil.copytree("pets/test", "pets/val")
    assert cli.train(GIVEN) == 2
    assert "has validation images of its own; data.num_val=0 would" in capsys.readouterr().err
    assert not run_dirs()
    others = [text for text in GIVEN if not text.startswith("data.num_val")]
    assert cli.train([*others, "trainer.max_epochs=1"]) == 0
    assert record_of(run_dirs()[0])["num_val"] == 20


def test_a_recipe_for_all_images_says_that_it_trains_on_those_kept_for_validation(pets, run_dirs, capsys):
    shutil.copytree("pets/test", "pets/val")
    write_files(Path(), {"mine/experiment/all.yaml": "# @package _global_\ndata: {num_val: 0}\n"})
    others = [text for text in GIVEN if not text.startswith("data.num_val")]
    recipe = ["--config-dir", "mine", "experiment=all", *others, "trainer.max_epochs=1"]
    for given, count, is_told in (("", 0, True), ("data.num_val=0", 0, False), ("data.num_val=null", 20, False)):
        capsys.readouterr()
        assert cli.train([*recipe, *([given] if given else []), f"run_dir=outputs/train/{given or 'recipe'}"]) == 0
        assert record_of(Path(f"outputs/train/{given or 'recipe'}"))["num_val"] == count
        assert ("warning: the data has validation images of its own" in capsys.readouterr().out) == is_told
