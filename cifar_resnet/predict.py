"""cifar-predict: what pictures show, according to a trained network or an ensemble.

    cifar-predict "checkpoint=outputs/train/<run folder>" input=photos output=predictions.csv
    cifar-predict "checkpoint=outputs/train/<sweep folder>" input=test_nolabels.pkl format=ids output=submission.csv
    cifar-predict "checkpoint=outputs/train/<run folder>" input=test format=ids ids.header=[id,label] ids.labels=names

A picture that cannot be read, or for which the network gives no numbers, is named and left out, the rest predicted, and
the exit code is then 1.
"""

import contextlib
import itertools
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch

from cifar_resnet import runs
from cifar_resnet.archives import Images, is_archive, read_archive
from cifar_resnet.compose import Job
from cifar_resnet.errors import refuse_if
from cifar_resnet.files import numbers_of
from cifar_resnet.folders import as_text, named
from cifar_resnet.instantiation import instantiate
from cifar_resnet.pictures import MAX_MEGAPIXELS, decode
from cifar_resnet.preflight import check_distinct, check_output, input_files, plain
from cifar_resnet.results.inference import Ensemble, mean_probability
from cifar_resnet.terminal import bar

AHEAD = 2  # batches that are decoded while the network looks at one
Read = tuple[
    list[str], Images | str
]  # what a file holds with a name for each image, or its name and why it is not read


def run(jobs: list[Job]) -> int:
    (job,) = jobs
    cfg = job.cfg
    form, found = check_output(cfg), input_files(plain(cfg.input))
    if passed_over := found.in_words():
        print(f"passed over: {passed_over}", file=sys.stderr)
    precision = instantiate(cfg.precision, accelerator=cfg.accelerator)
    with contextlib.redirect_stdout(sys.stderr):  # a warning about unfinished runs is no prediction
        checkpoints = runs.find_checkpoints(plain(cfg.checkpoint))
    ensemble = Ensemble(checkpoints, cfg.tta, cfg.accelerator, precision, list(cfg.trust))
    predictions, skipped = predict(
        ensemble, found.files, cfg.batch_size, cfg.top_k, cfg.max_megapixels, first_id=cfg.ids.first
    )
    for reason in skipped:
        print(f"skipped: {reason}", file=sys.stderr)
    refuse_if(
        not predictions,
        f"nothing could be predicted. Got {named(map(as_text, found.files))}; give others"
        f"{', or do what is said above' if skipped else ''}",
    )
    text = as_ids(predictions, cfg.ids.header, cfg.ids.labels) if form == "ids" else FORMATS[form](predictions)
    if cfg.output:
        runs.write_atomically(Path(cfg.output), text)
        print(f"{len(predictions):,} predictions in {cfg.output}", file=sys.stderr)
    else:
        sys.stdout.write(text)
    return 1 if skipped else 0


@dataclass
class Prediction:
    """What one image shows.

    name: the file, within an archive with the image's number.
    id: a picture's is its file's stem; of an archive as that has it, or the image's number among all that were given;
        None where an archive before it could not be read, so that nobody knows.
    top: the most probable classes with their probabilities.
    label: the first of them as a number, by which cifar-evaluate knows it in a file of labels (see `numbers_of`).
    """

    name: str
    id: str | None
    top: list[tuple[str, float]]
    label: int


def as_csv(predictions: list[Prediction]) -> str:
    places = range(1, len(predictions[0].top) + 1)
    head = ["input", *(f"{what}_{place}" for place in places for what in ("class", "probability"))]
    rows = [[each.name, *(cell for name, share in each.top for cell in (name, f"{share:.4f}"))] for each in predictions]
    return runs.as_csv([head, *rows])


def as_ids(predictions: list[Prediction], header: Sequence[str], labels: str) -> str:
    """Two columns: of each image its id, and its class as one of "numbers" or of "names"."""
    unknown = next((each.name for each in predictions if each.id is None), None)
    refuse_if(
        unknown,
        f"ids count the images of all archives, of which one before {unknown} could not be read. Got no number for "
        f"that; give whole archives, or such as hold ids",
    )
    check_distinct((each.id, each.name) for each in predictions)
    rows = [[each.id, each.top[0][0] if labels == "names" else each.label] for each in predictions]
    return runs.as_csv([header, *rows])


def as_json(predictions: list[Prediction]) -> str:
    found = [
        {"input": each.name, "top": [{"class": name, "probability": round(share, 6)} for name, share in each.top]}
        for each in predictions
    ]
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


FORMATS = {"csv": as_csv, "json": as_json}


def predict(
    ensemble: Ensemble,
    files: Sequence[Path],
    batch_size: int,
    top_k: int,
    max_megapixels: int = MAX_MEGAPIXELS,
    first_id: int = 0,
) -> tuple[list[Prediction], list[str]]:
    """Predictions in the order of the images, and for each file or image that has none, why."""
    predictions, skipped, ids, is_counted = [], [], itertools.count(first_id), True
    numbers, paths = numbers_of(ensemble.classes), iter(files)
    with bar("pictures", len(files)) as advance:
        for batch in batches(files, ensemble.image_size, batch_size, max_megapixels):
            names_and_ids: list[tuple[str, str | None]] = []
            arrays = []
            for (names, found), path in zip(batch, itertools.islice(paths, len(batch)), strict=True):
                own_ids = [str(number) if is_counted else None for number in itertools.islice(ids, len(names))]
                if isinstance(found, str):
                    skipped.append(found)
                    is_counted &= not is_archive(path)
                else:
                    names_and_ids += zip(names, found.ids or own_ids, strict=True)
                    arrays.append(found.images)
            if arrays:
                images = torch.from_numpy(arrays[0] if len(arrays) == 1 else np.concatenate(arrays))
                probabilities = mean_probability(ensemble.log_probs(images, batch_size)).exp()
                shares, labels = (each.tolist() for each in probabilities.topk(min(top_k, len(ensemble.classes))))
                for (name, id_), *best in zip(names_and_ids, shares, labels, strict=True):
                    if not math.isfinite(best[0][0]):  # nan is the largest
                        skipped.append(
                            f"{name}: the network gives nan for it, in {ensemble.precision}; {ensemble.against_nan}"
                        )
                        continue
                    top = [(ensemble.classes[label], share) for share, label in zip(*best, strict=True)]
                    predictions.append(Prediction(name, id_, top, numbers[best[1][0]]))
            advance(len(batch))
    return predictions, skipped


def batches(files: Sequence[Path], image_size: int, batch_size: int, max_megapixels: int) -> Iterator[list[Read]]:
    """What `read` finds in the files, in their order: an archive by itself, up to batch_size pictures together.

    The next pictures are decoded while the caller is busy with these; an archive, which may be large, waits its turn.
    """
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        waiting: list[list[Callable[[], Read]]] = []
        for archived, group in itertools.groupby(files, is_archive):
            paths, size = list(group), 1 if archived else batch_size
            for start in range(0, len(paths), size):
                chunk = paths[start : start + size]
                if archived:
                    waiting.append([partial(read, path, image_size) for path in chunk])
                else:
                    waiting.append([pool.submit(look_at, path, image_size, max_megapixels).result for path in chunk])
                if len(waiting) > AHEAD:
                    yield [finish() for finish in waiting.pop(0)]
        for batch in waiting:
            yield [finish() for finish in batch]


def read(path: Path, image_size: int) -> Read:
    """What an archive holds."""
    try:
        found = read_archive(path, image_size, labelled=False)
    except (ValueError, OSError) as error:
        return [as_text(path)], str(error)
    return [f"{as_text(path)}[{place}]" for place in range(len(found.images))], found


def look_at(path: Path, image_size: int, max_megapixels: int) -> Read:
    """What a picture shows, with its file's stem for an id."""
    try:
        pixels, _ = decode(path, image_size, max_megapixels)
    except (ValueError, OSError) as error:
        return [as_text(path)], str(error)
    return [as_text(path)], Images(np.stack([pixels.transpose(2, 0, 1)]), labels=None, ids=[as_text(Path(path.stem))])
