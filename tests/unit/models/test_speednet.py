"""What makes SpeedNet quick to train, and images that are too small for it or for a whitening stem."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from cifar_resnet import cli
from cifar_resnet.models import SpeedNet


def test_convolutions_start_as_the_identity():
    network = SpeedNet(widths=[32, 48, 48])
    for conv in (module for module in network.stages.modules() if isinstance(module, nn.Conv2d)):
        features = torch.randn(2, conv.in_channels, 6, 6)
        with torch.no_grad():
            assert torch.allclose(conv(features)[:, : conv.in_channels], features, atol=1e-6)


def test_the_residual_form_adds_what_the_first_convolution_gave():
    network = SpeedNet(widths=[32], num_convs=3, residual=True).eval()
    stage = network.stages[0]
    with torch.no_grad():
        features = F.gelu(network.whitening(torch.randn(4, 3, 32, 32)))
        first = F.gelu(stage.norms[0](F.max_pool2d(stage.convs[0](features), 2)))
        second = F.gelu(stage.norms[1](stage.convs[1](first)))
        expected = F.gelu(stage.norms[2](stage.convs[2](second)) + first)
        assert torch.allclose(stage(features), expected)


@pytest.mark.parametrize(("activation", "function"), [("silu", F.silu), ("relu", F.relu), ("gelu", F.gelu)])
def test_the_network_written_out(activation, function):
    network = SpeedNet(widths=[8, 12], activation=activation, norm_momentum=0.3, logit_scale=0.5, num_classes=7)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert [norm.momentum for norm in norms] == [0.3] * 4
    images = torch.randn(6, 3, 32, 32)
    with torch.no_grad():
        network(images)  # statistics to tell from none
        network.eval()
        features = function(F.conv2d(images, network.whitening.weight, network.whitening.bias))
        for stage in network.stages:
            features = function(stage.norms[0](F.max_pool2d(stage.convs[0](features), 2)))
            features = function(stage.norms[1](stage.convs[1](features)))
        expected = features.amax((2, 3)) @ network.fc.weight.t() / 2
        torch.testing.assert_close(network(images), expected)
    assert expected.shape == (6, 7)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["model=speednet", "model.whitening_size=40"], "leaves 0 pixels of 32"),
        (["model=speednet", "model.widths=[8,8,8,8,8]"], "Got 2 and 5 widths"),
        (["model=resnet20", "model.stem=whitening", "model.stem_kernel_size=33"], "of the images, of 32 pixels"),
    ],
)
def test_patches_and_pooling_that_images_are_too_small_for_are_refused(capsys, overrides, message):
    assert cli.train(["data=synthetic", *overrides]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_smaller_images_allow_fewer_poolings(tmp_path, capsys):
    for half, count in (("train", 20), ("test", 10)):
        pixels = np.zeros((count, 8, 8, 3), np.uint8)
        np.savez(tmp_path / f"{half}.npz", images=pixels, labels=np.arange(count) % 2)
    files = ["data=files", "data.image_size=8", f"data.train={tmp_path}/train.npz", f"data.test={tmp_path}/test.npz"]
    assert cli.train([*files, "model=speednet", "model.widths=[8,8,8]"]) == 2
    assert "leaves 7 pixels of 8" in capsys.readouterr().err
