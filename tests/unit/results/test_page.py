"""The page of a run, opened in a browser where there is one, and its figures in TensorBoard."""

import html
import io
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, record_of
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet import cli
from cifar_resnet.results import page, plots

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    tiny = [text for text in TINY if not text.startswith("page=")]
    assert cli.train([*tiny, f"run_dir={outputs}/run", "trainer.max_epochs=2"]) == 0
    return outputs / "run"


def test_the_page_is_one_file_that_says_what_the_record_says(run_dir):
    text = (run_dir / "page.html").read_text()
    assert f"{record_of(run_dir)['metrics']['test/acc']:.2%}" in text
    assert text.count("<svg") == 4
    for heading in (
        "Training",
        "Confusion",
        "Class by class",
        "Reliability",
        "Most confident mistakes",
        "Configuration",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert "max_epochs: 2" in text
    assert "<script" not in text
    links = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert all(link.startswith(("#", "data:")) for link in links)  # nothing outside the file


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium to open the page in")
def test_a_browser_shows_its_figures(run_dir, tmp_path):
    # what the page's own layout says of its figures, measured by a script beside it
    text = (
        (run_dir / "page.html")
        .read_text()
        .replace("default-src 'none'", "default-src 'none'; script-src 'unsafe-inline'")
    )
    probe = """<script>addEventListener("load", () => { document.title = JSON.stringify(
        [...document.querySelectorAll("section")].map(s => [s.querySelector("h2").textContent,
        ...[...s.querySelectorAll("svg")].map(f => Math.round(f.getBoundingClientRect().width))])) })</script>"""
    (tmp_path / "probe.html").write_text(text.replace("</body>", f"{probe}</body>"))
    command = [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile"]
    done = subprocess.run(
        [*command, "--dump-dom", "--virtual-time-budget=3000", f"file://{tmp_path}/probe.html"],
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    title = re.search(r"<title>(.*?)</title>", done.stdout, re.DOTALL)[1]
    found = {heading: widths for heading, *widths in json.loads(title.replace("&quot;", '"'))}
    for heading in ("Training", "Confusion", "Reliability", "Most confident mistakes"):
        assert len(found[heading]) == 1
        assert found[heading][0] > 200, found


def test_the_same_figures_stand_in_tensorboard(run_dir):
    events = EventAccumulator(str(run_dir / "tensorboard"), size_guidance={"images": 0})
    events.Reload()
    assert {"curves", "confusion", "reliability", "mistakes"} <= set(events.Tags()["images"])


def test_text_from_a_user_cannot_become_markup(tmp_path):
    page.write(tmp_path / "page.html", "<b>run</b>", {"network": "<script>x</script>"}, [], {"name": "</pre><i>"})
    text = (tmp_path / "page.html").read_text()
    assert "<script>" not in text
    assert "<b>" not in text
    assert "<i>" not in text


def test_page_false_leaves_none(cifar_train, run_dirs):
    assert cifar_train() == 0
    assert not (run_dirs()[0] / "page.html").exists()
    assert (run_dirs()[0] / "predictions.npz").exists()


# what matplotlib, HTML, Markdown, rich and CSV each take for a sign of their own
NAMES = ["$a", "b$", "$x_1^2$", r"\frac{a}{", r"c\$", "<i>&amp;", "d|e", "[red]f", ":cat:", "_g_"]


def texts_in(svg: str) -> list[str]:
    """What is written in a figure, as matplotlib notes beside the outlines of each text that is no mathematics."""
    return [html.unescape(text).strip() for text in re.findall("<!-- (.*?) -->", svg, re.DOTALL)]


def written(figure: Figure) -> list[str]:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg")
    return texts_in(buffer.getvalue())


def test_names_stand_in_figures_as_they_are():
    assert written(plots.confusion_figure(np.eye(10, dtype=int), NAMES))[:10] == NAMES
    captions = [f"{one} → {other}" for one, other in zip(NAMES, reversed(NAMES), strict=True)]
    assert written(plots.mistakes_figure(np.zeros((10, 4, 4, 3), np.uint8), captions)) == captions
    rows = [{"epoch": "1", "val/loss": "1", "val/acc": "0.5", "lr": "0.1"}]
    assert written(plots.runs_figure({name: [rows] for name in NAMES}))[-10:] == NAMES
    assert "x$1$" in written(plots.search_figure([(0, 1.0, 0.5)], (1.0, 0.5), "x$1$", log=True))


def test_a_configuration_with_a_dollar_is_shown_as_it_is(tmp_path):
    page.write(tmp_path / "page.html", "run", {}, [], {"data": {"root": "a${b", "name": "${c}"}})
    assert "root: a${b\n  name: ${c}" in (tmp_path / "page.html").read_text()


@pytest.mark.slow
def test_a_run_whose_classes_have_such_names_has_its_page_and_tables(tmp_path, capsys):
    random = np.random.default_rng(0)
    for half, count in (("train", 4), ("test", 2)):
        for name in NAMES:
            (tmp_path / "$data" / half / name).mkdir(parents=True)
            for place in range(count):
                pixels = random.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "$data" / half / name / f"{place}.png")
    tiny = [text for text in TINY if not text.startswith(("page=", "data"))]
    data = ["data=image_folder", "data.root=$data", "data.num_val=10", "data.batch_size=10"]
    assert cli.train([*tiny, *data, "run_dir=$run"]) == 0
    trained = html.unescape((tmp_path / "$run" / "page.html").read_text())
    assert [name for name in NAMES if name not in trained] == []
    capsys.readouterr()
    assert cli.evaluate(["checkpoint=$run"]) == 0
    out = capsys.readouterr().out
    for text in (html.unescape((tmp_path / "$run" / "page.html").read_text()), out):
        assert [name for name in NAMES if name not in text] == []
    figures = texts_in((tmp_path / "$run" / "page.html").read_text())
    assert set(NAMES) < set(figures)
    assert cli.export(["checkpoint=$run", "formats=[safetensors]"]) == 0
    card = (tmp_path / "$run" / "export" / "README.md").read_text()
    assert "&#60;i&#62;&#38;amp;, [red]f, " in card
