"""Which number formats a run computes in."""

import torch

from cifar_resnet import limits


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX512-BF16 or AMX), rather than slowly imitating it."""
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def device_type(accelerator: str) -> str:
    """ "cuda", "mps", "cpu" …: what Lightning's `trainer.accelerator` means on this machine."""
    if accelerator in ("auto", "gpu"):
        if torch.cuda.is_available():
            return "cuda"
        if torch.backends.mps.is_available():
            return "mps"
        return "cpu" if accelerator == "auto" else "gpu"
    return accelerator


def resolve(precision: str = "auto", float32_matmul: str = "high", accelerator: str = "auto") -> str:
    """Lightning's name of the precision that "auto" means here; anything else is checked and handed back.

    precision: "auto" takes 16-mixed on CUDA, bf16-mixed on a CPU with native bf16, else 32-true.
    float32_matmul: torch.set_float32_matmul_precision, for what stays in 32 bits.
    """
    limits.require("precision", precision=precision, float32_matmul=float32_matmul)
    device = device_type(accelerator)
    if precision == "16-mixed" and device == "cpu":
        raise ValueError("precision=16-mixed needs a GPU. Got a CPU; give precision=auto, bf16-mixed or 32-true")
    if device == "cuda":
        torch.set_float32_matmul_precision(float32_matmul)
    if precision != "auto":
        return precision
    if device == "cuda":
        return "16-mixed"
    return "bf16-mixed" if device == "cpu" and cpu_has_bf16() else "32-true"
