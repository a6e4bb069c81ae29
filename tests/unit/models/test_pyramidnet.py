"""PyramidNet against its paper."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet.models import PyramidNet


def normed(norm: nn.BatchNorm2d, features: Tensor) -> Tensor:
    return F.batch_norm(features, norm.running_mean, norm.running_var, norm.weight, norm.bias)


@pytest.mark.parametrize(("bottleneck", "depth"), [(False, 14), (True, 20)])
def test_the_network_written_out(bottleneck, depth):
    """Figure 6d: a norm first and last, and no ReLU but between; all but 3x3 convolutions are 1x1."""
    network = PyramidNet(depth=depth, alpha=12, bottleneck=bottleneck, num_classes=5)
    images = torch.randn(4, 3, 16, 16)
    with torch.no_grad():
        network(images)  # statistics to tell from none
        network.eval()
        out = normed(network.bn1, F.conv2d(images, network.conv1.weight, padding=1))
        for stage_number, stage in enumerate(network.stages):
            for number, block in enumerate(stage):
                stride = 2 if stage_number and not number else 1
                convs = [module for module in block.convs if isinstance(module, nn.Conv2d)]
                norms = [module for module in block.convs if isinstance(module, nn.BatchNorm2d)]
                branch = normed(block.bn, out)
                for place, (conv, norm) in enumerate(zip(convs, norms, strict=True)):
                    assert conv.kernel_size[0] == (3 if not bottleneck or place == 1 else 1)
                    own = stride if place == (1 if bottleneck else 0) else 1
                    branch = F.conv2d(branch, conv.weight, stride=own, padding=conv.kernel_size[0] // 2)
                    branch = normed(norm, branch)
                    branch = F.relu(branch) if place < len(convs) - 1 else branch
                past = F.avg_pool2d(out, 2) if stride == 2 else out
                out = branch
                out[:, : past.shape[1]] += past
        expected = network.fc(F.relu(normed(network.norm, out)).mean((2, 3)))
        torch.testing.assert_close(network(images), expected)


def test_branches_are_shaken_the_more_the_deeper():
    network = PyramidNet(depth=14, alpha=12, shake_drop=0.6)
    survivals = [block.after_branch.survival for stage in network.stages for block in stage]
    assert survivals == pytest.approx([0.9, 0.8, 0.7, 0.6, 0.5, 0.4])


def test_pyramidnets_widths_rise_evenly():
    model = PyramidNet(depth=20, alpha=90)
    assert [b.convs[-1].num_features for s in model.stages for b in s] == [26, 36, 46, 56, 66, 76, 86, 96, 106]
    features = torch.randn(2, 36, 8, 8)
    block = model.stages[0][2]
    out = block(features)
    torch.testing.assert_close(out[:, :36], block.convs(block.bn(features))[:, :36] + features)
    down = model.stages[1][0]
    features = torch.randn(2, 46, 8, 8)
    shortcut = down.shortcut(features)
    torch.testing.assert_close(shortcut[:, :46], torch.nn.functional.avg_pool2d(features, 2))
    assert shortcut.shape[1] == 56
    assert not shortcut[:, 46:].any()
