"""Every command in the README runs: trainings on a tiny network and data set."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import TINY

from cifar_resnet import design, find_lr, search, train

ROOT = Path(train.__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line.split("  #")[0].strip() for kind, block in BLOCKS if kind == "bash" for line in block.splitlines()]
TRAININGS = [line for line in COMMANDS if line.startswith("cifar-train")]
LEARNING_RATES = [line for line in COMMANDS if line.startswith(("cifar-find-lr", "cifar-search"))]
DESIGNS = [line for line in COMMANDS if line.startswith("cifar-design")]
DATA = ("data=", "data.root=", "data.image_size=", "data.num_val=", "data.batch_size=", "trainer.max_epochs=", "model=")


def trained_small(line: str, run_dir: Path | None) -> list[str]:
    """The command's arguments, with the network, the data and the length of the training cut down."""
    arguments = shlex.split(line.replace("outputs/train/<run folder>", str(run_dir)))[1:]
    if {"--help", "--cfg"} & set(arguments) or any(argument.startswith("resume=") for argument in arguments):
        return arguments
    kept = [argument for argument in arguments if not argument.startswith(DATA) or argument == "data.num_val=0"]
    depths = [argument for argument in kept if argument.startswith("model.depth=")]
    given = {text.split("=")[0] for text in kept if text not in depths}
    tiny = [setting for setting in TINY if setting.split("=")[0] not in given]
    return [*(text for text in kept if text not in depths), *tiny, *(["model.depth=8,14"] if depths else [])]


@pytest.mark.parametrize("line", TRAININGS)
def test_cifar_train_lines_run(line, cifar_train, run_dirs):
    if "<run folder>" in line:
        cifar_train()
    before = run_dirs()
    try:
        code = train.main(trained_small(line, before[0] if before else None))
    except SystemExit as ended:  # Hydra's way of ending --help
        code = ended.code
    assert code == 0


@pytest.mark.parametrize("line", DESIGNS)
def test_cifar_design_lines_run(line):
    assert design.main([*shlex.split(line)[1:], "blocks_per_stage=[2]"]) == 0


@pytest.mark.parametrize("line", LEARNING_RATES)
def test_learning_rate_lines_run(line):
    is_search = line.startswith("cifar-search")
    short = ["search.rounds=1", "search.trials=2"] if is_search else ["range_test.steps=40"]
    kept = [argument for argument in shlex.split(line)[1:] if not argument.startswith(("model=", "search.trials="))]
    assert (search if is_search else find_lr).main([*kept, *TINY, *short]) == 0


@pytest.mark.parametrize("line", [line for line in COMMANDS if line not in (*TRAININGS, *DESIGNS, *LEARNING_RATES)])
def test_other_lines_name_what_exists(line):
    words = shlex.split(line)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[0] == "tensorboard":
        assert Path(sys.executable).with_name("tensorboard").exists() or shutil.which("tensorboard")
    elif words[0] == "python":
        assert subprocess.run([sys.executable, *words[1:], "--help"], cwd=ROOT, capture_output=True).returncode == 0
    else:
        assert words == ["source", ".venv/bin/activate"]


def test_python_examples_run(cifar_train, run_dirs):
    cifar_train()
    examples = [block for kind, block in BLOCKS if kind == "python"]
    assert examples
    for example in examples:
        exec(example.replace("outputs/train/<run folder>", str(run_dirs()[0])), {})


def test_linked_files_exist():
    for link in re.findall(r"\]\(([^)]+)\)", README):
        if not link.startswith("http"):
            assert (ROOT / link).exists(), link


def test_promised_commands_are_there():
    assert "make quickstart" in COMMANDS
    assert "make test" in COMMANDS
    assert len(TRAININGS) >= 8
