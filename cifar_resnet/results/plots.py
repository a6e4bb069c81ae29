"""Figures, drawn without a display."""

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

from cifar_resnet.runs import replacing
from cifar_resnet.terminal import arithmetic, cut, cut_apart, flops_unit

BLUE, ORANGE, GREEN, GREY = "#2563a8", "#d97706", "#3f8f4f", "#9aa3ad"

LEGEND = 40  # characters of a name in one
FEW = 20  # images, whose accuracy is chance's

Scores = Mapping[str, float]  # as metrics.scores gives them
What = Literal["loss", "acc", "lr"]
Rows = Sequence[Mapping[str, str]]  # of a run's metrics.csv

LONG_NAMES = {"train": "training", "val": "validation", "test": "test"}


def literal(text: str) -> str:
    """A name as it is: between two $ matplotlib reads mathematics, and it leaves what begins with _ out of a legend."""
    return " " * text.startswith("_") + text.replace("$", r"\$")


def short(text: str, width: int = 18) -> str:
    """A name cut so that a figure has room for it; a character of the far East counts as two."""
    return literal(cut(text, width, 2 / 3))


def apart(names: Sequence[str], width: int) -> list[str]:
    """The same of several, which can still be told apart."""
    return list(map(literal, cut_apart(names, width)))


@contextlib.contextmanager
def quiet_about_glyphs() -> Iterator[None]:
    """Text of a page is the browser's to draw, and in a PNG a font may lack what a name is written in."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        warnings.filterwarnings("ignore", "Matplotlib currently does not support .* natively")
        yield


def save_figure(path: Path, figure: Figure) -> None:
    with replacing(path) as file, quiet_about_glyphs():
        figure.savefig(file, format=path.suffix.removeprefix("."))


def new_figure(width: float = 7.0, height: float = 4.0, columns: int = 1) -> tuple[Any, ...]:
    """A `Figure`, and its `Axes` from left to right."""
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    for axes in figure.subplots(1, columns, squeeze=False).flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    return figure, *figure.axes


def label(
    figure: Figure,
    xlabel: str,
    *ylabels: str,
    legend: Literal["best", "upper left"] | None = "best",
    whole: bool = False,
) -> Figure:
    """Say what the axes mean. legend: where that of each lies; whole: x counts something, such as epochs."""
    for axes, ylabel in zip(figure.axes, ylabels, strict=True):
        axes.set(xlabel=literal(xlabel), ylabel=literal(ylabel))
        if legend and axes.get_legend_handles_labels()[0]:
            axes.legend(frameon=False, loc=legend)
        if whole:
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def plain_number(x: float, _: int | None = None) -> str:
    return f"{x / 1e6:,.10g}M" if x >= 1e6 else f"{x:,.10g}"


WIDE = 300  # times its smallest number: from there on an axis is labelled with powers of ten alone


def by_ratio(axis: Axis, subs: Sequence[float] = (1, 2, 5)) -> None:
    """Make it logarithmic, labelled in plain numbers: 0.5, 1, 2, and 2M for millions. To be called after the drawing.

    subs: which of each power of ten, where there is room.
    """
    set_scale = axis.axes.set_xscale if axis is axis.axes.xaxis else axis.axes.set_yscale
    set_scale("log")
    low, high = axis.get_data_interval()
    spans = 0 < low * WIDE < high
    axis.set(
        major_locator=LogLocator(subs=(1,) if spans else subs),
        major_formatter=FuncFormatter(plain_number),
        minor_formatter=NullFormatter(),
    )


LOSSES = (1, 1.5, 2, 3, 5, 7)  # which lie close together


def plot_column(axes: Axes, rows: Rows, column: str, scale: float = 1, **style: Any) -> None:
    """A column of metrics.csv over the epochs that have a value in it; nothing where none has."""
    points = [(int(row["epoch"]), scale * float(row[column])) for row in rows if row.get(column)]
    if points:
        axes.plot(*zip(*points, strict=True), marker="o" if len(points) == 1 else None, **style)


def range_test_figure(test: Any) -> Figure:
    """Loss over learning rate, and where the suggestions lie. test: a finished `RangeTest`."""
    figure, axes = new_figure()
    axes.semilogx(test.rates, test.losses, color=GREY, linewidth=0.8, alpha=0.7, label="loss of a batch")
    axes.semilogx(test.rates, test.smoothed, color=BLUE, linewidth=2, label="smoothed")
    colours = {"probe": "#c2255c", "steepest": ORANGE, "valley": GREEN, "minimum": "#7c4daf"}
    if test.probed:
        finite = {rate: loss for rate, loss in test.probed.items() if math.isfinite(loss)}
        axes.semilogx(finite.keys(), finite.values(), "o", color=colours["probe"], label="after a short training")
    for name, rate in test.suggestions.items():
        style, remark = ("-", ", suggested") if name == test.suggest else ("--", "")
        axes.axvline(rate, color=colours[name], linestyle=style, linewidth=1.5, label=f"{name}: {rate:.3g}{remark}")
    low, high = min([*test.smoothed, *test.probed.values()]), test.smoothed[0]
    axes.set_ylim(low - 0.15 * (high - low), high + 0.5 * (high - low))
    return label(figure, "learning rate", "training loss")


def schedule_figure(rates: list[float], epochs: float) -> Figure:
    """Learning rate over the training."""
    figure, axes = new_figure(height=3.0)
    axes.plot([epochs * step / (len(rates) - 1 or 1) for step in range(len(rates))], rates, color=BLUE, linewidth=2)
    axes.set(xlim=(0, epochs), ylim=(0, None))
    return label(figure, "epoch", "learning rate")


def schedule_by_epoch(rates: list[float]) -> Figure:
    """The learning rate that each epoch had."""
    figure, axes = new_figure(height=3.0)
    axes.stairs(rates, baseline=None, color=BLUE, linewidth=2)
    axes.set(xlim=(0, len(rates)), ylim=(0, None))
    return label(figure, "epoch", "learning rate")


def search_figure(
    points: Sequence[tuple[int, float, float]], best: tuple[float, float], key: str, log: bool, is_cost: bool = False
) -> Figure:
    """Validation accuracy, or FLOPs to a target, over one searched setting; a colour for each round.

    points: of each finished trial its round, the setting's value and the result; best: the last two of the best.
    key: of the setting; log: whether it is searched by ratio. is_cost: whether results are FLOPs.
    """
    unit, scale_of_flops = flops_unit(max(result for *_, result in points))
    scale, ylabel = (scale_of_flops, f"{unit} to the target") if is_cost else (100, "validation accuracy, %")
    figure, axes = new_figure()
    rounds = sorted({round_ for round_, _, _ in points})
    for index, round_ in enumerate(rounds, 1):
        values, results = zip(*((value, scale * each) for own, value, each in points if own == round_), strict=True)
        name = f"round {round_ + 1}" if len(rounds) > 1 else "trials"
        axes.scatter(values, results, color=BLUE, alpha=0.35 + 0.65 * index / len(rounds), s=28, label=name)
    value, result = best
    shown = arithmetic(result) if is_cost else f"{result:.2%}"
    around = {"facecolors": "none", "edgecolors": ORANGE, "s": 120, "linewidth": 2}
    axes.scatter(value, scale * result, label=f"best: {value:.3g}, {shown}", **around)
    axes.set_xscale("log" if log else "linear")
    return label(figure, key, ylabel)


@dataclass
class TrialCost:
    """Of a search. course: FLOPs and accuracy of each of its validations; flops: all that it has spent.

    result: what it is compared by, accuracy or FLOPs to a target; None where it has not ended, or not come there.
    """

    number: int
    course: Sequence[tuple[float, float]]
    flops: float
    result: float | None


def search_cost_figure(trials: Sequence[TrialCost], best: int, target: float | None = None) -> Figure:
    """Validation accuracy over arithmetic, of each trial by itself, and over that of all trials the best so far.

    best: the number of the best. target: an accuracy; the best is then the cheapest that came to it.
    """
    figure, alone, together = new_figure(11.0, 4.0, 2)
    unit, scale = flops_unit(max((trial.flops for trial in trials), default=0))
    unit_of_all, scale_of_all = flops_unit(sum(trial.flops for trial in trials))
    shown = [trial for trial in trials if trial.course]
    for trial in shown:
        flops, accs = scale * np.array(trial.course)[:, 0], 100 * np.array(trial.course)[:, 1]
        name = f"trial {trial.number + 1}, the best"
        style = {"color": ORANGE, "zorder": 3, "label": name} if trial.number == best else {}
        alone.plot(flops, accs, "o-", markersize=3, linewidth=1, **{"color": GREY, "alpha": 0.8} | style)
    spent = scale_of_all * np.cumsum([trial.flops for trial in trials])
    scale_of_results = 100 if target is None else scale
    each = [(x, trial.result, trial) for x, trial in zip(spent, trials, strict=True)]
    ended = [(x, scale_of_results * result, trial) for x, result, trial in each if result is not None]
    for x, y, trial in ended:
        together.scatter(x, y, s=24, color=ORANGE if trial.number == best else GREY, zorder=3)
    if ended:
        so_far = (np.maximum if target is None else np.minimum).accumulate([y for _, y, _ in ended])
        name = "best so far" if target is None else "cheapest so far"
        xs = [*(x for x, _, _ in ended), spent[-1]]
        together.step(xs, [*so_far, so_far[-1]], where="post", color=BLUE, label=name)
    if target is not None:
        alone.axhline(100 * target, color=GREEN, linestyle="--", linewidth=1, label=f"target {target:.2%}")
    if bests := [100 * max(acc for _, acc in trial.course) for trial in shown]:
        margin = 0.05 * (max(bests) - min(bests)) or 1.0
        alone.set_ylim(min(bests) - margin, max(*bests, 100 * (target or 0)) + margin)  # how each began tells nothing
    accuracy = "validation accuracy, %"
    label(figure, "", accuracy, accuracy if target is None else f"{unit} to the target")
    alone.set_xlabel(f"{unit} of each trial")
    together.set_xlabel(f"{unit_of_all} of all trials so far")
    return figure


def curves_figure(rows: Rows) -> Figure:
    """Loss, accuracy and learning rate of one run over its epochs."""
    figure, *panels = new_figure(10.0, 3.2, 3)
    for axes, draw in zip(panels, (draw_loss, draw_accuracy, draw_rate), strict=True):
        draw(axes, rows)
    return label(figure, "epoch", *CURVES, whole=True)


def curve_panels(rows: Rows) -> list[Figure]:
    """The same, each by itself."""
    found = []
    for ylabel, draw in zip(CURVES, (draw_loss, draw_accuracy, draw_rate), strict=True):
        figure, axes = new_figure(4.0, 3.2)
        draw(axes, rows)
        found.append(label(figure, "epoch", ylabel, whole=True))
    return found


CURVES = ("loss", "accuracy, %", "learning rate, at the epoch's end")
SPLITS = (("train", GREY), ("val", BLUE))


def draw_loss(axes: Axes, rows: Rows) -> None:
    for split, colour in SPLITS:
        plot_column(axes, rows, f"{split}/loss", color=colour, label=LONG_NAMES[split])
    by_ratio(axes.yaxis, LOSSES)  # one bad epoch would flatten the rest


def draw_accuracy(axes: Axes, rows: Rows) -> None:
    for split, colour in SPLITS:
        plot_column(axes, rows, f"{split}/acc", 100, color=colour, label=LONG_NAMES[split])


def draw_rate(axes: Axes, rows: Rows) -> None:
    plot_column(axes, rows, "lr", color=ORANGE)
    axes.set_ylim(bottom=0)


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Images by true class (rows) and prediction (columns): right ones in blue, mistakes in orange, by their share."""
    count = len(classes)
    side = min(11.0, 1.2 + 0.38 * count)
    figure, axes = new_figure(side + 0.6, side)
    shares = matrix / matrix.sum(1, keepdims=True).clip(min=1)
    right = np.eye(count, dtype=bool)
    largest = max(shares[~right].max(), 1e-9)
    axes.grid(visible=False)
    axes.imshow(np.where(right, shares, np.nan), cmap=shades(BLUE), vmin=0, vmax=1)
    axes.imshow(np.where(right, np.nan, shares), cmap=shades(ORANGE), vmin=0, vmax=largest)
    is_large = count > 20
    if not is_large:
        is_dark = shares > np.where(right, 0.6, 0.6 * largest)
        for row, column in np.argwhere(matrix):
            colour = "white" if is_dark[row, column] else "black"
            axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=9, color=colour)
    ticks = range(0, count, max(1, count // 50))
    names = [short(classes[index]) for index in ticks]
    axes.set_xticks(ticks, names, rotation=90 if is_large else 45, ha="center" if is_large else "right")
    axes.set_yticks(ticks, names)
    axes.tick_params(length=0, labelsize=6 if is_large else 9)
    axes.spines[:].set(visible=True, color="#cbd2d9")  # a class that is never predicted has an empty column
    return label(figure, "prediction", "true class")


def shades(colour: str) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list(colour, ["white", colour])


def corruption_figure(each: Sequence[Mapping[str, Any]]) -> Figure:
    """Accuracy by corruption and severity. each: corruption, severity and acc of every condition."""
    accs = {(one["corruption"], one["severity"]): 100 * one["acc"] for one in each}
    names, severities = (list(dict.fromkeys(keys)) for keys in zip(*accs, strict=True))
    table = np.array([[accs[name, severity] for severity in severities] for name in names])
    return heat_map(table, [name.replace("_", " ") for name in names], severities, ("severity", "accuracy, %"))


def heat_map(
    table: np.ndarray,
    rows: Sequence[str],
    columns: Sequence[object],
    names: tuple[str, str],
    ylabel: str = "",
    form: str = ".1f",
) -> Figure:
    """A coloured cell for each number, with the number in it; nothing where it is nan.

    names: of the columns' setting, and of what the numbers are. form: of the numbers.
    """
    height, width = (min(14.0, 1.3 + size * count) for size, count in ((0.34, len(rows)), (0.62, len(columns))))
    figure, axes = new_figure(width + 2.2, height)
    axes.grid(visible=False)
    low, high = np.nanmin(table), np.nanmax(table)
    shown = axes.imshow(table, cmap="viridis", aspect="auto", vmin=low, vmax=high if high > low else low + 1)
    for row, column in np.argwhere(np.isfinite(table)):
        is_dark = np.dot(shown.to_rgba(table[row, column])[:3], (0.299, 0.587, 0.114)) < 0.5
        text = f"{table[row, column]:{form}}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color="white" if is_dark else "black")
    axes.set_xticks(range(len(columns)), [short(str(value)) for value in columns])
    axes.set_yticks(range(len(rows)), [short(str(value), 30) for value in rows])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    figure.colorbar(shown, label=literal(names[1]), shrink=0.8)
    axes.set(xlabel=literal(names[0]), ylabel=literal(ylabel))
    return figure


def selective_figure(coverage: Any, accuracy: Any) -> Figure:
    """Accuracy over the share of the images that are answered, the surest first."""
    figure, axes = new_figure(4.6, 3.2)
    start = max(len(coverage) // 100, FEW)  # of fewer images it says nothing
    axes.plot(100 * np.asarray(coverage)[start:], 100 * np.asarray(accuracy)[start:], color=BLUE)
    axes.set_xlim(0, 100)
    return label(figure, "answered, % of the images", "accuracy, %")


def reliability_figure(lines: Mapping[str, Sequence[tuple[float, float, int]]]) -> Figure:
    """Accuracy over confidence, bin by bin; a dot's area is its bin's number of images, and one of few is faint.

    lines: by name, `calibration.reliability`'s triples.
    """
    figure, axes = new_figure(4.6, 4.2)
    axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    for (name, bins), colour in zip(lines.items(), (BLUE, ORANGE), strict=False):
        confidence, right, sizes = np.array(list(bins)).T
        axes.plot(100 * confidence, 100 * right, color=colour, linewidth=1, alpha=0.5)
        areas = 8 + 200 * sizes / sizes.sum()
        alphas = np.where(sizes < FEW, 0.25, 0.7)  # by chance such a bin may lie anywhere
        axes.scatter(100 * confidence, 100 * right, s=areas, color=colour, alpha=alphas)
        axes.plot([], [], "o", color=colour, alpha=0.7, label=literal(name))
    axes.set(xlim=(0, 102), ylim=(0, 102))
    below(figure, axes)
    return label(figure, "confidence, %", "accuracy, %", legend=None)


def mistakes_figure(images: Sequence[np.ndarray], captions: Sequence[str]) -> Figure:
    """Pictures, eight in a row, each with what it is and what it was taken for. images: each (H, W, 3) uint8."""
    columns = 8
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(10.0, 1.6 * rows), dpi=120, layout="constrained")
    for index, axes in enumerate(figure.subplots(rows, columns, squeeze=False).flat):
        axes.set_axis_off()
        if index < len(images):
            axes.imshow(images[index], interpolation="nearest")
            axes.set_title("\n".join(short(line, 24) for line in captions[index].split("\n")), fontsize=7.5)
    return figure


def growth_figure(members: Sequence[Scores], growth: Sequence[Scores], calibrated: Sequence[Scores]) -> Figure:
    """An ensemble's accuracy and loss as it grows, and its members' own; calibrated: empty where nothing was fitted."""
    figure, *panels = new_figure(9.6, 3.6, 2)
    for axes, key in zip(panels, GROWING, strict=True):
        draw_growth(axes, key, members, growth, calibrated)
    return label(figure, "members", *GROWING.values(), whole=True)


def growth_panels(members: Sequence[Scores], growth: Sequence[Scores], calibrated: Sequence[Scores]) -> list[Figure]:
    """The same, each by itself."""
    found = []
    for key, ylabel in GROWING.items():
        figure, axes = new_figure(4.6, 3.4)
        draw_growth(axes, key, members, growth, calibrated)
        found.append(label(figure, "members", ylabel, whole=True))
    return found


GROWING = {"acc": "test accuracy, %", "loss": "test loss"}


def draw_growth(
    axes: Axes, key: str, members: Sequence[Scores], growth: Sequence[Scores], calibrated: Sequence[Scores]
) -> None:
    sizes, scale = range(1, len(growth) + 1), 100 if key == "acc" else 1
    own, grown = ([scale * scores[key] for scores in each] for each in (members, growth))
    axes.scatter(sizes, own, color=GREY, label="member alone")
    axes.plot(sizes, grown, color=BLUE, marker="o", label="ensemble of the first n")
    if calibrated and key == "loss":  # accuracy knows no temperature
        losses = [scores["loss"] for scores in calibrated]
        axes.plot(sizes, losses, color=ORANGE, marker="o", label="ensemble, calibrated")


def runs_figure(curves: Mapping[str, Sequence[Rows]]) -> Figure:
    """Loss, accuracy and learning rate of many runs over their epochs; a colour for each group.

    curves: by the group's name, for each of its runs the rows of its metrics.csv.
    """
    figure, *panels = new_figure(13.0, 4.4, 3)
    columns: tuple[What, ...] = ("loss", "acc", "lr")
    splits = {draw_runs(axes, curves, what) for axes, what in zip(panels, columns, strict=True)}
    by_ratio(panels[0].yaxis, LOSSES)
    below(figure, panels[1])
    (split,) = splits
    return label(figure, "epoch", f"{split} loss", f"{split} accuracy, %", "learning rate", legend=None, whole=True)


def runs_panels(curves: Mapping[str, Sequence[Rows]]) -> list[Figure]:
    """The same, each by itself."""
    found = []
    names: dict[What, str] = {"loss": "{} loss", "acc": "{} accuracy, %", "lr": "learning rate"}
    for what, name in names.items():
        figure, axes = new_figure(4.6, 3.8)
        split = draw_runs(axes, curves, what)
        if what == "loss":
            by_ratio(axes.yaxis, LOSSES)
        found.append(label(figure, "epoch", name.format(split), legend=None, whole=True))
    return found + legend_panel(found)


def draw_runs(axes: Axes, curves: Mapping[str, Sequence[Rows]], what: What) -> str:
    """Returns of which images the losses and accuracies are."""
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(curves)))
    splits = set()
    names = apart(list(curves), LEGEND)
    for colour, name, members in zip(colours, names, curves.values(), strict=True):
        for index, rows in enumerate(members):
            split = "val" if any(row.get("val/acc") for row in rows) else "train"
            splits.add(LONG_NAMES[split])
            column, scale = (what, 1) if what == "lr" else (f"{split}/{what}", 100 if what == "acc" else 1)
            plot_column(axes, rows, column, scale, color=colour, alpha=0.8, label=None if index else name)
    return " or ".join(sorted(splits))


MOST_COLOURS = 24  # that can be told apart


def below(figure: Figure, axes: Axes) -> None:
    """The names of the lines, if there is more than one and they can be told apart, in as many columns as fit."""
    handles, names = axes.get_legend_handles_labels()
    if 1 < len(names) <= MOST_COLOURS:
        inches = 0.55 + 0.085 * max(map(len, names))  # of one, in the font below
        columns = max(1, min(len(names), int(figure.get_figwidth() / inches)))
        figure.set_figheight(figure.get_figheight() + 0.19 * -(-len(names) // columns))
        figure.legend(handles, names, loc="outside lower center", ncols=columns, frameon=False, fontsize=9)


@dataclass
class Point:
    """A run, or several of one group. x, y: where it is; low, high: the ends of y's interval, if any.

    url: of its page, or empty.
    """

    x: float
    y: float
    group: str
    url: str = ""
    low: float | None = None
    high: float | None = None


def cost_figure(points: Sequence[Point], xlabel: str, ylabel: str, groups: Sequence[str]) -> Figure:
    """What it cost and what came out, a link for each. groups: all that there are, each with its colour."""
    figure, axes = new_figure(4.6, 3.6)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(groups)))
    for group, name, colour in zip(groups, apart(groups, LEGEND), colours, strict=True):
        own = [point for point in points if point.group == group]
        drawn = axes.scatter(
            [point.x for point in own],
            [point.y for point in own],
            color=colour,
            s=36,
            alpha=0.85,
            label=name,
        )
        drawn.set_urls([point.url or None for point in own])
    xs = [point.x for point in points]
    if min(xs) > 0 and max(xs) > 5 * min(xs):
        by_ratio(axes.xaxis)
    else:
        axes.xaxis.set(major_locator=MaxNLocator(5), major_formatter=FuncFormatter(plain_number))
    return label(figure, xlabel, ylabel, legend=None)


def legend_panel(panels: Sequence[Figure]) -> list[Figure]:
    """The names of what is drawn in these panels, by itself; none where there is but one, or too many to be told
    apart."""
    drawn = [pair for panel in panels for pair in zip(*panel.axes[0].get_legend_handles_labels(), strict=True)]
    by_name = {name: handle for handle, name in drawn}
    if not 1 < len(by_name) <= MOST_COLOURS:
        return []
    figure = Figure(figsize=(4.6, 0.3 + 0.19 * len(by_name)), dpi=120, layout="constrained")
    figure.legend(by_name.values(), by_name.keys(), loc="center left", frameon=False, fontsize=9)
    return [figure]


def intervals_figure(points: Sequence[Point], xlabel: str) -> Figure:
    """A row for each group: its mean and interval. points: of each group, y the mean."""
    figure, axes = new_figure(6.4, 1.2 + 0.32 * len(points))
    for row, point in enumerate(points):
        if point.low is not None:
            axes.plot([point.low, point.high], [row, row], color=BLUE, linewidth=2, alpha=0.6)
        axes.plot(point.y, row, "o", color=BLUE)
    axes.set_yticks(range(len(points)), apart([point.group for point in points], 40))
    axes.set_ylim(len(points) - 0.5, -0.5)
    return label(figure, xlabel, "", legend=None)
