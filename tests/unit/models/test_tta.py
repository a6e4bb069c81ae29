"""Test-time augmentation against plain loops."""

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import record_of

from cifar_resnet import checkpoints, cli
from cifar_resnet.data import Synthetic
from cifar_resnet.models.tta import log_probabilities, views


def shifted(image: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """Pixel (y, x) of the result is pixel (y + rows, x + columns), reflected at the borders. image: (C, H, W)."""
    padded = np.pad(image, ((0, 0), (1, 1), (1, 1)), mode="reflect")
    height, width = image.shape[1:]
    return padded[:, 1 + rows : 1 + rows + height, 1 + columns : 1 + columns + width]


def test_views_of_a_batch():
    images = torch.randn(3, 3, 8, 8)
    assert [weight for weight, _ in views(images, "none")] == [1.0]
    flip = views(images, "flip")
    assert sum(weight for weight, _ in flip) == 1
    assert torch.equal(flip[1][1][2], torch.from_numpy(images[2].numpy()[:, :, ::-1].copy()))
    both = views(images, "flip_shift")
    assert [weight for weight, _ in both] == [0.25, 0.25, 0.125, 0.125, 0.125, 0.125]
    for place, (rows, columns) in ((2, (-1, -1)), (4, (1, 1))):
        expected = shifted(images[1].numpy(), rows, columns)
        assert np.array_equal(both[place][1][1], expected)
        assert np.array_equal(both[place + 1][1][1], expected[:, :, ::-1])


@pytest.mark.parametrize("tta", ["none", "flip", "flip_shift"])
def test_log_probabilities_are_those_of_the_weighted_mean(tta):
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5))
    images = torch.randn(4, 3, 8, 8)
    with torch.no_grad():
        expected = sum(weight * network(view).softmax(1) for weight, view in views(images, tta))
        found = log_probabilities(network, images, tta)
    assert torch.allclose(found.exp(), expected, atol=1e-6)


class Counting(torch.nn.Module):
    """Counts what it is asked about."""

    def __init__(self):
        super().__init__()
        self.layers, self.count = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)), 0

    def forward(self, images):
        self.count += len(images)
        return self.layers(images)


@pytest.mark.parametrize("below", [0.01, 0.3, 0.4, 0.5, 0.999])
def test_only_images_below_a_probability_are_asked_about_again(below):
    torch.manual_seed(0)
    network, images = Counting(), torch.randn(50, 3, 8, 8)
    expected, unsure = [], 0
    with torch.no_grad():
        for image in images.split(1):
            probabilities = network(image).softmax(1)
            if probabilities.max() < below:
                unsure += 1
                each = views(image, "flip_shift")
                probabilities = sum(weight * network(view).softmax(1) for weight, view in each)
            expected.append(probabilities)
    network.count = 0
    found = log_probabilities(network, images, "flip_shift", below).exp()
    assert torch.allclose(found, torch.cat(expected), atol=1e-6)
    assert network.count == 50 + 5 * unsure
    parts = torch.cat([log_probabilities(network, some, "flip_shift", below) for some in images.split(7)])
    assert torch.allclose(parts.exp(), found, atol=1e-6)  # whatever batch it lies in
    assert {0.01: unsure == 0, 0.999: unsure == 50}.get(below, 0 < unsure < 50)


def test_networks_in_one_are_each_unsure_of_their_own_images():
    torch.manual_seed(0)
    networks = [torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 5)) for _ in range(3)]
    images = torch.randn(40, 3, 8, 8)

    class Together(torch.nn.Module):
        def forward(self, images):
            return torch.cat([network(own) for network, own in zip(networks, images.chunk(3), strict=True)])

    expected = [log_probabilities(network, images, "flip", 0.4) for network in networks]
    found = log_probabilities(Together(), images.repeat(3, 1, 1, 1), "flip", 0.4, members=3)
    assert torch.allclose(found, torch.cat(expected), atol=1e-6)


def test_evaluation_and_predictions_ask_as_the_network_was_told_to(cifar_train, run_dirs, test_images):
    assert cifar_train("model.tta=flip_shift", "model.tta_below=0.12") == 0
    (run_dir,) = run_dirs()
    network, (images, labels) = checkpoints.load(run_dir), test_images(run_dir)
    expected = log_probabilities(network, images, "flip_shift", 0.12)
    loss = F.nll_loss(expected, labels).item()
    assert record_of(run_dir)["metrics"]["test/loss"] == pytest.approx(loss, rel=1e-4)
    assert loss != pytest.approx(F.nll_loss(log_probabilities(network, images, "flip_shift"), labels).item(), rel=1e-6)
    assert cli.evaluate([f"checkpoint={run_dir}"]) == 0
    found = json.loads((run_dir / "evaluation.json").read_text())
    assert (found["tta"], found["tta_below"]) == ("flip_shift", 0.12)
    assert found["scores"]["loss"] == pytest.approx(loss, rel=1e-4)
    assert "flip_shift, of images below a probability of 0.12" in (run_dir / "page.html").read_text()
    pixels = Synthetic(num_train=240, num_test=50).read(train=False)[0]
    torch.testing.assert_close(network.predict(pixels), expected.exp(), rtol=1e-4, atol=1e-5)


def test_validation_and_test_ask_about_each_view(cifar_train, run_dirs, test_images):
    assert cifar_train("model.tta=flip_shift") == 0
    (run_dir,) = run_dirs()
    network = checkpoints.load(run_dir)
    assert network.tta == "flip_shift"
    images, labels = test_images(run_dir)
    with torch.no_grad():
        expected = log_probabilities(network, images, "flip_shift")
    metrics = record_of(run_dir)["metrics"]
    assert metrics["test/loss"] == pytest.approx(F.nll_loss(expected, labels).item(), rel=1e-4)
    assert metrics["test/loss"] != pytest.approx(F.cross_entropy(network(images), labels).item(), rel=1e-4)
