"""Figures, drawn without a display."""

from typing import TYPE_CHECKING

from matplotlib.figure import Figure

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from cifar_resnet.find_lr import RangeTest

BLUE, ORANGE, GREEN, GREY = "#2563a8", "#d97706", "#3f8f4f", "#9aa3ad"


def new_figure(width: float = 7.0, height: float = 4.0) -> Figure:
    figure = Figure(figsize=(width, height), dpi=120, layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.3)
    return figure


def range_test_figure(test: "RangeTest") -> Figure:
    """Loss over learning rate, and where the suggestions lie."""
    figure = new_figure()
    (axes,) = figure.axes
    axes.semilogx(test.rates, test.losses, color=GREY, linewidth=0.8, alpha=0.7, label="loss of a batch")
    axes.semilogx(test.rates, test.smoothed, color=BLUE, linewidth=2, label="smoothed")
    for (name, rate), colour in zip(test.suggestions.items(), (ORANGE, GREEN, "#7c4daf"), strict=True):
        chosen = name == test.suggest
        label = f"{name}: {rate:.3g}" + (", suggested" if chosen else "")
        axes.axvline(rate, color=colour, linestyle="-" if chosen else "--", linewidth=1.5, label=label)
    low, high = min(test.smoothed), test.smoothed[0]
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
        members = [trial for trial in trials if trial.user_attrs["round"] == round_]
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
