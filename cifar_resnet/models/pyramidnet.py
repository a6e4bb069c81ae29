"""PyramidNet (Han et al. 2017, arXiv 1610.02915), with ShakeDrop where asked (Yamada et al. 2018)."""

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet import limits
from cifar_resnet.models.classifier import Classifier
from cifar_resnet.models.regularisers import ShakeDrop, chain
from cifar_resnet.models.resnet import conv_bn, initialise_convolutions

STEM_WIDTH = 16


class PyramidShortcut(nn.Module):
    """Average over the stride, and fill the new channels with zeros: no parameters."""

    def __init__(self, new_channels: int, stride: int):
        super().__init__()
        self.new_channels, self.stride = new_channels, stride

    def forward(self, images: Tensor) -> Tensor:
        if self.stride > 1:
            images = F.avg_pool2d(images, self.stride, ceil_mode=True)
        return F.pad(images, (0, 0, 0, 0, 0, self.new_channels))


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
        self.after_branch = after_branch
        self.shortcut = PyramidShortcut(out_channels - in_channels, stride)

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
        self, depth: int = 110, alpha: int = 48, bottleneck: bool = False, shake_drop: float = 0.0, **classifier
    ):
        super().__init__(**classifier)
        limits.require("model", alpha=alpha, shake_drop=shake_drop)
        counts = limits.pyramid_blocks(depth, bottleneck)
        expansion = 4 if bottleneck else 1
        self.conv1, self.bn1 = conv_bn(3, STEM_WIDTH, 3)
        self.stages = nn.Sequential()
        channels, number = STEM_WIDTH, 0
        for index, count in enumerate(counts):
            stage = nn.Sequential()
            for position in range(count):
                number += 1
                width = round(STEM_WIDTH + alpha * number / sum(counts))
                stride = 2 if index and position == 0 else 1
                shake = ShakeDrop(1 - shake_drop * number / sum(counts)) if shake_drop else None
                stage.append(PyramidBlock(channels, width, expansion, stride, chain(shake)))
                channels = width * expansion
            self.stages.append(stage)
        self.norm = nn.BatchNorm2d(channels)
        self.fc = nn.Linear(channels, self.hparams.num_classes)
        initialise_convolutions(self)

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, H, W), normalised; returns logits: (N, num_classes)."""
        features = self.stages(self.bn1(self.conv1(images)))
        return self.fc(F.relu(self.norm(features), inplace=True).mean((2, 3)))
