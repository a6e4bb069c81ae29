"""What a person reads: in the terminal, and again in the run folder's train.log; and in Markdown."""

import contextlib
import itertools
import logging
import math
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

from rich import box, console, get_console, table
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from cifar_resnet.errors import as_usage_error
from cifar_resnet.quoting import command_line

log = logging.getLogger("cifar_resnet")
LEAST = 8  # columns of the terminal that a text gets, however narrow that is


class ConsoleHandler(logging.Handler):
    """Prints through rich's console, which keeps a progress bar below what it prints."""

    def emit(self, record: logging.LogRecord) -> None:
        get_console().print(self.format(record), markup=False, highlight=False, emoji=False, soft_wrap=True)


def set_up_logging(only_warnings: bool = False) -> None:
    """Our lines go to the terminal as they are; from Lightning only warnings, and none about our own choices.

    only_warnings: of our own lines as well.
    """
    log.setLevel(logging.INFO)
    log.propagate = False
    if not log.handlers:
        log.addHandler(ConsoleHandler(logging.WARNING if only_warnings else logging.NOTSET))
    # lightning.pytorch and lightning.fabric set their own level where they are imported later
    for name in (
        "pytorch", "pytorch.utilities.rank_zero", "pytorch.accelerators.cuda",
        "pytorch.trainer.connectors.checkpoint_connector", "fabric", "fabric.utilities.rank_zero",
        "fabric.utilities.distributed",
    ):  # fmt: skip
        logging.getLogger(f"lightning.{name}").setLevel(logging.WARNING)
    warnings.filterwarnings(
        "ignore",
        "Checkpoint directory .* exists and is not empty"  # that of a resumed run
        "|The number of training batches .* is smaller than the logging interval.*"  # epochs are logged all the same
        "|You're resuming from a checkpoint that ended before the epoch ended.*"  # and our batches go on there
        "|Image size .* exceeds limit.*"  # pictures too large are refused, with a line of our own
        "|The .srun. command is available on your system but is not used.*"  # as on a cluster's login node
        "|Found .* in eval mode at the start of training.*"  # which frozen parts are meant to be
        "|.*isinstance.treespec, LeafSpec.*",  # Lightning's own affair with torch
    )


def be_silent() -> None:
    """Of several processes that train one network only the first speaks, and this is another."""
    log.handlers[:] = [logging.NullHandler()]
    set_up_logging()


def speak() -> None:
    """After all, for this process works on its own."""
    log.handlers.clear()
    set_up_logging()


def is_silent() -> bool:
    return any(isinstance(handler, logging.NullHandler) for handler in log.handlers)


class TimedLines(logging.Formatter):
    """The time before a message, and its further lines below its first."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        first, *others = record.message.strip("\n").split("\n")
        below = " " * len(record.asctime)
        return "\n".join([f"{record.asctime}  {first}", *(f"{below}  {line}".rstrip() for line in others)])


@contextlib.contextmanager
def log_to(path: Path) -> Iterator[None]:
    with as_usage_error():
        handler = logging.NullHandler() if is_silent() else logging.FileHandler(path)
    handler.setFormatter(TimedLines("%(asctime)s", "%H:%M:%S"))
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        handler.close()


UNITS = {"PFLOP": 1e15, "TFLOP": 1e12, "GFLOP": 1e9}


def duration(seconds: float) -> str:
    """ "0:07", "12:30" or "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


def flops_unit(flops: float) -> tuple[str, float]:
    """The unit that such a number is said in, and what to multiply with: a PFLOP is 1e15 of them."""
    return next(((name, 1 / size) for name, size in UNITS.items() if flops >= size / 100), ("FLOP", 1.0))


def arithmetic(flops: float) -> str:
    """Such as "0.32 PFLOP"."""
    unit, scale = flops_unit(flops)
    return f"{scale * flops:.3g} {unit}"


def part(record: dict, split: str) -> str:
    """Such as "4 of 40 test images", where a run saw no more of a split; empty where it saw all, or none."""
    seen, whole, name = {
        "train": ("num_trained", "num_train", "training"),
        "val": ("num_validated", "num_val", "validation"),
        "test": ("num_tested", "num_test", "test"),
    }[split]
    count, all_there = record.get(seen), record.get(whole)  # records of earlier versions do not say
    return f"{count:,} of {all_there:,} {name} images" if count and all_there and count < all_there else ""


FEW = 100  # validation images


def announcement(record: dict) -> str:
    """What is about to be trained, on what, and where it will lie."""
    count = record["num_val"]
    held_out = f"{count:,} held out for validation" if count else "none held out"
    if 0 < count < FEW:
        held_out += f", so few that chance moves their accuracy by up to {98 / math.sqrt(count):.0f} points either way"
    parts = " and ".join(filter(None, (part(record, split) for split in ("train", "val"))))
    rows = {
        "network": f"{record['network']}: {record['parameters']:,} parameters, "
        f"{record['macs']:,} multiply-adds an image",
        "data": f"{record['data']}: {record['num_train']:,} images, {held_out}"
        + (f", {kept:,} kept for the test" if (kept := record.get("num_test")) else "")
        + (f"; an epoch sees {parts}" if parts else "")
        + (f"; {record['resize']}" if record.get("resize") else "")
        + (f"; trained on {record['selection']}" if record.get("selection") else ""),
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
        + (
            f"balanced {metrics[name]:.2%}, macro F1 {metrics[f'{split}/macro_f1']:.2%}, "
            if (name := f"{split}/balanced_acc") in metrics
            else ""
        )
        + (f"on {seen}, " if (seen := part(record, split)) else "")
        + f"after epoch {record['epoch']}"
        for split in ("val", "test")
        if f"{split}/acc" in metrics
    }
    run_dir = Path(record["run_dir"])
    command = look_next(run_dir.parent, run_dir)
    return {
        "trained": f"{record['network']} on {record['data']}, {record['epochs']} epoch{'s' * (record['epochs'] != 1)}"
        + (f" of {seen}" if (seen := part(record, "train")) else "")
        + f" in {time}, {record['images_per_second']:,.0f} images/s"
        + (f", {arithmetic(flops)}" if (flops := record.get("training_flops")) else ""),
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
    """The first row is the head; columns of numbers, shares and times are set to the right.

    Where the terminal is too narrow, titles are broken, then paths shortened, then the rest broken at its blanks, and
    columns set closer. No number is cut: rather than that, the table is wider than the terminal.
    """
    columns = [list(map(printable, column)) for column in zip(*rows, *[footer] * bool(footer), strict=True)]
    screen = get_console().width if get_console().is_terminal else math.inf  # a file has no right edge
    for gap in (3, 2, 1):
        edges = gap * (len(columns) - 1) + 2
        found, widths = zip(*map(fitted, columns, fitted_widths(columns, screen - edges)), strict=True)
        if sum(widths) + edges <= screen:
            break
    padding = (0, int(gap > 1), 0, int(gap > 2))  # beside the border, which is a blank
    grid = table.Table(box=box.SIMPLE_HEAD, pad_edge=False, show_footer=bool(footer), padding=padding)
    grid.width = sum(widths) + edges
    for place, (column, width) in enumerate(zip(found, widths, strict=True)):
        is_right = place > 0 and any(re.match(r"[-+]?\d", cell) for cell in column[1 : len(rows)])
        foot = Text(column[-1]) if footer else ""
        grid.add_column(Text(column[0]), foot, justify="right" if is_right else "left", width=width, overflow="fold")
    for row in itertools.islice(zip(*found, strict=True), 1, len(rows)):
        grid.add_row(*map(Text, row))  # a mere str is rich's markup, and :cat: in it a picture
    get_console().print(grid, crop=False)


def printable(text: str) -> str:
    """On one line, without what would move the cursor or is no character at all."""
    return "".join(
        each if each.isprintable() else " " if each.isspace() else "\N{REPLACEMENT CHARACTER}" for each in text
    )


def fitted_widths(columns: Sequence[Sequence[str]], screen: float) -> list[int]:
    """What each column, its title first, needs, or where all need more than the screen has, what it can do with."""
    titles = [widest(column[0].split()) for column in columns]
    cells = [widest(column[1:]) for column in columns]
    least = [fitted(column, LEAST)[1] for column in columns]
    paths = [few if is_text(column) and "/" in "".join(column[1:]) else many
             for column, few, many in zip(columns, least, cells, strict=True)]  # fmt: skip
    widths = list(map(widest, columns))
    for floors in (cells, paths, least):
        floors = list(map(max, titles, map(min, cells, floors)))
        while sum(widths) > screen and (wide := [place for place, width in enumerate(widths) if width > floors[place]]):
            widths[max(wide, key=widths.__getitem__)] -= 1
    return widths


def widest(texts: Iterable[str]) -> int:
    return max((cell_len(line) for text in texts for line in text.split("\n")), default=0)


def is_text(column: Sequence[str]) -> bool:
    """Whether none of its cells is a number, or begins with one: 83.57%, 1:05, 83.57% ± 0.22%."""
    return not any(re.match(r"[-+]?\d[\d.,:%]*(e[-+]?\d+)?( |$)", cell) for cell in column[1:])


def words_of(cell: str) -> list[str]:
    """What is not broken over lines: of a mean ± deviation, or of the ends of an interval, two parts."""
    return [cell] if "/" in cell else re.split(r" (?![\d.,]+%?$)", cell)


def in_parts(name: str) -> str:
    """A line for each part of a name such as depth-8_lr-0.05."""
    return re.sub(r"(?<=[^_]_)(?=[^_])", "\n", name)


def fitted(column: Sequence[str], width: int) -> tuple[list[str], int]:
    """Its numbers that are too wide broken at their blanks, its names after each _, its texts shortened where that
    would not be enough.

    These no more than they can still be told apart: then its width is more than that.
    """
    title, *cells = column
    if widest(cells) <= width:
        return list(column), width
    if not is_text(column):
        cells = ["\n".join(words_of(cell)) if cell_len(cell) > width else cell for cell in cells]
    elif not any("/" in cell for cell in cells) and widest(parts := list(map(in_parts, cells))) <= max(
        width, 2 * LEAST
    ):
        cells = parts
    elif widest(word for cell in cells for word in words_of(cell)) > width:
        comparable = all("/" in cell for cell in cells) and len(set(map(os.path.isabs, cells))) == 1
        folder = os.path.commonpath(map(os.path.dirname, cells)) if comparable else ""
        shorter = [f"…{cell.removeprefix(folder)}" if folder.strip("/") else cell for cell in cells]
        cells = cut_apart(shorter, width)
    else:
        return list(column), width
    return [title, *cells], max(widest(cells), widest(title.split()))


def cut(text: str, width: int, share: float) -> str:
    """Where it is too wide, with an ellipsis; this share of what is kept stands before it."""
    head, tail = int((width - 1) * share), width - 1 - int((width - 1) * share)
    return text if cell_len(text) <= width else f"{set_cell_size(text, head)}…{set_cell_size(text[::-1], tail)[::-1]}"


def cut_apart(texts: Sequence[str], width: int) -> list[str]:
    """Cut where they are wider than this, but no more than they can still be told apart."""
    shares = (1 / 3, 1 / 2, 2 / 3, 0)  # of what is kept, before the cut
    tries = ([cut(text, size, share) for text in texts] for size in itertools.count(width) for share in shares)
    return next(each for each in tries if len(set(each)) == len(set(texts)))


def markdown_table(rows: Sequence[Sequence[str]]) -> str:
    """The first row is the head; all columns but the first are set to the right."""
    head, *body = [list(map(in_markdown, row)) for row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in [head, ["---"] + ["---:"] * (len(head) - 1), *body])


def in_markdown(text: str) -> str:
    """A name as it is, in a table as well: what Markdown, or mathematics in it, would take for a sign of its own."""
    return re.sub(r"[\\`*~<>&$|]|\](?=[(\[:])|\b_|_\b", lambda found: f"&#{ord(found[0])};", printable(text))


@contextlib.contextmanager
def bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """How far something has come, on stderr, until it is done; nothing where that is no terminal.

    Gives what is to be called with how many more of `total` are done.
    """
    from rich import progress  # which takes as long as all of rich that is imported above

    stderr = console.Console(stderr=True)
    is_shown = stderr.is_terminal and not is_silent()
    with progress.Progress(console=stderr, transient=True, disable=not is_shown) as shown:
        task = shown.add_task(title, total=total)
        yield lambda count: shown.advance(task, count)
