"""cifar-export: trained networks for use without this package, checked against the originals on real images.

    cifar-export "checkpoint=outputs/train/<run folder>"
    cifar-export "checkpoint=outputs/train/<run folder>" formats=[onnx] output=handed_in
    cifar-export "checkpoint=outputs/train/<sweep folder>"                                 an ensemble, as one

Leaves model.safetensors, model.pt2, model.onnx, as asked for, and a model card, README.md.
"""

import contextlib
import io
import json
import logging
import math
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from omegaconf import DictConfig
from safetensors import safe_open
from safetensors.torch import load_file, save
from torch import Tensor
from torch.nn.functional import interpolate

from cifar_resnet import checkpoints, preflight, runs, terminal
from cifar_resnet.compose import Job
from cifar_resnet.data import Synthetic
from cifar_resnet.errors import UsageError, one_line, refuse_if
from cifar_resnet.images import Normalise
from cifar_resnet.models import Classifier
from cifar_resnet.results import card, inference, restored

CARD = "README.md"
NUM_IMAGES = 64
BATCH = ({0: torch.export.Dim("batch")},)  # the one dimension of the images that may have any size
FIRST_OPSET = 18  # of torch's exporter; older ones are left to the one that it replaced
Network = inference.Portable | inference.PortableEnsemble
Exported = Callable[[Tensor], Tensor]  # from images to what the network gives


def run(jobs: list[Job]) -> int:
    """Write each format, and say how far its answers are from the network's own."""
    (job,) = jobs
    paths = runs.find_checkpoints(preflight.plain(job.cfg.checkpoint))
    cfg = restored.restored_config(job, paths[0], needs_images=False)
    lacking = [name for name in ("onnx", "onnxscript", "onnxruntime") if find_spec(name) is None]
    refuse_if(
        "onnx" in cfg.formats and lacking,
        f"formats=[onnx] needs {', '.join(lacking)}. Give, in the clone: pip install -e '.[onnx]'",
    )
    networks = inference.Ensemble(paths, accelerator="cpu", trusted=list(cfg.trust)).networks
    networks = [network.to(memory_format=torch.contiguous_format) for network in networks]
    folder = Path(cfg.output) if cfg.output else own_folder(preflight.plain(cfg.checkpoint), paths)
    formats, weights = list(dict.fromkeys(cfg.formats)), card.hash_of(networks)
    kept = other_formats(folder, formats, weights)
    images, source = sample(cfg, networks[0].data_state["image_size"])
    model_card = card.card(networks, paths, scores_of(networks, paths, weights), [*formats, *kept], weights)
    writers: dict[str, Callable[..., Exported]] = {
        "safetensors": write_safetensors,
        "torch": write_torch,
        "onnx": partial(write_onnx, opset=cfg.opset),
    }
    portable, expected, facts = inference.portable(networks), answers(networks, images), {}
    with all_or_none(folder, [card.FILES[name] for name in formats]) as parts:
        for name, part in zip(formats, parts, strict=True):
            exported = writers[name](portable, images / 255, part)
            difference = (exported(images / 255) - expected).abs().max().item()
            refuse_if(
                not difference <= cfg.tolerance,
                f"the exported network predicts differently. Got answers {difference:.2g} apart in {name}, and "
                f"tolerance={cfg.tolerance}; nothing was left",
            )
            target = folder / card.FILES[name]
            facts[name] = f"{target}, within {difference:.1g} of the network's answers to {len(images)} {source}"
    runs.write_atomically(folder / CARD, model_card)
    terminal.log.info(terminal.listed(facts | {"model card": folder / CARD}))
    return 0


def own_folder(asked: str | list[str], paths: Sequence[Path]) -> Path:
    """export/ in the run's or the sweep's folder; beside it for another checkpoint than the one a run stands for."""
    if not isinstance(asked, str):
        return Path("outputs", "export", runs.name_of_members(asked))
    if Path(asked).is_dir():
        return Path(asked) / "export"
    run_dir = runs.run_dir_of(paths[0])
    is_runs_choice = run_dir and runs.find_checkpoint(run_dir).resolve() == paths[0].resolve()
    return (run_dir or paths[0].parent) / ("export" if is_runs_choice else f"export-{paths[0].stem}")


def other_formats(folder: Path, formats: Sequence[str], weights: str) -> list[str]:
    """Those that an earlier export of the same weights has left in this folder; UsageError where it is of others, or
    no export at all."""
    path = folder / CARD
    text = path.read_text(errors="replace") if path.is_file() else ""
    refuse_if(
        text and "trained by cifar_resnet" not in text,
        f"output is a folder of its own. Got {folder}, whose {CARD} is no model card; give another one",
    )
    there = [name for name, file in card.FILES.items() if (folder / file).exists()]
    found = there if not text else [name for name in there if name not in formats]
    refuse_if(
        found and f"{card.WEIGHTS}{weights}" not in text,
        f"output holds another network. Got {folder} with {', '.join(card.FILES[name] for name in found)}; give "
        f"another one, or take that away",
    )
    return found


@contextlib.contextmanager
def all_or_none(folder: Path, names: Sequence[str]) -> Iterator[list[Path]]:
    """Files to write, which get these names once all of them are whole; nothing is left otherwise."""
    new = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    parts = [folder / f"part-{os.getpid()}-{name}" for name in names]
    try:
        yield parts
        for part, name in zip(parts, names, strict=True):
            part.replace(folder / name)
    finally:
        for part in parts:
            part.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # not empty: all went well
            for each in new:
                each.rmdir()


def sample(cfg: DictConfig, size: int) -> tuple[Tensor, str]:
    """Some images to check with, (64, 3, size, size) uint8, and what they are: test images where those are at hand."""
    try:
        images, source = next(restored.local_data(cfg).test_sets()).images[:NUM_IMAGES], "test images"
    except (OSError, ValueError, InstantiationException):
        images, source = Synthetic(num_test=NUM_IMAGES).read(train=False)[0], "synthetic images"
    if images.shape[2:] != (size, size):
        images = interpolate(images.float(), size=(size, size), mode="bilinear").round().to(torch.uint8)
    return images.contiguous(), source


@torch.no_grad()
def answers(networks: Sequence[Classifier], images: Tensor) -> Tensor:
    """The logits of a network, the log-probabilities of an ensemble. images: uint8."""
    stats = [network.pixel_stats(torch.device("cpu")) for network in networks]
    each = [network(Normalise(*own)(images)) for network, own in zip(networks, stats, strict=True)]
    return each[0] if len(each) == 1 else inference.mean_probability(torch.stack(each).log_softmax(2))


def scores_of(networks: Sequence[Classifier], paths: Sequence[Path], weights: str) -> list[str]:
    """The card's lines about how good they are."""
    run_dirs = list(map(runs.run_dir_of, paths))
    records = [record_of(path, run_dir) for path, run_dir in zip(paths, run_dirs, strict=True)]
    if len(paths) > 1:
        ttas = [network.tta for network in networks]
        return card.ensemble_scores(records, ttas, run_dirs[0] and run_dirs[0].parent, paths, weights)
    return card.scores_of(records[0], networks[0].config["seed"], networks[0].tta) if records[0] else []


def record_of(path: Path, run_dir: Path | None) -> dict | None:
    """The record of its run, if that is about this checkpoint and not about another epoch's."""
    record = runs.read_record(run_dir) if run_dir else None
    return record if record and math.ceil(record["epoch"]) == checkpoints.read(path)["epoch"] + 1 else None


def write_safetensors(portable: Network, images: Tensor, path: Path) -> Exported:
    """The weights under their names, with what it takes to rebuild the network as JSON in the header.

    Those of an ensemble are called members.0.…, members.1.…, and the header's `members` is a list.
    """
    networks = [each.network for each in inference.members_of(portable)]
    prefixes = [""] if len(networks) == 1 else [f"members.{place}." for place in range(len(networks))]
    tensors = {
        f"{prefix}{name}": tensor.clone(memory_format=torch.contiguous_format)  # parts may share one, a file may not
        for prefix, network in zip(prefixes, networks, strict=True)
        for name, tensor in network.state_dict().items()
    }
    about = [
        {
            "architecture": network.architecture(),
            "hyper_parameters": dict(network.hparams),
            "data": network.data_state,
            "config": network.config,
        }
        for network in networks
    ]
    header = about[0] if len(networks) == 1 else {"members": about}
    path.write_bytes(save(tensors, {key: json.dumps(value) for key, value in header.items()}))  # save_file's is 0600
    with safe_open(path, "pt") as file:
        found = {key: json.loads(value) for key, value in file.metadata().items()}
    rebuilt, tensors = [], load_file(path)
    for prefix, each, network in zip(prefixes, found.get("members", [found]), networks, strict=True):
        own = type(network)(**each["hyper_parameters"])
        own.load_state_dict({n.removeprefix(prefix): tensor for n, tensor in tensors.items() if n.startswith(prefix)})
        own.data_state = each["data"]
        rebuilt.append(own.eval())
    return torch.no_grad()(inference.portable(rebuilt))


def write_torch(portable: Network, images: Tensor, path: Path) -> Exported:
    torch.export.save(torch.export.export(portable, (images,), dynamic_shapes=BATCH), path)
    return torch.export.load(path).module()


def write_onnx(portable: Network, images: Tensor, path: Path, opset: int) -> Exported:
    import onnx  # of an extra, and slow to import
    import onnxruntime

    names: dict[str, Any] = {"input_names": ["images"], "output_names": [output_of(portable)], "opset_version": opset}
    try:
        with quiet():
            if opset >= FIRST_OPSET:
                torch.onnx.export(
                    portable, (images,), path, dynamo=True, dynamic_shapes=BATCH, external_data=False, **names
                )
            else:
                axes = {name: {0: "batch"} for name in (*names["input_names"], *names["output_names"])}
                torch.onnx.export(portable, (images,), path, dynamo=False, dynamic_axes=axes, **names)
    except Exception as error:  # of an operation that it has no translation for, of many kinds
        remedy = "leave onnx out of formats" if opset == FIRST_OPSET else f"give opset={FIRST_OPSET}"
        raise UsageError(
            f"this network cannot be written so. Got opset={opset} ({one_line(error).partition('. ')[0]}); {remedy}"
        ) from error
    model = onnx.load(path)
    found = {each.domain: each.version for each in model.opset_import}
    refuse_if(found != {"": opset}, f"this network cannot be written so. Got opset={opset}, and found {found}")
    model.ir_version = onnx.helper.find_min_ir_version_for(model.opset_import)  # or an older runtime would not try
    graph = model.graph
    for each in (graph, *graph.node, *graph.input, *graph.output, *graph.value_info, *graph.initializer):
        del each.metadata_props[:]  # where on this machine it was defined
    onnx.helper.set_model_props(model, metadata(portable))
    onnx.checker.check_model(model)
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path)
    return lambda batch: torch.from_numpy(session.run(None, {"images": batch.numpy()})[0])


def output_of(portable: Network) -> str:
    return "logits" if len(inference.members_of(portable)) == 1 else "log_probabilities"


def metadata(portable: Network) -> dict[str, str]:
    """What somebody needs to know who has nothing but the file; what is no text, as JSON."""
    states = [each.network.data_state for each in inference.members_of(portable)]
    own = {key: [state[key] for state in states] for key in ("mean", "std")}
    about = {key: each if len(states) > 1 else each[0] for key, each in own.items()}
    about |= {"classes": states[0]["classes"], "image_size": states[0]["image_size"]}
    return {key: json.dumps(value, ensure_ascii=False) for key, value in about.items()} | {
        "input": "images: (N, 3, image_size, image_size), red, green, blue, float32 in [0, 1], not normalised",
        "normalisation": "(images - mean) / std, channel by channel, is done inside"
        + (", for each member with its own" if len(states) > 1 else ""),
        "output": f"{output_of(portable)}: (N, number of classes), in the order of classes",
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what torch's exporters say about themselves, the older one from C++."""
    sys.stdout.flush()
    kept = os.dup(1)
    logging.disable()
    try:
        with (
            warnings.catch_warnings(action="ignore"),
            Path(os.devnull).open("wb") as nowhere,
            contextlib.redirect_stdout(io.StringIO()),
        ):
            os.dup2(nowhere.fileno(), 1)
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
        logging.disable(logging.NOTSET)
