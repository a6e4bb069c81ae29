"""Settings in YAML files of one's own may change below what has been trained: old numbers are not shown as new ones."""

from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, record_of
from omegaconf import OmegaConf

from cifar_resnet import cli
from cifar_resnet.data import Synthetic

BEFORE = {
    "callbacks": "defaults: [early_stopping, _self_]\nearly_stopping: {patience: 5}\n",
    "precision": "_target_: cifar_resnet.hardware.resolve_precision\nprecision: 32-true\nfloat32_matmul: high\n",
    "optimizer": "_target_: torch.optim.SGD\n_partial_: true\nlr: 0.05\nmomentum: 0.9\n",
}
CHANGES = {  # by what is changed: the file, its text afterwards, and the key that the line names
    "patience": ("callbacks", BEFORE["callbacks"].replace("5", "6"), "callbacks.early_stopping.patience"),
    "a callback more": (
        "callbacks", BEFORE["callbacks"] + "timer: {_target_: lightning.pytorch.callbacks.Timer}\n", "callbacks.timer",
    ),
    "a callback less": ("callbacks", "defaults: [default, _self_]\n", "callbacks.early_stopping"),
    "precision": ("precision", BEFORE["precision"].replace("32-true", "bf16-mixed"), "precision.precision"),
    "a setting more": ("optimizer", BEFORE["optimizer"] + "weight_decay: 5e-4\n", "optimizer.weight_decay"),
    "a setting less": ("optimizer", BEFORE["optimizer"].replace("momentum: 0.9\n", ""), "optimizer.momentum"),
}  # fmt: skip
MINE = ["--config-dir", "mine", *(f"{group}=own" for group in BEFORE)]
SMALL = [text for text in TINY if not text.startswith("precision")]


def write(group: str, text: str) -> None:
    Path("mine", group).mkdir(parents=True, exist_ok=True)
    Path("mine", group, "own.yaml").write_text(text)


@pytest.fixture(autouse=True)
def own_files():
    for group, text in BEFORE.items():
        write(group, text)


def assert_refused(code: int, key: str, capsys, refusal: int = 2) -> None:
    captured = capsys.readouterr()
    output = captured.out + captured.err
    assert code == refusal
    assert f"recipe has changed since this job was trained. Got another {key} than in" in output
    assert "finished before" not in output


@pytest.mark.slow
def test_a_sweep_shows_no_finished_job_of_another_recipe(capsys):
    command = ["-m", *SMALL, *MINE, "seed=0"]
    assert cli.train(command) == 0
    for group, text, key in CHANGES.values():
        write(group, text)
        assert_refused(cli.train(command), key, capsys, refusal=1)
        write(group, BEFORE[group])
    write("optimizer", BEFORE["optimizer"] + "dampening: 0\n")  # the default, written out
    assert cli.train(command) == 0
    assert "finished before" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("change", CHANGES)
def test_resume_auto_goes_on_with_no_other_recipe(change, crash, capsys):
    command = [*SMALL, *MINE, "trainer.max_epochs=2", "resume=auto"]
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        cli.train(command)
    crash(None)
    group, text, key = CHANGES[change]
    write(group, text)
    capsys.readouterr()
    assert_refused(cli.train(command), key, capsys)
    write(group, BEFORE[group])
    if change == "patience":
        assert cli.train(command) == 0


@pytest.mark.slow
def test_an_ensemble_trained_before_is_of_the_recipe_as_it_is_now(capsys):
    command = [*SMALL, *(text for text in MINE if text != "callbacks=own"), "ensemble.size=2"]
    assert cli.train(command) == 0
    write("optimizer", BEFORE["optimizer"].replace("0.05", "0.06"))
    capsys.readouterr()
    assert_refused(cli.train(command), "optimizer.lr", capsys)
    write("optimizer", BEFORE["optimizer"])
    assert cli.train(command) == 0
    assert "this ensemble has been trained before" in capsys.readouterr().out


@pytest.mark.slow
def test_a_search_does_not_mix_the_trials_of_two_recipes(capsys):
    space = ["search.rounds=1", "search.trials=1", "optimizer.lr=interval(0.01,0.1)"]
    assert cli.search([*SMALL, *MINE, *space]) == 0
    write("optimizer", BEFORE["optimizer"] + "weight_decay: 5e-4\n")
    more = [text.replace("trials=1", "trials=2") for text in space]
    capsys.readouterr()
    assert cli.search([*SMALL, *MINE, *more]) == 2
    assert "since this search was begun. Got another optimizer.weight_decay than" in capsys.readouterr().err
    write("optimizer", BEFORE["optimizer"])
    assert cli.search([*SMALL, *MINE, *more]) == 0
    assert len(list(Path("outputs/search").rglob("result.json"))) == 2


def stopped_after_one_epoch(crash, *overrides: str) -> None:
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        cli.train([*overrides, "trainer.max_epochs=2", "run_dir=run"])
    crash(None)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("callbacks.early_stopping.patience", 1), ("precision.float32_matmul", "highest"),
        ("optimizer.weight_decay", 0.1), ("optimizer.momentum", None), ("compile", True),
        ("callbacks.timer", {"_target_": "lightning.pytorch.callbacks.Timer"}), ("callbacks.early_stopping", None),
    ],
)  # fmt: skip
def test_a_configuration_changed_below_a_run_is_refused_whatever_was_changed(key, value, crash, capsys):
    stopped_after_one_epoch(crash, *SMALL, *MINE)
    cfg = OmegaConf.load("run/config.yaml")
    parent, _, name = key.rpartition(".")
    owner = OmegaConf.select(cfg, parent) if parent else cfg
    if value is None:
        del owner[name]
    else:
        owner[name] = value
    Path("run/config.yaml").write_text(OmegaConf.to_yaml(cfg))
    capsys.readouterr()
    assert cli.train(["resume=run"]) == 2
    assert f"changed since the run began. Got another {key}; change it back" in capsys.readouterr().err


@pytest.fixture
def archives(monkeypatch) -> list[str]:
    """A training on archives whose folder comes from the environment."""
    images, labels = Synthetic(num_train=120).read(train=True)
    Path("here").mkdir()
    for name in ("train", "test"):
        np.savez(f"here/{name}.npz", images=images.numpy(), labels=labels.numpy())
    write("data", "defaults: [files, _self_]\ntrain: ${oc.env:PLACE}/train.npz\ntest: ${oc.env:PLACE}/test.npz\n")
    monkeypatch.setenv("PLACE", "here")
    own = [text for text in TINY if not text.startswith("data")]
    return ["--config-dir", "mine", *own, "data=own", "data.batch_size=20", "data.num_val=20"]


@pytest.mark.slow
def test_images_that_have_moved_are_no_change_and_others_in_their_place_are(archives, crash, monkeypatch, capsys):
    stopped_after_one_epoch(crash, *archives)
    assert cli.train(["-m", *archives, "seed=0"]) == 0
    Path("here").rename("there")
    monkeypatch.setenv("PLACE", "there")
    capsys.readouterr()
    assert cli.train(["-m", *archives, "seed=0"]) == 0
    assert "finished before" in capsys.readouterr().out
    with np.load("there/train.npz") as before:
        np.savez("kept.npz", **before)
        np.savez("there/train.npz", images=before["images"][::-1], labels=before["labels"])
    assert cli.train(["resume=run"]) == 2
    assert "these are not the images that the run began with. Got another mean" in capsys.readouterr().err
    Path("kept.npz").rename("there/train.npz")
    assert cli.train(["resume=run"]) == 0
    assert record_of(Path("run"))["epochs"] == 2


def test_a_place_that_was_written_out_may_be_given_anew(archives, crash):
    given = [text if text != "data=own" else "data=files" for text in archives[2:]]
    stopped_after_one_epoch(crash, *given, "data.train=here/train.npz", "data.test=here/test.npz")
    Path("here").rename("there")
    assert cli.train(["resume=run", "data.train=there/train.npz", "data.test=there/test.npz"]) == 0


@pytest.mark.slow
def test_a_setting_from_the_environment_must_not_change_below_a_run(crash, monkeypatch, capsys):
    write("optimizer", BEFORE["optimizer"].replace("0.05", "${oc.decode:${oc.env:RATE}}"))
    monkeypatch.setenv("RATE", "0.05")
    stopped_after_one_epoch(crash, *SMALL, *MINE)
    assert cli.train(["-m", *SMALL, *MINE, "seed=0"]) == 0
    monkeypatch.setenv("RATE", "0.06")
    capsys.readouterr()
    assert cli.train(["resume=run"]) == 2
    assert (
        "or what it refers to, has been changed since the run began. Got another optimizer.lr"
        in capsys.readouterr().err
    )
    assert_refused(cli.train(["-m", *SMALL, *MINE, "seed=0"]), "optimizer.lr", capsys, refusal=1)


@pytest.mark.slow
def test_a_peak_that_was_found_is_no_change_and_one_that_was_given_is(capsys):
    text = "defaults: [one_cycle, _self_]\nmax_lr: {}\n"
    test = ["range_test.steps=40", "range_test.suggest=valley"]
    command = ["-m", *TINY, "--config-dir", "mine", "scheduler=own", "seed=0", *test]
    write("scheduler", text.format("auto"))
    assert cli.train([*command, "name=found"]) == 0
    assert cli.train([*command, "name=found"]) == 0
    assert "finished before" in capsys.readouterr().out
    write("scheduler", text.format("0.05"))
    assert cli.train([*command, "name=given"]) == 0
    write("scheduler", text.format("auto"))
    assert_refused(cli.train([*command, "name=given"]), "scheduler.max_lr", capsys, refusal=1)
