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


def lines_of(axes) -> dict[str, list]:
    """The points of each of its lines, by the name in the legend."""
    return {line.get_label(): line.get_xydata().tolist() for line in axes.lines}


def test_a_runs_curves_show_each_column_under_its_own_name():
    columns = {"train/loss": 1.0, "val/loss": 2.0, "train/acc": 0.3, "val/acc": 0.4, "lr": 0.5}
    rows = [{"epoch": str(epoch)} | {key: str(value / epoch) for key, value in columns.items()} for epoch in (1, 2)]
    loss, accuracy, rate = plots.curves_figure(rows).axes
    assert lines_of(loss) == {"training": [[1, 1.0], [2, 0.5]], "validation": [[1, 2.0], [2, 1.0]]}
    for name, value in (("training", 30.0), ("validation", 40.0)):
        np.testing.assert_allclose(lines_of(accuracy)[name], [[1, value], [2, value / 2]])
    ((points),) = lines_of(rate).values()
    assert points == [[1, 0.5], [2, 0.25]]


def test_a_schedule_is_drawn_over_the_epochs_from_its_first_rate_to_its_last():
    (axes,) = plots.schedule_figure([0.1, 0.3, 0.2], epochs=4).axes
    assert axes.lines[0].get_xydata().tolist() == [[0, 0.1], [2, 0.3], [4, 0.2]]


def test_true_classes_are_the_rows_of_a_confusion():
    matrix = np.array([[7, 2, 0], [0, 5, 4], [1, 0, 3]])
    (axes,) = plots.confusion_figure(matrix, ["a", "b", "c"]).axes
    shown = {(text.get_position()[1], text.get_position()[0]): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "7", (0, 1): "2", (1, 1): "5", (1, 2): "4", (2, 0): "1", (2, 2): "3"}
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("true class", "prediction")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b", "c"]
    right, wrong = (image.get_array() for image in axes.images)
    assert right[0, 0] == pytest.approx(7 / 9)
    assert wrong[1, 2] == pytest.approx(4 / 9)


def test_a_search_shows_what_each_trial_came_to_by_its_round():
    points = [(0, 0.1, 0.7), (0, 0.2, 0.8), (1, 0.15, 0.9)]
    (axes,) = plots.search_figure(points, (0.15, 0.9), "optimizer.lr", log=True).axes
    shown = [dots.get_offsets().tolist() for dots in axes.collections]
    np.testing.assert_allclose(shown[0], [[0.1, 70], [0.2, 80]])
    np.testing.assert_allclose(shown[1], [[0.15, 90]])
    np.testing.assert_allclose(shown[2], [[0.15, 90]])
    assert axes.get_xscale() == "log"


def test_an_ensembles_growth_is_drawn_beside_its_members():
    members = [{"acc": 0.5, "loss": 2.0}, {"acc": 0.6, "loss": 1.5}]
    growth = [{"acc": 0.5, "loss": 2.0}, {"acc": 0.7, "loss": 1.0}]
    accuracy, loss = plots.growth_figure(members, growth, calibrated=[]).axes
    np.testing.assert_allclose(accuracy.collections[0].get_offsets(), [[1, 50], [2, 60]])
    np.testing.assert_allclose(accuracy.lines[0].get_xydata(), [[1, 50], [2, 70]])
    np.testing.assert_allclose(loss.lines[0].get_xydata(), [[1, 2.0], [2, 1.0]])
