"""Training speed, as ratios from one run: cifar-train's own loop, the bare loop, and the conventional pipeline.

    python benchmarks/throughput.py                      # make bench: ResNet-18 at batch 128, ResNet-20 at batch 512
    python benchmarks/throughput.py --rounds 9 resnet56@256

ours          `cifar-train model=…` as it is, with all its callbacks: the training epoch, as the run's own images/s
bare          the same network, precision and memory format on one fixed batch in memory: forward, backward, step
graphed       on a GPU the same again, as one CUDA graph: near what the chip could do
conventional  fp32, NCHW, per-image torchvision transforms in a DataLoader with 2 workers, plain loop, as a script of
              its own would run it: in another process, whose memory is left to the C library's defaults; of 12,000
              images a round, or six batches, where the others see more

The first ones take turns step by step on a CPU, and every 50 steps on a GPU, which a change of turns makes wait, after
as many of ours alone, in which memory is laid out; the last follows in each round. So whatever else the machine does
meets all of them. Ratios are taken within rounds, and their median printed. FLOPs are 6 for each multiply-add of a
forward pass; on a GPU their share of what it does in a large product of matrices stands beside them. Nothing else
should run meanwhile.
"""

import contextlib
import itertools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from figures import NetworkAt, begin, parser_of, positive, save
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from cifar_resnet import callbacks
from cifar_resnet.build import build_data_and_model, build_trainer
from cifar_resnet.callbacks import Throughput
from cifar_resnet.compose import Composer
from cifar_resnet.hardware import resolve_precision
from cifar_resnet.images import Normalise
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models.summary import num_macs

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
DTYPES = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}
DEFAULT = [NetworkAt("resnet18", 128), NetworkAt("resnet20", 512)]


class Ours:
    def __init__(self, network: str, batch_size: int, images: int, *more: str):
        overrides = [f"model={network}", "data=synthetic", f"data.batch_size={batch_size}", f"data.num_train={images}"]
        overrides += ["data.num_val=0", "data.num_test=10", "trainer.max_epochs=1", "trainer.limit_val_batches=0"]
        self.folder = tempfile.TemporaryDirectory()  # of the runs, which nobody reads
        overrides += [f"run_dir={self.folder.name}", "page=false", "~callbacks.progress", *more]
        self.cfg = Composer("train").jobs(overrides)[0].cfg
        self.precision = instantiate(self.cfg.precision, accelerator=self.cfg.trainer.accelerator)
        self.data, self.model = build_data_and_model(self.cfg)
        self.alone = self.data  # of one network, where several are trained at once
        self.runs = itertools.count()

    def new_model(self) -> torch.nn.Module:
        recipe = {"optimizer": self.cfg.optimizer, "scheduler": self.cfg.scheduler}
        return instantiate(self.cfg.model, num_classes=10, **recipe, _convert_="all")

    def fit(self, *more: Callback) -> Throughput:
        """Train an epoch; what it counted. more: callbacks beside those of a run."""
        self.cfg.run_dir = str(Path(self.folder.name, str(next(self.runs))))
        trainer = build_trainer(self.cfg, self.alone, self.model, more)
        trainer.fit(self.model, self.data)
        return callbacks.of(trainer, Throughput)

    def images_per_second(self, *rivals: "Bare") -> float:
        """Of one epoch. rivals: who take turns with it, and are timed meanwhile."""
        turns = Turns(rivals)
        throughput = self.fit(turns)
        return throughput.images / (throughput.seconds - turns.seconds)


class Turns(Callback):
    """Lets the rivals go first, before every step, or every 50 where each change waits for a GPU.

    There the first 50, or half of them all, are for warming up: Lightning has given the memory back.
    """

    needs_no_batch = True

    def __init__(self, rivals: Sequence["Bare"]):
        self.rivals = rivals
        self.steps = 50 if torch.cuda.is_available() else 1
        self.seconds = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        if torch.cuda.is_available() and batch_idx == min(self.steps, trainer.num_training_batches // 2):
            synchronize()
            throughput = callbacks.of(trainer, Throughput)
            throughput.epoch_images.clear()
            throughput.start, self.seconds = time.perf_counter(), 0.0
            for rival in self.rivals:
                rival.images_per_second()
        if self.rivals and batch_idx % self.steps == 0:
            synchronize()
            start = time.perf_counter()
            for rival in self.rivals:
                rival.go_on(min(self.steps, trainer.num_training_batches - batch_idx))
            self.seconds += time.perf_counter() - start


class Bare:
    """graphed: whether a GPU replays the step as one graph."""

    def __init__(
        self, model: torch.nn.Module, precision: str, batch_size: int, graphed: bool = False, image_size: int = 32
    ):
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.dtype = DTYPES.get(precision)
        self.model = model.to(self.device, memory_format=torch.channels_last)
        self.optimizer, _ = self.model.build_optimizer(total_steps=1)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.dtype == torch.float16)
        pixels = torch.randint(256, (batch_size, 3, image_size, image_size), dtype=torch.uint8)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.images = Normalise(torch.tensor(MEAN), torch.tensor(STD))(pixels).to(self.device)
        self.labels = torch.randint(10, (batch_size,)).to(self.device)
        self.done, self.seconds = 0, 0.0
        self.again = self.recorded() if graphed else self.step

    def step(self) -> None:
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, dtype=self.dtype, enabled=self.dtype is not None, cache_enabled=False):
            loss = F.cross_entropy(self.model(self.images), self.labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()

    def recorded(self) -> Callable[[], None]:
        stream, graph = torch.cuda.Stream(), torch.cuda.CUDAGraph()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.step()
        torch.cuda.current_stream().wait_stream(stream)
        with torch.cuda.graph(graph, stream=stream):
            self.step()
        return graph.replay

    def go_on(self, steps: int) -> None:
        start = time.perf_counter()
        for _ in range(steps):
            self.again()
        synchronize()
        self.done += steps * len(self.labels)
        self.seconds += time.perf_counter() - start

    def images_per_second(self) -> float:
        """Since the last time this was asked."""
        speed = self.done / self.seconds if self.done else 0.0
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


def matmul_flops(dtype: torch.dtype | None, seconds: float = 2.0) -> float:
    """FLOP/s of a large product of matrices: about the most that this device does in this precision."""
    device, size, at_once = ("cuda", 8192, 20) if torch.cuda.is_available() else ("cpu", 2048, 1)
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    left @ right
    synchronize()
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < seconds:
        for _ in range(at_once):
            left @ right
        synchronize()
        count += at_once
    return 2 * size**3 * count / (time.perf_counter() - start)


def measure(network: str, batch_size: int, rounds: int, steps: int) -> dict:
    images = batch_size * steps
    for_the_slowest = min(images, max(6 * batch_size, 12_000))  # which on a GPU would take minutes for as many
    speeds = []
    with contextlib.closing(InAProcessOfItsOwn(network, batch_size, for_the_slowest)) as conventional:
        ours = Ours(network, batch_size, images)
        rivals = {"bare": Bare(ours.new_model(), ours.precision, batch_size)}
        if torch.cuda.is_available():
            rivals["graphed"] = Bare(ours.new_model(), ours.precision, batch_size, graphed=True)
        for _ in range(1 + rounds):  # the first is for warming up
            speed = {"ours": ours.images_per_second(*rivals.values())}
            speed |= {name: rival.images_per_second() for name, rival in rivals.items()}
            speeds.append(speed | {"conventional": conventional.images_per_second()})
    speeds = speeds[1:]
    medians = {key: statistics.median(speed[key] for speed in speeds) for key in speeds[0]}
    ratios = {key: [speed["ours"] / speed[key] for speed in speeds] for key in (*rivals, "conventional")}
    return {
        "network": network,
        "batch_size": batch_size,
        "precision": ours.precision,
        "images_per_second": medians,
        "flops": 6 * num_macs(ours.new_model(), ours.data.image_shape) * medians["ours"],
        **{f"ours / {rival}": statistics.median(found) for rival, found in ratios.items()},
        "ratios": ratios,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", default=DEFAULT, type=NetworkAt.read, help="network@batch_size")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--steps", type=positive, default=12, help="batches per round")
    options = parser.parse_args()
    about = begin()
    most = matmul_flops(DTYPES.get(resolve_precision())) if torch.cuda.is_available() else None
    if most:
        print(f"a large product of matrices: {most / 1e12:.1f} TFLOP/s\n")
    rivals = ["bare", "graphed", "conventional"] if most else ["bare", "conventional"]
    heads = "".join(f"{name:>14}" for name in ("ours", *rivals))
    print(f"{'network':12}{'batch':>6}   images/s:{heads}   {'  '.join(f'ours/{name}' for name in rivals)}  TFLOP/s")
    results = []
    for each in options.networks:
        result = measure(*each, options.rounds, options.steps)
        speeds = "".join(f"{result['images_per_second'][name]:14,.0f}" for name in ("ours", *rivals))
        ratios = "  ".join(f"{result[f'ours / {name}']:{len(name) + 5}.3f}" for name in rivals)
        share = f", {result['flops'] / most:.1%} of that" if most else ""
        print(
            f"{result['network']:12}{result['batch_size']:6}   {'':9}{speeds}   {ratios}"
            f"{result['flops'] / 1e12:9.2f}{share}",
            flush=True,
        )
        results.append(result)
        save(options.json, about, matmul_flops=most, results=results)  # each time, for where time runs out


if __name__ == "__main__":
    main()
