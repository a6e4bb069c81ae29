"""From a command line to configurations, through Hydra's compose API, and to one clear line where something is wrong.

Nothing here imports torch: composing, `--help`, `--cfg job` and tab completion stay quick. Works inside another Hydra
application and in threads.
"""

import contextlib
import functools
import itertools
import math
import re
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cifar_resnet.constraints import INSTEAD, RESERVED, did_you_mean, leaves, select
from cifar_resnet.errors import UsageError, one_line, refuse_if
from cifar_resnet.quoting import in_quotes, in_shell

CONF = next(path for folder in Path(__file__).resolve().parents[:2] if (path := folder / "conf").is_dir())
MAY_BE_LEFT_OUT = ("scheduler", "averaging")
COLLECTIONS = ("callbacks", "logger")
# Hydra 1.4 warns where its predecessor's defaults are asked for, 1.3 where they are not
HYDRA_VERSION = {"version_base": "1.3"} if hydra.__version__.startswith("1.3") else {}
ONE_AT_A_TIME = threading.RLock()  # what Hydra is set up for is the process's own


@dataclass
class Job:
    """One configuration to run.

    cfg: with `overrides`, all of them, and `choices`, such as {"model": "resnet18"}, filled in.
    overrides: as given, without those that a sweep varies; varying: those, with this job's values.
    composer: to compose it anew with other overrides.
    in_sweep: whether it was asked for with -m.
    words: what is no override, of a command that takes other arguments. space: by key, what a search goes through.
    """

    cfg: DictConfig
    overrides: list[str]
    varying: list[str]
    composer: "Composer"
    in_sweep: bool = False
    words: list[str] = field(default_factory=list)
    space: dict[str, "Interval | list[str]"] = field(default_factory=dict)


@dataclass
class Interval:
    """Numbers to search through: whole ones where the setting's default is. log: by ratio, not by difference."""

    low: float
    high: float
    log: bool


@contextlib.contextmanager
def hydra_for_us() -> Iterator[None]:
    """Hydra, set up for our configuration; afterwards as another application around this one had set it up."""
    with ONE_AT_A_TIME:
        outer, version = GlobalHydra.instance().hydra, hydra.version.VersionBase.instance().version_base
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(str(CONF), **HYDRA_VERSION):
                yield
        finally:
            GlobalHydra.instance().hydra, hydra.version.VersionBase.instance().version_base = outer, version


class Composer:
    """Composes one command's configuration, and explains what Hydra has against an override.

    config_name: such as "train". config_dir: a folder of the user's own, searched for choices before ours.
    """

    def __init__(self, config_name: str = "train", config_dir: str | None = None):
        refuse_if(
            config_dir is not None and not (config_dir and Path(config_dir).is_dir()),
            f"--config-dir must be a folder. Got {config_dir}",
        )
        self.config_name = config_name
        self.folders = [CONF, *([Path(config_dir).resolve()] if config_dir else [])]

    @property
    def arguments(self) -> list[str]:
        """What a command line needs for the same choices to be found."""
        return [argument for folder in self.folders[1:] for argument in ("--config-dir", str(folder))]

    def jobs(self, overrides: list[str], multirun: bool = False) -> list[Job]:
        """One job, or with `multirun` one for each combination of the comma-separated values."""
        with self.explained(overrides):
            # the folders that cifar-report is given
            is_report = self.config_name == "report"
            words = [text for text in overrides if is_report and (not re.search("[=~]", text) or Path(text).exists())]
            parsed = parse([text for text in overrides if text not in words])
            swept = [override for override in parsed if multirun and override.is_sweep_override()]
            fixed = [override.input_line for override in parsed if override not in swept]
            return [
                self.job(fixed, list(varying), in_sweep=multirun, words=words)
                for varying in itertools.product(*map(values_of, swept))
            ]

    def space(self, overrides: list[str]) -> tuple[list[str], dict[str, Interval | list[str]]]:
        """Those overrides that give one value, and by key what the others search through."""
        with self.explained(overrides):
            parsed = parse(overrides)
            fixed = [each.input_line for each in parsed if not each.is_sweep_override()]
            default = self.compose(fixed)
            searched = {
                each.get_key_element(): domain_of(each, select(default, each.key_or_group))
                for each in parsed
                if each.is_sweep_override()
            }
        refuse_if(
            twice := next((override for override in fixed if override.partition("=")[0] in searched), None),
            f"one value, and several to search through. Got {twice} as well; leave out one of them",
        )
        return fixed, searched

    def examples(self, overrides: list[str]) -> list[Job]:
        """Of what a search goes through every combination of choices and intervals' ends, up to a hundred of them."""
        fixed, space = self.space(overrides)
        refuse_if(
            not space and any(override.startswith("optimizer.lr=") for override in fixed),
            "a search needs something to vary. Give an interval or a choice, or leave out optimizer.lr",
        )
        space = space or {"optimizer.lr": Interval(1e-6, 1.0, log=True)}
        ends = [[each.low, each.high] if isinstance(each, Interval) else each for each in space.values()]
        with self.explained(overrides):
            return [
                self.job(fixed, [f"{key}={value}" for key, value in zip(space, values, strict=True)], space=space)
                for values in itertools.islice(itertools.product(*ends), 100)
            ]

    @contextlib.contextmanager
    def explained(self, overrides: list[str]) -> Iterator[None]:
        """Hydra set up for us, and what it then has against these overrides in one line."""
        with hydra_for_us():
            try:
                yield
            except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError, RecursionError) as error:
                raise UsageError(self.explain(error, overrides)) from error

    def job(self, fixed: list[str], varying: list[str], **facts: object) -> Job:
        """The job of these overrides. facts: what else a `Job` holds."""
        given = [*fixed, *varying]
        # the data set of a checkpoint, or of a run that goes on, is known only once that has been read
        of_a_file = self.config_name in ("evaluate", "export") or resumes(given)
        follows = of_a_file and not any(text.startswith("data=") for text in given)
        composed = [text for text in given if not (follows and text.startswith("data."))]
        cfg = self.compose(composed)
        with open_dict(cfg):
            choices = cfg.pop("hydra").runtime.choices.items()
            cfg.overrides, cfg.choices = given, {key: file for key, file in choices if not key.startswith("hydra/")}
        self.compare_with_defaults(cfg, composed)
        self.refuse_gaps(cfg)
        return Job(cfg, fixed, varying, self, **facts)

    def compose(self, overrides: list[str]) -> DictConfig:
        for override in parse(overrides):
            self.refuse_what_hydra_would_misread(override)
        search = [f"hydra.searchpath=[{in_quotes(f'file://{folder}')}]" for folder in self.folders[1:]]
        return hydra.compose(self.config_name, [*search, *overrides], return_hydra_config=True)

    def defaults(self, choices: tuple[str, ...]) -> DictConfig:
        """The configuration of these choices and nothing else; to look at, not to change."""
        # composing takes a third of a second, and the jobs of a sweep share their choices
        return defaults_of(self.config_name, choices) if len(self.folders) == 1 else self.compose([*choices])

    def is_group(self, override: Override) -> bool:
        return any((folder / override.key_or_group).is_dir() for folder in self.folders)

    def refuse_what_hydra_would_misread(self, override: Override) -> None:
        group, value = override.key_or_group, override.value()
        refuse_if(
            override.is_hydra_override(),
            f"run folders and sweeps are not Hydra's here. Got {override.input_line}; "
            f"see output_dir, name and run_dir, and -m, which runs its jobs one after the other",
        )
        is_added = (override.is_add() or override.is_force_add()) and override.package is None
        refuse_if(
            is_added and (CONF / group).is_dir(),
            f"+ is for what is not there yet. Got {override.input_line}; give {override.input_line.lstrip('+')}",
        )
        is_choice = self.is_group(override) and not override.is_delete()
        refuse_if(
            is_choice and value is None and group in MAY_BE_LEFT_OUT,
            f"no {group} at all is ~{group}. Got {override.input_line}",
        )
        known = sorted({path.stem for folder in self.folders for path in (folder / group).glob("*.yaml")})
        refuse_if(
            is_choice and not isinstance(value, (str, list, QuotedString)),
            f"{group} is chosen by name. Got {override.input_line}. Choices: {', '.join(known)}",
        )

    def compare_with_defaults(self, cfg: DictConfig, overrides: list[str]) -> None:
        """Refuse what takes away a setting that is needed, a stray addition, and a value of another kind."""
        parsed = parse(overrides)
        values = [override for override in parsed if override.is_delete() or not self.is_group(override)]
        default = self.defaults(tuple(each.input_line for each in parsed if each not in values)) if values else cfg
        for override in {each.key_or_group: each for each in values}.values():  # of one key the last is what holds
            key, expected = override.key_or_group, select(default, override.key_or_group)
            if override.is_delete():
                refuse_if(
                    key not in MAY_BE_LEFT_OUT and key.rpartition(".")[0] not in COLLECTIONS,
                    f"~ takes away {', '.join(MAY_BE_LEFT_OUT)}, a callback or a logger. "
                    f"Got {override.input_line}; give another value",
                )
            elif override.is_add() or (override.is_force_add() and expected is None):
                self.refuse_stray_addition(cfg, override)
            else:
                refuse_mismatch(override, expected, select(cfg, key))

    def refuse_gaps(self, cfg: DictConfig) -> None:
        """What nothing works without may have been taken away by ~, or by a recipe."""
        default = self.defaults(())
        groups = (path.name for folder in self.folders for path in folder.iterdir() if path.is_dir())
        known = sorted({*default.keys(), "overrides", "choices", *groups})
        # `keys`, for `in` leaves out ???
        unknown = next((key for key in cfg.keys() if key == "experiment" or key not in known), "")  # noqa: SIM118
        refuse_if(
            unknown,
            f"unknown key {unknown} in a file of settings.{did_you_mean(unknown, known)}"
            + " A recipe begins with the line # @package _global_" * (unknown == "experiment"),
        )
        needed = [key for key in default if key not in ("hydra", *MAY_BE_LEFT_OUT) and default.get(key) is not None]
        for key in needed:
            refuse_if(
                cfg.get(key) is None, f"nothing works without {key}. Got none; leave it as it is, or give another"
            )
            refuse_if(
                OmegaConf.is_dict(default[key]) and "_target_" in default[key] and "_target_" not in cfg[key],
                f"{key}._target_ says what it is. Got none; leave it as it is, or give another",
            )

    def refuse_stray_addition(self, cfg: DictConfig, override: Override) -> None:
        """A key behind + must be an argument of something, or be something itself: a callback, a logger."""
        key = override.key_or_group
        parent, _, name = key.rpartition(".")
        owner, added = OmegaConf.select(cfg, parent), OmegaConf.select(cfg, key)
        target = str(owner.get("_target_"))
        # what a choice of ours lists is all that its target takes; torch's own optimizers take more
        lists_all = target.startswith(("cifar_resnet.", "lightning.pytorch.Trainer", "lightning.pytorch.loggers.Tens"))
        is_explained_later = name in RESERVED or key == "model.num_classes" or target == "cifar_resnet.optim.SGD"
        is_stray = lists_all and not is_explained_later and len(self.folders) == 1
        refuse_if(
            (is_stray or "_target_" not in owner) and not (isinstance(added, DictConfig) and "_target_" in added),
            instead_of(key, override.input_line) or f"unknown key {key}.{did_you_mean(key, leaves(cfg))}",
        )

    def explain(self, error: Exception, overrides: list[str]) -> str:
        """Hydra's complaint in one line, with what comes closest to the word that it does not know."""
        text = re.sub(r" See https://hydra.cc/\S+ for details", "", one_line(error))
        match error:
            case RecursionError():
                return f"a choice whose defaults lead back to it. Got {' '.join(overrides)}; change its file"
            case MissingConfigException(missing_cfg_file=str(path), options=[_, *_] as known):
                group, _, choice = path.rpartition("/")
                return f"unknown {group} {choice!r}.{did_you_mean(choice, known)} Choices: {', '.join(known)}"
        if key := re.search(r"Could not override '([^']+)'", text):
            given = [text for text in overrides if text.lstrip("+~").partition("=")[0] == key[1]]
            return (given and instead_of(key[1], given[-1])) or (
                f"unknown key {key[1]}.{did_you_mean(key[1], self.known_keys(overrides))} "
                f"See {program(self.config_name)} --help"
            )
        if ambiguous := re.search(r"Ambiguous value for argument '([^']+)'", text):
            key, _, values = ambiguous[1].partition("=")
            return (
                f"several values, but no sweep. Got {ambiguous[1]}; put -m in front, or give a list: {key}=[{values}]"
            )
        return f"{text} ({one_line(error.__cause__)})" if error.__cause__ else text

    def known_keys(self, overrides: list[str]) -> list[str]:
        """Groups and dotted keys of the configuration that the valid choices among the overrides give."""
        choices = [text for text in overrides if re.fullmatch(r"\w+=[\w-]+", text)]
        with hydra_for_us():
            try:
                cfg = self.compose(choices)
            except HydraException:
                cfg = self.compose([])
        return [name for name in leaves(cfg) if not name.startswith("hydra")]


@functools.cache
def defaults_of(config_name: str, choices: tuple[str, ...]) -> DictConfig:
    return Composer(config_name).compose([*choices])


def resumes(overrides: list[str]) -> bool:
    """Whether a run folder says what is to be trained."""
    return any(text.startswith("resume=") and text not in ("resume=auto", "resume=null") for text in overrides)


def program(config_name: str) -> str:
    return f"cifar-{config_name.replace('_', '-')}"


def parse(overrides: list[str]) -> list[Override]:
    refuse_if(
        nameless := next((text for text in overrides if text.startswith("=")), None),
        f"a setting is key=value. Got {nameless}",
    )
    try:
        return OverridesParser.create(config_loader=GlobalHydra.instance().config_loader()).parse_overrides(overrides)
    except OverrideParseException as error:
        key, equals, value = error.override.partition("=")
        refuse_if(not equals, f"a setting is key=value. Got {error.override}")
        is_key = re.fullmatch(r"[+~]*[\w$./@:-]+", key, re.ASCII)
        refuse_if(not is_key, f"a setting is key=value, with a key of letters, digits and dots. Got {error.override}")
        text = value.strip(value[0]) if value.startswith(("'", '"')) else value
        raise UsageError(
            f"a value that cannot be read. Got {error.override}; where it holds brackets, commas, quotes or =, "
            f"put it in quotes within quotes: {in_shell(f'{key}={in_quotes(text)}')}"
        ) from error


def instead_of(key: str, given: str) -> str | None:
    """What to use here, for the name of a setting elsewhere."""
    name = key.rpartition(".")[2]
    return f"there is no {key} here: {INSTEAD[name]}. Got {given}; leave it out" if name in INSTEAD else None


def values_of(override: Override) -> list[str]:
    """The overrides that one comma-separated, choice(…) or range(…) override stands for."""
    refuse_if(
        not override.is_discrete_sweep(),
        f"an interval is no list of values to try. Got {override.input_line}; give values, or range",
    )
    values = [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]
    refuse_if(not values, f"nothing to try. Got {override.input_line}; give one value or more")
    return values


def domain_of(override: Override, default: object) -> Interval | list[str]:
    if not override.is_interval_sweep():
        return [value.partition("=")[2] for value in values_of(override)]
    sweep = override.value()
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    refuse_if(
        not (low < high and math.isfinite(high - low) and (low > 0 or not log)),
        f"an interval goes from a smaller to a larger number. Got {override.input_line}",
    )
    # Hydra's intervals are of fractions; a batch size is not
    return Interval(round(low), round(high), log) if isinstance(default, int) else Interval(low, high, log)


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
    must_be = needed and (found or not owner or needed == "settings")
    per_stage = owner == "model" and (needed, found) == ("a number", "a list")
    refuse_if(
        must_be and needed != found and not per_stage,
        f"{key} must be {needed}" + ("" if needed == "settings" else f", such as {expected}") + f". {got}",
    )


def kind(value: object) -> str | None:
    """What a person calls this sort of value; whole and other numbers are one kind. None for null."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "settings"}
    return next((name for cls, name in kinds.items() if isinstance(value, cls)), None)
