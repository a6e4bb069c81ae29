"""What the tests share beside the fixtures: a tiny training, what runs leave, a hostile picture, an early end."""

import csv
import html
import json
import re
import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

TINY = (
    "data=synthetic", "data.num_train=240", "data.num_val=40", "data.num_test=50", "data.batch_size=40",
    "model=resnet_cifar", "model.depth=8", "model.widths=[4,8,8]", "trainer.max_epochs=1", "precision=32-true",
    "page=false",
)  # fmt: skip

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def write_files(folder: Path, files: dict[str, str]) -> None:
    """Texts by their names, in folders of their own."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def record_of(run_dir: Path) -> dict:
    return json.loads((run_dir / "result.json").read_text())


def rows_of(run_dir: Path) -> list[dict]:
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def without_speed(scores: dict) -> dict:
    """Of an epoch or a record those that another training has as well."""
    return {name: value for name, value in scores.items() if name != "train/images_per_second"}


def rows_without_speed(run_dir: Path) -> list[dict]:
    return [*map(without_speed, rows_of(run_dir))]


def last_of(run_dir: Path) -> dict:
    return torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)


def weights_of(run_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    """In the checkpoint of this name."""
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


def assert_equal(a, b, where="checkpoint"):
    """Plain data and tensors, equal to the last bit."""
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_equal(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for index, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_equal(x, y, f"{where}[{index}]")
    else:
        assert a == b, where


def by_pairs(inside: Iterable[float], outside: Sequence[float]) -> float:
    """The area under the ROC curve: how often one inside scores above one outside."""
    return np.mean([[(a > b) + 0.5 * (a == b) for b in outside] for a in inside])


def png_that_claims(width: int, height: int) -> bytes:
    """A picture with so many pixels, by its header."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def one_in_four_quick(cases: Sequence[object]) -> list[object]:
    """For tests that compose a whole configuration in each case, which takes a quarter of a second."""
    return [pytest.param(case, marks=[pytest.mark.slow] * (place % 4 > 0)) for place, case in enumerate(cases)]


class Asks(Callback):
    """Asks the training to stop at the ends of these epochs, counted from 1, and after these steps."""

    def __init__(self, epochs: list[int] | None = None, steps: list[int] | None = None):
        self.epochs, self.steps = epochs or [], steps or []

    def on_train_batch_end(self, trainer: Trainer, *others: object) -> None:
        trainer.should_stop |= trainer.global_step in self.steps

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.should_stop |= trainer.current_epoch + 1 in self.epochs


# what is wider than its screen or ends beyond it, and how wide the figures and how many pictures in the first row are
PROBE = """<script>addEventListener("load", () => {
    const frame = document.querySelector("iframe"), page = frame.contentDocument, right = frame.clientWidth;
    const wide = [...page.querySelectorAll("body *")].filter(e => e.getBoundingClientRect().right > right + 0.5)
        .map(e => e.tagName + " " + e.textContent.slice(0, 40));
    const widths = [...page.querySelectorAll("svg")].map(e => Math.round(e.getBoundingClientRect().width));
    const tops = [...page.querySelectorAll(".pictures")].map(
        e => [...e.children].filter(f => f.offsetTop == e.children[0].offsetTop).length);
    document.title = JSON.stringify({wide, widths, tops, scrolls: page.documentElement.scrollWidth > right});
})</script>"""


def seen_in_a_browser(page_file: Path, width: int, folder: Path) -> dict:
    """By `PROBE`, in a frame of so many pixels: a browser's own window is never as narrow as a phone's."""
    text = html.escape(page_file.read_text())
    frame = f'<iframe srcdoc="{text}" style="border: 0; width: {width}px; height: 900px"></iframe>'
    (folder / "probe.html").write_text(f"<!doctype html><title></title><body>{frame}{PROBE}</body>")
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={folder}/profile"]
    done = subprocess.run(
        [*command, "--dump-dom", "--virtual-time-budget=5000", f"file://{folder}/probe.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return json.loads(html.unescape(re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]))


def note_best(trainer: Trainer, pl_module: LightningModule) -> None:
    """What programs written for Lightning ask."""
    best = trainer.checkpoint_callback.best_model_path
    Path(trainer.default_root_dir, "best.txt").write_text(best)
