"""Where the time of a training step goes: torch's profiler over cifar-train's own loop.

    python benchmarks/step_profile.py                     # ResNet-18 at batch 128
    python benchmarks/step_profile.py resnet20@512 --trace trace.json      # open it in chrome://tracing or Perfetto

Prints the operations that take most, and how much of a step passes outside of all operations: that is Python's,
Lightning's and the callbacks' share. On a GPU also how much of the step the GPU works at all.
"""

import argparse
import os
from pathlib import Path

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or torch's profiler reports the GPU that a CPU machine lacks

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from throughput import Ours, begin, synchronize
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile


class Steady(Callback):
    """Profiles all steps but the first few."""

    needs_no_batch = True

    def __init__(self, warm_up: int = 3):
        self.warm_up = warm_up
        self.steps = 0
        activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
        self.profile = profile(activities=activities)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        if batch_idx == self.warm_up:
            synchronize()
            self.profile.start()
        self.steps = batch_idx + 1 - self.warm_up

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        synchronize()
        self.profile.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", nargs="?", default="resnet18@128", help="network@batch_size")
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=15)
    parser.add_argument("--trace", type=Path, help="also write the trace here")
    options, overrides = parser.parse_known_args()
    begin()
    network, _, batch_size = options.network.partition("@")
    steady = Steady()
    images = int(batch_size) * (options.steps + steady.warm_up)
    ours = Ours(network, int(batch_size), images, *overrides)
    ours.fit(steady)

    found = steady.profile.key_averages()
    key = "self_device_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
    print(found.table(sort_by=key, row_limit=options.rows, max_name_column_width=48))
    events = [event for event in steady.profile.events() if event.device_type == DeviceType.CPU]
    begun, ended = min(event.time_range.start for event in events), max(event.time_range.end for event in events)
    span = ended - begun
    print(f"a step takes {span / steady.steps / 1e3:.1f} ms, profiled")
    # Lightning runs the whole step within the optimizer's: what that annotation has to itself is Python
    within = sum(event.self_cpu_time_total for event in events if not event.name.startswith("Optimizer.step"))
    print(f"outside of all operations: {max(0.0, 1 - within / span):.1%} of it")
    if torch.cuda.is_available():
        kernels = [event for event in found if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
        busy = sum(event.self_device_time_total for event in kernels)
        print(f"the GPU works {busy / span:.1%} of it")
        print(f"{sum(event.count for event in kernels) / steady.steps:.0f} kernels a step")
    if options.trace:
        steady.profile.export_chrome_trace(str(options.trace))


if __name__ == "__main__":
    main()
