"""Every YAML in conf/ composes, and each of its keys is an argument of what it names."""

from pathlib import Path

import pytest
from hydra.utils import instantiate

from cifar_resnet import limits
from cifar_resnet.command import CONF, NOT_FOR_USERS, Composer, arguments, check_arguments, leaves, select

CHOICES = sorted(f"{path.parent.relative_to(CONF)}={path.stem}" for path in CONF.glob("*/*.yaml"))


@pytest.mark.parametrize("choice", CHOICES)
def test_every_choice_composes_and_names_only_arguments(choice):
    needed = ["data.test=mine.npz"] if choice == "data=files" else []
    (job,) = Composer("train").jobs([choice, *needed])
    check_arguments(job.cfg)
    if choice != "precision=16-mixed":  # which wants a GPU
        limits.check(job.cfg, files=False)
    if choice.startswith(("optimizer=", "scheduler=", "augment=")):
        instantiate(job.cfg[choice.split("=")[0]])


GIVEN_BY_US = {
    "num_classes", "optimizer", "scheduler", "distillation", "augment", "params", "total_steps", "accelerator",
    "train", "test",  # of an image folder
}  # fmt: skip
USELESS_HERE = {
    "barebones", "enable_autolog_hparams", "limit_predict_batches", "model_registry",
    "reload_dataloaders_every_n_epochs",
}  # fmt: skip


@pytest.mark.parametrize("choice", CHOICES)
def test_every_argument_of_what_is_ours_is_a_key(choice):
    """Without which a setting behind + could not be refused as unknown before anything is imported."""
    (job,) = Composer("train").jobs([choice, *(["data.test=mine.npz"] if choice == "data=files" else [])])
    for key in leaves(job.cfg):
        node = select(job.cfg, key)
        target = node.get("_target_", "") if isinstance(node, dict) else ""
        if target.startswith("cifar_resnet.") and target != "cifar_resnet.optim.SGD":
            assert arguments(target).keys() <= node.keys() | GIVEN_BY_US, key
        if target == "lightning.pytorch.Trainer":
            assert arguments(target).keys() <= node.keys() | NOT_FOR_USERS.keys() | USELESS_HERE
        if target == "lightning.pytorch.loggers.TensorBoardLogger":
            assert arguments(target).keys() <= node.keys() | {"root_dir", "log_dir", "comment", "purge_step"}


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
