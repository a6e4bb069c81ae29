"""cifar-evaluate: how good trained networks are, alone and as an ensemble, from their checkpoints.

    cifar-evaluate checkpoint=outputs/train/<run folder> tta=flip
    cifar-evaluate checkpoint=outputs/train/<sweep folder>
    cifar-evaluate checkpoint=outputs/train/<run folder> data=files data.test=my_test_set

Leaves evaluation.json, predictions.npz and page.html.
"""

import statistics
from datetime import datetime
from pathlib import Path

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig
from torch import Tensor

from cifar_resnet import checkpoints, hardware, preflight, runs, terminal
from cifar_resnet.compose import Composer, Job
from cifar_resnet.data import DataModule
from cifar_resnet.errors import one_line, refuse_if
from cifar_resnet.files import class_name, named
from cifar_resnet.results import evaluation, inference, metrics, page, restored
from cifar_resnet.results.predictions import FILE, Predictions


def run(jobs: list[Job]) -> int:
    (job,) = jobs
    paths = runs.find_checkpoints(preflight.plain(job.cfg.checkpoint))
    cfg = restored.restored_config(job, paths[0])
    folder = output_folder(cfg, job.overrides)
    result = evaluate(cfg, paths, folder, job.composer)
    terminal.log.info(terminal.listed(facts(result)))
    if len(paths) > 1:
        terminal.print_table(evaluation.member_rows(result))
    terminal.print_table(metrics.class_rows(result["confusion"], result["classes"]))
    terminal.log.info(terminal.listed({"page": folder / "page.html"}))
    return 0


def output_folder(cfg: DictConfig, overrides: list[str]) -> Path:
    """Where to write: the folder of the run or sweep; below it where the command changes what comes out."""
    if cfg.output_dir:
        return Path(cfg.output_dir)
    checkpoint = preflight.plain(cfg.checkpoint)
    if not isinstance(checkpoint, str):
        return Path("outputs", "evaluate", f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{len(checkpoint)}-members")
    path = Path(checkpoint)
    changes = [text for text in overrides if not text.startswith(("checkpoint=", "data.root=", "accelerator="))]
    parts = [*([] if path.is_dir() else [path.stem]), *([runs.slug(changes)] if changes else [])]
    base = path if path.is_dir() else path.parent.parent if path.parent.name == "checkpoints" else path.parent
    return base / "-".join(["evaluation", *parts]) if parts else base


def evaluate(cfg: DictConfig, paths: list[Path], folder: Path, composer: Composer) -> dict:
    """Evaluate the networks on every test image; what comes out, which lies in `folder` as well."""
    precision = instantiate(cfg.precision, accelerator=cfg.accelerator)
    ensemble = inference.Ensemble(paths, cfg.tta, cfg.accelerator, precision)
    if "image_size" in cfg.data and not any(text.startswith("data.image_size=") for text in cfg.overrides):
        cfg.data.image_size = ensemble.image_size
    data = instantiate(cfg.data, _convert_="all")
    refuse_if(
        data.image_size != ensemble.image_size,
        f"the network looks at {ensemble.image_size} pixels. Got images of {data.image_size}",
    )
    runs.check_writable(folder)
    run_dir = runs.run_dir_of(paths[0]) if len(paths) == 1 else None
    curves = page.curves(run_dir) if run_dir else []  # a damaged table is named before anything is computed
    data.prepare_data()
    images, labels = data.read(train=False)
    labels = places_of(data.classes, ensemble.classes)[labels]
    each = ensemble.log_probs(images, cfg.batch_size)
    val, val_text = validation_predictions(cfg, paths, ensemble, data, composer)
    result = {
        "checkpoints": [str(path) for path in paths],
        "data": cfg.choices.data,
        "num_images": len(labels),
        "classes": ensemble.classes,
        "tta": cfg.tta or ensemble.networks[0].tta,
        "precision": precision,
        **evaluation.evaluate_predictions(each, labels, val),
        "temperature_from": val_text,
        "device": hardware.device_name(ensemble.device),
        "commit": runs.commit(),
        "versions": runs.versions(),
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    predictions = Predictions.of(images, inference.mean_probability(each), labels)
    shown = [*curves, *evaluation.sections(result, predictions, images, ensemble.classes)]
    title = f"{paths[0].parent.parent.name if run_dir else folder.name} on {cfg.choices.data}"
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_json(folder / "evaluation.json", result)
    predictions.save(folder / FILE)
    page.write(
        folder / "page.html", title, facts(result), shown, None if len(paths) > 1 else ensemble.networks[0].config
    )
    return result


def places_of(classes: list[str], known: list[str]) -> Tensor:
    """For each class of a data set, in its order, the number of the network's class of that name."""
    classes, known = ([class_name(name) for name in names] for names in (classes, known))
    if all(name in known for name in classes):
        return torch.tensor([known.index(name) for name in classes])
    if classes == [str(label) for label in range(len(classes))]:  # an archive that numbers them without naming them
        refuse_if(
            len(classes) > len(known),
            f"labels count the classes from 0. Got one of {len(classes) - 1}, for {len(known)} classes",
        )
        return torch.arange(len(classes))
    unknown = named([name for name in classes if name not in known])
    raise ValueError(f"classes that the network does not know. Got {unknown}; it knows {named(known)}")


def validation_predictions(
    cfg: DictConfig, paths: list[Path], ensemble: inference.Ensemble, data: DataModule, composer: Composer
) -> tuple[tuple[Tensor, Tensor] | None, str]:
    """The members' log-probabilities for their own validation images with the labels, and how many those are.

    None where there are no such images, and why. data: of the evaluation, perhaps another set than the network's own.
    """
    if not cfg.calibrate:
        return None, "not asked for"
    saved = [checkpoints.read(path) for path in paths]
    hashes, choice = {each["data"]["split_hash"] for each in saved}, saved[0]["config"]["choices"]["data"]
    try:
        refuse_if(len(hashes) > 1, "the members held out different ones")
        if cfg.choices.data != choice:
            (job,) = composer.jobs([f"data={choice}"])
            checkpoints.restore_data(job.cfg.data, saved[0])
            data = restored.local_data(job.cfg)  # nothing is downloaded for this
            data.prepare_data()
        data.load()
        refuse_if(not data.has_val, "none were held out")
        refuse_if(data.split_hash not in hashes, "these are others than in training")
    except (ValueError, OSError, InstantiationException) as error:
        return None, f"no validation images: {one_line(error)}"
    each = ensemble.log_probs(data.val.images, cfg.batch_size)
    return (each, data.val.labels), f"{len(data.val):,} validation images"


def facts(result: dict) -> dict[str, str]:
    """What the page says first."""
    scores, calibrated, reason = result["scores"], result["calibrated"], result["temperature_from"]

    def both(form: str, key: str) -> str:
        return f"{scores[key]:{form}}" + (f", calibrated {calibrated[key]:{form}}" if calibrated else "")

    temperature, own = result["temperature"], [member["acc"] for member in result["members"]]
    found = {
        "test accuracy": f"{scores['acc']:.2%} of {result['num_images']:,} images",
        "loss": both(".4f", "loss"),
        "calibration error (ECE)": both(".2%", "calibration_error"),
        **({"top-5 accuracy": f"{scores['top5_acc']:.2%}"} if "top5_acc" in scores else {}),
        "temperature": f"{temperature:.3f}, fitted on {reason}" if temperature else f"none: {reason}",
        "test-time augmentation": result["tta"],
    }
    return found | (
        {"checkpoint": result["checkpoints"][0]}
        if len(own) == 1
        else {
            "members": f"{len(own)}, alone {statistics.mean(own):.2%} ± {statistics.stdev(own):.2%}",
            "disagreement": f"{result['disagreement']:.2%} of the images, between two members",
        }
    )
