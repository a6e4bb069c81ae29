"""The nine-layer network against itself written out, and its dropout."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet.models import CustomResNet
from cifar_resnet.models.custom_resnet import ConvBlock


def block(module: ConvBlock, features: Tensor, pool: bool) -> Tensor:
    out = F.conv2d(features, module.conv.weight, padding=1)
    out = F.max_pool2d(out, 2) if pool else out
    norm = module.bn
    return F.relu(F.batch_norm(out, norm.running_mean, norm.running_var, norm.weight, norm.bias))


@pytest.mark.parametrize("has_shortcut", [(True, False, True), (False, True, False)])
def test_the_network_written_out(has_shortcut):
    network = CustomResNet(stem_width=4, widths=[6, 8, 10], residual=has_shortcut, num_classes=5)
    images = torch.randn(4, 3, 32, 32)
    with torch.no_grad():
        network(images)  # statistics to tell from none
        network.eval()
        features = block(network.stem, images, pool=False)
        for layer, residual in zip(network.layers, has_shortcut, strict=True):
            features = block(layer.down, features, pool=True)
            if residual:
                features = features + block(layer.conv2, block(layer.conv1, features, False), False)
        expected = F.linear(features.amax((2, 3)), network.fc.weight, network.fc.bias)
        torch.testing.assert_close(network(images), expected)


@pytest.mark.parametrize("rate", [0.0, 0.25])
def test_dropout_follows_each_relu_in_training(rate):
    torch.manual_seed(0)
    network = CustomResNet(stem_width=16, widths=[16, 16, 16], dropout=rate)
    blocks = [module for module in network.modules() if isinstance(module, ConvBlock)]
    assert len(blocks) == 8
    zeros = {}
    for module in blocks:
        nn.init.constant_(module.bn.bias, 100)  # nothing is below zero
        module.register_forward_hook(lambda module, _, out: zeros.update({module: out.eq(0).float().mean().item()}))
    network(torch.randn(64, 3, 32, 32))
    assert list(zeros.values()) == pytest.approx([rate] * 8, abs=0.01)
