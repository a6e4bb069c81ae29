"""cifar-export: each format predicts as the network does, without this package."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import record_of
from safetensors import safe_open

from cifar_resnet import cli, export, load
from cifar_resnet.data import Synthetic


def exported(trained: Path, *arguments: str) -> int:
    return cli.export([f"checkpoint={trained}", "output=exported", *arguments])


def expected(trained: Path) -> tuple[torch.Tensor, torch.Tensor]:
    images, _ = Synthetic(num_test=10).read(train=False)
    return images.contiguous() / 255, load(trained).predict(images).clone()


def test_safetensors_hold_weights_and_what_rebuilds_them(trained):
    assert exported(trained, "formats=[safetensors]") == 0
    network = load(trained)
    with safe_open("exported/model.safetensors", "pt") as file:
        names = file.keys()
        assert set(names) == set(network.state_dict())
        assert all(torch.equal(file.get_tensor(name), network.state_dict()[name]) for name in names)
        about = {key: json.loads(value) for key, value in file.metadata().items()}
    assert about["hyper_parameters"]["depth"] == 8
    assert about["data"]["classes"] == Synthetic.classes
    assert about["config"]["choices"]["model"] == "resnet_cifar"


@pytest.mark.slow
def test_torch_export_needs_nothing_of_this_package(trained):
    assert exported(trained, "formats=[torch]") == 0
    images, probabilities = expected(trained)
    torch.save(images, "images.pt")
    code = """
import sys, torch
program = torch.export.load("exported/model.pt2").module()
torch.save(program(torch.load("images.pt")).softmax(1), "predictions.pt")
assert "cifar_resnet" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.allclose(torch.load("predictions.pt"), probabilities, atol=1e-4)


def test_onnx_runs_in_its_own_runtime(trained):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert exported(trained, "formats=[onnx]") == 0
    images, probabilities = expected(trained)
    session = onnxruntime.InferenceSession("exported/model.onnx")
    for count in (1, 10):
        (logits,) = session.run(None, {"images": images[:count].numpy()})
        assert np.allclose(torch.from_numpy(logits).softmax(1), probabilities[:count], atol=1e-4)


def test_the_model_card_gives_the_scores_of_the_record(trained):
    assert exported(trained, "formats=[safetensors]") == 0
    card = Path("exported/README.md").read_text()
    metrics = record_of(trained)["metrics"]
    assert f"| test | {metrics['test/acc']:.2%} | {metrics['test/loss']:.4f} |" in card
    assert "disk, ring, square" in card


def test_the_model_card_of_another_epoch_has_no_scores(trained):
    own = Path(shutil.copytree(trained, "own"))
    for name in ("best", "last"):
        path = own / "checkpoints" / f"{name}.ckpt"
        torch.save(torch.load(path, weights_only=True) | {"epoch": 7}, path)
        assert cli.export([f"checkpoint={path}", "formats=[safetensors]", "output=other"]) == 0
        assert "| test |" not in Path("other/README.md").read_text()


def test_what_predicts_differently_is_not_left(trained, capsys, monkeypatch):
    write = export.write_safetensors

    def wrong(portable, images, path):
        exported = write(portable, images, path)
        return lambda batch: exported(batch) + 0.1

    monkeypatch.setattr(export, "write_safetensors", wrong)
    assert exported(trained, "formats=[safetensors]") == 2
    assert "predicts differently. Got answers 0.1 apart" in capsys.readouterr().err
    assert not list(Path("exported").glob("*.safetensors"))
