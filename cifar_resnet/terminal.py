"""What a person reads: in the terminal, and again in the run folder's train.log."""

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import rich
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial

    from cifar_resnet.design import Design
    from cifar_resnet.models.size import Part

log = logging.getLogger("cifar_resnet")


class ConsoleHandler(logging.Handler):
    """Prints through rich's console, which keeps a progress bar below what it prints."""

    def emit(self, record: logging.LogRecord) -> None:
        rich.get_console().print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def set_up_logging() -> None:
    """Our lines go to the terminal as they are; from Lightning only warnings, and none about our own choices.

    Of several processes that train one network, only the first speaks.
    """
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers and os.environ.get("LOCAL_RANK", "0") == "0":
        log.addHandler(ConsoleHandler())
    for name in ("lightning.pytorch", "lightning.fabric"):  # which set their own level where they are imported later
        for logger in (name, f"{name}.utilities.rank_zero"):
            logging.getLogger(logger).setLevel(logging.WARNING)
    for message in (
        ".*does not have many workers.*",  # batches are drawn on the device: there is nothing for workers to do
        "Checkpoint directory .* exists and is not empty",  # that of a resumed run
        "The number of training batches .* is smaller than the logging interval.*",  # epochs are logged all the same
        "You're resuming from a checkpoint that ended before the epoch ended.*",  # and our batches go on there
        "Image size .* exceeds limit.*",  # pictures too large are refused, with a line of our own
        ".*isinstance.treespec, LeafSpec.*",  # Lightning's own affair with torch
    ):
        warnings.filterwarnings("ignore", message=message)


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    if os.environ.get("LOCAL_RANK", "0") != "0":
        yield
        return
    handler = logging.FileHandler(path)
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s", "%H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


def duration(seconds: float) -> str:
    """ "0:07", "12:30" or "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def announcement(record: dict) -> str:
    """What is about to be trained, on what, and where it will lie."""
    held_out = f", {record['num_val']:,} held out for validation" if record["num_val"] else ", none held out"
    size = f"{record['parameters']:,} parameters, {record['macs']:,} multiply-adds an image"
    rows = {
        "network": f"{record['network']}: {size}",
        "data": f"{record['data']}: {record['num_train']:,} images{held_out}",
        "device": f"{record['device']}, {record['precision']}",
        "run folder": record["run_dir"],
    }
    return listed(rows) + "\n"


def listed(facts: Mapping[str, object]) -> str:
    """A line for each fact, its name in front."""
    width = max(11, *map(len, facts))
    return "\n".join(f"  {name:{width}} {text}" for name, text in facts.items())


def summary(record: dict) -> str:
    """What came out, how long it took, and where everything lies."""
    page = Path(record["run_dir"]) / "page.html"
    return listed(summary_facts(record) | ({"page": page} if page.is_file() else {}))


def summary_facts(record: dict) -> dict[str, str]:
    metrics = record["metrics"]

    def scores(split: str) -> str:
        return f"{metrics[f'{split}/acc']:.2%} accuracy, loss {metrics[f'{split}/loss']:.4f}"

    network, epochs, epoch = record["network"], record["epochs"], record["epoch"]
    time, speed = duration(record["train_seconds"]), record["images_per_second"]
    return {
        "trained": f"{network} on {record['data']}, {epochs} epochs in {time}, {speed:,.0f} images/s",
        "validation": f"{scores('val')}, after epoch {epoch}" if "val/acc" in metrics else "none",
        "test": f"{scores('test')}, after epoch {epoch}, the {record['selected']}"
        if "test/acc" in metrics
        else "left alone",
        "run folder": record["run_dir"],
        "look next": f"tensorboard --logdir {Path(record['run_dir']).parent}",
    }


def print_table(table: Table) -> None:
    console = rich.get_console()
    if not console.is_terminal:  # a file has no right edge
        console = Console(width=200)
    console.print(table)


def rows_table(rows: Sequence[Sequence[str]]) -> Table:
    """The first row is the head; all columns but the first hold numbers."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for index, title in enumerate(rows[0]):
        table.add_column(title, justify="right" if index else "left", no_wrap=True)
    for row in rows[1:]:
        table.add_row(*row)
    return table


def size_table(parts: list["Part"]) -> Table:
    """A row for each part of a network, and their sum."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, show_footer=True)
    parameters, macs = sum(part.parameters for part in parts), sum(part.macs for part in parts)
    table.add_column("", footer="total")
    table.add_column("output", justify="right")
    table.add_column("parameters", f"{parameters:,}", justify="right")
    table.add_column("share", justify="right")
    table.add_column("multiply-adds", f"{macs:,}", justify="right")
    table.add_column("share", justify="right")
    for part in parts:
        shape = " x ".join(str(side) for side in part.output_shape)
        shares = f"{part.parameters / parameters:.1%}", f"{part.macs / max(1, macs):.1%}"
        table.add_row(part.name, shape, f"{part.parameters:,}", shares[0], f"{part.macs:,}", shares[1])
    return table


def design_table(designs: list["Design"], max_params: float) -> Table:
    """A row for each network that cifar-design proposes."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("experiment", "widths", "blocks"):
        table.add_column(title)
    for title in ("parameters", "of the limit", "multiply-adds"):
        table.add_column(title, justify="right")
    for name, settings, parameters, macs in designs:
        widths, blocks = str(settings["widths"]), str(settings["blocks"])
        table.add_row(name, widths, blocks, f"{parameters:,}", f"{parameters / max_params:.1%}", f"{macs:,}")
    return table


def search_table(trials: list["FrozenTrial"], keys: list[str], in_rounds: bool) -> Table:
    """A row for each trial of a search."""
    from cifar_resnet.search import DIVERGED, ROUND

    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    for title in ("trial", *(["round"] if in_rounds else []), *keys, "validation", ""):
        table.add_column(title, justify="right")
    for trial in trials:
        values = [f"{value:.4g}" if isinstance(value, float) else str(value) for value in map(trial.params.get, keys)]
        accuracy = "" if trial.value is None else f"{trial.value:.2%}"
        ended = "diverged" if DIVERGED in trial.user_attrs else "ended early"
        state = {"COMPLETE": "", "PRUNED": ended, "FAIL": "failed", "RUNNING": "not finished"}[trial.state.name]
        round_ = [str(trial.user_attrs[ROUND] + 1)] if in_rounds and ROUND in trial.user_attrs else [""] * in_rounds
        table.add_row(str(trial.number + 1), *round_, *values, accuracy, state)
    return table


def sweep_table(records: list[tuple[list[str], dict | None]]) -> Table:
    """A row for each job: what it varied, how well it did."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False)
    keys = list(dict.fromkeys(override.partition("=")[0] for varying, _ in records for override in varying))
    for key in keys:
        table.add_column(key)
    for title in ("validation", "test", "parameters", "time"):
        table.add_column(title, justify="right")
    table.add_column("folder")
    for varying, record in records:
        values = dict(override.split("=", 1) for override in varying)
        if record is None:
            results = ["failed", "", "", "", ""]
        else:
            metrics = record["metrics"]
            val = f"{metrics['val/acc']:.2%}" if "val/acc" in metrics else ""
            test = f"{metrics['test/acc']:.2%}" if "test/acc" in metrics else ""
            results = [val, test, f"{record['parameters']:,}"]
            results += [duration(record["train_seconds"]), Path(record["run_dir"]).name]
        table.add_row(*(values[key] for key in keys), *results)
    return table
