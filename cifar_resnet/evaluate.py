"""cifar-evaluate: how good trained networks are, alone and as an ensemble, from their checkpoints.

    cifar-evaluate checkpoint=outputs/train/<run folder> tta=flip
    cifar-evaluate checkpoint=outputs/train/<sweep folder>
    cifar-evaluate checkpoint=outputs/train/<run folder> data=files data.test=my_test_set

Leaves evaluation.json, predictions.npz and page.html: in the run's folder for what its own test was, else in one below.
"""

import contextlib
import statistics
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from torch import Tensor

from cifar_resnet import checkpoints, hardware, preflight, provenance, runs, terminal
from cifar_resnet.compose import Composer, Job
from cifar_resnet.data import DataModule
from cifar_resnet.errors import UsageError, one_line, refuse_if
from cifar_resnet.files import are_numbers, numbers_of
from cifar_resnet.folders import class_name, named
from cifar_resnet.images import content_hash
from cifar_resnet.instantiation import instantiate
from cifar_resnet.results import evaluation, inference, metrics, page, restored
from cifar_resnet.results.predictions import FILE, Predictions


def run(jobs: list[Job]) -> int:
    (job,) = jobs
    paths = runs.find_checkpoints(preflight.plain(job.cfg.checkpoint))
    cfg = restored.restored_config(job, paths[0])
    result, folder = evaluate(cfg, paths, job)
    terminal.log.info(terminal.listed(facts(result)))
    if len(paths) > 1:
        terminal.print_table(evaluation.member_rows(result))
    terminal.print_table(metrics.class_rows(result["confusion"], result["classes"]))
    terminal.log.info(terminal.listed({"page": folder / "page.html"}))
    return 0


def evaluate(cfg: DictConfig, paths: list[Path], job: Job) -> tuple[dict, Path]:
    """Evaluate the networks on every test image; what comes out, and the folder that it lies in as well."""
    precision = precision_of(cfg, paths)
    ensemble = inference.Ensemble(paths, cfg.tta, cfg.accelerator, precision, list(cfg.trust))
    if "image_size" in cfg.data and not any(text.startswith("data.image_size=") for text in cfg.overrides):
        cfg.data.image_size = ensemble.image_size
    data = instantiate(cfg.data, _convert_="all")
    refuse_if(
        data.image_size != ensemble.image_size,
        f"the network looks at {ensemble.image_size} pixels. Got images of {data.image_size}",
    )
    data.order_classes(ensemble.classes)
    run_dir = runs.run_dir_of(paths[0]) if len(paths) == 1 else None
    curves = page.curves(run_dir) if run_dir else []  # a damaged table is named before anything is computed
    data.prepare_data()
    images, labels = data.read(train=False)
    labels = places_of(labels, data.classes, ensemble.classes)
    own_images = are_of_own_tests(paths, images, labels)
    folder = output_folder(cfg, differences(paths, job.overrides, precision, own_images, content_hash(images)))
    runs.check_writable(folder)
    each = ensemble.log_probs(images, cfg.batch_size)
    val, val_text = validation_predictions(cfg, paths, ensemble, data, job.composer)
    result = {
        "checkpoints": [str(path) for path in paths],
        "data": cfg.choices.data,
        "data_from": restored.places_of_images(cfg.data),
        "own_test_images": own_images,
        "num_images": len(labels),
        "classes": ensemble.classes,
        "tta": cfg.tta or ensemble.networks[0].tta,
        "tta_below": 1.0 if cfg.tta else ensemble.networks[0].tta_below,
        "precision": precision,
        **evaluation.evaluate_predictions(each, labels, val),
        "temperature_from": val_text,
        "device": hardware.device_name(ensemble.device),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    predictions = Predictions.of(images, inference.mean_probability(each), labels)
    shown = [*curves, *evaluation.sections(result, predictions, images, ensemble.classes)]
    title = f"{paths[0].parent.parent.name if run_dir else folder.name} on {' '.join(places_shown(result))}"
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_json(folder / "evaluation.json", result)
    predictions.save(folder / FILE)
    is_of_run = run_dir is not None and folder.resolve() == run_dir
    trained = terminal.summary_facts(records_of(paths)[0]) if is_of_run else {}
    first = {name: text for name, text in trained.items() if name in ("trained", "validation")} | facts(result)
    page.write(folder / "page.html", title, first, shown, None if len(paths) > 1 else ensemble.networks[0].config)
    return result, folder


def precision_of(cfg: DictConfig, paths: Sequence[Path]) -> str:
    """What was asked for, or else that of the runs' own tests, where they have one and this device can do it."""
    if "precision" in cfg:
        return instantiate(cfg.precision, accelerator=cfg.accelerator)
    own = {record.get("precision") for record in records_of(paths)} or {None}
    with contextlib.suppress(UsageError):
        return hardware.resolve_precision(own.pop() if len(own) == 1 else "auto", accelerator=cfg.accelerator)
    return hardware.resolve_precision(accelerator=cfg.accelerator)


def records_of(paths: Sequence[Path]) -> list[dict]:
    """Of those among these checkpoints that lie in a finished run's folder."""
    return [record for path in paths if (run_dir := runs.run_dir_of(path)) and (record := runs.read_record(run_dir))]


def are_of_own_tests(paths: Sequence[Path], images: Tensor, labels: Tensor) -> bool | None:
    """Whether the runs' own tests were on these images; None where no run says what its test was on."""
    found = [is_of_own_test(run_dir, images, labels) for path in paths if (run_dir := runs.run_dir_of(path))]
    known = [each for each in found if each is not None]
    return all(known) if known else None


def is_of_own_test(run_dir: Path, images: Tensor, labels: Tensor) -> bool | None:
    if tested_on := (runs.read_record(run_dir) or {}).get("test_hash"):
        return tested_on == content_hash(images, labels)
    try:  # of a version whose records hold no hash
        own = Predictions.load(run_dir / FILE)
    except Exception:  # none, or a damaged archive, which may raise anything
        return None
    return own.images_hash == content_hash(images) and torch.equal(own.labels, labels)


def differences(
    paths: Sequence[Path], overrides: Sequence[str], precision: str, own_images: bool | None, images: str
) -> list[str]:
    """What sets this evaluation apart from the runs' own tests, as parts of a folder's name; nothing for the same.

    images: their hash.
    """
    same_wherever = ("checkpoint=", "accelerator=", "trust=", *["data.root="] * (own_images is True))
    changes = [text for text in overrides if not text.startswith(same_wherever)]
    is_other_precision = any(record.get("precision") != precision for record in records_of(paths))
    is_asked_for = any(text.startswith("precision") for text in changes)
    return [
        *([runs.slug(changes)] if changes else []),
        *([f"precision-{precision}"] if is_other_precision and not is_asked_for else []),
        *([f"images-{images[:6]}"] if own_images is False else []),
    ]


def output_folder(cfg: DictConfig, differing: Sequence[str]) -> Path:
    """Where to write: the folder of the run or sweep, whose own test this would be; for anything else one below it."""
    checkpoint = preflight.plain(cfg.checkpoint)
    if isinstance(checkpoint, str):
        path = Path(checkpoint)
        is_unfinished = path.is_dir() and (path / runs.CONFIG).is_file() and not runs.read_record(path)
        stem = runs.find_checkpoint(path).stem if is_unfinished else "" if path.is_dir() else path.stem
        base = path if path.is_dir() else path.parent.parent if path.parent.name == "checkpoints" else path.parent
        parts = list(filter(None, [stem, *differing]))
        folder = base / "-".join(["evaluation", *parts]) if parts else base
    else:
        folder = Path("outputs", "evaluate", f"{datetime.now():%Y-%m-%d_%H-%M-%S}-{len(checkpoint)}-members")
    if cfg.output_dir:
        asked = Path(cfg.output_dir)
        refuse_if(
            (asked / runs.CONFIG).is_file() and asked.resolve() != folder.resolve(),
            f"a run's folder keeps what its own test left. Got output_dir={asked}; leave it out, or give another one",
        )
        return asked
    return folder


def places_of(labels: Tensor, classes: list[str], known: list[str]) -> Tensor:
    """The same labels as the network numbers its classes: by name, or where the data set has but numbers by number.

    labels: (N,) int64; classes: by label; known: the network's. ValueError for images of a class that it lacks.
    """
    classes, known = ([class_name(name) for name in names] for names in (classes, known))
    by_number = are_numbers(classes)
    places = {key: place for place, key in enumerate(numbers_of(known) if by_number else known)}
    keys = list(map(int, classes)) if by_number else classes
    unknown = [classes[label] for label in labels.unique().tolist() if keys[label] not in places]
    counted = by_number and not are_numbers(known)
    refuse_if(
        unknown and counted,
        f"labels count the classes from 0. Got one of {classes[-1]}, for {len(known)} classes",
    )
    refuse_if(
        unknown,
        f"classes that the network does not know. Got {named(map(repr, unknown))}; it knows "
        f"{named(map(repr, known), most=20)}",
    )
    return torch.tensor([places.get(key, -1) for key in keys])[labels]


def validation_predictions(
    cfg: DictConfig, paths: list[Path], ensemble: inference.Ensemble, data: DataModule, composer: Composer
) -> tuple[tuple[Tensor, Tensor] | None, str]:
    """The members' log-probabilities for their own validation images with the labels, and how many those are.

    None where there are no such images, and why. data: of the evaluation, perhaps another set than the network's own.
    """
    if not cfg.calibrate:
        return None, "not asked for"
    saved = [checkpoints.read(path) for path in paths]
    held_out, choice = [each["data"] for each in saved], saved[0]["config"]["choices"]["data"]
    try:
        refuse_if(len({each["split_hash"] for each in held_out}) > 1, "the members held out different ones")
        if cfg.choices.data != choice:
            (job,) = composer.jobs([f"data={choice}"])
            checkpoints.restore_data(job.cfg.data, saved[0])
            data = restored.local_data(job.cfg)  # nothing is downloaded for this
            data.order_classes(ensemble.classes)
            data.prepare_data()
        data.load()
        refuse_if(not data.has_val, "none were held out")
        own = {"split_hash": data.split_hash, "train_hash": data.train_hash}
        refuse_if(
            any(
                each.get(key, own[key]) != own[key] for each in held_out for key in own
            ),  # once there was no train_hash
            "these are others than in training",
        )
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
        "data": ", ".join(
            [*places_shown(result), *["not the images of the run's own test"] * (result["own_test_images"] is False)]
        ),
        "test accuracy": f"{scores['acc']:.2%} of {result['num_images']:,} images",
        **(
            {"balanced accuracy": f"{scores['balanced_acc']:.2%}, macro F1 {scores['macro_f1']:.2%}"}
            if "balanced_acc" in scores
            else {}
        ),
        "loss": both(".4f", "loss"),
        "calibration error (ECE)": both(".2%", "calibration_error"),
        **({"top-5 accuracy": f"{scores['top5_acc']:.2%}"} if "top5_acc" in scores else {}),
        "temperature": f"{temperature:.3f}, fitted on {reason}" if temperature else f"none: {reason}",
        "test-time augmentation": result["tta"]
        + (f", of images below a probability of {result['tta_below']}" if result["tta_below"] < 1 else ""),
    }
    return found | (
        {"checkpoint": result["checkpoints"][0]}
        if len(own) == 1
        else {
            "members": f"{len(own)}, alone {statistics.mean(own):.2%} ± {statistics.stdev(own):.2%}",
            "disagreement": f"{result['disagreement']:.2%} of the images, between two members",
        }
    )


def places_shown(result: dict) -> list[str]:
    """The choice of data, and the folders or archives of the test images, if any."""
    return [result["data"], *result["data_from"]]
