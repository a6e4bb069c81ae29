"""The data of a network's training, as its checkpoint notes them, in the configuration of another command."""

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hydra.errors import InstantiationException
from hydra.utils import get_class
from omegaconf import DictConfig
from torch import Tensor

from cifar_resnet import checkpoints, constraints, preflight
from cifar_resnet.archives import is_archive, read_archive
from cifar_resnet.compose import Composer, Job
from cifar_resnet.data import DataModule, OwnImages
from cifar_resnet.data.published import Downloaded
from cifar_resnet.data.shifted import TestOnly
from cifar_resnet.errors import one_line, refuse_if
from cifar_resnet.instantiation import instantiate
from cifar_resnet.pictures import MAX_MEGAPIXELS, decode_all
from cifar_resnet.terminal import log


def restored_config(job: Job, checkpoint: Path, needs_images: bool = True) -> DictConfig:
    """The job's configuration, with the data that the checkpoint was trained on where the command names no other.

    needs_images: refuse data whose files are not there.
    Raises UsageError, or what `as_usage_error` makes one of, for settings and files that cannot be.
    """
    if "data" in job.cfg:
        return job.cfg
    saved = checkpoints.read(checkpoint)
    choice = saved["config"]["choices"]["data"]
    refuse_if(
        choice not in job.composer.choices_of("data"),
        f"its data is no choice here. Got {checkpoint}, trained on data={choice}; give the --config-dir that has "
        f"data/{choice}.yaml, or other data",
    )
    (job,) = job.composer.jobs([f"data={choice}", *job.overrides])
    keys = [text.lstrip("+").partition("=")[0] for text in job.overrides]
    given = [key.removeprefix("data.") for key in keys if key.startswith("data.")]
    checkpoints.restore_data(job.cfg.data, saved, given)
    if needs_images or any(text.startswith("data.") for text in job.overrides):
        preflight.check_data(job.cfg.data)
    constraints.check_config(job.cfg)
    return job.cfg


def local_data(cfg: DictConfig) -> DataModule:
    """The data module of `cfg.data`; FileNotFoundError where it would have to be downloaded first."""
    data = instantiate(cfg.data, _convert_="all")
    if hasattr(data, "is_complete") and not data.is_complete():
        raise FileNotFoundError(f"{cfg.choices.data} is not in {data.root}")
    return data


def training_data(
    paths: Sequence[Path], data: DataModule, choice: str, classes: Sequence[str], composer: Composer
) -> tuple[DataModule | None, str]:
    """The images that networks were trained with, read and divided as then; or None, and why they are not at hand.

    paths: of the checkpoints. data: which may be of the same choice, and then is read first. classes: the networks'.
    """
    saved = [checkpoints.read(path) for path in paths]
    own_choice = saved[0]["config"]["choices"]["data"]
    try:
        refuse_if(len({each["data"]["split_hash"] for each in saved}) > 1, "the members held out different ones")
        if choice == own_choice:
            with contextlib.suppress(ValueError, OSError):  # a part of its own to test on, or other settings
                return as_in_training(data, saved), ""
        (job,) = composer.jobs([f"data={own_choice}"])
        checkpoints.restore_data(job.cfg.data, saved[0])
        data = local_data(job.cfg)  # nothing is downloaded for this
        data.order_classes(classes)
        data.prepare_data()
        return as_in_training(data, saved), ""
    except (ValueError, OSError, InstantiationException) as error:
        return None, one_line(error)


def as_in_training(data: DataModule, saved: Sequence[dict]) -> DataModule:
    """The same, read; ValueError where its images are others, or are otherwise divided, than these checkpoints say."""
    data.load()
    own: dict[str, object] = {"split_hash": data.split_hash, "train_hash": data.train_hash}
    if len({each["data"]["num_train"] for each in saved}) == 1:  # else members may have had parts of the same images
        own["num_train"] = len(data.train)
    refuse_if(
        any(each["data"].get(key, own[key]) != own[key] for each in saved for key in own),  # some have no train_hash
        "these are others than in training",
    )
    return data


def other_images(name: str, cfg: DictConfig, composer: Composer, image_size: int) -> Tensor:
    """Images of other things: (N, 3, image_size, image_size) uint8.

    name: a choice of data, whose test images are taken; else a folder of pictures at any depth, or an archive.
    cfg: of the command, whose data.root other sets lie in as well.
    """
    if name not in composer.choices_of("data"):
        arrays = []
        found = preflight.input_files(name, "ood").without_documents()
        paths = found.files
        refuse_if(not paths, f"ood must be pictures, or archives of them. Got {name}, where there is none")
        if words := found.in_words():
            log.warning(f"warning: passed over in {name}: {words}")
        if pictures := [path for path in paths if not is_archive(path)]:
            arrays.append(np.stack(decode_all(pictures, image_size, MAX_MEGAPIXELS)[0]).transpose(0, 3, 1, 2))
        arrays += [read_archive(path, image_size, labelled=False).images for path in paths if is_archive(path)]
        return torch.from_numpy(np.concatenate(arrays))
    (job,) = composer.jobs([f"data={name}"])
    refuse_if(
        issubclass(get_class(job.cfg.data._target_), OwnImages),
        f"ood={name} does not say where its images are. Give the folder or the archive itself: ood=…",
    )
    is_published = all(
        issubclass(get_class(each._target_), (Downloaded, TestOnly)) for each in (cfg.data, job.cfg.data)
    )
    for key, value in (("root", cfg.data.get("root") if is_published else None), ("image_size", image_size)):
        if key in job.cfg.data and value is not None:
            job.cfg.data[key] = value
    data = instantiate(job.cfg.data, _convert_="all")
    refuse_if(
        data.image_size != image_size,
        f"the network looks at {image_size} pixels. Got ood={name} with images of {data.image_size}",
    )
    refuse_if(data.conditions, f"ood is one set of images. Got {name}, of {len(data.conditions)} conditions")
    data.prepare_data()
    return data.read(train=False)[0]


def places_of_images(data: Mapping[str, Any]) -> list[str]:
    """The folders and archives that settings of `data` name: of a test set by itself that one. Empty for none."""
    named = data.get("test") or data.get("root") or data.get("train") or []
    return [named] if isinstance(named, str) else list(map(str, named))
