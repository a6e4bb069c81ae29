"""Where the time of a training step goes, and what it would be if there were only its convolutions.

    python benchmarks/step_profile.py                     # ResNet-18 at batch 128
    python benchmarks/step_profile.py resnet20@512 speednet@500 --json shares.json
    python benchmarks/step_profile.py resnet20@512 --trace trace.json      # open it in chrome://tracing or Perfetto
    python benchmarks/step_profile.py resnet20@512 --compile --beside ../another_checkout

First the bare step (throughput.py's: forward, backward, optimizer, on one batch in memory) takes turns with its own
convolutions: those of one such step, forward and backward, called again with the tensors that they had there. The share
is the median of the ratios of their times. FLOP/s are six for each multiply-add of the whole network's forward pass;
beside them, a large product of matrices in the same precision. With --compile the step as torch.compile makes it takes
its turn as well. With --beside the bare step of another commit is compared with this one's, each in a process of its
own, for a few percent depend on what else a process holds in memory.

Then torch's profiler looks at cifar-train's own loop: the kinds of operations that a step's time goes to, those that
take most, and how much passes outside of all operations, which is Python's, Lightning's and the callbacks' share. On a
GPU also how much of the step the GPU works at all. The profiler's own work is in these figures, of many small
operations most of all. Nothing else should run meanwhile.
"""

import os
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "5")  # or torch's profiler reports the GPU that a CPU machine lacks

import torch
from figures import NetworkAt, begin, parser_of, positive, save
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


class Elsewhere:
    """The bare step of a checkout of this project, whose benchmarks/throughput.py has Ours and Bare, too."""

    SERVE = """
import sys
folder, network, batch_size = sys.argv[1:]
sys.path[:0] = [f"{folder}/benchmarks", folder]
import cifar_resnet
from throughput import Bare, Ours
assert cifar_resnet.__file__.startswith(folder), cifar_resnet.__file__
ours = Ours(network, int(batch_size), int(batch_size))
bare = Bare(ours.new_model(), ours.precision, int(batch_size))
for line in sys.stdin:
    bare.go_on(1)
    print("done", file=sys.__stdout__, flush=True)
"""

    def __init__(self, folder: Path, network: str, batch_size: int):
        of_git = ["git", "-C", str(folder), "rev-parse", "--short=12", "HEAD"]
        self.commit = subprocess.check_output(of_git, text=True).strip()
        # as keep_freed_memory does, whatever it is called there
        memory = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": str(2**62)}
        command = [sys.executable, "-c", self.SERVE, str(folder.resolve()), network, str(batch_size)]
        self.process = subprocess.Popen(
            command, env=os.environ | memory, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )

    def step(self) -> None:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        while (line := self.process.stdout.readline()) != "done\n":
            if not line:
                sys.exit(f"the bare step at {self.commit} ended with status {self.process.wait()}")

    def close(self) -> None:
        self.process.communicate()


def medians(calls: dict[str, Callable[[], None]], base: str, rounds: int) -> dict[str, float]:
    """Seconds of each call, and of what part of the base's time that is; they take turns."""
    found = [{name: timed(call) for name, call in calls.items()} for _ in range(2 + rounds)][2:]
    seconds = {f"{name}_seconds": statistics.median(each[name] for each in found) for name in calls}
    return seconds | {
        f"{name} / {base}": statistics.median(each[name] / each[base] for each in found)
        for name in calls
        if name != base
    }


def beside(folder: Path, network: str, batch_size: int, rounds: int) -> dict[str, Any]:
    """How the bare step of another checkout compares with this one's."""
    here, there = (Elsewhere(each, network, batch_size) for each in (Path(__file__).parents[1], folder))
    found = medians({"here": here.step, "there": there.step}, "there", rounds)
    here.close()
    there.close()
    return {"there_commit": there.commit, **found}


def timed(call: Callable[[], None]) -> float:
    synchronize()
    start = time.perf_counter()
    call()
    synchronize()
    return time.perf_counter() - start


def shares(ours: Ours, batch_size: int, rounds: int, compiled: bool) -> dict[str, Any]:
    """How the bare step's time compares with its convolutions', and with the compiled one's."""
    bare = Bare(ours.new_model(), ours.precision, batch_size)
    for _ in range(3):
        bare.step()
    convolutions = Convolutions()
    with convolutions:
        bare.step()
    calls = {"bare": bare.step, "convolutions": convolutions.again}
    found: dict[str, Any] = {"calls": len(convolutions.calls)}
    if compiled:
        by_compiler = Bare(ours.new_model(), ours.precision, batch_size)
        by_compiler.model.compile()
        found["compile_seconds"] = timed(by_compiler.step)
        calls["compiled"] = by_compiler.step
    found |= medians(calls, "bare", rounds)
    flops = 6 * num_macs(bare.model, ours.data.image_shape) * batch_size
    return found | {f"{name}_flops": flops / found[f"{name}_seconds"] for name in ("bare", "convolutions")}


def sentence(name: str, found: dict[str, Any], most: float) -> str:
    lines = [
        f"{name}: the bare step {1e3 * found['bare_seconds']:.1f} ms, {found['bare_flops'] / 1e9:,.0f} GFLOP/s "
        f"({found['bare_flops'] / most:.1%} of the product's); its {found['calls']} convolutions alone "
        f"{1e3 * found['convolutions_seconds']:.1f} ms, {found['convolutions_flops'] / 1e9:,.0f} GFLOP/s; "
        f"they are {found['convolutions / bare']:.3f} of it"
    ]
    if "compile_seconds" in found:
        lines.append(
            f"compiled {1e3 * found['compiled_seconds']:.1f} ms, {found['compiled / bare']:.3f} of the bare step's, "
            f"after {found['compile_seconds']:.0f} s"
        )
    if "there_commit" in found:
        lines.append(
            f"each in a process of its own, the bare step {1e3 * found['here_seconds']:.1f} ms, at "
            f"{found['there_commit']} {1e3 * found['there_seconds']:.1f} ms; {found['here / there']:.3f} of that"
        )
    return "\n".join(lines)


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


def network_or_override(text: str) -> NetworkAt | str:
    return text if "=" in text else NetworkAt.read(text)


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", default=[], type=network_or_override, help="network@batch_size")
    parser.add_argument("--rounds", type=positive, default=15, help="turns of the bare step and its convolutions")
    parser.add_argument("--steps", type=positive, default=8, help="that are profiled")
    parser.add_argument("--rows", type=positive, default=15, help="operations that are named")
    parser.add_argument("--compile", action="store_true", help="compare with the compiled step")
    parser.add_argument("--beside", type=Path, metavar="FOLDER", help="compare with another checkout's bare step")
    parser.add_argument("--trace", type=Path, help="also write the last network's trace here")
    options, overrides = parser.parse_known_args()
    networks = [each for each in options.networks if isinstance(each, NetworkAt)]
    overrides += [each for each in options.networks if isinstance(each, str)]
    about = begin()
    results, most = [], None
    for name in networks or [NetworkAt("resnet18", 128)]:
        network, batch_size = name
        steady = Steady()
        ours = Ours(network, batch_size, batch_size * (options.steps + steady.warm_up), *overrides)
        if most is None:
            most = matmul_flops(DTYPES.get(ours.precision))
            print(f"a large product of matrices: {most / 1e9:,.0f} GFLOP/s\n")
        found = shares(ours, batch_size, options.rounds, options.compile)
        if options.beside:
            found |= beside(options.beside, network, batch_size, options.rounds)
        print(sentence(str(name), found, most), end="\n\n", flush=True)
        found |= profiled(ours, steady, options.rows, options.trace)
        results.append({"network": network, "batch_size": batch_size, **found})
    save(options.json, about, matmul_flops=most, results=results)


if __name__ == "__main__":
    main()
