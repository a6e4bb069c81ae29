"""Which precision a run gets, by what the machine has."""

import pytest
import torch
from helpers import write_files

from cifar_resnet import hardware
from cifar_resnet.hardware import resolve_precision


@pytest.mark.parametrize(
    ("cuda", "bf16", "expected"), [(True, True, "16-mixed"), (False, True, "bf16-mixed"), (False, False, "32-true")]
)
def test_auto_follows_the_hardware(monkeypatch, cuda, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(hardware, "cpu_prefers_bf16", lambda: bf16)
    assert resolve_precision("auto", accelerator="auto") == expected


@pytest.mark.parametrize(
    ("vendor", "avx512_bf16", "amx", "expected"),
    [
        ("AuthenticAMD", True, False, True), ("AuthenticAMD", False, False, False),
        ("GenuineIntel", True, True, True), ("GenuineIntel", True, False, False), ("GenuineIntel", False, False, False),
    ],
)  # fmt: skip
def test_bf16_is_preferred_where_the_cpu_is_faster_in_it(monkeypatch, vendor, avx512_bf16, amx, expected):
    monkeypatch.setattr(hardware, "cpuinfo", lambda: f"vendor_id\t: {vendor}\n")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert hardware.cpu_prefers_bf16() == expected


@pytest.mark.parametrize(
    ("avx512_bf16", "amx", "expected"),
    [(False, False, "Some CPU, 1 thread"), (True, False, "Some CPU with AVX512-BF16, 1 thread"),
     (True, True, "Some CPU with AMX, 1 thread")],
)  # fmt: skip
def test_a_cpus_name_says_how_it_computes_in_bf16(monkeypatch, avx512_bf16, amx, expected):
    monkeypatch.setattr(hardware, "cpuinfo", lambda: "model name\t: Some CPU\nflags\t: fpu\n")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    assert hardware.device_name(torch.device("cpu")) == expected


def test_bf16_on_a_chip_without_it_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(ValueError, match=r"^Tesla T4 does not compute in bfloat16. Got .*; give precision=16-mixed$"):
        resolve_precision("bf16-mixed", accelerator="gpu")


def test_asking_for_a_cpu_is_heard_on_a_machine_with_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(hardware, "cpu_prefers_bf16", lambda: True)
    assert resolve_precision("auto", accelerator="cpu") == "bf16-mixed"


def test_float32_matmul_reaches_torch_on_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    before = torch.get_float32_matmul_precision()
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    try:
        for precision, asked, found in (
            ("32-true", "medium", "medium"), ("16-mixed", "highest", "highest"), ("32-true", None, "highest"),
            ("auto", None, "high"),
        ):  # fmt: skip
            resolve_precision(precision, float32_matmul=asked)
            assert torch.get_float32_matmul_precision() == found
            assert torch.backends.cudnn.allow_tf32 == (found != "highest")
    finally:
        torch.set_float32_matmul_precision(before)


def test_fp16_on_a_cpu_is_refused_rather_than_exchanged():
    with pytest.raises(ValueError, match=r"needs a GPU. Got a CPU; give precision=auto, bf16-mixed or 32-true"):
        resolve_precision("16-mixed", accelerator="cpu")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision must be auto, 16-mixed, bf16-mixed or 32-true. Got 'fp8'"),
        ({"float32_matmul": "low"}, "float32_matmul must be highest, high, medium or null. Got 'low'"),
    ],
)
def test_unknown_names_are_answered_with_the_known_ones(options, message):
    with pytest.raises(ValueError, match=message):
        resolve_precision(**options)


@pytest.mark.parametrize("version", [1, 2])
def test_free_memory_is_what_a_limit_around_this_process_leaves(monkeypatch, tmp_path, version):
    """The job of a cluster may have 4 GB of 16, of which 3 are taken, half a one by files' contents."""
    names = {
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        2: ("memory.max", "memory.current", "inactive_file"),
    }[version]
    base = tmp_path / "memory" if version == 1 else tmp_path
    job = base / "slurm" / "job_7"
    for folder, limit in ((job, "max"), (job.parent, str(4 * 10**9))):
        stat = f"anon 5\n{names[2]} 300000000\n{names[2].replace('inactive', 'active')} 200000000\n"
        write_files(folder, {names[0]: f"{limit}\n", names[1]: "3000000000\n", "memory.stat": stat})
    controllers = "5:cpu,memory" if version == 1 else "0:"
    write_files(tmp_path, {"mine": f"3:pids:/else\n{controllers}:/slurm/job_7\n"})
    monkeypatch.setattr(hardware, "CGROUPS", tmp_path)
    monkeypatch.setattr(hardware, "MINE", tmp_path / "mine")
    assert hardware.left_of_limits() == [1_500_000_000]
    assert hardware.free_memory() <= 1_500_000_000
