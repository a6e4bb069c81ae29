import os
from pathlib import Path

import pytest
import torch

from cifar_resnet import train

TINY = (
    "data=synthetic", "data.num_train=240", "data.num_val=40", "data.num_test=50", "data.batch_size=40",
    "model=resnet_cifar", "model.depth=8", "model.widths=[4,8,8]", "trainer.max_epochs=1", "precision=32-true",
)  # fmt: skip


@pytest.fixture(autouse=True)
def one_thread_each():
    torch.set_num_threads(1)  # pytest-xdist runs the tests on all cores


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(train.RUN_DIR_VARIABLE, raising=False)


@pytest.fixture
def cifar_train(tmp_path):
    """Run cifar-train in this process on a tiny network and data set; returns the exit code."""

    def run(*overrides: str) -> int:
        return train.main([*TINY, *overrides])

    return run


@pytest.fixture
def run_dirs(tmp_path):
    """The run folders under outputs/, oldest first."""

    def find() -> list[Path]:
        return sorted((path.parent for path in tmp_path.glob("outputs/**/config.yaml")), key=os.path.getctime)

    return find


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    root = Path(os.environ.get("CIFAR_RESNET_DATA", Path(__file__).parents[1] / "data"))
    if not (root / "cifar-10-batches-py" / "test_batch").exists():
        pytest.skip(f"needs CIFAR-10 in {root}")
    return root
