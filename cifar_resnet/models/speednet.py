"""A network for the shortest training to a given accuracy, after the speed records' (Jordan 2024, arXiv 2404.00498)."""

import itertools
from collections.abc import Callable
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from cifar_resnet.constraints import Count, FractionAboveZero, PerStage, check
from cifar_resnet.errors import refuse_if
from cifar_resnet.models.classifier import Classifier
from cifar_resnet.models.pooling import max_over_image
from cifar_resnet.models.whitening import Whitening

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "relu": F.relu, "silu": F.silu}


class Norm(nn.BatchNorm2d):
    """Batch normalisation that learns a shift but no scale."""

    def __init__(self, channels: int, momentum: float):
        super().__init__(channels, momentum=momentum)
        self.weight.requires_grad_(False)


class Stage(nn.Module):
    """A pooled convolution and more of them, each normalised and activated; where `residual`, the last ones are added
    to what the first gave."""

    def __init__(self, in_channels: int, width: int, num_convs: int, residual: bool, momentum: float, activation: str):
        super().__init__()
        pairs = itertools.pairwise([in_channels] + [width] * num_convs)
        self.convs = nn.ModuleList(nn.Conv2d(before, after, 3, padding=1, bias=False) for before, after in pairs)
        self.norms = nn.ModuleList(Norm(width, momentum) for _ in range(num_convs))
        self.residual, self.activation = residual, ACTIVATIONS[activation]

    def forward(self, images: Tensor) -> Tensor:
        out = first = self.activation(self.norms[0](F.max_pool2d(self.convs[0](images), 2)))
        for number, (conv, norm) in enumerate(zip(self.convs[1:], self.norms[1:], strict=True), 2):
            out = norm(conv(out))
            out = self.activation(out + first if self.residual and number == len(self.convs) else out)
        return out


class SpeedNet(Classifier):
    """A whitening stem, stages of pooled convolutions that start as the identity, and a linear classifier.

    widths: channels of each stage. num_convs: convolutions in each stage, the first of them pooled.
    residual: whether a stage's last convolutions are added to what its first gave.
    whitening_size: side of the stem's patches. activation: "gelu", "relu" or "silu".
    norm_momentum: the share of a batch in BatchNorm's running statistics; few steps want a large one.
    logit_scale: of the classifier's output.
    classifier: num_classes, label_smoothing and the rest of what `Classifier` takes.
    """

    def __init__(
        self,
        widths: PerStage = (64, 256, 256),
        num_convs: Count = 2,
        residual: bool = False,
        whitening_size: Count = 2,
        activation: Literal["gelu", "relu", "silu"] = "gelu",
        norm_momentum: FractionAboveZero = 0.4,
        logit_scale: float = 0.111,
        **classifier: Any,
    ):
        super().__init__(**classifier)
        check(SpeedNet, locals())
        refuse_if(
            residual and num_convs == 1,
            "model.residual adds a stage's first convolution to what comes after it. Got model.num_convs=1; give 2 or "
            "more, or model.residual=false",
        )
        self.whitening = Whitening(3, whitening_size)
        self.activation, self.logit_scale = ACTIVATIONS[activation], logit_scale
        pairs = itertools.pairwise([self.whitening.out_channels, *widths])
        self.stages = nn.Sequential(*(Stage(*pair, num_convs, residual, norm_momentum, activation) for pair in pairs))
        self.fc = nn.Linear(widths[-1], self.hparams["num_classes"], bias=False)
        for module in self.stages.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.dirac_(module.weight.data[: module.in_channels])  # what there is passes through unchanged

    def forward(self, images: Tensor) -> Tensor:
        """images: (N, 3, H, W), normalised; returns logits: (N, num_classes)."""
        features = self.stages(self.activation(self.whitening(images)))
        return self.fc(max_over_image(features)) * self.logit_scale

    def check_image_size(self, image_size: int) -> None:
        side = image_size - self.whitening.kernel_size[0] + 1
        if side >> len(self.stages) < 1:
            raise ValueError(
                f"model.whitening_size leaves {max(side, 0)} pixels of {image_size}; each of model.widths halves them. "
                f"Got {self.whitening.kernel_size[0]} and {len(self.stages)} widths; give less, or larger images"
            )
        super().check_image_size(image_size)
