"""What a whole command spends outside of bare training steps, from its start to its result record.

    python benchmarks/overhead.py                                        # experiment=speed94 on synthetic images
    python benchmarks/overhead.py experiment=speed94 data.root=data      # any overrides of cifar-train

The command runs in a process of its own, with one callback more: every few steps the bare loop (throughput.py's: the
same network, optimizer, precision and batch size on one fixed batch in memory) takes a step, so that whatever else the
machine does meets both. The time that these take is subtracted. Nothing else should run meanwhile.

So that lengths of runs compare between machines, and between a machine's good hours and its bad ones, the command's is
also said as the number of images that ResNet-18's bare loop, which takes its turn as well, handles in that time.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from hydra.utils import instantiate
from lightning.pytorch import Callback, LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from throughput import Bare, Ours, begin, synchronize

DEFAULT = ["experiment=speed94", "data=synthetic", "data.num_train=50000", "data.num_test=10000"]
WARM_UP = 8  # ours alone, so that the bare loop's memory is never there before


class Between(Callback):
    """Has the bare loops take a step before every so many of ours, and writes down when what happened."""

    def __init__(self, path: str, every: int = 8):
        self.path, self.every = Path(path), every
        self.bare: dict[str, Bare] = {}
        self.steps, self.away = 0, 0.0

    def build(self, cfg: DictConfig, num_classes: int, precision: str) -> None:
        model = instantiate(cfg.model, num_classes=num_classes, optimizer=cfg.optimizer, _convert_="all")
        self.bare["same"] = Bare(model, precision, cfg.data.batch_size)
        self.bare["yardstick"] = Bare(Ours("resnet18", 128, 1280).new_model(), precision, 128)
        for bare in self.bare.values():
            bare.go_on(1)
            bare.images_per_second()  # forgets that one

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        is_their_turn = self.steps >= WARM_UP and self.steps % self.every == 0
        if is_their_turn:
            synchronize()
        now = time.time()
        if self.steps == 0:
            self.first_step = now
        if is_their_turn:
            if not self.bare:
                classes = pl_module.hparams.num_classes
                self.build(OmegaConf.create(pl_module.config), classes, trainer.precision)
            for bare in self.bare.values():
                bare.go_on(1)
        self.steps += 1
        self.away += time.time() - now

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self.bare:
            raise SystemExit(f"too short to compare. Got {self.steps} steps; give more than {WARM_UP}")
        notes = {
            "steps": self.steps,
            "first_step": self.first_step,
            "trained": time.time(),
            "away": self.away,
            "bare_step": pl_module.config["data"]["batch_size"] / self.bare["same"].images_per_second(),
            "yardstick": self.bare["yardstick"].images_per_second(),
        }
        self.path.write_text(json.dumps(notes))


def measure(overrides: list[str]) -> dict:
    """Seconds of the command and of its parts."""
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder, "run")
        between = ["+callbacks.between._target_=overhead.Between", "+callbacks.between.path=${run_dir}/between.json"]
        command = [sys.executable, "-m", "cifar_resnet.train", *overrides, f"run_dir={run_dir}", *between]
        start = time.time()
        done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)})
        if done.returncode:  # it has said why
            sys.exit(done.returncode)
        notes = json.loads((run_dir / "between.json").read_text())
        record = run_dir / "result.json"
        bare = notes["steps"] * notes["bare_step"]
        command_seconds = record.stat().st_mtime - start - notes["away"]
        return {
            "steps": notes["steps"],
            "bare_step": notes["bare_step"],
            "command": command_seconds,
            "parts": {
                "start, to the first step": notes["first_step"] - start,
                "bare steps": bare,
                "training beyond them": notes["trained"] - notes["first_step"] - notes["away"] - bare,
                "test, to the record": record.stat().st_mtime - notes["trained"],
            },
            "outside": 1 - bare / command_seconds,
            "yardstick": notes["yardstick"],
            "yardstick_images": notes["yardstick"] * command_seconds,
            "training_flops": json.loads(record.read_text())["training_flops"],
        }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options, overrides = parser.parse_known_args()
    overrides = overrides or DEFAULT
    about = begin()
    found = measure(overrides)
    print(f"\n{found['steps']} steps; a bare one takes {found['bare_step']:.3f} s")
    for part, seconds in found["parts"].items():
        print(f"  {part:28}{seconds:8.1f} s{seconds / found['command']:8.1%}")
    print(f"  {'whole command':28}{found['command']:8.1f} s, {found['outside']:.1%} of it outside of the bare steps")
    print(
        f"  as long as {found['yardstick_images']:,.0f} images take in the bare loop of ResNet-18, of which there were "
        f"{found['yardstick']:.0f} a second"
    )
    if options.json:
        options.json.write_text(json.dumps(about | {"overrides": overrides} | found, indent=2) + "\n")


if __name__ == "__main__":
    main()
