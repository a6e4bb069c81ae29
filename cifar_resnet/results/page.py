"""One self-contained HTML file about a run or an evaluation: no script, no other file, no network."""

import html
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

import jinja2
import yaml
from matplotlib import rc_context
from matplotlib.figure import Figure

from cifar_resnet import runs
from cifar_resnet.results.intervals import ends
from cifar_resnet.results.plots import curve_panels, curves_figure, quiet_about_glyphs
from cifar_resnet.results.tiles import AUGMENTED, Picture
from cifar_resnet.results.tiles import read as read_tiles
from cifar_resnet.terminal import cut

NUM_AUGMENTED = 24  # pictures
LONGEST = 60  # of a name in a table or below a picture
TEMPLATE = Path(__file__).with_name("page.html")


class Link(str):
    """A table's cell that leads to another page; without a url just its text."""

    url: str

    def __new__(cls, text: str, url: str) -> "Link":
        link = super().__new__(cls, text)
        link.url = url
        return link


@dataclass
class Section:
    """Of the page: a heading with a sentence below it, then figures, pictures or a table, whose first row is its head.

    figure: for TensorBoard and other trackers, which know it by its name; on the page as well, unless there are panels,
    which stand beside each other where there is room, or pictures.
    """

    heading: str
    text: str = ""
    figure: Figure | None = None
    table: Sequence[Sequence[str]] | None = None
    name: str = ""
    panels: Sequence[Figure] = ()
    pictures: Sequence[Picture] = ()

    @property
    def svgs(self) -> list[str]:
        """Elements that can stand in the middle of a page."""
        shown = self.panels or ([self.figure] if self.figure and not self.pictures else [])
        return [
            as_svg(
                figure, ": ".join(filter(None, [self.heading, *(axes.get_ylabel() for axes in figure.axes[:1])])), place
            )
            for place, figure in enumerate(shown)
        ]


def as_svg(figure: Figure, name: str, place: int) -> str:
    """Text stays text, which any browser can show in any script, and find. name: for those who cannot see it."""
    buffer, salt = io.StringIO(), f"{name}-{place}-"
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}), quiet_about_glyphs():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue().partition("<svg")[2]  # without the head of an XML file
    text = re.sub("<metadata>.*?</metadata>", "", text, flags=re.DOTALL)
    text = re.sub(r' id="[\w.]+_\d+"', "", text)  # figure_1 and its like, of which a page has several
    text = re.sub(r'<a xlink:href="([^"]+)"[^>]*>', titled, text)
    role = "group" if "<a " in text else "img"  # whose parts nobody who has it read out can come to
    return f'<svg role="{role}" aria-label="{html.escape(name)}"{text}'


def titled(link: re.Match) -> str:
    """An SVG's link to a run's page with that run's folder, which is shown where the pointer rests, and read out."""
    folder = unquote(html.unescape(link[1])).rpartition("/")[0]
    return f"{link[0]}<title>{html.escape(folder.lstrip('./'))}</title>"


@dataclass
class Headline:
    """What is said in large: a number, and beside it what it is of."""

    number: str
    text: str


def write(
    path: Path,
    title: str,
    facts: dict[str, str],
    sections: Sequence[Section],
    config: dict | None = None,
    headline: Headline | None = None,
) -> None:
    """facts: what is said first, by name. config: shown as YAML at the end."""
    environment = jinja2.Environment(autoescape=True)
    environment.filters["short"] = lambda text: cut(str(text), LONGEST, 2 / 3)
    environment.filters["cell"] = lambda text: cut(str(text), LONGEST * (4 if ", " in text else 1), 2 / 3)  # of a list
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    settings = yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else ""
    text = template.render(title=title, headline=headline, facts=facts, sections=sections, yaml=settings)
    runs.write_atomically(path, text)


def headline_of(result: dict, how: str = "") -> Headline:
    """Of a test: its accuracy, and how sure that is. result: of `evaluation.evaluate_predictions`, with num_images."""
    text = f"of {result['num_images']:,} test images{how}; 95% interval {ends(result['intervals']['acc'])}"
    return Headline(f"{result['scores']['acc']:.2%}", text)


def about(facts: dict) -> dict[str, str]:
    """Of a run's record or an evaluation's, what says which network this is, on which machine, and by which commit."""
    return {
        "network": f"{facts['network']}: {facts['parameters']:,} parameters, {facts['macs']:,} multiply-adds an image",
        "device": f"{facts['device']}, {facts['precision']}",
        "commit": facts["commit"] or "not known",
    }


def augmented(run_dir: Path) -> list[Section]:
    """The first images of a run's training, if it has left them."""
    text = "The first images of the training, as the network sees them."
    pictures = read_tiles(run_dir / AUGMENTED)[:NUM_AUGMENTED]
    return [Section("Augmented images", text, pictures=pictures)] if pictures else []


def curves(run_dir: Path) -> list[Section]:
    """Of a run that has left a table of its epochs."""
    rows = runs.read_metrics(run_dir / runs.METRICS)
    return [Section("Training", figure=curves_figure(rows), name="curves", panels=curve_panels(rows))] if rows else []
