"""Metrics, against NumPy."""

import numpy as np
import pytest
import torch

from cifar_resnet.results import calibration, metrics


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


def test_accuracies_and_confusion_of_ties_equal_plain_loops():
    """Library functions have their own ideas of edges; here they have the first of equals, as argmax."""
    random = torch.Generator().manual_seed(0)
    log_probs = torch.randint(0, 3, (500, 12), generator=random).float().log_softmax(1)
    labels = torch.randint(0, 12, (500,), generator=random)
    right = [row.argmax() == label for row, label in zip(log_probs.numpy(), labels.numpy(), strict=True)]
    assert metrics.accuracy(log_probs, labels) == pytest.approx(np.mean(right))
    assert metrics.confusion(log_probs, labels).diag().sum() == sum(right)


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


def counted(predicted: list[int], labels: list[int], num_classes: int) -> tuple[float, float]:
    """Balanced accuracy and macro F1 by a plain loop, as scikit-learn's documentation has them."""
    recalls, scores = [], []
    for each in range(num_classes):
        right = sum(p == each and y == each for p, y in zip(predicted, labels, strict=True))
        images, answers = labels.count(each), predicted.count(each)
        if images:
            recalls.append(right / images)
        if images or answers:
            precision, recall = right / answers if answers else 0, right / images if images else 0
            scores.append(2 * precision * recall / (precision + recall) if right else 0)
    return sum(recalls) / len(recalls), sum(scores) / len(scores)


@pytest.mark.parametrize("seed", range(5))
def test_balanced_accuracy_and_macro_f1_equal_a_plain_loops(seed):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(4, (60,), generator=generator) ** 2 // 3  # of five classes 0, 1, 3, and unevenly
    log_probs = torch.randn(60, 5, generator=generator).log_softmax(1)
    expected = counted(log_probs.argmax(1).tolist(), labels.tolist(), 5)
    found = metrics.of_uneven_classes(log_probs, labels)
    assert (found["balanced_acc"], found["macro_f1"]) == pytest.approx(expected)
    assert metrics.scores(log_probs, labels).items() >= found.items()


def test_of_even_classes_they_are_left_out():
    labels = torch.arange(5).repeat(6)
    assert metrics.of_uneven_classes(torch.randn(30, 5).log_softmax(1), labels) == {}
