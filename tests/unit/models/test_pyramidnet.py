"""PyramidNet against its paper."""

import torch

from cifar_resnet.models import PyramidNet


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
