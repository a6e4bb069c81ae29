"""cifar-design: find ResNets that make the most of a limit on parameters.

    cifar-design max_params=5e6

Depth, width and resolution are scaled together (Tan & Le 2019, arXiv 1905.11946, section 3): every combination of
depths, kernels and stem strides gets the greatest width that the limits leave it.
"""

import bisect
import functools
import itertools
import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from omegaconf import DictConfig

from cifar_resnet import runs, terminal
from cifar_resnet.compose import Job
from cifar_resnet.errors import refuse_if
from cifar_resnet.models import ResNet
from cifar_resnet.models.summary import num_macs, num_parameters
from cifar_resnet.quoting import command_line


class Shape(NamedTuple):
    """A point of the grid: a ResNet but for its width."""

    block: str
    num_stages: int
    blocks_per_stage: int
    kernel_size: int
    shortcut_kernel_size: int
    stem_stride: int

    def settings(self, width: int) -> dict:
        """What follows `model.` in overrides. width: of the first stage; each after it is twice as wide."""
        return {
            "block": self.block,
            "widths": [width * 2**stage for stage in range(self.num_stages)],
            "blocks": [self.blocks_per_stage] * self.num_stages,
            "kernel_sizes": self.kernel_size,
            "shortcut_kernel_sizes": self.shortcut_kernel_size,
            "stem_stride": self.stem_stride,
        }

    def name(self, width: int) -> str:
        """Such as basic_3x4_w56_f3_k1_s1: stages x blocks, width, kernel, shortcut's kernel and stem's stride."""
        kernels = f"f{self.kernel_size}_k{self.shortcut_kernel_size}"
        return f"{self.block}_{self.num_stages}x{self.blocks_per_stage}_w{width}_{kernels}_s{self.stem_stride}"

    def network(self, width: int, num_classes: int) -> ResNet:
        """On the meta device: shapes without memory."""
        with torch.device("meta"):
            return ResNet(num_classes=num_classes, **self.settings(width))


class Design(NamedTuple):
    """A network of the grid with its width, and its size."""

    name: str
    settings: dict
    parameters: int
    macs: int


def run(jobs: list[Job]) -> int:
    (job,) = jobs
    cfg = job.cfg
    chosen = design(cfg)
    limits = f"max_params={cfg.max_params:,.0f}" + (f", max_macs={cfg.max_macs:,.0f}" if cfg.max_macs else "")
    refuse_if(not chosen, f"no network of this grid is so small. Got {limits}; give more, or a grid of smaller ones")
    rows = [
        [name, str(settings["widths"]), str(settings["blocks"]), f"{parameters:,}",
         f"{parameters / cfg.max_params:.1%}", f"{macs:,}"]
        for name, settings, parameters, macs in chosen
    ]  # fmt: skip
    terminal.print_table([["experiment", "widths", "blocks", "parameters", "of the limit", "multiply-adds"], *rows])
    folder = write(chosen, Path(cfg.output_dir))
    terminal.log.info(f"written to {folder}; to train them all, or some:\n")
    experiments = f"experiment={','.join(each.name for each in chosen)}"
    terminal.log.info(command_line("cifar-train", "-m", "--config-dir", cfg.output_dir, experiments))
    return 0


def design(cfg: DictConfig) -> list[Design]:
    """The networks nearest to max_params, one for each block, number of stages, depth and resolution."""
    alternatives: dict[tuple, tuple[Shape, int]] = {}
    for _, shape, width in sorted(widest(cfg), key=lambda candidate: -candidate[0]):
        alternatives.setdefault((*shape[:3], shape.stem_stride), (shape, width))
    return [
        measure(shape, width, cfg.num_classes, cfg.image_size)
        for shape, width in itertools.islice(alternatives.values(), cfg.num_designs)
    ]


def widest(cfg: DictConfig) -> Iterator[tuple[int, Shape, int]]:
    """Parameters, shape and greatest width for each point of the grid of which some width is within the limits."""
    step = cfg.width_multiple
    if cfg.max_params < 27 * step:  # the weights of the narrowest 3x3 stem
        return
    grid = itertools.product(
        cfg.blocks, cfg.stages, cfg.blocks_per_stage, cfg.kernel_sizes, cfg.shortcut_kernel_sizes, cfg.stem_strides
    )
    for shape in itertools.starmap(Shape, grid):
        parameters = quadratic(parameters_at(shape._replace(stem_stride=1), step, cfg.num_classes))  # it adds none
        factor = greatest(parameters, cfg.max_params)
        if factor and cfg.max_macs:
            sizes = [measure(shape, step * x, cfg.num_classes, cfg.image_size).macs for x in (1, 2, 3)]
            factor = min(factor, greatest(quadratic(sizes), cfg.max_macs))
        if factor:
            yield round(parameters(factor)), shape, step * factor


@functools.cache
def parameters_at(shape: Shape, step: int, num_classes: int) -> tuple[int, ...]:
    return tuple(num_parameters(shape.network(step * factor, num_classes)) for factor in (1, 2, 3))


def quadratic(samples: Sequence[int]) -> Callable[[float], float]:
    """The polynomial with these values at 1, 2 and 3.

    Parameters and multiply-adds are such of the width: a convolution has its input's channels times its output's.
    """
    first, second, third = samples
    return lambda x: first * (x - 2) * (x - 3) / 2 - second * (x - 1) * (x - 3) + third * (x - 1) * (x - 2) / 2


def greatest(size: Callable[[float], float], limit: float) -> int:
    """The greatest whole number whose size is within the limit; 0 where none is. size: of at least its argument."""
    return bisect.bisect_right(range(1, int(limit) + 2), limit, key=size)


def measure(shape: Shape, width: int, num_classes: int, image_size: int) -> Design:
    model = shape.network(width, num_classes)
    size = num_parameters(model), num_macs(model, (3, image_size, image_size))
    return Design(shape.name(width), shape.settings(width), *size)


def write(chosen: list[Design], output_dir: Path) -> Path:
    """One experiment of `cifar-train` for each design."""
    folder = output_dir / "experiment"
    folder.mkdir(parents=True, exist_ok=True)
    for name, settings, parameters, macs in chosen:
        own_name = json.dumps(output_dir.resolve().name, ensure_ascii=False)
        header = (
            f"# @package _global_\n# From cifar-design: {parameters:,} parameters, {macs:,} multiply-adds\n"
            f"defaults:\n  - override /model: resnet18\n\nname: {own_name}\nmodel:\n"
        )
        lines = (f"  {key}: {value}\n" for key, value in settings.items())
        runs.write_atomically(folder / f"{name}.yaml", "".join([header, *lines]))
    return folder
