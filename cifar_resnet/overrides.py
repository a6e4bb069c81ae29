"""Overrides, one at a time: read, told from several values, and held to the kind of their default."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException, OverrideParseException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from cifar_resnet.constraints import INSTEAD, RENAMED
from cifar_resnet.errors import UsageError, refuse_if
from cifar_resnet.quoting import in_quotes, in_shell

MAY_BE_LEFT_OUT = ("scheduler", "averaging", "resize", "selection")
COLLECTIONS = ("callbacks", "logger")
# which admit values of several kinds: a number, a list of them, a text · true, false, a text
OF_SEVERAL_KINDS = ("trainer.devices", "graph", "trainer.deterministic")
FILLED_IN = ("overrides", "choices")  # of a configuration, by the composer
OF_THE_WHOLE = ("name", "dry_run")  # and search.…: what a sweep or a search has one of


@dataclass
class Interval:
    """Numbers to search through: whole ones where the setting's default is. log: by ratio, not by difference."""

    low: float
    high: float
    log: bool


def parse(overrides: list[str]) -> list[Override]:
    refuse_if(
        nameless := next((text for text in overrides if text.startswith("=")), None),
        f"a setting is key=value, without blanks around the =. Got {nameless}",
    )
    try:
        return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides(overrides)
    except OverrideParseException as error:
        key, equals, value = error.override.partition("=")
        advice = "; name what the path is for, such as checkpoint=… or resume=…" * ("/" in error.override)
        refuse_if(not equals, f"a setting is key=value. Got {error.override}{advice}")
        is_key = re.fullmatch(r"[+~]*[\w$./@:-]+", key, re.ASCII)
        refuse_if(not is_key, f"a setting is key=value, with a key of letters, digits and dots. Got {error.override}")
        refuse_if(
            value.endswith(","),
            f"a list ends with a comma. Got {error.override}; put no blank after a comma, or quotes around it all",
        )
        text = value.strip(value[0]) if value.startswith(("'", '"')) else value
        raise UsageError(
            f"a value that cannot be read. Got {error.override}; where it holds brackets, commas, quotes or =, "
            f"put it in quotes within quotes: {in_shell(f'{key}={in_quotes(text)}')}"
        ) from error


def instead_of(key: str, given: str) -> str | None:
    """What to use here, for the name of a setting elsewhere."""
    name = key.rpartition(".")[2]
    if name not in INSTEAD:
        return None
    value, ours = given.partition("=")[2], INSTEAD[name].partition(" ")[0]
    remedy = f"give {ours}={value}" if value and name in RENAMED else "leave it out"
    return f"there is no {key} here: {INSTEAD[name]}. Got {given}; {remedy}"


def refuse_unclear_sweeps(swept: Sequence[Override], parsed: Sequence[Override]) -> None:
    """Refuse what would be varied in vain: what is given once more, and what all jobs share."""
    for override in swept:
        same = [
            each for each in parsed if (each.key_or_group, each.package) == (override.key_or_group, override.package)
        ]
        refuse_if(
            len(same) > 1,
            f"one key, several values, and given twice. Got {' and '.join(each.input_line for each in same)}; "
            f"leave out one of them",
        )
        key = override.key_or_group
        refuse_if(
            key in OF_THE_WHOLE or key.startswith("search."),
            f"{key} is the same for all that is tried. Got {override.input_line}; give one value",
        )


def refuse_several_folders(parsed: Sequence[Override]) -> None:
    """Refuse what a sweep would take for one strange name."""
    for override in parsed:
        folder = str(override.value()) if override.key_or_group == "output_dir" else ""
        refuse_if(
            "," in folder and not Path(folder).exists(),
            f"a sweep lies in one folder. Got output_dir={folder}; give one, or make one of that name first",
        )


def values_of(override: Override) -> list[str]:
    """The overrides that one comma-separated, choice(…) or range(…) override stands for."""
    refuse_if(
        not override.is_discrete_sweep(),
        f"an interval is no list of values to try. Got {override.input_line}; give values, or range",
    )
    values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    refuse_if(not values, f"nothing to try. Got {override.input_line}; give one value or more")
    return values


def domain_of(
    override: Override, default: object, takes_whole: Callable[[], bool | None] = lambda: None
) -> Interval | list[str]:
    """default: of the key. takes_whole: says whether its argument takes whole numbers alone, None where nobody knows;
    asked of intervals alone, for it may have to import that."""
    if not override.is_interval_sweep():
        return [value.partition("=")[2] for value in values_of(override)]
    sweep: Any = override.value()
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    refuse_if(
        log and low <= 0 and low < high,
        f"a search by ratio goes through numbers above 0. Got {override.input_line}; begin above 0, or leave out "
        f"tag(log,…)",
    )
    refuse_if(
        not (low < high and math.isfinite(high - low)),
        f"an interval goes from a smaller to a larger number. Got {override.input_line}",
    )
    if (is_whole := takes_whole()) is None:
        is_whole = isinstance(default, int) and low.is_integer() and high.is_integer()
    # Hydra's intervals are of fractions; a batch size is not
    refuse_if(
        is_whole and not (low.is_integer() and high.is_integer()),
        f"{override.key_or_group} is a whole number. Got {override.input_line}; give whole ends",
    )
    return Interval(int(low), int(high), log) if is_whole else Interval(low, high, log)


def refuse_mismatch(override: Override, expected: object, given: object) -> None:
    """Refuse a value of another kind than its default's."""
    key, got = override.key_or_group, f"Got {override.input_line}"
    owner, needed, found = key.rpartition(".")[0], kind(expected), kind(given)
    refuse_if(given == "", f"{key} is empty. {got}; give a value, or null")
    refuse_if(isinstance(given, float) and not math.isfinite(given), f"{key} must be a finite number. {got}")
    refuse_if(given is None and owner in COLLECTIONS, f"~{key} takes it away. {got}")
    refuse_if(
        not owner and type(expected) is int and isinstance(given, float),
        f"{key} must be a whole number. {got}",
    )
    # where null is an argument, its constructor knows about it; some of a network's take a list, a number a stage
    if key in OF_SEVERAL_KINDS:
        return
    must_be = needed and (found or not owner or needed == "settings")
    per_stage = owner in ("model", "selection.proxy") and (needed, found) == ("a number", "a list")
    of_the_shell = f"; oc.env gives text, so let the shell put it in: {key}=$…" * ("oc.env" in got)
    refuse_if(
        must_be and needed != found and not per_stage,
        f"{key} must be {needed}"
        + ("" if needed == "settings" else f", such as {expected}")
        + f". {got}{of_the_shell}",
    )


def kind(value: object) -> str | None:
    """What a person calls this sort of value; whole and other numbers are one kind. None for null."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "settings"}
    return next((name for cls, name in kinds.items() if isinstance(value, cls)), None)


def resumes(overrides: list[str]) -> bool:
    """Whether a run folder says what is to be trained."""
    given = [text for text in overrides if text.lstrip("+").startswith("resume=")]
    try:
        last = parse(given[-1:])
        value = OmegaConf.create({"resume": last[0].value() if last else None}).resume
    except (UsageError, HydraException, OmegaConfBaseException):  # which is said elsewhere
        return bool(given)
    return value not in (None, "auto")


def program(config_name: str) -> str:
    return f"cifar-{config_name.replace('_', '-')}"
