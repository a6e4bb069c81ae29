"""The nine-layer residual network of the DAWNBench entries (Page 2018), as a student project rebuilt it."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet import limits
from cifar_resnet.models.classifier import Classifier
from cifar_resnet.models.resnet import conv_bn


class ConvBlock(nn.Module):
    """3x3 convolution, max-pooling where `pool`, BatchNorm, ReLU, dropout."""

    def __init__(self, in_channels: int, out_channels: int, pool: bool, dropout: float):
        super().__init__()
        self.conv, self.bn = conv_bn(in_channels, out_channels, 3)
        self.pool = pool
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        out = self.conv(images)
        if self.pool:
            out = F.max_pool2d(out, 2)
        return self.dropout(F.relu(self.bn(out), inplace=True))


class Layer(nn.Module):
    """A pooled convolution, and around two more of them a shortcut where `residual`."""

    def __init__(self, in_channels: int, out_channels: int, residual: bool, dropout: float):
        super().__init__()
        self.down = ConvBlock(in_channels, out_channels, True, dropout)
        self.residual = residual
        if residual:
            self.conv1 = ConvBlock(out_channels, out_channels, False, dropout)
            self.conv2 = ConvBlock(out_channels, out_channels, False, dropout)

    def forward(self, images: Tensor) -> Tensor:
        out = self.down(images)
        return out + self.conv2(self.conv1(out)) if self.residual else out


class CustomResNet(Classifier):
    """A stem, then layers of one pooled convolution, some with two more inside a shortcut, and a linear classifier.

    stem_width: channels out of the stem.
    widths: channels of each layer.
    residual: which layers have a residual block.
    dropout: probability of zeroing a value, after each ReLU.
    classifier: num_classes, label_smoothing and the rest of what `Classifier` takes.
    """

    def __init__(
        self,
        stem_width: int = 64,
        widths: Sequence[int] = (128, 256, 512),
        residual: Sequence[bool] = (True, False, True),
        dropout: float = 0.07,
        **classifier,
    ):
        super().__init__(**classifier)
        limits.require("model", stem_width=stem_width, widths=widths, dropout=dropout)
        limits.check_layers(widths, residual)
        self.stem = ConvBlock(3, stem_width, False, dropout)
        channels = [stem_width, *widths]
        self.layers = nn.Sequential(
            *(
                Layer(channels[index], width, has_block, dropout)
                for index, (width, has_block) in enumerate(zip(widths, residual, strict=True))
            )
        )
        self.fc = nn.Linear(channels[-1], self.hparams.num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, H, W), normalised; returns logits: (N, num_classes)."""
        return self.fc(self.layers(self.stem(images)).amax((2, 3)))
