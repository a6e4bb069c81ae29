"""Every YAML in conf/ composes; each of its keys is one annotated argument, and their defaults are the same."""

import ast
import functools
import inspect
import textwrap
from collections.abc import Callable, Iterator

import pytest
from helpers import one_in_four_quick
from hydra.utils import get_object, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationResolutionError

from cifar_resnet.build import sketch
from cifar_resnet.compose import CONF, Composer, Job
from cifar_resnet.constraints import RESERVED, TOP_LEVEL, check_config, hints_of, leaves, own_hints, select

CHOICES = sorted(f"{path.parent.relative_to(CONF)}={path.stem}" for path in CONF.glob("*/*.yaml"))
COMMANDS = sorted(path.stem for path in CONF.glob("*.yaml") if "hydra:" in path.read_text())
BASES = {  # files that other choices are made from, and the class whose arguments they list
    "classifier.yaml": "cifar_resnet.models.Classifier",
    "datamodule.yaml": "cifar_resnet.data.DataModule",
    "resnet.yaml": "cifar_resnet.models.ResNet",
}
NEEDED = {
    "design": ["max_params=1e6"],
    "evaluate": ["checkpoint=some.ckpt"],
    "export": ["checkpoint=some.ckpt"],
    "predict": ["checkpoint=some.ckpt", "input=some.png"],
}
GIVEN_BY_US = {
    "num_classes", "optimizer", "scheduler", "distillation", "selection", "proxy", "augment", "resize", "params",
    "total_steps", "accelerator", "train", "test",  # of an image folder
}  # fmt: skip
# what a choice has no default for
WITHOUT_DEFAULT = {
    "data=files": ["data.test=mine.npz"],
    "data=medmnist": ["data.root=mine.npz"],
    "model=wrapped": ["model.net._target_=torchvision.models.shufflenet_v2_x0_5"],
}
# for want of a GPU, and of files
NOT_HERE = (
    "precision=16-mixed", "data=files", "data=image_folder", "data=kaggle_cifar10", "data=medmnist",
    "data=tiny_imagenet", "logger=mlflow", "logger=wandb",
)  # fmt: skip


@functools.cache
def composed(choice: str) -> Job:
    (job,) = Composer("train").jobs([choice, *WITHOUT_DEFAULT.get(choice, [])])
    return job


def targets_in(node: DictConfig) -> Iterator[tuple[str, DictConfig]]:
    """Every node of ours that says what it builds; no value is resolved."""
    if str(node.get("_target_", "")).startswith("cifar_resnet."):
        yield node["_target_"], node
    for key in node:
        child = node._get_node(key)
        if isinstance(child, DictConfig) and not child._is_missing():
            yield from targets_in(child)


def declarations() -> dict[str, list[tuple[str, DictConfig]]]:
    """By each class and function of ours: the file that lists its settings, and these, once for each node there."""
    found: dict[str, list] = {target: [] for target in BASES.values()}
    for path in sorted(CONF.rglob("*.yaml")):
        name, settings = str(path.relative_to(CONF)), OmegaConf.load(path)
        if name in BASES:
            found[BASES[name]].append((name, settings))
        for target, node in targets_in(settings):
            if target not in BASES.values():
                found.setdefault(target, []).append((name, node))
    return found


def function_of(target: str) -> Callable | None:
    """What takes the settings; None for a class of ours that leaves this to one that is not."""
    found = get_object(target)
    return vars(found).get("__init__") if inspect.isclass(found) else found


DECLARED = declarations()
OURS = sorted(target for target in DECLARED if function_of(target))


@pytest.mark.parametrize("choice", one_in_four_quick(CHOICES))
def test_every_choice_composes_names_only_arguments_and_can_be_built(choice):
    job = composed(choice)
    check_config(job.cfg)
    if choice not in NOT_HERE:
        sketch(job.cfg.copy())
    if choice.startswith(("optimizer=", "scheduler=", "augment=")):
        instantiate(job.cfg[choice.split("=")[0]])


@pytest.mark.parametrize("choice", one_in_four_quick(CHOICES))
def test_every_argument_of_what_is_ours_is_a_key(choice):
    """Without which a setting behind + could not be refused as unknown before anything is imported."""
    job = composed(choice)
    for key in leaves(job.cfg):
        node = select(job.cfg, key)
        target = node.get("_target_", "") if isinstance(node, dict) else ""
        if target.startswith("cifar_resnet.") and target != "cifar_resnet.optim.SGD":
            assert hints_of(target).keys() <= node.keys() | GIVEN_BY_US, key
        if target == "lightning.pytorch.Trainer":
            assert hints_of(target).keys() <= node.keys() | RESERVED.keys()
        if target == "lightning.pytorch.loggers.TensorBoardLogger":
            assert hints_of(target).keys() <= node.keys() | {"root_dir", "log_dir", "comment", "purge_step"}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_composes(command):
    check_config(Composer(command).jobs(NEEDED.get(command, []))[0].cfg)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_number_without_a_constructor_has_a_range(command):
    (job,) = Composer(command).jobs([])
    for key in leaves(job.cfg):
        parent = OmegaConf.select(job.cfg, key.rpartition(".")[0]) if "." in key else job.cfg
        value = None if OmegaConf.is_missing(parent, key.rpartition(".")[2]) else select(job.cfg, key)
        if type(value) in (int, float) and "_target_" not in parent:
            assert key in TOP_LEVEL, key


@pytest.mark.parametrize("target", OURS)
def test_a_setting_is_one_annotated_argument(target):
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function_of(target)))).body
    arguments = [argument for argument in [*node.args.args, *node.args.kwonlyargs] if argument.arg != "self"]
    assert node.args.vararg is None
    assert not [argument.arg for argument in arguments if argument.annotation is None]
    for base in getattr(get_object(target), "__mro__", ())[1:]:
        if base.__module__.startswith("cifar_resnet."):
            assert not {argument.arg for argument in arguments} & own_hints(base).keys(), base


@pytest.mark.parametrize("target", OURS)
def test_settings_of_more_than_a_kind_are_checked_by_whoever_takes_them(target):
    """By a line of its own, for those who call it themselves."""
    (node,) = ast.parse(textwrap.dedent(inspect.getsource(function_of(target)))).body
    annotations = {ast.unparse(argument.annotation) for argument in node.args.args if argument.annotation}
    if not annotations <= {"str", "str | None", "Optimizer", "int"}:
        assert f"check({target.rpartition('.')[2]}, locals())" in map(ast.unparse, node.body)


@pytest.mark.parametrize("target", OURS)
def test_a_setting_is_one_key_of_one_file(target):
    for name in own_hints(get_object(target)).keys() - GIVEN_BY_US:
        files = {file for file, node in DECLARED[target] if name in node.keys()}  # noqa: SIM118, for `in` leaves out ???
        assert len(files) == 1, f"{name} is in {files or 'none'}"


UNKNOWN = object()


def plain(settings: DictConfig, name: str) -> object:
    """A value as Python has it; UNKNOWN where another file says what it is."""
    try:
        value = settings[name]
    except InterpolationResolutionError:
        return UNKNOWN
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


@pytest.mark.parametrize("target", OURS)
def test_file_and_signature_give_the_same_default(target, monkeypatch):
    monkeypatch.delenv("CIFAR_RESNET_DATA", raising=False)
    for name, parameter in inspect.signature(function_of(target)).parameters.items():
        values = [plain(node, name) for _, node in DECLARED[target] if name in node]
        if parameter.default is inspect.Parameter.empty or len(values) != 1 or values == [UNKNOWN]:
            continue
        default = list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
        assert (values[0], type(values[0])) == (default, type(default)), name


def test_every_optimizer_has_lr_and_weight_decay_at_its_top():
    for choice in CHOICES:
        if choice.startswith("optimizer="):
            assert {"lr", "weight_decay"} <= composed(choice).cfg.optimizer.keys()


def test_every_choice_says_what_it_is():
    for path in CONF.glob("model/*.yaml"):
        assert path.read_text().startswith("# "), path


@pytest.mark.parametrize("command", ["predict", "evaluate", "export"])
def test_a_command_that_takes_few_groups_names_these_alone_with_all_their_choices(command):
    config = OmegaConf.load(CONF / f"{command}.yaml")
    groups = {group for entry in config.defaults if entry != "_self_" for group in entry}
    text = config.hydra.help.template.partition("Choices, as group=choice\n")[2].partition("Every setting")[0]
    assert {line.partition(": ")[0]: line.partition(": ")[2].split(", ") for line in text.split("\n") if line} == {
        group: sorted(path.stem for path in (CONF / group).glob("*.yaml")) for group in groups
    }
