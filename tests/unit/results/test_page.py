"""The page of a run, opened in a browser where there is one, and its figures in TensorBoard."""

import html
import io
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import BROWSER, TINY, record_of, seen_in_a_browser
from matplotlib.figure import Figure
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_resnet import cli
from cifar_resnet.callbacks.pictures import captions_of
from cifar_resnet.data import Synthetic
from cifar_resnet.results import page, plots, tiles


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    outputs = tmp_path_factory.mktemp("outputs")
    tiny = [text for text in TINY if not text.startswith("page=")]
    assert cli.train([*tiny, f"run_dir={outputs}/run", "trainer.max_epochs=2"]) == 0
    return outputs / "run"


def test_the_page_is_one_file_that_says_what_the_record_says(run_dir):
    text = (run_dir / "page.html").read_text()
    assert f"{record_of(run_dir)['metrics']['test/acc']:.2%}" in text
    assert text.count("<svg") == 6  # of them three curves
    for heading in (
        "Training",
        "Confusion",
        "Class by class",
        "Reliability",
        "Calibration",
        "If it may decline to answer",
        "Most confident mistakes",
        "Augmented images",
        "Configuration",
    ):
        assert f"<h2>{heading}</h2>" in text
    assert "max_epochs: 2" in text
    assert "<script" not in text
    links = re.findall(r'(?:src|href)="([^"]+)"', text)
    assert all(link.startswith(("#", "data:")) for link in links)  # nothing outside the file


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium to open the page in")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_screen_and_curves_stack_on_a_phone(run_dir, tmp_path, width):
    seen = seen_in_a_browser(run_dir / "page.html", width, tmp_path)
    assert seen["wide"] == []
    assert not seen["scrolls"]
    assert len(seen["widths"]) == 6
    assert min(seen["widths"]) > 240
    assert seen["tops"] == [3, 3] if width == 390 else min(seen["tops"]) > 5


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
    figures = re.findall("<text [^>]*>(.*?)</text>", (tmp_path / "$run" / "page.html").read_text())
    assert set(NAMES) < {html.unescape(text).strip() for text in figures}
    assert cli.export(["checkpoint=$run", "formats=[safetensors]"]) == 0
    card = (tmp_path / "$run" / "export" / "README.md").read_text()
    assert "&#60;i&#62;&#38;amp;, [red]f, " in card


def test_an_augmented_batch_is_enlarged_and_says_its_classes(run_dir, tmp_path):
    with Image.open(run_dir / "augmented_batch.png") as whole:
        assert min(whole.size) > 6 * 96
    shown = tiles.read(run_dir / "augmented_batch.png")
    assert len(shown) == 40
    assert {each.title for each in shown} <= set(Synthetic.classes)
    assert all(each.pixels.shape == (32, 32, 3) for each in shown)
    assert shown[3].src in (run_dir / "page.html").read_text()
    assert tiles.read(tmp_path / "none.png") == []
    Image.new("RGB", (9, 9)).save(tmp_path / "other.png")
    assert tiles.read(tmp_path / "other.png") == []


@pytest.mark.parametrize("shape", [(5, 32, 32), (3, 40, 28), (2, 200, 200), (1, 8, 8)])
def test_tiles_are_read_as_they_were_written(tmp_path, shape):
    images = np.random.default_rng(0).integers(256, size=(*shape, 3), dtype=np.uint8)
    captions = [["a", "b" * 300, "$c$", "飛行機", ""][place] for place in range(len(images))]
    tiles.write(tmp_path / "tiles.png", images, captions)
    found = tiles.read(tmp_path / "tiles.png")
    assert [each.title for each in found] == captions
    assert all(np.array_equal(each.pixels, image) for each, image in zip(found, images, strict=True))


def test_mixed_images_say_the_shares_of_their_classes():
    labels = torch.tensor([[1.0, 0, 0], [0.3, 0.7, 0], [0.001, 0.0, 0.999]])
    assert captions_of(labels, ["cat", "dog", "owl"]) == ["cat", "dog 70%, cat 30%", "owl"]
    assert captions_of(torch.tensor([2.0, 0.0]), ["cat", "dog", "owl"]) == ["owl", "cat"]


def test_names_of_any_length_and_script_stay_text_and_are_cut(tmp_path, recwarn):
    names = ["飛行機のとても長い名前なんですけれど", "x" * 200, "кошка", "a$b$"]
    figure = plots.confusion_figure(np.eye(4, dtype=int), names)
    section = page.Section("Confusion", figure=figure, table=[["class"], *([name] for name in names)], name="confusion")
    page.write(tmp_path / "page.html", "run", {}, [section])
    text = html.unescape((tmp_path / "page.html").read_text())
    shown = [each.strip() for each in re.findall("<text [^>]*>(.*?)</text>", text)]
    assert {"кошка", "a$b$"} <= set(shown)
    assert any(each.startswith("飛行機") and each.endswith("れど") and "…" in each for each in shown)
    assert max(map(len, shown)) <= 18
    assert "x" * 61 not in re.sub(' title="[^"]*"', "", text)
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]
