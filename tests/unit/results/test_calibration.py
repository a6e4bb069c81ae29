"""Calibration, against plain loops; against scikit-learn, torchmetrics and netcal: benchmarks/calibration.py."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from cifar_resnet.results import calibration, metrics


def error(parts: list[tuple[np.ndarray, np.ndarray]]) -> float:
    total = sum(len(sure) for sure, _ in parts)
    return sum(len(sure) / total * abs(right.mean() - sure.mean()) for sure, right in parts if len(sure))


def test_equal_width_is_torchmetrics(predictions):
    log_probs, labels = predictions
    expected = multiclass_calibration_error(log_probs.exp().double(), labels, 10, n_bins=15, norm="l1").item()
    assert calibration.calibration_error(log_probs, labels) == pytest.approx(expected, abs=1e-6)


def test_equal_mass_is_numpys_parts_of_the_sorted(predictions):
    log_probs, labels = predictions
    sure, right = log_probs.exp().amax(1).numpy().astype(float), (log_probs.argmax(1) == labels).numpy()
    order = np.argsort(sure, kind="stable")
    parts = [(sure[rows], right[rows]) for rows in np.array_split(order, 15)]
    assert calibration.calibration_error_equal_mass(log_probs, labels) == pytest.approx(error(parts), abs=1e-6)
    assert [len(sure) for sure, _ in parts].count(133) == 10


def test_equal_mass_of_fewer_images_than_bins():
    log_probs = torch.tensor([[0.9, 0.1], [0.6, 0.4]]).log()
    assert calibration.calibration_error_equal_mass(log_probs, torch.tensor([0, 1])) == pytest.approx((0.1 + 0.6) / 2)


def test_the_order_of_equally_sure_predictions_changes_nothing():
    log_probs = torch.tensor([[0.7, 0.3]] * 40).log()
    labels = torch.tensor([0] * 30 + [1] * 10)
    errors = [
        calibration.calibration_error_equal_mass(log_probs, labels[order])
        for order in (torch.arange(40), torch.arange(40).flip(0), torch.randperm(40))
    ]
    assert errors == [pytest.approx(0.05, abs=1e-6)] * 3


def test_classwise_is_the_mean_of_ten_plain_ones(predictions):
    log_probs, labels = predictions
    shares, errors = log_probs.double().exp().numpy(), []
    for label in range(10):
        sure, right = shares[:, label], (labels == label).numpy()
        inside = [(sure > m / 15) & (sure <= (m + 1) / 15) for m in range(15)]
        errors.append(error([(sure[rows], right[rows]) for rows in inside]))
    assert calibration.calibration_error_classwise(log_probs, labels) == pytest.approx(np.mean(errors), abs=1e-9)


def test_brier_is_a_plain_sum(predictions):
    log_probs, labels = predictions
    total = 0.0
    for row, label in zip(log_probs.double().exp().tolist(), labels.tolist(), strict=True):
        total += sum((share - (place == label)) ** 2 for place, share in enumerate(row))
    assert calibration.brier(log_probs, labels) == pytest.approx(total / 2000)


def test_selective_accuracy_is_that_of_the_surest(predictions):
    log_probs, labels = predictions
    sure, right = log_probs.exp().amax(1).numpy(), (log_probs.argmax(1) == labels).numpy()
    order = np.argsort(-sure, kind="stable")
    scores = calibration.selective_scores(log_probs, labels)
    for coverage, acc in zip(scores["coverage"], scores["acc"], strict=True):
        assert acc == pytest.approx(right[order[: round(coverage * 2000)]].mean())
    risks = [1 - right[order[: count + 1]].mean() for count in range(2000)]
    assert scores["risk_area"] == pytest.approx(np.mean(risks))


def test_among_images_of_one_confidence_none_is_surer():
    log_probs = torch.tensor([[0.8, 0.2]] * 4 + [[0.9, 0.1]]).log()
    for labels in ([0, 0, 1, 1, 0], [1, 1, 0, 0, 0]):
        _, acc = calibration.selective(log_probs, torch.tensor(labels))
        assert acc.tolist() == pytest.approx([1, 1.5 / 2, 2 / 3, 2.5 / 4, 3 / 5])


def by_a_plain_loop(confidence: np.ndarray, right: np.ndarray) -> float:
    """Guo et al. 2017, equation 3: bin m of 15 holds confidences above (m - 1) / 15 and up to m / 15."""
    error = 0.0
    for m in range(1, 16):
        members = [i for i, value in enumerate(confidence) if (m - 1) / 15 < value <= m / 15]
        if members:
            gap = abs(np.mean([right[i] for i in members]) - np.mean([confidence[i] for i in members]))
            error += len(members) / len(confidence) * gap
    return error


def some_sure_of_all(predictions) -> tuple[torch.Tensor, torch.Tensor]:
    """Of which 300 leave no doubt."""
    log_probs, labels = predictions[0].clone(), predictions[1]
    log_probs[:300] = torch.nn.functional.one_hot((labels[:300] + (torch.arange(300) % 5 == 0)) % 10, 10).log()
    return log_probs, labels


@pytest.mark.parametrize("some", [lambda predictions: predictions, some_sure_of_all], ids=["usual", "sure of all"])
def test_calibration_error_equals_a_plain_loop(predictions, some):
    log_probs, labels = some(predictions)
    confidence, predicted = log_probs.double().exp().max(1)
    expected = by_a_plain_loop(confidence.numpy(), (predicted == labels).numpy())
    assert calibration.calibration_error(log_probs, labels) == pytest.approx(expected, abs=1e-9)
    assert metrics.scores(log_probs, labels)["calibration_error"] == pytest.approx(expected, abs=1e-9)
    bins = list(calibration.reliability(log_probs, labels))
    assert sum(size for _, _, size in bins) == 2000
    gaps = sum(size / 2000 * abs(right - sure) for sure, right, size in bins)
    assert gaps == pytest.approx(expected, abs=1e-9)


def test_a_confidence_of_exactly_one_is_in_the_last_bin_of_fifteen():
    """500 answers at 1.0 of which 90% are right, 500 at 0.953 of which all are."""
    sure = torch.tensor([[1.0, 0.0]] * 500 + [[0.953, 0.047]] * 500)
    labels = torch.tensor([1] * 50 + [0] * 950)
    (bin_,) = calibration.reliability(sure.log(), labels)
    assert bin_ == (pytest.approx(0.9765), pytest.approx(0.95), 1000)
    assert calibration.calibration_error(sure.log(), labels) == pytest.approx(0.0265, abs=1e-6)


def test_a_confidence_on_an_edge_is_in_the_bin_below_it():
    probability = 2 / 3  # of 15 bins the tenth ends there
    log_probs = (
        torch.tensor([[probability, 1 - probability], [probability + 0.01, 1 - probability - 0.01]]).double().log()
    )
    log_probs[0, 0] = np.log(probability)
    assert len(list(calibration.reliability(log_probs, torch.zeros(2, dtype=torch.int64)))) == 2


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_temperature_is_where_a_fine_grid_has_its_least_loss(predictions, true):
    log_probs, labels = predictions
    logits = log_probs * true
    grid = np.geomspace(0.1, 20, 4000)
    losses = [torch.nn.functional.cross_entropy(logits.double() / t, labels).item() for t in grid]
    found = calibration.fit_temperature(logits.log_softmax(1), labels)
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    calibrated = calibration.at_temperature(logits.log_softmax(1), found)
    assert (
        calibration.calibration_error(calibrated, labels)
        <= calibration.calibration_error(logits.log_softmax(1), labels) + 0.005
    )
    assert torch.equal(calibrated.argmax(1), logits.argmax(1))


def test_probabilities_that_rounding_put_above_one_are_still_probabilities(predictions):
    logits, labels = predictions
    log_probs = logits.log_softmax(1)
    log_probs[0] = -30.0
    log_probs[0, labels[0]] = 0.0
    expected = calibration.calibration_error(log_probs, labels)
    log_probs[0, labels[0]] = 1.2e-7
    assert log_probs.exp().max() > 1
    assert calibration.calibration_error(log_probs, labels) == pytest.approx(expected, abs=1e-6)


def test_temperature_of_predictions_worse_than_chance_is_finite():
    log_probs = torch.tensor([[3.0, -3.0], [-3.0, 3.0]]).log_softmax(1)
    assert 1 < calibration.fit_temperature(log_probs, torch.tensor([1, 0])) <= 1000
