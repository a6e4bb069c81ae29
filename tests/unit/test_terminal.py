"""What is printed: tables that keep their numbers however narrow the terminal, and names as they are."""

import io
import logging
import re

import pytest
from rich.console import Console

from cifar_resnet import terminal
from cifar_resnet.sweep import table_of

SWEEP = "outputs/train/sweep-lr-depth-9a5610"
RUNS = [f"{SWEEP}/2026-11-20_16-19-{seed}0-lr-0.{lr}_depth-20/seed-{seed}" for lr in (1, 2) for seed in (0, 1)]
RUN_TABLE = [
    ["run", "depth", "lr", "seed", "validation", "test", "epoch", "time", "device"],
    *([run, "20", "0.1", run[-1], "84.18%", f"83.{place}7%", "12 of 15", "1:05:24", "NVIDIA H100 80GB HBM3"]
      for place, run in enumerate(RUNS)),
]  # fmt: skip
GROUP_TABLE = [
    ["depth", "lr", "n", "validation", "test", "95% interval", "parameters", "time", "tested epoch"],
    ["20", "0.1", "5", "84.18% ± 0.42%", "83.57% ± 0.22%", "83.29% … 83.84%", "269,722", "5:24", "best"],
    ["110", "0.1", "5", "94.18% ± 0.42%", "93.57% ± 0.22%", "93.29% … 93.84%", "269,722 … 300,000", "15:24", "best"],
]  # fmt: skip
RECORD = {"metrics": {"val/acc": 0.8418, "test/acc": 0.8357}, "parameters": 269_722, "train_seconds": 3924.0}
SWEEP_TABLE = table_of([(["model=resnet20", f"optimizer.lr=0.{lr}"], RECORD | {"run_dir": run})
                        for lr, run in enumerate(RUNS)])  # fmt: skip
MEMBER_TABLE = [
    ["member", "accuracy", "loss", "ensemble accuracy", "ensemble loss", "calibrated loss"],
    *([run.replace("/", "-"), "83.20%", "0.4907", "84.68%", "0.4586", "0.4559"] for run in RUNS),
]


@pytest.fixture
def printed(monkeypatch):
    """What `print_table` shows in a terminal of this width; None: in a file."""

    def show(rows: list[list[str]], width: int | None, footer: tuple[str, ...] = ()) -> str:
        file = io.StringIO()
        screen = {"width": width, "force_terminal": True, "color_system": None} if width else {}
        monkeypatch.setattr(terminal, "get_console", lambda: Console(file=file, **screen))
        terminal.print_table(rows, footer)
        return file.getvalue()

    return show


@pytest.mark.parametrize("width", [80, 100, 140, None])
@pytest.mark.parametrize(
    "rows", [RUN_TABLE, GROUP_TABLE, SWEEP_TABLE, MEMBER_TABLE], ids=["runs", "groups", "sweep", "members"]
)
def test_a_table_keeps_its_numbers_and_its_rows_apart(rows, width, printed):
    text = printed(rows, width)
    lines = text.splitlines()
    assert width is None or max(map(len, lines)) <= width
    for number in {part for row in rows[1:] for cell in row[3:] for part in re.findall(r"\d[\d.,:]*%?", cell)}:
        assert number in text
    first = {line[: line.index("%")] for line in lines if "%" in line and rows is not GROUP_TABLE}
    assert rows is GROUP_TABLE or len(first) == len(rows) - 1
    assert "/s" not in text or "seed-1" in text  # what is cut of a path is not its end


def test_a_file_has_no_right_edge(printed):
    rows = [["run", "test"], [f"{'a long way/' * 40}run", "83.57%"]]
    assert rows[1][0] in printed(rows, None)


def test_more_than_a_terminal_can_hold_is_wider_than_it(printed):
    numbers = [f"{place}.57%" for place in range(10, 40)]
    text = printed([["lr", *map(str, range(30))], ["0.1", *numbers]], 80)
    assert all(number in text for number in numbers)


@pytest.mark.parametrize("width", [40, None])
def test_relative_and_absolute_paths_stand_in_one_column(width, printed):
    paths = ["outputs/train/2026-11-28_10-00-00-depth-8/run", "/data/other/outputs/train/2026-11-28_10-00-00/run"]
    text = printed([["run", "test"], *([path, "83.57%"] for path in paths)], width)
    assert text.count("83.57%") == 2


def test_folders_of_a_sweep_are_broken_and_not_shortened(printed):
    folders = [f"depth-{depth}_lr-{lr}" for depth in (8, 14) for lr in (0.05, 0.2)]
    rows = [
        [*folder.replace("-", "_").split("_")[1::2], "53.21%", "52.11%", "75,290", "0:30", folder] for folder in folders
    ]
    text = printed([["model.depth", "optimizer.lr", "validation", "test", "parameters", "time", "folder"], *rows], 80)
    assert "…" not in text
    column = "".join(line[-12:].strip() for line in text.splitlines())
    assert "".join(folders) in column


def test_names_are_no_markup_and_move_no_cursor(printed):
    names = ["[red]cat[/red]", ":cat:", "[/]", "a\x1b[2Jb\nc", "日本"]
    text = printed([["class", "images"], *([name, "1"] for name in names)], 80, ("[b]", "5"))
    for name in ("[red]cat[/red]", ":cat:", "[/]", "[b]", "日本"):
        assert name in text
    assert "\x1b" not in text
    assert "a\N{REPLACEMENT CHARACTER}[2Jb c" in text


def test_lines_are_printed_as_they_are(monkeypatch):
    file = io.StringIO()
    monkeypatch.setattr(terminal, "get_console", lambda: Console(file=file, force_terminal=True, width=20))
    record = terminal.logging.LogRecord("x", 20, "x", 1, "outputs/:cat:/[red]/a long way to go", None, None)
    terminal.ConsoleHandler().emit(record)
    assert file.getvalue() == "outputs/:cat:/[red]/a long way to go\n"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("resnet_cifar", "resnet_cifar"),
        ("a|b", "a&#124;b"),
        ("$x^2$", "&#36;x^2&#36;"),
        ("<i>&amp;", "&#60;i&#62;&#38;amp;"),
        (r"c:\d", "c:&#92;d"),
        ("*b* _i_ `c`", "&#42;b&#42; &#95;i&#95; &#96;c&#96;"),
        ("[a](b)", "[a&#93;(b)"),
        ("[16, 32]", "[16, 32]"),
        ("a\nb", "a b"),
    ],
)
def test_a_name_in_markdown(name, shown):
    assert terminal.in_markdown(name) == shown
    assert terminal.markdown_table([["class", "n"], [name, "1"]]).splitlines()[2] == f"| {shown} | 1 |"


def test_a_log_has_the_time_before_each_message_and_its_lines_below_each_other():
    formatter = terminal.TimedLines("%(asctime)s", "%H:%M:%S")
    lines = formatter.format(logging.makeLogRecord({"msg": "\n  trained %s\n\n  test\n", "args": ("a",)})).split("\n")
    assert re.fullmatch(r"\d\d:\d\d:\d\d    trained a", lines[0])
    assert lines[1:] == ["", " " * 12 + "test"]


@pytest.mark.parametrize(("count", "is_said"), [(0, False), (7, True), (100, False)])
def test_that_validation_images_are_few_is_said_before_the_training(count, is_said):
    record = RECORD | {"num_val": count, "num_train": 1000, "macs": 1, "precision": "32-true", "run_dir": "r"}
    record |= {"network": "resnet20", "data": "pets", "device": "a test"}
    text = terminal.announcement(record)
    assert (
        "chance moves their accuracy by up to 37 points either way" in text
    ) == is_said  # 2 standard errors of a half


@pytest.mark.parametrize(
    ("flops", "text"),
    [(0, "0 FLOP"), (5e6, "5e+06 FLOP"), (2.5e7, "0.025 GFLOP"), (2e12, "2 TFLOP"), (9e12, "9 TFLOP"),
     (3.2e14, "0.32 PFLOP"), (4.9e15, "4.9 PFLOP")],
)  # fmt: skip
def test_arithmetic_is_said_in_a_unit_that_fits(flops, text):
    assert terminal.arithmetic(flops) == text
