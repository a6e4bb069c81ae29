from cifar_resnet.data.augment import Augment
from cifar_resnet.data.datamodule import DataModule, StackedData
from cifar_resnet.data.published import (
    CIFAR10,
    CIFAR100,
    MNIST,
    STL10,
    SVHN,
    FashionMNIST,
    KaggleCIFAR10,
    MedMNIST,
    TinyImageNet,
)
from cifar_resnet.data.resizing import ProgressiveResize
from cifar_resnet.data.shifted import CIFAR10C, CIFAR10H, CIFAR101, Corrupted
from cifar_resnet.data.sources import Files, ImageFolder, OwnImages, Synthetic

__all__ = [
    "CIFAR10",
    "CIFAR10C",
    "CIFAR10H",
    "CIFAR100",
    "CIFAR101",
    "MNIST",
    "STL10",
    "SVHN",
    "Augment",
    "Corrupted",
    "DataModule",
    "FashionMNIST",
    "Files",
    "ImageFolder",
    "KaggleCIFAR10",
    "MedMNIST",
    "OwnImages",
    "ProgressiveResize",
    "StackedData",
    "Synthetic",
    "TinyImageNet",
]
