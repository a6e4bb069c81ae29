"""What a report's page shows of many runs at once: a grid of two settings, groups with their intervals, and what came
out over what it cost."""

import math
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import numpy as np
from omegaconf import DictConfig

from cifar_resnet.errors import refuse_if
from cifar_resnet.results import found, plots
from cifar_resnet.results.found import Groups, Run
from cifar_resnet.results.intervals import Summary, summary
from cifar_resnet.results.page import Section
from cifar_resnet.terminal import flops_unit

OTHERS = "other settings"
# what a setting's column may not be called as well
TITLES = (
    "n", "repeats", "validation", "test", "95% interval", "parameters", "time", "tested epoch", "run", "seed", "epoch",
    "device", "seconds", "tested_epoch", "epochs", "images", "group", OTHERS,
)  # fmt: skip
MOST_KEYS = 6  # settings that a table has columns for, and a figure's legend room


def short(keys: Sequence[str]) -> list[str]:
    """Their last names, where those tell them apart from each other and from other columns."""
    last_names = [key.rpartition(".")[2] for key in keys]
    names = last_names if len(set(last_names)) == len(keys) else keys
    return [
        name if name not in TITLES else key if key not in TITLES else f"setting {key}"
        for name, key in zip(names, keys, strict=True)
    ]


def are_numbered(keys: Sequence[str]) -> bool:
    """Whether so many settings tell the groups apart that tables and figures call them by a number."""
    return len(keys) > MOST_KEYS


def numbers_of(groups: Groups) -> dict[tuple[str, ...], int]:
    """Each group's, by its values."""
    return {values: number for number, values in enumerate(groups, 1)}


def labels_of(groups: Groups, keys: Sequence[str]) -> dict[tuple[str, ...], str]:
    """What figures call each group: its settings, or where these are many, its number, its network and what it has
    otherwise than others of that network."""
    if not are_numbered(keys):
        return {values: name_of(keys, values) for values in groups}
    networks = [place for place, key in enumerate(keys) if key in ("model", "experiment")]
    own_keys = own_columns(groups, keys)
    others = [place for place, key in enumerate(keys) if key in own_keys and place not in networks]
    labels, names = {}, short(keys)
    for values, number in numbers_of(groups).items():
        alike = [each for each in groups if all(each[place] == values[place] for place in networks)]
        telling = [place for place in others if len({each[place] for each in alike}) > 1 and values[place]]
        network = " ".join([str(number), *filter(None, (values[place] for place in networks))])
        own = [values[place] if keys[place] == "data" else f"{names[place]} {values[place]}" for place in telling]
        labels[values] = ", ".join([network, *own])
    return labels


def own_columns(groups: Groups, keys: Sequence[str]) -> list[str]:
    """The settings that have a column each: all, or of many the data set, the network and those that differ most."""
    if not are_numbered(keys):
        return list(keys)
    columns = zip(*groups, strict=True)
    alike = {key: Counter(values).most_common(1)[0][1] for key, values in zip(keys, columns, strict=True)}
    by_use = sorted(keys, key=lambda key: (key not in ("data", "model"), key.startswith("data."), alike[key]))
    return [key for key in keys if key in by_use[: MOST_KEYS - 1]]


def other_settings(groups: Groups, keys: Sequence[str]) -> tuple[list[str], str]:
    """Of the settings without a column those that a group has otherwise than most, and what most have, in words."""
    own = own_columns(groups, keys)
    names = dict(zip(keys, short(keys), strict=True))
    usual = {
        key: Counter(values).most_common(1)[0][0]
        for key, values in zip(keys, zip(*groups, strict=True), strict=True)
        if key not in own
    }
    cells = [
        ", ".join(
            f"{names[key]} {value or 'none'}"
            for key, value in zip(keys, values, strict=True)
            if key in usual and value != usual[key]
        )
        for values in groups
    ]
    return cells, ", ".join(f"{names[key]} {value}" for key, value in usual.items() if value)


def values_of(metric: str, members: Sequence[Run]) -> list[float]:
    """Of the runs that have this metric, and a number for it."""
    values = [member.record["metrics"].get(metric) for member in members]
    return [value for value in values if isinstance(value, (int, float)) and math.isfinite(value)]


def summary_of(metric: str, members: Sequence[Run]) -> Summary:
    tested = {member.record.get("num_tested") for member in members if values_of(metric, [member])}
    num_images = tested.pop() if metric == "test/acc" and len(tested) == 1 else None
    return summary(values_of(metric, members), num_images, is_share=metric.endswith("/acc"))


@dataclass
class Pivot:
    """Means of a metric by two settings.

    rows, columns: the settings' values. names: of these settings, the last that of the columns. groups: by all values.
    """

    metric: str
    names: list[str]
    groups: dict[tuple[str, ...], Summary]

    @property
    def rows(self) -> list[tuple[str, ...]]:
        return list(dict.fromkeys(values[:-1] for values in self.groups))

    @property
    def columns(self) -> list[str]:
        return sorted({values[-1] for values in self.groups}, key=found.in_order)


def metric_of(members: Sequence[Run], cfg: DictConfig) -> str:
    """What was asked for, or that of validation images, for settings are chosen by it; that of the test where no run
    has one."""
    return cfg.metric or ("val/acc" if values_of("val/acc", members) else "test/acc")


def check_metric(metric: str, members: Sequence[Run]) -> None:
    names = sorted({name for member in members for name in member.record["metrics"]})
    known = ", ".join(name for name in names if values_of(name, members)) or "one that a run has"
    refuse_if(not values_of(metric, members), f"no run has a number for {metric}. Got metric={metric}; give {known}")


def pivoted(members: Sequence[Run], settings: Sequence[str], metric: str) -> Pivot:
    check_metric(metric, members)
    keys = found.on_one_data_set(members, settings)  # the two, or the data set before them
    groups = {values: summary_of(metric, each) for values, each in found.group(members, keys).items()}
    return Pivot(metric, short(keys), groups)


def sections(
    groups: Groups, keys: Sequence[str], cfg: DictConfig, members: Sequence[Run], folder: Path
) -> list[Section]:
    """What the page shows of the runs, before the tables. folder: that the page will lie in."""
    metric = "test/acc" if values_of("test/acc", members) else "val/acc"
    name = f"{plots.LONG_NAMES[metric.partition('/')[0]]} accuracy, %"
    shown = []
    of_grid = metric_of(members, cfg)
    if len(settings := list(cfg.pivot or keys)) == 2 and values_of(of_grid, members):
        shown += heat_map(pivoted(members, settings, of_grid))
    scored = {values: each for values, each in groups.items() if values_of(metric, each)}
    if not scored:
        return shown
    labels = labels_of(groups, keys)
    points = []
    for values, each in scored.items():
        one = summary_of(metric, each)
        ends = (100 * one.low, 100 * one.high) if one.interval else (None, None)
        points.append(plots.Point(0, 100 * one.mean, labels[values], "", *ends))
    if len(points) > 1:
        text = f"The mean of each group's runs, and its 95% interval.{left_out(groups, scored, 'groups')}"
        shown.append(Section("Groups compared", text, plots.intervals_figure(points, name), name="groups"))
    most = max((run.record.get("training_flops") or 0 for each in scored.values() for run in each), default=0)
    unit, scale_of_flops = flops_unit(most)
    costs = {
        "parameters": "parameters",
        f"training, {unit}": "training_flops",
        "training, seconds": "train_seconds",
    }
    panels = []
    for xlabel, key in costs.items():
        scale = scale_of_flops if key == "training_flops" else 1
        points = [
            plots.Point(
                scale * run.record[key],
                100 * run.record["metrics"][metric],
                labels[values],
                page_of(run, folder),
            )
            for values, each in scored.items()
            for run in each
            if values_of(metric, [run]) and isinstance(run.record.get(key), (int, float))
        ]
        panels += [plots.cost_figure(points, xlabel, name, [labels[values] for values in scored])] if points else []
    text = f"A dot for each run, which leads to its page, if it has one.{left_out(groups, scored, 'groups')}"
    panels += plots.legend_panel(panels)
    return [*shown, Section("What it costs", text, panels=panels, name="costs")]


def left_out(groups: Groups, scored: Groups, what: str) -> str:
    count = len(groups) - len(scored)
    return f" {count} of {len(groups)} {what} have no such score." if count else ""


def heat_map(pivot: Pivot) -> list[Section]:
    scale = 100 if pivot.metric.endswith("/acc") else 1
    table = np.array(
        [
            [
                scale * one.mean if (one := pivot.groups.get((*row, column))) and one.mean is not None else np.nan
                for column in pivot.columns
            ]
            for row in pivot.rows
        ]
    )
    *of_rows, of_columns = pivot.names
    rows = [", ".join(row) for row in pivot.rows]
    what = f"{pivot.metric}{', %' * (scale == 100)}"
    form = ".1f" if scale == 100 else ".3g"
    figure = plots.heat_map(table, rows, pivot.columns, (of_columns, what), ", ".join(of_rows), form)
    return [Section(f"{', '.join(of_rows)} by {of_columns}", figure=figure, name="grid")]


def page_of(run: Run, folder: Path) -> str:
    """Where its page lies, seen from this folder; empty where it has none."""
    place = run.folder / "page.html"
    if not place.is_file():
        return ""
    return quote(Path(os.path.relpath(place.resolve(), folder.resolve())).as_posix())


def name_of(keys: Sequence[str], values: Sequence[str]) -> str:
    """A group's, by its settings."""
    return ", ".join(f"{key} {value}" for key, value in zip(short(keys), values, strict=True) if value) or "runs"
