"""cifar-predict: what pictures show, according to a trained network or an ensemble.

    cifar-predict checkpoint=outputs/train/<run folder> input=photos output=answers.csv
    cifar-predict checkpoint=outputs/train/<sweep folder> input=test_nolabels.pkl format=ids output=submission.csv

A picture that cannot be read is named and left out, the rest answered, and the exit code is then 1.
"""

import itertools
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from cifar_resnet import runs
from cifar_resnet.command import Job, UsageError, usage_errors
from cifar_resnet.command import main as command_main

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from cifar_resnet.inference import Ensemble

log = logging.getLogger("cifar_resnet")

AHEAD = 2  # batches that are decoded while the network looks at one


def main(argv: Sequence[str] | None = None) -> int:
    return command_main("predict", run, argv)


def run(jobs: list[Job], is_sweep: bool) -> int:
    if is_sweep:
        raise UsageError("cifar-predict has no sweeps: leave out -m. Several inputs are a list: input=[a,b]")
    from cifar_resnet.terminal import set_up_logging

    cfg = jobs[0].cfg
    for key in ("checkpoint", "input"):
        if OmegaConf.is_missing(cfg, key):
            raise UsageError(f"{key} has no default. Give it: {key}=<path>")
    with usage_errors():
        write = check_output(cfg)
        paths = files_of(plain(cfg.input))
    set_up_logging()
    with usage_errors():
        from cifar_resnet import checkpoints

        networks = checkpoints.members(plain(cfg.checkpoint))
        checkpoints.read(networks[0])  # what is wrong with it is said before Lightning is imported

        from cifar_resnet.inference import Ensemble

        precision = instantiate(cfg.precision, accelerator=cfg.accelerator)
        ensemble = Ensemble(networks, cfg.tta, cfg.accelerator, precision)
    answers, skipped = predict(ensemble, paths, cfg.batch_size, cfg.top_k)
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    if not answers:
        raise UsageError(
            f"nothing could be read. Got {len(skipped)} of {len(paths)} files that are damaged or no pictures"
        )
    with usage_errors():
        write(answers)
    return 1 if skipped else 0


@dataclass
class Answer:
    """name: the file, within an archive with the image's number; id: as the archive has it, or the image's number among
    all that were given, from 0; top: the most probable classes with their probabilities; label: the first's number."""

    name: str
    id: str
    top: list[tuple[str, float]]
    label: int


def plain(value: object) -> str | list[str]:
    return OmegaConf.to_container(value) if OmegaConf.is_config(value) else str(value)


def files_of(inputs: str | Sequence[str]) -> list[Path]:
    """Every file that is meant, those of a folder in the order of their names, 10 after 9.

    What is not there, or a folder without files, stands for itself: reading it will say so.
    """
    from cifar_resnet.checkpoints import natural

    found = []
    for path in map(Path, [inputs] if isinstance(inputs, str) else inputs):
        if path.is_dir():
            inside = [file for file in path.rglob("*") if file.is_file() and not file.name.startswith(".")]
            found += sorted(inside, key=natural) or [path]
        else:
            found.append(path)
    if not any(path.exists() and not path.is_dir() for path in found):
        raise FileNotFoundError(
            f"input must be pictures, folders of them, .npz archives or pickles. Got {', '.join(map(str, found))}, "
            f"where there is none"
        )
    return found


def check_output(cfg: DictConfig) -> Callable[[list[Answer]], None]:
    """What writes the answers, where and as asked for."""
    if cfg.top_k < 1:
        raise ValueError(f"top_k counts classes. Got {cfg.top_k}; give 1 or more")
    suffix = Path(cfg.output).suffix.lower() if cfg.output else ".csv"
    known = {".csv": "csv", ".json": "json"}
    if not cfg.format and suffix not in known:
        raise ValueError(
            f"output is a .csv or .json file. Got {cfg.output}; name it so, or give format=csv, json or ids"
        )
    form = cfg.format or known[suffix]
    if form not in FORMATS:
        raise ValueError(f"unknown format. Got {form}; give {', '.join(FORMATS)}")
    if cfg.output and not Path(cfg.output).parent.is_dir():
        raise FileNotFoundError(f"output must lie in a folder that exists. Got {cfg.output}")
    if cfg.output and Path(cfg.output).is_dir():
        raise IsADirectoryError(f"output must be a file. Got the folder {cfg.output}")
    if cfg.output:
        runs.check_writable(Path(cfg.output))

    def write(answers: list[Answer]) -> None:
        text = FORMATS[form](answers)
        if cfg.output:
            runs.write_atomically(Path(cfg.output), text)
            print(f"{len(answers):,} answers in {cfg.output}", file=sys.stderr)
        else:
            sys.stdout.write(text)

    return write


def as_csv(answers: list[Answer]) -> str:
    places = range(1, len(answers[0].top) + 1)
    head = ["input", *itertools.chain(*((f"class_{place}", f"probability_{place}") for place in places))]
    rows = [[each.name, *itertools.chain(*((name, f"{share:.4f}") for name, share in each.top))] for each in answers]
    return runs.as_csv([head, *rows])


def as_ids(answers: list[Answer]) -> str:
    return runs.as_csv([["ID", "Labels"], *([each.id, each.label] for each in answers)])


def as_json(answers: list[Answer]) -> str:
    found = [
        {"input": each.name, "top": [{"class": name, "probability": round(share, 6)} for name, share in each.top]}
        for each in answers
    ]
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


FORMATS = {"csv": as_csv, "json": as_json, "ids": as_ids}


def predict(ensemble: "Ensemble", paths: list[Path], batch_size: int, top_k: int) -> tuple[list[Answer], list[str]]:
    """Answers in the order of the images, and for each file that could not be read, why."""
    from rich.console import Console
    from rich.progress import Progress

    from cifar_resnet.inference import mean_probability

    answers, skipped, number = [], [], 0
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("pictures", total=len(paths))
        for names, ids, images, unreadable, num_files in batches(paths, ensemble.image_size, batch_size):
            skipped += unreadable
            if names:
                log_probs = mean_probability(ensemble.about(images, batch_size))
                top = log_probs.exp().topk(min(top_k, log_probs.shape[1]))
                for name, id_, shares, labels in zip(
                    names, ids, top.values.tolist(), top.indices.tolist(), strict=True
                ):
                    classes = [ensemble.classes[label] for label in labels]
                    id_ = id_ if isinstance(id_, str) else str(number + id_)
                    answers.append(Answer(name, id_, list(zip(classes, shares, strict=True)), labels[0]))
            number += len(names) + len(unreadable)
            progress.advance(task, num_files)
    return answers, skipped


Batch = tuple[list[str], list[str | int], "Tensor", list[str], int]


def batches(paths: list[Path], image_size: int, batch_size: int) -> Iterator[Batch]:
    """Names, ids and images (N, 3, image_size, image_size), what could not be read, and how many files that were.

    An image without an id of its own has its place in the batch for one, those that could not be read counted. The next
    ones are decoded while the caller is busy with these.
    """
    from cifar_resnet.files import is_archive

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting = []
        for archived, group in itertools.groupby(paths, is_archive):
            files = list(group)
            size = 1 if archived else batch_size
            for piece in (files[start : start + size] for start in range(0, len(files), size)):
                waiting.append(
                    open_archive(piece[0], image_size) if archived else open_pictures(piece, image_size, pool)
                )
                if len(waiting) > AHEAD:
                    yield waiting.pop(0)()
        for finish in waiting:
            yield finish()


def open_pictures(paths: Sequence[Path], image_size: int, pool: ThreadPoolExecutor) -> Callable[[], Batch]:
    import numpy as np
    import torch

    futures = [pool.submit(pixels_of, path, image_size) for path in paths]

    def finish() -> Batch:
        found = [(path, future.result()) for path, future in zip(paths, futures, strict=True)]
        good = [
            (shown(path), place, pixels) for place, (path, pixels) in enumerate(found) if not isinstance(pixels, str)
        ]
        unreadable = [reason for _, reason in found if isinstance(reason, str)]
        if not good:
            return [], [], torch.empty(0), unreadable, len(paths)
        names, places, arrays = zip(*good, strict=True)
        images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        return list(names), list(places), images, unreadable, len(paths)

    return finish


def shown(path: Path) -> str:
    """Its name, as text that can be written: a file's name may be any bytes."""
    return os.fsencode(path).decode(errors="replace")


def pixels_of(path: Path, image_size: int) -> "np.ndarray | str":
    """The picture, or why there is none."""
    from cifar_resnet.files import decode

    try:
        return decode(path, image_size)[0]
    except ValueError as error:
        return str(error)


def open_archive(path: Path, image_size: int) -> Callable[[], Batch]:
    from cifar_resnet.files import read_archive

    def finish() -> Batch:
        import torch

        try:
            found = read_archive(path, image_size)
        except (ValueError, OSError) as error:
            return [], [], torch.empty(0), [str(error)], 1
        places = list(range(len(found.images)))
        names = [f"{shown(path)}[{place}]" for place in places]
        return names, found.ids or places, torch.from_numpy(found.images), [], 1

    return finish


if __name__ == "__main__":
    sys.exit(main())
