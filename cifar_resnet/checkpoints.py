"""From a checkpoint's path to a network, with nothing else at hand."""

import contextlib
import importlib
import logging
import re
from collections.abc import Sequence
from pathlib import Path

import torch

from cifar_resnet import runs
from cifar_resnet.models import Classifier

log = logging.getLogger("cifar_resnet")

CONTENT = ("architecture", "hyper_parameters", "state_dict", "data", "config")


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


def members(paths: str | Path | Sequence[str | Path]) -> list[Path]:
    """The checkpoints that these paths mean: .ckpt files, run folders, and folders of runs, such as a sweep's.

    Of a folder of runs those that have finished, in the order of their names, 10 after 9.
    """
    found = []
    for path in [Path(paths)] if isinstance(paths, (str, Path)) else map(Path, paths):
        if not path.is_dir() or (path / "checkpoints").is_dir():
            found.append(find(path))
            continue
        begun = sorted((file.parent for file in path.rglob(runs.CONFIG)), key=natural)
        finished = [run_dir for run_dir in begun if runs.read_record(run_dir)]
        if not finished:
            raise FileNotFoundError(
                f"no finished run. Got {path}; give a .ckpt file, a run folder, or a sweep's folder"
            )
        if len(finished) < len(begun):
            log.warning(f"warning: {len(begun) - len(finished)} of {len(begun)} runs in {path} have not finished\n")
        found += map(find, finished)
    if not found:
        raise FileNotFoundError("no checkpoint given. Give a .ckpt file, a run folder, or several of them")
    return found


def natural(path: Path) -> list:
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", str(path))]


def run_dir_of(path: Path) -> Path | None:
    """The run folder that a checkpoint lies in, if it does."""
    folder = path.resolve().parent.parent
    return folder if path.parent.name == "checkpoints" and (folder / runs.CONFIG).is_file() else None


def read(path: str | Path) -> dict:
    """What the checkpoint holds, on the CPU. Read with weights_only=True, so that no code in the file runs."""
    found = find(path)
    try:
        checkpoint = torch.load(found, map_location="cpu", weights_only=True)
    except Exception as error:  # a file cut short, or of another kind, may raise anything
        raise ValueError(f"not a readable checkpoint: {found} ({first_sentence(error)})") from error
    missing = [key for key in CONTENT if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise ValueError(f"not a checkpoint of cifar-train, which would hold {', '.join(missing)}. Got {found}")
    return checkpoint


def first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[a-z0-9])[.:] ", text)[0]


def load(path: str | Path) -> Classifier:
    """The trained network, in eval mode, on the CPU.

    path: a .ckpt file or a run folder. A network from outside cifar_resnet must have been imported before.
    """
    checkpoint = read(path)
    name = str(checkpoint["architecture"])
    module, _, _ = name.rpartition(".")
    if module.startswith("cifar_resnet.models."):
        with contextlib.suppress(ImportError):  # a module of another version: unknown, as said below
            importlib.import_module(module)
    known = {f"{cls.__module__}.{cls.__qualname__}": cls for cls in Classifier.__subclasses__()}
    if name not in known:
        raise ValueError(f"a checkpoint of an unknown network. Got {name} in {path}; import its module first")
    try:
        model = known[name](**checkpoint["hyper_parameters"])
        model.load_state_dict(checkpoint["state_dict"])
    except (TypeError, RuntimeError) as error:
        raise ValueError(f"{path} holds another {name} than this version's ({first_sentence(error)})") from error
    model.data_state, model.config = checkpoint["data"], checkpoint["config"]
    return model.eval()
