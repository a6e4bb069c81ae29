"""What of Hydra's own settings is used here: its launchers, and its names for folders. All else is refused."""

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.types import Override
from omegaconf import DictConfig

from cifar_resnet.constraints import select, values_in
from cifar_resnet.errors import UsageError, refuse_if

USED = (
    "hydra.launcher", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.job.name",
    "hydra.job.config.override_dirname",
)  # fmt: skip
FILLED_IN = (
    "hydra.runtime", "hydra.overrides", "hydra.searchpath", "hydra.mode", "hydra.help", "hydra.job.num", "hydra.job.id",
    "hydra.job.override_dirname", "hydra.job.config_name",
)  # fmt: skip
BASIC = "basic"
EXTRAS = {"joblib": "joblib", "submitit_local": "slurm", "submitit_slurm": "slurm", "ray": "ray"}
LISTED = "hydra/launcher, hydra.launcher.*, hydra.run.dir, hydra.sweep.dir, hydra.sweep.subdir and hydra.job.name"


@dataclass(frozen=True)
class Engine:
    """What starts a sweep's jobs, and where Hydra's settings want them, and single runs, to lie.

    launcher: the choice of hydra/launcher. hydra: Hydra's settings as composed, unresolved.
    run_dir: of a single run; sweep_dir: of a sweep; subdir: of this job within. None where nobody has said so.
    """

    launcher: str
    hydra: DictConfig
    run_dir: str | None
    sweep_dir: str | None
    subdir: str | None

    def set_run_dir(self, cfg: DictConfig) -> None:
        refuse_if(
            self.run_dir and (cfg.run_dir or cfg.resume),
            f"a run lies in one folder. Got hydra.run.dir={self.run_dir} and "
            f"{f'run_dir={cfg.run_dir}' if cfg.run_dir else f'resume={cfg.resume}'}; give one of them",
        )
        cfg.run_dir = self.run_dir or cfg.run_dir


def is_used(override: Override) -> bool:
    return override.key_or_group == "hydra/launcher" or override.key_or_group.startswith(USED)


def refuse_misplaced(given: Iterable[Override], command: str, in_sweep: bool) -> None:
    """UsageError for overrides of Hydra's settings that would mean nothing here."""
    for key, text in ((override.key_or_group, override.input_line) for override in given if is_used(override)):
        is_launcher = key.startswith(("hydra/launcher", "hydra.launcher", "hydra.job.name"))
        refuse_if(command not in ("train", "search"), f"{key} is cifar-train's. Got {text}; leave it out")
        refuse_if(
            command == "search" and not is_launcher, f"a search names its folders itself. Got {text}; leave it out"
        )
        if key.startswith("hydra.job.config.override_dirname"):  # which either kind of folder may be named by
            continue
        is_of_a_sweep = is_launcher or not key.startswith("hydra.run")
        refuse_if(
            command == "train" and is_of_a_sweep and not in_sweep,
            f"{key} is of a sweep. Got {text} without -m; put -m in front, or leave it out",
        )
        refuse_if(
            in_sweep and not is_of_a_sweep,
            f"{key} is of a single run. Got {text} with -m; give hydra.sweep.dir instead",
        )


def no_such_launcher(name: str, known: Iterable[str]) -> str:
    """What to say where hydra/launcher has no such choice. known: those that are installed."""
    extra = EXTRAS.get(name)
    remedy = f"in the clone: pip install -e '.[{extra}]'" if extra else f"give one of {', '.join(sorted(known))}"
    return f"no launcher of this name is installed. Got hydra/launcher={name}; {remedy}"


def engine_of(cfg: DictConfig, default: DictConfig, given: Iterable[str] = ()) -> Engine:
    """What a composed configuration says; UsageError where it says more.

    default: as it is where nobody has said so. given: overrides, by which one may also say what is the default.
    """
    before, now = (dict(flat(values_in(each.hydra), "hydra")) for each in (default, cfg))
    chosen, usual = (each.hydra.runtime.choices for each in (cfg, default))
    refused = [group for group in chosen if group.startswith("hydra/") and chosen[group] != usual.get(group)]
    refused += [
        key
        for key in dict.fromkeys((*now, *before))
        if not key.startswith((*USED, *FILLED_IN)) and now.get(key) != before.get(key)
    ]
    refused = [name for name in refused if name != "hydra/launcher"]
    if refused:
        raise UsageError(f"of Hydra's own settings {LISTED} are used here. Got {refused[0]}; leave it out")
    named = {text.lstrip("+").partition("=")[0] for text in given}
    with as_hydras_own(cfg):
        folders = [
            select(cfg, key) if now[key] != before[key] or key in named else None
            for key in ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
        ]
    return Engine(chosen["hydra/launcher"], cfg.hydra, *folders)


def flat(node: dict[str, Any], prefix: str) -> Iterator[tuple[str, object]]:
    """Each value in nested settings, by its dotted key."""
    for name, value in node.items():
        if isinstance(value, dict):
            yield from flat(value, f"{prefix}.{name}")
        else:
            yield f"{prefix}.{name}", value


@contextlib.contextmanager
def as_hydras_own(cfg: DictConfig) -> Iterator[None]:
    """Within this `${hydra:…}` refers to this configuration."""
    own = HydraConfig.instance()
    before = own.cfg
    try:
        own.set_config(cfg)
        yield
    finally:
        own.cfg = before
