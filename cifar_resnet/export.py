"""cifar-export: a trained network for use without this package, checked against the original on real images.

    cifar-export checkpoint=outputs/train/<run folder>
    cifar-export checkpoint=outputs/train/<run folder> formats=[onnx] output=handed_in

Leaves model.safetensors, model.pt2, model.onnx, as asked for, and a model card, README.md.
"""

import json
import logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig

from cifar_resnet import runs
from cifar_resnet.command import Composer, UsageError, interpret, usage_errors
from cifar_resnet.evaluate import composed

if TYPE_CHECKING:
    from torch import Tensor

    from cifar_resnet.inference import Portable
    from cifar_resnet.models import Classifier

log = logging.getLogger("cifar_resnet")

FORMATS = {"safetensors": "model.safetensors", "torch": "model.pt2", "onnx": "model.onnx"}
NUM_IMAGES = 64


def main(argv: Sequence[str] | None = None) -> int:
    return interpret("export", run, argv)


def run(composer: Composer, overrides: list[str], is_sweep: bool) -> int:
    if is_sweep:
        raise UsageError("cifar-export has no sweeps: leave out -m")
    from cifar_resnet.terminal import listed, set_up_logging

    set_up_logging()
    with usage_errors():
        cfg = composed(composer, overrides)
        facts = export(cfg, list(cfg.formats))
    log.info(listed(facts))
    return 0


def export(cfg: DictConfig, formats: Sequence[str]) -> dict[str, object]:
    """Write each format, and say how far its logits are from the network's own."""
    import torch

    from cifar_resnet import checkpoints
    from cifar_resnet.inference import Portable

    if "onnx" in formats:
        require_onnx()
    path = checkpoints.find(cfg.checkpoint)
    network = checkpoints.load(path).to(memory_format=torch.contiguous_format)
    run_dir = checkpoints.run_dir_of(path)
    folder = Path(cfg.output) if cfg.output else (run_dir or path.parent) / "export"
    images, source = sample(cfg.data, network.data_state["image_size"])
    portable = Portable(network)
    with torch.no_grad():
        expected = portable(images)
    model_card = card(network, path, record_of(path, run_dir), formats)
    folder.mkdir(parents=True, exist_ok=True)
    writers = {"safetensors": write_safetensors, "torch": write_torch, "onnx": write_onnx}
    facts: dict[str, object] = {}
    for name in formats:
        target = folder / FORMATS[name]
        part = target.with_name(f"part-{target.name}")
        answer = writers[name](portable, images, part)
        difference = (answer(images) - expected).abs().max().item()
        if not difference <= cfg.tolerance:
            part.unlink()
            raise ValueError(
                f"the exported network answers differently. Got logits {difference:.2g} apart in {name}, and "
                f"tolerance={cfg.tolerance}; nothing was left"
            )
        part.replace(target)
        facts[name] = f"{target}, logits within {difference:.1g} of the network's on {len(images)} {source}"
    runs.write_atomically(folder / "README.md", model_card)
    return facts | {"model card": folder / "README.md"}


def require_onnx() -> None:
    from importlib.util import find_spec

    if lacking := [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]:
        raise ValueError(f"formats=[onnx] needs {', '.join(lacking)}. Give: pip install 'cifar-resnet[onnx]'")


def sample(settings: DictConfig, size: int) -> tuple["Tensor", str]:
    """Some images to check with, (64, 3, H, W) in [0, 1], and what they are: test images where those are at hand."""
    import torch

    from cifar_resnet.data import Synthetic

    try:
        data = instantiate(settings, _convert_="all")
        if hasattr(data, "is_complete") and not data.is_complete():  # nothing is downloaded for this
            raise FileNotFoundError
        images, source = data.read(train=False)[0][:NUM_IMAGES], "test images"
    except (OSError, ValueError, InstantiationException):
        images, source = Synthetic(num_test=NUM_IMAGES).read(train=False)[0], "synthetic images"
    pixels = images.contiguous() / 255
    if pixels.shape[2:] != (size, size):
        pixels = torch.nn.functional.interpolate(pixels, size=(size, size), mode="bilinear")
    return pixels, source


def write_safetensors(portable: "Portable", images: "Tensor", path: Path) -> Callable[["Tensor"], "Tensor"]:
    """The weights under their names, with what it takes to rebuild the network as JSON in the header."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    from cifar_resnet.inference import Portable

    network = portable.network
    about = {
        "architecture": f"{type(network).__module__}.{type(network).__qualname__}",
        "hyper_parameters": dict(network.hparams),
        "data": network.data_state,
        "config": network.config,
    }
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, path, metadata={key: json.dumps(value) for key, value in about.items()})
    with safe_open(path, "pt") as file:
        rebuilt = type(network)(**json.loads(file.metadata()["hyper_parameters"]))
        names = file.keys()
        rebuilt.load_state_dict({name: file.get_tensor(name) for name in names})
        rebuilt.data_state = json.loads(file.metadata()["data"])
    return torch.no_grad()(Portable(rebuilt.eval()))


def write_torch(portable: "Portable", images: "Tensor", path: Path) -> Callable[["Tensor"], "Tensor"]:
    import torch

    dynamic = ({0: torch.export.Dim("batch")},)
    program = torch.export.export(portable, (images,), dynamic_shapes=dynamic)
    torch.export.save(program, path)
    return torch.no_grad()(torch.export.load(path).module())


def write_onnx(portable: "Portable", images: "Tensor", path: Path) -> Callable[["Tensor"], "Tensor"]:
    import onnxruntime
    import torch

    dynamic = ({0: torch.export.Dim("batch")},)
    names = {"input_names": ["images"], "output_names": ["logits"]}
    torch.onnx.export(portable, (images,), path, dynamo=True, dynamic_shapes=dynamic, verbose=False,
                      external_data=False, **names)  # fmt: skip
    session = onnxruntime.InferenceSession(path)
    return lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


def record_of(path: Path, run_dir: Path | None) -> dict | None:
    """The record of its run, if that is about this checkpoint and not about another epoch's."""
    from cifar_resnet import checkpoints

    record = runs.read_record(run_dir) if run_dir else None
    return record if record and record["epoch"] == checkpoints.read(path)["epoch"] + 1 else None


def card(network: "Classifier", path: Path, record: dict | None, formats: Sequence[str]) -> str:
    """The model card, in Markdown."""
    from cifar_resnet.models.size import num_macs, num_parameters

    data, config = network.data_state, network.config
    size = data["image_size"]
    shape = 3, size, size
    lines = [
        f"# {config['choices']['model']} trained on {config['choices']['data']}",
        "",
        f"{type(network).__name__} with {num_parameters(network):,} parameters and {num_macs(network, shape):,} "
        f"multiply-adds an image, trained by cifar_resnet on {data['num_train']:,} images; "
        f"{data['num_val']:,} more were held out to choose with.",
        "",
        f"* **Takes** images of (N, 3, {size}, {size}), red, green, blue, float32 in [0, 1]; normalises them itself.",
        f"* **Gives** logits, (N, {len(data['classes'])}), of {', '.join(data['classes'][:20])}"
        + (" and more." if len(data["classes"]) > 20 else "."),
        "* **Is for** images like those it was trained on. For anything else it has no answer, and names one of its "
        "classes all the same.",
    ]
    if record:
        scores = [("validation", "val"), ("test", "test")]
        known = [(name, key) for name, key in scores if f"{key}/acc" in record["metrics"]]
        rows = [
            f"| {name} | {record['metrics'][f'{key}/acc']:.2%} | {record['metrics'][f'{key}/loss']:.4f} |"
            for name, key in known
        ]
        lines += [
            "",
            "| images | accuracy | loss |",
            "|---|---:|---:|",
            *rows,
            "",
            f"Epoch {record['epoch']} of {record['epochs']}, {record['selected']}; one run, seed {config['seed']}, on "
            f"{record['device']} in {record['precision']}."
            + (
                f" These scores are with test-time augmentation ({network.tta}); what was exported takes one view."
                if network.tta != "none"
                else ""
            ),
        ]
    uses = {
        "safetensors": "the weights; its header holds the architecture, its arguments and the whole configuration",
        "torch": '`torch.export.load("model.pt2").module()(images)`',
        "onnx": '`onnxruntime.InferenceSession("model.onnx").run(None, {"images": images})`',
    }
    lines += ["", *(f"* `{FORMATS[name]}`: {uses[name]}" for name in formats)]
    lines += ["", f"Exported from `{path}`.", ""]
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
