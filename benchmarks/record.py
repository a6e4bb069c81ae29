"""One record for benchmarks/results of runs that have finished: their scores and cost, and all they have in common.

    python benchmarks/record.py outputs/speed94/<sweep folder> \
        --command "cifar-train -m experiment=speed94 seed=0,1,2" \
        --chosen "on 5,000 validation images" --json benchmarks/results/speed94-cpu.json

--ensemble adds what cifar-evaluate found of them together, by its evaluation.json. Refuses runs of different or
uncommitted code.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path

OF_A_RUN = (
    "epochs", "images", "images_by_size", "train_seconds", "seconds", "images_per_second", "training_flops", "selected",
    "epoch", "metrics",
)  # fmt: skip
OF_AN_ENSEMBLE = (
    "num_images", "tta", "scores", "intervals", "calibrated", "temperature", "temperature_from", "members", "growth",
    "commit",
)  # fmt: skip
SHARED = ("device", "precision", "threads", "versions", "commit")


def shared(records: list[dict], key: str) -> object:
    values = [record[key] for record in records]
    if any(value != values[0] for value in values):
        sys.exit(f"error: runs of one record share their {key}. Got {values}; give those of one machine and commit")
    return values[0]


def of_ensemble(path: Path, num_runs: int) -> dict[str, object]:
    result = json.loads(path.read_text())
    if len(result["members"]) != num_runs:
        sys.exit(f"error: an ensemble is of all these runs. Got {len(result['members'])} members of {num_runs} runs")
    return {key: result[key] for key in OF_AN_ENSEMBLE}


def summary(values: list[float]) -> dict[str, float]:
    return {"mean": statistics.mean(values)} | ({"sd": statistics.stdev(values)} if len(values) > 1 else {})


def recipe_of(record: dict) -> str:
    return record["config"]["choices"].get("experiment", "")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, help="run folders, or folders of them")
    parser.add_argument("--command", required=True, help="that trained them")
    parser.add_argument("--chosen", required=True, help="on what the recipe was chosen")
    parser.add_argument("--ensemble", type=Path, help="an evaluation.json of these runs as an ensemble")
    parser.add_argument("--json", required=True, type=Path, help="where to write")
    arguments = parser.parse_args()
    paths = sorted({path for folder in arguments.folders for path in folder.rglob("result.json")})
    records = [json.loads(path.read_text()) for path in paths]
    if not records:
        sys.exit(f"error: no finished run. Got {', '.join(map(str, arguments.folders))}; give their folders")
    common = {key: shared(records, key) for key in SHARED}
    accuracies: dict[str, list[float]] = {}
    for record in records:
        accuracies.setdefault(recipe_of(record), []).append(record["metrics"]["test/acc"])
    by_recipe = {recipe: summary(each) for recipe, each in accuracies.items()}
    is_one = len(by_recipe) == 1
    if common["commit"].endswith("+"):
        sys.exit(f"error: a record is of committed code. Got {common['commit']}; train in a clean clone")
    found = {
        "command": arguments.command,
        **common,
        "date": max(record["finished"] for record in records)[:10],
        "chosen": arguments.chosen,
        "network": shared(records, "network"),
        "parameters": shared(records, "parameters"),
        "test_acc": by_recipe.popitem()[1] if is_one else by_recipe,
        "training_flops": sum(record["training_flops"] for record in records),
        **({"ensemble": of_ensemble(arguments.ensemble, len(records))} if arguments.ensemble else {}),
        "runs": [
            ({} if is_one else {"experiment": recipe_of(record)})
            | {"seed": record["config"]["seed"]}
            | {key: record[key] for key in OF_A_RUN if key in record}
            for record in records
        ],
    }
    arguments.json.write_text(json.dumps(found, indent=2) + "\n")
    print(arguments.json)


if __name__ == "__main__":
    main()
