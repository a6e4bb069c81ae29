"""One self-contained HTML file about a run or an evaluation: no script, no other file, no network."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
import yaml
from matplotlib.figure import Figure

from cifar_resnet import runs
from cifar_resnet.results.plots import curves_figure

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass
class Section:
    """Of the page: a heading with a sentence below it, then a figure or a table, whose first row is its head.

    name: of the figure in TensorBoard.
    """

    heading: str
    text: str = ""
    figure: Figure | None = None
    table: Sequence[Sequence[str]] | None = None
    name: str = ""

    @property
    def svg(self) -> str:
        """The figure as an element that can stand in the middle of a page."""
        buffer = io.StringIO()
        self.figure.savefig(buffer, format="svg", metadata={"Date": None})
        return "<svg" + buffer.getvalue().partition("<svg")[2]  # without the head of an XML file


def write(path: Path, title: str, facts: dict[str, str], sections: Sequence[Section], config: dict | None) -> None:
    """facts: what is said first, by name. config: shown as YAML at the end."""
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    settings = yaml.safe_dump(config, sort_keys=False, allow_unicode=True) if config else ""
    runs.write_atomically(path, template.render(title=title, facts=facts, sections=sections, yaml=settings))


def curves(run_dir: Path) -> list[Section]:
    """Of a run that has left a table of its epochs."""
    rows = runs.read_metrics(run_dir / runs.METRICS)
    return [Section("Training", figure=curves_figure(rows), name="curves")] if rows else []
