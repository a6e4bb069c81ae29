"""The whitening layer: what it makes of patches, and that a training fits it and leaves it."""

import pytest
import torch
from helpers import TINY, last_of

from cifar_resnet import checkpoints, cli
from cifar_resnet.data import Synthetic
from cifar_resnet.models.whitening import Whitening


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    data = Synthetic(num_train=600, num_val=0)
    data.load()
    return data.sample(400)


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_whitened_patches_are_uncorrelated_with_equal_variance(images, kernel_size):
    layer = Whitening(3, kernel_size, eps=0.0)
    layer.init_whitening(images)
    half = 3 * kernel_size**2
    with torch.no_grad():
        out = layer(images).transpose(0, 1).flatten(1).double()
    assert layer.out_channels == 2 * half
    assert torch.equal(out[half:], -out[:half])
    second_moments = out[:half] @ out[:half].T / out.shape[1]
    assert torch.allclose(second_moments, torch.eye(half, dtype=torch.float64), atol=1e-3)


def test_a_training_fits_the_stem_to_its_images_and_leaves_it(run_dirs):
    small = ["model=speednet", "model.widths=[8,8,8]"]
    kept = [text for text in TINY if not text.startswith("model")]
    assert cli.train([*kept, *small, "trainer.max_epochs=2"]) == 0
    (run_dir,) = run_dirs()
    data = Synthetic(num_train=240, num_val=40, batch_size=40)
    data.load()
    expected = Whitening(3, 2)
    expected.init_whitening(data.sample())
    state = last_of(run_dir)["state_dict"]
    assert torch.allclose(state["whitening.weight"], expected.weight, atol=1e-5)
    assert state["whitening.bias"].abs().max() > 0  # which is learned
    assert state["stages.0.norms.0.weight"].eq(1).all()
    assert checkpoints.load(run_dir).predict(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)
