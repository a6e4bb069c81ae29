"""Our calibration figures against other people's, on the predictions that a run or an evaluation has left.

    pip install scikit-learn netcal
    python benchmarks/calibration.py outputs/train/<run folder>

Loss and Brier score by scikit-learn, equal-width bins by torchmetrics and netcal, equal-mass bins by netcal, classwise
by netcal's binary error of each class, the temperature by netcal's `TemperatureScaling`, whose minimiser stops
elsewhere by a little. It is fitted here on the predictions themselves, to compare the two, and used for nothing.
"""

from pathlib import Path

import numpy as np
import torch
from figures import begin, parser_of, save
from netcal.metrics import ECE
from netcal.scaling import TemperatureScaling
from sklearn.metrics import brier_score_loss, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from cifar_resnet.results import calibration, metrics
from cifar_resnet.results.predictions import FILE, Predictions

BINS = calibration.NUM_BINS


def figures(log_probs: torch.Tensor, labels: torch.Tensor) -> dict[str, tuple[float, dict[str, float]]]:
    """Ours, and others' by the library's name."""
    probs, true, count = log_probs.double().exp().numpy(), labels.numpy(), log_probs.shape[1]
    probs /= probs.sum(1, keepdims=True)
    scores = metrics.scores(log_probs, labels)
    by_class = [ECE(BINS).measure(probs[:, label], (true == label).astype(int)) for label in range(count)]
    found = calibration.fit_temperature(log_probs, labels)
    scaling = TemperatureScaling()
    scaling.fit(probs, true)
    return {
        "loss": (scores["loss"], {"scikit-learn": log_loss(true, probs, labels=range(count))}),
        "brier": (
            scores["brier"],
            {"scikit-learn": brier_score_loss(true, probs, labels=range(count), scale_by_half=False)},
        ),
        "calibration_error": (
            scores["calibration_error"],
            {
                "torchmetrics": multiclass_calibration_error(
                    torch.from_numpy(probs), labels, count, n_bins=BINS
                ).item(),
                "netcal": ECE(BINS).measure(probs, true),
            },
        ),
        "calibration_error_equal_mass": (
            scores["calibration_error_equal_mass"],
            {"netcal": ECE(BINS, equal_intervals=False).measure(probs, true)},
        ),
        "calibration_error_classwise": (
            scores["calibration_error_classwise"],
            {"netcal": float(np.mean(by_class))},
        ),
        "temperature": (found, {"netcal": 1 / float(np.ravel(scaling.temperature)[0])}),
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("folders", nargs="+", type=Path, help="with predictions.npz")
    options = parser.parse_args()
    about = begin()
    results = []
    for folder in options.folders:
        kept = Predictions.load(folder / FILE)
        found = figures(kept.log_probs, kept.labels)
        print(f"{folder.name}, {len(kept.labels):,} images")
        for name, (ours, theirs) in found.items():
            others = ", ".join(f"{library} {value:.6f}" for library, value in theirs.items())
            print(f"  {name:30} {ours:.6f}   {others}")
        results.append(
            {"run": folder.name, "num_images": len(kept.labels)}
            | {name: {"ours": ours} | theirs for name, (ours, theirs) in found.items()}
        )
    save(options.json, about, results=results)


if __name__ == "__main__":
    main()
