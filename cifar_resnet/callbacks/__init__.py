from cifar_resnet.callbacks.averaging import EMA
from cifar_resnet.callbacks.checkpoint import Checkpoint, MemberCheckpoints, WholeCheckpoints
from cifar_resnet.callbacks.finite import FiniteLoss
from cifar_resnet.callbacks.interruption import Interruption, said_as_interrupted
from cifar_resnet.callbacks.metrics import LearningRate, MetricsCSV, Throughput
from cifar_resnet.callbacks.pictures import AugmentedBatch, ScheduleCurve
from cifar_resnet.callbacks.progress import Progress

__all__ = [
    "EMA",
    "AugmentedBatch",
    "Checkpoint",
    "FiniteLoss",
    "Interruption",
    "LearningRate",
    "MemberCheckpoints",
    "MetricsCSV",
    "Progress",
    "ScheduleCurve",
    "Throughput",
    "WholeCheckpoints",
    "said_as_interrupted",
]
