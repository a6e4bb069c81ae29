from cifar_resnet.optim.muon import Muon
from cifar_resnet.optim.sam import SAM
from cifar_resnet.optim.schedules import constant, cosine, linear, multistep, one_cycle
from cifar_resnet.optim.sgd import SGD

__all__ = ["SAM", "SGD", "Muon", "constant", "cosine", "linear", "multistep", "one_cycle"]
