"""From a checkpoint's path to a network, with nothing else at hand."""

import importlib
from pathlib import Path

import torch

from cifar_resnet.models import Classifier


def find(path: str | Path) -> Path:
    """The checkpoint itself, or of a run folder the one that validation chose, or else the last."""
    path = Path(path)
    candidates = (
        [path] if path.suffix == ".ckpt" else [path / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    )
    for candidate in candidates:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(f"no checkpoint. Got {path}; give a .ckpt file, or a run folder with checkpoints/ in it")


def read(path: str | Path) -> dict:
    """What the checkpoint holds, on the CPU. Read with weights_only=True, so that no code in the file runs."""
    return torch.load(find(path), map_location="cpu", weights_only=True)


def load(path: str | Path) -> Classifier:
    """The trained network, in eval mode, on the CPU.

    path: a .ckpt file or a run folder. A network from outside cifar_resnet must have been imported before.
    """
    checkpoint = read(path)
    name = checkpoint.get("architecture", "")
    module, _, _ = name.rpartition(".")
    if module.startswith("cifar_resnet.models."):
        importlib.import_module(module)
    known = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in Classifier.__subclasses__()}
    if name not in known:
        raise ValueError(
            f"a checkpoint of an unknown network. Got {name or 'no name'} in {path}; import its module first"
        )
    model = known[name](**checkpoint["hyper_parameters"])
    model.load_state_dict(checkpoint["state_dict"])
    return model.eval()
