"""Figures as they are drawn: nothing written over anything else."""

import itertools

import numpy as np
import pytest

from cifar_resnet.results import plots


@pytest.mark.parametrize("high", [6e2, 5e3, 7e4, 6.5e6])
def test_labels_of_an_axis_by_ratio_lie_apart_however_wide_its_range(high):
    points = [plots.Point(x, y, "a", "") for x, y in zip(np.geomspace(100, high, 9), range(9), strict=True)]
    figure = plots.cost_figure(points, "parameters", "accuracy")
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    labels = [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    assert len(boxes) >= 2
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes)), [label.get_text() for label in labels]
