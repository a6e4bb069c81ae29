"""Residual networks for small images (He et al. 2015, arXiv 1512.03385)."""

import math
from collections.abc import Sequence
from typing import Annotated, Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from annotated_types import Len
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from cifar_resnet.constraints import Count, CountOrZero, Odd, PerStage, ProbabilityBelowOne, check
from cifar_resnet.errors import refuse_if
from cifar_resnet.models.classifier import Classifier
from cifar_resnet.models.regularisers import DropBlock, ShakeDrop, chain
from cifar_resnet.models.whitening import Whitening


class NarrowPointwise(nn.Conv2d):
    """A strided 1x1 convolution as one of stride 1, of those pixels alone that it looks at.

    On a CPU the usual one's backward pass, channels_last and in float32, writes beyond its memory where it has fewer
    than 16 channels (oneDNN's issue 6035, in torch 2.15).
    """

    def forward(self, images: Tensor) -> Tensor:
        rows, columns = self.stride
        return F.conv2d(images[:, :, ::rows, ::columns], self.weight)


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    is_narrow = kernel_size == 1 and stride > 1 and in_channels < 16
    kind = NarrowPointwise if is_narrow else nn.Conv2d
    conv = kind(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


def bn_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    """The same the other way round, for what normalises first."""
    return nn.BatchNorm2d(in_channels), conv_bn(in_channels, out_channels, kernel_size, stride)[0]


class PadShortcut(nn.Module):
    """Subsample, and fill the new channels with zeros: no parameters (option A of section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride, self.new_channels = stride, out_channels - in_channels

    def forward(self, features: Tensor) -> Tensor:
        return F.pad(features[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class BlockExtras(NamedTuple):
    """What a block has besides its convolutions."""

    shortcut: nn.Module
    between: nn.Module  # before the branch's last convolution
    after_branch: nn.Module
    after_block: nn.Module


class BasicBlock(nn.Module):
    """Two convolutions (figure 5, left)."""

    num_convs, expansion = 2, 1

    def __init__(
        self, in_channels: int, width: int, out_channels: int, kernel_size: int, stride: int, extras: BlockExtras
    ):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, width, kernel_size, stride)
        self.conv2, self.bn2 = conv_bn(width, out_channels, kernel_size)
        self.shortcut, self.between, self.after_branch, self.after_block = extras

    def forward(self, features: Tensor) -> Tensor:
        out = self.between(F.relu(self.bn1(self.conv1(features)), inplace=True))
        out = self.after_branch(self.bn2(self.conv2(out)))
        return self.after_block(F.relu(out + self.shortcut(features), inplace=True))


class Bottleneck(nn.Module):
    """1x1 down, k x k, 1x1 up (figure 5, right), with the stride on the k x k convolution. Else as `BasicBlock`."""

    num_convs, expansion = 3, 4

    def __init__(
        self, in_channels: int, width: int, out_channels: int, kernel_size: int, stride: int, extras: BlockExtras
    ):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, kernel_size, stride)
        self.conv3, self.bn3 = conv_bn(width, out_channels, 1)
        self.shortcut, self.between, self.after_branch, self.after_block = extras

    def forward(self, features: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(features)), inplace=True)
        out = self.between(F.relu(self.bn2(self.conv2(out)), inplace=True))
        out = self.after_branch(self.bn3(self.conv3(out)))
        return self.after_block(F.relu(out + self.shortcut(features), inplace=True))


class PreActBlock(nn.Module):
    """Norm and ReLU before each of two convolutions (He et al. 2016, arXiv 1603.05027, figure 1b).

    A convolution in the shortcut sees what the branch sees; every other shortcut passes the block's input on.
    """

    num_convs, expansion = 2, 1

    def __init__(
        self, in_channels: int, width: int, out_channels: int, kernel_size: int, stride: int, extras: BlockExtras
    ):
        super().__init__()
        self.bn1, self.conv1 = bn_conv(in_channels, width, kernel_size, stride)
        self.bn2, self.conv2 = bn_conv(width, out_channels, kernel_size)
        self.shortcut, self.between, self.after_branch, self.after_block = extras

    def forward(self, features: Tensor) -> Tensor:
        activated = F.relu(self.bn1(features), inplace=True)
        way_past = self.shortcut(activated if isinstance(self.shortcut, nn.Conv2d) else features)
        out = self.between(F.relu(self.bn2(self.conv1(activated)), inplace=True))
        return self.after_block(self.after_branch(self.conv2(out)) + way_past)


class PreActBottleneck(nn.Module):
    """Norm and ReLU before each of the three convolutions of a bottleneck. Else as `PreActBlock`."""

    num_convs, expansion = 3, 4

    def __init__(
        self, in_channels: int, width: int, out_channels: int, kernel_size: int, stride: int, extras: BlockExtras
    ):
        super().__init__()
        self.bn1, self.conv1 = bn_conv(in_channels, width, 1)
        self.bn2, self.conv2 = bn_conv(width, width, kernel_size, stride)
        self.bn3, self.conv3 = bn_conv(width, out_channels, 1)
        self.shortcut, self.between, self.after_branch, self.after_block = extras

    def forward(self, features: Tensor) -> Tensor:
        activated = F.relu(self.bn1(features), inplace=True)
        way_past = self.shortcut(activated if isinstance(self.shortcut, nn.Conv2d) else features)
        out = F.relu(self.bn2(self.conv1(activated)), inplace=True)
        out = self.between(F.relu(self.bn3(self.conv2(out)), inplace=True))
        return self.after_block(self.after_branch(self.conv3(out)) + way_past)


def make_shortcut(
    kind: str, preactivated: bool, in_channels: int, out_channels: int, kernel_size: int, stride: int
) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(in_channels, out_channels, stride)
    conv, norm = conv_bn(in_channels, out_channels, kernel_size, stride)
    return conv if preactivated else nn.Sequential(conv, norm)


OddPerStage = Annotated[Sequence[Odd], Len(1)]
BLOCKS: dict[str, type[BasicBlock | Bottleneck | PreActBlock | PreActBottleneck]] = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
    "preact_basic": PreActBlock,
    "preact_bottleneck": PreActBottleneck,
}


def blocks_of_depth(depth: int | None, num_stages: int, num_convs: int, other_layers: int) -> list[int]:
    """Blocks per stage of a network of `depth` weighted layers, of which `other_layers` are not the blocks' own."""
    refuse_if(
        depth is None,
        "a ResNet needs model.blocks, such as [2, 2, 2, 2], or model.depth. Got neither; give one",
    )
    step = num_stages * num_convs
    count = max(1, round((depth - other_layers) / step))
    nearest = count * step + other_layers
    refuse_if(
        depth != nearest,
        f"model.depth must be {step}n + {other_layers} here. Got {depth}; the nearest is {nearest}",
    )
    return [count] * num_stages


class ResNet(Classifier):
    """A stem, stages of residual blocks, average pooling and a linear classifier.

    block: "basic" or "bottleneck"; or "preact_basic" or "preact_bottleneck", which normalise first (He et al. 2016).
    widths: channels of the blocks' k x k convolutions, stage by stage; its length is the number of stages.
    widen_factor: multiplies all widths, the stem's excepted (Zagoruyko & Komodakis 2016, arXiv 1605.07146).
    blocks: residual blocks, stage by stage; or instead
    depth: the number of weighted layers of the whole, shared evenly among the stages: 6n + 2 in section 4.2; with a
        widen_factor 6n + 4, for that paper counts the shortcuts' convolutions in place of the classifier.
    expansion: a block's output channels / its width; None for the block's usual 1 or 4.
    strides: of each stage's first block; None for 1, then 2.
    kernel_sizes, shortcut_kernel_sizes: odd; one number for all stages, or one each.
    shortcut: where a block changes the shape, "conv" (convolution + BatchNorm, option B) or "pad" (option A).
    stem: "conv", or "whitening", a fixed layer that decorrelates patches in front of a 1x1 convolution.
    stem_width: channels out of the stem; None for the first width.
    stem_kernel_size, stem_stride: of the stem's convolution, or of the patches that it decorrelates.
    pool_size: side of the map that average pooling leaves for the classifier.
    dropout: probability of zeroing a feature before the classifier.
    block_dropout: of zeroing a value before each block's last convolution (Zagoruyko & Komodakis 2016, section 2.4).
    feature_dropout: of zeroing a whole channel of a block's output.
    drop_block: of zeroing squares, of side drop_block_size, in the outputs of the last two stages' blocks; it rises
        from 0 over the training (Ghiasi et al. 2018).
    stochastic_depth: of leaving out the last block's branch; it rises block by block (Huang et al. 2016, section 3).
    shake_drop: of shaking the last block's branch; it rises likewise (Yamada et al. 2018).
    squeeze_excitation: the reduction of each branch's squeeze-and-excitation, such as 16 (Hu et al. 2018); 0 for none.
    zero_init_last_norm: each block starts as its shortcut (Goyal et al. 2017, section 5.1).
    classifier: num_classes, label_smoothing and the rest of what `Classifier` takes.
    """

    conv1: nn.Module

    def __init__(
        self,
        block: Literal["basic", "bottleneck", "preact_basic", "preact_bottleneck"] = "basic",
        widths: PerStage = (64, 128, 256, 512),
        widen_factor: Count | None = None,
        blocks: PerStage | None = None,
        depth: Count | None = None,
        expansion: Count | None = None,
        strides: PerStage | None = None,
        kernel_sizes: Odd | OddPerStage = 3,
        shortcut: Literal["conv", "pad"] = "conv",
        shortcut_kernel_sizes: Odd | OddPerStage = 1,
        stem: Literal["conv", "whitening"] = "conv",
        stem_width: Count | None = None,
        stem_kernel_size: Odd = 3,
        stem_stride: Count = 1,
        pool_size: Count = 1,
        dropout: ProbabilityBelowOne = 0.0,
        block_dropout: ProbabilityBelowOne = 0.0,
        feature_dropout: ProbabilityBelowOne = 0.0,
        drop_block: ProbabilityBelowOne = 0.0,
        drop_block_size: Count = 5,
        stochastic_depth: ProbabilityBelowOne = 0.0,
        shake_drop: ProbabilityBelowOne = 0.0,
        squeeze_excitation: CountOrZero = 0,
        zero_init_last_norm: bool = False,
        **classifier: Any,
    ):
        super().__init__(**classifier)
        check(ResNet, locals())
        refuse_if(
            zero_init_last_norm and block.startswith("preact"),
            f"model.zero_init_last_norm needs a norm at the branch's end. Got model.block={block}; give false",
        )
        num_stages = len(widths)
        refuse_if(
            blocks is not None and depth is not None,
            f"model.blocks and model.depth exclude each other. Got {blocks} and {depth}; give model.depth=null "
            f"or model.blocks=null",
        )
        make_block, other_layers = BLOCKS[block], 1 + num_stages if widen_factor else 2
        blocks = blocks or blocks_of_depth(depth, num_stages, make_block.num_convs, other_layers)
        per_stage: dict[str, Any] = {
            "widths": [width * (widen_factor or 1) for width in widths],
            "blocks": blocks,
            "strides": strides or [1] + [2] * (num_stages - 1),
            "kernel_sizes": kernel_sizes,
            "shortcut_kernel_sizes": shortcut_kernel_sizes,
        }
        per_stage = {name: [x] * num_stages if isinstance(x, int) else x for name, x in per_stage.items()}
        for name, values in per_stage.items():
            refuse_if(
                len(values) != num_stages,
                f"model.{name} and model.widths must be equally long. Got {list(values)} for {num_stages} stages",
            )
        stem_width, expansion = stem_width or widths[0], expansion or make_block.expansion

        self.total_stride = stem_stride * math.prod(per_stage["strides"])
        self.preactivated = block.startswith("preact")
        self.conv1, norm = conv_bn(3, stem_width, stem_kernel_size, stem_stride)
        self.bn1 = nn.Identity() if self.preactivated else norm
        self.stages = nn.Sequential()
        channels = stem_width
        for index, (width, count, stage_stride, kernel_size, shortcut_kernel_size) in enumerate(
            zip(*per_stage.values(), strict=True)
        ):
            out_channels = width * expansion
            refuse_if(
                shortcut == "pad" and out_channels < channels,
                f"model.shortcut=pad can only add channels. Got {channels} in front of {out_channels}; "
                f"give widths that do not fall, or model.shortcut=conv",
            )
            self.stages.append(stage := nn.Sequential())
            for number, stride in enumerate([stage_stride] + [1] * (count - 1), 1 + sum(blocks[:index])):
                how_deep = number / sum(blocks)
                extras = BlockExtras(
                    make_shortcut(shortcut, self.preactivated, channels, out_channels, shortcut_kernel_size, stride),
                    between=chain(nn.Dropout(block_dropout) if block_dropout else None),
                    after_branch=chain(
                        SqueezeExcitation(out_channels, max(1, out_channels // squeeze_excitation))
                        if squeeze_excitation
                        else None,
                        StochasticDepth(stochastic_depth * how_deep, "row") if stochastic_depth else None,
                        ShakeDrop(1 - shake_drop * how_deep) if shake_drop else None,
                    ),
                    after_block=chain(
                        DropBlock(drop_block, drop_block_size) if drop_block and index >= num_stages - 2 else None,
                        nn.Dropout2d(feature_dropout) if feature_dropout else None,
                    ),
                )
                stage.append(make_block(channels, width, out_channels, kernel_size, stride, extras))
                channels = out_channels
        self.norm = nn.BatchNorm2d(channels) if self.preactivated else nn.Identity()
        self.pool_size, self.dropout = pool_size, nn.Dropout(dropout)
        self.fc = nn.Linear(channels * pool_size**2, self.hparams["num_classes"])

        initialise_convolutions(self)
        if stem == "whitening":  # only now: the other layers' initial weights are then those of a conv stem
            whitening = Whitening(3, stem_kernel_size, padding=stem_kernel_size // 2)
            mixing, _ = conv_bn(whitening.out_channels, stem_width, 1, stem_stride)
            initialise_convolutions(mixing)
            self.conv1 = nn.Sequential(whitening, nn.ReLU(inplace=True), mixing)
        for module in self.modules() if zero_init_last_norm else ():
            if isinstance(module, (BasicBlock, Bottleneck)):
                nn.init.zeros_((module.bn3 if isinstance(module, Bottleneck) else module.bn2).weight)

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, H, W), normalised; returns logits: (N, num_classes)."""
        features = self.conv1(images)
        features = self.stages(features if self.preactivated else F.relu(self.bn1(features), inplace=True))
        features = F.relu(self.norm(features), inplace=True) if self.preactivated else features
        if self.pool_size == 1:
            features = features.mean((2, 3))  # adaptive pooling's backward pass is not deterministic on CUDA
        elif not any(int(side) % self.pool_size for side in features.shape[2:]):
            features = F.avg_pool2d(features, [int(side) // self.pool_size for side in features.shape[2:]]).flatten(1)
        else:
            features = pooled(features, self.pool_size)
        return self.fc(self.dropout(features))

    def check_image_size(self, image_size: int) -> None:
        patch_sizes = [module.kernel_size[0] for module in self.modules() if isinstance(module, Whitening)]
        refuse_if(
            max(patch_sizes, default=0) > image_size,
            f"model.stem=whitening looks at patches of the images, of {image_size} pixels. "
            f"Got model.stem_kernel_size={max(patch_sizes, default=0)}; give less",
        )
        side = math.ceil(image_size / self.total_stride)
        refuse_if(
            self.pool_size > side,
            f"model.pool_size keeps a map of that side of what the stages give. Got {self.pool_size} of {side} pixels "
            f"for images of {image_size}; give no more than that",
        )
        super().check_image_size(image_size)


def pooled(features: Tensor, size: int) -> Tensor:
    """As adaptive average pooling, whose backward pass is not deterministic on CUDA: (N, C * size²)."""
    rows, columns = (
        [(place * side // size, -(-(place + 1) * side // size)) for place in range(size)]
        for side in map(int, features.shape[2:])
    )
    parts = [features[:, :, top:bottom, left:right].mean((2, 3)) for top, bottom in rows for left, right in columns]
    return torch.stack(parts, 2).flatten(1)


def initialise_convolutions(network: nn.Module) -> None:
    """Normal, with the variance that keeps ReLU's gradients alive (He et al. 2015, arXiv 1502.01852)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
