"""ResNets on CIFAR-10 with PyTorch Lightning and Hydra.

from cifar_resnet import load
from cifar_resnet.api import train

record = train(overrides=["model=resnet20", "trainer.max_epochs=15"])   # what cifar-train would do
network = load(record["run_dir"])            # in eval mode, on the CPU
probabilities = network.predict(images)      # uint8, of any size
"""

import os
from collections.abc import Sequence

__all__ = ["load"]


def load(path: str, trust: Sequence[str] = ()):
    """The trained network, a `Classifier`, of a checkpoint or run folder, in eval mode, on the CPU.

    trust: modules whose networks may be imported, beside those of this package, torch and torchvision.
    """
    from cifar_resnet import checkpoints  # not at the top: this file is run before any module of the package

    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"load takes the path of a checkpoint or run folder. Got {path!r}")
    if isinstance(trust, str):
        raise TypeError(f"trust is a list of modules. Got {trust!r}; give [{trust!r}]")
    return checkpoints.load(path, trust)
