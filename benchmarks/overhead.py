"""What a whole command spends outside of bare training steps, from its start to its result record.

    python benchmarks/overhead.py                                        # experiment=speed94 on synthetic images
    python benchmarks/overhead.py experiment=speed94 data.root=data      # any overrides of cifar-train

The command runs in a process of its own, with one callback more: every few steps the bare loop (throughput.py's: the
same network, optimizer, precision, batch size and image size, on one fixed batch in memory) takes a step, so that
whatever else the machine does meets both. The time that these take is subtracted. What is printed as ± is one standard
error: steps of the same work differ in length, and the bare loop takes only some. Nothing else should run meanwhile.

So that lengths of runs compare between machines, and between a machine's good hours and its bad ones, the command's is
also said as the number of images that ResNet-18's bare loop, which takes its turn as well, handles in that time.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch
from figures import begin, parser_of, save
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from throughput import Bare, Ours, synchronize

from cifar_resnet.instantiation import instantiate

DEFAULT = ["experiment=speed94", "data=synthetic", "data.num_train=50000", "data.num_test=10000"]
WARM_UP = 8  # ours alone, so that the bare loop's memory is never there before


class Between(Callback):
    """Has the bare loops take their turn before every so many of ours, and writes down when what happened."""

    needs_no_batch = True

    def __init__(self, path: str):
        self.path = Path(path)
        self.every, self.turn = (32, 8) if torch.cuda.is_available() else (4, 1)  # a GPU waits at each change of turns
        self.same: Bare | None = None
        self.yardstick: Bare | None = None
        self.bare_steps: dict[int, list[float]] = {}  # by the side of the images, in pixels
        self.num_steps, self.away = Counter(), 0.0

    def build(self, cfg: DictConfig, num_classes: int, precision: str, image_size: int) -> None:
        model = instantiate(cfg.model, num_classes=num_classes, optimizer=cfg.optimizer, _convert_="all")
        self.same = set_up(Bare(model, precision, cfg.data.batch_size, image_size=image_size))
        self.yardstick = self.yardstick or set_up(Bare(Ours("resnet18", 128, 1280).new_model(), precision, 128))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        steps, image_size = self.num_steps.total(), batch[0].shape[-1]
        is_their_turn = steps >= WARM_UP and steps % self.every == 0
        if is_their_turn:
            synchronize()
        now = time.time()
        if steps == 0:
            self.first_step = now
        if is_their_turn:
            if image_size not in self.bare_steps:
                classes = pl_module.hparams.num_classes
                self.build(OmegaConf.create(pl_module.config), classes, trainer.precision, image_size)
            start = time.perf_counter()
            self.same.go_on(self.turn)
            self.bare_steps.setdefault(image_size, []).append((time.perf_counter() - start) / self.turn)
            self.yardstick.go_on(self.turn)
        self.num_steps[image_size] += 1
        self.away += time.time() - now

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if any(len(self.bare_steps.get(size, ())) < 2 for size in self.num_steps):
            least = max(WARM_UP, self.every) + self.every
            raise SystemExit(f"too short to compare. Got {dict(self.num_steps)} steps by size; give more than {least}")
        notes = {
            "steps": self.num_steps,
            "first_step": self.first_step,
            "trained": time.time(),
            "away": self.away,
            "bare_step": {size: statistics.mean(taken) for size, taken in self.bare_steps.items()},
            "bare_step_error": {
                size: statistics.stdev(taken) / len(taken) ** 0.5 for size, taken in self.bare_steps.items()
            },
            "yardstick": self.yardstick.images_per_second(),
        }
        self.path.write_text(json.dumps(notes))


def set_up(bare: Bare) -> Bare:
    """After a step, which is forgotten."""
    bare.go_on(1)
    bare.images_per_second()
    return bare


def measure(overrides: list[str]) -> dict:
    """Seconds of the command and of its parts."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        between = ["+callbacks.between._target_=overhead.Between", "+callbacks.between.path=${run_dir}/between.json"]
        command = [sys.executable, "-m", "cifar_resnet.train", *overrides, f"run_dir={run_dir}", *between]
        start = time.time()
        done = subprocess.run(
            command,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])},
        )
        if done.returncode:  # it has said why
            sys.exit(done.returncode)
        notes = json.loads((run_dir / "between.json").read_text())
        record = run_dir / "result.json"
        bare = sum(count * notes["bare_step"][size] for size, count in notes["steps"].items())
        error = math.hypot(*(count * notes["bare_step_error"][size] for size, count in notes["steps"].items()))
        command_seconds = record.stat().st_mtime - start - notes["away"]
        return {
            "steps": notes["steps"],
            "bare_step": notes["bare_step"],
            "bare_step_error": notes["bare_step_error"],
            "seconds": command_seconds,
            "parts": {
                "start, to the first step": notes["first_step"] - start,
                "bare steps": bare,
                "training beyond them": notes["trained"] - notes["first_step"] - notes["away"] - bare,
                "test, to the record": record.stat().st_mtime - notes["trained"],
            },
            "outside": 1 - bare / command_seconds,
            "outside_error": error / command_seconds,
            "yardstick": notes["yardstick"],
            "yardstick_images": notes["yardstick"] * command_seconds,
            "training_flops": json.loads(record.read_text())["training_flops"],
        }


def main() -> None:
    parser = parser_of(__doc__)
    options, overrides = parser.parse_known_args()
    overrides = overrides or DEFAULT
    about = begin()
    found = measure(overrides)
    for size, count in found["steps"].items():
        step, error = found["bare_step"][size], found["bare_step_error"][size]
        print(f"\n{count} steps on images of {size} pixels; a bare one takes {step:.3f} ± {error:.3f} s")
    for part, seconds in found["parts"].items():
        print(f"  {part:28}{seconds:8.1f} s{seconds / found['seconds']:8.1%}")
    print(f"  {'whole command':28}{found['seconds']:8.1f} s")
    print(f"  outside of the bare steps: {found['outside']:.1%} ± {found['outside_error']:.1%}")
    print(
        f"  as long as {found['yardstick_images']:,.0f} images take in the bare loop of ResNet-18, of which there were "
        f"{found['yardstick']:.0f} a second"
    )
    told = [override for override in overrides if not override.startswith("data.root=")]  # a place on this machine
    save(options.json, about, overrides=told, **found)


if __name__ == "__main__":
    main()
