"""Every YAML in conf/ composes, and each of its keys is an argument of what it names."""

from pathlib import Path

import pytest
from hydra.utils import instantiate

from cifar_resnet.command import CONF, Composer, check_arguments

CHOICES = sorted(f"{path.parent.relative_to(CONF)}={path.stem}" for path in CONF.glob("*/*.yaml"))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_names_only_arguments(choice):
    needed = ["data.test=mine.npz"] if choice == "data=files" else []
    (job,) = Composer("train").jobs([choice, *needed])
    check_arguments(job.cfg)
    if choice.startswith(("optimizer=", "scheduler=", "augment=")):
        instantiate(job.cfg[choice.split("=")[0]])


@pytest.mark.parametrize("command", sorted(path.stem for path in CONF.glob("*.yaml")))
def test_every_command_composes(command):
    if "hydra:" in (CONF / f"{command}.yaml").read_text():
        (job,) = Composer(command).jobs([])
        check_arguments(job.cfg)


def test_every_optimizer_has_lr_and_weight_decay_at_its_top():
    for path in Path(CONF / "optimizer").glob("*.yaml"):
        (job,) = Composer("train").jobs([f"optimizer={path.stem}"])
        assert {"lr", "weight_decay"} <= job.cfg.optimizer.keys()


def test_every_choice_says_what_it_is():
    for path in CONF.glob("model/*.yaml"):
        assert path.read_text().startswith("# "), path
