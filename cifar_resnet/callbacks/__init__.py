from cifar_resnet.callbacks.averaging import EMA
from cifar_resnet.callbacks.checkpoint import Checkpoint
from cifar_resnet.callbacks.metrics import MetricsCSV, Throughput
from cifar_resnet.callbacks.pictures import AugmentedBatch, ScheduleCurve
from cifar_resnet.callbacks.progress import Progress

__all__ = ["EMA", "AugmentedBatch", "Checkpoint", "MetricsCSV", "Progress", "ScheduleCurve", "Throughput"]
