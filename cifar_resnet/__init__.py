"""ResNets on CIFAR-10 with PyTorch Lightning and Hydra.

from cifar_resnet import load
from cifar_resnet.train import train

record = train(overrides=["model=resnet20", "trainer.max_epochs=15"])   # what cifar-train would do
network = load(record["run_dir"])            # in eval mode, on the CPU
probabilities = network.predict(images)      # uint8, of any size
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from cifar_resnet.models import Classifier

__all__ = ["load"]


def load(path: str) -> "Classifier":
    """The trained network of a checkpoint or run folder, in eval mode, on the CPU; see `Classifier.predict`."""
    from cifar_resnet import checkpoints

    return checkpoints.load(path)
