"""Where the time of a training step goes, and what it would be if there were only its convolutions.

    python benchmarks/step_profile.py                     # ResNet-18 at batch 128
    python benchmarks/step_profile.py resnet20@512 speednet@500 --json shares.json
    python benchmarks/step_profile.py resnet20@512 --trace trace.json      # open it in chrome://tracing or Perfetto

First the bare step (throughput.py's: forward, backward, optimizer, on one batch in memory) takes turns with its own
convolutions: those of one such step, forward and backward, called again with the tensors that they had there. The share
is the median of the ratios of their times. FLOP/s are six for each multiply-add of the whole network's forward pass;
beside them, a large product of matrices in the same precision.

Then torch's profiler looks at cifar-train's own loop: the kinds of operations that a step's time goes to, those that
take most, and how much passes outside of all operations, which is Python's, Lightning's and the callbacks' share. On a
GPU also how much of the step the GPU works at all. The profiler's own work is in these figures, of many small
operations most of all. Nothing else should run meanwhile.
"""

import os
import re
import statistics
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or torch's profiler reports the GPU that a CPU machine lacks

import torch
from figures import begin, parser_of, save
from lightning.pytorch import Callback, LightningModule, Trainer
from throughput import DTYPES, Bare, Ours, matmul_flops, synchronize
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from cifar_resnet.models.summary import num_macs

KINDS = {  # of operations, by their names; the first that fits
    "convolutions": "convolution",
    "products of matrices": r"mm$|linear|matmul",
    "norm layers": "batch_norm|layer_norm|group_norm",
    "activations": "relu|threshold|clamp|gelu|silu",
    "pooling": "pool|mean",
    "casts, copies and layout": "copy|clone|contiguous|aten::to$|aten::cat$|index_select|aten::index$",
    "the optimizer's": "foreach|fused|lerp|addcdiv",
    "additions": r"aten::add_?$",
}


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


class Convolutions(TorchDispatchMode):
    """Keeps the convolutions that are called within it, forward and backward, with their tensors."""

    NAMES = ("aten::convolution", "aten::_convolution", "aten::convolution_backward", "aten::cudnn_convolution")

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Callable, tuple, dict]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        if func.name().partition(".")[0] in self.NAMES:
            self.calls.append((func, args, kwargs))
        return func(*args, **kwargs)

    @torch.no_grad()
    def again(self) -> None:
        for func, args, kwargs in self.calls:
            func(*args, **kwargs)


def timed(call: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def shares(ours: Ours, batch_size: int, rounds: int) -> dict[str, Any]:
    """How the bare step's time compares with its convolutions'."""
    bare = Bare(ours.new_model(), ours.precision, batch_size)
    for _ in range(3):
        bare.step()
    convolutions = Convolutions()
    with convolutions:
        bare.step()
    pairs = [(timed(bare.step), timed(convolutions.again)) for _ in range(1 + rounds)][1:]
    step, alone = (statistics.median(each) for each in zip(*pairs, strict=True))
    flops = 6 * num_macs(bare.model, ours.data.image_shape) * batch_size
    return {
        "step_seconds": step,
        "convolution_seconds": alone,
        "share": statistics.median(alone / whole for whole, alone in pairs),
        "step_flops": flops / step,
        "convolution_flops": flops / alone,
        "calls": len(convolutions.calls),
    }


def kind_of(name: str) -> str:
    return next((kind for kind, pattern in KINDS.items() if re.search(pattern, name)), "all others")


def profiled(ours: Ours, steady: Steady, rows: int, trace: Path | None) -> dict[str, object]:
    """Print where the time goes; seconds a step by kind of operation, and how busy a GPU is."""
    ours.fit(steady)
    found = steady.profile.key_averages()
    on_gpu = torch.cuda.is_available()
    key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    print(found.table(sort_by=key, row_limit=rows, max_name_column_width=48))
    events = [event for event in steady.profile.events() if event.device_type == DeviceType.CPU]
    begun, ended = min(event.time_range.start for event in events), max(event.time_range.end for event in events)
    span = ended - begun
    # Lightning runs the whole step within the optimizer's: what that annotation has to itself is Python
    operations = [
        # on a GPU each has its kernels' time, which are there a second time by themselves
        event
        for event in found
        if event.device_type == DeviceType.CPU and not event.key.startswith("Optimizer.step")
    ]
    within = sum(event.self_cpu_time_total for event in operations)
    kinds = Counter({"outside of all operations": max(0.0, span - within)} if not on_gpu else {})
    for event in operations:
        kinds[kind_of(event.key)] += getattr(event, key)
    of_gpu: dict[str, object] = {}
    print(f"a step takes {span / steady.steps / 1e3:.1f} ms, profiled; of {'the kernels' if on_gpu else 'that'}")
    for kind, microseconds in kinds.most_common():
        print(f"  {kind:28}{microseconds / steady.steps / 1e3:9.2f} ms{microseconds / kinds.total():8.1%}")
    if on_gpu:
        print(f"outside of all operations: {max(0.0, 1 - within / span):.1%} of it")
        kernels = [event for event in found if event.device_type == DeviceType.CUDA and not event.is_user_annotation]
        busy = sum(event.self_device_time_total for event in kernels)
        launched = sum(event.count for event in kernels) / steady.steps
        print(f"the GPU works {busy / span:.1%} of it")
        print(f"{launched:.0f} kernels a step")
        of_gpu = {"gpu_busy": busy / span, "kernels": launched}
    if trace:
        steady.profile.export_chrome_trace(str(trace))
    return of_gpu | {"profiled_seconds": {kind: each / steady.steps / 1e6 for kind, each in kinds.most_common()}}


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", default=["resnet18@128"], help="network@batch_size")
    parser.add_argument("--rounds", type=int, default=15, help="turns of the bare step and its convolutions")
    parser.add_argument("--steps", type=int, default=8, help="that are profiled")
    parser.add_argument("--rows", type=int, default=15, help="operations that are named")
    parser.add_argument("--trace", type=Path, help="also write the last network's trace here")
    options, overrides = parser.parse_known_args()
    networks = [text for text in options.networks if "=" not in text]
    overrides += [text for text in options.networks if "=" in text]
    about = begin()
    results, most = [], None
    for name in networks or ["resnet18@128"]:
        network, _, batch_size = name.partition("@")
        steady = Steady()
        ours = Ours(network, int(batch_size), int(batch_size) * (options.steps + steady.warm_up), *overrides)
        if most is None:
            most = matmul_flops(DTYPES.get(ours.precision))
            print(f"a large product of matrices: {most / 1e9:,.0f} GFLOP/s\n")
        found = shares(ours, int(batch_size), options.rounds)
        print(
            f"{name}: the bare step {1e3 * found['step_seconds']:.1f} ms, {found['step_flops'] / 1e9:,.0f} GFLOP/s "
            f"({found['step_flops'] / most:.1%} of the product's); its {found['calls']} convolutions alone "
            f"{1e3 * found['convolution_seconds']:.1f} ms, {found['convolution_flops'] / 1e9:,.0f} GFLOP/s; "
            f"they are {found['share']:.3f} of it\n",
            flush=True,
        )
        found |= profiled(ours, steady, options.rows, options.trace)
        results.append({"network": network, "batch_size": int(batch_size), **found})
    save(options.json, about, matmul_flops=most, results=results)


if __name__ == "__main__":
    main()
