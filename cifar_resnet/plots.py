"""Figures, drawn without a display."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter, StrMethodFormatter

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from cifar_resnet.find_lr import RangeTest

BLUE, ORANGE, GREEN, GREY = "#2563a8", "#d97706", "#3f8f4f", "#9aa3ad"

Scores = Mapping[str, float]  # as metrics.scores gives them

LONG_NAMES = {"train": "training", "val": "validation", "test": "test"}


def new_figure(width: float = 7.0, height: float = 4.0, columns: int = 1) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    for axes in figure.subplots(1, columns, squeeze=False).flat:
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    return figure


def by_ratio(axes: Axes) -> None:
    """A logarithmic y axis, labelled in plain numbers: 0.5, 1, 2."""
    axes.set_yscale("log")
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 5, 7)))
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def range_test_figure(test: "RangeTest") -> Figure:
    """Loss over learning rate, and where the suggestions lie."""
    figure = new_figure()
    (axes,) = figure.axes
    axes.semilogx(test.rates, test.losses, color=GREY, linewidth=0.8, alpha=0.7, label="loss of a batch")
    axes.semilogx(test.rates, test.smoothed, color=BLUE, linewidth=2, label="smoothed")
    colours = {"probe": "#c2255c", "steepest": ORANGE, "valley": GREEN, "minimum": "#7c4daf"}
    if test.probed:
        finite = {rate: loss for rate, loss in test.probed.items() if math.isfinite(loss)}
        axes.semilogx(finite.keys(), finite.values(), "o", color=colours["probe"], label="after a short training")
    for name, rate in test.suggestions.items():
        chosen = name == test.suggest
        label = f"{name}: {rate:.3g}" + (", suggested" if chosen else "")
        axes.axvline(rate, color=colours[name], linestyle="-" if chosen else "--", linewidth=1.5, label=label)
    low, high = min([*test.smoothed, *test.probed.values()]), test.smoothed[0]
    axes.set_ylim(low - 0.15 * (high - low), high + 0.5 * (high - low))
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.legend(frameon=False)
    return figure


def schedule_figure(rates: list[float], epochs: float) -> Figure:
    """Learning rate over the training."""
    figure = new_figure(height=3.0)
    (axes,) = figure.axes
    axes.plot([epochs * step / (len(rates) - 1 or 1) for step in range(len(rates))], rates, color=BLUE, linewidth=2)
    axes.set_xlim(0, epochs)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("epoch")
    axes.set_ylabel("learning rate")
    return figure


def search_figure(trials: list["FrozenTrial"], best: "FrozenTrial", key: str, log: bool) -> Figure:
    """Validation accuracy over one searched setting; a colour for each round."""
    figure = new_figure()
    (axes,) = figure.axes
    rounds = sorted({trial.user_attrs["round"] for trial in trials})
    for index, round_ in enumerate(rounds):
        members = [trial for trial in trials if trial.user_attrs["round"] == round_ and trial.value is not None]
        shade = 0.35 + 0.65 * (index + 1) / len(rounds)
        values, accuracies = [trial.params[key] for trial in members], [100 * trial.value for trial in members]
        axes.scatter(
            values,
            accuracies,
            color=BLUE,
            alpha=shade,
            s=28,
            label=f"round {round_ + 1}" if len(rounds) > 1 else "trials",
        )
    label = f"best: {best.params[key]:.3g}, {best.value:.2%}"
    axes.scatter(
        best.params[key], 100 * best.value, facecolors="none", edgecolors=ORANGE, s=120, linewidth=2, label=label
    )
    if log:
        axes.set_xscale("log")
    axes.set_xlabel(key)
    axes.set_ylabel("validation accuracy, %")
    axes.legend(frameon=False)
    return figure


def curves_figure(rows: Sequence[Mapping[str, str]]) -> Figure:
    """Loss, accuracy and learning rate of one run over its epochs. rows: of its metrics.csv."""
    figure = new_figure(10.0, 3.2, 3)
    epochs = [int(row["epoch"]) for row in rows]
    for axes, name, label, scale in zip(figure.axes, ("loss", "acc"), ("loss", "accuracy, %"), (1, 100), strict=False):
        for split, colour in (("train", GREY), ("val", BLUE)):
            points = [(epoch, scale * float(row[f"{split}/{name}"])) for epoch, row in zip(epochs, rows, strict=True)
                      if row.get(f"{split}/{name}")]  # fmt: skip
            if points:
                marker = "o" if len(points) == 1 else None
                axes.plot(*zip(*points, strict=True), color=colour, label=LONG_NAMES[split], marker=marker)
        axes.set_ylabel(label)
        axes.legend(frameon=False)
    by_ratio(figure.axes[0])  # one bad epoch would flatten the rest
    rates = [float(row.get("lr") or "nan") for row in rows]
    figure.axes[2].plot(epochs, rates, color=ORANGE)
    figure.axes[2].set_ylabel("learning rate, at the epoch's end")
    figure.axes[2].set_ylim(bottom=0)
    for axes in figure.axes:
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def confusion_figure(matrix: np.ndarray, classes: Sequence[str]) -> Figure:
    """Images by true class (rows) and answer (columns): right ones in blue, mistakes in orange, by their share."""
    count = len(classes)
    side = min(11.0, 1.6 + 0.42 * count)
    figure = new_figure(side + 0.6, side)
    (axes,) = figure.axes
    shares = matrix / matrix.sum(1, keepdims=True).clip(min=1)
    right = np.eye(count, dtype=bool)
    largest = max(shares[~right].max(), 1e-9)
    axes.grid(visible=False)
    axes.imshow(np.where(right, shares, np.nan), cmap=shades(BLUE), vmin=0, vmax=1)
    axes.imshow(np.where(right, np.nan, shares), cmap=shades(ORANGE), vmin=0, vmax=largest)
    if count <= 20:
        for row, column in np.argwhere(matrix):
            strong = shares[row, column] > (0.6 if row == column else 0.6 * largest)
            colour = "white" if strong else "black"
            axes.text(column, row, f"{matrix[row, column]:,}", ha="center", va="center", fontsize=8, color=colour)
    ticks = range(0, count, max(1, count // 50))
    names = [classes[index] for index in ticks]
    axes.set_xticks(ticks, names, rotation=90 if count > 20 else 45, ha="center" if count > 20 else "right")
    axes.set_yticks(ticks, names)
    axes.tick_params(length=0, labelsize=6 if count > 20 else 9)
    axes.set_xlabel("answer")
    axes.set_ylabel("true class")
    axes.spines[:].set_visible(False)
    return figure


def shades(colour: str) -> LinearSegmentedColormap:
    return LinearSegmentedColormap.from_list(colour, ["white", colour])


def reliability_figure(lines: Mapping[str, Sequence[tuple[float, float, int]]]) -> Figure:
    """Accuracy over confidence, bin by bin. lines: by name, `metrics.reliability`'s triples; a dot's area is its bin's
    number of images."""
    figure = new_figure(4.6, 4.2)
    (axes,) = figure.axes
    axes.plot([0, 100], [0, 100], color=GREY, linestyle="--", linewidth=1, label="perfectly calibrated")
    for (name, bins), colour in zip(lines.items(), (BLUE, ORANGE), strict=False):
        confidence, right, sizes = np.array(list(bins)).T
        axes.plot(100 * confidence, 100 * right, color=colour, linewidth=1, alpha=0.5)
        areas = 8 + 200 * sizes / sizes.sum()
        axes.scatter(100 * confidence, 100 * right, s=areas, color=colour, alpha=0.7, label=name)
    axes.set_xlim(0, 102)
    axes.set_ylim(0, 102)
    axes.set_xlabel("confidence, %")
    axes.set_ylabel("accuracy, %")
    axes.legend(frameon=False, loc="upper left")
    return figure


def mistakes_figure(images: np.ndarray, captions: Sequence[str]) -> Figure:
    """Pictures, eight in a row, each with what it is and what it was taken for. images: (N, H, W, 3) uint8."""
    columns = 8
    rows = max(1, -(-len(images) // columns))
    figure = Figure(figsize=(10.0, 1.6 * rows), dpi=120, layout="constrained")
    for index in range(rows * columns):
        axes = figure.add_subplot(rows, columns, index + 1)
        axes.set_axis_off()
        if index < len(images):
            axes.imshow(images[index], interpolation="nearest")
            axes.set_title(captions[index], fontsize=7.5)
    return figure


def growth_figure(members: Sequence[Scores], growth: Sequence[Scores], calibrated: Sequence[Scores]) -> Figure:
    """An ensemble's accuracy and loss as it grows, and its members' own; calibrated: empty where nothing was fitted."""
    figure = new_figure(9.6, 3.6, 2)
    sizes = range(1, len(growth) + 1)
    for axes, key, scale, label in zip(figure.axes, ("acc", "loss"), (100, 1), ("accuracy, %", "loss"), strict=True):
        axes.scatter(sizes, [scale * scores[key] for scores in members], color=GREY, label="member alone")
        axes.plot(
            sizes, [scale * scores[key] for scores in growth], color=BLUE, marker="o", label="ensemble of the first n"
        )
        if calibrated and key == "loss":  # accuracy knows no temperature
            values = [scores[key] for scores in calibrated]
            axes.plot(sizes, values, color=ORANGE, marker="o", label="ensemble, calibrated")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_xlabel("members")
        axes.set_ylabel(f"test {label}")
        axes.legend(frameon=False)
    return figure


def runs_figure(curves: Mapping[str, Sequence[Sequence[Mapping[str, str]]]]) -> Figure:
    """Loss, accuracy and learning rate of many runs over their epochs; a colour for each group.

    curves: by the group's name, for each of its runs the rows of its metrics.csv.
    """
    figure = new_figure(13.0, 4.4, 3)
    colours = colormaps["viridis"](np.linspace(0, 0.9, len(curves)))
    splits = set()
    for colour, (name, members) in zip(colours, curves.items(), strict=True):
        for index, rows in enumerate(members):
            split = "val" if any(row.get("val/acc") for row in rows) else "train"
            splits.add(LONG_NAMES[split])
            columns = [(f"{split}/loss", 1), (f"{split}/acc", 100), ("lr", 1)]
            for axes, (column, scale) in zip(figure.axes, columns, strict=True):
                points = [(int(row["epoch"]), scale * float(row[column])) for row in rows if row.get(column)]
                if points:
                    label = None if index else name
                    marker = "o" if len(points) == 1 else None
                    axes.plot(*zip(*points, strict=True), color=colour, alpha=0.8, label=label, marker=marker)
    split = " or ".join(sorted(splits))
    for axes, label in zip(figure.axes, (f"{split} loss", f"{split} accuracy, %", "learning rate"), strict=True):
        axes.set_xlabel("epoch")
        axes.set_ylabel(label)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    by_ratio(figure.axes[0])
    handles, labels = figure.axes[1].get_legend_handles_labels()
    if 1 < len(labels) <= 24:
        figure.legend(handles, labels, loc="outside lower center", ncols=min(6, len(labels)), frameon=False)
    return figure
