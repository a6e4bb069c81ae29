# __init__.py cannot name the class, for the package is imported without torch
import os
from collections.abc import Sequence

from cifar_resnet.models import Classifier

__all__ = ["load"]

def load(path: str | os.PathLike[str], trust: Sequence[str] = ()) -> Classifier: ...
