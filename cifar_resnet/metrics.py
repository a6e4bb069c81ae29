"""How good answers are, from log-probabilities and labels alone."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import (
    multiclass_accuracy,
    multiclass_calibration_error,
    multiclass_confusion_matrix,
)

NUM_BINS = 15


def accuracy(log_probs: Tensor, labels: Tensor, top_k: int = 1) -> float:
    """Share of images whose label is among the top_k answers. log_probs: (N, num_classes); labels: (N,) int64."""
    return multiclass_accuracy(log_probs, labels, log_probs.shape[1], average="micro", top_k=top_k).item()


def negative_log_likelihood(log_probs: Tensor, labels: Tensor) -> float:
    return F.nll_loss(log_probs, labels).item()


def calibration_error(log_probs: Tensor, labels: Tensor) -> float:
    """Expected calibration error over 15 equal bins of confidence (Guo et al. 2017, arXiv 1706.04599, section 2)."""
    probabilities = log_probs.exp().clamp(max=1)  # a rounding error above 1, and torchmetrics would take all for logits
    return multiclass_calibration_error(probabilities, labels, log_probs.shape[1], NUM_BINS, norm="l1").item()


def confusion(log_probs: Tensor, labels: Tensor) -> Tensor:
    """(num_classes, num_classes) int64: images by true class (rows) and answer (columns)."""
    return multiclass_confusion_matrix(log_probs, labels, log_probs.shape[1])


def scores(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """acc, loss (the negative log-likelihood), calibration_error; of ten classes or more also top5_acc."""
    found = {
        "acc": accuracy(log_probs, labels),
        "loss": negative_log_likelihood(log_probs, labels),
        "calibration_error": calibration_error(log_probs, labels),
    }
    return found | ({"top5_acc": accuracy(log_probs, labels, top_k=5)} if log_probs.shape[1] >= 10 else {})


def fit_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """The number that logits are divided by for the least loss (Guo et al. 2017, section 4.2); not for test images."""
    inverse = torch.ones(1, dtype=torch.float64, requires_grad=True)  # in which the loss is convex
    log_probs = log_probs.double()
    optimizer = torch.optim.LBFGS([inverse], max_iter=100, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = F.cross_entropy(log_probs * inverse, labels)
        value.backward()
        return value

    optimizer.step(loss)
    return 1 / inverse.clamp(min=1e-3).item()  # a network no better than chance would have none at all


def at_temperature(log_probs: Tensor, temperature: float) -> Tensor:
    return (log_probs / temperature).log_softmax(-1)


def reliability(log_probs: Tensor, labels: Tensor) -> Iterator[tuple[float, float, int]]:
    """Of each bin of confidence that is not empty: mean confidence, accuracy, number of images."""
    confidence, answers = log_probs.exp().max(1)
    bins = (confidence * NUM_BINS).long().clamp(max=NUM_BINS - 1)
    for bin_ in range(NUM_BINS):
        members = bins == bin_
        if members.any():
            right = (answers == labels)[members].float().mean().item()
            yield confidence[members].mean().item(), right, int(members.sum())


def disagreement(each: Tensor) -> float:
    """Mean share of images on which two members of an ensemble differ. each: (members, N, num_classes)."""
    answers = each.argmax(2)
    pairs = torch.combinations(torch.arange(len(each)))
    return torch.stack([(answers[a] != answers[b]).float().mean() for a, b in pairs]).mean().item()


def class_rows(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> list[list[str]]:
    """For people: a head, and a row for each class that has images. matrix: see `confusion`."""
    rows = [["class", "images", "accuracy", "precision", "most often taken for"]]
    for index, name in enumerate(classes):
        images, right = sum(matrix[index]), matrix[index][index]
        if images:
            answered = sum(row[index] for row in matrix)
            mistakes = [0 if other == index else count for other, count in enumerate(matrix[index])]
            most = max(range(len(classes)), key=mistakes.__getitem__)
            precision = f"{right / answered:.2%}" if answered else ""
            taken_for = f"{classes[most]} ({mistakes[most]:,})" if mistakes[most] else ""
            rows.append([name, f"{images:,}", f"{right / images:.2%}", precision, taken_for])
    return rows
