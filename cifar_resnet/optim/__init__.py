from cifar_resnet.optim.muon import Muon
from cifar_resnet.optim.sam import SAM
from cifar_resnet.optim.schedules import constant, cosine, linear, multistep, one_cycle

__all__ = ["SAM", "Muon", "constant", "cosine", "linear", "multistep", "one_cycle"]
