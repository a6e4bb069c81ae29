"""How large a network is."""

from typing import NamedTuple

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
    counter = FlopCounterMode(display=False)
    run_once(model, image_shape, counter)
    return counter.get_total_flops() // 2


def parts(model: nn.Module, image_shape: tuple[int, int, int]) -> list[Part]:
    """The network's direct children that have parameters, in the order of the forward pass; stages one by one.

    Of the parameters the trainable ones are counted.
    """
    watched = {}
    for name, child in model.named_children():
        inside = child.named_children() if isinstance(child, nn.Sequential) else [(None, child)]
        watched |= {name if inner is None else f"{name}.{inner}": module for inner, module in inside}
    found: list[Part] = []
    counter = FlopCounterMode(display=False)
    counted = 0

    def note(module: nn.Module, _, output: torch.Tensor) -> None:
        nonlocal counted
        total = counter.get_total_flops() // 2
        name = next(name for name, candidate in watched.items() if candidate is module)
        if any(True for _ in module.parameters()):
            found.append(Part(name, tuple(output.shape[1:]), num_parameters(module), total - counted))
            counted = total

    hooks = [module.register_forward_hook(note) for module in watched.values()]
    try:
        run_once(model, image_shape, counter)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def run_once(model: nn.Module, image_shape: tuple[int, int, int], counter: FlopCounterMode) -> None:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), counter:
            model(torch.zeros(1, *image_shape, device=next(model.parameters()).device))
    finally:
        model.train(was_training)
