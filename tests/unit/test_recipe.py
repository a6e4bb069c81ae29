"""What counts as another recipe, and what does not."""

import copy
import json

import pytest
from helpers import TINY
from omegaconf import OmegaConf, open_dict

from cifar_resnet.compose import Composer
from cifar_resnet.constraints import plain
from cifar_resnet.recipe import NO_PART_OF_IT, PLACES, differences


def composed(*overrides: str):
    (job,) = Composer().jobs([*TINY, "callbacks=early_stopping", "averaging=ema", "run_dir=here", *overrides])
    return job.cfg


def changed(before, now, raw=None) -> list[str]:
    return differences(json.loads(json.dumps(plain(before))), now, (), raw)  # as a record has it


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("callbacks.early_stopping.patience=3", "callbacks.early_stopping.patience"),
        ("callbacks.best.monitor=val/loss", "callbacks.best.monitor"), ("precision=bf16-mixed", "precision.precision"),
        ("precision.float32_matmul=highest", "precision.float32_matmul"), ("averaging.decay=0.5", "averaging.decay"),
        ("compile=true", "compile"), ("test=false", "test"), ("seed=3", "seed"), ("optimizer.lr=0.3", "optimizer.lr"),
        ("model.tta=flip", "model.tta"), ("data.num_val=20", "data.num_val"), ("augment.flip=none", "augment.flip"),
        ("trainer.max_epochs=7", "trainer.max_epochs"), ("distill.teacher=a", "distill.teacher"),
        ("+callbacks.x={_target_: lightning.pytorch.callbacks.Timer}", "callbacks.x"), ("optimizer=adam", "optimizer"),
        ("~callbacks.early_stopping", "callbacks.early_stopping"), ("~averaging", "averaging"),
        ("~scheduler", "scheduler"), ("scheduler=linear", "scheduler"),
        ("+optimizer.dampening=0.5", "optimizer.damp"),
        ("+optimizer.maximize=true", "optimizer.maximize"), ("+trainer.limit_predict_batches=3", "trainer.limit_pred"),
    ],
)  # fmt: skip
def test_whatever_bears_on_the_result_is_a_difference_both_ways(override, key):
    before, now = composed(), composed()
    if override.startswith("+trainer"):  # which is refused where it is given
        with open_dict(now):
            now.trainer.limit_predict_batches = 3
    else:
        now = composed(override)
    for first, second in ((before, now), (now, before)):
        (found, *others) = changed(first, second)
        assert found.startswith(key)
        assert all(other in ("data.seed",) for other in others)


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize(
    "override",
    [
        "name=other", "output_dir=elsewhere", "page=true", "~logger.tensorboard", "logger.tensorboard.flush_secs=3",
        "trainer.accelerator=cpu", "trainer.log_every_n_steps=3", "trainer.profiler=simple", "data.device=cpu",
        "~callbacks.progress", "~callbacks.augmented_batch", "callbacks.metrics.path=elsewhere.csv",
        "callbacks.finite_loss.every_n_steps=7", "distill.temperature=2.0", "range_test.steps=300", "trust=[mine]",
        "~callbacks.learning_rate", "run_dir=moved", "+optimizer.dampening=0", "+optimizer.maximize=false",
        "trainer.benchmark=false", "optimizer.fused=false",
    ],
)  # fmt: skip
def test_names_places_machines_pictures_and_defaults_written_out_are_none(override):
    ignored = ("trainer.benchmark", "optimizer.fused", "trainer.default_root_dir")  # as resume has them
    for first, second in ((composed(), composed(override)), (composed(override), composed())):
        assert differences(plain(first), second, ignored, None) == []


def test_every_key_of_the_list_is_one():
    keys = {*composed()} | {f"{group}.{key}" for group in ("trainer", "data") for key in composed()[group]}
    assert [key for key in NO_PART_OF_IT if key not in {*keys, "search", "callbacks.finite_loss.every_n_steps"}] == []
    assert all(key.startswith(("data.", "distill.")) or key in keys for key in PLACES)


def test_cifar_10_is_the_same_wherever_it_lies_and_a_folder_of_pictures_is_not():
    for data, expected in (("cifar10", []), ("image_folder", ["data.root"])):
        before, now = (Composer().jobs([f"data={data}", f"data.root={root}"])[0].cfg for root in ("a", "b"))
        assert changed(before, now) == expected


@pytest.mark.parametrize("text", ["${oc.env:PLACE}/train.npz", "${oc.env:PLACE}"])
def test_a_path_from_the_environment_may_have_another_value_and_a_setting_may_not(monkeypatch, text):
    settings = {"_target_": "cifar_resnet.data.Files", "train": text, "test": text, "image_size": 32}
    settings["batch_size"] = "${oc.decode:${oc.env:SIZE}}"
    cfg = OmegaConf.create({"data": settings, "run_dir": "here"})
    monkeypatch.setenv("PLACE", "a/b")
    monkeypatch.setenv("SIZE", "40")
    before = plain(cfg)
    monkeypatch.setenv("PLACE", "c")
    assert differences(before, cfg, (), raw=cfg) == []
    assert differences(before, cfg, (), raw=None) == ["data.test", "data.train"]  # who knows what it was called
    other = OmegaConf.merge(cfg, {"data": {"train": "${oc.env:PLACE}/other.npz"}})
    assert differences(before, other, (), raw=cfg) == ["data.train"]
    monkeypatch.setenv("SIZE", "20")
    assert differences(before, cfg, (), raw=cfg) == ["data.batch_size"]


def test_a_word_from_the_environment_that_is_no_path_is_compared(monkeypatch):
    cfg = OmegaConf.create({"augment": {"_target_": "cifar_resnet.data.Augment", "policy": "${oc.env:POLICY}"}})
    monkeypatch.setenv("POLICY", "randaugment")
    before = plain(cfg)
    monkeypatch.setenv("POLICY", "autoaugment")
    assert differences(before, cfg, (), raw=cfg) == ["augment.policy"]


def test_a_setting_of_a_later_version_is_no_difference():
    """Neither one at the top nor one whose default says what was done before there was a choice."""
    before, now = plain(composed()), composed()
    older = copy.deepcopy(before)
    del (
        older["compile"],
        older["model"]["dropout"],
        older["ensemble"]["size"],
        older["trainer"]["check_val_every_n_epoch"],
    )
    assert differences(older, now, (), None) == []
    now.model.dropout = 0.3
    assert differences(older, now, (), None) == ["model.dropout"]


def test_without_validation_images_what_looks_at_them_does_not_count():
    before, now = composed("data.num_val=0"), composed("data.num_val=0", "callbacks.best.monitor=val/loss")
    before.trainer.limit_val_batches = 0  # as a training without them sets it
    assert changed(before, now) == []


def test_damaged_records_are_compared_without_falling_over():
    for before in ({}, {"data": None, "trainer": 3, "callbacks": []}, {"optimizer": {"_target_": ["x"]}}):
        assert isinstance(differences(before, composed(), (), None), list)
