import collections
import os
import signal
from collections.abc import Iterator
from pathlib import Path

# to the last bit the tests compare, which a GPU gives only where a run asks for it; test_on_cuda.py is for GPUs
if not os.environ.get("CIFAR_RESNET_TEST_GPU"):
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest
import torch
from fake_cuda import Watch, fake_cuda
from helpers import TINY, last_of

from cifar_resnet import cli
from cifar_resnet.data import Synthetic
from cifar_resnet.models import Classifier


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Of a test marked quick_cases(n), all cases but the first n are slow."""
    seen = collections.Counter()
    for item in items:
        if marker := item.get_closest_marker("quick_cases"):
            test = item.nodeid.partition("[")[0]
            seen[test] += 1
            if seen[test] > marker.args[0]:
                item.add_marker("slow")


@pytest.fixture(autouse=True)
def one_thread_each():
    torch.set_num_threads(1)  # pytest-xdist runs the tests on all cores


@pytest.fixture(autouse=True)
def interrupts_are_heard():
    """A shell has what it starts in the background ignore them."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def cifar_train(tmp_path):
    """Run cifar-train in this process on a tiny network and data set; returns the exit code."""

    def run(*overrides: str) -> int:
        given = {text.partition("=")[0] for text in overrides if "-m" in overrides}
        return cli.train([*(text for text in TINY if text.partition("=")[0] not in given), *overrides])

    return run


@pytest.fixture
def run_dirs(tmp_path):
    """The run folders under outputs/, oldest first."""

    def find() -> list[Path]:
        return sorted((path.parent for path in tmp_path.glob("outputs/**/config.yaml")), key=os.path.getctime)

    return find


@pytest.fixture(scope="session")
def sweep_dir(tmp_path_factory) -> Path:
    """A sweep over two seeds of a tiny network, which the tests only read."""
    torch.set_num_threads(1)
    outputs = tmp_path_factory.mktemp("outputs")
    assert cli.train(["-m", *TINY, "trainer.max_epochs=2", f"output_dir={outputs}", "seed=0,1"]) == 0
    return next(outputs.glob("train/sweep-*"))


@pytest.fixture(scope="session")
def trained(sweep_dir) -> Path:
    """One of its run folders."""
    return sweep_dir / "seed-0"


@pytest.fixture(scope="session")
def cifar10_root() -> Path:
    root = Path(os.environ.get("CIFAR_RESNET_DATA", Path(__file__).parents[1] / "data"))
    if not (root / "cifar-10-batches-py" / "test_batch").exists():
        pytest.skip(f"needs CIFAR-10 in {root}")
    return root


@pytest.fixture
def test_images():
    """The test images of `TINY`, normalised as a run's checkpoint says, and their labels."""

    def read(run_dir: Path) -> tuple[torch.Tensor, torch.Tensor]:
        images, labels = Synthetic(num_train=240, num_test=50).read(train=False)
        data = last_of(run_dir)["data"]
        mean, std = (torch.tensor(data[key])[:, None, None] for key in ("mean", "std"))
        return (images / 255 - mean) / std, labels

    return read


@pytest.fixture
def watch() -> Iterator[Watch]:
    """A CUDA device that is not there, and who waits for it."""
    with fake_cuda() as watch:
        yield watch


@pytest.fixture
def crash(monkeypatch):
    """Have training die at the start of an epoch, counted from 0, until called with None."""
    on_train_epoch_start = Classifier.on_train_epoch_start

    def at(epoch):
        def start(self):
            if self.current_epoch == epoch:
                raise RuntimeError("the power went out")
            on_train_epoch_start(self)

        monkeypatch.setattr(Classifier, "on_train_epoch_start", start)

    return at


@pytest.fixture
def send(monkeypatch):
    """Have this process get a signal at the start of a training step, counted from 1, until called with None.

    Before the step itself, of which no Python runs where it is one graph.
    """
    on_train_batch_start = Classifier.on_train_batch_start

    def at(step, number=signal.SIGTERM):
        def start_with_signal(self, batch, batch_idx):
            if self.trainer.global_step + 1 == step:
                os.kill(os.getpid(), number)
            return on_train_batch_start(self, batch, batch_idx)

        monkeypatch.setattr(Classifier, "on_train_batch_start", start_with_signal if step else on_train_batch_start)

    return at
