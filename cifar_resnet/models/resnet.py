"""Residual networks for small images (He et al. 2015, arXiv 1512.03385)."""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet.models.classifier import Classifier


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


class PadShortcut(nn.Module):
    """Subsample, and fill the new channels with zeros: no parameters (option A of section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride, self.new_channels = stride, out_channels - in_channels

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


def make_shortcut(kind: str, in_channels: int, out_channels: int, kernel_size: int, stride: int) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(in_channels, out_channels, stride)
    return nn.Sequential(*conv_bn(in_channels, out_channels, kernel_size, stride))


class BasicBlock(nn.Module):
    """Two convolutions (figure 5, left)."""

    expansion = 1
    num_convs = 2

    def __init__(
        self, in_channels: int, width: int, out_channels: int, kernel_size: int, stride: int, shortcut: nn.Module
    ):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, width, kernel_size, stride)
        self.conv2, self.bn2 = conv_bn(width, out_channels, kernel_size)
        self.shortcut = shortcut

    def forward(self, images: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(images)), inplace=True)
        out = self.bn2(self.conv2(out))
        return F.relu(out + self.shortcut(images), inplace=True)


class Bottleneck(nn.Module):
    """1x1 down, k x k, 1x1 up (figure 5, right), with the stride on the k x k convolution."""

    expansion = 4
    num_convs = 3

    def __init__(
        self, in_channels: int, width: int, out_channels: int, kernel_size: int, stride: int, shortcut: nn.Module
    ):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, kernel_size, stride)
        self.conv3, self.bn3 = conv_bn(width, out_channels, 1)
        self.shortcut = shortcut

    def forward(self, images: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(images)), inplace=True)
        out = F.relu(self.bn2(self.conv2(out)), inplace=True)
        out = self.bn3(self.conv3(out))
        return F.relu(out + self.shortcut(images), inplace=True)


BLOCKS = {"basic": BasicBlock, "bottleneck": Bottleneck}
SHORTCUTS = ("conv", "pad")


class ResNet(Classifier):
    """A stem, stages of residual blocks, average pooling and a linear classifier.

    block: "basic" or "bottleneck".
    widths: channels of the blocks' k x k convolutions, stage by stage; its length is the number of stages.
    blocks: residual blocks, stage by stage; or instead
    depth: the number of weighted layers of the whole, shared evenly among the stages (6n + 2 in section 4.2).
    expansion: a block's output channels / its width; None for the block's usual 1 or 4.
    strides: of each stage's first block; None for 1, then 2.
    kernel_sizes, shortcut_kernel_sizes: odd; one number for all stages, or one each.
    shortcut: where a block changes the shape, "conv" (convolution + BatchNorm, option B) or "pad" (option A).
    stem_width: channels out of the stem; None for the first width.
    pool_size: side of the map that average pooling leaves for the classifier.
    dropout: probability of zeroing a feature before the classifier.
    zero_init_last_norm: each block starts as its shortcut (Goyal et al. 2017, section 5.1).
    classifier: num_classes, label_smoothing and the rest of what `Classifier` takes.
    """

    def __init__(
        self,
        block: str = "basic",
        widths: Sequence[int] = (64, 128, 256, 512),
        blocks: Sequence[int] | None = None,
        depth: int | None = None,
        expansion: int | None = None,
        strides: Sequence[int] | None = None,
        kernel_sizes: int | Sequence[int] = 3,
        shortcut: str = "conv",
        shortcut_kernel_sizes: int | Sequence[int] = 1,
        stem_width: int | None = None,
        stem_kernel_size: int = 3,
        stem_stride: int = 1,
        pool_size: int = 1,
        dropout: float = 0.0,
        zero_init_last_norm: bool = False,
        **classifier,
    ):
        super().__init__(**classifier)
        if block not in BLOCKS:
            raise ValueError(f"unknown model.block. Got {block!r}; give {' or '.join(BLOCKS)}")
        if shortcut not in SHORTCUTS:
            raise ValueError(f"unknown model.shortcut. Got {shortcut!r}; give {' or '.join(SHORTCUTS)}")
        if not 0 <= dropout < 1:
            raise ValueError(f"model.dropout is a probability. Got {dropout}; give 0 up to 1")
        make_block = BLOCKS[block]
        num_stages = len(widths)
        if blocks is not None and depth is not None:
            raise ValueError(
                f"model.blocks and model.depth exclude each other. Got {blocks} and {depth}; make one null"
            )
        blocks = blocks_of_depth(depth, num_stages, make_block.num_convs) if blocks is None else blocks
        stem_width = stem_width or widths[0]
        expansion = expansion or make_block.expansion
        per_stage = {
            "widths": widths,
            "blocks": blocks,
            "strides": strides if strides is not None else [1] + [2] * (num_stages - 1),
            "kernel_sizes": [kernel_sizes] * num_stages if isinstance(kernel_sizes, int) else kernel_sizes,
            "shortcut_kernel_sizes": (
                [shortcut_kernel_sizes] * num_stages
                if isinstance(shortcut_kernel_sizes, int)
                else shortcut_kernel_sizes
            ),
        }
        check_stages(per_stage, num_stages)
        check_sizes(stem_width=stem_width, stem_stride=stem_stride, pool_size=pool_size, expansion=expansion)
        check_odd("stem_kernel_size", [stem_kernel_size])

        self.conv1, self.bn1 = conv_bn(3, stem_width, stem_kernel_size, stem_stride)
        self.stages = nn.Sequential()
        channels = stem_width
        for width, count, stage_stride, kernel_size, shortcut_kernel_size in zip(*per_stage.values(), strict=True):
            stage = nn.Sequential()
            for index in range(count):
                stride = stage_stride if index == 0 else 1
                out_channels = width * expansion
                if shortcut == "pad" and out_channels < channels:
                    raise ValueError(
                        f"model.shortcut=pad can only add channels. Got {channels} in front of {out_channels}; "
                        f"give widths that do not fall, or model.shortcut=conv"
                    )
                way_past = make_shortcut(shortcut, channels, out_channels, shortcut_kernel_size, stride)
                stage.append(make_block(channels, width, out_channels, kernel_size, stride, way_past))
                channels = out_channels
            self.stages.append(stage)
        self.pool_size = pool_size
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels * pool_size**2, self.hparams.num_classes)

        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if zero_init_last_norm and isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, H, W), normalised; returns logits: (N, num_classes)."""
        features = F.relu(self.bn1(self.conv1(images)), inplace=True)
        features = self.stages(features)
        if self.pool_size == 1:
            features = features.mean((2, 3))  # adaptive pooling's backward pass is not deterministic on CUDA
        else:
            features = F.adaptive_avg_pool2d(features, self.pool_size).flatten(1)
        return self.fc(self.dropout(features))


def blocks_of_depth(depth: int | None, num_stages: int, num_convs: int) -> list[int]:
    """Blocks per stage of a network of `depth` weighted layers: the stem, the blocks' convolutions, the classifier."""
    if depth is None:
        raise ValueError("a ResNet needs model.blocks, such as [2, 2, 2, 2], or model.depth. Got neither; give one")
    step = num_stages * num_convs
    count, rest = divmod(depth - 2, step)
    if rest or count < 1:
        nearest = max(1, round((depth - 2) / step)) * step + 2
        raise ValueError(f"model.depth must be {step}n + 2 here. Got {depth}; the nearest is {nearest}")
    return [count] * num_stages


def check_stages(per_stage: dict[str, Sequence[int]], num_stages: int) -> None:
    for name, values in per_stage.items():
        if len(values) != num_stages:
            raise ValueError(
                f"model.{name} and model.widths must be equally long. Got {list(values)} for {num_stages} stages"
            )
        if min(values, default=0) < 1:
            raise ValueError(f"model.{name} must be positive, one for each stage. Got {list(values)}")
        if name.endswith("kernel_sizes"):
            check_odd(name, values)


def check_sizes(**sizes: int) -> None:
    for name, size in sizes.items():
        if size < 1:
            raise ValueError(f"model.{name} must be positive. Got {size}; give 1 or more")


def check_odd(name: str, values: Sequence[int]) -> None:
    if any(value < 1 or value % 2 == 0 for value in values):
        raise ValueError(f"model.{name} must be odd, to keep the map's size. Got {list(values)}; give 1, 3, 5 …")
