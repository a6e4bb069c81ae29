"""A CUDA device that is not there: shapes, dtypes and devices are real, numbers are not.

Operations on tensors of two devices fail as they would on a GPU; whatever makes the host wait for the device is written
down, and what is launched there. Built on torch's FakeTensorMode: what that lets pass or cannot do is mended here.
"""

import collections
import contextlib
import functools
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from torch import Generator, Tensor, nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves, tree_map

import cifar_resnet
from cifar_resnet import checkpoints, ensemble, evaluate, resume, train
from cifar_resnet.callbacks import model_checkpoint
from cifar_resnet.checkpoints import AtomicCheckpointIO
from cifar_resnet.data import DataModule, augment, datamodule, pixels, samplers
from cifar_resnet.results import bootstrap, calibration, evaluation, metrics
from cifar_resnet.results.predictions import Predictions

OURS = str(Path(cifar_resnet.__file__).parent)
# what deals with files and numbers before and after, on real tensors
ON_THE_HOST = (
    *((module, ("build_data_and_model", "build_trainer", "begin_record")) for module in (train, ensemble)),
    (DataModule, ("load", "load_test")), (Predictions, ("load",)), (torch, ("load",)),
    (AtomicCheckpointIO, ("load_checkpoint",)), (checkpoints, ("contents", "load")), (model_checkpoint, ("contents",)),
    (resume, ("chosen_run", "keep_global_batch")), (evaluation, ("sections",)), (evaluate, ("places_of",)),
    (metrics, ("scores", "disagreement", "confusion")),
    (calibration, ("fit_temperature", "at_temperature", "reliability", "selective", "selective_scores")),
    (bootstrap, ("of_scores",)),
)  # fmt: skip
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "_unique2", "unique_dim", "bincount"}
NO_KERNEL = {
    "empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "detach", "_reshape_alias",
    "_unsafe_view", "alias", "lift_fresh", "set_", "resize_",
}  # fmt: skip
# fused kernels without a fake form; they change their arguments and return nothing
IN_PLACE = {"_fused_sgd_", "_fused_adam_", "_fused_adamw_", "_amp_foreach_non_finite_check_and_unscale_"}


class FakeCuda(FakeTensorMode):
    avoid_device_init = True  # though torch.cuda.is_available says yes


class Watch(TorchDispatchMode):
    """Writes down, for each training step, who waits for the device and what is launched there; and what fake tensors
    would let pass."""

    def __init__(self):
        super().__init__()
        self.waits: list[collections.Counter] = []  # by step
        self.launches: list[collections.Counter] = []  # likewise
        self.within_step = False
        self.mistakes: set[str] = set()

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Within this it watches: a training step, to begin with."""
        self.waits.append(collections.Counter())
        self.launches.append(collections.Counter())
        self.within_step = True
        try:
            yield
        finally:
            self.within_step = False

    def wait(self, what: str) -> None:
        if self.within_step:
            self.waits[-1][f"{what}: {place()}"] += 1

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        tensors = [value for value in tree_leaves((args, kwargs)) if is_tensor(value)]
        on_cuda = (
            any(tensor.is_cuda for tensor in tensors) or torch.device(kwargs.get("device") or "cpu").type == "cuda"
        )
        if generator := kwargs.get("generator"):
            device = torch.device(kwargs.get("device") or tensors[0].device)
            if device.type != getattr(FAKE_GENERATORS.get(generator._cdata), "type", "cpu"):
                self.mistakes.add(f"a generator of another device: {place()}")
        # which fake tensors let pass; and a number on the CPU, which a recorded step would go on with
        if len({tensor.device for tensor in tensors}) > 1 and (name.startswith("_foreach") or name in IN_PLACE):
            self.mistakes.add(f"{name} of two devices: {place()}")
        if on_cuda:
            self.note_waits(func, name, args, kwargs)
            if self.within_step and (count := launches_of(func, name, args)):
                self.launches[-1][name] += count
        if name == "_local_scalar_dense" and isinstance(args[0], FakeTensor):
            return self.number(args[0])
        if name == "nonzero" and isinstance(args[0], FakeTensor):
            return torch.empty(max(1, args[0].numel() // 2), args[0].ndim, dtype=torch.long, device=args[0].device)
        if name in IN_PLACE or name == "_amp_update_scale_":
            return args[0] if name == "_amp_update_scale_" else None
        return func(*args, **kwargs)

    def note_waits(self, func: Callable, name: str, args: tuple, kwargs: dict) -> None:
        if name in WAITS:
            self.wait(name)
        if name in ("index", "index_put", "index_put_"):
            for index in filter(is_tensor, args[1]):
                if index.dtype == torch.bool or not index.is_cuda:
                    self.wait("index by what is true" if index.is_cuda else "index on the CPU")
        if name in ("_to_copy", "copy_"):
            source = args[1] if name == "copy_" else args[0]
            target = args[0].device if name == "copy_" else torch.device(kwargs.get("device") or source.device)
            pinned = getattr(source, "pinned", False) and (kwargs.get("non_blocking") or args[2:3] == (True,))
            if source.device.type != target.type and not pinned:
                self.wait(f"copy from {source.device.type}")

    @staticmethod
    def number(tensor: Tensor) -> bool | float | int:
        """What a tensor on no device might hold: true, 1; that no gradient overflowed, and no prediction is nan."""
        if tensor.constant is not None:
            return tensor.constant.item()
        if tensor.dtype == torch.bool:
            return "has_len_all_ranks" not in callers()
        if any(name in callers() for name in ("_maybe_opt_step", "predictions_for")):
            return 0
        return 1.0 if tensor.is_floating_point() else 1


def launches_of(func: Callable, name: str, args: tuple) -> int:
    """How many kernels an operation takes on a GPU, roughly: none for a view or an allocation, mostly one."""
    if name.startswith("prim::") or func.is_view or name in NO_KERNEL:
        return 0
    if name == "clone" and args[0].dtype == torch.uint8 and args[0].ndim == 1:
        return 0  # of what cuDNN's batch norm has set aside, for torch's own engine would not ask for it twice
    if name == "convolution_backward":
        return sum(map(bool, args[-1]))  # for images, weights and bias apart
    return 1


def is_tensor(value: object) -> bool:
    return isinstance(value, Tensor)


def frames() -> Iterator:
    frame = sys._getframe(1)
    while frame := frame.f_back:
        yield frame


def callers() -> set[str]:
    return {frame.f_code.co_name for frame in frames()}


def place() -> str:
    """Within the training loop: ours, or else whose, by file and line."""
    inner = itertools.takewhile(lambda frame: frame.f_code.co_name != "advance", frames())
    files = [(frame.f_code.co_filename, frame.f_lineno) for frame in inner]
    others = [(file, line) for file, line in files if "/torch/" not in file and file != __file__]
    file, line = next((each for each in others if each[0].startswith(OURS)), others[0] if others else files[-1])
    return f"{Path(file).name}:{line}"


def walk_backward(loss: Tensor) -> None:
    """Tensor.backward; torch's own engine asks the driver for its streams first."""
    waiting, seen = collections.Counter(), [loss.grad_fn]
    for node in seen:
        for following, _ in node.next_functions:
            if following is not None:
                waiting[following] += 1
                if waiting[following] == 1:
                    seen.append(following)
    given, ready = {loss.grad_fn: [torch.ones_like(loss)]}, [loss.grad_fn]
    with torch.no_grad():
        while ready:
            node = ready.pop()
            gradients = given.pop(node)
            if hasattr(node, "variable"):
                leaf, (gradient,) = node.variable, gradients
                if gradient is not None:
                    leaf.grad = gradient if leaf.grad is None else leaf.grad.add_(gradient)
                continue
            gradients = (node if callable(node) else node.apply)(*gradients)
            for (following, slot), gradient in zip(
                node.next_functions, gradients if isinstance(gradients, tuple) else (gradients,), strict=False
            ):
                if following is None:
                    continue
                metadata = following._input_metadata
                slots = given.setdefault(following, [None] * len(metadata))
                if gradient is not None:
                    gradient = gradient.to(metadata[slot].dtype)
                    if gradient.shape != metadata[slot].shape:
                        gradient = gradient.sum_to_size(metadata[slot].shape)
                    slots[slot] = gradient if slots[slot] is None else slots[slot] + gradient
                waiting[following] -= 1
                if not waiting[following]:
                    ready.append(following)


FAKE_GENERATORS: dict[int, torch.device] = {}


class FakeGenerator(Generator):
    """One of the CPU that says it is of the device that was asked for."""

    def __new__(cls, device: str | torch.device = "cpu"):
        self = super().__new__(cls)
        FAKE_GENERATORS[self._cdata] = self.named = torch.device(device)
        return self

    @property
    def device(self) -> torch.device:
        return self.named


def apply(self: nn.Module, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """nn.Module._apply; torch's own would exchange a fake parameter's content, which it cannot."""
    for module in self.children():
        module._apply(fn)
    for tensors in (self._parameters, self._buffers):
        for name, tensor in tensors.items():
            if tensor is not None:
                with torch.no_grad():
                    moved = fn(tensor)
                if moved is not tensor:
                    is_parameter = isinstance(tensor, nn.Parameter)
                    tensors[name] = nn.Parameter(moved, tensor.requires_grad) if is_parameter else moved
    return self


def on_the_host(function: Callable) -> Callable:
    @functools.wraps(function)
    def inner(*args, **kwargs):
        args, kwargs = tree_map(on_cpu, (args, kwargs))
        with _disable_current_modes():
            return function(*args, **kwargs)

    return inner


def on_cpu(value: object) -> object:
    """The same for what has to be on the CPU by now: what works with numbers there would fail on a GPU's."""
    if isinstance(value, FakeTensor) and value.is_cuda:
        raise RuntimeError("a tensor on the device where the host works with its numbers")
    return real(value)


def real(value: object) -> object:
    """A zero on the CPU for each number of a fake tensor."""
    with _disable_current_modes():
        return torch.zeros(tuple(value.shape), dtype=value.dtype) if isinstance(value, FakeTensor) else value


def pin_memory(tensor: Tensor) -> Tensor:
    tensor = tensor.clone()
    tensor.pinned = True
    return tensor


def post_init(self: Predictions, _real: Callable = Predictions.__post_init__) -> None:
    _real(self)
    self.log_probs, self.labels = real(self.log_probs), real(self.labels)


def deepcopy(tensor: Tensor, memo: dict, _real: Callable = Tensor.__deepcopy__) -> Tensor:
    if not isinstance(tensor, FakeTensor):
        return on_the_host(_real)(tensor, memo)
    copied = tensor.detach().clone()
    return nn.Parameter(copied, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else copied


def numpy(tensor: Tensor, _real: Callable = Tensor.numpy, **kwargs) -> np.ndarray:
    assert not tensor.is_cuda, "numpy() of a tensor on the device"
    return on_the_host(_real)(real(tensor), **kwargs)


def save(self: AtomicCheckpointIO, checkpoint: dict, path: str | Path, storage_options: object = None,
         _real: Callable = AtomicCheckpointIO.save_checkpoint) -> None:  # fmt: skip
    with _disable_current_modes():
        _real(self, tree_map(real, checkpoint), path)


class NoGrad(torch.inference_mode):
    """In torch's own inference mode operations would arrive whole."""

    def __enter__(self) -> None:
        self.context = torch.set_grad_enabled(torch.is_grad_enabled() and not self.mode)
        self.context.__enter__()

    def __exit__(self, *error: object) -> None:
        self.context.__exit__(*error)


class FakeGraph:
    """A graph that is recorded by taking the step once, and replays nothing."""

    made: ClassVar[list["FakeGraph"]] = []

    def __init__(self):
        self.replays, self.generators = 0, []
        self.made.append(self)

    def register_generator_state(self, generator: Generator) -> None:
        self.generators.append(generator)

    def replay(self) -> None:
        self.replays += 1


@contextlib.contextmanager
def recorded(graph: FakeGraph, **options: object) -> Iterator[None]:
    yield


class FakeStream:
    def __init__(self, *args: object):
        pass

    def wait_stream(self, stream: object) -> None:
        pass


@contextlib.contextmanager
def fake_cuda() -> Iterator[Watch]:
    """Within this there is a CUDA device to all who ask, and who waits for it is written down."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        yield from set_up(monkeypatch)


def set_up(monkeypatch: pytest.MonkeyPatch) -> Iterator[Watch]:
    watch, mode = Watch(), FakeCuda(allow_non_fake_inputs=True)
    for cached in (augment.windows, augment.squares, pixels.numbers):
        cached.cache_clear()
    state = torch.zeros(16, dtype=torch.uint8)
    answers = {
        "is_available": True, "device_count": 1, "current_device": 0, "set_device": None, "empty_cache": None,
        "get_device_name": "NVIDIA Fake", "get_device_capability": (9, 0), "set_rng_state": None,
        "get_rng_state": state, "is_bf16_supported": True, "is_current_stream_capturing": False, "manual_seed": None,
        "manual_seed_all": None,
    }  # fmt: skip
    for name, answer in answers.items():
        monkeypatch.setattr(torch.cuda, name, lambda *args, _answer=answer, **kwargs: _answer)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *args: watch.wait("synchronize"))
    monkeypatch.setattr(torch._C, "_cuda_clearCublasWorkspaces", lambda: None, raising=False)
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda device: None, raising=False)

    def advance(self: _TrainingEpochLoop, *args, _real: Callable = _TrainingEpochLoop.advance) -> None:
        with watch.step():
            _real(self, *args)

    FakeGraph.made.clear()
    for owner, name, replacement in (
        (torch.cuda, "CUDAGraph", FakeGraph), (torch.cuda, "graph", recorded), (torch.cuda, "Stream", FakeStream),
        (torch.cuda, "current_stream", FakeStream), (torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
        (Tensor, "backward", walk_backward), (nn.Module, "_apply", apply), (datamodule, "Generator", FakeGenerator),
        (samplers, "Generator", FakeGenerator), (Tensor, "pin_memory", pin_memory), (Tensor, "numpy", numpy),
        (Tensor, "__deepcopy__", deepcopy), (AtomicCheckpointIO, "save_checkpoint", save),
        (nn.Parameter, "__deepcopy__", functools.partialmethod(deepcopy, _real=nn.Parameter.__deepcopy__)),
        (Predictions, "__post_init__", post_init), (_TrainingEpochLoop, "advance", advance),
        (torch.inference_mode, "__enter__", NoGrad.__enter__), (torch.inference_mode, "__exit__", NoGrad.__exit__),
    ):  # fmt: skip
        monkeypatch.setattr(owner, name, replacement)
    for owner, names in ON_THE_HOST:
        for name in names:
            monkeypatch.setattr(owner, name, on_the_host(getattr(owner, name)))
    with mode, watch:
        set_lifting = torch._C._set_only_lift_cpu_tensors  # modes that come and go within would switch it off
        with monkeypatch.context() as within:
            within.setattr(torch._C, "_set_only_lift_cpu_tensors", lambda value: None)
            yield watch
        set_lifting(False)
    for cached in (augment.windows, augment.squares, pixels.numbers):
        cached.cache_clear()
