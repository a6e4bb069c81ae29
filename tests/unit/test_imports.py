"""Imports go one way, as pyproject.toml's contracts say: and the contracts would notice if they did not."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cifar_resnet
from cifar_resnet import train

ROOT = Path(cifar_resnet.__file__).parents[1]


def test_the_ladder_of_a_training_fits_on_two_screens():
    assert len(Path(train.__file__).read_text().splitlines()) <= 150


@pytest.fixture
def copy(tmp_path) -> Path:
    """The package by itself, with its contracts."""
    shutil.copytree(ROOT / "cifar_resnet", tmp_path / "cifar_resnet", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def lint_imports(folder: Path) -> subprocess.CompletedProcess:
    command = [str(Path(sys.executable).with_name("lint-imports")), "--no-cache"]
    environment = os.environ | {"PYTHONPATH": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_contracts_are_kept(copy):
    done = lint_imports(copy)
    assert done.returncode == 0, done.stdout
    assert "0 broken" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "planted", "broken"),
    [
        ("models/tta.py", "from cifar_resnet import data\n", "models.tta -> cifar_resnet.data"),
        ("optim/sgd.py", "\n\ndef late():\n    from cifar_resnet import models\n", "optim.sgd -> cifar_resnet.models"),
        ("runs.py", "\n\ndef late():\n    import torch\n", "runs -> torch"),
        ("results/page.py", "from cifar_resnet.evaluate import facts\n", "results.page -> cifar_resnet.evaluate"),
    ],
)
def test_an_import_down_the_list_is_noticed_even_within_a_function(copy, module, planted, broken):
    path = copy / "cifar_resnet" / module
    path.write_text(path.read_text() + planted)
    done = lint_imports(copy)
    assert done.returncode == 1, done.stdout
    assert broken in done.stdout
