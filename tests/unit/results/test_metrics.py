"""Metrics, against NumPy."""

import numpy as np
import pytest
import torch

from cifar_resnet.results import metrics


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


def test_accuracies_and_confusion_of_ties_equal_plain_loops():
    """Library functions have their own ideas of edges; here they have the first of equals, as argmax."""
    random = torch.Generator().manual_seed(0)
    log_probs = torch.randint(0, 3, (500, 12), generator=random).float().log_softmax(1)
    labels = torch.randint(0, 12, (500,), generator=random)
    right = [row.argmax() == label for row, label in zip(log_probs.numpy(), labels.numpy(), strict=True)]
    assert metrics.accuracy(log_probs, labels) == pytest.approx(np.mean(right))
    assert metrics.confusion(log_probs, labels).diag().sum() == sum(right)


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
