"""From a checkpoint's path to a network, with nothing else at hand."""

import contextlib
import importlib
import logging
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from omegaconf import DictConfig

from cifar_resnet import runs

if TYPE_CHECKING:
    from cifar_resnet.models import Classifier  # half of the time that a bad checkpoint would take to be refused

log = logging.getLogger("cifar_resnet")

MAX_IMAGE_SIZE = 4096
TO_RESUME = (
    "pytorch-lightning_version", "global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers", "loops",
    "callbacks", "config",
)  # fmt: skip
# what is relied on, and of which kind it must be, for a checkpoint may come from anywhere
CONTENT = {
    "architecture": str, "hyper_parameters": dict, "hyper_parameters.num_classes": int, "state_dict": dict,
    "data": dict, "data.classes": list, "data.mean": list, "data.std": list, "data.image_size": int,
    "data.split_hash": str, "data.num_train": int, "data.num_val": int,
    "config": dict, "config.seed": int, "config.data": dict,
    "config.choices": dict, "config.choices.data": str, "config.choices.model": str,
}  # fmt: skip


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
    """What the checkpoint of a network holds, on the CPU."""
    found = find(path)
    checkpoint = contents(found)
    if reason := what_is_wrong_with(checkpoint):
        raise ValueError(f"not a checkpoint of this version of cifar-train. Got {found}, {reason}")
    return checkpoint


def resumable(path: Path, weights: Mapping[str, torch.Tensor]) -> dict:
    """What a training goes on from; ValueError unless it is whole, and of a network like this one.

    Of networks side by side as well, whose common checkpoint is none to `read`. weights: the network's state_dict.
    """
    checkpoint = contents(path)
    missing = [key for key in TO_RESUME if not isinstance(checkpoint, dict) or key not in checkpoint]
    if missing:
        raise ValueError(f"nothing to go on from. Got {path}, without {', '.join(missing)}")
    shapes, own = ({name: value.shape for name, value in each.items()} for each in (checkpoint["state_dict"], weights))
    if other := sorted(shapes.items() ^ own.items(), key=str):
        raise ValueError(
            f"a checkpoint of another network than config.yaml's. Got {path}, which differs in {other[0][0]}"
        )
    return checkpoint


def contents(path: Path) -> object:
    """Read with weights_only=True, so that no code in the file runs."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # torch compares no checksums
                if damaged := archive.testzip():
                    raise ValueError(f"{damaged} is not what its checksum says")
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a file cut short, or of another kind, may raise anything
        raise ValueError(
            f"not a readable checkpoint. Got {path}, which is damaged, cut short or no checkpoint at all "
            f"({first_sentence(error)})"
        ) from error


def what_is_wrong_with(checkpoint: object) -> str | None:
    """Of the content of a file; nothing that it names has been looked up or called yet."""
    for key, kind in CONTENT.items():
        node = checkpoint
        for name in key.split("."):
            if not isinstance(node, dict) or name not in node:
                return f"without {key}"
            node = node[name]
        if not isinstance(node, kind) or isinstance(node, bool):
            return f"where {key} is {type(node).__name__}, not {kind.__name__}"
    data, choices = checkpoint["data"], checkpoint["config"]["choices"]
    if not all(isinstance(name, str) for name in data["classes"]):
        return "where data.classes are not names"
    if len(data["classes"]) != checkpoint["hyper_parameters"]["num_classes"]:
        return f"with names for {len(data['classes'])} of {checkpoint['hyper_parameters']['num_classes']} classes"
    for key in ("mean", "std"):
        if len(data[key]) != 3 or not all(isinstance(value, (int, float)) for value in data[key]):
            return f"where data.{key} is not three numbers"
    if not all(value > 0 for value in data["std"]):
        return "where data.std is not above 0"
    if not 1 <= data["image_size"] <= MAX_IMAGE_SIZE:
        return f"for images of {data['image_size']} pixels"
    if not re.fullmatch(r"[\w-]+", choices["data"]):  # it becomes an override, and that the name of a file
        return "where config.choices.data is no name"
    if not is_plain(checkpoint["config"]["data"]):
        return "where config.data is not plain settings"
    return None


def is_plain(settings: dict) -> bool:
    """Whether these are numbers, text, and lists of them: nothing to instantiate and nothing to resolve."""
    values = [item for value in settings.values() for item in (value if isinstance(value, list) else [value])]
    plain = all(value is None or isinstance(value, (bool, int, float, str)) for value in values)
    return plain and not any("${" in value for value in values if isinstance(value, str))


def restore_data(settings: DictConfig, checkpoint: dict, given: Sequence[str] = ()) -> None:
    """Put into one of our own choices of data what the checkpoint notes, but for the keys that are `given`.

    Only settings that it has: which class reads the data is never for the checkpoint to say, for that would be called.
    A folder that is not on this machine is left to this machine's own default.
    """
    for key, value in checkpoint["config"]["data"].items():
        is_gone = key == "root" and not Path(str(value)).is_dir()
        if key in settings and not key.startswith("_") and key not in given and not is_gone:
            settings[key] = value


def first_sentence(error: Exception) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return re.split(r"(?<=[a-z0-9])[.:] ", text)[0]


def load(path: str | Path) -> "Classifier":
    """The trained network, in eval mode, on the CPU.

    path: a .ckpt file or a run folder. A network from outside cifar_resnet must have been imported before.
    """
    checkpoint = read(path)

    from cifar_resnet.models import Classifier

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
    except Exception as error:  # arguments of unknown origin may raise anything
        raise ValueError(f"{path} holds another {name} than this version's ({first_sentence(error)})") from error
    model.data_state, model.config = checkpoint["data"], checkpoint["config"]
    return model.eval()
