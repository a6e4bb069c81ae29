"""From a command line to configurations, through Hydra's compose API, and to one clear line where something is wrong.

Nothing here imports torch: composing, `--help`, `--cfg job` and tab completion stay quick. Works inside another Hydra
application and in threads.
"""

import contextlib
import functools
import itertools
import re
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override, QuotedString
from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cifar_resnet.constraints import RESERVED, did_you_mean, leaves, select, takes_whole_numbers, values_in
from cifar_resnet.engine import LISTED, Engine, engine_of, is_used, no_such_launcher, refuse_misplaced
from cifar_resnet.errors import UsageError, one_line, refuse_if
from cifar_resnet.overrides import (
    COLLECTIONS,
    FILLED_IN,
    MAY_BE_LEFT_OUT,
    Interval,
    domain_of,
    instead_of,
    kind,
    parse,
    program,
    refuse_mismatch,
    refuse_several_folders,
    refuse_unclear_sweeps,
    resumes,
    values_of,
)
from cifar_resnet.own_files import refuse_gaps
from cifar_resnet.quoting import in_quotes

CONF = next(path for folder in Path(__file__).resolve().parents[:2] if (path := folder / "conf").is_dir())
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
    engine: what starts it, and where. notes: what to warn of.
    """

    cfg: DictConfig
    overrides: list[str]
    varying: list[str]
    composer: "Composer"
    engine: Engine
    in_sweep: bool = False
    words: list[str] = field(default_factory=list)
    space: dict[str, "Interval | list[str]"] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@contextlib.contextmanager
def hydra_for_us() -> Iterator[None]:
    """Hydra, set up for our configuration; afterwards as another application around this one had set it up."""
    with ONE_AT_A_TIME:
        outer, version = GlobalHydra.instance().hydra, hydra.version.VersionBase.instance().version_base
        GlobalHydra.instance().clear()
        try:
            with hydra.initialize_config_dir(str(CONF), job_name="cifar-train", **HYDRA_VERSION):
                yield
        finally:
            GlobalHydra.instance().hydra, hydra.version.VersionBase.instance().version_base = outer, version


class Composer:
    """Composes one command's configuration, and explains what Hydra has against an override.

    config_name: such as "train". config_dir: a folder of the user's own, whose choices stand beside ours.
    """

    def __init__(self, config_name: str = "train", config_dir: str | None = None):
        refuse_if(
            config_dir is not None and not (config_dir and Path(config_dir).is_dir()),
            f"--config-dir must be a folder. Got {config_dir}",
        )
        for ours in CONF.rglob("*.yaml") if config_dir else ():
            own = Path(config_dir) / ours.relative_to(CONF)
            refuse_if(  # Hydra would take ours
                own.is_file() and own.read_bytes() != ours.read_bytes(),
                f"there is one of this name already. Got {own}; give it a name of its own",
            )
        self.config_name = config_name
        self.folders = [CONF, *([Path(config_dir).resolve()] if config_dir else [])]
        self.searchpath = [f"hydra.searchpath=[{in_quotes(f'file://{folder}')}]" for folder in self.folders[1:]]

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
            refuse_unclear_sweeps(swept, parsed)
            refuse_several_folders(parsed if multirun else [])
            refuse_misplaced(filter(Override.is_hydra_override, parsed), self.config_name, multirun)
            jobs: list[Job] = []
            for number, varying in enumerate(itertools.product(*map(values_of, swept))):
                like = jobs[0].cfg if jobs else None
                jobs.append(self.job(fixed, list(varying), number, like, in_sweep=multirun, words=words))
            return jobs

    def space(self, overrides: list[str]) -> tuple[list[str], dict[str, Interval | list[str]]]:
        """Those overrides that give one value, and by key what the others search through."""
        with self.explained(overrides):
            parsed = parse(overrides)
            fixed = [each.input_line for each in parsed if not each.is_sweep_override()]
            refuse_unclear_sweeps([each for each in parsed if each.is_sweep_override()], parsed)
            refuse_misplaced(filter(Override.is_hydra_override, parsed), self.config_name, in_sweep=False)
            swept = [each for each in parsed if each.is_sweep_override()]
            choices = [values_of(each)[0] for each in swept if not each.is_interval_sweep()]
            example = self.compose([*fixed, *choices])  # a network that is searched for may have settings of its own
            searched = {
                each.get_key_element(): domain_of(
                    each,
                    select(example, each.key_or_group),
                    functools.partial(takes_whole_numbers, example, each.key_or_group),
                )
                for each in swept
            }
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
            jobs = [
                self.job(fixed, [f"{key}={value}" for key, value in zip(space, values, strict=True)], space=space)
                for values in itertools.islice(itertools.product(*ends), 100)
            ]
        peaks = (OmegaConf.select(job.cfg, "scheduler.max_lr") for job in jobs)
        peak = next((each for each in peaks if each is not None), None)
        refuse_if(
            "optimizer.lr" in space and peak is not None and "scheduler.max_lr" not in space,
            f"scheduler.max_lr is the learning rate, whatever optimizer.lr is. Got scheduler.max_lr={peak} in a search "
            f'for optimizer.lr; leave it out, or search that: "scheduler.max_lr=interval(0.01,1)"',
        )
        return jobs

    @contextlib.contextmanager
    def explained(self, overrides: list[str]) -> Iterator[None]:
        """Hydra set up for us, and what it then has against these overrides in one line."""
        with hydra_for_us():
            try:
                yield
            except (HydraException, OmegaConfBaseException, YAMLError, UnicodeDecodeError, RecursionError) as error:
                raise UsageError(self.explain(error, overrides)) from error

    def job(
        self, fixed: list[str], varying: list[str], number: int = 0, like: DictConfig | None = None, **facts: Any
    ) -> Job:
        """The job of these overrides.

        number: its own in a sweep, from 0. like: of the first job of the sweep, in which it is the same time `now`.
        facts: what else a `Job` holds.
        """
        of_hydra = [text for text in fixed if text.lstrip("+~").startswith(("hydra.", "hydra/"))]
        fixed = [text for text in fixed if text not in of_hydra]
        given = [*fixed, *varying]
        # the data set of a checkpoint, or of a run that goes on, is known only once that has been read
        of_a_file = self.config_name in ("evaluate", "export") or resumes(given)
        follows = of_a_file and not any(text.startswith("data=") for text in given)
        composed = [text for text in given if not (follows and text.startswith("data."))]
        parsed = parse(composed)
        values = [each for each in parsed if each.is_delete() or not self.is_group(each)]
        choices = tuple(each.input_line for each in parsed if each not in values)
        default = self.defaults(choices) if values else None
        groups = [path.name for folder in self.folders for path in folder.iterdir() if path.is_dir()]
        if default is not None:  # a mistake in a file is not to be taken for one in a value
            refuse_gaps(default, default.hydra.runtime.choices, self.defaults(()), groups)
        cfg = self.compose([*composed, *of_hydra], f"hydra.job.num={number}")
        if like is not None:
            OmegaConf.copy_cache(like, cfg)
        engine = engine_of(cfg, self.defaults(tuple(text for text in of_hydra if text.startswith("hydra/"))), of_hydra)
        with open_dict(cfg):
            chosen = cfg.pop("hydra").runtime.choices
        if default is not None:
            self.compare_with_defaults(cfg, default, choices, values)
        facts["notes"] = self.passed_over(cfg, choices, values)
        refuse_gaps(cfg, chosen, self.defaults(()), groups)
        with open_dict(cfg):
            ours = {key: file for key, file in chosen.items() if not key.startswith("hydra/")}
            cfg.overrides, cfg.choices = given, ours
        if self.config_name == "train" and not facts.get("in_sweep"):
            engine.set_run_dir(cfg)
        return Job(cfg, fixed, varying, self, engine, **facts)

    def compose(self, overrides: list[str], *ours: str) -> DictConfig:
        """With Hydra's own settings. ours: overrides that nobody has typed."""
        for override in parse(overrides):
            self.refuse_what_hydra_would_misread(override)
        return hydra.compose(self.config_name, [*self.searchpath, *ours, *overrides], return_hydra_config=True)

    def defaults(self, choices: tuple[str, ...]) -> DictConfig:
        """The configuration of these choices and nothing else; to look at, not to change."""
        # composing takes a third of a second, and the jobs of a sweep share their choices
        return defaults_of(self.config_name, choices) if len(self.folders) == 1 else self.compose([*choices])

    def is_group(self, override: Override) -> bool:
        return any((folder / override.key_or_group).is_dir() for folder in self.folders)

    def choices_of(self, group: str) -> list[str]:
        found = [(folder / group, path) for folder in self.folders for path in (folder / group).rglob("*.yaml")]
        return sorted({path.relative_to(folder).with_suffix("").as_posix() for folder, path in found})

    def refuse_what_hydra_would_misread(self, override: Override) -> None:
        group, value = override.key_or_group, override.value()
        refuse_if(
            override.is_hydra_override() and not is_used(override),
            f"of Hydra's own settings {LISTED} are used here. Got {override.input_line}; "
            f"{'give --config-dir a folder' if group == 'hydra.searchpath' else 'leave it out'}",
        )
        refuse_if(
            group.partition(".")[0] in FILLED_IN, f"{group} is filled in. Got {override.input_line}; leave it out"
        )
        if override.is_sweep_override():
            is_train, is_list = (
                self.config_name == "train",
                getattr(override.value(), "simple_form", False) and not self.is_group(override),
            )
            a_list = f"give a list: {group}=[{override.input_line.partition('=')[2]}]" if is_list else "give one value"
            raise UsageError(
                f"several values, but no sweep. Got {override.input_line}; {'put -m in front, or ' * is_train}{a_list}"
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
        known = self.choices_of(group)
        refuse_if(
            is_choice and isinstance(value, list) and group not in COLLECTIONS,
            f"{group} is one choice, and no list. Got {override.input_line}; give one of them"
            + f", or all in turn: -m {override.get_key_element()}={override.input_line.partition('=')[2].strip('[]')}"
            * (self.config_name == "train"),
        )
        refuse_if(
            is_choice and not isinstance(value, (str, list, QuotedString)),
            f"{group} is chosen by name. Got {override.input_line}. Choices: {', '.join(known)}",
        )

    def compare_with_defaults(
        self, cfg: DictConfig, default: DictConfig, choices: tuple[str, ...], values: list[Override]
    ) -> None:
        """Refuse what takes away a setting that is needed, a stray addition, and a value of another kind."""
        without_recipe = tuple(text for text in choices if not text.startswith(("experiment=", "debug=")))
        ours = default if without_recipe == choices or len(self.folders) == 1 else self.defaults(without_recipe)
        for override in {each.key_or_group: each for each in values}.values():  # of one key the last is what holds
            key, expected = override.key_or_group, select(default, override.key_or_group)
            if override.is_delete():
                may_go = key in MAY_BE_LEFT_OUT or key.rpartition(".")[0] in COLLECTIONS
                refuse_if(
                    not may_go and key in leaves(self.defaults(without_recipe)),  # else it is the recipe's own
                    f"~ takes away {', '.join(MAY_BE_LEFT_OUT)}, a callback or a logger. "
                    f"Got {override.input_line}; give another value",
                )
            elif override.is_add() or (override.is_force_add() and expected is None):
                self.refuse_stray_addition(cfg, override, list(leaves(default)))
            else:
                given, usual = select(cfg, key), select(ours, key)
                by_name = next((name for name in default.hydra.runtime.choices if name.endswith(f"@{key}")), None)
                refuse_if(
                    by_name and isinstance(given, str),
                    f"{key} is chosen by name. Got {override.input_line}; give {by_name}={given}",
                )
                is_usual = usual is None or kind(given) == kind(expected)
                refuse_mismatch(override, expected if is_usual else usual, given)

    def passed_over(self, cfg: DictConfig, choices: tuple[str, ...], values: list[Override]) -> list[str]:
        """Where a recipe's values stand in the place of those that a choice given beside it is made for."""
        recipes = [text for text in choices if text.startswith(("experiment=", "debug="))]
        # what is within another choice may be there with the recipe alone
        others = tuple(text for text in choices if text not in recipes and "@" not in text)
        groups = [text.partition("=")[0].lstrip("+~") for text in others]
        if not recipes or not others:
            return []
        chosen, usual, told = self.defaults(others), self.defaults(()), {each.key_or_group for each in values}
        found = []
        for text, group in zip(others, groups, strict=True):
            mine, theirs, ours = (
                values_in(each[group]) if isinstance(each.get(group), DictConfig) else {}
                for each in (cfg, chosen, usual)
            )
            lost = [
                f"{group}.{key}={mine[key]}"
                for key, value in theirs.items()
                if key in mine and key in ours and value != ours[key] and mine[key] != value
                if f"{group}.{key}" not in told
            ]
            if lost:
                found.append(
                    f"{' '.join(recipes)} has {', '.join(lost)}, whatever {text} has; give what you mean as well"
                )
        return found

    def refuse_stray_addition(self, cfg: DictConfig, override: Override, known: Sequence[str]) -> None:
        """A key behind + must be an argument of something, or be something itself: a callback, a logger. known: keys
        without it."""
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
            instead_of(key, override.input_line)
            or self.of_another_choice(override.input_line, known)
            or f"unknown key {key}.{did_you_mean(key, leaves(cfg))}",
        )

    def explain(self, error: Exception, overrides: list[str]) -> str:
        """Hydra's complaint in one line, with what comes closest to the word that it does not know."""
        text = re.sub(r" See https://hydra.cc/\S+ for details", "", one_line(error))
        match error:
            case RecursionError():
                return f"a choice whose defaults lead back to it. Got {' '.join(overrides)}; change its file"
            case MissingConfigException(missing_cfg_file=str(path)):
                place = re.match("In '(.+?)'", text)
                where = f" in {place[1]}.yaml" if place and place[1] != self.config_name else ""
                group, _, choice = path.rpartition("/")
                if group == "hydra/launcher":
                    return no_such_launcher(choice, GlobalHydra.instance().config_loader().get_group_options(group))
                if known := self.choices_of(group):
                    return (
                        f"unknown {group} {choice!r}{where}.{did_you_mean(choice, known)} Choices: {', '.join(known)}"
                    )
                return f"no such choice. Got {path} in the defaults{where}; name another"
            case UnicodeDecodeError():
                return (
                    f"{', '.join(map(str, self.undecodable()))} must be UTF-8. Got other bytes ({text}); save it anew"
                )
        if key := re.search(r"Could not override '([^']+)'", text):
            given = [text for text in overrides if text.lstrip("+~").partition("=")[0] == key[1]]
            known = self.known_keys(overrides)
            of_another = given and self.of_another_choice(given[-1], known)
            if of_another and resumes(overrides):  # which has one choice, and maybe that
                of_another = (
                    f"resume continues a run with the configuration it began with. Got {given[-1]} as well; leave that "
                    f"out, or start a new run"
                )
            return (
                (given and instead_of(key[1], given[-1]))
                or of_another
                or (
                    f"unknown key {key[1]}{'' if given or len(self.folders) == 1 else ' in a file of settings'}."
                    f"{did_you_mean(key[1], known)} See {program(self.config_name)} --help"
                )
            )
        if there := re.search(r"An item is already at '(.+?)'", text):
            return f"+ is for what is not there yet. Got +{there[1]}; leave out the +"
        if twice := re.search(r"Multiple values for (\S+)\. To override a value use '(.+)'", text):
            return f"{twice[1]} is one choice. Got it twice, by the defaults of a file; say there: {twice[2]}"
        if unfit := re.match(r"In '(.+?)': \w+ raised while composing config: (.+?)( full_key|$)", text):
            what = "a list in place of settings, or the other way round" if "ListConfig" in unfit[2] else unfit[2]
            return f"{unfit[1]}.yaml does not fit what it changes. Got {what}; see {program(self.config_name)} --help"
        return f"{text} ({one_line(error.__cause__)})" if error.__cause__ else text

    def of_another_choice(self, given: str, known: Sequence[str]) -> str | None:
        """Of a setting that other choices of its group have than the one that was made, or where none was.

        known: what there is with those that were made.
        """
        key = given.lstrip("+~").partition("=")[0]
        group, _, rest = key.rpartition("@")[2].partition(".")
        if group not in self.defaults(()).hydra.runtime.choices or not rest:
            return None
        name = rest.partition(".")[0]
        if any(f"{there}.".startswith(f"{group}.{name}.") for there in known):  # it is something within that
            return None
        having = [f"{group}={choice}" for choice in self.choices_of(group) if name in self.settings_of(group, choice)]
        listed = " or ".join(having[:4]) + " or another" * (len(having) > 4)
        return f"{key} is a setting of {listed}. Got {given}; give that as well" if having else None

    def settings_of(self, group: str, choice: str) -> Iterable[object]:
        """What its own file lists, at the top."""
        path = next(path for folder in self.folders if (path := folder / group / f"{choice}.yaml").is_file())
        return OmegaConf.load(path)

    def undecodable(self) -> Iterator[Path]:
        for path in (path for folder in self.folders[1:] for path in folder.rglob("*.yaml")):
            try:
                path.read_text("utf-8")
            except UnicodeDecodeError:
                yield path

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
