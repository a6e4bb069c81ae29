"""What a user's own YAML file may have got wrong, as the configuration that it is composed into shows."""

from collections.abc import Iterable, Mapping
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_resnet.constraints import as_yaml, did_you_mean
from cifar_resnet.errors import refuse_if
from cifar_resnet.overrides import COLLECTIONS, FILLED_IN, MAY_BE_LEFT_OUT


def refuse_gaps(cfg: DictConfig, chosen: Mapping[str, str | None], default: DictConfig, groups: Iterable[str]) -> None:
    """UsageError for what is unknown, and for what nothing works without: a ~ may have taken that away as well.

    chosen: the file of each group. default: the configuration without any override.
    groups: all that is chosen by name, where there are choices.
    """
    known = sorted({*map(str, default.keys()), *groups})
    # `keys`, for `in` leaves out ???; and a key may be a number
    unknown = next((str(key) for key in cfg.keys() if key == "experiment" or key not in known), None)  # noqa: SIM118
    refuse_if(
        unknown is not None,
        f"unknown key {unknown} in a file of settings.{did_you_mean(unknown or '', known)}"
        + " A recipe begins with the line # @package _global_" * (unknown == "experiment"),
    )
    filled = next((key for key in FILLED_IN if cfg.get(key)), "")
    refuse_if(filled, f"{filled} is filled in. Got {cfg.get(filled)} in a file of settings; leave that out")
    for key in dict.fromkeys((*default, *MAY_BE_LEFT_OUT)):
        may_be_none = default.get(key) is None or key in MAY_BE_LEFT_OUT
        if key == "hydra" or (may_be_none and (cfg.get(key) is None or key not in MAY_BE_LEFT_OUT)):
            continue
        refuse_if(cfg.get(key) is None, f"nothing works without {key}. Got none; leave it as it is, or give another")
        if OmegaConf.is_dict(default.get(key)) or key in MAY_BE_LEFT_OUT:
            refuse_no_part(key, cfg[key], chosen, default)
    for key in (f"{group}.{name}" for group in COLLECTIONS for name in cfg.get(group) or ()):
        part = OmegaConf.select(cfg, key)
        refuse_if(
            not OmegaConf.is_dict(part) or "_target_" not in part,
            f"{key}._target_ says what it is. Got {key}: {as_yaml(part)}; give settings with one",
        )


def refuse_no_part(key: str, part: Any, chosen: Mapping[str, str | None], default: DictConfig) -> None:
    """UsageError for what no part of a training can be made from."""
    groups = default.hydra.runtime.choices
    refuse_if(
        not OmegaConf.is_dict(part),
        f"{key} must be settings. Got {key}: {part} in a file of settings"
        + f"; to choose it there: defaults: [override /{key}: {part}]" * (key in groups),
    )
    refuse_if(
        (default.get(key) is None or "_target_" in default[key]) and "_target_" not in part,
        f"{key}._target_ says what it is. Got none; leave it as it is, or give another"
        + f"; or choose one in the file's defaults: override /{key}: …" * (key in groups),
    )
    refuse_if(
        key in groups and key not in (*chosen, *COLLECTIONS),
        f"{key} is one choice. Got a list in the defaults of a file; give one of them",
    )
    if key == "optimizer":
        whole = next(
            (place for place, each in ((key, part), ("optimizer.base", part.get("base"))) if is_made_at_once(each)), ""
        )
        refuse_if(whole, f"an optimizer gets its parameters later. Got {whole} without _partial_: true; add that line")
    refuse_if(
        key not in ("optimizer", "scheduler") and part.get("_partial_"),
        f"{key} is made at once. Got _partial_: true; leave that out",
    )


def is_made_at_once(part: Any) -> bool:
    return OmegaConf.is_dict(part) and "_target_" in part and not part.get("_partial_")
