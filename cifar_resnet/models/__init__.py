from cifar_resnet.models.classifier import Classifier
from cifar_resnet.models.resnet import ResNet

__all__ = ["Classifier", "ResNet"]
