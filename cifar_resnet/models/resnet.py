"""Residual networks for small images (He et al. 2015, arXiv 1512.03385)."""

from collections.abc import Sequence
from typing import NamedTuple

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import SqueezeExcitation, StochasticDepth

from cifar_resnet import limits
from cifar_resnet.models.classifier import Classifier
from cifar_resnet.models.regularisers import DropBlock, ShakeDrop, chain
from cifar_resnet.models.whitening import Whitening


def conv_bn(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return conv, nn.BatchNorm2d(out_channels)


def bn_conv(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> tuple[nn.BatchNorm2d, nn.Conv2d]:
    """The same the other way round, for what normalises first."""
    conv, _ = conv_bn(in_channels, out_channels, kernel_size, stride)
    return nn.BatchNorm2d(in_channels), conv


class PadShortcut(nn.Module):
    """Subsample, and fill the new channels with zeros: no parameters (option A of section 3.3)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int):
        super().__init__()
        self.stride, self.new_channels = stride, out_channels - in_channels

    def forward(self, images: Tensor) -> Tensor:
        return F.pad(images[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class Ways(NamedTuple):
    """What a block has besides its convolutions."""

    shortcut: nn.Module
    between: nn.Module  # before the branch's last convolution
    after_branch: nn.Module
    after_block: nn.Module


class BasicBlock(nn.Module):
    """Two convolutions (figure 5, left)."""

    expansion = 1
    preactivated = False

    def __init__(self, in_channels: int, width: int, out_channels: int, kernel_size: int, stride: int, ways: Ways):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, width, kernel_size, stride)
        self.conv2, self.bn2 = conv_bn(width, out_channels, kernel_size)
        self.shortcut, self.between, self.after_branch, self.after_block = ways

    def forward(self, images: Tensor) -> Tensor:
        out = self.between(F.relu(self.bn1(self.conv1(images)), inplace=True))
        out = self.after_branch(self.bn2(self.conv2(out)))
        return self.after_block(F.relu(out + self.shortcut(images), inplace=True))


class Bottleneck(nn.Module):
    """1x1 down, k x k, 1x1 up (figure 5, right), with the stride on the k x k convolution. Else as `BasicBlock`."""

    expansion = 4
    preactivated = False

    def __init__(self, in_channels: int, width: int, out_channels: int, kernel_size: int, stride: int, ways: Ways):
        super().__init__()
        self.conv1, self.bn1 = conv_bn(in_channels, width, 1)
        self.conv2, self.bn2 = conv_bn(width, width, kernel_size, stride)
        self.conv3, self.bn3 = conv_bn(width, out_channels, 1)
        self.shortcut, self.between, self.after_branch, self.after_block = ways

    def forward(self, images: Tensor) -> Tensor:
        out = F.relu(self.bn1(self.conv1(images)), inplace=True)
        out = self.between(F.relu(self.bn2(self.conv2(out)), inplace=True))
        out = self.after_branch(self.bn3(self.conv3(out)))
        return self.after_block(F.relu(out + self.shortcut(images), inplace=True))


class PreActBlock(nn.Module):
    """Norm and ReLU before each of two convolutions (He et al. 2016, arXiv 1603.05027, figure 1b).

    A convolution in the shortcut sees what the branch sees; every other shortcut passes the block's input on.
    """

    expansion = 1
    preactivated = True

    def __init__(self, in_channels: int, width: int, out_channels: int, kernel_size: int, stride: int, ways: Ways):
        super().__init__()
        self.bn1, self.conv1 = bn_conv(in_channels, width, kernel_size, stride)
        self.bn2, self.conv2 = bn_conv(width, out_channels, kernel_size)
        self.shortcut, self.between, self.after_branch, self.after_block = ways

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(images), inplace=True)
        way_past = self.shortcut(features if isinstance(self.shortcut, nn.Conv2d) else images)
        out = self.conv1(features)
        out = self.conv2(self.between(F.relu(self.bn2(out), inplace=True)))
        return self.after_block(self.after_branch(out) + way_past)


class PreActBottleneck(nn.Module):
    """Norm and ReLU before each of the three convolutions of a bottleneck. Else as `PreActBlock`."""

    expansion = 4
    preactivated = True

    def __init__(self, in_channels: int, width: int, out_channels: int, kernel_size: int, stride: int, ways: Ways):
        super().__init__()
        self.bn1, self.conv1 = bn_conv(in_channels, width, 1)
        self.bn2, self.conv2 = bn_conv(width, width, kernel_size, stride)
        self.bn3, self.conv3 = bn_conv(width, out_channels, 1)
        self.shortcut, self.between, self.after_branch, self.after_block = ways

    def forward(self, images: Tensor) -> Tensor:
        features = F.relu(self.bn1(images), inplace=True)
        way_past = self.shortcut(features if isinstance(self.shortcut, nn.Conv2d) else images)
        out = self.conv1(features)
        out = self.conv2(F.relu(self.bn2(out), inplace=True))
        out = self.conv3(self.between(F.relu(self.bn3(out), inplace=True)))
        return self.after_block(self.after_branch(out) + way_past)


def make_shortcut(
    kind: str, preactivated: bool, in_channels: int, out_channels: int, kernel_size: int, stride: int
) -> nn.Module:
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    if kind == "pad":
        return PadShortcut(in_channels, out_channels, stride)
    conv, norm = conv_bn(in_channels, out_channels, kernel_size, stride)
    return conv if preactivated else nn.Sequential(conv, norm)


BLOCKS = {
    "basic": BasicBlock,
    "bottleneck": Bottleneck,
    "preact_basic": PreActBlock,
    "preact_bottleneck": PreActBottleneck,
}


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

    def __init__(
        self,
        block: str = "basic",
        widths: Sequence[int] = (64, 128, 256, 512),
        widen_factor: int | None = None,
        blocks: Sequence[int] | None = None,
        depth: int | None = None,
        expansion: int | None = None,
        strides: Sequence[int] | None = None,
        kernel_sizes: int | Sequence[int] = 3,
        shortcut: str = "conv",
        shortcut_kernel_sizes: int | Sequence[int] = 1,
        stem: str = "conv",
        stem_width: int | None = None,
        stem_kernel_size: int = 3,
        stem_stride: int = 1,
        pool_size: int = 1,
        dropout: float = 0.0,
        block_dropout: float = 0.0,
        feature_dropout: float = 0.0,
        drop_block: float = 0.0,
        drop_block_size: int = 5,
        stochastic_depth: float = 0.0,
        shake_drop: float = 0.0,
        squeeze_excitation: int = 0,
        zero_init_last_norm: bool = False,
        **classifier,
    ):
        super().__init__(**classifier)
        limits.require(
            "model",
            block=block,
            shortcut=shortcut,
            stem=stem,
            widths=widths,
            widen_factor=widen_factor,
            blocks=blocks,
            expansion=expansion,
            strides=strides,
            stem_width=stem_width,
            stem_stride=stem_stride,
            pool_size=pool_size,
            dropout=dropout,
            block_dropout=block_dropout,
            feature_dropout=feature_dropout,
            drop_block=drop_block,
            drop_block_size=drop_block_size,
            stochastic_depth=stochastic_depth,
            shake_drop=shake_drop,
            squeeze_excitation=squeeze_excitation,
        )
        per_stage = limits.stages(
            block=block,
            widths=widths,
            widen_factor=widen_factor,
            blocks=blocks,
            depth=depth,
            strides=strides,
            kernel_sizes=kernel_sizes,
            shortcut_kernel_sizes=shortcut_kernel_sizes,
            stem_kernel_size=stem_kernel_size,
            zero_init_last_norm=zero_init_last_norm,
        )
        make_block = BLOCKS[block]
        num_stages, num_blocks = len(widths), sum(per_stage["blocks"])
        stem_width = widths[0] if stem_width is None else stem_width
        expansion = make_block.expansion if expansion is None else expansion

        self.preactivated = make_block.preactivated
        self.conv1, norm = conv_bn(3, stem_width, stem_kernel_size, stem_stride)
        self.bn1 = nn.Identity() if self.preactivated else norm
        self.stages = nn.Sequential()
        channels, number = stem_width, 0
        for index, (width, count, stage_stride, kernel_size, shortcut_kernel_size) in enumerate(
            zip(*per_stage.values(), strict=True)
        ):
            stage = nn.Sequential()
            for position in range(count):
                stride = stage_stride if position == 0 else 1
                out_channels = width * expansion
                if shortcut == "pad" and out_channels < channels:
                    raise ValueError(
                        f"model.shortcut=pad can only add channels. Got {channels} in front of {out_channels}; "
                        f"give widths that do not fall, or model.shortcut=conv"
                    )
                number += 1
                how_deep = number / num_blocks
                squeeze = (out_channels, max(1, out_channels // (squeeze_excitation or 1)))
                ways = Ways(
                    make_shortcut(shortcut, self.preactivated, channels, out_channels, shortcut_kernel_size, stride),
                    between=chain(nn.Dropout(block_dropout) if block_dropout else None),
                    after_branch=chain(
                        SqueezeExcitation(*squeeze) if squeeze_excitation else None,
                        StochasticDepth(stochastic_depth * how_deep, "row") if stochastic_depth else None,
                        ShakeDrop(1 - shake_drop * how_deep) if shake_drop else None,
                    ),
                    after_block=chain(
                        DropBlock(drop_block, drop_block_size) if drop_block and index >= num_stages - 2 else None,
                        nn.Dropout2d(feature_dropout) if feature_dropout else None,
                    ),
                )
                stage.append(make_block(channels, width, out_channels, kernel_size, stride, ways))
                channels = out_channels
            self.stages.append(stage)
        self.norm = nn.BatchNorm2d(channels) if self.preactivated else nn.Identity()
        self.pool_size = pool_size
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(channels * pool_size**2, self.hparams.num_classes)

        initialise_convolutions(self)
        if stem == "whitening":
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
        if not self.preactivated:
            features = F.relu(self.bn1(features), inplace=True)
        features = self.stages(features)
        if self.preactivated:
            features = F.relu(self.norm(features), inplace=True)
        if self.pool_size == 1:
            features = features.mean((2, 3))  # adaptive pooling's backward pass is not deterministic on CUDA
        else:
            features = F.adaptive_avg_pool2d(features, self.pool_size).flatten(1)
        return self.fc(self.dropout(features))


def initialise_convolutions(network: nn.Module) -> None:
    """Normal, with the variance that keeps ReLU's gradients alive (He et al. 2015, arXiv 1502.01852)."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
