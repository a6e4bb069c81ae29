"""When networks train faster side by side (ensemble.size) than one after the other.

    python benchmarks/ensemble.py                                   # ResNet-8 at batch 128, ResNet-20 at batch 128
    python benchmarks/ensemble.py resnet20@512 --sizes 2 4 10

A ratio above 1 means that side by side is faster: images/s of all members together / images/s of one alone. One alone
and each size take turns within each round; the medians of the rounds are printed. Nothing else should run meanwhile.
"""

import statistics

from figures import NetworkAt, begin, parser_of, positive, save
from throughput import Ours

from cifar_resnet.data import StackedData
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models import StackedEnsemble

DEFAULT = [NetworkAt("resnet_cifar", 128), NetworkAt("resnet20", 128)]  # resnet_cifar has a depth of 8 here


class Together(Ours):
    """`size` networks at once; images/s of all of them."""

    def __init__(self, network: str, batch_size: int, images: int, size: int, *more: str):
        super().__init__(network, batch_size, images, *more)
        self.data = StackedData(
            [instantiate(self.cfg.data, augment=self.cfg.augment, seed=seed, _convert_="all") for seed in range(size)]
        )
        members = [self.new_model() for _ in range(size)]
        members[0].data_state = self.model.data_state
        self.model = StackedEnsemble(members)


def measure(network: str, batch_size: int, sizes: list[int], rounds: int, steps: int) -> dict:
    more = ["model.depth=8"] if network == "resnet_cifar" else []
    arguments = network, batch_size, batch_size * steps
    contestants = {1: Ours(*arguments, *more)} | {size: Together(*arguments, size, *more) for size in sizes}
    speeds = []
    for _ in range(1 + rounds):  # the first is for warming up
        speeds.append({size: contestant.images_per_second() for size, contestant in contestants.items()})
    ratios = {size: [speed[size] / speed[1] for speed in speeds[1:]] for size in sizes}
    return {
        "network": "resnet8" if more else network,
        "batch_size": batch_size,
        "precision": contestants[1].precision,
        "images_per_second": {size: statistics.median(speed[size] for speed in speeds[1:]) for size in contestants},
        "side by side / one after the other": {size: statistics.median(ratios[size]) for size in sizes},
        "ratios": ratios,
    }


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", default=DEFAULT, type=NetworkAt.read, help="network@batch_size")
    parser.add_argument("--sizes", type=positive, nargs="*", default=[2, 4])
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--steps", type=positive, default=8, help="batches per round")
    options = parser.parse_args()
    about = begin()
    print(f"{'network':12}{'batch':>6}{'members':>9}{'images/s':>10}   side by side / one after the other")
    results = []
    for each in options.networks:
        result = measure(*each, options.sizes, options.rounds, options.steps)
        for size, ratio in result["side by side / one after the other"].items():
            speed = result["images_per_second"][size]
            print(f"{result['network']:12}{result['batch_size']:6}{size:9}{speed:10,.0f}   {ratio:.2f}", flush=True)
        results.append(result)
    save(options.json, about, results=results)


if __name__ == "__main__":
    main()
