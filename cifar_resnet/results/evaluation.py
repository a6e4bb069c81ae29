"""From log-probabilities to scores, and to what a page shows of them: for cifar-evaluate and for a training's end."""

import itertools
from pathlib import Path

import numpy as np
from torch import Tensor

from cifar_resnet.results import metrics, plots
from cifar_resnet.results.inference import mean_probability
from cifar_resnet.results.page import Section
from cifar_resnet.results.predictions import Predictions

NUM_MISTAKES = 24
GROWTH = ("members", "growth", "growth_calibrated")  # scores of each member, and of the ensemble up to it


def evaluate_predictions(each: Tensor, labels: Tensor, val: tuple[Tensor, Tensor] | None = None) -> dict:
    """What evaluation.json says of one network or an ensemble, in plain values.

    By name: scores, temperature, calibrated (the scores at that temperature), the three of `GROWTH`, disagreement
    (of the members; None for one), confusion (images by true class and prediction).

    each: (members, N, num_classes), each member's log-probabilities; labels: (N,) int64; on any device.
    val: the same two of the validation images, on which a temperature is fitted; None to fit none.
    """
    each, labels = each.float().cpu(), labels.cpu()
    grown = growing(each)
    growth = [metrics.scores(log_probs, labels) for log_probs in grown]
    fitted_on = growing(val[0].cpu()) if val else []
    temperatures = [metrics.fit_temperature(log_probs, val[1].cpu()) for log_probs in fitted_on]
    calibrated = [
        metrics.scores(metrics.at_temperature(log_probs, temperature), labels)
        for log_probs, temperature in zip(grown, temperatures, strict=False)  # as many as there are temperatures
    ]
    return {
        "scores": growth[-1],
        "temperature": temperatures[-1] if temperatures else None,
        "calibrated": calibrated[-1] if calibrated else None,
        "members": [metrics.scores(log_probs, labels) for log_probs in each],
        "growth": growth,
        "growth_calibrated": calibrated,
        "disagreement": metrics.disagreement(each) if len(each) > 1 else None,
        "confusion": metrics.confusion(grown[-1], labels).tolist(),
    }


def growing(each: Tensor) -> list[Tensor]:
    """Log-probabilities of the ensembles of the first 1, 2, … members."""
    return [mean_probability(each[:count]) for count in range(1, len(each) + 1)]


def sections(result: dict, predictions: Predictions, images: Tensor, classes: list[str]) -> list[Section]:
    """What a page shows of an evaluation: its ensemble, if it is one; what was right, what wrong, and how sure.

    result: of `evaluate_predictions`, of an ensemble with the members' paths as "checkpoints".
    images: those of the predictions, (N, 3, H, W) uint8, on any device.
    """
    log_probs, labels = predictions.log_probs, predictions.labels
    found = []
    if len(result["members"]) > 1:
        growth = plots.growth_figure(*(result[key] for key in GROWTH))
        found = [Section("Ensemble", figure=growth, name="growth"), Section("Members", table=member_rows(result))]
    lines = {"as trained": list(metrics.reliability(log_probs, labels))}
    text = (
        f"A dot's area grows with the number of images that were predicted with this confidence. The dots' mean "
        f"distance from the dashed line, by these numbers, is the expected calibration error: "
        f"{result['scores']['calibration_error']:.2%}."
    )
    if temperature := result["temperature"]:
        calibrated = metrics.at_temperature(log_probs, temperature)
        lines["with temperature"] = list(metrics.reliability(calibrated, labels))
        text += (
            f" The temperature, {temperature:.3f}, was fitted on validation images; with it, the error is "
            f"{result['calibrated']['calibration_error']:.2%}."
        )
    confusion = plots.confusion_figure(np.array(result["confusion"]), classes)
    return [
        *found,
        Section("Confusion", figure=confusion, name="confusion"),
        Section("Class by class", table=metrics.class_rows(result["confusion"], classes)),
        Section("Reliability", text, plots.reliability_figure(lines), name="reliability"),
        *mistakes(predictions, images, classes),
    ]


def mistakes(predictions: Predictions, images: Tensor, classes: list[str]) -> list[Section]:
    """The wrong predictions of most confidence; none where all are right."""
    labels, (confidence, predicted) = predictions.labels, predictions.log_probs.exp().max(1)
    wrong = (predicted != labels).nonzero()[:, 0]
    if not len(wrong):
        return []
    worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:NUM_MISTAKES]
    captions = [f"{classes[labels[index]]} → {classes[predicted[index]]}\n{confidence[index]:.1%}" for index in worst]
    text = f"Of {len(wrong):,} mistakes the {len(worst)} made with the most confidence: true class → prediction."
    figure = plots.mistakes_figure(images.cpu()[worst].permute(0, 2, 3, 1).numpy(), captions)
    return [Section("Most confident mistakes", text, figure, name="mistakes")]


def member_rows(result: dict) -> list[list[str]]:
    """A head, and for each member its own scores and those of the ensemble up to it."""
    rows = [["member", "accuracy", "loss", "ensemble so far", "its loss", "calibrated loss"]]
    for path, own, grown, calibrated in itertools.zip_longest(result["checkpoints"], *(result[key] for key in GROWTH)):
        name = Path(path).parent.parent.name if Path(path).parent.name == "checkpoints" else Path(path).name
        scores = [f"{own['acc']:.2%}", f"{own['loss']:.4f}", f"{grown['acc']:.2%}", f"{grown['loss']:.4f}"]
        rows.append([name, *scores, f"{calibrated['loss']:.4f}" if calibrated else ""])
    return rows
