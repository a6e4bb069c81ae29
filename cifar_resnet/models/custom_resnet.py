"""The nine-layer residual network of the DAWNBench entries (Page 2018), as a student project rebuilt it."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from cifar_resnet.constraints import Count, PerStage, ProbabilityBelowOne, check
from cifar_resnet.errors import refuse_if
from cifar_resnet.models.classifier import Classifier
from cifar_resnet.models.pooling import max_over_image
from cifar_resnet.models.resnet import conv_bn


class ConvBlock(nn.Module):
    """3x3 convolution, max-pooling where `pool`, BatchNorm, ReLU, dropout."""

    def __init__(self, in_channels: int, out_channels: int, pool: bool, dropout: float):
        super().__init__()
        self.conv, self.bn = conv_bn(in_channels, out_channels, 3)
        self.pool = nn.MaxPool2d(2) if pool else nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def forward(self, images: Tensor) -> Tensor:
        return self.dropout(nn.functional.relu(self.bn(self.pool(self.conv(images))), inplace=True))


class Layer(nn.Module):
    """A pooled convolution, and around two more of them a shortcut where `residual`."""

    def __init__(self, in_channels: int, out_channels: int, residual: bool, dropout: float):
        super().__init__()
        self.down, self.residual = ConvBlock(in_channels, out_channels, True, dropout), residual
        if residual:
            self.conv1, self.conv2 = (ConvBlock(out_channels, out_channels, False, dropout) for _ in range(2))

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
        stem_width: Count = 64,
        widths: PerStage = (128, 256, 512),
        residual: Sequence[bool] = (True, False, True),
        dropout: ProbabilityBelowOne = 0.07,
        **classifier: Any,
    ):
        super().__init__(**classifier)
        check(CustomResNet, locals())
        refuse_if(
            len(residual) != len(widths),
            f"model.residual and model.widths must be equally long. Got {list(residual)} for {list(widths)}",
        )
        self.stem = ConvBlock(3, stem_width, False, dropout)
        channels = [stem_width, *widths]
        shapes = zip(channels[:-1], widths, residual, strict=True)
        self.layers = nn.Sequential(*(Layer(*shape, dropout) for shape in shapes))
        self.fc = nn.Linear(channels[-1], self.hparams["num_classes"])

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, H, W), normalised; returns logits: (N, num_classes)."""
        return self.fc(max_over_image(self.layers(self.stem(images))))
