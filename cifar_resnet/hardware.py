"""What a run computes on: number formats, memory, and the device's name."""

import contextlib
import ctypes
import platform
import re
from pathlib import Path
from typing import Literal

import torch

from cifar_resnet.constraints import check
from cifar_resnet.errors import UsageError, refuse_if

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # <malloc.h>


def cpuinfo() -> str:
    """What the system tells of its CPU: /proc/cpuinfo, or less."""
    file = Path("/proc/cpuinfo")
    return file.read_text() if file.exists() else platform.processor() or platform.machine()


def cpu_bf16() -> Literal["AMX", "AVX512-BF16"] | None:
    """What this CPU multiplies bfloat16 with; None where it only imitates that."""
    if torch.cpu._is_amx_tile_supported():
        return "AMX"
    return "AVX512-BF16" if torch.cpu._is_avx512_bf16_supported() else None


def cpu_prefers_bf16() -> bool:
    """Whether this CPU trains faster in bfloat16: with AMX, and with AVX512-BF16 unless it is Intel's.

    On Intel's CPUs that instruction multiplies no more numbers in a cycle than float32's do, and the convolutions are
    slower for it (docs/speed.md has the times); on AMD's it multiplies twice as many.
    """
    has = cpu_bf16()
    return has == "AMX" or (has is not None and "GenuineIntel" not in cpuinfo())


def cuda_has_bf16() -> bool:
    """Whether the current CUDA device multiplies bfloat16 in hardware."""
    return torch.cuda.is_bf16_supported(including_emulation=False)


def device_type(accelerator: str) -> str:
    """ "cuda", "mps", "cpu" …: what Lightning's `trainer.accelerator` means on this machine."""
    if accelerator not in ("auto", "gpu"):
        return accelerator
    gpu = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else None
    return gpu or ("cpu" if accelerator == "auto" else accelerator)


def resolve_precision(
    precision: Literal["auto", "16-mixed", "bf16-mixed", "32-true"] = "auto",
    float32_matmul: Literal["highest", "high", "medium"] | None = None,
    accelerator: str = "auto",
) -> str:
    """Lightning's name of the precision that "auto" means here; anything else is checked and handed back.

    precision: "auto" takes 16-mixed on CUDA, bf16-mixed on a CPU that is faster in it, else 32-true.
    float32_matmul: torch.set_float32_matmul_precision, for what stays in 32 bits on CUDA, and for cuDNN's convolutions.
        None for "highest" in 32-true, else "high".
    """
    check(resolve_precision, locals())
    device = device_type(accelerator)
    is_there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "gpu": False}
    refuse_if(not is_there.get(device, True), f"no such accelerator here. Got {accelerator}; give auto, or cpu")
    refuse_if(
        precision == "16-mixed" and device == "cpu",
        "precision=16-mixed needs a GPU. Got a CPU; give precision=auto, bf16-mixed or 32-true",
    )
    if device == "cuda":
        if precision == "bf16-mixed" and not cuda_has_bf16():  # asked only now: the question initialises CUDA
            name = torch.cuda.get_device_name()
            raise UsageError(f"{name} does not compute in bfloat16. Got precision=bf16-mixed; give precision=16-mixed")
        matmul = float32_matmul or ("highest" if precision == "32-true" else "high")
        torch.set_float32_matmul_precision(matmul)
        torch.backends.cudnn.allow_tf32 = matmul != "highest"
    best = "16-mixed" if device == "cuda" else "bf16-mixed" if device == "cpu" and cpu_prefers_bf16() else "32-true"
    return best if precision == "auto" else precision


def device_name(device: torch.device) -> str:
    """Such as "NVIDIA H200", or "AMD EPYC with AVX512-BF16, 2 threads"."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    model = re.search(r"model name\s*: (.+)", cpuinfo())
    name = model[1] if model else platform.processor() or platform.machine()
    with_bf16 = f" with {has}" if (has := cpu_bf16()) else ""  # many virtual machines' names say no more than "Xeon"
    threads = torch.get_num_threads()
    return f"{name}{with_bf16}, {threads} thread{'s' * (threads != 1)}"


def machine(device: torch.device, precision: str, count: int = 1) -> dict[str, str | int]:
    """What numbers come from, as records and checkpoints say it.

    precision: as Lightning names it. count: how many such devices train together.
    """
    name = device_name(device)
    return {
        "device": f"{count} x {name}" if count > 1 else name,
        "precision": precision,
        "threads": torch.get_num_threads(),
    }


CGROUPS, MINE = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")


def left_of_limits() -> list[int]:
    """Bytes that are left of each limit that a container or a cluster's job has set: Linux's control groups, of both
    versions. What files' contents take is given back where it is needed."""
    found = []
    for line in MINE.read_text().splitlines() if MINE.exists() else ():
        _, controllers, place = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        base = CGROUPS / "memory" if controllers else CGROUPS
        limit, used, files = (
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_(?:in)?active_file")
            if controllers
            else ("memory.max", "memory.current", "(?:in)?active_file")
        )
        group = base / place.lstrip("/")
        for folder in (group, *(parent for parent in group.parents if parent.is_relative_to(base))):
            with contextlib.suppress(OSError, ValueError, TypeError):  # "max", or a group that shows none
                most, now = (int((folder / name).read_text()) for name in (limit, used))
                spare = re.findall(rf"^{files} (\d+)$", (folder / "memory.stat").read_text(), re.MULTILINE)
                found.append(max(0, most - now + sum(map(int, spare))))
    return found


def free_memory(device: torch.device | None = None) -> int | None:
    """Bytes that can be taken without harm; None where nobody tells. device: None for this computer's memory."""
    if device is None or device.type == "cpu":
        table = Path("/proc/meminfo")
        found = re.search(r"MemAvailable:\s+(\d+) kB", table.read_text()) if table.exists() else None
        return min([*([int(found[1]) * 1024] if found else []), *left_of_limits()], default=None)
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.mem_get_info(device)[0]
    except (RuntimeError, AssertionError):  # a driver that does not say
        return None


def keep_freed_memory() -> bool:
    """Have the C library keep what is freed, for the next step's activations, instead of returning it to the system.

    By default glibc hands large blocks back at once, and each training step on a CPU faults all its activations in
    again, page by page. Returns whether it could be set.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, TypeError):  # a C library other than glibc, or none at all, as on Windows
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, -1))
