"""One self-contained HTML file about a run or an evaluation: no script, no other file, no network."""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jinja2
from matplotlib.figure import Figure
from omegaconf import OmegaConf
from torch import Tensor

from cifar_resnet import metrics, plots, runs

TEMPLATE = Path(__file__).with_name("page.html")
NUM_MISTAKES = 24


@dataclass
class Block:
    """A section of the page: a heading with a sentence below it, then a figure or a table, whose first row is its head.

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
        text = buffer.getvalue()
        return text[text.index("<svg") :]


def write(path: Path, title: str, facts: dict[str, str], blocks: Sequence[Block], config: dict | None) -> None:
    """facts: what is said first, by name. config: shown as YAML at the end."""
    template = jinja2.Environment(autoescape=True).from_string(TEMPLATE.read_text(encoding="utf-8"))
    yaml = OmegaConf.to_yaml(OmegaConf.create(config)) if config else ""
    runs.write_atomically(path, template.render(title=title, facts=facts, blocks=blocks, yaml=yaml))


def curves(run_dir: Path) -> list[Block]:
    """Of a run that has left a table of its epochs."""
    rows = runs.read_metrics(run_dir / runs.METRICS)
    return [Block("Training", "", plots.curves_figure(rows), name="curves")] if rows else []


def answers(
    log_probs: Tensor, labels: Tensor, images: Tensor, classes: Sequence[str], temperature: float | None
) -> list[Block]:
    """What a network said about labelled images: right, wrong, and how sure.

    log_probs: (N, num_classes); labels: (N,); images: (N, 3, H, W) uint8; temperature: None where none was fitted.
    """
    matrix = metrics.confusion(log_probs, labels)
    lines = {"as trained": list(metrics.reliability(log_probs, labels))}
    text = "A dot's area grows with the number of images that were answered with this confidence."
    if temperature:
        calibrated = metrics.at_temperature(log_probs, temperature)
        lines["with temperature"] = list(metrics.reliability(calibrated, labels))
        text += f" The temperature, {temperature:.3f}, was fitted on validation images."
    blocks = [
        Block("Confusion", "", plots.confusion_figure(matrix.numpy(), classes), name="confusion"),
        Block("Class by class", "", table=metrics.class_rows(matrix.tolist(), classes)),
        Block("Reliability", text, plots.reliability_figure(lines), name="reliability"),
    ]
    confidence, taken_for = log_probs.exp().max(1)
    wrong = (taken_for != labels).nonzero()[:, 0]
    if len(wrong):
        worst = wrong[confidence[wrong].argsort(descending=True, stable=True)][:NUM_MISTAKES]
        captions = [
            f"{classes[labels[index]]} → {classes[taken_for[index]]}\n{confidence[index]:.1%}" for index in worst
        ]
        pictures = images.cpu()[worst].permute(0, 2, 3, 1).numpy()
        text = f"Of {len(wrong):,} mistakes the {len(worst)} made with the most confidence: true class → answer."
        blocks.append(
            Block("Most confident mistakes", text, plots.mistakes_figure(pictures, captions), name="mistakes")
        )
    return blocks
