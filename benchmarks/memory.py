"""Peak memory of training: cifar-train's own loop against the bare loop, each in a process of its own.

    python benchmarks/memory.py
    python benchmarks/memory.py resnet56@256

On a CPU the most that the process ever held (which counts Python and torch, some hundreds of MB), on a GPU the most
that torch had allocated there. The data set lies in that memory as well: its size is printed beside it.
"""

import multiprocessing
import resource
from multiprocessing.connection import Connection

import torch
from figures import NetworkAt, begin, parser_of, positive, save
from throughput import DEFAULT, Bare, Ours

from cifar_resnet.hardware import keep_freed_memory
from cifar_resnet.terminal import set_up_logging


def peak(connection: Connection, contestant: str, network: str, batch_size: int, images: int) -> None:
    set_up_logging()
    keep_freed_memory()
    ours = Ours(network, batch_size, images)
    if contestant == "ours":
        ours.images_per_second()
    else:
        Bare(ours.new_model(), ours.precision, batch_size).go_on(images // batch_size)
    on_gpu = torch.cuda.is_available()
    connection.send(
        torch.cuda.max_memory_allocated() if on_gpu else resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    )


def in_a_process_of_its_own(*arguments) -> int:
    context = multiprocessing.get_context("spawn")
    here, there = context.Pipe()
    process = context.Process(target=peak, args=(there, *arguments))
    process.start()
    there.close()
    found = here.recv()
    process.join()
    return found


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", default=DEFAULT, type=NetworkAt.read, help="network@batch_size")
    parser.add_argument("--steps", type=positive, default=6)
    options = parser.parse_args()
    about = begin()
    print(f"{'network':12}{'batch':>6}{'ours, MB':>10}{'bare, MB':>10}{'images, MB':>12}   ours / bare")
    results = []
    for network, batch_size in options.networks:
        images = batch_size * options.steps
        ours, bare = (
            in_a_process_of_its_own(contestant, network, batch_size, images) for contestant in ("ours", "bare")
        )
        held = images * 3 * 32 * 32
        figures = f"{ours / 2**20:10,.0f}{bare / 2**20:10,.0f}{held / 2**20:12,.0f}   {ours / bare:.2f}"
        print(f"{network:12}{batch_size:6}{figures}", flush=True)
        result = {"ours": ours, "bare": bare, "images": held, "ours / bare": ours / bare}
        results.append({"network": f"{network}@{batch_size}", **result})
    save(options.json, about, results=results)


if __name__ == "__main__":
    main()
