"""Kills a training again and again, at random moments, and resumes it: does it end as if it had never been stopped?

    python benchmarks/kills.py                                # 50 kills for each of four recipes, some ten minutes
    python benchmarks/kills.py --kills 5 --epochs 25 sgd

Each life is a process of its own that runs `cifar-train … resume=auto`. It is killed by SIGKILL: after a random time,
or, every third time, at the moment when a checkpoint is being written; some are asked to stop by SIGTERM instead. In
the end weights, optimizer, every epoch's metrics and the test score are compared, bit for bit, with those of a run that
was left alone. Works where processes can be forked.
"""

import argparse
import csv
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from pathlib import Path

import torch

# all that a training imports, so that a forked process need not
from cifar_resnet import cli, train  # noqa: F401

RECIPES = {
    "sgd": ["optimizer=sgd", "scheduler=cosine", "model.dropout=0.1"],
    "adam": ["optimizer=adam", "optimizer.lr=0.01", "scheduler=one_cycle", "augment=randaugment"],
    "sam": ["optimizer=sam", "scheduler=cosine"],
    "ema": ["averaging=ema", "averaging.decay=0.9", "scheduler=linear"],
}
SMALL = [
    "data=synthetic", "data.num_train=240", "data.num_val=40", "data.num_test=50", "data.batch_size=40", "page=false",
    "model=resnet_cifar", "model.depth=8", "model.widths=[4,8,8]", "precision=32-true", "resume=auto",
]  # fmt: skip


def begin(run_dir: Path, overrides: list[str]) -> int:
    """Start a life of the training; its process number."""
    if child := os.fork():
        return child
    said = os.open(run_dir.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(said, 1)
    os.dup2(said, 2)
    code = 70
    try:
        code = cli.train([*SMALL, *overrides, f"run_dir={run_dir}"])
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)  # nothing of what the parent does after a life


def is_alive(child: int) -> bool:
    return os.waitpid(child, os.WNOHANG) == (0, 0)


def wait_for_a_write(child: int, run_dir: Path) -> None:
    """Until a checkpoint is being written, if it comes to that."""
    parts = [run_dir / "checkpoints" / f"{name}.ckpt.part" for name in ("best", "last")]
    while is_alive(child) and not any(part.exists() for part in parts):
        pass


def train_with_kills(
    run_dir: Path, overrides: list[str], kills: int, longest_life: float, dice: random.Random
) -> dict[str, int] | None:
    """Kill so many times, then let it finish; how often each way was taken, or None where it ended before."""
    ways = {"SIGKILL": 0, "SIGKILL while writing": 0, "SIGTERM": 0}
    while sum(ways.values()) < kills:
        child = begin(run_dir, overrides)
        way = list(ways)[sum(ways.values()) % 3]
        if way == "SIGKILL while writing":
            for _ in range(dice.randrange(1, 4)):
                wait_for_a_write(child, run_dir)
        else:
            time.sleep(dice.uniform(0, longest_life))
        try:
            os.kill(child, signal.SIGTERM if way == "SIGTERM" else signal.SIGKILL)
            os.waitpid(child, 0)
        except (ProcessLookupError, ChildProcessError):
            return None
        if (run_dir / "result.json").exists():
            return None
        ways[way] += 1
    train_undisturbed(run_dir, overrides)
    return ways


def train_undisturbed(run_dir: Path, overrides: list[str]) -> None:
    _, status = os.waitpid(begin(run_dir, overrides), 0)
    if status:
        said = run_dir.with_suffix(".log").read_text()[-2000:]
        sys.exit(f"{said}\na life that nobody ended ended with {os.waitstatus_to_exitcode(status)}")


def outcome(run_dir: Path) -> tuple[dict, dict, list, dict]:
    """Weights and averages, optimizer, metrics of each epoch, scores."""
    checkpoint = torch.load(run_dir / "checkpoints" / "last.ckpt", weights_only=True)
    weights = checkpoint["state_dict"] | {
        f"latest {name}": value for name, value in checkpoint.get("current_model_state", {}).items()
    }
    with (run_dir / "metrics.csv").open(newline="") as file:
        rows = [{key: value for key, value in row.items() if "per_second" not in key} for row in csv.DictReader(file)]
    scores = json.loads((run_dir / "result.json").read_text())["metrics"]
    return weights, checkpoint["optimizer_states"], rows, {k: v for k, v in scores.items() if "per_second" not in k}


def differences(a: object, b: object, where: str = "") -> list[str]:
    """Where two nested outcomes differ, and how."""
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        a, b = dict(enumerate(a)), dict(enumerate(b))
    if isinstance(a, dict) and isinstance(b, dict):
        found = [f"{where}/{key} in one alone" for key in a.keys() ^ b.keys()]
        return found + [text for key in a.keys() & b.keys() for text in differences(a[key], b[key], f"{where}/{key}")]
    if isinstance(a, torch.Tensor):
        return [] if torch.equal(a, b) else [where]
    return [] if a == b else [f"{where}: {a} and {b}"]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="*", default=list(RECIPES), help=", ".join(RECIPES))
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--epochs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # a process that has started OpenMP's threads cannot be forked
    names = ("weights", "optimizer", "metrics of each epoch", "scores")
    all_equal = True
    for recipe in options.recipes:
        overrides = [*RECIPES[recipe], f"trainer.max_epochs={options.epochs}"]
        with tempfile.TemporaryDirectory() as folder:
            alone, killed = Path(folder, "alone"), Path(folder, "killed")
            start = time.perf_counter()
            train_undisturbed(alone, overrides)
            longest_life = 1.6 * (time.perf_counter() - start) / (options.kills + 1)  # so that it lives to see them all
            dice, ways = random.Random(options.seed), None
            while ways is None:
                shutil.rmtree(killed, ignore_errors=True)
                ways = train_with_kills(killed, overrides, options.kills, longest_life, dice)
                longest_life /= 2  # where this machine has become faster
            found = [differences(a, b) for a, b in zip(outcome(alone), outcome(killed), strict=True)]
        all_equal &= not any(found)
        said = ", ".join(
            f"{name} {'DIFFERENT (' + '; '.join(differ[:5]) + ')' if differ else 'equal'}"
            for name, differ in zip(names, found, strict=True)
        )
        lives = ", ".join(f"{count} {way}" for way, count in ways.items())
        print(f"{recipe:6}{lives}: {said} ({time.perf_counter() - start:.0f} s)", flush=True)
    return 0 if all_equal else 1


if __name__ == "__main__":
    sys.exit(main())
