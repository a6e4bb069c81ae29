"""Whose code a configuration may name: to build is to call, and a run folder may be a stranger's.

What a user's command is composed of, the user's own YAML files included, is the user's. What a run folder's config.yaml
names is built only where it belongs to this project, to torch's optimizers and schedules or to Lightning, or where the
command names it too. Nothing is imported to find that out, but for what the user trusts.
"""

import re
from collections.abc import Iterable, Iterator, Sequence
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
    r"|lightning\.pytorch\.(Trainer|(callbacks|profilers|strategies)\.[A-Z]\w*)"
    r"|lightning\.pytorch\.loggers\.(CSVLogger|TensorBoardLogger)"  # the others send what they get to somebody
)
# these name what they give in an argument
FINDERS = tuple(f"hydra.utils.get_{kind}" for kind in ("class", "method", "object", "static_method"))


def check_targets(cfg: DictConfig, file: Path, named: Iterable[str], trusted: Sequence[str]) -> None:
    """UsageError where a configuration from this file would build what nobody but the file has named.

    named: what the command names as well. trusted: modules, of which the file may name anything that is theirs.
    """
    known = set(named)
    strange = {
        place: name
        for place, name in targets_in(plain(cfg))  # as it will be when it is built
        if not KNOWN.fullmatch(name) and name not in known and not any(is_of(name, module) for module in trusted)
    }
    modules = ",".join(dict.fromkeys(name.rpartition(".")[0] or name for name in strange.values()))
    refuse_if(
        strange,
        f"{file} names code that is neither this project's nor torch's or Lightning's. Got "
        f"{', '.join(f'{place}={name}' for place, name in strange.items())}; if you trust it, add "
        f"{in_shell(f'trust=[{modules}]')}",
    )


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
