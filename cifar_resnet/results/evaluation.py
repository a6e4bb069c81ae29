"""From log-probabilities to scores, and to what a page shows of them: for cifar-evaluate and for a training's end."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from cifar_resnet.constraints import BENCHMARK, CORRUPTIONS
from cifar_resnet.data.datamodule import Condition
from cifar_resnet.data.loaders import LabelledImages
from cifar_resnet.results import bootstrap, calibration, intervals, metrics, ood, plots
from cifar_resnet.results.inference import mean_probability
from cifar_resnet.results.page import Section
from cifar_resnet.results.predictions import Predictions
from cifar_resnet.results.tiles import Picture

NUM_MISTAKES = 24
RESAMPLES = 1000
GROWTH = ("members", "growth", "growth_calibrated")  # scores of each member, and of the ensemble up to it


def evaluate_predictions(
    each: Tensor,
    labels: Tensor,
    val: tuple[Tensor, Tensor] | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
    conditions: Sequence[Condition] = (),
) -> dict:
    """What evaluation.json says of one network or an ensemble, in plain values.

    By name: scores, intervals (of some of them), temperature, calibrated (the scores at that temperature), selective
    (see `calibration.selective_scores`), the three of `GROWTH`, disagreement (of the members; None for one), confusion
    (images by true class and prediction), and where there are conditions corruptions (see `by_condition`).

    each: (members, N, num_classes), each member's log-probabilities; labels: (N,) int64; on any device.
    val: the same two of the validation images, on which a temperature is fitted; None to fit none. Nor is one fitted
        where `all_are_right` there.
    resamples, seed: of the intervals' bootstrap.
    conditions: under which the same images come, one after the other; none where each comes once.
    """
    each, labels = each.float().cpu(), labels.cpu()
    grown = growing(each)
    growth = [metrics.scores(log_probs, labels) for log_probs in grown]
    fitted_on = growing(val[0].cpu()) if val and not all_are_right(*val) else []
    temperatures = [calibration.fit_temperature(log_probs, val[1].cpu()) for log_probs in fitted_on]
    calibrated = [
        metrics.scores(calibration.at_temperature(log_probs, temperature), labels)
        for log_probs, temperature in zip(grown, temperatures, strict=False)  # as many as there are temperatures
    ]
    return {
        "scores": growth[-1],
        "intervals": bootstrap.of_scores(grown[-1], labels, resamples, seed, max(1, len(conditions)))
        | ({} if conditions else {"acc": of_a_share(growth[-1]["acc"], len(labels))}),
        "resamples": resamples,
        "selective": calibration.selective_scores(grown[-1], labels),
        "temperature": temperatures[-1] if temperatures else None,
        "calibrated": calibrated[-1] if calibrated else None,
        "members": [metrics.scores(log_probs, labels) for log_probs in each],
        "growth": growth,
        "growth_calibrated": calibrated,
        "disagreement": metrics.disagreement(each) if len(each) > 1 else None,
        "confusion": metrics.confusion(grown[-1], labels).tolist(),
        **({"corruptions": by_condition(grown[-1], labels, conditions, resamples, seed)} if conditions else {}),
    }


def all_are_right(each: Tensor, labels: Tensor) -> bool:
    """Whether a network, or the first few of an ensemble, are right about every image: then the loss falls without end
    as the temperature does, and there is none to fit. each, labels: as `evaluate_predictions` takes them."""
    labels = labels.cpu()
    return any((log_probs.argmax(1) == labels).all().item() for log_probs in growing(each.cpu()))


def of_a_share(acc: float, num_images: int) -> list[float]:
    """Wilson's interval, as cifar-report has it of one run."""
    found = intervals.summary([acc], num_images)
    return [found.low, found.high]


def growing(each: Tensor) -> list[Tensor]:
    """Log-probabilities of the ensembles of the first 1, 2, … members."""
    return [mean_probability(each[:count]) for count in range(1, len(each) + 1)]


def by_condition(log_probs: Tensor, labels: Tensor, conditions: Sequence[Condition], resamples: int, seed: int) -> dict:
    """Scores under each condition, and means over them, each corruption and each severity counting the same.

    mean_acc: over all of them; benchmark_acc: over the fifteen corruptions that CIFAR-10-C's authors compare by, where
    all 95 conditions are there. Intervals as in `bootstrap`.
    """
    parts = zip(log_probs.chunk(len(conditions)), labels.chunk(len(conditions)), conditions, strict=True)
    each = [condition._asdict() | metrics.scores(*own) for *own, condition in parts]
    right = (log_probs.argmax(1) == labels).double().view(len(conditions), -1)
    found = {"mean_acc": right.mean().item(), "mean_acc_interval": bootstrap.of_mean(right.mean(0), resamples, seed)}
    if {tuple(each) for each in conditions} == {*itertools.product(CORRUPTIONS, range(1, 6))}:
        rows = right[[condition.corruption in BENCHMARK for condition in conditions]]
        found["benchmark_acc"] = rows.mean().item()
        found["benchmark_acc_interval"] = bootstrap.of_mean(rows.mean(0), resamples, seed)
    return found | {"each": each}


def on_the_same_images(log_probs: Tensor, labels: Tensor) -> dict:
    """clean_acc, with its interval: of the images that the conditions were made of. log_probs: (N, num_classes)."""
    acc = (log_probs.argmax(1) == labels).double().mean().item()
    return {"clean_acc": acc, "clean_acc_interval": of_a_share(acc, len(labels))}


def against_votes(log_probs: Tensor, votes: Tensor, temperature: float | None, resamples: int, seed: int) -> dict:
    """Cross-entropy to what people saw, the mean over images of - sum of share x log-probability (Peterson et al. 2019,
    section 4), with its interval, and at the temperature if there is one; beside it people's own entropy, its least.

    log_probs, votes: (N, num_classes).
    """
    of_images = -(votes * log_probs.double()).sum(1)
    found = {
        "cross_entropy": of_images.mean().item(),
        "cross_entropy_interval": bootstrap.of_mean(of_images, resamples, seed),
        "entropy_of_votes": torch.special.entr(votes).sum(1).mean().item(),
    }
    if temperature:
        calibrated = calibration.at_temperature(log_probs.double(), temperature)
        found["calibrated_cross_entropy"] = -(votes * calibrated).sum(1).mean().item()
    return found


def corruption_rows(result: dict) -> list[list[str]]:
    """For people: a head, a row for each corruption, by severity, and their means. result: of `by_condition`."""
    accs = {(one["corruption"], one["severity"]): one["acc"] for one in result["each"]}
    names, severities = (list(dict.fromkeys(keys)) for keys in zip(*accs, strict=True))
    table = [["accuracy by severity", *map(str, severities), "mean"]]
    for name in [*names, "mean"]:
        each = [
            np.mean([accs[own, severity] for own in (names if name == "mean" else [name])]) for severity in severities
        ]
        table.append([name, *(f"{acc:.1%}" for acc in [*each, np.mean(each)])])
    return table


def sections(
    result: dict, predictions: Predictions, images: Tensor | LabelledImages | None, classes: list[str]
) -> list[Section]:
    """What a page shows of an evaluation: its ensemble, if it is one; what was right, what wrong, and how sure.

    result: of `evaluate_predictions`, of an ensemble with the members' paths as "checkpoints".
    images: all of the set that the predictions are of, (M, 3, H, W) uint8, on any device; None where they are not at
        hand.
    """
    log_probs, labels = predictions.log_probs, predictions.labels
    found = []
    if len(result["members"]) > 1:
        scores = [result[key] for key in GROWTH]
        figure, panels = plots.growth_figure(*scores), plots.growth_panels(*scores)
        found = [
            Section("Ensemble", figure=figure, name="growth", panels=panels),
            Section("Members", table=member_rows(result)),
        ]
    if corruptions := result.get("corruptions"):
        figure = plots.corruption_figure(corruptions["each"])
        found.append(Section("Corruptions", corruption_text(result), figure, name="corruptions"))
    if result.get("ood"):
        found.append(Section("Images of other things", OOD_TEXT, table=ood.rows(result["ood"])))
    lines = {"as trained": list(calibration.reliability(log_probs, labels))}
    text = (
        f"A dot's area grows with the number of images that were predicted with this confidence. The dots' mean "
        f"distance from the dashed line, each counted with its images, is the expected calibration error: "
        f"{result['scores']['calibration_error']:.2%}."
    )
    if temperature := result["temperature"]:
        calibrated = calibration.at_temperature(log_probs, temperature)
        lines["with temperature"] = list(calibration.reliability(calibrated, labels))
        at_its_end = ", and is the most that is tried" if temperature > 0.999 * calibration.MOST else ""
        text += (
            f" The temperature, {temperature:.3f}, was fitted on validation images{at_its_end}; with it, the error is "
            f"{result['calibrated']['calibration_error']:.2%}."
        )
    confusion = plots.confusion_figure(np.array(result["confusion"]), classes)
    return [
        *found,
        Section("Confusion", figure=confusion, name="confusion"),
        Section("Class by class", table=metrics.class_rows(result["confusion"], classes)),
        Section("Reliability", text, plots.reliability_figure(lines), name="reliability"),
        Section("Calibration", table=calibration.rows(result["scores"], result["calibrated"], result["intervals"])),
        *([selective_section(log_probs, labels)] if len(labels) > plots.FEW else []),
        *(mistakes(predictions, images, classes) if images is not None else []),
    ]


def selective_section(log_probs: Tensor, labels: Tensor) -> Section:
    text = "Accuracy on the share of the images that it is surest of."
    figure = plots.selective_figure(*calibration.selective(log_probs, labels))
    return Section("If it may decline to answer", text, figure, name="selective")


OOD_TEXT = (
    "How well images of other things are told from the test images. AUROC: how likely a test image looks more familiar "
    "than one of the others, 50% being chance. FPR at 95%: of the others, the share that looks as familiar as the 95% "
    "most familiar test images."
)


def corruption_text(result: dict) -> str:
    found = result["corruptions"]
    ends = intervals.ends(found["mean_acc_interval"])
    text = f"Mean accuracy over all conditions {found['mean_acc']:.2%}, 95% interval {ends}."
    if "clean_acc" in found:
        text += f" Of the same images as they were: {found['clean_acc']:.2%}."
    if "benchmark_acc" in found:
        text += f" Over the benchmark's fifteen corruptions: {found['benchmark_acc']:.2%}."
    return text


def worst_mistakes(predictions: Predictions, classes: list[str]) -> list[dict]:
    """The wrong predictions of most confidence, the worst first: index (of the image in its set), file if there are
    names of files, label, prediction and confidence, as evaluation.json has them."""
    labels, (confidence, predicted) = predictions.labels, predictions.log_probs.exp().max(1)
    wrong = (predicted != labels).nonzero()[:, 0]
    return [
        {
            "index": int(predictions.indices[row]),
            **({"file": predictions.files[row]} if predictions.files else {}),
            "label": classes[labels[row]],
            "prediction": classes[predicted[row]],
            "confidence": min(1.0, confidence[row].item()),
        }
        for row in wrong[confidence[wrong].argsort(descending=True, stable=True)][:NUM_MISTAKES].tolist()
    ]


def mistakes(predictions: Predictions, images: Tensor | LabelledImages, classes: list[str]) -> list[Section]:
    """The worst as pictures; none where all are right."""
    worst = worst_mistakes(predictions, classes)
    if not worst:
        return []
    number = int((predictions.log_probs.argmax(1) != predictions.labels).sum())
    text = f"Of {number:,} mistakes the {len(worst)} made with the most confidence: true class → prediction."
    shown = [
        Picture(
            images[one["index"]].permute(1, 2, 0).cpu().numpy(),
            f"{one['label']} → {one['prediction']}",
            f"{one['confidence']:.1%}" + (f", {one['file']}" if "file" in one else ""),
        )
        for one in worst
    ]
    figure = plots.mistakes_figure([each.pixels for each in shown], [f"{each.title}\n{each.text}" for each in shown])
    return [Section("Most confident mistakes", text, figure, name="mistakes", pictures=shown)]


def member_rows(result: dict) -> list[list[str]]:
    """A head, and for each member its own scores and those of the ensemble up to it."""
    rows = [["member", "accuracy", "loss", "ensemble so far", "its loss", "calibrated loss"]]
    for path, own, grown, calibrated in itertools.zip_longest(result["checkpoints"], *(result[key] for key in GROWTH)):
        name = Path(path).parent.parent.name if Path(path).parent.name == "checkpoints" else Path(path).name
        scores = [f"{own['acc']:.2%}", f"{own['loss']:.4f}", f"{grown['acc']:.2%}", f"{grown['loss']:.4f}"]
        rows.append([name, *scores, f"{calibrated['loss']:.4f}" if calibrated else ""])
    return rows
