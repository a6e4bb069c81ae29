"""Ensembles against plain loops."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_resnet import cli, load
from cifar_resnet.data import Synthetic
from cifar_resnet.models import ResNet
from cifar_resnet.results.inference import Ensemble, mean_probability
from cifar_resnet.runs import find_checkpoints


def test_mean_probability_is_finite_where_probabilities_underflow():
    each = torch.tensor([[[0.0, -500.0]], [[0.0, -400.0]]])
    assert mean_probability(each)[0, 1] == pytest.approx(-400 - np.log(2), rel=1e-6)


def test_an_ensembles_member_predicts_as_in_its_own_test(sweep_dir, test_images):
    paths = find_checkpoints(sweep_dir)
    assert [path.parent.parent.name for path in paths] == ["seed-0", "seed-1"]
    ensemble = Ensemble(paths)
    images, _ = Synthetic(num_train=240, num_test=50).read(train=False)
    each = ensemble.log_probs(images, batch_size=7)
    for path, found in zip(paths, each, strict=True):
        network = load(path)
        with torch.no_grad():
            expected = network(test_images(path.parent.parent)[0]).softmax(1)
        assert torch.allclose(found.exp(), expected, atol=1e-5)


@pytest.mark.parametrize("command", ["evaluate", "predict"])
def test_a_copy_of_a_network_is_no_second_one(trained, tmp_path, command, capsys):
    shutil.copytree(trained, "copy")
    Image.new("RGB", (32, 32)).save("a.png")
    more = ["input=a.png"] if command == "predict" else []
    assert getattr(cli, command)([f"checkpoint=[{trained},copy]", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: a network counts once in an ensemble. Got copy")
    assert f"with the weights of {trained}" in line


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("key", ["classes", "image_size"])
@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_networks_of_other_classes_or_image_sizes_are_no_ensemble(sweep_dir, command, key, capsys):
    """Whose answers are to other questions."""
    shutil.copytree(sweep_dir, "sweep")
    path = Path("sweep/seed-1/checkpoints/best.ckpt")
    checkpoint = torch.load(path, weights_only=True)
    data = checkpoint["data"]
    data[key] = data[key][::-1] if key == "classes" else 24
    torch.save(checkpoint, path)
    Image.new("RGB", (32, 32)).save("a.png")
    more = {"predict": ["input=a.png"]}.get(command, [])
    assert getattr(cli, command)(["checkpoint=[sweep/seed-0,sweep/seed-1]", *more]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: an ensemble's networks share classes and image size. Got sweep/seed-1")
    assert f"with {key} {data[key]}, and sweep/seed-0" in line


def test_predictions_are_made_a_batch_at_a_time(trained, monkeypatch):
    """However many images there are: the whole set would need gigabytes."""
    sizes = []
    forward = ResNet.forward
    monkeypatch.setattr(ResNet, "forward", lambda self, images: sizes.append(len(images)) or forward(self, images))
    assert cli.evaluate([f"checkpoint={trained}", "batch_size=20", "output_dir=evaluated"]) == 0
    assert max(sizes) == 20
    # and validation images, for the temperature; one image more counts the multiply-adds
    assert sum(size for size in sizes if size > 1) == 50 + 40
    sizes.clear()
    np.savez("some.npz", images=np.zeros((45, 32, 32, 3), np.uint8))
    assert cli.predict([f"checkpoint={trained}", "input=some.npz", "batch_size=20"]) == 0
    assert (max(sizes), sum(sizes)) == (20, 45)
