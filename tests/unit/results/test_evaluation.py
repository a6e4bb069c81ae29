"""What a page shows of an evaluation."""

import numpy as np
import pytest
import torch

from cifar_resnet.data import Synthetic
from cifar_resnet.results.evaluation import NUM_MISTAKES, evaluate_predictions, sections
from cifar_resnet.results.page import Section
from cifar_resnet.results.predictions import Predictions


def sections_of(log_probs: torch.Tensor, labels: torch.Tensor, images: torch.Tensor) -> dict[str, Section]:
    result = evaluate_predictions(log_probs[None], labels)
    found = sections(result, Predictions.of(images, log_probs, labels), images, Synthetic.classes)
    return {section.name: section for section in found}


def test_the_most_confident_mistakes_come_first():
    images, labels = Synthetic(num_test=40).read(train=False)
    log_probs = torch.randn(40, 10).log_softmax(1)
    found = sections_of(log_probs, labels, images)
    confidence, predicted = log_probs.exp().max(1)
    wrong = [i for i in confidence.argsort(descending=True).tolist() if predicted[i] != labels[i]][:NUM_MISTAKES]
    drawn = [axes for axes in found["mistakes"].figure.axes if axes.get_title()]
    for axes, index in zip(drawn, wrong, strict=True):
        assert np.array_equal(axes.images[0].get_array(), images[index].permute(1, 2, 0).numpy())
    titles = [axes.get_title() for axes in drawn]
    assert titles == [
        f"{Synthetic.classes[labels[i]]} → {Synthetic.classes[predicted[i]]}\n{confidence[i]:.1%}" for i in wrong
    ]


def test_a_perfect_network_has_no_mistakes_to_show():
    images, labels = Synthetic(num_test=40).read(train=False)
    log_probs = (torch.nn.functional.one_hot(labels, 10) * 9.0).log_softmax(1)
    assert "mistakes" not in sections_of(log_probs, labels, images)


@pytest.mark.parametrize("has_temperature", [False, True])
def test_the_page_says_the_calibration_error_that_its_diagram_shows(has_temperature):
    images, labels = Synthetic(num_test=40).read(train=False)
    log_probs = (torch.nn.functional.one_hot((labels + (torch.arange(40) % 4 == 0)) % 10, 10) * 120.0).log_softmax(1)
    assert log_probs.exp().max() == 1
    val = (log_probs[None], labels) if has_temperature else None
    result = evaluate_predictions(log_probs[None], labels, val)
    (section,) = [
        each
        for each in sections(result, Predictions.of(images, log_probs, labels), images, Synthetic.classes)
        if each.name == "reliability"
    ]
    shown = section.figure.axes[0].collections  # dots: as trained, with temperature
    for dots, key in zip(shown, ("scores", "calibrated"), strict=False):
        points, areas = np.asarray(dots.get_offsets()) / 100, np.asarray(dots.get_sizes()) - 8
        error = float((np.abs(points[:, 1] - points[:, 0]) * areas).sum() / areas.sum())
        assert result[key]["calibration_error"] == pytest.approx(error)
        assert f"{error:.2%}" in section.text
    assert len(shown) == 1 + has_temperature
    assert "is the most that is tried" not in section.text


@pytest.mark.parametrize("wrong", [0, 1])
def test_where_all_validation_images_are_right_no_temperature_is_fitted(wrong):
    """For the loss falls without end, and one wrong test image would make it enormous at what came out."""
    labels = torch.arange(30) % 3
    right = (torch.nn.functional.one_hot(labels, 3) * 3.0).log_softmax(1)
    val = right.clone()
    val[:wrong] = right[:wrong].roll(1, 1)
    found = evaluate_predictions(torch.stack([right, right]), labels, (torch.stack([val, val]), labels))
    if wrong:
        assert 0.5 < found["temperature"] < 2
    else:
        assert found["temperature"] is found["calibrated"] is None
        assert found["growth_calibrated"] == []


def test_a_temperature_without_end_is_said_to_be_one():
    """Of a network that is sure, and right no more often than by chance."""
    images, labels = Synthetic(num_test=40).read(train=False)
    log_probs = (torch.nn.functional.one_hot((labels + 1) % 10, 10) * 9.0).log_softmax(1)
    result = evaluate_predictions(log_probs[None], labels, (log_probs[None], labels))
    found = sections(result, Predictions.of(images, log_probs, labels), images, Synthetic.classes)
    (text,) = (section.text for section in found if section.name == "reliability")
    assert "The temperature, 1000.000, was fitted on validation images, and is the most that is tried" in text
