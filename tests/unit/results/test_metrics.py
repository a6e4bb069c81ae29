"""Metrics, against NumPy."""

import numpy as np
import pytest
import torch

from cifar_resnet.results import metrics


@pytest.fixture
def predictions():
    """Too confident predictions for 2,000 images of ten classes, some two thirds of them right."""
    random = np.random.default_rng(0)
    labels = random.integers(10, size=2000)
    logits = random.normal(size=(2000, 10)) * 3
    logits[np.arange(2000), labels] += 5
    return torch.from_numpy(logits).float().log_softmax(1), torch.from_numpy(labels)


def test_scores_equal_numpys(predictions):
    log_probs, labels = predictions
    probs, true = log_probs.exp().numpy().astype(np.float64), labels.numpy()
    ranks = (probs > probs[np.arange(2000), true][:, None]).sum(1)  # how many classes are thought more probable
    found = metrics.scores(log_probs, labels)
    assert found["acc"] == pytest.approx(np.mean(ranks == 0))
    assert found["top5_acc"] == pytest.approx(np.mean(ranks < 5))
    assert found["loss"] == pytest.approx(-np.log(probs[np.arange(2000), true]).mean(), rel=1e-5)
    counts = np.zeros((10, 10), int)
    np.add.at(counts, (true, probs.argmax(1)), 1)
    assert np.array_equal(metrics.confusion(log_probs, labels), counts)


def test_top_five_of_few_classes_says_nothing(predictions):
    log_probs, labels = predictions
    assert "top5_acc" not in metrics.scores(log_probs[labels < 4, :4].log_softmax(1), labels[labels < 4])


def test_calibration_error_equals_a_plain_loop(predictions):
    log_probs, labels = predictions
    confidence, predicted = log_probs.exp().max(1)
    expected = 0.0
    for low in np.arange(15) / 15:
        members = (confidence > low) & (confidence <= low + 1 / 15)
        if members.any():
            right = (predicted[members] == labels[members]).double().mean()
            expected += members.double().mean() * abs(right - confidence[members].double().mean())
    assert metrics.calibration_error(log_probs, labels) == pytest.approx(float(expected), abs=1e-5)
    bins = list(metrics.reliability(log_probs, labels))
    assert sum(size for _, _, size in bins) == 2000
    gaps = sum(size / 2000 * abs(right - sure) for sure, right, size in bins)
    assert gaps == pytest.approx(float(expected), abs=1e-5)


@pytest.mark.parametrize("true", [0.4, 1.0, 2.5])
def test_temperature_is_where_a_fine_grid_has_its_least_loss(predictions, true):
    log_probs, labels = predictions
    logits = log_probs * true
    grid = np.geomspace(0.1, 20, 4000)
    losses = [torch.nn.functional.cross_entropy(logits.double() / t, labels).item() for t in grid]
    found = metrics.fit_temperature(logits.log_softmax(1), labels)
    assert found == pytest.approx(grid[int(np.argmin(losses))], rel=2e-3)
    calibrated = metrics.at_temperature(logits.log_softmax(1), found)
    assert (
        metrics.calibration_error(calibrated, labels)
        <= metrics.calibration_error(logits.log_softmax(1), labels) + 0.005
    )
    assert torch.equal(calibrated.argmax(1), logits.argmax(1))


def test_probabilities_that_rounding_put_above_one_are_still_probabilities(predictions):
    logits, labels = predictions
    log_probs = logits.log_softmax(1)
    log_probs[0] = -30.0
    log_probs[0, labels[0]] = 0.0
    expected = metrics.calibration_error(log_probs, labels)
    log_probs[0, labels[0]] = 1.2e-7
    assert log_probs.exp().max() > 1
    assert metrics.calibration_error(log_probs, labels) == pytest.approx(expected, abs=1e-6)


def test_temperature_of_predictions_worse_than_chance_is_finite():
    log_probs = torch.tensor([[3.0, -3.0], [-3.0, 3.0]]).log_softmax(1)
    assert 1 < metrics.fit_temperature(log_probs, torch.tensor([1, 0])) <= 1000


def test_disagreement_is_the_mean_over_pairs():
    predicted = torch.tensor([[0, 1, 2, 0], [0, 1, 1, 0], [0, 2, 1, 0]])
    each = torch.nn.functional.one_hot(predicted, 3).float()
    assert metrics.disagreement(each) == pytest.approx(np.mean([1 / 4, 2 / 4, 1 / 4]))


def test_class_rows_count_what_they_say():
    matrix = [[8, 2, 0], [1, 4, 5], [0, 0, 0]]
    rows = metrics.class_rows(matrix, ["cat", "dog", "owl"])
    assert rows[1:] == [
        ["cat", "10", "80.00%", "88.89%", "dog (2)"],
        ["dog", "10", "40.00%", "66.67%", "owl (5)"],
    ]
