"""cifar-evaluate: how good trained networks are, alone and as an ensemble, from their checkpoints.

    cifar-evaluate "checkpoint=outputs/train/<run folder>" tta=flip
    cifar-evaluate "checkpoint=outputs/train/<sweep folder>"
    cifar-evaluate "checkpoint=outputs/train/<run folder>" data=files data.test=my_test_set

Leaves evaluation.json, predictions.npz and page.html: in the run's folder for what its own test was, else in one below.
"""

import contextlib
import itertools
import os
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from cifar_resnet import checkpoints, constraints, hardware, preflight, provenance, runs, terminal
from cifar_resnet.compose import Job
from cifar_resnet.data import DataModule, OwnImages
from cifar_resnet.data.datamodule import TestSet
from cifar_resnet.data.published import Downloaded
from cifar_resnet.errors import UsageError, refuse_if
from cifar_resnet.files import are_numbers, numbers_of
from cifar_resnet.folders import class_name, named
from cifar_resnet.images import content_hash
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models import Classifier
from cifar_resnet.models.summary import num_macs, num_parameters
from cifar_resnet.results import calibration, card, evaluation, inference, metrics, ood, page, restored
from cifar_resnet.results.intervals import ends
from cifar_resnet.results.predictions import FILE, Predictions


def run(jobs: list[Job]) -> int:
    (job,) = jobs
    paths = runs.find_checkpoints(preflight.plain(job.cfg.checkpoint))
    cfg = restored.restored_config(job, paths[0])
    result, folder = evaluate(cfg, paths, job)
    terminal.log.info(terminal.listed(facts(result)))
    if len(paths) > 1:
        terminal.print_table(evaluation.member_rows(result))
    if "corruptions" in result:
        terminal.print_table(evaluation.corruption_rows(result["corruptions"]))
    if result["ood"]:
        terminal.print_table(ood.rows(result["ood"]))
    terminal.print_table(calibration.rows(result["scores"], result["calibrated"], result["intervals"]))
    terminal.print_table(metrics.class_rows(result["confusion"], result["classes"]))
    terminal.log.info(terminal.listed({"page": folder / "page.html"}))
    return 0


def evaluate(cfg: DictConfig, paths: list[Path], job: Job) -> tuple[dict, Path]:
    """Evaluate the networks on every test image; what comes out, and the folder that it lies in as well."""
    # before the weights are read, for a training that goes on may replace them meanwhile
    steps = [checkpoints.read(path).get("global_step") for path in paths]
    unfinished = sum(1 for path in paths if (of := runs.run_dir_of(path)) and not runs.is_finished(of))
    ensemble, data = ensemble_and_data(cfg, paths)
    run_dir = runs.run_dir_of(paths[0]) if len(paths) == 1 else None
    curves = page.curves(run_dir) if run_dir else []  # a damaged table is named before anything is computed
    data.prepare_data()
    refuse_if(
        data.conditions and cfg.ood,
        f"ood tells other images from test images as they are. Got data={cfg.choices.data}; leave one of them out",
    )
    strangers = {
        name: restored.other_images(name, cfg, job.composer, ensemble.image_size) for name in preflight.others(cfg)
    }
    sets = data.test_sets()
    head = next(sets)
    images, labels = head.images, places_of(head.labels, data, ensemble.classes)
    own_images = None if head.condition else are_of_own_tests(paths, images, labels)
    if not own_images and (seen := drawn_otherwise(data, cfg.data, paths)):
        terminal.log.warning(f"warning: {seen}. If it has, their scores are too good to go by\n")
    folder = output_folder(cfg, differences(paths, job.overrides, ensemble.precision, own_images, images))
    runs.check_writable(folder)
    tested_on = content_hash(images) if strangers else ""
    for name, others in strangers.items():
        refuse_if(content_hash(others) == tested_on, f"ood is of other images. Got {name}, the test's own")
    votes = votes_of(data, ensemble.classes)
    each, labels, images_hash = predictions_for(itertools.chain([head], sets), data, ensemble, cfg)
    own, reason = None, ""
    if cfg.calibrate or strangers:
        own, reason = restored.training_data(paths, data, cfg.choices.data, ensemble.classes, job.composer)
    val, val_text = validation_predictions(cfg, ensemble, own, reason)
    result = {
        "checkpoints": [str(path) for path in paths],
        "unfinished": unfinished,
        "weights": card.hash_of(ensemble.networks),
        "steps": steps,
        **about(ensemble.networks),
        "data": cfg.choices.data,
        "data_from": restored.places_of_images(cfg.data),
        "own_test_images": own_images,
        "num_images": len(images),
        "classes": ensemble.classes,
        "tta": cfg.tta or ", ".join(dict.fromkeys(network.tta for network in ensemble.networks)),
        "tta_below": 1.0 if cfg.tta else min(network.tta_below for network in ensemble.networks),
        "precision": ensemble.precision,
        **evaluation.evaluate_predictions(each, labels, val, cfg.resamples, cfg.seed, data.conditions),
        "temperature_from": val_text,
        "ood": against_others(strangers, ensemble, images, own, cfg) if strangers else {},
        "neighbours": min(cfg.neighbours, len(own.train)) if own else None,
        "neighbours_among": f"{len(own.train):,} training images" if own else f"none: {reason}",
        "seed": cfg.seed,
        "device": hardware.device_name(ensemble.device),
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
    }
    log_probs = inference.mean_probability(each)
    if clean := data.uncorrupted():
        known = places_of(clean.labels, data, ensemble.classes)
        on_clean = inference.mean_probability(ensemble.log_probs(clean.images, cfg.batch_size))
        result["corruptions"] |= evaluation.on_the_same_images(on_clean, known)
    if votes is not None:
        result["votes"] = evaluation.against_votes(log_probs, votes, result["temperature"], cfg.resamples, cfg.seed)
    if data.conditions:  # too many images to keep
        predictions, images = Predictions(log_probs, labels, images_hash, conditions=len(data.conditions)), None
    else:
        predictions = Predictions.of(images, log_probs, labels, files=data.test_files)
        result["mistakes"] = evaluation.worst_mistakes(predictions, ensemble.classes)
    folder.mkdir(parents=True, exist_ok=True)
    runs.write_json(folder / "evaluation.json", result)
    predictions.save(folder / FILE)
    shown = [*curves, *evaluation.sections(result, predictions, images, ensemble.classes)]
    write_page(folder, run_dir, result, shown, None if len(paths) > 1 else ensemble.networks[0].config)
    return result, folder


def ensemble_and_data(cfg: DictConfig, paths: list[Path]) -> tuple[inference.Ensemble, DataModule]:
    """The networks, and the data set that they are to be evaluated on, of which no image is read."""
    ensemble = inference.Ensemble(paths, cfg.tta, cfg.accelerator, precision_of(cfg, paths), list(cfg.trust))
    if "image_size" in cfg.data and not any(text.startswith("data.image_size=") for text in cfg.overrides):
        cfg.data.image_size = ensemble.image_size
    data = instantiate(cfg.data, _convert_="all")
    refuse_if(
        data.image_size != ensemble.image_size,
        f"the network looks at {ensemble.image_size} pixels. Got images of {data.image_size}",
    )
    data.order_classes(ensemble.classes)
    return ensemble, data


def write_page(
    folder: Path, run_dir: Path | None, result: dict, shown: list[page.Section], config: dict | None
) -> None:
    """The evaluation's page. run_dir: of the one run that was evaluated, if it was one."""
    first = facts(result)
    if run_dir and folder.resolve() == run_dir:  # it takes the place of the run's own
        trained = terminal.summary_facts(runs.read_record(run_dir) or {})
        first = {name: text for name, text in trained.items() if name in ("trained", "validation")} | first
        shown = [*shown, *page.augmented(run_dir)]
    title = f"{run_dir.name if run_dir else folder.name} on {' '.join(places_shown(result))}"
    headline = page.headline_of(result, under(result))
    page.write(folder / "page.html", title, page.about(result) | first, shown, config, headline)


def predictions_for(
    sets: Iterable[TestSet], data: DataModule, ensemble: inference.Ensemble, cfg: DictConfig
) -> tuple[Tensor, Tensor, str]:
    """Of all sets, one behind the other: (members, N, num_classes), (N,) as the network numbers classes, and a hash of
    the images where there are conditions."""
    each, labels, hashes = [], [], []
    bar = (
        terminal.bar("conditions", len(data.conditions)) if data.conditions else contextlib.nullcontext(lambda _: None)
    )
    with bar as advance:
        for one in sets:  # one at a time, for there may be more of them than memory holds
            each.append(ensemble.log_probs(one.images, cfg.batch_size))
            labels.append(places_of(one.labels, data, ensemble.classes))
            hashes += [content_hash(one.images)] if one.condition else []
            advance(1)
    log_probs = torch.cat(each, dim=1)
    refuse_if(
        count := int(log_probs.isnan().any(2).any(0).sum()),
        f"the networks give numbers for each image. Got nan for {count:,} of {log_probs.shape[1]:,}, in "
        f"{ensemble.precision}; {ensemble.against_nan}",
    )
    return log_probs, torch.cat(labels), runs.digest(hashes)


def votes_of(data: DataModule, classes: list[str]) -> Tensor | None:
    """People's votes, if any, as the network numbers the classes: (N, num_classes)."""
    if (votes := data.votes()) is None:
        return None
    found = torch.zeros(len(votes), len(classes), dtype=torch.float64)
    found[:, places_of(torch.arange(votes.shape[1]), data, classes)] = votes
    return found


def about(networks: Sequence[Classifier]) -> dict:
    """What a page's head says of one network, or of all members together."""
    shape = (3, *[networks[0].data_state["image_size"]] * 2)
    names = Counter((each.config or {}).get("choices", {}).get("model", type(each).__name__) for each in networks)
    return {
        "network": ", ".join(f"{count} x {name}" if len(networks) > 1 else name for name, count in names.items()),
        "parameters": sum(map(num_parameters, networks)),
        "macs": sum(num_macs(each, shape) for each in networks),
    }


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
    record = runs.read_record(run_dir) or {}
    if (tested_on := record.get("test_hash")) is None:
        return None
    is_same = tested_on == content_hash(images, labels)
    return None if terminal.part(record, "test") and not is_same else is_same  # which part?


def drawn_otherwise(data: DataModule, settings: DictConfig, paths: Sequence[Path]) -> str | None:
    """Which networks may have been trained on test images that are drawn from the images to train on; None for none.

    data: is read whole, where the settings do not tell. settings: that it was made of; paths: of the checkpoints.
    """
    if not isinstance(data, OwnImages) or data.num_test is None:
        return None
    now = constraints.values_in(settings, resolve=True)
    for path in paths:
        saved = checkpoints.read(path)
        then = saved["config"]["data"]
        other = [key for key in ("split_seed", "num_test", "root", "train") if then.get(key) != now.get(key)]
        by = f"by another data.{' and data.'.join(other)}"
        if not other:
            with contextlib.suppress(ValueError, OSError):  # settings that are for a training alone
                data.load()
            is_same = data.train_hash in (None, saved["data"].get("train_hash"))
            other, by = [] if is_same else ["train_hash"], "from other images"
        if other:
            return f"test images are drawn {by} than when {path} was trained, which may have seen some of them then"
    return None


def differences(
    paths: Sequence[Path], overrides: Sequence[str], precision: str, own_images: bool | None, images: Tensor
) -> list[str]:
    """What sets this evaluation apart from the runs' own tests, as parts of a folder's name; nothing for the same.

    images: that it is on.
    """
    same_wherever = ("checkpoint=", "accelerator=", "trust=", *["data.root="] * (own_images is True))
    changes = [text for text in overrides if not text.startswith(same_wherever)]
    records = records_of(paths)
    is_other_precision = any(record.get("precision") != precision for record in records)
    is_asked_for = any(text.startswith("precision") for text in changes)
    is_named = any(text.startswith("data") for text in changes)  # which a folder's name shows only in part
    are_others = own_images is False or (
        own_images is None and (is_named or any(terminal.part(record, "test") for record in records))
    )
    return [
        *([runs.slug(changes)] if changes else []),
        # which a name shows only in part
        *(
            runs.digest([text])
            for text in changes
            if text.startswith("ood=") and not re.fullmatch(r"ood=\w+", text, re.A)
        ),
        *([f"precision-{precision}"] if is_other_precision and not is_asked_for else []),
        *([f"images-{content_hash(images)[:6]}"] if are_others else []),
    ]


def output_folder(cfg: DictConfig, differing: Sequence[str]) -> Path:
    """Where to write: the folder of the run or sweep, whose own test this would be; for anything else one below it."""
    checkpoint = preflight.plain(cfg.checkpoint)
    if isinstance(checkpoint, str):
        path = Path(checkpoint)
        is_unfinished = path.is_dir() and (path / runs.CONFIG).is_file() and not runs.read_record(path)
        stem = runs.find_checkpoint(path).stem if is_unfinished else "" if path.is_dir() else path.stem
        is_within = path.absolute().parent.name == "checkpoints"
        base = path if path.is_dir() else path.parent / ".." if is_within else path.parent
        base = Path(os.path.normpath(base))
        parts = list(filter(None, [stem, *differing]))
        folder = base / "-".join(["evaluation", *parts]) if parts else base
    else:
        folder = Path("outputs", "evaluate", runs.name_of_members(checkpoint, differing))
    if cfg.output_dir:
        asked = Path(cfg.output_dir)
        refuse_if(
            (asked / runs.CONFIG).is_file() and asked.resolve() != folder.resolve(),
            f"a run's folder keeps what its own test left. Got output_dir={asked}; leave it out, or give another one",
        )
        return asked
    return folder


def places_of(labels: Tensor, data: DataModule, known: list[str]) -> Tensor:
    """The same labels as the network numbers its classes: by name, or where the data set has but numbers by number.

    labels: (N,) int64, of the data's classes; known: the network's. ValueError for images of a class that it lacks.
    """
    classes, known = ([class_name(name) for name in names] for names in (data.class_names, known))
    # digits that are published are digits, and no numbers of other classes
    by_number = are_numbers(classes) and (are_numbers(known) or not isinstance(data, Downloaded))
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
    cfg: DictConfig, ensemble: inference.Ensemble, own: DataModule | None, reason: str
) -> tuple[tuple[Tensor, Tensor] | None, str]:
    """The members' log-probabilities for their own validation images with the labels, and how many those are.

    None where there are no such images, and why. own, reason: of `restored.training_data`.
    """
    if not cfg.calibrate:
        return None, "not asked for"
    if own is None or not own.has_val:
        return None, f"no validation images: {reason or 'none were held out'}"
    each = torch.cat([ensemble.log_probs(part, cfg.batch_size) for part in own.val.in_parts()], dim=1)
    if evaluation.all_are_right(each, own.val.labels):
        return (
            None,
            f"of {len(own.val):,} validation images all are right, which fit any temperature, the lower the better",
        )
    return (each, own.val.labels), f"{len(own.val):,} validation images"


def against_others(
    strangers: dict[str, Tensor],
    ensemble: inference.Ensemble,
    images: Tensor,
    own: DataModule | None,
    cfg: DictConfig,
) -> dict[str, dict]:
    """How well each of these sets is told from the test images: by its name num_images and scores (of `ood.compare`).

    own: whose training images are the neighbours; None to leave that score out.
    """
    known = None
    if own:
        rows = torch.arange(len(own.train)).split(cfg.batch_size)
        known = ensemble.evidence(own.train.take(each) for each in rows)

    def scores(of: Tensor) -> dict[str, Tensor]:
        return ensemble.evidence(of.split(cfg.batch_size)).scores(known, cfg.neighbours)

    inside = scores(images)
    return {
        name: {"num_images": len(others), "scores": ood.compare(inside, scores(others), cfg.resamples, cfg.seed)}
        for name, others in strangers.items()
    }


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
        "test accuracy": f"{scores['acc']:.2%} of {result['num_images']:,} images{under(result)}, "
        + f"95% interval {ends(result['intervals']['acc'])}",
        **(
            {"balanced accuracy": f"{scores['balanced_acc']:.2%}, macro F1 {scores['macro_f1']:.2%}"}
            if "balanced_acc" in scores
            else {}
        ),
        "loss": both(".4f", "loss"),
        "calibration error (ECE)": both(".2%", "calibration_error"),
        **shifted(result),
        **({"top-5 accuracy": f"{scores['top5_acc']:.2%}"} if "top5_acc" in scores else {}),
        "temperature": f"{temperature:.3f}, fitted on {reason}" if temperature else f"none: {reason}",
        "test-time augmentation": result["tta"]
        + (f", of images below a probability of {result['tta_below']}" if result["tta_below"] < 1 else ""),
    }
    return found | (
        {"checkpoint": result["checkpoints"][0] + ", of a run that has not finished" * result["unfinished"]}
        if len(own) == 1
        else {
            "members": f"{len(own)}, "
            + (f"{result['unfinished']} of them not finished, " if result["unfinished"] else "")
            + f"alone {statistics.mean(own):.2%} ± {statistics.stdev(own):.2%}",
            "disagreement": f"{result['disagreement']:.2%} of the images, between two members",
        }
    )


def under(result: dict) -> str:
    corruptions = result.get("corruptions")
    return f" under {len(corruptions['each'])} conditions" if corruptions else ""


def shifted(result: dict) -> dict[str, str]:
    """Of the test sets that are no ordinary ones."""
    found = {}
    if corruptions := result.get("corruptions"):
        names = {
            "mean_acc": "mean corruption accuracy",
            "benchmark_acc": "of the benchmark's fifteen",
            "clean_acc": "uncorrupted, the same images",
        }
        for key, name in names.items():
            if key in corruptions:
                found[name] = f"{corruptions[key]:.2%}, 95% interval {ends(corruptions[f'{key}_interval'])}"
    if votes := result.get("votes"):
        calibrated = votes.get("calibrated_cross_entropy")
        found["cross-entropy to people's votes"] = (
            f"{votes['cross_entropy']:.4f}, 95% interval {ends(votes['cross_entropy_interval'], '.4f')}"
            + (f", calibrated {calibrated:.4f}" if calibrated is not None else "")
            + f"; people's own {votes['entropy_of_votes']:.4f}"
        )
    if result["ood"] and not any("neighbours" in each["scores"] for each in result["ood"].values()):
        is_at_hand = result["neighbours"] is not None
        found["nearest neighbours"] = (
            "none: no last layer with an output for each class was found" if is_at_hand else result["neighbours_among"]
        )
    return found


def places_shown(result: dict) -> list[str]:
    """The choice of data, and the folders or archives of the test images, if any."""
    return [result["data"], *result["data_from"]]
