"""How good predictions are, from log-probabilities and labels alone."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_confusion_matrix

from cifar_resnet.results import calibration

UNEVEN = 1.5


def accuracy(log_probs: Tensor, labels: Tensor, top_k: int = 1) -> float:
    """Share of images whose label is among the top_k predictions. log_probs: (N, num_classes); labels: (N,) int64."""
    return multiclass_accuracy(log_probs, labels, log_probs.shape[1], average="micro", top_k=top_k).item()


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
    """acc, loss (the negative log-likelihood), brier and the three of calibration_error; of ten classes or more also
    top5_acc, and of uneven ones balanced_acc and macro_f1."""
    return {
        "acc": accuracy(log_probs, labels),
        "loss": F.nll_loss(log_probs, labels).item(),
        "brier": calibration.brier(log_probs, labels),
        "calibration_error": calibration.calibration_error(log_probs, labels),
        "calibration_error_equal_mass": calibration.calibration_error_equal_mass(log_probs, labels),
        "calibration_error_classwise": calibration.calibration_error_classwise(log_probs, labels),
        **({"top5_acc": accuracy(log_probs, labels, top_k=5)} if log_probs.shape[1] >= 10 else {}),
        **of_uneven_classes(log_probs, labels),
    }


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
