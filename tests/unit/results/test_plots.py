"""Figures as they are drawn: nothing written over anything else."""

import itertools

import numpy as np
import pytest

from cifar_resnet.results import plots


@pytest.mark.parametrize("high", [6e2, 5e3, 7e4, 6.5e6])
def test_labels_of_an_axis_by_ratio_lie_apart_however_wide_its_range(high):
    points = [plots.Point(x, y, "a", "") for x, y in zip(np.geomspace(100, high, 9), range(9), strict=True)]
    figure = plots.cost_figure(points, "parameters", "accuracy", ["a"])
    figure.draw_without_rendering()
    (axes,) = figure.axes
    low, high = axes.get_xlim()
    labels = [tick.label1 for tick in axes.xaxis.get_major_ticks() if low <= tick.get_loc() <= high]
    boxes = [label.get_window_extent() for label in labels if label.get_text()]
    assert len(boxes) >= 2
    assert all(one.x1 < other.x0 for one, other in itertools.pairwise(boxes)), [label.get_text() for label in labels]


def test_a_group_has_one_colour_in_all_panels_and_a_name_in_their_legend():
    """Though it is missing in some of them."""
    groups = ["a", "b", "c"]
    with_all, without_a = (
        plots.cost_figure([plots.Point(x, x, group, "") for x, group in enumerate(some, 1)], "x", "y", groups)
        for some in (groups, groups[1:])
    )
    (legend,) = plots.legend_panel([without_a, with_all])
    named = {text.get_text(): tuple(handle.get_facecolor()[0]) for text, handle in zip(
        legend.legends[0].get_texts(), legend.legends[0].legend_handles, strict=True
    )}  # fmt: skip
    assert named.keys() == set(groups)
    for panel in (with_all, without_a):
        for dots in panel.axes[0].collections:
            assert tuple(dots.get_facecolor()[0]) == named[dots.get_label()]
    assert plots.legend_panel([plots.cost_figure([plots.Point(1, 1, "a", "")], "x", "y", ["a"])]) == []
    assert plots.legend_panel(plots.runs_panels({"a": [[{"epoch": "1"}]]})[:3]) == []  # no loss in any row
