"""Which GPU a process takes, on a machine that says it has several."""

import os

import pytest
import torch
from omegaconf import OmegaConf

from cifar_resnet import gpus
from cifar_resnet.gpus import VISIBLE, claim_gpu

ON_ONE = OmegaConf.create({"trainer": {"devices": 1, "accelerator": "auto"}})


@pytest.fixture
def take(monkeypatch, tmp_path):
    """The GPUs that another process gets to see, of so many; with what was visible before."""
    monkeypatch.setattr(gpus.tempfile, "gettempdir", lambda: str(tmp_path))
    held = []

    def by_another_process(count: int, visible: str | None = None, cfg=ON_ONE) -> str | None:
        monkeypatch.setattr(gpus, "_claimed", [])
        monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
        monkeypatch.delenv(VISIBLE) if visible is None else monkeypatch.setenv(VISIBLE, visible)
        claim_gpu(cfg)
        held.append(gpus._claimed)
        return os.environ.get(VISIBLE)

    monkeypatch.setenv(VISIBLE, "")
    yield by_another_process
    for lock in (lock for locks in held for lock in locks):
        lock.release()


def test_each_process_gets_a_gpu_of_its_own_and_then_they_share(take):
    assert [take(3) for _ in range(5)] == ["0", "1", "2", "0", "1"]


def test_a_user_without_a_name_gets_one_too(take, monkeypatch):
    """As in a container that runs by a number."""
    monkeypatch.setattr("getpass.getuser", lambda: {}["no such user"])
    assert take(2) == "0"


def test_only_what_is_visible_is_taken_by_its_own_name(take):
    assert [take(2, "5,GPU-3f") for _ in range(3)] == ["5", "GPU-3f", "5"]


def test_a_gpu_is_free_again_when_its_process_is_done(take):
    assert [take(2), take(2)] == ["0", "1"]
    gpus._claimed[0].release()
    assert take(2) == "1"


def test_a_process_keeps_its_gpu(take):
    assert take(2) == "0"
    claim_gpu(ON_ONE)
    assert os.environ[VISIBLE] == "0"


@pytest.mark.parametrize(
    ("count", "trainer"),
    [
        (1, {"devices": 1, "accelerator": "auto"}),
        (0, {"devices": 1, "accelerator": "auto"}),
        (4, {"devices": 2, "accelerator": "auto"}),
        (4, {"devices": [3], "accelerator": "gpu"}),
        (4, {"devices": 1, "accelerator": "cpu"}),
    ],
)
def test_nothing_is_chosen_where_there_is_no_choice(take, count, trainer):
    assert take(count, cfg=OmegaConf.create({"trainer": trainer})) is None
