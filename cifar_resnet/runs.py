"""Run folders: their names, their record, and the files in them."""

import contextlib
import csv
import functools
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from cifar_resnet import claims
from cifar_resnet.constraints import value_at
from cifar_resnet.errors import RunError, UsageError, as_usage_error, one_line, refuse_if
from cifar_resnet.folders import files_called, named, natural, whereabouts
from cifar_resnet.quoting import command_line, in_shell
from cifar_resnet.terminal import log

# what others rely on, in files that may be damaged, or somebody else's
IN_A_CONFIG = ("name", "seed", "data", "model", "optimizer", "trainer", "callbacks", "logger", "overrides", "choices")
IN_A_RECORD = (
    "name", "run_dir", "network", "data", "parameters", "num_train", "num_val", "device", "selected", "epoch", "epochs",
    "train_seconds", "images_per_second", "precision", "metrics", "config",
)  # fmt: skip
MENDING = "take it away, and resume=<run folder> tests the run again"
RECORD, CONFIG, METRICS, LOG, CURVES = "result.json", "config.yaml", "metrics.csv", "train.log", "tensorboard"
OWN_FILES = (RECORD, CONFIG, METRICS, "predictions.npz", "evaluation.json", "page.html", LOG)
FIRST_IN_NAMES = ("experiment", "model")
RANGE_TEST = "lr_range_test"  # .json, .csv and .png: left where scheduler.max_lr=auto was found
FAILURE = "failure.txt"  # in the folder of a job that failed: why
TOGETHER = "together"  # beside the members of an ensemble: what they share, such as the checkpoint all go on from


def slug(overrides: list[str], max_length: int = 80) -> str:
    """What differs, as a folder's name: model=resnet20 and optimizer.lr=0.1 make "model-resnet20_lr-0.1".

    Only characters that neither a shell nor Hydra's override grammar takes for anything else.
    """
    # or 1e+25 would become 1e-25
    pairs = [override.lstrip("+~").replace("e+", "e").partition("=") for override in overrides]
    parts = [
        re.sub(
            r"[^A-Za-z0-9._-]",
            "",
            "-".join([key.rpartition(".")[2], *re.findall(r"[A-Za-z0-9.]+", value)]),
        )
        for key, value in {key: value for key, _, value in pairs}.items()  # of one given twice the last holds
    ]
    # whole parts: half a number would be another number
    shorter = ["_".join([*parts[:count], digest(overrides)]) for count in reversed(range(len(parts)))]
    return next(text for text in ("_".join(parts), *shorter) if len(text) <= max_length)


def in_telling_order(overrides: list[str]) -> list[str]:
    """Those that tell a run from others, the recipe and the network first and the data last, for a long name is cut at
    its end; without those that the path to its folder says already."""

    def key_of(override: str) -> str:
        return override.lstrip("+~").partition("=")[0]

    def place(override: str) -> tuple[bool, int]:
        key = key_of(override)
        is_of_data = key.partition(".")[0] == "data"
        return is_of_data, FIRST_IN_NAMES.index(key) if key in FIRST_IN_NAMES else len(FIRST_IN_NAMES)

    return sorted((each for each in overrides if key_of(each) not in ("name", "output_dir")), key=place)


def distinct_slugs(jobs: list[list[str]]) -> list[str]:
    """A slug for each job of a sweep; where two jobs would share one, all get a digest as well."""
    slugs = [slug(overrides) for overrides in jobs]
    are_distinct = len(set(slugs)) == len({tuple(overrides) for overrides in jobs})
    return slugs if are_distinct else [f"{slug(overrides)}-{digest(overrides)}" for overrides in jobs]


def digest(texts: list[str]) -> str:
    return hashlib.sha256("\n".join(sorted(texts)).encode()).hexdigest()[:6]


def parent_dir(cfg: DictConfig) -> Path:
    """<output_dir>/<name>, where the runs of this name are."""
    name = Path(cfg.name)
    refuse_if(
        not name.parts or name.is_absolute() or ".." in name.parts,
        f"name is that of a folder in output_dir. Got {cfg.name!r}; give one without .. that does not begin with /",
    )
    longest = max(name.parts, key=lambda part: len(os.fsencode(part)))
    refuse_if(
        len(os.fsencode(longest)) > 255,
        f"no file system takes so long a name. Got one of {len(longest)} letters; give a shorter one",
    )
    return Path(cfg.output_dir) / name


def check_new(run_dir: Path) -> None:
    claims.check_free(run_dir)
    refuse_if(
        run_dir.exists() and any(is_of_a_run(file) for file in run_dir.iterdir()),
        f"run_dir must be a new folder. Got {run_dir}, which is not empty; to continue it, "
        f"{in_shell(f'resume={run_dir}')}",
    )


def is_of_a_run(file: Path) -> bool:
    """And nothing that was left before the run had begun."""
    return file.suffix != ".part" and file.name != claims.CLAIM and file.stem != RANGE_TEST


def create_run_dir(cfg: DictConfig) -> Path:
    """`cfg.run_dir`, or else a new <output_dir>/<name>/<time>-<settings> that no other run can have got as well."""
    if cfg.run_dir:
        check_new(Path(cfg.run_dir))
        Path(cfg.run_dir).mkdir(parents=True, exist_ok=True)
        return Path(cfg.run_dir)
    parent = parent_dir(cfg)
    parent.mkdir(parents=True, exist_ok=True)
    name = "-".join(filter(None, [f"{datetime.now():%Y-%m-%d_%H-%M-%S}", slug(in_telling_order(cfg.overrides))]))
    for path in (parent / f"{name}{suffix}" for suffix in ("", *(f"-{count}" for count in range(2, 1000)))):
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path
    raise UsageError(f"a thousand runs of this name in one second. Got {parent / name}; give another name=…")


def name_of_members(paths: Sequence[str], more: Sequence[str] = ()) -> str:
    """A folder's, for what is done now with several checkpoints; `more` sets it apart from what else may begin now."""
    return f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{len(paths)}-members-{digest([*paths, *more])}"


@contextlib.contextmanager
def open_folder(cfg: DictConfig, first: Callable[[Path], object] | None = None) -> Iterator[Path]:
    """The folder that this run writes to, as `cfg.run_dir`, claimed; a new one holds the configuration by then.

    It goes again where the user's mistake is found before anything else was written. first: what writes into a new one
    before the configuration does.
    """
    is_new, has_begun = not cfg.resume, False
    with as_usage_error():
        cfg.run_dir = str(create_run_dir(cfg) if is_new else cfg.run_dir)
    run_dir = Path(cfg.run_dir)
    # a claim is there where a sweep's or a search's job is refused, whose folder says that there was one
    before = {file for file in run_dir.iterdir() if file.name != claims.CLAIM} if is_new else set()
    try:
        with claims.held(run_dir):
            (run_dir / FAILURE).unlink(missing_ok=True)  # of a job that goes on now
            if is_new:
                with as_usage_error():
                    if first:
                        first(run_dir)
                    save_config(run_dir, cfg)
            has_begun = True
            yield run_dir
    except claims.Busy:
        raise
    except (UsageError, RunError) as error:
        if is_new and not (has_begun and isinstance(error, RunError)):
            discard(run_dir, before)
        raise


def discard(run_dir: Path, before: Collection[Path] = ()) -> None:
    """Take a run folder away that holds nothing but its configuration, and the folders it leaves empty.

    before: what was in it already, and stays.
    """
    left = [file for file in run_dir.iterdir() if file not in before] if run_dir.is_dir() else []
    # something came of it
    if any(file.name not in (CONFIG, LOG, CURVES) and file.stem != RANGE_TEST for file in left):
        return
    for file in left:
        if file.is_dir():
            shutil.rmtree(file)
        else:
            file.unlink()
    with contextlib.suppress(OSError):  # not empty: somebody's
        for folder in (run_dir, *run_dir.parents[:2]):
            folder.rmdir()


def clear(run_dir: Path) -> None:
    """Take everything out of a run folder but the claim on it."""
    for path in run_dir.iterdir():
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        elif path.name != claims.CLAIM:
            path.unlink()


def time_in(folder: Path) -> float:
    """Now, by the clock that stamps the files there."""
    with tempfile.TemporaryFile(dir=folder) as file:
        return os.fstat(file.fileno()).st_mtime


def is_finished(run_dir: Path) -> bool:
    return (run_dir / RECORD).is_file()


def can_go_on(run_dir: Path) -> bool:
    """Whether there is something to go on from."""
    return (run_dir / CONFIG).is_file() and any(run_dir.glob("checkpoints/*.ckpt"))


def sweep_dir(parent: Path, fixed: list[str], varying: list[str]) -> Path:
    """The folder of a sweep: the same for the same command, so that a sweep run again finds what it has finished."""
    swept_keys = list(dict.fromkeys(override.partition("=")[0] for override in varying))
    return parent / f"sweep-{slug(swept_keys)}-{digest([*fixed, *varying])}"


@contextlib.contextmanager
def replacing(path: Path, alone: bool = False) -> Iterator[io.BufferedWriter]:
    """A file to write that takes the place of `path` once it is whole: at no moment is there only half of one.

    alone: no other process can be writing it, so that what a killed one has left is written over.
    """
    part = path.with_name(f"{path.name}.part" if alone else f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or, after a power cut, the new name could stand for an empty file
        part.replace(path)
    finally:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


def write_atomically(path: Path, text: str) -> None:
    # a link stays one, but that to a pipe, as /dev/stdout may be, which leads to no name
    with path.open("wb") if is_special(path) else replacing(path.resolve()) as file:
        file.write(text.encode())


def write_json(path: Path, content: object) -> None:
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def as_csv(rows: Iterable[Sequence[object]]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


def write_table(path: Path, rows: Iterable[Sequence[object]]) -> None:
    write_atomically(path, as_csv(rows))


def is_special(path: Path) -> bool:
    """A pipe or a device, which takes what it gets."""
    return path.exists() and not path.is_file()


def check_writable(folder: Path) -> None:
    """UsageError where nothing could be written into this folder, or a new one, before there is anything to write."""
    nearest = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
    refuse_if(not nearest.is_dir(), f"a folder is to be written to. Got {folder}, where {nearest} is a file")
    refuse_if(not os.access(nearest, os.W_OK), f"nothing can be written there. Got {folder}; give another place")


def save_config(run_dir: Path, cfg: DictConfig) -> None:
    write_atomically(run_dir / CONFIG, OmegaConf.to_yaml(cfg))  # ${run_dir} stays: the folder may move


def load_config(run_dir: Path) -> DictConfig:
    path = run_dir / CONFIG
    if not path.is_file():
        inside = sorted(file.parent for file in run_dir.glob(f"*/{CONFIG}"))
        what = f"holds {named(inside, most=2)}" if inside else f"holds no {CONFIG}"
        raise UsageError(
            f"resume needs a run folder. Got {run_dir}, which {what if run_dir.exists() else 'is not there'}"
        )
    try:
        cfg: Any = OmegaConf.load(path)
    except Exception as error:  # whatever YAML may hold
        raise UsageError(f"a configuration that cannot be read. Got {path} ({one_line(error)})") from error
    refuse_if(
        missing := [key for key in IN_A_CONFIG if not isinstance(cfg, DictConfig) or cfg.get(key) is None],
        f"not the configuration of a run. Got {path}, without {', '.join(missing)}",
    )
    return cfg


def read_record(run_dir: Path) -> dict | None:
    """The record of a finished run; None for one that is not. UsageError where there is something else."""
    path = run_dir / RECORD
    try:
        record = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except PermissionError as error:
        raise UsageError(f"a record that you may not read. Got {path}; have that allowed, or leave it out") from error
    except (OSError, ValueError) as error:
        raise UsageError(f"a record that cannot be read. Got {path} ({error}); {MENDING}") from error
    refuse_if(
        (missing := [key for key in IN_A_RECORD if not isinstance(record, dict) or key not in record])
        or not all(isinstance(record[key], dict) for key in ("metrics", "config")),
        f"not the record of a run. Got {path}, without {', '.join(missing) or 'metrics'}; {MENDING}",
    )
    return record


def readable_record(run_dir: Path) -> dict | None:
    """The same, for others than its own run: None also of a damaged one, which is that run's trouble."""
    with contextlib.suppress(UsageError):
        return read_record(run_dir)
    return None


def finished(cfg: DictConfig) -> dict | None:
    """The record of the run that `cfg` goes on with, if that has finished before and nothing more is asked for."""
    record = read_record(Path(cfg.resume)) if cfg.resume else None
    if not record or asks_for_more(cfg, record):
        return None
    return record | {"run_dir": str(cfg.resume)}  # it may have been moved, or be seen from elsewhere


def asks_for_more(cfg: DictConfig, record: dict) -> bool:
    """Whether a finished run is to be tested, on other images or at all, or shown, where it was not before; or to be
    trained for longer than its time allowed."""
    before, limit = record["config"], cfg.trainer.get("limit_test_batches")
    tested = value_at(before, "trainer.limit_test_batches")
    is_less = type(limit) is type(tested) and limit is not None and limit <= tested
    is_tested = before.get("test") and (tested is None or is_less)
    is_shown = before.get("page")
    time = value_at(before, "trainer.max_time")
    has_more_time = time and time != cfg.trainer.get("max_time") and record["epochs"] < cfg.trainer.max_epochs
    return bool((cfg.get("test") and not is_tested) or (cfg.get("page") and not is_shown) or has_more_time)


def read_metrics(path: Path) -> list[dict[str, str]]:
    """A row of texts for each epoch; none where no epoch has ended. UsageError where the file holds something else."""
    try:
        text = path.read_text()
        rows = list(csv.DictReader(text.splitlines()))
        for row in rows:
            check_row(row)
        if text and not text.endswith("\n"):
            raise ValueError("its last line is cut short")
    except FileNotFoundError:
        return []
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        raise UsageError(f"not the metrics of a run. Got {path} ({error}); take it away") from error
    return rows


def check_row(row: dict[str, str]) -> None:
    """Raises ValueError, KeyError or TypeError for what is no row of an epoch's metrics."""
    [*map(float, filter(lambda text: text != "", row.values())), int(row["epoch"])]


def readable_metrics(path: Path) -> list[dict[str, str]]:
    """Of a damaged table those rows that are whole."""
    found = []
    lines = path.read_bytes().splitlines(keepends=True)
    for line in lines[1:]:
        with contextlib.suppress(ValueError, KeyError, TypeError, csv.Error):
            (row,) = csv.DictReader([lines[0].decode(), line.decode()])
            check_row(row)
            found += [row] if line.endswith(b"\n") else []
    return found


def last_checkpoint(run_dir: str | Path) -> Path:
    return Path(run_dir) / "checkpoints" / "last.ckpt"


def find_checkpoint(path: str | Path) -> Path:
    """The checkpoint itself, or of a run folder the one that validation chose, or else the last."""
    path = Path(path)
    is_file = path.suffix == ".ckpt" and not path.is_dir()  # a run's folder may be called after its teacher's file
    for candidate in [path] if is_file else [path / "checkpoints" / "best.ckpt", last_checkpoint(path)]:
        if candidate.is_file():
            return candidate
    raise FileNotFoundError(
        f"no checkpoint. Got {path}{whereabouts(path)}; give a .ckpt file of cifar-train, or a run folder with "
        f"checkpoints/ in it"
    )


def find_checkpoints(paths: str | Path | Iterable[str | Path], quietly: bool = False) -> list[Path]:
    """The checkpoints that these paths mean: .ckpt files, run folders, and folders of runs, such as a sweep's.

    paths: one, or several. Of a folder of runs those that have finished, in the order of their names, 10 after 9.
    quietly: without a warning of others.
    """
    found: list[Path] = []
    for path in map(Path, [paths] if isinstance(paths, (str, Path)) else paths):
        is_one = not path.is_dir() or (path / "checkpoints").is_dir()
        found += map(find_checkpoint, [path] if is_one else finished_in(path, quietly))
    refuse_if(not found, "no checkpoint given. Give a .ckpt file, a run folder, or several of them")
    twice = next((path for place, path in enumerate(found) if path.resolve() in map(Path.resolve, found[:place])), None)
    refuse_if(twice, f"a network counts once in an ensemble. Got {twice} twice; name it once")
    return found


def files_below(folder: Path, name: str) -> list[Path]:
    """Every file of this name, as `files_called` has them; a warning tells, once, of folders that are closed."""
    found, locked = files_called(name, folder)
    if locked:
        tell_of_locked(named(locked))
    return found


@functools.lru_cache
def tell_of_locked(places: str) -> None:
    log.warning(f"warning: left out, for you may not look into it: {places}\n")


def begun_in(folder: Path) -> list[Path]:
    """The runs below a folder. What lies within one is none: a tracker of experiments may keep a file of that name."""
    found: list[Path] = []
    for run_dir in sorted((file.parent for file in files_below(folder, CONFIG)), key=natural):
        if not any(parent in found for parent in run_dir.parents):
            found.append(run_dir)
    return found


def finished_in(folder: Path, quietly: bool = False) -> list[Path]:
    """The finished runs below a folder; a warning tells of others."""
    begun = begun_in(folder)
    finished = [run_dir for run_dir in begun if read_record(run_dir)]
    refuse_if(not finished, no_finished_run([folder], "give a .ckpt file, a run folder, or a sweep's folder"))
    if len(finished) < len(begun) and not quietly:
        log.warning(f"warning: {len(begun) - len(finished)} of {len(begun)} runs in {folder} have not finished\n")
    return finished


def no_finished_run(folders: Sequence[Path], otherwise: str) -> str:
    """The complaint, with what finishes one that was stopped, if there is one; or other advice."""
    places = sorted((place for folder in folders for place in begun_in(folder)), key=natural)
    begun = [place for place in places if place.name != TOGETHER and not (place.parent / TOGETHER).is_dir()]
    advice = f"{command_line('cifar-train', f'resume={begun[0]}')} finishes what was stopped" if begun else otherwise
    return f"no finished run. Got {', '.join(map(str, folders))}; {advice}"


def run_dir_of(checkpoint: Path) -> Path | None:
    """The run folder that a checkpoint lies in, if it does: by the place that was named, or that links lead to."""
    for folder in (checkpoint.absolute().parent, checkpoint.resolve().parent):
        if folder.name == "checkpoints" and (folder.parent / CONFIG).is_file():
            return folder.parent.resolve()
    return None
