from cifar_resnet.models.classifier import Classifier
from cifar_resnet.models.custom_resnet import CustomResNet
from cifar_resnet.models.distillation import Distillation
from cifar_resnet.models.pyramidnet import PyramidNet
from cifar_resnet.models.resnet import ResNet
from cifar_resnet.models.selection import Selection
from cifar_resnet.models.speednet import SpeedNet
from cifar_resnet.models.stacked import StackedEnsemble
from cifar_resnet.models.wrapped import Wrapped

__all__ = [
    "Classifier", "CustomResNet", "Distillation", "PyramidNet", "ResNet", "Selection", "SpeedNet",
    "StackedEnsemble", "Wrapped",
]  # fmt: skip
