"""cifar-export: a trained network for use without this package, checked against the original on real images.

    cifar-export checkpoint=outputs/train/<run folder>
    cifar-export checkpoint=outputs/train/<run folder> formats=[onnx] output=handed_in

Leaves model.safetensors, model.pt2, model.onnx, as asked for, and a model card, README.md.
"""

import json
import math
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import interpolate

from cifar_resnet import checkpoints, preflight, runs, terminal
from cifar_resnet.compose import Job
from cifar_resnet.data import Synthetic
from cifar_resnet.errors import refuse_if
from cifar_resnet.models import Classifier, summary
from cifar_resnet.results import inference, restored

FORMATS = {"safetensors": "model.safetensors", "torch": "model.pt2", "onnx": "model.onnx"}
USES = {
    "safetensors": "the weights; its header holds the architecture, its arguments and the whole configuration",
    "torch": '`torch.export.load("model.pt2").module()(images)`',
    "onnx": '`onnxruntime.InferenceSession("model.onnx").run(None, {"images": images})`',
}
NUM_IMAGES = 64
BATCH = ({0: torch.export.Dim("batch")},)  # the one dimension of the images that may have any size


def run(jobs: list[Job]) -> int:
    """Write each format, and say how far its logits are from the network's own."""
    (job,) = jobs
    path = runs.find_checkpoint(preflight.plain(job.cfg.checkpoint))
    cfg = restored.restored_config(job, path)
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    refuse_if(
        "onnx" in cfg.formats and lacking,
        f"formats=[onnx] needs {', '.join(lacking)}. Give: pip install 'cifar-resnet[onnx]'",
    )
    network = checkpoints.load(path).to(memory_format=torch.contiguous_format)
    run_dir = runs.run_dir_of(path)
    folder = Path(cfg.output) if cfg.output else (run_dir or path.parent) / "export"
    images, source = sample(cfg, network.data_state["image_size"])
    portable = inference.Portable(network)
    expected = torch.no_grad()(portable)(images)
    model_card = card(network, path, record_of(path, run_dir), cfg.formats)
    folder.mkdir(parents=True, exist_ok=True)
    writers = {"safetensors": write_safetensors, "torch": write_torch, "onnx": write_onnx}
    facts: dict[str, object] = {}
    for name in cfg.formats:
        target = folder / FORMATS[name]
        part = target.with_name(f"part-{target.name}")
        exported = writers[name](portable, images, part)
        difference = (exported(images) - expected).abs().max().item()
        if not difference <= cfg.tolerance:
            part.unlink()
            raise ValueError(
                f"the exported network predicts differently. Got logits {difference:.2g} apart in {name}, and "
                f"tolerance={cfg.tolerance}; nothing was left"
            )
        part.replace(target)
        facts[name] = f"{target}, logits within {difference:.1g} of the network's on {len(images)} {source}"
    runs.write_atomically(folder / "README.md", model_card)
    terminal.log.info(terminal.listed(facts | {"model card": folder / "README.md"}))
    return 0


def sample(cfg: DictConfig, size: int) -> tuple[Tensor, str]:
    """Some images to check with, (64, 3, H, W) in [0, 1], and what they are: test images where those are at hand."""
    try:
        images, source = restored.local_data(cfg).read(train=False)[0][:NUM_IMAGES], "test images"
    except (OSError, ValueError, InstantiationException):
        images, source = Synthetic(num_test=NUM_IMAGES).read(train=False)[0], "synthetic images"
    pixels = images.contiguous() / 255
    if pixels.shape[2:] != (size, size):
        pixels = interpolate(pixels, size=(size, size), mode="bilinear")
    return pixels, source


def write_safetensors(portable: inference.Portable, images: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    """The weights under their names, with what it takes to rebuild the network as JSON in the header."""
    network = portable.network
    about = {
        "architecture": network.architecture(),
        "hyper_parameters": dict(network.hparams),
        "data": network.data_state,
        "config": network.config,
    }
    tensors = {name: tensor.contiguous() for name, tensor in network.state_dict().items()}
    save_file(tensors, path, metadata={key: json.dumps(value) for key, value in about.items()})
    with safe_open(path, "pt") as file:
        found = {key: json.loads(value) for key, value in file.metadata().items()}
    rebuilt = type(network)(**found["hyper_parameters"])
    rebuilt.load_state_dict(load_file(path))
    rebuilt.data_state = found["data"]
    return torch.no_grad()(inference.Portable(rebuilt.eval()))


def write_torch(portable: inference.Portable, images: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    torch.export.save(torch.export.export(portable, (images,), dynamic_shapes=BATCH), path)
    return torch.no_grad()(torch.export.load(path).module())


def write_onnx(portable: inference.Portable, images: Tensor, path: Path) -> Callable[[Tensor], Tensor]:
    import onnxruntime  # of an extra, and slow to import

    torch.onnx.export(
        portable, (images,), path, dynamo=True, dynamic_shapes=BATCH, verbose=False, external_data=False,
        input_names=["images"], output_names=["logits"],
    )  # fmt: skip
    session = onnxruntime.InferenceSession(path)
    return lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


def record_of(path: Path, run_dir: Path | None) -> dict | None:
    """The record of its run, if that is about this checkpoint and not about another epoch's."""
    record = runs.read_record(run_dir) if run_dir else None
    return record if record and math.ceil(record["epoch"]) == checkpoints.read(path)["epoch"] + 1 else None


def card(network: Classifier, path: Path, record: dict | None, formats: Sequence[str]) -> str:
    """The model card, in Markdown."""
    data, config = network.data_state, network.config
    size, classes = data["image_size"], data["classes"]
    return "\n".join(
        [
            f"# {config['choices']['model']} trained on {config['choices']['data']}",
            "",
            f"{type(network).__name__} with {summary.num_parameters(network):,} parameters and "
            f"{summary.num_macs(network, (3, size, size)):,} multiply-adds an image, trained by cifar_resnet on "
            f"{data['num_train']:,} images; {data['num_val']:,} more were held out to choose with.",
            "",
            f"* **Takes** images of (N, 3, {size}, {size}), red, green, blue, float32 in [0, 1]; normalises them "
            f"itself.",
            f"* **Gives** logits, (N, {len(classes)}), of {', '.join(classes[:20])}"
            + (" and more." if len(classes) > 20 else "."),
            "* **Is for** images like those it was trained on. What it predicts for others means nothing: it names one "
            "of its classes all the same.",
            *(scores_of(record, config["seed"], network.tta) if record else []),
            "",
            *(f"* `{FORMATS[name]}`: {USES[name]}" for name in formats),
            "",
            f"Exported from `{path}`.",
            "",
        ]
    )


def scores_of(record: dict, seed: int, tta: str) -> list[str]:
    """The card's lines about how good the network is."""
    metrics = record["metrics"]
    with_tta = f" These scores are with test-time augmentation ({tta}); what was exported takes one view."
    return [
        "",
        "| images | accuracy | loss |",
        "|---|---:|---:|",
        *(
            f"| {name} | {metrics[f'{split}/acc']:.2%} | {metrics[f'{split}/loss']:.4f} |"
            for name, split in (("validation", "val"), ("test", "test"))
            if f"{split}/acc" in metrics
        ),
        "",
        f"Epoch {record['epoch']} of {record['epochs']}, {record['selected']}; one run, seed {seed}, on "
        f"{record['device']} in {record['precision']}." + ("" if tta == "none" else with_tta),
    ]
