"""Test-time augmentation against plain loops."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import record_of

from cifar_resnet import checkpoints
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
