"""How much a score would change with other test images of the same kind (Efron 1979): images drawn anew, with
replacement, as many as there are."""

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_resnet.results.calibration import NUM_BINS, bin_of, brier_of_each, sureness

ENDS = torch.tensor([0.025, 0.975], dtype=torch.float64)


def counts(num_images: int, resamples: int, generator: torch.Generator) -> Tensor:
    """How often each image is drawn: (resamples, num_images) float64."""
    drawn = torch.randint(num_images, (resamples, num_images), generator=generator)
    return torch.zeros(drawn.shape, dtype=torch.float64).scatter_add_(1, drawn, torch.ones_like(drawn).double())


def in_parts(resamples: int, num_images: int) -> list[int]:
    """As many altogether, for memory's sake few at a time where there are many images."""
    most = max(1, 500_000 // num_images)
    return [min(most, resamples - start) for start in range(0, resamples, most)]


def interval(values: Tensor) -> list[float]:
    """The middle 95% of what came out."""
    return values.double().quantile(ENDS).tolist()


def of_scores(log_probs: Tensor, labels: Tensor, resamples: int, seed: int, conditions: int = 1) -> dict:
    """The 95% intervals of acc, loss, brier and calibration_error, by name.

    The last is a sum of distances, which chance alone makes larger in each draw than it is: its interval is what came
    out, mirrored at the figure itself (the basic bootstrap), and not below 0.

    log_probs: (N, num_classes); labels: (N,). conditions: how many times the same images come, one condition after the
    other: an image is drawn with all of them.
    """
    confidence, right = sureness(log_probs, labels)
    count = len(labels) // conditions
    values = {
        "acc": right.double(),
        "loss": F.nll_loss(log_probs.double(), labels, reduction="none"),
        "brier": brier_of_each(log_probs, labels),
    }
    of_images = torch.stack([each.view(conditions, count).mean(0) for each in values.values()], dim=1)
    # of each image, by bin, how much righter than sure
    gaps = torch.zeros(count * NUM_BINS, dtype=torch.float64)
    places = torch.arange(count).repeat(conditions) * NUM_BINS + bin_of(confidence)
    gaps.index_add_(0, places, (right.double() - confidence) / conditions)
    generator = torch.Generator().manual_seed(seed)
    found = []
    for part in in_parts(resamples, count):
        drawn = counts(count, part, generator) / count
        found.append(torch.cat([drawn @ of_images, (drawn @ gaps.view(count, NUM_BINS)).abs().sum(1, True)], dim=1))
    each = torch.cat(found).unbind(1)
    ends = {name: interval(of) for name, of in zip([*values, "calibration_error"], each, strict=True)}
    low, high = ends["calibration_error"]
    error = gaps.view(count, NUM_BINS).mean(0).abs().sum().item()
    return ends | {"calibration_error": [max(0.0, 2 * error - high), max(0.0, 2 * error - low)]}


def of_mean(values: Tensor, resamples: int, seed: int) -> list[float]:
    """The 95% interval of a mean over images. values: (N,)."""
    generator = torch.Generator().manual_seed(seed)
    return interval(
        torch.cat([counts(len(values), part, generator) @ values.double() for part in in_parts(resamples, len(values))])
        / len(values)
    )
