"""How many epochs a start from other weights saves.

    python benchmarks/fine_tuning.py

A ResNet-20 learns five of the synthetic figures; from its weights, and from scratch, networks then learn the other
five, a fifth as many images of each. From other weights everything but the classifier learns at a fifth of the rate.
For each seed: the first epoch after which 90% of the validation images are right. The learning rate is what was best
from scratch on seeds 10 and 11, of 0.015, 0.03 and 0.1; the fifth was best of 0.05, 0.1, 0.2 and 1 on the same seeds
(trials of which no record was kept). Both have averaged weights.
"""

import tempfile
from pathlib import Path

import numpy as np
from figures import begin, parser_of, positive, save

from cifar_resnet import runs
from cifar_resnet.api import train
from cifar_resnet.data import Synthetic

GOAL = 0.9
SHARED = (
    "model=resnet20", "data=files", "augment.cutout_size=0", "optimizer.lr=0.03", "test=false", "page=false",
    "logger=none",
)  # fmt: skip


def write(folder: Path, name: str, classes: range, per_class: int) -> list[str]:
    """Some of the figures as archives; the overrides that name them."""
    for half, count in (("train", per_class), ("test", 40)):
        images, labels = Synthetic(num_train=20 * count, num_test=20 * count, image_seed=7).read(half == "train")
        kept = np.concatenate([(labels == label).nonzero()[:count, 0] for label in classes])
        named = np.array(Synthetic.classes)[list(classes)]
        path = folder / f"{name}-{half}.npz"
        np.savez(path, images=images[kept].numpy(), labels=labels[kept].numpy() - classes[0], classes=named)
    return [f"data.{half}={folder / f'{name}-{half}.npz'}" for half in ("train", "test")]


def epochs_until(record: dict) -> int | None:
    """The first after which the goal is reached; None where it is not."""
    rows = runs.read_metrics(Path(record["run_dir"]) / runs.METRICS)
    return next((number for number, row in enumerate(rows, 1) if float(row["val/acc"]) >= GOAL), None)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--epochs", type=positive, default=60, help="at most, of each")
    parser.add_argument("--per-class", type=positive, default=100, help="images of the new classes")
    options = parser.parse_args()
    about = begin()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        first = write(folder, "first", range(5), 5 * options.per_class)
        then = [
            *write(folder, "then", range(5, 10), options.per_class),
            "data.batch_size=32",
            "data.num_val=0.3",
            "scheduler=constant",
            "averaging=ema",
            "averaging.decay=0.9",
        ]
        known = train([*SHARED, *first, "scheduler=one_cycle", "trainer.max_epochs=20", f"run_dir={folder / 'known'}"])
        tuned = [f"init={known['run_dir']}", "model.lr_factors={conv1: 0.2, bn1: 0.2, stages: 0.2}"]
        found = []
        for seed in range(options.seeds):
            row = {"seed": seed}
            for name, more in (("scratch", []), ("tuned", tuned)):
                length = [
                    f"trainer.max_epochs={options.epochs}",
                    f"seed={seed}",
                    f"run_dir={folder / f'{name}-{seed}'}",
                ]
                row[name] = epochs_until(train([*SHARED, *then, *length, *more]))
            found.append(row)
            print(f"seed {seed}: from scratch {row['scratch']} epochs, from other weights {row['tuned']}", flush=True)
    save(options.json, about, goal=GOAL, results=found)


if __name__ == "__main__":
    main()
