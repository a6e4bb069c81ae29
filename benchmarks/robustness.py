"""How networks hold up, each alone and as an ensemble: clean, calibrated, corrupted, and against other images.

    cifar-train -m experiment=speed94 data.num_val=5000 seed=0,1,2      # with images to fit a temperature on
    python benchmarks/robustness.py outputs/speed94/<sweep folder> --root data

Corruptions are our own (data=corrupted), not CIFAR-10-C; the far set is data=synthetic. What is written holds figures
of cifar-evaluate alone.
"""

import json
import tempfile
from pathlib import Path

from figures import begin, parser_of, positive, save

from cifar_resnet import cli, runs

FIGURES = (
    "num_images", "tta", "scores", "intervals", "resamples", "temperature", "temperature_from", "calibrated",
    "selective", "corruptions", "ood", "neighbours_among",
)  # fmt: skip


def evaluated(checkpoint: Path, *overrides: str) -> dict:
    with tempfile.TemporaryDirectory() as folder:
        if cli.evaluate([f"checkpoint={checkpoint}", f"output_dir={folder}", *overrides]):
            raise SystemExit(1)
        result = json.loads(Path(folder, "evaluation.json").read_text())
    return {key: result[key] for key in FIGURES if result.get(key)}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("sweep", type=Path, help="folder of runs that differ in their seed")
    parser.add_argument("--root", default="data", help="where CIFAR-10 is")
    parser.add_argument("--num-test", type=positive, help="images under each condition; all of them by default")
    options = parser.parse_args()
    about = begin()
    members = sorted({path.parent for path in options.sweep.rglob(runs.RECORD)})
    part = [f"data.num_test={options.num_test}"] if options.num_test else []
    results = []
    trained = {runs.read_record(member).get("commit") for member in members}
    for checkpoint in (*members, options.sweep) if len(members) > 1 else members:
        root = f"data.root={options.root}"
        results.append(
            {
                "networks": checkpoint.name if checkpoint in members else f"all {len(members)}",
                "clean": evaluated(checkpoint, root, "ood=synthetic"),
                "corrupted": evaluated(checkpoint, "data=corrupted", root, *part),
            }
        )
        # each time, for where time runs out
        save(options.json, about, n=len(members), trained_at=sorted(trained), results=results)


if __name__ == "__main__":
    main()
