"""How well a network tells images of other things from those it was trained for, by a score that ought to be higher for
the latter: inside and outside, below."""

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_resnet.results.bootstrap import counts, in_parts, interval
from cifar_resnet.results.intervals import ends

SCORES = {"probability": "maximum probability", "energy": "energy", "neighbours": "nearest neighbours"}
RATE = 0.95


def nearest_similarity(features: Tensor, known: Tensor, neighbours: int) -> Tensor:
    """Minus the distance to the k-th nearest of the known features, all of length 1 (Sun et al. 2022, arXiv 2204.06507,
    section 3). features: (N, D); known: (M, D), of training images; returns (N,)."""
    known = F.normalize(known, dim=1)
    found = []
    for batch in F.normalize(features, dim=1).split(1000):
        place = (batch @ known.T).topk(min(neighbours, len(known)), dim=1).indices[:, -1]
        found.append(-(batch - known[place]).norm(dim=1))  # of near ones more exact than by their product
    return torch.cat(found)


def separation(inside: Tensor, outside: Tensor, of_inside: Tensor, of_outside: Tensor) -> tuple[Tensor, Tensor]:
    """AUROC, and the false positive rate at 95% true positives, for how often each image counts.

    AUROC: how likely one inside scores higher than one outside, a tie being half (Hendrycks & Gimpel 2017). FPR: the
    share outside at or above the highest score that 95% inside are at or above.

    inside, outside: scores, (N,) and (M,). of_inside, of_outside: (R, N) and (R, M), how often; returns (R,) each.
    """
    values, places = torch.cat([inside, outside]).unique(return_inverse=True)
    shape = len(of_inside), len(values)
    ours = torch.zeros(shape, dtype=torch.float64).index_add(1, places[: len(inside)], of_inside)
    theirs = torch.zeros(shape, dtype=torch.float64).index_add(1, places[len(inside) :], of_outside)
    num_ours, num_theirs = ours.sum(1), theirs.sum(1)
    below = theirs.cumsum(1) - theirs / 2
    auroc = (ours * below).sum(1) / (num_ours * num_theirs)
    from_above = ours.flip(1).cumsum(1).flip(1)
    at = (from_above >= RATE * num_ours[:, None] - 1e-9).sum(1) - 1  # the highest score with so many at or above it
    fpr = theirs.flip(1).cumsum(1).flip(1).gather(1, at[:, None])[:, 0] / num_theirs
    return auroc, fpr


def compare(inside: Mapping[str, Tensor], outside: Mapping[str, Tensor], resamples: int, seed: int) -> dict:
    """By score: auroc and fpr_at_95, each with its 95% bootstrap interval.

    inside, outside: scores of images, by the names in `SCORES`.
    """
    found: dict[str, dict] = {}
    for name, own in inside.items():
        other = outside[name]
        whole = [torch.ones(1, len(each), dtype=torch.float64) for each in (own, other)]
        generator = torch.Generator().manual_seed(seed)
        drawn = [
            separation(own, other, counts(len(own), count, generator), counts(len(other), count, generator))
            for count in in_parts(resamples, max(len(own), len(other)))
        ]
        found[name] = {}
        for place, (key, value) in enumerate(zip(("auroc", "fpr_at_95"), separation(own, other, *whole), strict=True)):
            found[name] |= {key: value.item(), f"{key}_interval": interval(torch.cat([each[place] for each in drawn]))}
    return found


def rows(result: Mapping[str, dict]) -> list[list[str]]:
    """For people. result: of `compare`, by the set outside."""
    found = [["other images", "number", "score", "AUROC", "95% interval", "FPR at 95%", "95% interval"]]
    for name, each in result.items():
        for key, score in SCORES.items():
            if of := each["scores"].get(key):
                cells = [
                    text
                    for what in ("auroc", "fpr_at_95")
                    for text in (f"{of[what]:.2%}", ends(of[f"{what}_interval"]))
                ]
                found.append([name, f"{each['num_images']:,}", score, *cells])
    return found
