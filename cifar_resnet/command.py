"""From a command line to checked configurations, and to one clear line where something is wrong.

Nothing here imports torch: composing, `--help`, `--cfg job` and tab completion stay quick.
"""

import argparse
import contextlib
import difflib
import functools
import inspect
import itertools
import logging
import math
import os
import re
import sys
import types
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import hydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException, InstantiationException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

PACKAGE = Path(__file__).resolve().parent
CONF = next(path for path in (PACKAGE / "conf", PACKAGE.parent / "conf") if path.is_dir())  # installed, or a clone


HYDRA_FLAGS = {
    "-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion", "--version",
}  # fmt: skip


MAY_BE_LEFT_OUT = ("scheduler", "averaging")
COLLECTIONS = ("callbacks", "logger")
# of Lightning's Trainer: what a run's length, folder and record are made from
NOT_FOR_USERS = {
    **dict.fromkeys(("max_steps", "min_steps", "fast_dev_run"), "trainer.max_epochs says how long it takes"),
    **dict.fromkeys(("overfit_batches", "val_check_interval"), "see data, and trainer.check_val_every_n_epoch"),
    **dict.fromkeys(("callbacks", "logger", "precision"), "that is a group of its own"),
    **dict.fromkeys(("plugins", "enable_checkpointing"), "a run keeps checkpoints, to go on from"),
}


# what composing raises for overrides, and for files of settings
UNREADABLE = (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError, RecursionError)


class UsageError(Exception):
    """A user's mistake: its text says what was wrong, what was given and what to do instead."""


class RunError(Exception):
    """A run that could not go on, through nobody's mistake: its text says what happened and what may help."""


class Diverged(RunError):
    """A training whose loss is no longer finite."""


class Interrupted(BaseException):
    """A run that was asked to stop, and has saved where it was. signal: by which one."""

    def __init__(self, text: str, signal: int):
        super().__init__(text)
        self.exit_code = 128 + signal  # as a shell counts


@contextlib.contextmanager
def usage_errors(*also: type[Exception]) -> Iterator[None]:
    """Turn a constructor's complaint about its arguments into a UsageError of one line."""
    try:
        yield
    except (ValueError, TypeError, OSError, InstantiationException, *also) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        cause = error.__cause__ if isinstance(error, InstantiationException) and error.__cause__ else error
        key = re.search(r"full_key: (\S+)", str(error))
        where = f"{key[1]}: " if key and not isinstance(cause, ValueError) else ""
        text = " ".join(str(cause).split())
        if isinstance(cause, OSError) and cause.filename and cause.strerror:
            text = f"{cause.strerror}. Got {cause.filename}; give another place"
        raise UsageError(where + text) from error


@dataclass
class Job:
    """One configuration to run.

    cfg: with `overrides`, all of them, and `choices`, such as {"model": "resnet18"}, filled in.
    overrides: as given, without those that a sweep varies; varying: those, with this job's values.
    arguments: what else the command line had.
    """

    cfg: DictConfig
    overrides: list[str]
    varying: list[str]
    arguments: list[str]


@dataclass
class Interval:
    """Numbers to search through: whole ones where the setting's default is. log: by ratio, not by difference."""

    low: float
    high: float
    log: bool


@dataclass
class Choice:
    values: list


def main(
    config_name: str,
    run: Callable[[list[Job], bool], int],
    argv: Sequence[str] | None = None,
    refuse: Callable[[list[Job], bool], None] | None = None,
) -> int:
    """Compose what `argv` asks for, call `run(jobs, is_sweep)` and return its exit code; 2 for a user's mistake.

    refuse: called before, and before the seconds that it takes to import torch; raises UsageError.
    """

    def compose_and_run(composer: Composer, overrides: list[str], is_sweep: bool) -> int:
        jobs = composer.jobs(overrides, is_sweep)
        if refuse:
            refuse(jobs, is_sweep)
        check_settings([job.cfg for job in jobs])
        return run(jobs, is_sweep)

    return interpret(config_name, compose_and_run, argv)


def interpret(
    config_name: str, run: Callable[["Composer", list[str], bool], int], argv: Sequence[str] | None = None
) -> int:
    """Call `run(composer, overrides, is_sweep)` and return its exit code; 2 for a user's mistake, 1 for a failed run.

    Help, printing of the configuration and tab completion are left to Hydra.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("--config-dir")
    try:
        try:
            options, rest = parser.parse_known_args(argv)
        except argparse.ArgumentError as error:
            raise UsageError(f"{error}. See {program(config_name)} --help") from error
        flags = [argument for argument in rest if argument.startswith("-")]
        if set(flags) & HYDRA_FLAGS:
            return delegate_to_hydra(config_name, argv)
        if flags:
            raise UsageError(f"unknown option {flags[0]}. See {program(config_name)} --help")
        return run(Composer(config_name, options.config_dir), rest, options.multirun)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OmegaConfBaseException as error:  # such as a key that should have a value and has none
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except RunError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except Interrupted as interrupted:
        print(interrupted, file=sys.stderr)
        return interrupted.exit_code
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # whoever read our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def program(config_name: str) -> str:
    return f"cifar-{config_name.replace('_', '-')}"


def delegate_to_hydra(config_name: str, argv: list[str]) -> int:
    saved_argv, full_error = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv = [program(config_name), *argv]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then raises what it would print
    try:
        hydra.main(config_path=str(CONF), config_name=config_name, version_base="1.3")(lambda cfg: None)()
    except (HydraException, OmegaConfBaseException, ValueError) as error:
        composer = Composer(config_name)
        raise UsageError(composer.explain(error, [text for text in argv if not text.startswith("-")])) from error
    finally:
        sys.argv = saved_argv
        os.environ.pop("HYDRA_FULL_ERROR")
        if full_error is not None:
            os.environ["HYDRA_FULL_ERROR"] = full_error
    return 0


class Composer:
    """Composes one command's configuration, and explains what Hydra has against an override.

    config_dir: a folder of the user's own, searched for choices before ours.
    """

    def __init__(self, config_name: str, config_dir: str | None = None):
        if config_dir is not None and not (config_dir and Path(config_dir).is_dir()):
            raise UsageError(f"--config-dir must be a folder. Got {config_dir}")
        self.config_name = config_name
        self.folders = [CONF, *([Path(config_dir).resolve()] if config_dir else [])]

    def jobs(self, overrides: list[str], multirun: bool = False) -> list[Job]:
        """One job, or with `multirun` one for each combination of the comma-separated values."""
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                parsed = parse(overrides)
                for override in parsed:
                    refuse_hydra_setting(override)
                swept = [override for override in parsed if multirun and override.is_sweep_override()]
                fixed = [override.input_line for override in parsed if override not in swept]
                jobs = [self.job(fixed, list(varying)) for varying in itertools.product(*map(values_of, swept))]
                if not jobs:
                    raise HydraException(f"nothing to try. Got {' '.join(overrides)}; give one value or more")
                return jobs
            except UNREADABLE as error:
                message = self.explain(error, overrides)
        raise UsageError(message)

    @property
    def arguments(self) -> list[str]:
        """What a command line needs for the same choices to be found."""
        return [argument for folder in self.folders[1:] for argument in ("--config-dir", str(folder))]

    def space(self, overrides: list[str]) -> tuple[list[str], dict[str, Interval | Choice]]:
        """Those overrides that give one value, and by key what the others search through."""
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            try:
                parsed = parse(overrides)
                fixed = [each.input_line for each in parsed if not each.is_sweep_override()]
                default = self.compose(fixed)
                searched = {
                    each.get_key_element(): domain_of(each, select(default, each.key_or_group))
                    for each in parsed
                    if each.is_sweep_override()
                }
            except UNREADABLE as error:
                raise UsageError(self.explain(error, overrides)) from error
        if twice := [override for override in fixed if override.partition("=")[0] in searched]:
            raise UsageError(f"one value, and several to search through. Got {twice[0]} as well; leave out one of them")
        return fixed, searched

    def job(self, fixed: list[str], varying: list[str]) -> Job:
        cfg = self.compose([*fixed, *varying])
        choices = {
            group: choice for group, choice in cfg.hydra.runtime.choices.items() if not group.startswith("hydra/")
        }
        with open_dict(cfg):
            del cfg["hydra"]
            cfg.overrides, cfg.choices = [*fixed, *varying], choices
        self.compare_types(cfg, cfg.overrides)
        self.refuse_gaps(cfg)
        return Job(cfg, fixed, varying, self.arguments)

    def compose(self, overrides: list[str]) -> DictConfig:
        for override in parse(overrides):
            if not override.is_delete():
                self.refuse_choice_without_name(override)
        search_path = ",".join(f"file://{folder}" for folder in self.folders[1:])
        search = [f"hydra.searchpath=[{search_path}]"] if search_path else []
        return hydra.compose(self.config_name, [*search, *overrides], return_hydra_config=True)

    def defaults(self, choices: tuple[str, ...]) -> DictConfig:
        """The configuration of these choices and nothing else; to look at, not to change."""
        # composing takes a third of a second, and the jobs of a sweep share their choices
        return composed(self.config_name, choices) if len(self.folders) == 1 else self.compose([*choices])

    def is_group(self, override: Override) -> bool:
        return any((folder / override.key_or_group).is_dir() for folder in self.folders)

    def refuse_choice_without_name(self, override: Override) -> None:
        """Hydra leaves such a value to a ValueError of its own."""
        group, value = override.key_or_group, override.value()
        if not self.is_group(override) or isinstance(value, (str, list, QuotedString)):
            return
        if value is None and group in MAY_BE_LEFT_OUT:
            raise HydraException(f"no {group} at all is ~{group}. Got {override.input_line}")
        known = sorted({path.stem for folder in self.folders for path in (folder / group).glob("*.yaml")})
        raise HydraException(f"{group} is chosen by name. Got {override.input_line}. Choices: {', '.join(known)}")

    def compare_types(self, cfg: DictConfig, overrides: list[str]) -> None:
        """Refuse a value of another kind than its default."""
        parsed = parse(overrides)
        for override in parsed:
            owner, _, _ = override.key_or_group.rpartition(".")
            if override.is_delete() and override.key_or_group not in MAY_BE_LEFT_OUT and owner not in COLLECTIONS:
                raise HydraException(
                    f"~ takes away {', '.join(MAY_BE_LEFT_OUT)}, a callback or a logger. "
                    f"Got {override.input_line}; give another value"
                )
        parsed = [override for override in parsed if not override.is_delete()]
        choices = [override.input_line for override in parsed if self.is_group(override)]
        values = [override for override in parsed if not self.is_group(override)]
        default = self.defaults(tuple(choices)) if values else cfg
        for override in values:
            is_new = override.is_add() or select(default, override.key_or_group) is None
            if is_new and (override.is_add() or override.is_force_add()):
                self.refuse_stray_addition(cfg, override)
                continue
            expected, given = select(default, override.key_or_group), select(cfg, override.key_or_group)
            if given == "":
                raise HydraException(
                    f"{override.key_or_group} is empty. Got {override.input_line}; give a value, or null"
                )
            if isinstance(given, float) and not math.isfinite(given):
                raise HydraException(f"{override.key_or_group} must be a finite number. Got {override.input_line}")
            owner, _, _ = override.key_or_group.rpartition(".")
            if given is None and owner in COLLECTIONS:
                raise HydraException(f"~{override.key_or_group} takes it away. Got {override.input_line}")
            if not owner and type(expected) is int and isinstance(given, float):
                raise HydraException(f"{override.key_or_group} must be a whole number. Got {override.input_line}")
            # where null is an argument, its constructor knows about it
            must_be = kind(given) or not owner or kind(expected) == "settings"
            # some of a network's settings take a list, one number for each stage, in place of a number
            per_stage = owner == "model" and (kind(expected), kind(given)) == ("a number", "a list")
            if kind(expected) and must_be and kind(expected) != kind(given) and not per_stage:
                such = "" if kind(expected) == "settings" else f", such as {expected}"
                raise HydraException(
                    f"{override.key_or_group} must be {kind(expected)}{such}. Got {override.input_line}"
                )

    def refuse_gaps(self, cfg: DictConfig) -> None:
        """What nothing works without may have been taken away by ~, or by a recipe."""
        default = self.defaults(())
        known = [
            *default.keys(),
            "overrides",
            "choices",
            *(path.name for folder in self.folders for path in folder.iterdir() if path.is_dir()),
        ]
        if unknown := [key for key in cfg.keys() if key == "experiment" or key not in known]:  # noqa: SIM118, for `in` leaves out ???
            hint = "; a recipe begins with the line # @package _global_" if unknown[0] == "experiment" else ""
            raise HydraException(f"unknown key {unknown[0]} in a file of settings.{near(unknown[0], known)}{hint}")
        for key in default:
            if key in ("hydra", *MAY_BE_LEFT_OUT) or OmegaConf.is_missing(default, key) or default[key] is None:
                continue
            if cfg.get(key) is None:
                raise HydraException(f"nothing works without {key}. Got none; leave it as it is, or give another")
            is_built = isinstance(default[key], DictConfig) and "_target_" in default[key]
            if is_built and "_target_" not in cfg[key]:
                raise HydraException(f"{key}._target_ says what it is. Got none; leave it as it is, or give another")

    def refuse_stray_addition(self, cfg: DictConfig, override: Override) -> None:
        """A key behind + must be an argument of something, or be something itself: a callback, a logger."""
        parent, _, _ = override.key_or_group.rpartition(".")
        owner = OmegaConf.select(cfg, parent) if parent else cfg
        added = OmegaConf.select(cfg, override.key_or_group)
        is_built = isinstance(added, DictConfig) and "_target_" in added
        if not is_built and ("_target_" not in owner or self.lists_all(owner, override)):
            known = [name for name in leaves(cfg) if name != override.key_or_group]
            raise HydraException(f"unknown key {override.key_or_group}.{near(override.key_or_group, known)}")

    def lists_all(self, owner: DictConfig, override: Override) -> bool:
        """Whether what a choice of ours lists is all that its target takes; torch's own optimizers take more."""
        target, name = str(owner.get("_target_")), override.key_or_group.rpartition(".")[2]
        lightnings = ("lightning.pytorch.Trainer", "lightning.pytorch.loggers.TensorBoardLogger")
        ours = target in lightnings or target.startswith("cifar_resnet.")
        explained = name in NOT_FOR_USERS or override.key_or_group == "model.num_classes"
        return ours and target != "cifar_resnet.optim.SGD" and len(self.folders) == 1 and not explained

    def explain(self, error: Exception, overrides: list[str]) -> str:
        """Hydra's complaint in one line, with what comes closest to the word that it does not know."""
        text = " ".join(str(error).split())
        if isinstance(error, MissingConfigException) and error.options and error.missing_cfg_file:
            group, _, choice = error.missing_cfg_file.rpartition("/")
            return f"unknown {group} {choice!r}.{near(choice, error.options)} Choices: {', '.join(error.options)}"
        if key := re.search(r"Could not override '([^']+)'", text):
            close = near(key[1], self.known_keys(overrides))
            return f"unknown key {key[1]}.{close} See {program(self.config_name)} --help"
        if ambiguous := re.search(r"Ambiguous value for argument '([^']+)'", text):
            key, _, values = ambiguous[1].partition("=")
            return (
                f"several values, but no sweep. Got {ambiguous[1]}; put -m in front, or give a list: {key}=[{values}]"
            )
        text = text.replace(" See https://hydra.cc/docs/1.2/advanced/override_grammar/basic for details", "")
        return f"{text} ({' '.join(str(error.__cause__).split())})" if error.__cause__ else text

    def known_keys(self, overrides: list[str]) -> list[str]:
        """Groups and dotted keys of the configuration that the valid choices among the overrides give."""
        choices = [text for text in overrides if re.fullmatch(r"\w+=[\w-]+", text)]
        with contextlib.ExitStack() as stack:
            if not hydra.core.global_hydra.GlobalHydra.instance().is_initialized():
                stack.enter_context(hydra.initialize_config_dir(str(CONF), version_base="1.3"))
            try:
                cfg = self.compose(choices)
            except HydraException:
                cfg = self.compose([])
        return [name for name in leaves(cfg) if not name.startswith("hydra")]


@functools.cache
def composed(config_name: str, choices: tuple[str, ...]) -> DictConfig:
    return Composer(config_name).compose([*choices])


QUOTES = "'\""


def parse(overrides: list[str]) -> list[Override]:
    if nameless := [text for text in overrides if text.startswith("=")]:
        raise UsageError(f"a setting is key=value. Got {nameless[0]}")
    loader = hydra.core.global_hydra.GlobalHydra.instance().config_loader()
    try:
        return OverridesParser.create(config_loader=loader).parse_overrides(overrides)
    except OverrideParseException as error:
        key, equals, value = error.override.partition("=")
        if not equals:
            raise UsageError(f"a setting is key=value. Got {error.override}") from error
        raise UsageError(
            f"a value that cannot be read. Got {error.override}; where it holds brackets, commas, quotes or =, "
            f"put it in quotes within quotes: \"{key}='{value.strip(QUOTES)}'\""
        ) from error


def values_of(override: Override) -> list[str]:
    """The overrides that one comma-separated, choice(…) or range(…) override stands for."""
    if not override.is_discrete_sweep():
        raise HydraException(
            f"an interval is no list of values to try. Got {override.input_line}; give values, or range"
        )
    return [f"{override.get_key_element()}={value}" for value in override.sweep_string_iterator()]


def domain_of(override: Override, default: object) -> Interval | Choice:
    if not override.is_interval_sweep():
        return Choice([value.partition("=")[2] for value in values_of(override)])
    sweep = override.value()
    low, high, log = sweep.start, sweep.end, "log" in sweep.tags
    if not (low < high and math.isfinite(high - low) and (low > 0 or not log)):
        raise HydraException(f"an interval goes from a smaller to a larger number. Got {override.input_line}")
    if isinstance(default, int):  # Hydra's intervals are of fractions; a batch size is not
        low, high = round(low), round(high)
    return Interval(low, high, log)


def refuse_hydra_setting(override: Override) -> None:
    if override.is_hydra_override():
        raise HydraException(
            f"run folders and sweeps are not Hydra's here. Got {override.input_line}; "
            f"see output_dir, name and run_dir, and -m, which runs its jobs one after the other"
        )


def leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key, no value resolved."""
    for key in node:
        yield f"{prefix}{key}"
        open_ended = OmegaConf.is_missing(node, key) or OmegaConf.is_interpolation(node, key)
        if not open_ended and isinstance(node[key], DictConfig):
            yield from leaves(node[key], f"{prefix}{key}.")


def near(word: str, known: Sequence[str]) -> str:
    """' Did you mean …?' with the closest of `known`, first by last names; empty where nothing is close."""
    by_last_name: dict[str, list[str]] = {}
    for name in known:
        if name == word:
            continue
        by_last_name.setdefault(name.rsplit(".", 1)[-1], []).append(name)
    close = difflib.get_close_matches(word.rsplit(".", 1)[-1], by_last_name, n=3, cutoff=0.66)
    found = [name for last_name in close for name in by_last_name[last_name]][:3]
    return f" Did you mean {' or '.join(found)}?" if found else ""


def select(cfg: DictConfig, key: str) -> object:
    try:
        value = OmegaConf.select(cfg, key)
    except OmegaConfBaseException as error:
        raise UsageError(f"{key} refers to what is not there. Got {str(error).splitlines()[0]}") from error
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else value


def kind(value: object) -> str | None:
    """What a person calls this sort of value; whole and other numbers are one kind. None for null."""
    kinds = {bool: "true or false", int: "a number", float: "a number", str: "text", list: "a list", dict: "settings"}
    return next((name for cls, name in kinds.items() if isinstance(value, cls)), None)


def check_settings(configurations: Sequence[DictConfig]) -> None:
    """UsageError where nothing could be made from any of them: at once, where that takes no import.

    Of several that of one alone may be out of range: it will say so in its turn, and the others have their results.
    """
    from cifar_resnet import limits  # which raises this module's errors

    mistakes = []
    for cfg in configurations:
        # the jobs of a sweep and a run that goes on may have finished, and then need no files
        files = len(configurations) == 1 and not cfg.get("resume") and not cfg.get("dry_run")
        try:
            with usage_errors():
                limits.check(cfg, files)
        except UsageError as error:
            mistakes.append(error)
    if len(mistakes) == len(configurations):
        raise mistakes[0]
    for cfg in configurations:
        check_arguments(cfg)


def check_arguments(cfg: DictConfig) -> None:
    """Compare every `_target_` of the configuration with what it takes: its arguments' names and types.

    This catches a misspelt key behind `+`, which Hydra adds without a word. It imports the targets.
    """
    # those first that import torch alone, not Lightning
    for key in sorted(["", *leaves(cfg)], key=lambda key: not key.startswith(("optimizer", "scheduler"))):
        node = OmegaConf.select(cfg, key) if key else cfg
        if isinstance(node, DictConfig) and "_target_" in node:
            known = arguments(node["_target_"])
            for name in node:
                place = f"{key}.{name}"
                if name in HYDRA_KEYS or (known is None and not name.startswith("_")):
                    continue
                known = known or {}
                if name not in known:
                    raise UsageError(
                        f"unknown key {place}.{near(place, [f'{key}.{other}' for other in (*known, *HYDRA_KEYS)])} "
                        f"{node['_target_']} takes no such argument"
                    )
                value = select(cfg, place) if not OmegaConf.is_missing(node, name) else None
                if value is None and OmegaConf.is_interpolation(node, name):  # the run folder, not known yet
                    continue
                if OmegaConf.is_missing(node, name):
                    raise UsageError(f"{place} has no default. Give it: {place}=…")
                if not fits(value, known[name]):
                    raise UsageError(f"{place} must be {describe(known[name])}. Got {value!r}")


HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
# who takes the **kwargs of those that hand them on
RECEIVERS = {"lightning.pytorch.loggers.TensorBoardLogger": "torch.utils.tensorboard.SummaryWriter"}


def arguments(target: str) -> dict[str, object] | None:
    """Name and type of each argument; where a class takes **kwargs, its bases' too. None: it takes any."""
    try:
        logging.disable()  # Hydra says it as well, in three lines
        function = hydra.utils.get_object(str(target))
    except Exception as error:  # whatever an import may raise
        raise UsageError(f"_target_ names nothing. Got {target} ({' '.join(str(error).split())})") from error
    finally:
        logging.disable(logging.NOTSET)
    found: dict[str, object] = {}
    for owner in inspect.getmro(function) if inspect.isclass(function) else [function]:
        call = owner.__init__ if inspect.isclass(owner) else owner
        if inspect.isclass(owner) and "__init__" not in vars(owner):
            continue
        signature = inspect.signature(call)
        try:
            hints = typing.get_type_hints(call)
        except (NameError, TypeError):  # names that exist for type checkers only
            hints = {}
        kinds = [parameter.kind for parameter in signature.parameters.values()]
        named = [name for name, p in signature.parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        found = {**{name: hints.get(name, typing.Any) for name in named if name != "self"}, **found}
        if inspect.Parameter.VAR_KEYWORD not in kinds:
            return found
    return found | arguments(RECEIVERS[target]) if target in RECEIVERS else None


BASIC = (bool, int, float, str, types.NoneType)


def fits(value: object, hint: object) -> bool:
    """Whether a plain value can be an argument of this type. Types it does not know are given the benefit of doubt."""
    origin, parts = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return any(fits(value, part) for part in parts)
    if origin is typing.Literal:
        return value in parts
    if hint is None or hint is types.NoneType:
        return value is None
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if hint in (bool, str):
        return isinstance(value, hint)
    if inspect.isclass(origin) and issubclass(origin, (list, tuple, Sequence)):
        return isinstance(value, list) and all(fits(item, parts[0]) for item in value)
    return value is not None or not inspect.isclass(hint)


def describe(hint: object) -> str:
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", types.NoneType: "null"}
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(dict.fromkeys(describe(part) for part in typing.get_args(hint)))
    if typing.get_origin(hint) is typing.Literal:
        return " or ".join(map(str, typing.get_args(hint)))
    if typing.get_args(hint):
        return f"a list, each item {describe(typing.get_args(hint)[0])}"
    return names.get(hint, getattr(hint, "__name__", str(hint)))
