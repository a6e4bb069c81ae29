"""What more processes bring: cifar-train's own loop by one process against several that share each batch, by DDP.

    python benchmarks/scaling.py                              # one process against two, four …, as many as fit
    python benchmarks/scaling.py --processes 2 8 --rounds 9 resnet50@1024

On GPUs each process has one. On a CPU they share its cores: one process with two threads against two with one each.
network@batch_size: the batch is that of a step, of all processes together, which divide it evenly.

They take turns within each round, and the medians of the rounds' figures are printed. `communication` is the share of a
step that goes when the processes train on without exchanging gradients and statistics, and without waiting for each
other: what is exchanged while a backward pass is still computing costs nothing. Nothing else should run meanwhile.
"""

import itertools
import multiprocessing
import os
import socket
import statistics
from multiprocessing.connection import Connection

import torch
from figures import NetworkAt, begin, parser_of, positive, save
from lightning.pytorch import Callback, LightningModule, Trainer
from throughput import DEFAULT, Ours

from cifar_resnet import processes, ranks
from cifar_resnet.hardware import keep_freed_memory
from cifar_resnet.models.parallel import ddp_of, keep_gradients
from cifar_resnet.terminal import be_silent, set_up_logging


class NoExchange(Callback):
    """Each rank trains by itself."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch, batch_idx: int) -> None:
        keep_gradients(pl_module)
        ddp_of(pl_module).require_forward_param_sync = False


def speed(ours: Ours, *callbacks: Callback) -> float:
    """Images/s of an epoch, on all ranks."""
    throughput = ours.fit(*callbacks)
    return throughput.images / throughput.seconds


def serve(connection: Connection, rank: int, count: int, port: int, threads: int, *given) -> None:
    """Of `count` processes the one with this rank: whenever told to go an epoch, and another without exchange."""
    network, batch_size, steps = given
    by_ddp = ["trainer.strategy=ddp", f"trainer.devices={count}"] if count > 1 else []
    processes.take_place(ranks.Place(rank, count, rank, "127.0.0.1", port, "this benchmark"))
    set_up_logging()
    if rank:
        be_silent()
    keep_freed_memory()
    torch.set_num_threads(threads)
    ours = Ours(network, batch_size // count, batch_size * steps, *by_ddp)
    while connection.recv() == "go":
        connection.send((speed(ours), speed(ours, NoExchange()) if by_ddp else None))


class Group:
    """So many processes that train one network."""

    def __init__(self, count: int, threads: int, *given):
        self.count, self.threads = count, threads
        context = multiprocessing.get_context("spawn")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        pipes = [context.Pipe() for _ in range(count)]
        self.connections = [here for here, _ in pipes]
        self.processes = [
            context.Process(target=serve, args=(there, rank, count, port, threads, *given), daemon=True)
            for rank, (_, there) in enumerate(pipes)
        ]
        for process, (_, there) in zip(self.processes, pipes, strict=True):
            process.start()
            there.close()  # so that one that fails is noticed

    def measure(self) -> dict[str, float]:
        for connection in self.connections:
            connection.send("go")
        (found, alone), *_ = [connection.recv() for connection in self.connections]  # which agree
        return {"images_per_second": found} | ({"communication": 1 - found / alone} if alone else {})

    def close(self) -> None:
        for connection in self.connections:
            connection.send("end")
        for process in self.processes:
            process.join()


def measure(network: str, batch_size: int, counts: list[int], rounds: int, steps: int) -> list[dict]:
    cores = len(os.sched_getaffinity(0))
    groups = [Group(count, max(1, cores // count), network, batch_size, steps) for count in counts]
    found = [[group.measure() for group in groups] for _ in range(1 + rounds)][1:]  # the first is for warming up
    for group in groups:
        group.close()
    results = []
    for group, *mine in zip(groups, *found, strict=True):
        medians = {key: statistics.median(each[key] for each in mine) for key in mine[0]}
        ratios = [
            own["images_per_second"] / each[0]["images_per_second"] for own, each in zip(mine, found, strict=True)
        ]
        about = {"network": network, "batch_size": batch_size, "processes": group.count, "threads": group.threads}
        results.append(about | medians | {"ratio": statistics.median(ratios), "ratios": ratios})
    return results


def main() -> None:
    most = torch.cuda.device_count() or max(2, len(os.sched_getaffinity(0)))
    more = [2**power for power in range(1, most.bit_length()) if 2**power <= most]
    parser = parser_of(__doc__)
    parser.add_argument("networks", nargs="*", default=DEFAULT, type=NetworkAt.read, help="network@batch_size")
    parser.add_argument("--processes", nargs="*", type=positive, default=more, help="how many, beside one")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--steps", type=positive, default=8, help="batches per round")
    options = parser.parse_args()
    for each, number in itertools.product(options.networks, options.processes):
        if number < 2 or each.batch_size % number:
            parser.error(f"processes, two or more, divide a batch evenly. Got {number} for {each}; give another number")
    about = begin()
    print(f"{'network':12}{'batch':>6}{'processes':>11}{'threads':>9}{'images/s':>10}{'ratio':>8}{'communication':>15}")
    results = []
    for each in options.networks:
        for result in measure(*each, [1, *options.processes], options.rounds, options.steps):
            share = f"{result['communication']:15.1%}" if "communication" in result else ""
            print(
                f"{result['network']:12}{result['batch_size']:6}{result['processes']:11}{result['threads']:9}"
                f"{result['images_per_second']:10,.0f}{result['ratio']:8.2f}{share}",
                flush=True,
            )
            results.append(result)
    save(options.json, about, results=results)


if __name__ == "__main__":
    main()
