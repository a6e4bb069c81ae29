from cifar_resnet.optim.schedules import constant, cosine, multistep, one_cycle

__all__ = ["constant", "cosine", "multistep", "one_cycle"]
