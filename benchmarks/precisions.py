"""What a step costs in bfloat16, as a ratio to float32's from one run, and which of the two precision=auto takes here.

    python benchmarks/precisions.py
    python benchmarks/precisions.py --rounds 9 resnet18@128 speednet@2000

The bare steps (throughput.py's: forward, backward, optimizer, on one batch in memory) take turns, and the median of the
rounds' ratios is printed. Nothing else should run meanwhile.
"""

from figures import NetworkAt, begin, parser_of, positive, save
from step_profile import medians
from throughput import Bare, Ours

from cifar_resnet.hardware import resolve_precision

NETWORKS = [NetworkAt("resnet20", 512), NetworkAt("resnet18", 128), NetworkAt("speednet", 2000)]


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", default=NETWORKS, type=NetworkAt.read, help="network@batch_size")
    parser.add_argument("--rounds", type=positive, default=3)
    options = parser.parse_args()
    about = begin()
    auto = resolve_precision()
    print(f"precision=auto means {auto} here\n")
    print(f"{'network':20}{'images/s: 32-true':>20}{'bf16-mixed':>12}{'time: bf16-mixed / 32-true':>30}")
    results = []
    for given in options.networks:
        network, size = given
        ours = Ours(network, size, size)
        steps = {precision: Bare(ours.new_model(), precision, size).step for precision in ("32-true", "bf16-mixed")}
        found = medians(steps, "32-true", options.rounds)
        speeds = {precision: size / found[f"{precision}_seconds"] for precision in steps}
        ratio = found["bf16-mixed / 32-true"]
        print(f"{given!s:20}{speeds['32-true']:20,.0f}{speeds['bf16-mixed']:12,.0f}{ratio:30.3f}")
        results.append(
            {"network": network, "batch_size": size, "images_per_second": speeds, "bf16-mixed / 32-true": ratio}
        )
    save(options.json, about, auto=auto, results=results)


if __name__ == "__main__":
    main()
