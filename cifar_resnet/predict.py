"""cifar-predict: what pictures show, according to a trained network or an ensemble.

    cifar-predict checkpoint=outputs/train/<run folder> input=photos output=predictions.csv
    cifar-predict checkpoint=outputs/train/<sweep folder> input=test_nolabels.pkl format=ids output=submission.csv

A picture that cannot be read is named and left out, the rest predicted, and the exit code is then 1.
"""

import itertools
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from hydra.utils import instantiate
from rich.console import Console
from rich.progress import Progress

from cifar_resnet import runs
from cifar_resnet.compose import Job
from cifar_resnet.errors import refuse_if
from cifar_resnet.files import Images, decode, is_archive, read_archive
from cifar_resnet.preflight import check_output, input_files, plain, shown
from cifar_resnet.results.inference import Ensemble, mean_probability

AHEAD = 2  # batches that are decoded while the network looks at one
Read = tuple[
    list[str], Images | str
]  # what a file holds with a name for each image, or its name and why it is not read


def run(jobs: list[Job]) -> int:
    (job,) = jobs
    cfg = job.cfg
    as_text, files = FORMATS[check_output(cfg)], input_files(plain(cfg.input))
    precision = instantiate(cfg.precision, accelerator=cfg.accelerator)
    ensemble = Ensemble(runs.find_checkpoints(plain(cfg.checkpoint)), cfg.tta, cfg.accelerator, precision)
    predictions, skipped = predict(ensemble, files, cfg.batch_size, cfg.top_k)
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    refuse_if(
        not predictions,
        f"nothing could be read. Got {len(skipped)} of {len(files)} files that are damaged or no pictures",
    )
    if cfg.output:
        runs.write_atomically(Path(cfg.output), as_text(predictions))
        print(f"{len(predictions):,} predictions in {cfg.output}", file=sys.stderr)
    else:
        sys.stdout.write(as_text(predictions))
    return 1 if skipped else 0


@dataclass
class Prediction:
    """name: the file, within an archive with the image's number; id: as the archive has it, or the image's number among
    all that were given, from 0; top: the most probable classes with their probabilities; label: the first's number."""

    name: str
    id: str
    top: list[tuple[str, float]]
    label: int


def as_csv(predictions: list[Prediction]) -> str:
    places = range(1, len(predictions[0].top) + 1)
    head = ["input", *(f"{what}_{place}" for place in places for what in ("class", "probability"))]
    rows = [[each.name, *(cell for name, share in each.top for cell in (name, f"{share:.4f}"))] for each in predictions]
    return runs.as_csv([head, *rows])


def as_ids(predictions: list[Prediction]) -> str:
    return runs.as_csv([["ID", "Labels"], *([each.id, each.label] for each in predictions)])


def as_json(predictions: list[Prediction]) -> str:
    found = [
        {"input": each.name, "top": [{"class": name, "probability": round(share, 6)} for name, share in each.top]}
        for each in predictions
    ]
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


FORMATS = {"csv": as_csv, "json": as_json, "ids": as_ids}


def predict(
    ensemble: Ensemble, files: Sequence[Path], batch_size: int, top_k: int
) -> tuple[list[Prediction], list[str]]:
    """Predictions in the order of the images, and for each file that could not be read, why."""
    predictions, skipped, numbers = [], [], itertools.count()
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("pictures", total=len(files))
        for batch in batches(files, ensemble.image_size, batch_size):
            names_and_ids, arrays = [], []
            for names, found in batch:
                own_ids = [str(number) for number in itertools.islice(numbers, len(names))]
                if isinstance(found, str):
                    skipped.append(found)
                else:
                    names_and_ids += zip(names, found.ids or own_ids, strict=True)
                    arrays.append(found.images)
            if arrays:
                images = torch.from_numpy(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
                probabilities = mean_probability(ensemble.log_probs(images, batch_size)).exp()
                shares, labels = (each.tolist() for each in probabilities.topk(min(top_k, len(ensemble.classes))))
                for (name, id_), *best in zip(names_and_ids, shares, labels, strict=True):
                    top = [(ensemble.classes[label], share) for share, label in zip(*best, strict=True)]
                    predictions.append(Prediction(name, id_, top, best[1][0]))
            progress.advance(task, len(batch))
    return predictions, skipped


def batches(files: Sequence[Path], image_size: int, batch_size: int) -> Iterator[list[Read]]:
    """What `read` finds in the files, in their order: an archive by itself, up to batch_size pictures together.

    The next pictures are decoded while the caller is busy with these; an archive, which may be large, waits its turn.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: list[list[Callable[[], Read]]] = []
        for archived, group in itertools.groupby(files, is_archive):
            paths, size = list(group), 1 if archived else batch_size
            for start in range(0, len(paths), size):
                reads = [partial(read, path, image_size, archived) for path in paths[start : start + size]]
                waiting.append(reads if archived else [pool.submit(each).result for each in reads])
                if len(waiting) > AHEAD:
                    yield [finish() for finish in waiting.pop(0)]
        for batch in waiting:
            yield [finish() for finish in batch]


def read(path: Path, image_size: int, archived: bool) -> Read:
    try:
        if archived:
            found = read_archive(path, image_size)
            return [f"{shown(path)}[{place}]" for place in range(len(found.images))], found
        pixels, _ = decode(path, image_size)
        return [shown(path)], Images(np.stack([pixels.transpose(2, 0, 1)]), labels=None)
    except (ValueError, OSError) as error:
        return [shown(path)], str(error)
