"""Whose code a configuration or a checkpoint may name: to build is to call, and a run folder may be a stranger's.

What a user's command is composed of, the user's own YAML files included, is the user's. What a run folder's config.yaml
or a checkpoint names is built only where it belongs to this project, to torch's and torchvision's layers, networks,
optimizers and schedules or to Lightning, or where the command names it too, by `trust` or in its settings, or where it
belongs to an installed package that says so: its entry points of the group "cifar_resnet" name the modules.

    [project.entry-points.cifar_resnet]
    networks = "my_package.networks"

Nothing is imported to find that out, but for torchvision and what the user trusts.
"""

import functools
import re
from collections.abc import Iterable, Iterator, Sequence
from importlib.metadata import entry_points
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cifar_resnet.constraints import imported, plain
from cifar_resnet.errors import refuse_if
from cifar_resnet.quoting import in_shell

KNOWN = re.compile(
    r"cifar_resnet\.(callbacks|data|models|optim)(\.[a-z]\w*)?\.[A-Z]\w*"
    r"|cifar_resnet\.optim\.[a-z]\w*"
    r"|cifar_resnet\.(hardware\.resolve_precision|range_test\.RangeTest|search\.Search)"
    r"|torch\.optim\.([a-z]\w*\.)?[A-Z]\w*"
    r"|torch\.nn\.[A-Z]\w*"
    r"|lightning\.pytorch\.(Trainer|(callbacks|profilers|strategies)\.[A-Z]\w*)"
    r"|lightning\.pytorch\.loggers\.(CSVLogger|TensorBoardLogger)"  # the others send what they get to somebody
)
LIBRARIES = ("torchvision.models",)  # of which whatever is their own may be named
# these name what they give in an argument
FINDERS = tuple(f"hydra.utils.get_{kind}" for kind in ("class", "method", "object", "static_method"))


def check_targets(cfg: DictConfig | dict, file: str | Path, named: Iterable[str], trusted: Sequence[str]) -> None:
    """UsageError where settings from this file would build what nobody but the file has named.

    named: what the command names as well. trusted: modules, of which the file may name anything that is theirs.
    """
    known = set(named)
    found = plain(cfg) if isinstance(cfg, DictConfig) else cfg  # as it will be when it is built
    strange = {place: name for place, name in targets_in(found) if name not in known and not is_trusted(name, trusted)}
    refuse_if(
        strange,
        f"{file} names what is called only if you name it too: code that is neither this project's nor torch's or "
        f"Lightning's, or a tracker that sends data away. Got "
        f"{', '.join(f'{place}={name}' for place, name in strange.items())}; if you trust it, add "
        f"{in_shell(trusting(strange.values()))}",
    )


def trusting(names: Iterable[str]) -> str:
    """The setting that lets these be called."""
    return f"trust=[{','.join(dict.fromkeys(name.rpartition('.')[0] or name for name in names))}]"


def needed_to_go_on(cfg: DictConfig) -> list[str]:
    """What a command has to add where it goes on with a run of these settings; none, or `trust`."""
    strange = [name for _, name in targets_in(plain(cfg)) if not is_trusted(name)]
    return [trusting(strange)] if strange else []


def is_trusted(name: str, trusted: Sequence[str] = ()) -> bool:
    """Whether what has this name may be called: known well, or of a module that the user or a package names."""
    return bool(KNOWN.fullmatch(name)) or any(is_of(name, module) for module in (*LIBRARIES, *trusted, *installed()))


@functools.cache
def installed() -> tuple[str, ...]:
    """The packages that have announced modules: to import one of these is to import its package."""
    return tuple(re.split(r"[.:]", point.value)[0] for point in entry_points(group="cifar_resnet"))


def targets_in(node: object, place: str = "") -> Iterator[tuple[str, str]]:
    """Key and name of everything that is to be built, or looked up, at any depth of a container."""
    if isinstance(node, dict):
        if "_target_" in node:
            target = str(node["_target_"])
            arguments = node.get("_args_") or [None]
            path = node.get("path", arguments[0] if isinstance(arguments, list) else None)
            yield f"{place}._target_", path if target in FINDERS and isinstance(path, str) else target
        for key, value in node.items():
            yield from targets_in(value, f"{place}.{key}".removeprefix("."))
    elif isinstance(node, list):
        for number, value in enumerate(node):
            yield from targets_in(value, f"{place}[{number}]")


def named_in(cfg: DictConfig) -> set[str]:
    return {name for _, name in targets_in(plain(cfg))}


def named_in_files(folders: Iterable[Path]) -> set[str]:
    """What the YAML files below these folders name; those that cannot be read name nothing."""
    found = set()
    for path in (path for folder in folders for path in folder.rglob("*.yaml")):
        try:
            found |= {name for _, name in targets_in(OmegaConf.to_container(OmegaConf.load(path)))}
        except (OSError, ValueError, YAMLError, OmegaConfBaseException):
            continue
    return found


def is_of(name: str, module: str) -> bool:
    """Whether a name is the module's own, or is its very name; what the module merely imports is not."""
    if name == module or not name.startswith(f"{module}."):
        return name == module
    home = getattr(imported(name), "__module__", None) or ""
    return home == module or home.startswith(f"{module}.")
