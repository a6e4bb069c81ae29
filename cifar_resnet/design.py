"""cifar-design: find ResNets that make the most of a limit on parameters.

    cifar-design max_params=5e6

Depth, width and resolution are scaled together (Tan & Le 2019, arXiv 1905.11946, section 3): every combination of
depths, kernels and stem strides gets the greatest width that the limits leave it.
"""

import functools
import itertools
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from omegaconf import DictConfig, OmegaConf

from cifar_resnet import runs
from cifar_resnet.command import Job, UsageError, usage_errors
from cifar_resnet.command import main as command_main

log = logging.getLogger("cifar_resnet")

MOST = {
    "max_params": 1e12, "max_macs": 1e15, "num_designs": 1000, "width_multiple": 1024, "image_size": 1024,
    "stages": 8, "blocks_per_stage": 64, "kernel_sizes": 15, "shortcut_kernel_sizes": 15, "stem_strides": 16,
}  # fmt: skip


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


class Design(NamedTuple):
    """A network of the grid with its width, and its size."""

    name: str
    settings: dict
    parameters: int
    macs: int


def main(argv: Sequence[str] | None = None) -> int:
    return command_main("design", run, argv)


def run(jobs: list[Job], is_sweep: bool) -> int:
    if is_sweep:
        raise UsageError("cifar-design tries combinations by itself: leave out -m, and give lists such as stages=[3,4]")
    cfg = jobs[0].cfg
    check(cfg)

    from cifar_resnet.terminal import design_table, print_table, set_up_logging

    set_up_logging()
    with usage_errors():
        chosen = design(cfg)
        if not chosen:
            raise ValueError(too_small(cfg))
        print_table(design_table(chosen, cfg.max_params))
        folder = write(chosen, Path(cfg.output_dir))
    names = ",".join(each.name for each in chosen)
    log.info(f"written to {folder}; to train them all, or some:\n")
    log.info(f"cifar-train -m --config-dir {cfg.output_dir} experiment={names}")
    return 0


def too_small(cfg: DictConfig) -> str:
    limits = f"max_params={cfg.max_params:,.0f}" + (f", max_macs={cfg.max_macs:,.0f}" if cfg.max_macs else "")
    return f"no network of this grid is so small. Got {limits}; give more, or a grid of smaller ones"


def check(cfg: DictConfig) -> None:
    if OmegaConf.is_missing(cfg, "max_params"):
        raise UsageError("max_params has no default. Give it, such as max_params=5e6")
    for key in ("max_params", "max_macs", "num_designs", "width_multiple", "image_size"):
        if cfg[key] is not None and not (isinstance(cfg[key], int | float) and 1 <= cfg[key] <= MOST[key]):
            raise UsageError(f"{key} must be a number from 1 to {MOST[key]:g}. Got {cfg[key]}")
        if cfg[key] is not None and cfg[key] != int(cfg[key]):
            raise UsageError(f"{key} must be a whole number. Got {cfg[key]}")
    for key in ("stages", "blocks_per_stage", "kernel_sizes", "shortcut_kernel_sizes", "stem_strides"):
        if not cfg[key] or not all(isinstance(value, int) and 1 <= value <= MOST[key] for value in cfg[key]):
            raise UsageError(f"{key} must be a list of whole numbers from 1 to {MOST[key]}. Got {cfg[key]}")
    if cfg.max_params < 27 * cfg.width_multiple:  # the weights of the narrowest 3x3 stem
        raise UsageError(too_small(cfg))


def design(cfg: DictConfig) -> list[Design]:
    """The networks nearest to max_params, one for each block, number of stages, depth and resolution."""
    candidates = sorted(widest(cfg), key=lambda candidate: -candidate[0])
    alternatives: dict[tuple, tuple[Shape, int]] = {}
    for _, shape, width in candidates:
        alternatives.setdefault((*shape[:3], shape.stem_stride), (shape, width))
    return [
        measure(shape, width, cfg.num_classes, cfg.image_size)
        for shape, width in itertools.islice(alternatives.values(), cfg.num_designs)
    ]


def widest(cfg: DictConfig) -> Iterator[tuple[int, Shape, int]]:
    """Parameters, shape and greatest width for each point of the grid of which some width is within the limits."""
    step = int(cfg.width_multiple)
    for shape in itertools.starmap(
        Shape,
        itertools.product(
            cfg.blocks, cfg.stages, cfg.blocks_per_stage, cfg.kernel_sizes, cfg.shortcut_kernel_sizes, cfg.stem_strides
        ),
    ):
        parameters = quadratic(parameters_at(shape._replace(stem_stride=1), step, cfg.num_classes))  # it adds none
        factor = greatest(parameters, cfg.max_params)
        if factor and cfg.max_macs:
            sizes = [measure(shape, step * x, cfg.num_classes, cfg.image_size).macs for x in (1, 2, 3)]
            factor = min(factor, greatest(quadratic(sizes), cfg.max_macs))
        if factor:
            yield round(parameters(factor)), shape, step * factor


@functools.cache
def parameters_at(shape: Shape, step: int, num_classes: int) -> tuple[int, ...]:
    from cifar_resnet.models.size import num_parameters

    return tuple(num_parameters(build(shape, step * factor, num_classes)) for factor in (1, 2, 3))


def quadratic(samples: Sequence[int]) -> Callable[[float], float]:
    """The polynomial with these values at 1, 2 and 3.

    Parameters and multiply-adds are such of the width: a convolution has its input's channels times its output's.
    """
    first, second, third = samples
    return lambda x: first * (x - 2) * (x - 3) / 2 - second * (x - 1) * (x - 3) + third * (x - 1) * (x - 2) / 2


def greatest(size: Callable[[float], float], limit: float) -> int:
    """The greatest whole number whose size is within the limit; 0 where none is."""
    low, high = 0, 1
    while size(high) <= limit:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if size(middle) <= limit else (low, middle)
    return low


def build(shape: Shape, width: int, num_classes: int):
    """On the meta device: shapes without memory."""
    import torch

    from cifar_resnet.models import ResNet

    with torch.device("meta"):
        return ResNet(num_classes=num_classes, **shape.settings(width))


def measure(shape: Shape, width: int, num_classes: int, image_size: int) -> Design:
    from cifar_resnet.models.size import num_macs, num_parameters

    model = build(shape, width, num_classes)
    macs = num_macs(model, (3, image_size, image_size))
    return Design(shape.name(width), shape.settings(width), num_parameters(model), macs)


def write(chosen: list[Design], output_dir: Path) -> Path:
    """One experiment of `cifar-train` for each design."""
    folder = output_dir / "experiment"
    folder.mkdir(parents=True, exist_ok=True)
    for name, settings, parameters, macs in chosen:
        header = (
            f"# @package _global_\n# From cifar-design: {parameters:,} parameters, {macs:,} multiply-adds\n"
            f"defaults:\n  - override /model: resnet18\n\nname: {output_dir.resolve().name}\nmodel:\n"
        )
        lines = "".join(f"  {key}: {value}\n" for key, value in settings.items())
        runs.write_atomically(folder / f"{name}.yaml", header + lines)
    return folder


if __name__ == "__main__":
    sys.exit(main())
