"""The model card of an exported network or ensemble: what it takes and gives, how good it is, how each file is used."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from cifar_resnet import runs
from cifar_resnet.models import Classifier, summary
from cifar_resnet.terminal import in_markdown, part

FILES = {"safetensors": "model.safetensors", "torch": "model.pt2", "onnx": "model.onnx"}
USES = {
    "safetensors": "the weights alone. Whoever builds the network from them gives it (images - mean) / std, channel by "
    "channel; mean and std, the architecture with its arguments and the whole configuration are in the header, as JSON",
    "torch": 'normalises images itself: `torch.export.load("model.pt2").module()(images)`',
    "onnx": 'normalises images itself: `onnxruntime.InferenceSession("model.onnx").run(None, {"images": images})`; the '
    "names of the classes, mean and std are in its metadata",
}
WEIGHTS = "The weights' hash: "  # by which another export into the same folder is known to be of the same network


def card(
    networks: Sequence[Classifier], paths: Sequence[Path], scores: Sequence[str], formats: Sequence[str], weights: str
) -> str:
    """In Markdown. networks: several are an ensemble; paths: of their checkpoints. scores: lines of it."""
    data, choices = networks[0].data_state, networks[0].config["choices"]
    size, classes = data["image_size"], [in_markdown(name) for name in data["classes"]]
    count = len(networks)
    name = in_markdown(f"{choices['model']} trained on {choices['data']}")
    parameters = sum(map(summary.num_parameters, networks))
    macs = sum(summary.num_macs(network, (3, size, size)) for network in networks)
    gives = "logits" if count == 1 else "log-probabilities: the logarithm of the members' mean probability"
    return "\n".join(
        [
            f"# {name}" if count == 1 else f"# {count} networks as one, the first {name}",
            "",
            f"{' and '.join(dict.fromkeys(type(network).__name__ for network in networks))} with {parameters:,} "
            f"parameters and {macs:,} multiply-adds an image, trained by cifar_resnet on {data['num_train']:,} images"
            f"{seen_by(paths)}; {data['num_val']:,} more were held out to choose with.",
            "",
            f"* **Takes** images of (N, 3, {size}, {size}), red, green, blue, float32 in [0, 1].",
            f"* **Gives** {gives}, (N, {len(classes)}), of {', '.join(classes[:20])}"
            + (" and more." if len(classes) > 20 else "."),
            *normalisation(networks),
            "* **Is for** images like those it was trained on. What it predicts for others means nothing: it names one "
            "of its classes all the same.",
            *scores,
            "",
            *(f"* `{FILES[format_]}`: {USES[format_]}." for format_ in formats),
            "",
            f"Exported from {', '.join(in_markdown(str(path)) for path in paths)}.",
            "",
            f"{WEIGHTS}{weights}",
            "",
        ]
    )


def seen_by(paths: Sequence[Path]) -> str:
    """How many of them an epoch saw, where that was a part; empty where all, or nobody knows."""
    records = [runs.read_record(run_dir) for path in paths if (run_dir := runs.run_dir_of(path))]
    counts = {record["num_trained"] for record in records if record and part(record, "train")}
    return f", in each epoch {' or '.join(f'{count:,}' for count in sorted(counts))} of them" if counts else ""


def normalisation(networks: Sequence[Classifier]) -> list[str]:
    """What each channel's pixels lose, and are divided by; for each member where that differs."""
    each = [", ".join(f"{key} {network.data_state[key]}" for key in ("mean", "std")) for network in networks]
    told = [f" of member {place}" for place in range(len(each))] if len(set(each)) > 1 else [""]
    return [f"* **Normalisation**{which}: {text}, channel by channel." for which, text in zip(told, each, strict=False)]


def hash_of(networks: Sequence[Classifier]) -> str:
    """Of the weights."""
    found = hashlib.sha256()
    for network in networks:
        for name, tensor in network.state_dict().items():
            found.update(name.encode())
            found.update(tensor.cpu().contiguous().numpy())
    return found.hexdigest()[:16]


def scores_of(record: dict, seed: int, tta: str) -> list[str]:
    """Lines about how good one network is, by the record of its run."""
    metrics = record["metrics"]
    with_tta = f" These scores are with test-time augmentation ({tta}); what was exported takes one view."
    return [
        "",
        "| images | accuracy | loss |",
        "|---|---:|---:|",
        *(
            f"| {part(record, split) or name} | {metrics[f'{split}/acc']:.2%} | {metrics[f'{split}/loss']:.4f} |"
            for name, split in (("validation", "val"), ("test", "test"))
            if f"{split}/acc" in metrics
        ),
        "",
        f"Epoch {record['epoch']} of {record['epochs']}, {record['selected']}; one run, seed {seed}, on "
        f"{record['device']} in {record['precision']}." + ("" if tta == "none" else with_tta),
    ]


def ensemble_scores(
    records: Sequence[dict | None], ttas: Sequence[str], folder: Path | None, paths: Sequence[Path], weights: str
) -> list[str]:
    """Lines about how good an ensemble and its members are: of those its own evaluation in this folder, if there is one
    of these weights without test-time augmentation, and of these their runs' records."""
    told = ["" if tta == "none" else f", with test-time augmentation ({tta})" for tta in ttas]
    rows = [
        f"| member {place}, alone{views}{', on ' * bool(part(record, 'test'))}{part(record, 'test')} | "
        f"{record['metrics']['test/acc']:.2%} | {record['metrics']['test/loss']:.4f} |"
        for place, (record, views) in enumerate(zip(records, told, strict=True))
        if record and "test/acc" in record["metrics"]
    ]
    if folder and (scores := own_evaluation(folder, paths, weights)):
        rows.append(f"| all together | {scores['acc']:.2%} | {scores['loss']:.4f} |")
    return ["", "| test images | accuracy | loss |", "|---|---:|---:|", *rows] if rows else []


def own_evaluation(folder: Path, paths: Sequence[Path], weights: str) -> dict | None:
    try:
        found = json.loads((folder / "evaluation.json").read_text())
        members = [Path(path).resolve() for path in found["checkpoints"]]
        is_ours = members == [path.resolve() for path in paths] and found["weights"] == weights  # as they are by now
        is_ours = is_ours and found["tta"] == "none" and found["own_test_images"]
        return {key: float(found["scores"][key]) for key in ("acc", "loss")} if is_ours else None
    except (OSError, ValueError, KeyError, TypeError):  # none, or another program's
        return None
