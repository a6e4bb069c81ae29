"""The format of checkpoints: the one writer, the one reader, and what is checked between them.

A checkpoint is Lightning's, with these keys beside its own, all of plain values and tensors:

    format         FORMAT, the version of this list
    architecture   the network's class, by module and name, to be called with Lightning's `hyper_parameters`
    config         the whole configuration of the run
    data           what the images and classes are: `DataModule.state`
    metrics        those of its epoch; of one that was not validated, without validation scores
    ended          whether the training ended there early, so that only its test is left: `callbacks.Ending`
    out_of_time    the seconds that it took, where its time was over
    selection      what selects the images that the network is trained on: `models.Selection`, where there is one
    mid_epoch_state   of each process, what it takes to go on within an epoch: `callbacks.MidEpochState`

It is read without running any code in it.
"""

import contextlib
import importlib
import inspect
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Interval, Len
from lightning.pytorch.plugins.io import TorchCheckpointIO
from omegaconf import DictConfig, OmegaConf
from pydantic import Field, JsonValue
from torch.utils._pytree import tree_map

from cifar_resnet.constraints import Positive, adapter_of, in_words, problems_with, value_at
from cifar_resnet.errors import RunError, as_usage_error, first_sentence, one_line, refuse_if
from cifar_resnet.models import Classifier
from cifar_resnet.quoting import in_shell
from cifar_resnet.readable import why_unreadable
from cifar_resnet.runs import find_checkpoint, last_checkpoint, replacing
from cifar_resnet.trust import check_targets, is_trusted, trusting

FORMAT = 2
TO_RESUME = (
    "pytorch-lightning_version", "global_step", "epoch", "state_dict", "optimizer_states", "lr_schedulers", "loops",
    "callbacks", "config",
)  # fmt: skip
# what is relied on, for a checkpoint may come from anywhere
CONTENT: dict[str, object] = {
    "architecture": str,
    "hyper_parameters.num_classes": int,
    "state_dict": dict,
    "data.classes": list[str],
    "data.mean": Annotated[list[float], Len(3, 3)],
    "data.std": Annotated[list[Positive], Len(3, 3)],
    "data.image_size": Annotated[int, Interval(ge=1, le=4096)],
    "data.split_hash": str,
    "data.num_train": int,
    "data.num_val": int,
    "config.seed": int,
    "config.data": dict[str, JsonValue],
    "config.choices.data": Annotated[str, Field(pattern=r"^[\w.-]+(/[\w.-]+)*$")],  # it becomes an override
    "config.choices.model": str,
}


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint beside the last one and then renames it: at no moment is there only half of one.

    for_test: give no states of callbacks, of which one that averages would put other weights in place of those there.
    """

    for_test = False

    def load_checkpoint(self, path: str | Path, *arguments: Any, **named: Any) -> dict[str, Any]:
        # from the root: Lightning would download what begins with "http", be it a folder's name
        checkpoint = super().load_checkpoint(Path(path).absolute(), *arguments, **named)
        return {key: checkpoint[key] for key in checkpoint if key != "callbacks" or not self.for_test}

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        path, checkpoint = Path(path), on_the_host(checkpoint)
        refuse_unreadable(checkpoint)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with replacing(path, alone=True) as file:  # a run folder is claimed by who trains
                torch.save(checkpoint | {"format": FORMAT}, file)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
            kept = f"the one before is whole: {path}" if path.exists() else "there is none yet"
            raise RunError(f"a checkpoint could not be written ({one_line(error)}); {kept}") from error


def refuse_unreadable(checkpoint: dict) -> None:
    """RunError for what a callback or a data module of one's own would keep there and nobody could read again."""
    plain = {
        key: tree_map(lambda value: None if isinstance(value, torch.Tensor) else value, part)
        for key, part in checkpoint.items()
    }
    if not why_unreadable(plain):
        return
    parts = {
        f"{key}.{name}": each for key, part in plain.items() if isinstance(part, dict) for name, each in part.items()
    }
    strange = next((name for name, part in (parts | plain).items() if why_unreadable(part)), "")
    raise RunError(
        f"a checkpoint holds plain values and tensors, so that it can be read without running any code. Got others in "
        f"{strange}; have its state_dict give numbers, texts, lists and dictionaries, or leave save_hyperparameters "
        f"out"
    )


def on_the_host(checkpoint: dict) -> dict:
    """The same with all tensors of a GPU copied by one wait for it, where torch.save would wait for each."""
    if not torch.cuda.is_initialized():  # a training on a CPU leaves a GPU alone
        return checkpoint
    copied = tree_map(
        lambda value: value.to("cpu", non_blocking=True) if isinstance(value, torch.Tensor) else value, checkpoint
    )
    torch.cuda.synchronize()
    return copied


def contents(path: Path) -> dict:
    """What the file holds, on the CPU; ValueError unless it is a whole checkpoint of this format."""
    try:
        with zipfile.ZipFile(path) as archive:  # torch compares no checksums
            refuse_if(damaged := archive.testzip(), f"{damaged} is not what its checksum says")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise ValueError(f"a checkpoint that you may not read. Got {path}; have that allowed") from error
    except Exception as error:  # a file cut short, or of another kind, may raise anything
        raise ValueError(
            f"not a readable checkpoint. Got {path}, which is damaged, cut short or no checkpoint at all "
            f"({first_sentence(error)})"
        ) from error
    found = checkpoint.get("format") if isinstance(checkpoint, dict) else None
    refuse_if(
        found is None
        and isinstance(checkpoint, dict)
        and "pytorch-lightning_version" in checkpoint
        and checkpoint.get("config") is None,
        f"not a checkpoint of cifar-train's. Got {path}, of Lightning's own Trainer, which does not keep all that a "
        f"network needs to be used alone; load it by its class's load_from_checkpoint, or train by cifar-train",
    )
    refuse_if(
        found != FORMAT,
        f"not a checkpoint of this version of cifar-train, whose format is {FORMAT}. Got {path} with "
        f"{'none' if found is None else f'format {found}'}; train anew, or use the version that wrote it",
    )
    return checkpoint


def read(path: str | Path) -> dict:
    """What the checkpoint of a network holds, on the CPU; nothing that it names has been looked up or called.

    path: a .ckpt file or a run folder.
    """
    found = find_checkpoint(path)
    checkpoint = contents(found)
    refuse_if(
        reason := what_is_wrong_with(checkpoint),
        f"not a checkpoint of this version of cifar-train. Got {found}, {reason}",
    )
    return checkpoint


def what_is_wrong_with(checkpoint: dict) -> str | None:
    for key, hint in CONTENT.items():
        value = value_at(checkpoint, key)
        if problems_with(value, hint):
            return f"where {key} is {'missing' if value is None else 'not ' + in_words(adapter_of(hint).json_schema())}"
    classes, count = checkpoint["data"]["classes"], checkpoint["hyper_parameters"]["num_classes"]
    if len(classes) != count:
        return f"with names for {len(classes)} of {count} classes"
    return "where config.data is not plain settings" if "${" in str(checkpoint["config"]["data"]) else None


def check_data(state: dict, config: Mapping) -> None:
    """ValueError, before any training, for data of which nothing could read the checkpoints.

    state, config: as the checkpoints will hold them.
    """
    about = {"data": state, "config": config}
    for key in (key for key in CONTENT if key.startswith(("data.", "config."))):
        value, hint = value_at(about, key), CONTENT[key]
        refuse_if(
            problems_with(value, hint),
            f"checkpoints keep {key}, as {in_words(adapter_of(hint).json_schema())}. Got {value!r}; change it",
        )


def resumable(path: Path, weights: Mapping[str, torch.Tensor]) -> dict:
    """What a training goes on from; ValueError unless it is whole, and of a network like this one.

    Of networks side by side as well, whose common checkpoint is none to `read`. weights: the network's state_dict.
    """
    checkpoint = contents(path)
    refuse_if(
        missing := [key for key in TO_RESUME if key not in checkpoint],
        f"nothing to go on from. Got {path}, without {', '.join(missing)}",
    )
    shapes, own = ({name: value.shape for name, value in each.items()} for each in (checkpoint["state_dict"], weights))
    if other := sorted(shapes.items() ^ own.items(), key=str):
        raise ValueError(
            f"a checkpoint of another network than config.yaml's. Got {path}, which differs in {other[0][0]}"
        )
    return checkpoint


@as_usage_error()
def batches_before(run_dir: Path) -> tuple[int, int, object, bool] | None:
    """Of the checkpoint that a run goes on from: its processes, images in a batch of each, trainer.devices then, and
    whether it is within an epoch. None where there is none to go on from."""
    path = last_checkpoint(run_dir)
    if not path.exists():
        return None
    checkpoint = contents(path)
    states = checkpoint.get("mid_epoch_state")
    batch_size, devices = (value_at(checkpoint, f"config.{key}") for key in ("data.batch_size", "trainer.devices"))
    if not states or not batch_size:
        return None
    is_within = not checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"]
    return len(states), batch_size, devices, is_within


def load(path: str | Path, trusted: Sequence[str] = ()) -> Classifier:
    """The trained network, in eval mode, on the CPU.

    path: a .ckpt file or a run folder. trusted: modules whose networks may be imported, and called, beside those of
    `trust.KNOWN` and those that have been imported already.
    """
    checkpoint = read(path)
    network = class_of(checkpoint["architecture"], path, trusted)
    check_targets(checkpoint["hyper_parameters"], path, (), trusted)
    try:
        model = network(**checkpoint["hyper_parameters"])
        model.load_state_dict(checkpoint["state_dict"])
    except Exception as error:  # arguments of unknown origin may raise anything
        raise ValueError(
            f"{path} holds another {checkpoint['architecture']} than this version's ({first_sentence(error)})"
        ) from error
    model.on_load_checkpoint(checkpoint)
    return model.eval()


def check_loadable(network: Classifier) -> None:
    """ValueError, before any training, for a network that `load` could not make from its checkpoints."""
    name, given = type(network).__name__, dict(network.hparams)
    accepted = inspect.signature(type(network)).parameters.values()
    if not any(each.kind is inspect.Parameter.VAR_KEYWORD for each in accepted):
        unknown = [key for key in given if key not in {each.name for each in accepted}]
        refuse_if(
            unknown,
            f"{name} does not take what every Classifier takes. Got no argument {', '.join(unknown)}; end its "
            f"__init__'s with **shared, and hand them on by super().__init__(**shared)",
        )
    for key, value in given.items():
        if error := why_unreadable({key: value}):
            raise ValueError(
                f"{name}'s arguments are kept in its checkpoints, so they are plain values. Got {key}, "
                f"{'an object of ' + type(value).__name__}; give it by name, and make it in __init__"
            ) from error


def class_of(name: str, path: str | Path, trusted: Sequence[str]) -> type[Classifier]:
    """The network's class. name: by module and name; path: the checkpoint that says so."""
    known = {each.architecture(): each for each in subclasses(Classifier)}
    if name not in known and is_trusted(name, trusted):
        with contextlib.suppress(ImportError):  # a module of another version: unknown, as said below
            importlib.import_module(name.rpartition(".")[0])
        known = {each.architecture(): each for each in subclasses(Classifier)}
    refuse_if(
        name not in known,
        f"a checkpoint of a network that is not in this package. Got {name} in {path}; if you trust it, add "
        f"{in_shell(trusting([name]))}",
    )
    return known[name]


def subclasses(cls: type[Classifier]) -> list[type[Classifier]]:
    """All of them, derived directly or not."""
    return [found for direct in cls.__subclasses__() for found in (direct, *subclasses(direct))]


def restore_data(settings: DictConfig, checkpoint: dict, given: Sequence[str] = ()) -> None:
    """Put into one of our own choices of data what the checkpoint notes, but for the keys that are `given`.

    Only settings that it has: which class reads the data is never for the checkpoint to say, for that would be called.
    A place that is not on this machine is left to this machine's own default, if there is one; labels for one that is
    given are not its.
    """
    kept = {*given, *(f"{split}_labels" for split in given), "device"}
    saved = {key: value for key, value in checkpoint["config"]["data"].items() if key not in kept}
    is_elsewhere = "root" in saved and not Path(str(saved["root"])).exists()
    if is_elsewhere and not OmegaConf.is_missing(settings, "root"):
        del saved["root"]
    put(settings, saved)


def put(settings: DictConfig, saved: Mapping[str, Any]) -> None:
    """Of nested settings each by itself: what is called stays this machine's."""
    known = list(settings)  # those without a default as well
    for key in (key for key in saved if key in known and not key.startswith("_")):
        inner = None if OmegaConf.is_missing(settings, key) else settings[key]
        if isinstance(saved[key], Mapping) and isinstance(inner, DictConfig) and "_target_" in inner:
            put(inner, saved[key])
        elif not names_a_target(saved[key]):
            settings[key] = saved[key]


def names_a_target(value: object) -> bool:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    return (isinstance(value, Mapping) and "_target_" in value) or any(map(names_a_target, inner))
