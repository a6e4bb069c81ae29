"""Images of another size against a plain loop, and which epoch has which."""

import math
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_equal, last_of, record_of, rows_of

from cifar_resnet import cli
from cifar_resnet.compose import Composer
from cifar_resnet.data import ProgressiveResize, Synthetic
from cifar_resnet.data.resizing import resized
from cifar_resnet.models import ResNet
from cifar_resnet.models.summary import num_macs
from cifar_resnet.train import train_run

PROGRESSIVE = ("resize=progressive", "resize.sizes=[16,24]", "resize.until=[0.25,0.5]", "trainer.max_epochs=4")


def bilinear(image: torch.Tensor, size: int) -> torch.Tensor:
    """Pixel by pixel: each of the new ones at its centre's place among the old. image: (C, H, W)."""
    channels, height, width = image.shape
    out = torch.empty(channels, size, size)
    for row in range(size):
        for column in range(size):
            y = min(max((row + 0.5) * height / size - 0.5, 0), height - 1)
            x = min(max((column + 0.5) * width / size - 0.5, 0), width - 1)
            top, left = math.floor(y), math.floor(x)
            below, right = min(top + 1, height - 1), min(left + 1, width - 1)
            upper = image[:, top, left] * (1 - (x - left)) + image[:, top, right] * (x - left)
            lower = image[:, below, left] * (1 - (x - left)) + image[:, below, right] * (x - left)
            out[:, row, column] = upper * (1 - (y - top)) + lower * (y - top)
    return out


@pytest.mark.parametrize("size", [8, 24, 28, 31])
def test_images_of_another_size_equal_a_plain_loop(size):
    images = torch.randn(3, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    found = resized(images, size)
    torch.testing.assert_close(found, torch.stack([bilinear(image, size) for image in images]), rtol=1e-4, atol=1e-4)
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_images_of_their_own_size_are_left_alone():
    images = torch.randn(3, 3, 32, 32)
    assert resized(images, 32) is images


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"epochs": 9}, [24] * 3 + [28] * 3 + [None] * 3),
        ({"epochs": 8, "sizes": [20], "until": [0.75]}, [20] * 6 + [None] * 2),
        ({"epochs": 2, "sizes": [16, 20, 24], "until": [0.1, 0.6, 0.7]}, [20, None]),
        ({"epochs": 1}, [None]),
        ({"epochs": 4, "until": [0.5, 0.95]}, [24, 24, 28, None]),
    ],
)
def test_each_epoch_has_the_size_of_its_phase(options, expected):
    resize = ProgressiveResize(**options)
    assert [resize.size_in(epoch) for epoch in range(options["epochs"])] == expected


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"sizes": [24]}, r"^resize.until says where .* Got \[0.33, 0.67\] for \[24\]"),
        ({"until": [0.7, 0.3]}, r"^resize.until must rise.* Got \[0.7, 0.3\]"),
        ({"until": [0.5, 0.5]}, "^resize.until must rise"),
        ({"until": [0.5, 1.0]}, r"^until.* Got 1.0"),
        ({"sizes": [24, 4]}, "^sizes.* Got 4"),
    ],
)
def test_impossible_phases_are_refused(options, text):
    with pytest.raises(ValueError, match=text):
        ProgressiveResize(**options)


def test_sizes_above_the_images_own_are_refused():
    Synthetic(resize=ProgressiveResize([32], [0.5]))
    with pytest.raises(ValueError, match=r"^resize.sizes must not be larger than the images. Got 40 for 32 pixels"):
        Synthetic(resize=ProgressiveResize([40], [0.5]))


def test_training_images_shrink_and_validation_and_test_do_not(cifar_train, run_dirs, monkeypatch):
    seen = {True: [], False: []}
    forward = ResNet.forward

    def note(self, images):
        if len(images) > 1:  # of one image are trials, whether the network can take the size
            assert images.is_contiguous(memory_format=torch.channels_last)
            seen[self.training].append(images.shape[-1])
        return forward(self, images)

    monkeypatch.setattr(ResNet, "forward", note)
    assert cifar_train(*PROGRESSIVE) == 0
    assert seen[True] == [16] * 5 + [24] * 5 + [32] * 10
    assert set(seen[False]) == {32}
    told = "points either way; 16 pixels up to epoch 1, 24 up to epoch 2\n"
    assert told in next(Path().glob("outputs/*/*/train.log")).read_text()
    monkeypatch.undo()
    record, network = record_of(*run_dirs()), ResNet(depth=8, widths=[4, 8, 8], shortcut="pad")
    assert record["images_by_size"] == {"16": 200, "24": 200, "32": 400}
    expected = sum(6 * int(n) * num_macs(network, (3, size, size)) for size, n in ((16, 200), (24, 200), (32, 400)))
    assert record["training_flops"] == expected


@pytest.mark.slow
@pytest.mark.parametrize("options", [["graph=true", "augment=cutmix"], ["graph=false"]])
def test_stopped_within_a_phase_it_goes_on_bit_for_bit(cifar_train, tmp_path, send, options):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert cifar_train(*PROGRESSIVE, *options[1:], "graph=false", f"run_dir={whole}") == 0
    send(3)
    assert cifar_train(*PROGRESSIVE, *options, f"run_dir={resumed}") == 143
    for step in (8, 14):
        send(step)
        assert cli.train([f"resume={resumed}"]) == 143
    send(None)
    assert cli.train([f"resume={resumed}"]) == 0
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(last_of(whole)[key], last_of(resumed)[key], key)
    records = [record_of(run_dir) for run_dir in (whole, resumed)]
    assert records[0]["images_by_size"] == records[1]["images_by_size"] == {"16": 200, "24": 200, "32": 400}
    assert [row["train/loss"] for row in rows_of(whole)] == [row["train/loss"] for row in rows_of(resumed)]


@pytest.mark.slow
def test_networks_side_by_side_shrink_their_images_as_alone(cifar_train, run_dirs, monkeypatch):
    assert cifar_train(*PROGRESSIVE, "seed=1") == 0
    assert cifar_train(*PROGRESSIVE, "ensemble.size=2") == 0
    alone, member = run_dirs()[0], next(run_dir for run_dir in run_dirs() if run_dir.name.endswith("seed-1"))
    for key in ("images", "images_by_size", "training_flops"):
        assert record_of(alone)[key] == record_of(member)[key], key
    losses = [[float(row["train/loss"]) for row in rows_of(run_dir)] for run_dir in (alone, member)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)


def test_a_network_that_cannot_take_a_size_is_named_before_anything_is_written(cifar_train, run_dirs, capsys):
    options = ("model=speednet", "~model.depth", "model.widths=[4,4,4,4]", "resize=progressive", "resize.sizes=[8,16]")
    assert cli.train([*(text for text in TINY if not text.startswith("model.")), *options[0:1], *options[2:]]) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "leaves 7 pixels of 8" in error
    assert not run_dirs()


@pytest.mark.slow
def test_a_compiled_network_is_compiled_once_a_size(monkeypatch):
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    monkeypatch.setattr(ResNet, "compile", lambda self: torch.nn.Module.compile(self, backend=backend))
    (job,) = Composer("train").jobs([*TINY, *PROGRESSIVE, "compile=true", "data.num_val=0", "test=false"])
    torch._dynamo.reset()
    train_run(job.cfg)
    assert 2 <= len(compiled) <= 3  # one may serve two sizes
