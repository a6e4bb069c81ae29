"""How long it takes until training begins: from the command to the first step, and from job to job of a sweep.

    python benchmarks/startup.py                          # on synthetic images
    python benchmarks/startup.py data=cifar10             # any overrides of cifar-train

One sweep of `--jobs` jobs of one epoch of a small network is run in a process of its own. The first line is the time
from the start of that process to its first training step, beside that of `python -c "import torch"`; the second the
time from one job's record to the next job's first step. Nothing else should run meanwhile.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from figures import begin, parser_of, positive, save
from lightning.pytorch import Callback, LightningModule, Trainer

SMALL = [
    "model=resnet_cifar", "model.depth=8", "model.widths=[4,4,4]", "trainer.max_epochs=1", "page=false",
    "trainer.limit_train_batches=2", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1",
]  # fmt: skip


class Clock(Callback):
    """Notes when the first step begins."""

    def __init__(self, path: str):
        self.path = Path(path)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        if batch_idx == 0:
            self.path.write_text(str(time.time()))


def seconds_of(command: list[str]) -> float:
    start = time.time()
    subprocess.run(command, check=True)
    return time.time() - start


def measure(jobs: int, overrides: list[str]) -> tuple[float, list[float]]:
    """Seconds to the first step, and from the end of each job to the first step of the next."""
    with tempfile.TemporaryDirectory() as folder:
        clock = ["+callbacks.clock._target_=startup.Clock", "+callbacks.clock.path=${run_dir}/clock.txt"]
        seeds = f"seed=range(0,{jobs})"
        command = [sys.executable, "-m", "cifar_resnet.train", "-m", seeds, f"output_dir={folder}", *SMALL, *clock]
        data = [] if any(text.startswith("data=") for text in overrides) else ["data=synthetic"]
        start = time.time()
        subprocess.run(
            [*command, *data, *overrides],
            check=True,
            stdout=subprocess.DEVNULL,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])},
        )
        (sweep,) = Path(folder).glob("train/*")
        run_dirs = [sweep / f"seed-{seed}" for seed in range(jobs)]
        firsts = [float((run_dir / "clock.txt").read_text()) for run_dir in run_dirs]
        ends = [(run_dir / "result.json").stat().st_mtime for run_dir in run_dirs]
    return firsts[0] - start, [first - end for first, end in zip(firsts[1:], ends[:-1], strict=True)]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--jobs", type=positive, default=4)
    options, overrides = parser.parse_known_args()
    about = begin()
    seconds_of([sys.executable, "-c", "import torch"])  # the first finds the files cold
    rounds = []
    for _ in range(options.rounds):
        first, between = measure(options.jobs, overrides)
        rounds.append(
            {"import": seconds_of([sys.executable, "-c", "import torch"]), "first": first, "between": between}
        )
    imports, first = (statistics.median(entry[key] for entry in rounds) for key in ("import", "first"))
    between = [seconds for entry in rounds for seconds in entry["between"]]
    ratio = statistics.median(entry["first"] / entry["import"] for entry in rounds)
    print(f"command to first step     {first:6.2f} s   {ratio:.2f} times import torch ({imports:.2f} s)")
    print(f"job to job of a sweep     {statistics.median(between):6.2f} s   at most {max(between):.2f} s")
    save(options.json, about, overrides=overrides, rounds=rounds)


if __name__ == "__main__":
    main()
