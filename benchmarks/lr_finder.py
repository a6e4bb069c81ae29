"""Whether what the LR finder suggests is good: trained for a few epochs, against a grid of learning rates.

    python benchmarks/lr_finder.py data.root=data            # further arguments are overrides of cifar-train

For each network and optimizer: the validation accuracy after 3 epochs of one-cycle with the suggested learning rate and
with 7 others, and which rates the range test's other rules give. A suggestion is good where it comes within 2 points of
the best of the grid. Runs lie under outputs/lr_finder; started again, it goes on where it was. About an hour.
"""

import itertools
import json
import logging
from pathlib import Path

from figures import begin, parser_of, positive, save

from cifar_resnet import runs
from cifar_resnet.build import kept_images
from cifar_resnet.compose import Composer
from cifar_resnet.errors import Diverged
from cifar_resnet.range_test import run_range_test
from cifar_resnet.sweep import run_in
from cifar_resnet.train import train_run

NETWORKS = {
    "resnet8": ["model=resnet_cifar", "model.depth=8"],
    "wide_resnet10_1": ["model=wide_resnet", "model.depth=10", "model.widen_factor=1"],
    "speednet_small": ["model=speednet", "model.widths=[24,48,48]"],
}
GRIDS = {"sgd": [0.01, 0.03, 0.1, 0.2, 0.4, 0.8, 1.6], "adam": [1e-4, 3e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1]}
FOLDER = Path("outputs/lr_finder")


def accuracy(overrides: list[str], lr: float, name: str) -> float:
    run_dir = FOLDER / name / f"lr-{lr:.4g}"
    if record := runs.read_record(run_dir):
        return record["metrics"]["val/acc"]
    (job,) = Composer("train").jobs([*overrides, f"optimizer.lr={lr}", "test=false", "page=false"])
    try:
        return run_in(run_dir, job.cfg, train_run)["metrics"]["val/acc"]
    except Diverged:
        return 0.0


def measure(network: str, optimizer: str, epochs: int, more: list[str]) -> dict:
    overrides = [*NETWORKS[network], f"optimizer={optimizer}", *more]
    name = f"{network}-{optimizer}-{runs.digest([*overrides, str(epochs)])}"
    kept = FOLDER / name / "lr_range_test.json"
    if not kept.exists():
        kept.parent.mkdir(parents=True, exist_ok=True)
        run_range_test(Composer("train").jobs(overrides)[0].cfg).save(kept.parent)
    others = json.loads(kept.read_text())
    rule, _ = others.pop("suggested"), others.pop("probes")
    lr = others.pop(rule)
    overrides += ["scheduler=one_cycle", f"trainer.max_epochs={epochs}"]
    suggested = {"rule": rule, "lr": lr, "val/acc": accuracy(overrides, lr, name)}
    grid = {lr: accuracy(overrides, lr, name) for lr in GRIDS[optimizer]}
    return {"network": network, "optimizer": optimizer, "suggested": suggested, "grid": grid, "other rules": others}


def row(result: dict) -> str:
    suggested = result["suggested"]
    best_lr, best = max(result["grid"].items(), key=lambda item: item[1])
    cells = [
        result["network"],
        result["optimizer"],
        f"{suggested['lr']:.3g}: {suggested['val/acc']:.2%}",
        f"{best_lr:g}: {best:.2%}",
        f"{(best - suggested['val/acc']) * 100:.1f}",
        *(f"{lr:.3g}" for lr in result["other rules"].values()),
    ]
    return f"| {' | '.join(cells)} |"


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--networks", nargs="*", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--optimizers", nargs="*", choices=GRIDS, default=list(GRIDS))
    parser.add_argument("--epochs", type=positive, default=3)
    options, more = parser.parse_known_args()
    about = begin()
    logging.getLogger("cifar_resnet").setLevel(logging.WARNING)
    results, rows = [], []
    with kept_images():
        for network, optimizer in itertools.product(options.networks, options.optimizers):
            results.append(measure(network, optimizer, options.epochs, more))
            rows.append(row(results[-1]))
            print(rows[-1], flush=True)
    rule, others = results[0]["suggested"]["rule"], list(results[0]["other rules"])
    head = ["network", "optimizer", f"suggested ({rule})", "best of the grid", "points lost", *others]
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}", *rows, sep="\n")
    save(options.json, about, results=results)


if __name__ == "__main__":
    main()
