"""cifar-evaluate: how good trained networks are, alone and as an ensemble, from their checkpoints.

    cifar-evaluate checkpoint=outputs/train/<run folder> tta=flip
    cifar-evaluate checkpoint=outputs/train/<sweep folder>
    cifar-evaluate checkpoint=outputs/train/<run folder> data=files data.test=my_test_set

Leaves evaluation.json, predictions.npz and page.html.
"""

import itertools
import json
import logging
import statistics
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from cifar_resnet import limits, runs
from cifar_resnet.command import Composer, UsageError, check_settings, interpret, usage_errors

if TYPE_CHECKING:
    from torch import Tensor

    from cifar_resnet.data import DataModule
    from cifar_resnet.inference import Ensemble
    from cifar_resnet.page import Block

log = logging.getLogger("cifar_resnet")

GROWTH = ("members", "growth", "growth_calibrated")  # scores of each member, and of the ensemble up to it


def main(argv: Sequence[str] | None = None) -> int:
    return interpret("evaluate", run, argv)


def run(composer: Composer, overrides: list[str], is_sweep: bool) -> int:
    if is_sweep:
        raise UsageError("cifar-evaluate has no sweeps: leave out -m. Several checkpoints are one ensemble")
    from cifar_resnet.terminal import listed, print_table, rows_table, set_up_logging

    set_up_logging()
    with usage_errors():
        cfg = composed(composer, overrides)

        from cifar_resnet import metrics

        folder = output_folder(cfg, overrides)
        result = evaluate(cfg, folder, composer)
    log.info(listed(facts(result)))
    if len(result["members"]) > 1:
        print_table(rows_table(member_rows(result)))
    print_table(rows_table(metrics.class_rows(result["confusion"], result["classes"])))
    log.info(listed({"page": folder / "page.html"}))
    return 0


def composed(composer: Composer, overrides: list[str]) -> DictConfig:
    """The configuration, with the data that the (first) network was trained on where the command names no other."""
    given = [text.partition("=")[0] for text in overrides]
    (job,) = composer.jobs([text for text in overrides if not text.startswith("data.")])
    if OmegaConf.is_missing(job.cfg, "checkpoint"):
        raise UsageError("checkpoint has no default. Give it: checkpoint=<.ckpt file, run folder or sweep folder>")
    with usage_errors():
        limits.check(job.cfg, files=False)
    if "data" in given:
        (job,) = composer.jobs(overrides)
        check_settings([job.cfg])
        return job.cfg

    from cifar_resnet import checkpoints

    saved = checkpoints.read(checkpoints.members(plain(job.cfg.checkpoint))[0])
    (job,) = composer.jobs([f"data={saved['config']['choices']['data']}", *overrides])
    checkpoints.restore_data(job.cfg.data, saved, [key.removeprefix("data.") for key in given])
    check_settings([job.cfg])
    return job.cfg


def plain(checkpoint: object) -> str | list[str]:
    return checkpoint if isinstance(checkpoint, str) else OmegaConf.to_container(checkpoint)


def output_folder(cfg: DictConfig, overrides: list[str]) -> Path:
    """Where to write: the folder of the run or sweep; below it where anything but that was asked for."""
    if cfg.output_dir:
        return Path(cfg.output_dir)
    checkpoint = plain(cfg.checkpoint)
    if not isinstance(checkpoint, str):
        return Path("outputs") / "evaluate" / f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{len(checkpoint)}-members"
    path = Path(checkpoint)
    asked = [text for text in overrides if not text.startswith(("checkpoint=", "data.root=", "accelerator="))]
    which = [] if path.is_dir() else [path.stem]
    if not asked and not which:
        return path
    base = path if path.is_dir() else path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return base / "-".join(["evaluation", *which, *([runs.slug(asked)] if asked else [])])


def evaluate(cfg: DictConfig, folder: Path, composer: Composer) -> dict:
    """Ask the networks about every test image; the figures, which lie in `folder` as well."""
    from cifar_resnet import checkpoints, metrics, page
    from cifar_resnet.answers import FILE, Answers
    from cifar_resnet.inference import Ensemble, mean_probability

    paths = checkpoints.members(plain(cfg.checkpoint))
    precision = instantiate(cfg.precision, accelerator=cfg.accelerator)
    ensemble = Ensemble(paths, cfg.tta, cfg.accelerator, precision)
    if "image_size" in cfg.data and not any(text.startswith("data.image_size=") for text in cfg.overrides):
        cfg.data.image_size = ensemble.image_size
    data = instantiate(cfg.data, _convert_="all")
    if data.image_size != ensemble.image_size:
        raise ValueError(f"the network looks at {ensemble.image_size} pixels. Got images of {data.image_size}")
    runs.check_writable(folder)
    run_dir = checkpoints.run_dir_of(paths[0]) if len(paths) == 1 else None
    curves = page.curves(run_dir) if run_dir else []
    data.prepare_data()
    images, labels = data.read(train=False)
    labels = places_of(data.classes, ensemble.classes)[labels]

    each = ensemble.about(images, cfg.batch_size)
    grown = [mean_probability(each[:count]) for count in range(1, len(each) + 1)]
    log_probs = grown[-1]
    temperatures, reason = [], "not asked for"
    if cfg.calibrate:
        temperatures, reason = fitted_temperatures(cfg, paths, ensemble, data, composer)
    temperature = temperatures[-1] if temperatures else None
    calibrated = [  # where there are no temperatures, there are none of these either
        metrics.scores(metrics.at_temperature(answers, own), labels)
        for answers, own in zip(grown, temperatures, strict=False)
    ]
    result = {
        "checkpoints": [str(path) for path in paths],
        "data": cfg.choices.data,
        "num_images": len(labels),
        "classes": ensemble.classes,
        "tta": cfg.tta or ensemble.networks[0].tta,
        "precision": precision,
        "scores": metrics.scores(log_probs, labels),
        "temperature": temperature,
        "temperature_from": reason,
        "calibrated": calibrated[-1] if calibrated else None,
        "members": [metrics.scores(member, labels) for member in each],
        "growth": [metrics.scores(answers, labels) for answers in grown],
        "growth_calibrated": calibrated,
        "disagreement": metrics.disagreement(each) if len(each) > 1 else None,
        "confusion": metrics.confusion(log_probs, labels).tolist(),
        "device": runs.device_name(ensemble.device),
        "commit": runs.commit(),
        "versions": runs.versions(),
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
    }

    blocks = [
        *curves,
        *ensemble_blocks(result),
        *page.answers(log_probs, labels, images, ensemble.classes, temperature),
    ]
    title = f"{paths[0].parent.parent.name if run_dir else folder.name} on {cfg.choices.data}"
    config = ensemble.networks[0].config if len(paths) == 1 else None
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_atomically(folder / "evaluation.json", json.dumps(result, indent=2) + "\n")
    Answers.about(images, log_probs, labels).save(folder / FILE)
    page.write(folder / "page.html", title, facts(result), blocks, config)
    return result


def places_of(classes: Sequence[str], known: Sequence[str]) -> "Tensor":
    """For each class of a data set, in its order, the number of the network's class of that name."""
    import torch

    if all(name in known for name in classes):
        return torch.tensor([known.index(name) for name in classes])
    if list(classes) == [str(label) for label in range(len(classes))] and len(classes) <= len(known):
        return torch.arange(len(classes))  # an archive that numbers its classes without naming them
    unknown = [name for name in classes if name not in known]
    raise ValueError(
        f"classes that the network does not know. Got {', '.join(unknown[:5])}; it knows {', '.join(known[:20])}"
    )


def fitted_temperatures(
    cfg: DictConfig, paths: list[Path], ensemble: "Ensemble", data: "DataModule", composer: Composer
) -> tuple[list[float], str]:
    """Of the ensembles of the first 1, 2, … members, and on what images they were fitted; or why there are none."""
    from cifar_resnet import checkpoints, metrics
    from cifar_resnet.inference import mean_probability

    saved = [checkpoints.read(path) for path in paths]
    hashes = {checkpoint["data"]["split_hash"] for checkpoint in saved}
    choice = saved[0]["config"]["choices"]["data"]
    if len(hashes) > 1:
        return [], "the members held out different images"
    try:
        if cfg.choices.data != choice:
            (job,) = composer.jobs([f"data={choice}"])
            checkpoints.restore_data(job.cfg.data, saved[0])
            data = instantiate(job.cfg.data, _convert_="all")
            if hasattr(data, "is_complete") and not data.is_complete():  # nothing is downloaded for this
                raise FileNotFoundError(f"{choice} is not in {data.root}")
            data.prepare_data()
        data.load()
    except (ValueError, OSError, InstantiationException, UsageError) as error:
        return [], f"no validation images: {' '.join(str(error).split())}"
    if not data.has_val:
        return [], "no images were held out for validation"
    if data.split_hash not in hashes:
        return [], "the validation images are others than in training"
    images, labels = data.val.tensors
    each = ensemble.about(images, cfg.batch_size)
    found = [metrics.fit_temperature(mean_probability(each[:count]), labels) for count in range(1, len(each) + 1)]
    return found, f"{len(labels):,} validation images"


def facts(result: dict) -> dict[str, str]:
    """What the page says first."""
    scores, calibrated = result["scores"], result["calibrated"]

    def both(form: str, key: str) -> str:
        return f"{scores[key]:{form}}" + (f", calibrated {calibrated[key]:{form}}" if calibrated else "")

    found = {
        "test accuracy": f"{scores['acc']:.2%} of {result['num_images']:,} images",
        "loss": both(".4f", "loss"),
        "calibration error": both(".2%", "calibration_error"),
    }
    if "top5_acc" in scores:
        found["top-5 accuracy"] = f"{scores['top5_acc']:.2%}"
    if temperature := result["temperature"]:
        found["temperature"] = f"{temperature:.3f}, fitted on {result['temperature_from']}"
    else:
        found["temperature"] = f"none: {result['temperature_from']}"
    found["test-time augmentation"] = result["tta"]
    if len(result["checkpoints"]) > 1:
        own = [member["acc"] for member in result["members"]]
        found["members"] = f"{len(own)}, alone {statistics.mean(own):.2%} ± {statistics.stdev(own):.2%}"
        found["disagreement"] = f"{result['disagreement']:.2%} of the images, between two members"
    else:
        found["checkpoint"] = result["checkpoints"][0]
    return found


def ensemble_blocks(result: dict) -> list["Block"]:
    from cifar_resnet.page import Block
    from cifar_resnet.plots import growth_figure

    if len(result["checkpoints"]) == 1:
        return []
    return [
        Block("Ensemble", "", growth_figure(*(result[key] for key in GROWTH)), name="growth"),
        Block("Members", "", table=member_rows(result)),
    ]


def member_rows(result: dict) -> list[list[str]]:
    """A head, and for each member its own scores and those of the ensemble up to it."""
    rows = [["member", "accuracy", "loss", "ensemble so far", "loss", "calibrated"]]
    for path, own, grown, calibrated in itertools.zip_longest(result["checkpoints"], *(result[key] for key in GROWTH)):
        name = Path(path).parent.parent.name if Path(path).parent.name == "checkpoints" else Path(path).name
        scores = [f"{own['acc']:.2%}", f"{own['loss']:.4f}", f"{grown['acc']:.2%}", f"{grown['loss']:.4f}"]
        rows.append([name, *scores, f"{calibrated['loss']:.4f}" if calibrated else ""])
    return rows


if __name__ == "__main__":
    sys.exit(main())
