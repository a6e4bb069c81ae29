"""Weights to start from: those of another training, or of a file that another program wrote."""

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from cifar_resnet import checkpoints
from cifar_resnet.data import DataModule
from cifar_resnet.errors import UsageError, first_sentence, refuse_if
from cifar_resnet.models import Classifier, Wrapped

COUNTERS = "num_batches_tracked"  # which some programs leave out, and no forward pass needs


def weights_in(path: str | Path) -> dict[str, Tensor]:
    """By name. path: a checkpoint, a run folder or a .safetensors file. Nothing that it names is called."""
    if Path(path).suffix != ".safetensors":
        return checkpoints.read(path)["state_dict"]
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(f"not a readable .safetensors file. Got {path} ({first_sentence(error)})") from error
    refuse_if(
        any(name.startswith("members.") for name in found),
        f"init is one network. Got {path}, an exported ensemble; give one of its members' run folder",
    )
    return found


def start_from(model: Classifier, path: str | Path) -> str:
    """Give the model these weights, but for a classifier of another number of classes; what was done, in one line.

    ValueError where anything else does not fit.
    """
    own = model.state_dict()
    found = fitting_names(weights_in(path), own, is_wrapped=isinstance(model, Wrapped))
    head = head_of(own, model.hparams["num_classes"])
    fresh = [name for name in head if name not in found or found[name].shape != own[name].shape]
    lacking = [name for name in own if name not in found and name not in head and not name.endswith(COUNTERS)]
    extra = [name for name in found if name not in own]
    other = [name for name in own if name in found and name not in fresh and found[name].shape != own[name].shape]
    for names, what in ((lacking, "lacks"), (extra, "also has"), (other, "has of another shape")):
        refuse_if(
            names,
            f"init must be of a network like this one, but for its classifier. Got {path}, which {what} "
            f"{', '.join(names[:3])}{f' and {len(names) - 3} more' * (len(names) > 3)}; give the model's settings as "
            f"they were there",
        )
    if frozen := [name for name in fresh if model.is_frozen(name)]:
        raise UsageError(
            f"what begins anew has to be trained. Got model.freeze={list(model.freeze_parts)}, which holds "
            f"{frozen[0]}; leave that part out"
        )
    refuse_if(
        damaged := next((name for name, tensor in found.items() if not tensor.isfinite().all()), None),
        f"init holds numbers that are not finite. Got {damaged} in {path}; give other weights",
    )
    taken = {name: tensor for name, tensor in found.items() if name not in fresh}
    with torch.no_grad():
        for name, tensor in taken.items():
            own[name].copy_(tensor)
    refuse_if(not taken, f"init has nothing for this network. Got {path}")
    text = f"{len(taken)} of {len(own)} tensors from {path}"
    return f"{text}; fresh: {', '.join(fresh)}, for {model.hparams['num_classes']} classes" if fresh else text


def seen_before(path: str | Path, data: DataModule, settings: Mapping) -> str | None:
    """Which of the images that are held out now these weights were trained on, as far as their checkpoint tells; None
    for none that it tells of.

    path: as of `weights_in`. data: read and divided; settings: of the configuration, that it was made of.
    """
    if Path(path).suffix == ".safetensors":
        return None
    saved = checkpoints.read(path)
    before, own, then = saved["data"], data.state(), saved["config"]["data"]
    if data.has_val and before.get("train_hash") == own["train_hash"] and before["split_hash"] != own["split_hash"]:
        return "validation images: the same images were divided otherwise"
    is_same_place = all(then.get(key) == settings.get(key) for key in ("_target_", "root", "train"))
    is_same_draw = all(then.get(key) == settings.get(key) for key in ("split_seed", "num_test"))
    is_same_draw = is_same_draw and before.get("train_hash") == own["train_hash"]  # as long as no image came or went
    if data.kept_for_test and is_same_place and not is_same_draw:
        return "test images: they were drawn otherwise from the same ones"
    return None


def fitting_names(found: Mapping[str, Tensor], own: Mapping[str, Tensor], is_wrapped: bool) -> dict[str, Tensor]:
    """The same under the model's names: a module that is wrapped here may have been none where the file comes from."""
    if is_wrapped and not any(name in own for name in found):
        return {f"net.{name}": tensor for name, tensor in found.items()}
    return dict(found)


def head_of(own: Mapping[str, Tensor], num_classes: int) -> list[str]:
    """The tensors of the last layer that has one output for each class."""
    rows = [name for name, tensor in own.items() if tensor.ndim >= 2 and len(tensor) == num_classes]
    part = rows[-1].rpartition(".")[0] if rows else None
    return [name for name in own if name.rpartition(".")[0] == part]
