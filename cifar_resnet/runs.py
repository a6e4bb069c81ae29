"""Run folders: their names, their record, and what else makes two runs comparable."""

import hashlib
import json
import platform
import re
import subprocess
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf

from cifar_resnet.command import UsageError

if TYPE_CHECKING:
    import torch

RECORD = "result.json"
CONFIG = "config.yaml"
TOGETHER = "together"  # beside the members of an ensemble: what they share, such as the checkpoint all go on from


def slug(overrides: list[str], max_length: int = 80) -> str:
    """What differs, as a folder's name: model=resnet20 and optimizer.lr=0.1 make "model-resnet20_lr-0.1".

    Only characters that neither a shell nor Hydra's override grammar takes for anything else.
    """
    parts = []
    for override in overrides:
        key, _, value = override.lstrip("+~").partition("=")
        part = "-".join([key.rsplit(".", 1)[-1], *re.findall(r"[A-Za-z0-9.]+", value)])
        parts.append(re.sub(r"[^A-Za-z0-9._-]", "", part))
    text = "_".join(parts)
    while len(text) > max_length and parts:  # whole parts: half a number would be another number
        parts.pop()
        text = "_".join([*parts, digest(overrides)])
    return text


def distinct_slugs(jobs: list[list[str]]) -> list[str]:
    """A slug for each job of a sweep; where two jobs would share one, all get a digest as well."""
    slugs = [slug(overrides) for overrides in jobs]
    if len(set(slugs)) == len({tuple(overrides) for overrides in jobs}):
        return slugs
    return [f"{name}-{digest(overrides)}" for name, overrides in zip(slugs, jobs, strict=True)]


def digest(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:6]


def parent_dir(cfg: DictConfig) -> Path:
    """<output_dir>/<name>, where the runs of this name are."""
    name = Path(cfg.name)
    if not name.parts or name.is_absolute() or ".." in name.parts:
        raise UsageError(f"name is that of a folder in output_dir. Got {cfg.name!r}; give letters, digits, - and _")
    return Path(cfg.output_dir) / name


def create_run_dir(cfg: DictConfig) -> Path:
    """`cfg.run_dir`, or else a new <output_dir>/<name>/<time>-<what differs> that no other run can have got as well."""
    if cfg.run_dir:
        path = Path(cfg.run_dir)
        if path.exists() and any(file.suffix != ".part" for file in path.iterdir()):
            raise ValueError(
                f"run_dir must be a new folder. Got {path}, which is not empty; to continue it, resume={path}"
            )
        path.mkdir(parents=True, exist_ok=True)
        return path
    parent = parent_dir(cfg)
    parent.mkdir(parents=True, exist_ok=True)
    name = "-".join(filter(None, [f"{datetime.now():%Y-%m-%d_%H-%M-%S}", slug(cfg.overrides)]))
    for count in range(1, 1000):
        path = parent / (name if count == 1 else f"{name}-{count}")
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path
    raise ValueError(f"a thousand runs of this name in one second. Got {parent / name}; give another name=…")


def discard(run_dir: Path) -> None:
    """Take a run folder away that holds nothing but its configuration, and the folders it leaves empty."""
    (run_dir / CONFIG).unlink(missing_ok=True)
    for folder in (run_dir, *run_dir.parents[:2]):
        try:
            folder.rmdir()
        except OSError:  # not empty: somebody's
            return


def sweep_dir(parent: Path, fixed: list[str], sweep: list[str]) -> Path:
    """The folder of a sweep: the same for the same command, so that a sweep run again finds what it has finished."""
    swept_keys = list(dict.fromkeys(override.partition("=")[0] for override in sweep))
    return parent / f"sweep-{slug(swept_keys)}-{digest([*fixed, *sweep])}"


def write_atomically(path: Path, text: str) -> None:
    part = path.with_name(f"{path.name}.part")
    part.write_text(text)
    part.replace(path)


def save_config(run_dir: Path, cfg: DictConfig) -> None:
    write_atomically(run_dir / CONFIG, OmegaConf.to_yaml(cfg))  # ${run_dir} stays: the folder may move


def load_config(run_dir: Path) -> DictConfig:
    path = run_dir / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"resume needs a run folder. Got {run_dir}, which holds no {CONFIG}")
    return OmegaConf.load(path)


def read_record(run_dir: Path) -> dict | None:
    """The record of a finished run; None for one that is not."""
    path = run_dir / RECORD
    return json.loads(path.read_text()) if path.is_file() else None


def write_record(run_dir: Path, record: dict) -> None:
    write_atomically(run_dir / RECORD, json.dumps(record, indent=2) + "\n")


def commit() -> str | None:
    """The commit of the clone this code runs from, "+" behind it where files differ; None outside a clone."""
    folder = Path(__file__).resolve().parents[1]
    if not (folder / ".git").exists():  # installed: the repository around it, if any, is another project's
        return None
    try:
        output = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=folder, capture_output=True, text=True, check=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError):
        return None
    return output.stdout.strip()


def device_name(device: "torch.device") -> str:
    """Such as "NVIDIA H200", or "AMD EPYC, 2 threads"."""
    import torch

    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists() and (model := re.search(r"model name\s*: (.+)", cpuinfo.read_text())):
        name = model[1]
    return f"{name}, {torch.get_num_threads()} threads"


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in ("cifar-resnet", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy"):
        try:
            found[package] = version(package)
        except PackageNotFoundError:  # run from a clone that is not installed
            continue
    return found
