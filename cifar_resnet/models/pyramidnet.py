"""PyramidNet (Han et al. 2017, arXiv 1610.02915), with ShakeDrop where asked (Yamada et al. 2018)."""

from typing import Any

from torch import Tensor, nn

from cifar_resnet.constraints import Count, CountOrZero, ProbabilityBelowOne, check
from cifar_resnet.models.classifier import Classifier
from cifar_resnet.models.regularisers import ShakeDrop, chain
from cifar_resnet.models.resnet import blocks_of_depth, conv_bn, initialise_convolutions

STEM_WIDTH = 16


class PyramidShortcut(nn.Module):
    """Average over the stride, and fill the new channels with zeros: no parameters."""

    def __init__(self, new_channels: int, stride: int):
        super().__init__()
        self.new_channels = new_channels
        self.pool = nn.AvgPool2d(stride, ceil_mode=True) if stride > 1 else nn.Identity()

    def forward(self, images: Tensor) -> Tensor:
        return nn.functional.pad(self.pool(images), (0, 0, 0, 0, 0, self.new_channels))


class PyramidBlock(nn.Module):
    """Two 3x3 convolutions, or 1x1, 3x3, 1x1: a norm before and after all, a ReLU only between (figure 6d)."""

    def __init__(self, in_channels: int, width: int, expansion: int, stride: int, after_branch: nn.Module):
        super().__init__()
        out_channels = width * expansion
        self.bn = nn.BatchNorm2d(in_channels)
        if expansion == 1:
            self.convs = nn.Sequential(
                *conv_bn(in_channels, width, 3, stride), nn.ReLU(inplace=True), *conv_bn(width, width, 3)
            )
        else:
            self.convs = nn.Sequential(
                *conv_bn(in_channels, width, 1),
                nn.ReLU(inplace=True),
                *conv_bn(width, width, 3, stride),
                nn.ReLU(inplace=True),
                *conv_bn(width, out_channels, 1),
            )
        self.after_branch, self.shortcut = after_branch, PyramidShortcut(out_channels - in_channels, stride)

    def forward(self, images: Tensor) -> Tensor:
        return self.after_branch(self.convs(self.bn(images))) + self.shortcut(images)


class PyramidNet(Classifier):
    """Three stages of blocks whose widths rise by the same amount from each block to the next.

    depth: 6n + 2, or 9n + 2 with bottlenecks.
    alpha: channels gained from the first block to the last, before a bottleneck's expansion by 4.
    bottleneck: blocks of 1x1, 3x3 and 1x1 convolutions.
    shake_drop: probability of shaking the last block's branch; it rises block by block.
    classifier: num_classes, label_smoothing and the rest of what `Classifier` takes.
    """

    def __init__(
        self,
        depth: Count = 110,
        alpha: CountOrZero = 48,
        bottleneck: bool = False,
        shake_drop: ProbabilityBelowOne = 0.0,
        **classifier: Any,
    ):
        super().__init__(**classifier)
        check(PyramidNet, locals())
        num_convs, expansion = (3, 4) if bottleneck else (2, 1)
        counts = blocks_of_depth(depth, num_stages=3, num_convs=num_convs, other_layers=2)
        self.conv1, self.bn1 = conv_bn(3, STEM_WIDTH, 3)
        self.stages = nn.Sequential()
        channels = STEM_WIDTH
        for index, count in enumerate(counts):
            self.stages.append(stage := nn.Sequential())
            for number, stride in enumerate([2 if index else 1] + [1] * (count - 1), 1 + sum(counts[:index])):
                width = round(STEM_WIDTH + alpha * number / sum(counts))
                shake = ShakeDrop(1 - shake_drop * number / sum(counts)) if shake_drop else None
                stage.append(PyramidBlock(channels, width, expansion, stride, chain(shake)))
                channels = width * expansion
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, self.hparams["num_classes"])
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, H, W), normalised; returns logits: (N, num_classes)."""
        features = self.stages(self.bn1(self.conv1(images)))
        return self.fc(nn.functional.relu(self.norm(features), inplace=True).mean((2, 3)))
