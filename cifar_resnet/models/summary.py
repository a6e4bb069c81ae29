"""How large a network is."""

import contextlib
import copy
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Part(NamedTuple):
    """One line of a network's table. output_shape: (C, H, W), or (C,); macs: for one image."""

    name: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int


def num_parameters(model: nn.Module) -> int:
    """Trainable parameters."""
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def num_macs(model: nn.Module, image_shape: tuple[int, int, int]) -> int:
    """Multiply-adds of convolutions and linear layers for one image of shape (C, H, W): FLOPs / 2."""
    with FlopCounterMode(display=False) as counter:
        run_once(model, image_shape)
    return counter.get_total_flops() // 2


def summarize(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Part]:
    """The network's direct children that have parameters, in the order of the forward pass; stages one by one. What it
    has beside them comes last.

    Where all parameters are in one child, its children are meant. Of the parameters the trainable ones are counted.
    """
    watched = {
        module: ".".join(filter(None, (name, inner)))
        for name, child in parts_of(model)
        for inner, module in (child.named_children() if isinstance(child, nn.Sequential) else [("", child)])
        if has_parameters(module)
    }
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def note(module: nn.Module, _: Any, output: torch.Tensor) -> None:
        if module in watched:
            shapes[module] = shape_of(output)

    with FlopCounterMode(display=False) as counter, nn.modules.module.register_module_forward_hook(note):
        run_once(model, image_shape)
    flops = {name.partition(".")[2]: sum(kinds.values()) for name, kinds in counter.get_flop_counts().items()}
    parts: list[Part] = []
    counted: set[nn.Parameter] = set()  # those that parts share are the first one's
    for module, shape in shapes.items():
        own = {each for each in module.parameters() if each.requires_grad} - counted
        counted |= own
        parts.append(
            Part(watched[module], shape, sum(each.numel() for each in own), flops.get(watched[module], 0) // 2)
        )
    parameters = num_parameters(model) - sum(part.parameters for part in parts)
    macs = counter.get_total_flops() // 2 - sum(part.macs for part in parts)
    return [*parts, Part("all else", (), parameters, macs)] if parameters or macs else parts


def shape_of(output: Any) -> tuple[int, ...]:
    """For one image; of several tensors that of the first."""
    if isinstance(output, torch.Tensor):
        return tuple(output.shape[1:])
    if isinstance(output, Mapping):
        output = list(output.values())
    return shape_of(output[0]) if isinstance(output, (tuple, list)) and output else ()


def has_parameters(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def parts_of(module: nn.Module, prefix: str = "") -> list[tuple[str, nn.Module]]:
    """Names and modules of its children; where all parameters are in one of them, that one's children."""
    children = [(f"{prefix}{name}", child) for name, child in module.named_children() if has_parameters(child)]
    if len(children) == 1 and any(has_parameters(each) for each in children[0][1].children()):
        return parts_of(children[0][1], f"{children[0][0]}.")
    return children


@torch.no_grad()
def run_once(model: nn.Module, image_shape: tuple[int, int, int]) -> torch.Tensor:
    """What one forward pass of an image of zeros gives, in eval mode."""
    was_fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # in one piece, of which torch's counter of FLOPs knows nothing
    try:
        with in_eval_mode(model):
            return model(torch.zeros(1, *image_shape, device=next(model.parameters()).device))
    finally:
        torch.backends.mha.set_fastpath_enabled(was_fast)


@contextlib.contextmanager
def in_eval_mode(network: nn.Module) -> Iterator[None]:
    """Within this; then each part is in the mode that it was in."""
    before = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        for module, was_training in before.items():
            module.training = was_training


def run_in_training(model: nn.Module, image_shape: tuple[int, int, int], num_images: int = 2) -> object:
    """What images give in train mode, without numbers in it; None where it fails, as it may for want of numbers."""
    try:
        without_numbers = copy.deepcopy(model).to("meta").train()
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            return without_numbers(torch.zeros(num_images, *image_shape, device="meta"))
    except Exception:  # a network of one's own may need numbers, or make some on a device of its choice
        return None


def size_rows(parts: list[Part]) -> tuple[list[list[str]], list[str]]:
    """For people: a head with a row for each part, and their sum."""
    parameters, macs = sum(part.parameters for part in parts), sum(part.macs for part in parts)
    rows = [
        [part.name, " x ".join(map(str, part.output_shape)), f"{part.parameters:,}",
         f"{part.parameters / parameters:.1%}", f"{part.macs:,}", f"{part.macs / max(1, macs):.1%}"]
        for part in parts
    ]  # fmt: skip
    head = ["", "output", "parameters", "share", "multiply-adds", "share"]
    return [head, *rows], ["total", "", f"{parameters:,}", "", f"{macs:,}", ""]
