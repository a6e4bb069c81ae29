"""An optimizer and a network of one's own, in a folder of one's own: nothing of this package is touched."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, record_of, write_files
from PIL import Image

from cifar_resnet import cli, load
from cifar_resnet.data import Synthetic

NETWORK = '''
from annotated_types import Ge
from torch import Tensor, nn
from typing import Annotated

from cifar_resnet.models import Classifier


class TwoLayers(Classifier):
    """One convolution, one linear layer."""

    def __init__(self, channels: Annotated[int, Ge(1)] = 8, num_classes: int = 10, **of_every_network):
        super().__init__(num_classes=num_classes, **of_every_network)
        self.conv = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images))
'''
FILES = {
    "my_networks.py": NETWORK,
    "mine/model/mine.yaml": "defaults: [/classifier@_here_, _self_]\n_target_: my_networks.TwoLayers\nchannels: 4\n",
    "mine/optimizer/rmsprop.yaml": "_target_: torch.optim.RMSprop\n_partial_: true\nlr: 0.01\nmomentum: 0.5\n",
}
MINE = ("--config-dir", "mine", "optimizer=rmsprop", "model=mine")


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    write_files(tmp_path, FILES)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_networks", None)


def train(*overrides: str) -> int:
    return cli.train([*(text for text in TINY if not text.startswith("model")), *MINE, *overrides])


def test_they_train_evaluate_predict_and_export(own_files, run_dirs):
    assert train("optimizer.lr=0.005") == 0
    (run_dir,) = run_dirs()
    record = record_of(run_dir)
    assert record["network"] == "mine"
    assert record["parameters"] == 4 * 3 * 9 + 4 + 4 * 10 + 10
    assert record["config"]["optimizer"] == {
        "_target_": "torch.optim.RMSprop", "_partial_": True, "lr": 0.005, "momentum": 0.5,
    }  # fmt: skip

    network = load(run_dir)
    images, labels = Synthetic(num_test=50).read(train=False)
    probabilities = network.predict(images)
    assert type(network).__name__ == "TwoLayers"
    assert (probabilities.argmax(1) == labels).float().mean().item() == pytest.approx(record["metrics"]["test/acc"])
    assert torch.allclose(probabilities.sum(1), torch.ones(50))

    checkpoint = f"checkpoint={run_dir}"
    assert cli.evaluate([checkpoint, "calibrate=false"]) == 0
    assert cli.export([checkpoint, "formats=[safetensors]"]) == 0
    assert (run_dir / "export" / "model.safetensors").exists()
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save("picture.png")
    assert cli.predict([checkpoint, "input=picture.png", "output=found.csv", "top_k=1"]) == 0
    assert Synthetic.classes[probabilities[0].argmax()] in Path("found.csv").read_text()


def test_a_range_beside_its_argument_is_held_like_one_of_ours(own_files, capsys):
    assert train("model.channels=0") == 2
    assert "model.channels must be a whole number, 1 or more. Got 0" in capsys.readouterr().err
    assert train("optimizer.momentum=2") == 2
    assert "optimizer.momentum must be a number from 0 to below 1. Got 2" in capsys.readouterr().err


def test_what_their_constructors_do_not_take_is_an_unknown_key(own_files, capsys):
    assert train("+model.chanels=3") == 2
    assert "unknown key model.chanels. Did you mean model.channels?" in capsys.readouterr().err
    assert train("+optimizer.moment=0.5") == 2
    assert "unknown key optimizer.moment. Did you mean optimizer.momentum?" in capsys.readouterr().err


def test_a_resumed_run_needs_the_folder_no_more_but_to_hear_whose_code_it_may_name(own_files, run_dirs, crash, capsys):
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        train("trainer.max_epochs=2")
    crash(None)
    (run_dir,) = run_dirs()
    assert cli.train([f"resume={run_dir}"]) == 2
    assert "Got model._target_=my_networks.TwoLayers; if you trust it, add" in capsys.readouterr().err
    assert cli.train([f"resume={run_dir}", "trust=[my_networks]"]) == 0
    assert record_of(run_dir)["epochs"] == 2


def test_a_network_derived_from_one_of_ours_is_known_to_its_checkpoints(tmp_path, monkeypatch, run_dirs):
    (tmp_path / "my_resnet.py").write_text(
        "from cifar_resnet.models import ResNet\nclass Doubled(ResNet):\n"
        "    def forward(self, images):\n        return 2 * super().forward(images)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.train([*TINY, "model._target_=my_resnet.Doubled"]) == 0
    (run_dir,) = run_dirs()
    assert type(load(run_dir)).__name__ == "Doubled"
    sys.modules.pop("my_resnet")


@pytest.mark.slow
def test_a_way_of_ones_own_to_learn_from_a_teacher(tmp_path, monkeypatch, trained, run_dirs):
    (tmp_path / "my_teaching.py").write_text(
        "from cifar_resnet.models import Distillation\nclass Ignored(Distillation):\n"
        "    def __call__(self, images, logits, loss):\n        return loss\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.train([*TINY, f"distill.teacher={trained}", "distill._target_=my_teaching.Ignored"]) == 0
    assert cli.train([*TINY, f"distill.teacher={trained}", "distill.weight=0"]) == 0
    losses = [record_of(run_dir)["metrics"]["train/loss"] for run_dir in run_dirs()]
    assert losses[0] == losses[1]
