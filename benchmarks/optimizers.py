"""What a step of each optimizer costs, as ratios to SGD's from one run of cifar-train's own loop.

    python benchmarks/optimizers.py
    python benchmarks/optimizers.py --rounds 9 --network resnet18@128 sam muon

They take turns within each round, and the medians of the rounds' ratios are printed. SAM takes two forward and
backward passes a step, on images that are augmented once. Nothing else should run meanwhile.
"""

import statistics

from figures import NetworkAt, begin, parser_of, positive, save
from throughput import Ours


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("optimizers", nargs="*", default=["sam", "asam", "adam", "muon"], help="of the group optimizer")
    parser.add_argument("--network", default="resnet20@512", type=NetworkAt.read, help="network@batch_size")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--steps", type=positive, default=8, help="batches per round")
    options = parser.parse_args()
    about = begin()
    network, batch_size = options.network
    contestants = {
        name: Ours(network, batch_size, batch_size * options.steps, f"optimizer={name}")
        for name in ("sgd", *options.optimizers)
    }
    for contestant in contestants.values():
        contestant.images_per_second()  # warm-up
    speeds = [
        {name: contestant.images_per_second() for name, contestant in contestants.items()}
        for _ in range(options.rounds)
    ]
    print(f"{'optimizer':12}{'images/s':>10}{'time / SGD':>14}")
    results = []
    for name in contestants:
        median = statistics.median(speed[name] for speed in speeds)
        ratio = statistics.median(speed["sgd"] / speed[name] for speed in speeds)
        print(f"{name:12}{median:10,.0f}{ratio:14.3f}")
        results.append({"optimizer": name, "images_per_second": median, "time / SGD": ratio})
    save(options.json, about, network=str(options.network), results=results)


if __name__ == "__main__":
    main()
