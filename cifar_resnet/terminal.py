"""What a person reads: in the terminal, and again in the run folder's train.log."""

import contextlib
import logging
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from rich import box, console, get_console, table

from cifar_resnet.quoting import command_line

log = logging.getLogger("cifar_resnet")


class ConsoleHandler(logging.Handler):
    """Prints through rich's console, which keeps a progress bar below what it prints."""

    def emit(self, record: logging.LogRecord) -> None:
        get_console().print(self.format(record), markup=False, highlight=False, soft_wrap=True)


def set_up_logging() -> None:
    """Our lines go to the terminal as they are; from Lightning only warnings, and none about our own choices.

    Of several processes that train one network, only the first speaks.
    """
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers and os.environ.get("LOCAL_RANK", "0") == "0":
        log.addHandler(ConsoleHandler())
    # lightning.pytorch and lightning.fabric set their own level where they are imported later
    for name in ("pytorch", "pytorch.utilities.rank_zero", "fabric", "fabric.utilities.rank_zero"):
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore",
        "Checkpoint directory .* exists and is not empty"  # that of a resumed run
        "|The number of training batches .* is smaller than the logging interval.*"  # epochs are logged all the same
        "|You're resuming from a checkpoint that ended before the epoch ended.*"  # and our batches go on there
        "|Image size .* exceeds limit.*"  # pictures too large are refused, with a line of our own
        "|.*isinstance.treespec, LeafSpec.*",  # Lightning's own affair with torch
    )


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    handler = logging.FileHandler(path) if os.environ.get("LOCAL_RANK", "0") == "0" else logging.NullHandler()
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
    held_out = f"{record['num_val']:,} held out for validation" if record["num_val"] else "none held out"
    rows = {
        "network": f"{record['network']}: {record['parameters']:,} parameters, "
        f"{record['macs']:,} multiply-adds an image",
        "data": f"{record['data']}: {record['num_train']:,} images, {held_out}",
        "device": f"{record['device']}, {record['precision']}",
        "run folder": record["run_dir"],
    }
    return listed(rows) + "\n"


def listed(facts: Mapping[str, object]) -> str:
    """A line for each fact, its name in front."""
    return "\n".join(f"  {name:{max(11, *map(len, facts))}} {text}" for name, text in facts.items())


def summary(record: dict) -> str:
    """What came out, how long it took, and where everything lies."""
    page = Path(record["run_dir"]) / "page.html"
    return listed(summary_facts(record) | ({"page": page} if page.is_file() else {}))


def summary_facts(record: dict) -> dict[str, str]:
    metrics, time = record["metrics"], duration(record["train_seconds"])
    scores = {
        split: f"{metrics[f'{split}/acc']:.2%} accuracy, loss {metrics[f'{split}/loss']:.4f}, "
        f"after epoch {record['epoch']}"
        for split in ("val", "test")
        if f"{split}/acc" in metrics
    }
    run_dir = Path(record["run_dir"])
    command = look_next(run_dir.parent, run_dir)
    return {
        "trained": f"{record['network']} on {record['data']}, {record['epochs']} epochs in {time}, "
        f"{record['images_per_second']:,.0f} images/s",
        "validation": scores.get("val", "none"),
        "test": f"{scores['test']}, the {record['selected']}" if "test" in scores else "left alone",
        "run folder": record["run_dir"],
        **({"look next": command} if command else {}),
    }


def look_next(shown: Path, written: Path) -> str:
    """The command that shows the curves in one folder; empty where nothing has been written to the other."""
    has_curves = any(written.rglob("events.out.tfevents.*"))
    return command_line("tensorboard", "--logdir", shown) if has_curves else ""


def print_table(rows: Sequence[Sequence[str]], footer: Sequence[str] = ()) -> None:
    """The first row is the head; columns of numbers, shares and times are set to the right."""
    grid = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=bool(footer))
    for index, title in enumerate(rows[0]):
        is_number = index > 0 and any(re.match(r"[-+]?\d", row[index]) for row in rows[1:])
        grid.add_column(title, footer[index] if footer else "", justify="right" if is_number else "left", no_wrap=True)
    for row in rows[1:]:
        grid.add_row(*row)
    # a file has no right edge
    (get_console() if get_console().is_terminal else console.Console(width=200)).print(grid)
