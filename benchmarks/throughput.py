"""Training speed, as ratios from one run: cifar-train's own loop, the bare loop, and the conventional pipeline.

    python benchmarks/throughput.py                      # make bench: ResNet-18 at batch 128, ResNet-20 at batch 512
    python benchmarks/throughput.py --rounds 9 resnet56@256

ours          the Trainer, data module, augmentation, optimizer, schedule and metrics of `cifar-train model=…`; the
              training epoch alone, as the run's own images/s
bare          the same network, precision and memory format on one fixed batch in memory: forward, backward, step
conventional  fp32, NCHW, per-image torchvision transforms in a DataLoader with 2 workers, plain loop, as a script of
              its own would run it: in another process, whose memory is left to the C library's defaults

The first two take turns step by step on a CPU, and every 50 steps on a GPU, which a change of turns makes wait; the
third follows in each round. So whatever else the machine does meets all of them. Ratios are taken within rounds, and
their median printed. FLOPs are 6 for each multiply-add of a forward pass; on a GPU their share of what it does in a
large product of matrices stands beside them. Nothing else should run meanwhile.
"""

import argparse
import contextlib
import json
import multiprocessing
import shlex
import statistics
import sys
import time
from collections.abc import Sequence
from datetime import date
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifar_resnet import provenance
from cifar_resnet.build import QUIET, new_trainer
from cifar_resnet.callbacks import Throughput
from cifar_resnet.compose import Composer
from cifar_resnet.hardware import device_name, keep_freed_memory, resolve_precision
from cifar_resnet.images import normalise
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models.summary import num_macs
from cifar_resnet.terminal import set_up_logging

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
DEFAULT = ["resnet18@128", "resnet20@512"]


class Ours:
    def __init__(self, network: str, batch_size: int, images: int, *more: str):
        overrides = [f"model={network}", "data=synthetic", f"data.batch_size={batch_size}", f"data.num_train={images}"]
        overrides += ["data.num_val=0", "data.num_test=10", "trainer.max_epochs=1", "trainer.limit_val_batches=0"]
        overrides += ["run_dir=unused", *more]
        self.cfg = Composer("train").jobs(overrides)[0].cfg
        self.precision = instantiate(self.cfg.precision, accelerator=self.cfg.trainer.accelerator)
        self.data = instantiate(self.cfg.data, augment=self.cfg.augment, _convert_="all")
        self.model = self.new_model()

    def new_model(self) -> torch.nn.Module:
        recipe = {"optimizer": self.cfg.optimizer, "scheduler": self.cfg.scheduler}
        return instantiate(self.cfg.model, num_classes=10, **recipe, _convert_="all")

    def trainer(self, callbacks: list[Callback]) -> Trainer:
        return new_trainer(self.cfg, self.model, callbacks=callbacks, **QUIET)

    def images_per_second(self, *rivals: "Bare") -> float:
        """Of one epoch. rivals: who take turns with it, and are timed meanwhile."""
        throughput, turns = Throughput(), Turns(rivals)
        self.trainer([throughput, turns]).fit(self.model, self.data)
        return throughput.images / (throughput.seconds - turns.seconds)


class Turns(Callback):
    """Lets the rivals go first, before every step, or every 50 where each change waits for a GPU."""

    def __init__(self, rivals: Sequence["Bare"]):
        self.rivals = rivals
        self.steps = 50 if torch.cuda.is_available() else 1
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        if self.rivals and batch_idx % self.steps == 0:
            synchronize()
            start = time.perf_counter()
            for rival in self.rivals:
                rival.go_on(min(self.steps, trainer.num_training_batches - batch_idx))
            self.seconds += time.perf_counter() - start


class Bare:
    def __init__(self, model: torch.nn.Module, precision: str, batch_size: int):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = DTYPES.get(precision)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.optimizer, _ = self.model.build_optimizer(total_steps=1)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        pixels = torch.randint(256, (batch_size, 3, 32, 32), dtype=torch.uint8)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.images = normalise(pixels, torch.tensor(MEAN), torch.tensor(STD)).to(self.device)
        self.labels = torch.randint(10, (batch_size,)).to(self.device)
        self.done, self.seconds = 0, 0.0

    def go_on(self, steps: int) -> None:
        start = time.perf_counter()
        for _ in range(steps):
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None):
                loss = F.cross_entropy(self.model(self.images), self.labels)
            self.scaler.scale(loss).backward()
            self.scaler.step(self.optimizer)
            self.scaler.update()
        synchronize()
        self.done += steps * len(self.labels)
        self.seconds += time.perf_counter() - start

    def images_per_second(self) -> float:
        """Since the last time this was asked."""
        speed = self.done / self.seconds
        self.done, self.seconds = 0, 0.0
        return speed


class PerImage(Dataset):
    """What torchvision.datasets.CIFAR10 does with an image."""

    def __init__(self, images: np.ndarray, labels: list[int]):
        self.images, self.labels = images, labels
        self.transform = transforms.Compose(
            [
                transforms.RandomCrop(32, padding=4),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(MEAN, STD),
                transforms.RandomErasing(p=1.0, scale=(0.0625, 0.0625), ratio=(1.0, 1.0)),  # stands in for cutout
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class Conventional:
    def __init__(self, ours: Ours, batch_size: int):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        images, labels = ours.data.read(train=True)
        dataset = PerImage(images.permute(0, 2, 3, 1).contiguous().numpy(), labels.tolist())
        pin = self.device.type == "cuda"
        options = {"shuffle": True, "drop_last": True, "num_workers": 2, "persistent_workers": True, "pin_memory": pin}
        self.loader = DataLoader(dataset, batch_size, **options)
        self.model = ours.new_model().to(self.device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
        )

    def images_per_second(self) -> float:
        start, count = time.perf_counter(), 0
        for images, labels in self.loader:
            images, labels = images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
            self.optimizer.zero_grad()
            F.cross_entropy(self.model(images), labels).backward()
            self.optimizer.step()
            count += len(labels)
        synchronize()
        return count / (time.perf_counter() - start)


def serve_conventional(connection: Connection, network: str, batch_size: int, images: int) -> None:
    contestant = Conventional(Ours(network, batch_size, images), batch_size)
    while connection.recv() == "go":
        connection.send(contestant.images_per_second())


class InAProcessOfItsOwn:
    """The conventional pipeline as a script of its own would run it: without `keep_freed_memory`."""

    def __init__(self, *arguments):
        context = multiprocessing.get_context("spawn")
        self.connection, theirs = context.Pipe()
        self.process = context.Process(target=serve_conventional, args=(theirs, *arguments))
        self.process.start()

    def images_per_second(self) -> float:
        self.connection.send("go")
        return self.connection.recv()

    def close(self) -> None:
        with contextlib.suppress(BrokenPipeError):  # it failed, and has said why
            self.connection.send("end")
        self.process.join()


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_flops(dtype: torch.dtype | None, size: int = 8192, seconds: float = 2.0) -> float:
    """FLOP/s of a large product of matrices: about the most that this GPU does in this precision."""
    left, right = (torch.randn(size, size, device="cuda", dtype=dtype) for _ in range(2))
    left @ right
    synchronize()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(20):
            left @ right
        synchronize()
        count += 20
    return 2 * size**3 * count / (time.perf_counter() - start)


def begin() -> dict:
    """Set this process up as cifar-train would, and say on what the figures are taken."""
    set_up_logging()
    keep_freed_memory()  # it serves the bare loop as well
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"{device}; torch {torch.__version__}; commit {provenance.commit()}; {date.today()}\n")
    script, *arguments = sys.argv
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(script).name}", *arguments]),
        "device": device,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "date": str(date.today()),
    }


def measure(name: str, rounds: int, steps: int) -> dict:
    network, _, batch_size = name.partition("@")
    batch_size = int(batch_size)
    images = batch_size * steps
    speeds = []
    with contextlib.closing(InAProcessOfItsOwn(network, batch_size, images)) as conventional:
        ours = Ours(network, batch_size, images)
        bare = Bare(ours.new_model(), ours.precision, batch_size)
        for _ in range(1 + rounds):  # the first is for warming up
            speed = {"ours": ours.images_per_second(bare), "bare": bare.images_per_second()}
            speeds.append(speed | {"conventional": conventional.images_per_second()})
    speeds = speeds[1:]
    medians = {key: statistics.median(speed[key] for speed in speeds) for key in speeds[0]}
    ratios = {key: [speed["ours"] / speed[key] for speed in speeds] for key in ("bare", "conventional")}
    return {
        "network": network,
        "batch_size": batch_size,
        "precision": ours.precision,
        "images_per_second": medians,
        "flops": 6 * num_macs(ours.new_model(), ours.data.image_shape) * medians["ours"],
        "ours / bare": statistics.median(ratios["bare"]),
        "ours / conventional": statistics.median(ratios["conventional"]),
        "ratios": ratios,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=DEFAULT, help="network@batch_size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=12, help="batches per round")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    about = begin()
    most = matmul_flops(DTYPES.get(resolve_precision())) if torch.cuda.is_available() else None
    if most:
        print(f"a large product of matrices: {most / 1e12:.1f} TFLOP/s\n")
    speeds = f"{'ours':>8}{'bare':>8}{'conventional':>14}"
    print(f"{'network':12}{'batch':>6}   images/s: {speeds}   ours/bare  ours/conventional  TFLOP/s")
    results = []
    for name in options.networks:
        result = measure(name, options.rounds, options.steps)
        speeds = result["images_per_second"]
        share = f", {result['flops'] / most:.1%} of that" if most else ""
        print(
            f"{result['network']:12}{result['batch_size']:6}   {'':10}{speeds['ours']:8,.0f}{speeds['bare']:8,.0f}"
            f"{speeds['conventional']:14,.0f}   {result['ours / bare']:9.3f}  {result['ours / conventional']:17.2f}"
            f"{result['flops'] / 1e12:9.2f}{share}",
            flush=True,
        )
        results.append(result)
    if options.json:
        options.json.write_text(json.dumps(about | {"matmul_flops": most, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
