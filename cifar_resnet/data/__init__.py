from cifar_resnet.data.augment import Augment
from cifar_resnet.data.datamodule import DataModule, StackedData
from cifar_resnet.data.resizing import ProgressiveResize
from cifar_resnet.data.sources import CIFAR10, CIFAR100, Files, ImageFolder, Synthetic

__all__ = [
    "CIFAR10",
    "CIFAR100",
    "Augment",
    "DataModule",
    "Files",
    "ImageFolder",
    "ProgressiveResize",
    "StackedData",
    "Synthetic",
]
