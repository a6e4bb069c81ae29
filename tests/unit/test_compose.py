"""From command lines to configurations: alone, in threads, and inside another Hydra application."""

import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import hydra
import pytest
from helpers import TINY
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.version import VersionBase
from omegaconf import OmegaConf

from cifar_resnet import cli
from cifar_resnet.api import train
from cifar_resnet.compose import Composer, defaults_of
from cifar_resnet.errors import UsageError
from cifar_resnet.overrides import Interval, kind


def test_a_job_knows_what_was_chosen_and_what_was_asked_for():
    (job,) = Composer().jobs(["model=resnet20", "trainer.max_epochs=3"])
    assert job.cfg.overrides == job.overrides == ["model=resnet20", "trainer.max_epochs=3"]
    assert (job.cfg.choices.model, job.cfg.choices.optimizer, job.cfg.choices.data) == ("resnet20", "sgd", "cifar10")
    assert (job.cfg.model.depth, job.cfg.trainer.max_epochs) == (20, 3)
    assert "hydra" not in job.cfg
    assert job.varying == []


def test_a_sweep_has_a_job_for_each_combination():
    jobs = Composer().jobs(["model=resnet20,resnet32", "seed=range(0,3)", "optimizer.lr=0.5"], multirun=True)
    assert [job.varying for job in jobs] == [
        [f"model={model}", f"seed={seed}"] for model in ("resnet20", "resnet32") for seed in range(3)
    ]
    assert all(job.overrides == ["optimizer.lr=0.5"] and job.cfg.optimizer.lr == 0.5 for job in jobs)
    assert [(job.cfg.choices.model, job.cfg.seed) for job in jobs] == [
        (model, seed) for model in ("resnet20", "resnet32") for seed in range(3)
    ]


def test_a_search_looks_at_every_combination_of_choices_and_ends_of_intervals():
    jobs = Composer("search").examples(["optimizer.lr=tag(log,interval(0.01,1))", "augment=choice(none,standard)"])
    assert [(job.cfg.optimizer.lr, job.cfg.choices.augment) for job in jobs] == [
        (lr, augment) for lr in (0.01, 1) for augment in ("none", "standard")
    ]
    assert jobs[0].space["optimizer.lr"] == Interval(0.01, 1, log=True)


def test_the_folders_that_a_report_is_of_are_no_overrides():
    (job,) = Composer("report").jobs(["compare", "runs/a", "runs/b", "resamples=7"])
    assert job.words == ["compare", "runs/a", "runs/b"]
    assert job.cfg.resamples == 7


@pytest.fixture
def mine() -> Path:
    """A folder of one's own choices."""
    Path("mine/optimizer").mkdir(parents=True)
    Path("mine/optimizer/rmsprop.yaml").write_text("_target_: torch.optim.RMSprop\n_partial_: true\nlr: 0.01\n")
    return Path("mine")


def test_a_folder_of_ones_own_adds_choices(mine):
    composer = Composer("train", str(mine))
    (job,) = composer.jobs(["optimizer=rmsprop", "optimizer.lr=0.02"])
    assert job.cfg.optimizer == {"_target_": "torch.optim.RMSprop", "_partial_": True, "lr": 0.02}
    assert composer.arguments == ["--config-dir", str(mine.resolve())]
    with pytest.raises(UsageError, match="unknown optimizer 'rmsprop'"):
        Composer("train").jobs(["optimizer=rmsprop"])


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (True, "true or false"), (1, "a number"), (1.5, "a number"), ("1", "text"), ([1], "a list"), ({}, "settings"),
        (None, None),
    ],
)  # fmt: skip
def test_what_a_person_calls_a_value(value, expected):
    assert kind(value) == expected


def test_of_a_recipe_that_is_given_another_network_what_that_does_not_take_can_be_left_out():
    (job,) = Composer().jobs(["experiment=speed95", "model=resnet20", "~model.num_convs", "~model.residual"])
    assert {"num_convs", "residual"}.isdisjoint(job.cfg.model)
    assert job.cfg.model.label_smoothing == 0.2
    with pytest.raises(UsageError, match=r"~ takes away .* Got ~model\.tta;"):  # which is any network's
        Composer().jobs(["experiment=speed95", "model=resnet20", "~model.tta"])


# The process that composes


@pytest.fixture
def theirs(tmp_path) -> Path:
    """The configuration of another application."""
    folder = tmp_path / "theirs"
    folder.mkdir()
    (folder / "app.yaml").write_text("width: 3\n")
    return folder


def test_inside_another_hydra_application_all_of_its_state_is_as_before(theirs):
    with hydra.initialize_config_dir(str(theirs), job_name="theirs", version_base="1.2"):
        outer = GlobalHydra.instance().hydra
        (job,) = Composer().jobs(["model=resnet20"])
        with pytest.raises(UsageError, match="unknown key seeds"):
            Composer().jobs(["seeds=1"])
        assert job.cfg.choices.model == "resnet20"
        assert GlobalHydra.instance().hydra is outer
        assert VersionBase.instance().getbase() == hydra.version.Version("1.2")
        assert hydra.compose("app", ["width=4"]) == {"width": 4}
    assert not GlobalHydra.instance().is_initialized()


def test_inside_hydras_own_main_a_run_is_described(theirs, monkeypatch, capsys):
    seen = []

    def their_main(cfg):
        before = HydraConfig.get()
        seen.append(cli.train(["data=synthetic", "model=resnet20", "dry_run=true"]))
        seen.append(cfg.width)
        assert HydraConfig.get() is before
        assert "width" in hydra.compose("app")

    monkeypatch.setattr(sys, "argv", ["theirs", "width=5", "hydra.run.dir=there", "hydra/job_logging=none"])
    hydra.main(config_path=str(theirs), config_name="app", version_base="1.3")(their_main)()
    assert seen == [0, 5]
    assert "stages.2" in capsys.readouterr().out


def test_outside_of_any_application_nothing_of_hydra_is_left():
    Composer().jobs(["model=resnet20"])
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize(
    "resume",
    [["resume=${oc.env:RUN,auto}"], ["resume=NULL"], ['resume="auto"'], ["resume=outputs/x", "resume=null"], []],
)
def test_data_is_that_of_the_command_where_no_run_folder_is_named(resume):
    (job,) = Composer("train").jobs([*resume, "data.num_val=0"])
    assert job.cfg.data.num_val == 0
    assert job.cfg.resume in (None, "auto")


def test_data_is_that_of_the_run_where_a_folder_is_named(monkeypatch):
    monkeypatch.setenv("RUN", "outputs/x")
    for resume in ("resume=outputs/x", "resume=${oc.env:RUN,auto}", "resume=${output_dir}/x"):
        (job,) = Composer("train").jobs([resume, "data.num_val=0"])
        assert job.cfg.data.num_val == 5000


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["experiment=speed94", "augment=none"], ["augment.crop_padding=2, augment.flip=alternating, whatever"]),
        (["experiment=quickstart", "model=resnet20"], ["experiment=quickstart has model.depth=8, whatever model=resn"]),
        (["experiment=quickstart", "model=resnet20", "model.depth=20"], []),
        (["experiment=speed94", "data=cifar100"], []),
        (["experiment=speed94"], []),
        (["experiment=ten_minutes_sam", "optimizer@optimizer.base=adamw"], []),
        (["experiment=speed95", "model@selection.proxy=resnet20"], []),
        (["augment=none"], []),
    ],
)
def test_what_a_recipe_has_in_place_of_a_choice_beside_it_is_told(overrides, told):
    (job,) = Composer("train").jobs(overrides)
    assert len(job.notes) == len(told)
    assert all(text in note for text, note in zip(told, job.notes, strict=True))


def test_a_training_tells_it(cifar_train, capsys):
    assert cifar_train("experiment=speed94", "augment=none") == 0
    assert "warning: experiment=speed94 has augment." in capsys.readouterr().out
    train(overrides=[*TINY, "experiment=speed94", "augment=none"])
    assert "warning: experiment=speed94 has augment." in capsys.readouterr().out


def test_whatever_a_recipe_says_a_network_overfits_images_as_they_are():
    for recipe in ("speed94", "custom_resnet_onecycle"):
        (job,) = Composer("train").jobs([f"experiment={recipe}", "debug=overfit"])
        (plain,) = Composer("train").jobs(["augment=none"])
        moves = ("crop_padding", "flip", "policy", "cutout_size", "mixing")
        assert all(job.cfg.augment[key] == plain.cfg.augment[key] for key in moves)


def test_threads_compose_at_once():
    names = ["resnet20", "resnet32", "resnet44"] * 2

    def depth(name: str) -> int:
        (job,) = Composer().jobs([f"model={name}"])
        return job.cfg.model.depth

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(depth, names)) == [int(name.removeprefix("resnet")) for name in names]
    assert not GlobalHydra.instance().is_initialized()


@pytest.mark.parametrize("command", cli.COMMANDS)
def test_composing_warns_of_nothing(command):
    defaults_of.cache_clear()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        (job, *_) = Composer(command).jobs([])
        OmegaConf.to_yaml(job.cfg)
