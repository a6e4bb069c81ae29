"""What augmentation costs, as ratios from one run: alone, and within the training of a network.

    python benchmarks/augmentation.py
    python benchmarks/augmentation.py --rounds 9 --network resnet18@128 randaugment mixup

images/s      of the batched augmentation alone, on the training device
per image     the same by torchvision's transforms, one image at a time in one process; mixing has no such counterpart
copy          how many times as long as copying the finished batch's bytes once
epoch         how many times as long an epoch of cifar-train's own loop takes as one with augment=none

Contestants take turns within each round, and the medians of the rounds' ratios are printed. Nothing else should run
meanwhile.
"""

import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from figures import NetworkAt, begin, parser_of, positive, save
from PIL import Image
from throughput import MEAN, STD, Ours, synchronize
from torchvision.transforms import v2

from cifar_resnet.data.augment import Augment, Randomness
from cifar_resnet.images import Normalise

CHOICES = ["standard", "autoaugment", "randaugment", "trivialaugment", "mixup", "cutmix", "ricap"]
POLICIES = {
    "autoaugment": lambda: v2.AutoAugment(v2.AutoAugmentPolicy.CIFAR10),
    "randaugment": v2.RandAugment,
    "trivialaugment": v2.TrivialAugmentWide,
}


def seconds(work: Callable[[], object]) -> float:
    synchronize()
    start = time.perf_counter()
    work()
    synchronize()
    return time.perf_counter() - start


def per_image(choice: str) -> v2.Transform:
    steps = [v2.RandomCrop(32, padding=4), v2.RandomHorizontalFlip()]
    steps += [POLICIES[choice]()] if choice in POLICIES else []
    steps += [v2.ToImage(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD)]
    erasing = v2.RandomErasing(p=0.5, scale=(0.0625, 0.0625), ratio=(1.0, 1.0))  # stands in for cutout
    return v2.Compose([*steps, erasing])


class Batched:
    """The augmentation alone, on one batch of images in memory."""

    def __init__(self, augment: Augment, images: torch.Tensor):
        self.augment, self.images = augment, images
        device = images.device
        self.normalise = Normalise(torch.tensor(MEAN, device=device), torch.tensor(STD, device=device))
        self.randomness = Randomness(
            torch.Generator(device).manual_seed(0),
            np.random.default_rng(0),
            torch.zeros(len(images), dtype=torch.bool, device=device),
        )

    def __call__(self) -> torch.Tensor:
        images, _ = self.augment(self.images, self.normalise, self.randomness)
        return images


def measure(choice: str, plain: Ours, network: str, batch_size: int, steps: int, rounds: int) -> dict:
    ours = Ours(network, batch_size, batch_size * steps, f"augment={choice}")
    images, _ = ours.data.read(train=True)
    images = images[:batch_size].contiguous(memory_format=torch.channels_last)
    pictures = [Image.fromarray(image) for image in images.permute(0, 2, 3, 1).numpy()]
    images = images.to("cuda" if torch.cuda.is_available() else "cpu")
    batched = Batched(ours.data.augment, images)
    finished = batched()
    transform = per_image(choice) if choice in ("standard", *POLICIES) else None
    contestants = {
        "batched": lambda: seconds(lambda: [batched() for _ in range(5)]) / 5,
        "copy": lambda: seconds(lambda: [finished.clone() for _ in range(50)]) / 50,
        "epoch": lambda: 1 / ours.images_per_second(),
        "plain epoch": lambda: 1 / plain.images_per_second(),
    }
    if transform:
        contestants["per image"] = lambda: seconds(lambda: [transform(picture) for picture in pictures])
    for contestant in contestants.values():
        contestant()  # warm-up
    times = [{name: contestant() for name, contestant in contestants.items()} for _ in range(rounds)]

    def ratio(a: str, b: str) -> float:
        return statistics.median(one[a] / one[b] for one in times)

    return {
        "augment": choice,
        "images_per_second": batch_size / statistics.median(one["batched"] for one in times),
        "per image / batched": ratio("per image", "batched") if transform else None,
        "batched / copy": ratio("batched", "copy"),
        "epoch / plain epoch": ratio("epoch", "plain epoch"),
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("choices", nargs="*", default=CHOICES, help="of the group augment")
    parser.add_argument("--network", default="resnet20@512", type=NetworkAt.read, help="network@batch_size")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--steps", type=positive, default=8, help="batches in an epoch")
    options = parser.parse_args()
    about = begin()
    network, batch_size = options.network
    print(f"{'augment':16}{'images/s':>10}{'per image':>12}{'copy':>10}{'epoch':>8}")
    plain = Ours(network, batch_size, batch_size * options.steps, "augment=none")
    results = []
    for choice in options.choices:
        result = measure(choice, plain, network, batch_size, options.steps, options.rounds)
        slower = result["per image / batched"]
        print(
            f"{choice:16}{result['images_per_second']:10,.0f}{f'{slower:.1f}' if slower else '':>12}"
            f"{result['batched / copy']:10.1f}{result['epoch / plain epoch']:8.3f}",
            flush=True,
        )
        results.append(result)
    save(options.json, about, network=str(options.network), results=results)


if __name__ == "__main__":
    main()
