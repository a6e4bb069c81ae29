import pytest
import torch

from cifar_resnet import precision


@pytest.mark.parametrize(
    ("cuda", "bf16", "expected"), [(True, True, "16-mixed"), (False, True, "bf16-mixed"), (False, False, "32-true")]
)
def test_auto_follows_the_hardware(monkeypatch, cuda, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: bf16)
    assert precision.resolve("auto", accelerator="auto") == expected


def test_asking_for_a_cpu_is_heard_on_a_machine_with_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(precision, "cpu_has_bf16", lambda: True)
    assert precision.resolve("auto", accelerator="cpu") == "bf16-mixed"


def test_float32_matmul_reaches_torch_on_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.get_float32_matmul_precision()
    try:
        precision.resolve("32-true", float32_matmul="medium")
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)


def test_fp16_on_a_cpu_is_refused_rather_than_exchanged():
    with pytest.raises(ValueError, match=r"needs a GPU. Got a CPU; give precision=auto, bf16-mixed or 32-true"):
        precision.resolve("16-mixed", accelerator="cpu")


@pytest.mark.parametrize("options", [{"precision": "fp8"}, {"float32_matmul": "low"}])
def test_unknown_names_are_answered_with_the_known_ones(options):
    with pytest.raises(ValueError, match=r"Got '.*'; give"):
        precision.resolve(**options)
