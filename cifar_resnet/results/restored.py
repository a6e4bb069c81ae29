"""The data of a network's training, as its checkpoint notes them, in the configuration of another command."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cifar_resnet import checkpoints, constraints, preflight
from cifar_resnet.compose import Job
from cifar_resnet.data import DataModule
from cifar_resnet.instantiation import instantiate


def restored_config(job: Job, checkpoint: Path) -> DictConfig:
    """The job's configuration, with the data that the checkpoint was trained on where the command names no other.

    Raises UsageError, or what `as_usage_error` makes one of, for settings and files that cannot be.
    """
    if "data" in job.cfg:
        return job.cfg
    saved = checkpoints.read(checkpoint)
    (job,) = job.composer.jobs([f"data={saved['config']['choices']['data']}", *job.overrides])
    given = [text.partition("=")[0].removeprefix("data.") for text in job.overrides]
    checkpoints.restore_data(job.cfg.data, saved, given)
    preflight.check_data(job.cfg.data)
    constraints.check_config(job.cfg)
    return job.cfg


def local_data(cfg: DictConfig) -> DataModule:
    """The data module of `cfg.data`; FileNotFoundError where it would have to be downloaded first."""
    data = instantiate(cfg.data, _convert_="all")
    if hasattr(data, "is_complete") and not data.is_complete():
        raise FileNotFoundError(f"{cfg.choices.data} is not in {data.root}")
    return data


def places_of_images(data: Mapping[str, Any]) -> list[str]:
    """The folders and archives that settings of `data` name: of a test set by itself that one. Empty for none."""
    named = data.get("test") or data.get("root") or data.get("train") or []
    return [named] if isinstance(named, str) else list(map(str, named))
