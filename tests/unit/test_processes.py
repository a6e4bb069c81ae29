import dataclasses
from types import SimpleNamespace

import pytest
import torch
from helpers import TINY
from omegaconf import OmegaConf
from torchmetrics import Metric

from cifar_resnet import processes, resume, runs
from cifar_resnet.callbacks.mid_epoch import MidEpochState, shared_out
from cifar_resnet.compose import Composer
from cifar_resnet.errors import RunError, UsageError
from cifar_resnet.ranks import Place


def configuration(*overrides: str):
    (job,) = Composer("train").jobs([*TINY, "trainer.accelerator=cpu", *overrides])
    return job.cfg


@pytest.mark.parametrize(
    ("given", "count"), [("1", 1), ("2", 2), ("auto", 1), ("'2'", 2), ("'1'", 1)]
)  # a CPU is one device, unless it is asked for more
def test_devices_are_as_many_processes_as_lightning_makes_of_them(given, count):
    assert processes.num_processes(configuration(f"trainer.devices={given}")) == count


@pytest.mark.parametrize(("given", "count"), [("[0]", 1), ("[1,3]", 2), ("-1", 4), ("auto", 4), ("'0,2'", 2), ("3", 3)])
def test_devices_of_a_gpu_are_lightnings(given, count, monkeypatch):
    """By Lightning's own count of four GPUs, none of which is looked at."""
    for place in ("lightning.fabric.accelerators.cuda", "lightning.pytorch.accelerators.cuda"):
        monkeypatch.setattr(f"{place}.num_cuda_devices", lambda: 4)
    monkeypatch.setattr("lightning.fabric.accelerators.cuda._get_all_visible_cuda_devices", lambda: [0, 1, 2, 3])
    monkeypatch.setattr("lightning.fabric.utilities.device_parser._get_all_available_gpus", lambda **_: [0, 1, 2, 3])
    cfg = configuration(f"trainer.devices={given}", "trainer.accelerator=gpu")
    cfg.trainer.accelerator = "cuda"
    assert processes.num_processes(cfg) == count


@pytest.mark.parametrize("given", ["[0,1]", "-1", "'0,1'"])
def test_devices_that_a_cpu_does_not_have_are_refused_in_one_line(given):
    with pytest.raises(UsageError, match=r"^trainer.devices is nothing .* Got .* for accelerator=cpu;"):
        processes.num_processes(configuration(f"trainer.devices={given}"))


@pytest.mark.parametrize(
    ("counts", "world_size", "may_share", "expected"),
    [
        ([2], 2, False, True),
        ([2, 2], 2, True, True),
        ([1, 1], 4, True, False),  # n workers that share a sweep
        ([1], 4, False, UsageError),
        ([1, 2], 2, True, UsageError),
        ([4], 2, False, UsageError),
    ],
)
def test_processes_train_together_or_share_the_work_or_are_too_many(counts, world_size, may_share, expected):
    configurations = [configuration(f"trainer.devices={count}") for count in counts]
    place = Place(1, world_size, 1, "here", 1, "srun")
    if expected is UsageError:
        with pytest.raises(UsageError, match=f"srun has started {world_size} processes"):
            processes.is_rank(place, configurations, may_share)
    else:
        assert processes.is_rank(place, configurations, may_share) is expected
    assert not processes.is_rank(None, configurations, may_share)


def test_a_range_test_takes_the_first_device_and_all_devices_batch(monkeypatch):
    cfg = configuration("trainer.devices=[2,3]", "trainer.strategy=ddp", "data.batch_size=20")
    monkeypatch.setattr(processes, "num_processes", lambda cfg: 2)
    one = processes.on_one_device(cfg)
    assert (one.trainer.devices, one.trainer.strategy, one.data.batch_size) == ([2], "auto", 40)
    assert (cfg.trainer.devices, cfg.data.batch_size) == ([2, 3], 20)


def test_a_global_batch_that_does_not_divide_is_refused():
    cfg = OmegaConf.create({"data": {"batch_size": 20}})
    with pytest.raises(UsageError, match=r"sees 40 images, 20 on each of 2 devices. Got 3 devices, which"):
        resume.keep_global_batch(cfg, (2, 20, 2, False), 3)
    resume.keep_global_batch(cfg, (2, 20, 2, True), 4)
    assert cfg.data.batch_size == 10
    resume.keep_global_batch(cfg, None, 3)  # nothing has been trained yet
    assert cfg.data.batch_size == 10


def test_on_all_devices_of_a_smaller_machine_a_run_goes_on_twice(tmp_path):
    begun = OmegaConf.create({name: {} for name in runs.IN_A_CONFIG} | {"name": "a", "seed": 0, "overrides": []})
    begun.data, begun.trainer, begun.run_dir = {"batch_size": 20}, {"devices": "auto"}, str(tmp_path)
    runs.write_atomically(tmp_path / runs.CONFIG, OmegaConf.to_yaml(begun))
    for before in ((4, 20, "auto", False), (2, 40, "auto", False)):  # begun on four, then on two, and again
        cfg = begun.copy()
        resume.keep_global_batch(cfg, before, 2)
        assert cfg.data.batch_size == 40


def test_what_only_one_of_the_others_meets_with_ends_it_and_is_said(capsys):
    with pytest.raises(RunError, match="no such folder"), processes.after_the_first():
        raise UsageError("no such folder")
    assert capsys.readouterr().err == "error: process 0: no such folder\n"


def test_metrics_of_an_epoch_that_goes_on_in_other_numbers_are_counted_once():
    states = [
        {"sampler": {"num_given": 3, "generator": 0}, "metrics": {"train_acc": {"tp": torch.tensor([rank + 1])}}}
        for rank in range(3)
    ]
    first, other = shared_out(states, is_first=True), shared_out(states, is_first=False)
    assert first["sampler"] == other["sampler"] == {"num_given": 3}
    assert first["metrics"]["train_acc"]["tp"].tolist() == [6]
    assert other["metrics"]["train_acc"]["tp"].tolist() == [0]
    for rank, state in enumerate(states):  # such as torchmetrics' CatMetric has
        state["metrics"] = {"train_seen": {"value": [torch.tensor([rank])] * 2}}
    first, other = shared_out(states, is_first=True), shared_out(states, is_first=False)
    assert torch.cat(first["metrics"]["train_seen"]["value"]).tolist() == [0, 0, 1, 1, 2, 2]
    assert other["metrics"]["train_seen"]["value"] == []


def test_metrics_go_to_other_processes_by_the_host():
    """A tensor of a GPU would be put onto that GPU by each process that hears of it."""

    class Counted(Metric):
        metric_state = property(lambda self: {"sum": SimpleNamespace(cpu=lambda: "on the host")})

        def update(self): ...
        def compute(self): ...

    network = torch.nn.Sequential(Counted())
    network.device, checkpoint = torch.device("cpu"), {}
    trainer = SimpleNamespace(world_size=1, train_dataloader=None)
    MidEpochState().on_save_checkpoint(trainer, network, checkpoint)
    assert checkpoint["mid_epoch_state"][0]["metrics"] == {"0": {"sum": "on the host"}}


@pytest.mark.parametrize("rank", [0, 1])
def test_more_processes_on_a_host_than_its_devices_are_refused_by_all_alike(rank):
    of_one, of_two = configuration("trainer.num_nodes=4"), configuration("trainer.devices=2", "trainer.num_nodes=2")
    place = Place(rank, 4, rank, "here", 1, "torchrun", most_on_a_host=2)
    assert processes.is_rank(place, [of_two], may_share=False)
    assert processes.is_rank(dataclasses.replace(place, most_on_a_host=0), [of_one], may_share=False)
    with pytest.raises(UsageError, match=r"how many processes each host has\. Got 1, where torchrun has started 2 on"):
        processes.is_rank(place, [of_one], may_share=False)
