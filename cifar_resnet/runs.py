"""Run folders: their names, their record, and what else makes two runs comparable."""

import csv
import hashlib
import io
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterable, Sequence
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from cifar_resnet.command import UsageError

if TYPE_CHECKING:
    import torch
    from matplotlib.figure import Figure

# what others rely on, in files that may be damaged, or somebody else's
IN_A_CONFIG = ("name", "seed", "data", "model", "optimizer", "trainer", "callbacks", "logger", "overrides", "choices")
IN_A_RECORD = (
    "name", "run_dir", "network", "data", "parameters", "num_train", "num_val", "device", "selected", "epoch", "epochs",
    "train_seconds", "metrics", "config",
)  # fmt: skip
MENDING = "take it away, and resume=<run folder> tests the run again"
RECORD = "result.json"
CONFIG = "config.yaml"
METRICS = "metrics.csv"
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
    if longest := next((part for part in name.parts if len(os.fsencode(part)) > 255), None):
        raise UsageError(f"no file system takes so long a name. Got one of {len(longest)} letters; give a shorter one")
    return Path(cfg.output_dir) / name


def check_new(run_dir: Path) -> None:
    if run_dir.exists() and any(file.suffix != ".part" for file in run_dir.iterdir()):
        raise ValueError(
            f"run_dir must be a new folder. Got {run_dir}, which is not empty; to continue it, resume={run_dir}"
        )


def create_run_dir(cfg: DictConfig) -> Path:
    """`cfg.run_dir`, or else a new <output_dir>/<name>/<time>-<what differs> that no other run can have got as well."""
    if cfg.run_dir:
        path = Path(cfg.run_dir)
        check_new(path)
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
    path = path.resolve()  # a link stays one
    if path.exists() and not path.is_file():  # a pipe or a device takes what it gets
        path.write_text(text, encoding="utf-8")
        return
    part = path.with_name(f"{path.name}.part")
    with part.open("w", encoding="utf-8", newline="") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())  # or, after a power cut, the new name could stand for an empty file
    part.replace(path)


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_table(path: Path, rows: Iterable[Sequence[object]]) -> None:
    write_atomically(path, as_csv(rows))


def save_figure(path: Path, figure: "Figure") -> None:
    part = path.with_name(f"part-{path.name}")  # its end says which format
    figure.savefig(part)
    part.replace(path)


def check_writable(path: Path) -> None:
    """PermissionError where this file or folder could not be written, before there is anything to write."""
    nearest = next(each for each in (path.absolute(), *path.absolute().parents) if each.exists())
    if not os.access(nearest, os.W_OK):
        raise PermissionError(f"nothing can be written there. Got {path}; give another place")


def save_config(run_dir: Path, cfg: DictConfig) -> None:
    write_atomically(run_dir / CONFIG, OmegaConf.to_yaml(cfg))  # ${run_dir} stays: the folder may move


def load_config(run_dir: Path) -> DictConfig:
    path = run_dir / CONFIG
    if not path.is_file():
        raise FileNotFoundError(f"resume needs a run folder. Got {run_dir}, which holds no {CONFIG}")
    try:
        cfg = OmegaConf.load(path)
    except (OSError, UnicodeDecodeError, YAMLError, OmegaConfBaseException) as error:
        raise UsageError(f"a configuration that cannot be read. Got {path} ({' '.join(str(error).split())})") from error
    missing = [key for key in IN_A_CONFIG if not isinstance(cfg, DictConfig) or cfg.get(key) is None]
    if missing:
        raise UsageError(f"not the configuration of a run. Got {path}, without {', '.join(missing)}")
    return cfg


def read_record(run_dir: Path) -> dict | None:
    """The record of a finished run; None for one that is not. UsageError where there is something else."""
    path = run_dir / RECORD
    if not path.exists():
        return None
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UsageError(f"a record that cannot be read. Got {path} ({error}); {MENDING}") from error
    missing = [key for key in IN_A_RECORD if not isinstance(record, dict) or key not in record]
    if missing or not all(isinstance(record[key], dict) for key in ("metrics", "config")):
        raise UsageError(f"not the record of a run. Got {path}, without {', '.join(missing) or 'metrics'}; {MENDING}")
    return record


def read_metrics(path: Path) -> list[dict[str, str]]:
    """A row of texts for each epoch; none where no epoch has ended. UsageError where the file holds something else."""
    if not path.exists():
        return []
    try:
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        [float(value) for row in rows for value in row.values() if value]
        [int(row["epoch"]) for row in rows]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UsageError(f"not the metrics of a run. Got {path} ({error}); take it away") from error
    return rows


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
