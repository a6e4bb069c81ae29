"""Whether the LR finder's suggestions are good: each against a grid of learning rates, trained for a few epochs.

    python benchmarks/lr_finder.py data.root=data            # further arguments are overrides of cifar-train

For each network and optimizer: the range test's three suggestions, and the validation accuracy after 3 epochs of
one-cycle with each of them and with 7 learning rates around. Prints a table: a suggestion is good where it comes within
2 points of the best of the grid. Runs lie under outputs/lr_finder; started again, it goes on where it was.
"""

import argparse
import json
import logging
from pathlib import Path

from cifar_resnet import runs
from cifar_resnet.command import Composer, Diverged
from cifar_resnet.find_lr import range_test
from cifar_resnet.terminal import set_up_logging
from cifar_resnet.train import train_in

NETWORKS = {
    "resnet8": ["model=resnet_cifar", "model.depth=8"],
    "resnet20": ["model=resnet20"],
    "wide_resnet10_2": ["model=wide_resnet", "model.depth=10", "model.widen_factor=2"],
}
GRIDS = {"sgd": [0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6], "adam": [1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1]}
FOLDER = Path("outputs/lr_finder")


def accuracy(overrides: list[str], lr: float, name: str) -> float:
    run_dir = FOLDER / name / f"lr-{lr:.4g}"
    if record := runs.read_record(run_dir):
        return record["metrics"]["val/acc"]
    (job,) = Composer("train").jobs([*overrides, f"optimizer.lr={lr}", "test=false"])
    try:
        return train_in(run_dir, job.cfg)["metrics"]["val/acc"]
    except Diverged:
        return 0.0


def measure(network: str, optimizer: str, epochs: int, more: list[str]) -> dict:
    overrides = [*NETWORKS[network], f"optimizer={optimizer}", *more]
    name = f"{network}-{optimizer}-{runs.digest([*overrides, str(epochs)])}"
    kept = FOLDER / name / "lr_range_test.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        range_test(Composer("train").jobs(overrides)[0].cfg).save(kept.parent)
    suggestions = {rule: lr for rule, lr in json.loads(kept.read_text()).items() if rule != "suggested"}
    overrides += ["scheduler=one_cycle", f"trainer.max_epochs={epochs}"]
    grid = {lr: accuracy(overrides, lr, name) for lr in GRIDS[optimizer]}
    found = {rule: (lr, accuracy(overrides, lr, name)) for rule, lr in suggestions.items()}
    return {"network": network, "optimizer": optimizer, "grid": grid, "suggestions": found}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="*", default=list(NETWORKS))
    parser.add_argument("--optimizers", nargs="*", default=list(GRIDS))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options, more = parser.parse_known_args()
    set_up_logging()
    logging.getLogger("cifar_resnet").setLevel(logging.WARNING)
    lines, results = [], []
    for network in options.networks:
        for optimizer in options.optimizers:
            result = measure(network, optimizer, options.epochs, more)
            results.append(result)
            best_lr, best = max(result["grid"].items(), key=lambda item: item[1])
            cells = [f"{lr:.3g}: {acc:.2%} ({(acc - best) * 100:+.1f})" for lr, acc in result["suggestions"].values()]
            lines.append(f"| {network} | {optimizer} | {best_lr:g}: {best:.2%} | {' | '.join(cells)} |")
            print(lines[-1], flush=True)
    rules = list(results[0]["suggestions"])
    print(f"\n| network | optimizer | best of the grid | {' | '.join(rules)} |\n|{'---|' * (3 + len(rules))}")
    print("\n".join(lines))
    if options.json:
        about = {"versions": runs.versions(), "commit": runs.commit()}
        options.json.write_text(json.dumps(about | {"results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
