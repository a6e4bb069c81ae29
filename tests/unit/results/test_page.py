"""The page of a run, opened in a browser where there is one, and its figures in TensorBoard."""

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from helpers import TINY, record_of
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet import cli
from cifar_resnet.results import page

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
