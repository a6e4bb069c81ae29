"""Test-time augmentation, ensembles and predict, against plain loops."""

import numpy as np
import pytest
import torch
from PIL import Image

from cifar_resnet import checkpoints, load
from cifar_resnet.data import Synthetic
from cifar_resnet.inference import Ensemble, mean_probability
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


def test_mean_probability_is_finite_where_probabilities_underflow():
    each = torch.tensor([[[0.0, -500.0]], [[0.0, -400.0]]])
    assert mean_probability(each)[0, 1] == pytest.approx(-400 - np.log(2), rel=1e-6)


def test_an_ensembles_member_answers_as_its_own_test_did(sweep_dir, test_images):
    paths = checkpoints.members(sweep_dir)
    assert [path.parent.parent.name for path in paths] == ["seed-0", "seed-1"]
    ensemble = Ensemble(paths)
    images, _ = Synthetic(num_train=240, num_test=50).read(train=False)
    each = ensemble.about(images, batch_size=7)
    for path, found in zip(paths, each, strict=True):
        network = load(path)
        with torch.no_grad():
            expected = network(test_images(path.parent.parent)[0]).softmax(1)
        assert torch.allclose(found.exp(), expected, atol=1e-5)


def test_predict_asks_about_the_views_that_the_network_was_tested_with(trained):
    network = load(trained)
    images, _ = Synthetic(num_test=10).read(train=False)
    mirrored = (network.predict(images) + network.predict(images.flip(3))) / 2
    network.tta = "flip"
    assert torch.allclose(network.predict(images), mirrored, atol=1e-6)


def test_predict_takes_images_of_any_size_and_layout(trained):
    network = load(trained)
    images, _ = Synthetic(num_test=20).read(train=False)
    probabilities = network.predict(images)
    assert probabilities.shape == (20, 10)
    assert torch.allclose(probabilities.sum(1), torch.ones(20), atol=1e-5)
    assert torch.allclose(network.predict(images.permute(0, 2, 3, 1).numpy()), probabilities, atol=1e-6)
    large = images.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert (network.predict(large) - probabilities).abs().max() < 0.2
    grey = Image.new("L", (40, 50), 99)
    assert network.predict(np.asarray(grey)[None]).shape == (1, 10)
    with pytest.raises(ValueError, match="whole numbers from 0 to 255"):
        network.predict(images / 255)


def test_a_network_without_a_checkpoint_cannot_know_what_its_images_mean():
    from cifar_resnet.models import ResNet

    network = ResNet(depth=8, widths=[4, 8, 8])
    with pytest.raises(ValueError, match="use load"):
        network.predict(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_a_checkpoint_with_another_byte_is_refused_where_torch_would_not_notice(trained, tmp_path):
    """Such as a letter in a name that the file holds: as a pickle it is still good."""
    content = (trained / "checkpoints" / "best.ckpt").read_bytes()
    assert content.count(b"resnet_cifar") >= 1
    (tmp_path / "changed.ckpt").write_bytes(content.replace(b"resnet_cifar", b"resnet_cigar"))
    torch.load(tmp_path / "changed.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=r"not a readable checkpoint.*is not what its checksum says"):
        checkpoints.read(tmp_path / "changed.ckpt")
