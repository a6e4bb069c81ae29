"""Calibration, against plain loops; against scikit-learn, torchmetrics and netcal: benchmarks/calibration.py."""

import numpy as np
import pytest
import torch
from torchmetrics.functional.classification import multiclass_calibration_error

from cifar_resnet.results import calibration


@pytest.fixture
def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    random = np.random.default_rng(0)
    labels = random.integers(10, size=2000)
    logits = random.normal(size=(2000, 10)) * 3
    logits[np.arange(2000), labels] += 5
    return torch.from_numpy(logits).float().log_softmax(1), torch.from_numpy(labels)


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
