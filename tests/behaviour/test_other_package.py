"""Somebody else's package, installed beside this one: a network that knows nothing of it, and a data set."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from helpers import record_of, write_files
from PIL import Image

from cifar_resnet.data import Synthetic

FILES = {
    "pyproject.toml": """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "birds"
version = "1.0"
[project.entry-points.cifar_resnet]
networks = "birds.networks"
[tool.hatch.build.targets.wheel]
packages = ["birds"]
""",
    "birds/__init__.py": "",
    "birds/networks.py": """
from torch import nn

class Small(nn.Sequential):
    def __init__(self, width: int, num_classes: int):
        super().__init__(nn.Conv2d(3, width, 3, 2), nn.BatchNorm2d(width), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                         nn.Flatten(), nn.Linear(width, num_classes))
""",
    "birds/data.py": """
import torch
from cifar_resnet.data import DataModule

class Shades(DataModule):
    classes, num_classes, image_size = ["dark", "light"], 2, 16

    def __init__(self, count: int = 120, **shared):
        super().__init__(**shared)
        self.count = count

    def read(self, train):
        generator = torch.Generator().manual_seed(int(train))
        labels = torch.arange(self.count if train else 40) % 2
        images = torch.randint(100, (len(labels), 3, 16, 16), generator=generator) + 150 * labels[:, None, None, None]
        return images.to(torch.uint8), labels
""",
    "birds/conf/data/shades.yaml": "defaults: [/datamodule@_here_, _self_]\n_target_: birds.data.Shades\ncount: 120\n",
}
NETWORK = ("model=wrapped", "model.net._target_=birds.networks.Small", "+model.net.width=8")
TRAINING = ("data=shades", "data.batch_size=20", "optimizer.lr=0.1", "precision=32-true", "page=false")


@pytest.mark.slow
def test_it_trains_resumes_evaluates_predicts_and_exports_from_the_command_line(tmp_path):
    write_files(tmp_path / "source", FILES)
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=tmp_path / "source", check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    conf = ["--config-dir", str(tmp_path / "site" / "birds" / "conf")]

    def run(command: str, *arguments: str) -> str:
        program = f"import sys; from cifar_resnet import cli; sys.exit(cli.{command}())"
        done = subprocess.run(
            [sys.executable, "-c", program, *conf, *arguments],
            env=os.environ | {"PYTHONPATH": str(tmp_path / "site"), "CUDA_VISIBLE_DEVICES": ""},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    run("train", *NETWORK, *TRAINING, "run_dir=first", "trainer.max_epochs=3")
    record = record_of(Path("first"))
    assert record["metrics"]["test/acc"] == 1
    # as if it had been stopped before its end
    for name in ("result.json", "predictions.npz"):
        Path("first", name).unlink()
    assert "3/3" not in run("train", "resume=first")
    assert record_of(Path("first"))["metrics"]["test/acc"] == 1
    assert "100.00% of 40 images" in run("evaluate", "checkpoint=first")
    images, _ = Synthetic(num_test=10).read(False)
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).point(lambda value: 250).save("light.png")
    assert "light.png,light" in run("predict", "checkpoint=first", "input=light.png", "top_k=1")
    run("export", "checkpoint=first", "formats=[safetensors,torch]")
    assert Path("first/export/model.pt2").exists()
