"""Whether predictions are as sure as they are right, from log-probabilities and labels alone."""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from torch import Tensor

from cifar_resnet.results.intervals import ends

NUM_BINS = 15
COVERAGES = (1.0, 0.95, 0.9, 0.8, 0.7, 0.5)
Bins = Iterator[tuple[float, float, int]]  # of each that is not empty: mean confidence, accuracy, number of images


def brier(log_probs: Tensor, labels: Tensor) -> float:
    """Brier score (Brier 1950): the mean over images of the squared distance between probabilities and what was true,
    summed over the classes; from 0 to 2. log_probs: (N, num_classes); labels: (N,) int64."""
    return brier_of_each(log_probs, labels).mean().item()


def brier_of_each(log_probs: Tensor, labels: Tensor) -> Tensor:
    """(N,) float64."""
    return (log_probs.double().exp() - F.one_hot(labels, log_probs.shape[1])).square().sum(1)


def sureness(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """The confidence of each prediction, float64, and whether it is right: (N,) each."""
    largest, predicted = log_probs.max(1)
    return largest.double().exp().clamp(max=1), predicted == labels  # rounding may have put it above


def bin_of(confidence: Tensor) -> Tensor:
    """Which of 15 equal bins: m of M holds confidences above (m - 1) / M and up to m / M (Guo et al. 2017, section 2),
    so that 1 is in the last. confidence: any shape, float64."""
    return torch.bucketize(confidence.contiguous(), torch.linspace(0, 1, NUM_BINS + 1, dtype=torch.float64)[1:-1])


def in_bins(confidence: Tensor, right: Tensor, bins: Tensor) -> Bins:
    for bin_ in bins.unique():
        members = bins == bin_
        yield confidence[members].mean().item(), right[members].double().mean().item(), int(members.sum())


def reliability(log_probs: Tensor, labels: Tensor) -> Bins:
    """By bins of equal width; see `bin_of`."""
    confidence, right = sureness(log_probs, labels)
    return in_bins(confidence, right, bin_of(confidence))


def distance(bins: Bins) -> float:
    """The mean distance of accuracy and confidence, each bin by its share of the images."""
    sizes, away = zip(*((size, size * abs(right - sure)) for sure, right, size in bins), strict=True)
    return sum(away) / sum(sizes)


def calibration_error(log_probs: Tensor, labels: Tensor) -> float:
    """Expected calibration error (Guo et al. 2017, arXiv 1706.04599, equation 3): the `distance` over the bins of
    `reliability`."""
    # not torchmetrics', whose version 1.9 gives confidences of exactly 1 a bin of their own
    return distance(reliability(log_probs, labels))


def calibration_error_equal_mass(log_probs: Tensor, labels: Tensor) -> float:
    """The same over 15 bins of as many images each, by confidence (Nguyen & O'Connor 2015, arXiv 1508.05154)."""
    confidence, right = sureness(log_probs, labels)
    places = confidence.unique(return_inverse=True)[1]
    right = mean_of_equals(places, right)[places]  # so that nothing depends on the order of equally sure ones
    order = confidence.argsort(stable=True)
    parts = order.tensor_split(min(NUM_BINS, len(order)))
    bins = torch.empty_like(order)
    for place, part in enumerate(parts):
        bins[part] = place
    return distance(in_bins(confidence, right, bins))


def calibration_error_classwise(log_probs: Tensor, labels: Tensor) -> float:
    """Of each class by itself, its probability against its share of the images, by 15 bins of equal width; the mean
    over the classes (Kull et al. 2019, arXiv 1910.12656, section 2)."""
    shares = log_probs.double().exp().clamp(max=1)
    each = [distance(in_bins(share, labels == label, bin_of(share))) for label, share in enumerate(shares.unbind(1))]
    return sum(each) / len(each)


def selective(log_probs: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Accuracy on the share of images that are predicted with the most confidence (El-Yaniv & Wiener 2010).

    Returns the coverages, 1/N, 2/N, … 1, and the accuracy at each; among images of one confidence, none is surer, so
    that each counts as their mean.
    """
    confidence, right = sureness(log_probs, labels)
    places = (-confidence).unique(return_inverse=True)[1]
    counts = torch.arange(1, len(right) + 1, dtype=torch.float64)
    return counts / len(right), mean_of_equals(places, right)[places.sort().values].cumsum(0) / counts


def mean_of_equals(places: Tensor, values: Tensor) -> Tensor:
    """The mean of all values of one place, by place. places, values: (N,)."""
    sizes = places.bincount().double()
    return torch.zeros_like(sizes).index_add(0, places, values.double()) / sizes


def selective_scores(log_probs: Tensor, labels: Tensor) -> dict[str, float | list[float]]:
    """coverage and acc, of `COVERAGES`; risk_area, the mean error over all coverages (AURC, Geifman et al. 2019)."""
    _, acc = selective(log_probs, labels)
    places = [max(1, round(coverage * len(acc))) - 1 for coverage in COVERAGES]
    return {"coverage": list(COVERAGES), "acc": acc[places].tolist(), "risk_area": (1 - acc).mean().item()}


MOST = 1e3  # temperature


def fit_temperature(log_probs: Tensor, labels: Tensor) -> float:
    """The number that logits are divided by for the least loss (Guo et al. 2017, section 4.2); not for test images.

    At most `MOST`: a network no better than chance would have none at all.
    """

    def loss(inverse: float) -> float:  # convex
        return F.cross_entropy(log_probs.double() * inverse, labels).item()

    return 1 / minimize_scalar(loss, bounds=(1 / MOST, 1e3), method="bounded", options={"xatol": 1e-9}).x


def at_temperature(log_probs: Tensor, temperature: float) -> Tensor:
    return (log_probs / temperature).log_softmax(-1)


ROWS = {
    "loss": ("loss (negative log-likelihood)", ".4f"),
    "brier": ("Brier score", ".4f"),
    "calibration_error": ("calibration error (ECE)", ".2%"),
    "calibration_error_equal_mass": ("with bins of equal size", ".2%"),
    "calibration_error_classwise": ("class by class", ".2%"),
}


def rows(scores: dict, calibrated: dict | None, intervals: dict[str, Sequence[float]]) -> list[list[str]]:
    """For people: a head, and a row for each measure. scores, calibrated, intervals: of `evaluation`."""
    found = [["calibration", "as trained", "95% interval", *["with temperature"] * bool(calibrated)]]
    for key, (name, form) in ROWS.items():
        found.append(
            [
                name,
                f"{scores[key]:{form}}",
                ends(intervals.get(key, ()), form),
                *([f"{calibrated[key]:{form}}"] if calibrated else []),
            ]
        )
    return found
