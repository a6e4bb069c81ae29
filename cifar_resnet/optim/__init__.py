from cifar_resnet.optim.muon import Muon
from cifar_resnet.optim.sam import SAM, RngState, frozen_statistics, two_passes
from cifar_resnet.optim.schedules import Schedule, constant, cosine, linear, multistep, one_cycle
from cifar_resnet.optim.sgd import SGD

__all__ = [
    "SAM", "SGD", "Muon", "RngState", "Schedule", "constant", "cosine", "frozen_statistics", "linear", "multistep",
    "one_cycle", "two_passes",
]  # fmt: skip
