"""How good predictions are, from log-probabilities and labels alone."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

NUM_BINS = 15
UNEVEN = 1.5


def accuracy(log_probs: Tensor, labels: Tensor, top_k: int = 1) -> float:
    """Share of images whose label is among the top_k predictions. log_probs: (N, num_classes); labels: (N,) int64."""
    return multiclass_accuracy(log_probs, labels, log_probs.shape[1], average="micro", top_k=top_k).item()


def calibration_error(log_probs: Tensor, labels: Tensor) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3): over the bins of `reliability`, the
    mean distance of accuracy and confidence, each bin by its share of the images."""
    # not torchmetrics', whose version 1.9 gives confidences of exactly 1 a bin of their own
    return sum(size * abs(right - sure) for sure, right, size in reliability(log_probs, labels)) / len(labels)


def confusion(log_probs: Tensor, labels: Tensor) -> Tensor:
    """(num_classes, num_classes) int64: images by true class (rows) and prediction (columns)."""
    return multiclass_confusion_matrix(log_probs, labels, log_probs.shape[1])


def balanced_accuracy(matrix: Tensor) -> float:
    """The mean of the accuracies within each class that has images (Brodersen et al. 2010). matrix: see `confusion`."""
    images = matrix.sum(1)
    return (matrix.diagonal().double() / images)[images > 0].mean().item()


def macro_f1(matrix: Tensor) -> float:
    """The mean of the classes' F1, the harmonic mean of precision and recall, of classes that have images or were
    predicted. matrix: see `confusion`."""
    either = matrix.sum(0) + matrix.sum(1)
    return (2 * matrix.diagonal().double() / either)[either > 0].mean().item()


def of_uneven_classes(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """balanced_acc and macro_f1 where the largest class has more than `UNEVEN` times the images of the smallest;
    nothing otherwise, where they say little more than the accuracy."""
    matrix = confusion(log_probs, labels)
    images = matrix.sum(1)
    if images.max() <= UNEVEN * images.min():
        return {}
    return {"balanced_acc": balanced_accuracy(matrix), "macro_f1": macro_f1(matrix)}


def scores(log_probs: Tensor, labels: Tensor) -> dict[str, float]:
    """acc, loss (the negative log-likelihood), calibration_error; of ten classes or more also top5_acc, and of uneven
    ones balanced_acc and macro_f1."""
    return {
        "acc": accuracy(log_probs, labels),
        "loss": F.nll_loss(log_probs, labels).item(),
        "calibration_error": calibration_error(log_probs, labels),
        **({"top5_acc": accuracy(log_probs, labels, top_k=5)} if log_probs.shape[1] >= 10 else {}),
        **of_uneven_classes(log_probs, labels),
    }


def fit_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """The number that logits are divided by for the least loss (Guo et al. 2017, section 4.2); not for test images.

    At most 1,000: a network no better than chance would have none at all.
    """

    def loss(inverse: float) -> float:  # convex
        return F.cross_entropy(log_probs.double() * inverse, labels).item()

    return 1 / minimize_scalar(loss, bounds=(1e-3, 1e3), method="bounded", options={"xatol": 1e-9}).x


def at_temperature(log_probs: Tensor, temperature: float) -> Tensor:
    return (log_probs / temperature).log_softmax(-1)


def reliability(log_probs: Tensor, labels: Tensor) -> Iterator[tuple[float, float, int]]:
    """Of each of 15 equal bins of confidence that is not empty: mean confidence, accuracy, number of images.

    Bin m of M holds confidences above (m - 1) / M and up to m / M (Guo et al. 2017, section 2): 1 is in the last.
    """
    largest, predicted = log_probs.max(1)
    confidence = largest.double().exp().clamp(max=1)  # rounding may have put it above
    bins = torch.bucketize(confidence, torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64)[1:-1])
    for bin_ in bins.unique():
        members = bins == bin_
        right = (predicted == labels)[members].double().mean().item()
        yield confidence[members].mean().item(), right, int(members.sum())


def disagreement(each: Tensor) -> float:
    """Mean share of images on which two members of an ensemble differ. each: (members, N, num_classes)."""
    pairs = torch.combinations(torch.arange(len(each)))
    first, second = each.argmax(2)[pairs].unbind(1)
    return (first != second).float().mean().item()


def class_rows(matrix: Sequence[Sequence[int]], classes: Sequence[str]) -> list[list[str]]:
    """For people: a head, and a row for each class that has images. matrix: see `confusion`."""
    rows = [["class", "images", "accuracy", "precision", "most often taken for"]]
    for index, (name, counts) in enumerate(zip(classes, matrix, strict=True)):
        if images := sum(counts):
            right, predicted = counts[index], sum(row[index] for row in matrix)
            most = max((other for other in range(len(classes)) if other != index), key=counts.__getitem__)
            precision = f"{right / predicted:.2%}" if predicted else ""
            taken_for = f"{classes[most]} ({counts[most]:,})" if counts[most] else ""
            rows.append([name, f"{images:,}", f"{right / images:.2%}", precision, taken_for])
    return rows
