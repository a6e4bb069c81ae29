"""Networks trained side by side: that each becomes what it would have become alone."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_equal, last_of, record_of, rows_of, weights_of
from torch import nn
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics import Metric

from cifar_resnet import cli
from cifar_resnet.api import train
from cifar_resnet.callbacks import MemberCheckpoints
from cifar_resnet.data import StackedData, Synthetic
from cifar_resnet.errors import UsageError
from cifar_resnet.models import Classifier, ResNet, SpeedNet, StackedEnsemble
from cifar_resnet.runs import find_checkpoints

FOUR = ["ensemble.size=4", "optimizer.lr=0.005", "trainer.max_epochs=2"]


def folder_of(name: str = "train") -> Path:
    (folder,) = Path("outputs", name).glob("ensemble-*")
    return folder


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "recipe",
    [
        ["model.label_smoothing=0.1", "augment.flip=alternating", "data.num_val=41"],
        ["averaging=ema", "augment.mixing=cutmix", "model.bias_lr_factor=4", "model.tta=flip", "data.num_val=0"],
    ],
    ids=["best", "last"],
)
def test_members_equal_networks_trained_alone(cifar_train, recipe):
    recipe = [*recipe, "model.widths=[4,4,8]"]
    assert cifar_train(*recipe, *FOUR, "seed=3") == 0
    assert cifar_train(*recipe, *FOUR[1:], "-m", "seed=3,4,5,6", "name=alone") == 0
    (alone,) = Path("outputs/alone").glob("sweep-*")
    for seed in range(3, 7):
        ours, theirs = folder_of() / f"seed-{seed}", alone / f"seed-{seed}"
        names = ["last", "best"] if "data.num_val=41" in recipe else ["last"]
        for name in names:
            found, expected = weights_of(ours, name), weights_of(theirs, name)
            assert found.keys() == expected.keys()
            for key, tensor in expected.items():
                torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4, msg=f"{seed} {name} {key}")
        record, other = record_of(ours), record_of(theirs)
        assert {"macs", "parameters", "split_hash", "images", "steps", "epoch", "selected"} <= record.keys()
        for key in ("macs", "parameters", "split_hash", "images", "steps", "epoch", "selected", "training_flops"):
            assert record[key] == other[key], key
        for key in ("test/acc", "test/loss", *(["val/acc", "val/loss"] if "best" in names else [])):
            assert record["metrics"][key] == pytest.approx(other["metrics"][key], rel=1e-3), key
    first, second = (weights_of(folder_of() / f"seed-{seed}") for seed in (3, 4))
    assert not torch.equal(first["conv1.weight"], second["conv1.weight"])


TWO = ["ensemble.size=2", "optimizer.lr=1e-3", "trainer.max_epochs=2", "seed=3"]
OPTIONS = {
    "limited batches": ["trainer.limit_train_batches=4", "trainer.limit_val_batches=1", "data.eval_batch_size=20"],
    "clipped by norm": ["trainer.gradient_clip_val=0.1", "optimizer=adamw", "scheduler=one_cycle"],
    "clipped by value": ["trainer.gradient_clip_val=0.01", "trainer.gradient_clip_algorithm=value"],
    "by the least loss": [
        "callbacks.best.monitor=val/loss", "callbacks.best.mode=min", "augment=cutmix", "model.label_smoothing=0.1",
    ],
    "by the training": ["callbacks.best.monitor=train/loss", "callbacks.best.mode=min", "model.squeeze_excitation=4"],
    "every second epoch": ["trainer.check_val_every_n_epoch=2", "optimizer=muon", "test=false"],
    "all at once": [
        "averaging=ema", "trainer.accumulate_grad_batches=2", "trainer.limit_train_batches=4", "augment=mixup",
        "model.tta=flip", "trainer.limit_test_batches=1", "data.eval_batch_size=20",
    ],
    "with a teacher, without validation": ["distill.weight=0.5", "augment=ricap", "data.num_val=0"],
}  # fmt: skip
OF_ITS_OWN = ("train_seconds", "seconds", "images_per_second", "finished", "run_dir", "name", "config", "metrics")


@pytest.mark.slow
@pytest.mark.parametrize("option", OPTIONS)
def test_members_leave_what_they_would_have_left_alone(cifar_train, trained, option):
    teacher = [f"distill.teacher={trained}"] if "teacher" in option else []
    command = [*OPTIONS[option], *teacher, *TWO[1:]]
    assert cifar_train(*command, TWO[0]) == 0
    for seed in (3, 4):
        assert cifar_train(*command, f"seed={seed}", f"run_dir=alone-{seed}") == 0
        ours, theirs = folder_of() / f"seed-{seed}", Path(f"alone-{seed}")
        left, expected = ({file.name for file in path.rglob("*") if file.is_file()} for path in (ours, theirs))
        shared = {"train.log", "augmented_batch.png", "schedule.png", "hparams.yaml"}
        assert left == {name for name in expected - shared if "tfevents" not in name}
        for path in theirs.glob("checkpoints/*.ckpt"):
            found, wanted = (torch.load(file, weights_only=True) for file in (ours / path.relative_to(theirs), path))
            assert (found["epoch"], found["global_step"]) == (wanted["epoch"], wanted["global_step"])
            torch.testing.assert_close(found["state_dict"], wanted["state_dict"], rtol=1e-3, atol=1e-3)
            assert_alike(found["metrics"], wanted["metrics"])
        record, other = record_of(ours), record_of(theirs)
        assert record.keys() - {"side_by_side"} == other.keys()
        assert {key: record[key] for key in other if key not in OF_ITS_OWN} == {
            key: other[key] for key in other if key not in OF_ITS_OWN
        }
        assert_alike(record["metrics"], other["metrics"])
        for row, wanted in zip(rows_of(ours), rows_of(theirs), strict=True):
            assert_alike(*({key: float(value or "nan") for key, value in each.items()} for each in (row, wanted)))


def assert_alike(found: dict[str, float], expected: dict[str, float]) -> None:
    """But for rounding, and for speed."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if not name.endswith("per_second"):
            assert found[name] == pytest.approx(value, rel=2e-3, abs=1e-3, nan_ok=True), name


def test_the_speed_of_a_member_is_its_share(cifar_train):
    assert cifar_train(*TWO) == 0
    (row, *_), (whole, *_) = rows_of(folder_of() / "seed-3"), rows_of(folder_of() / "together")
    assert float(row["train/images_per_second"]) == pytest.approx(float(whole["train/images_per_second"]) / 2)


def test_members_of_a_dozen_have_their_own_metrics():
    members = [ResNet(depth=8, widths=[2, 2, 2]) for _ in range(12)]
    whole = {f"val/acc_{number}": float(number) for number in range(12)} | {"val/acc": 5.5, "lr_1": 0.1}
    for number in range(12):
        assert StackedEnsemble(members).member_metrics(whole, number) == {"val/acc": float(number), "lr_1": 0.1}


class Dtypes(TorchDispatchMode):
    """What convolutions and matrix products are given."""

    def __init__(self):
        super().__init__()
        self.found = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func.overloadpacket.__name__ in ("convolution", "mm", "addmm", "bmm"):
            self.found |= {(func.overloadpacket.__name__, arg.dtype) for arg in args if isinstance(arg, torch.Tensor)}
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("network", [partial(ResNet, depth=8, widths=[4, 4, 8]), partial(SpeedNet, widths=[8, 16])])
def test_networks_side_by_side_compute_in_the_precision_of_one_alone(network):
    members = [network(optimizer=torch.optim.SGD) for _ in range(3)]
    together = StackedEnsemble(members)
    images = torch.randn(24, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16), Dtypes() as dtypes:
        found = together(images)
    assert {dtype for _, dtype in dtypes.found} == {torch.bfloat16}
    assert "convolution" in {name for name, _ in dtypes.found}
    with torch.autocast("cpu", torch.bfloat16):
        alone = torch.cat([member(some) for member, some in zip(members, images.chunk(3), strict=True)])
    assert torch.allclose(found.float(), alone.float(), atol=0.05 * alone.float().std().item())
    exact = torch.cat([member(some) for member, some in zip(members, images.chunk(3), strict=True)])
    assert torch.allclose(together(images), exact, rtol=1e-4, atol=1e-5)
    found.float().square().mean().backward()
    assert all(member.fc.weight.grad.abs().sum() > 0 for member in members)


@pytest.mark.parametrize("network", [partial(ResNet, depth=8, widths=[4, 4, 8]), partial(SpeedNet, widths=[8, 16])])
def test_networks_side_by_side_pass_cudas_checks(network, monkeypatch):
    """On tensors that say they are on a GPU: shapes and devices without numbers."""
    monkeypatch.setattr(fake_tensor, "init_gpu_context", lambda device: None, raising=False)
    monkeypatch.setattr(FakeTensorMode, "avoid_device_init", True, raising=False)
    together = StackedEnsemble([network(optimizer=torch.optim.SGD) for _ in range(2)])
    layers = [module for module in together.modules() if not isinstance(module, Metric)]
    with FakeTensorMode(allow_non_fake_inputs=True):
        for tensors in (tensors for layer in layers for tensors in (layer._parameters, layer._buffers)):
            for name, tensor in [(name, tensor) for name, tensor in tensors.items() if tensor is not None]:
                layout = torch.channels_last if tensor.ndim == 4 else torch.contiguous_format
                moved = torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda").contiguous(memory_format=layout)
                tensors[name] = nn.Parameter(moved) if isinstance(tensor, nn.Parameter) else moved
        images = torch.empty(8, 3, 32, 32, device="cuda").contiguous(memory_format=torch.channels_last)
        assert together(images).shape == (8, 10)


def test_stacked_data_reads_what_nobody_has_read_before():
    modules = [Synthetic(num_train=200, num_test=20, num_val=40, batch_size=20, seed=seed) for seed in (0, 1)]
    together = StackedData(modules)
    together.trainer = None
    together.setup("fit")
    images, labels = next(iter(together.train_dataloader()))
    assert (len(images), len(labels)) == (40, 40)
    assert modules[1].train is modules[0].train


@pytest.mark.slow
def test_an_ensemble_that_was_stopped_goes_on(cifar_train, crash, capsys):
    assert cifar_train(*FOUR, "trainer.max_epochs=3", "output_dir=whole") == 0
    crash(2)
    with pytest.raises(RuntimeError):
        cifar_train(*FOUR, "trainer.max_epochs=3")
    crash(None)
    assert not list(Path("outputs").rglob("result.json"))
    assert cifar_train(*FOUR, "trainer.max_epochs=3") == 0
    (whole,) = Path("whole/train").glob("ensemble-*")
    for seed in range(4):
        for name in ("best", "last"):
            resumed, expected = (weights_of(parent / f"seed-{seed}", name) for parent in (folder_of(), whole))
            assert_equal(resumed, expected, f"{seed} {name}")
    written = {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*.ckpt")}
    capsys.readouterr()
    assert cifar_train(*FOUR, "trainer.max_epochs=3") == 0
    assert "trained before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("outputs").rglob("*.ckpt")} == written


@pytest.mark.slow
def test_a_training_stopped_between_its_end_and_its_members_checkpoints(cifar_train, monkeypatch, capsys):
    command = [*FOUR[1:], "ensemble.size=2", "data.num_val=0", "model.dropout=0.1", "model.drop_block=0.1"]
    assert cifar_train(*command, "output_dir=whole") == 0

    def interrupt(self, model):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(MemberCheckpoints, "complete", interrupt)
        assert cifar_train(*command) == 130
    assert cli.train([f"resume={folder_of()}/seed-0"]) == 2
    assert "by the command that began them" in capsys.readouterr().err
    assert cifar_train(*command) == 0
    (whole,) = Path("whole/train").glob("ensemble-*")
    for seed in (0, 1):
        assert_equal(weights_of(folder_of() / f"seed-{seed}"), weights_of(whole / f"seed-{seed}"))


@pytest.mark.slow
def test_stopped_within_an_epoch_of_limited_batches_it_goes_on_and_keeps_each_members_best(cifar_train, send):
    command = [*TWO, "trainer.limit_train_batches=4", "callbacks.best.monitor=val/loss", "callbacks.best.mode=min"]
    assert cifar_train(*command, "output_dir=whole") == 0
    for step in (4, 7):  # after the first epoch, and within the second
        send(step)
        assert cifar_train(*command) == 143
    send(None)
    assert cifar_train(*command) == 0
    (whole,) = Path("whole/train").glob("ensemble-*")
    for seed in (3, 4):
        for name in ("best", "last"):
            resumed, expected = (weights_of(parent / f"seed-{seed}", name) for parent in (folder_of(), whole))
            assert_equal(resumed, expected, f"{seed} {name}")
        rows, expected = (rows_of(parent / f"seed-{seed}") for parent in (folder_of(), whole))
        for row, other in zip(rows, expected, strict=True):
            assert row | {"train/images_per_second": ""} == other | {"train/images_per_second": ""}


@pytest.mark.slow
def test_a_configuration_changed_below_an_ensemble_is_refused(cifar_train, crash, capsys):
    crash(1)
    with pytest.raises(RuntimeError):
        cifar_train(*TWO)
    crash(None)
    path = folder_of() / "seed-3" / "config.yaml"
    text = path.read_text()
    assert "batch_size: 40" in text
    path.write_text(text.replace("batch_size: 40", "batch_size: 20"))
    assert cifar_train(*TWO) == 2
    assert "Got another data.batch_size" in capsys.readouterr().err
    path.write_text(text)
    best = folder_of() / "seed-4" / "checkpoints" / "best.ckpt"
    best.write_bytes(b"PK")
    assert cifar_train(*TWO) == 2
    assert "seed-4/checkpoints/best.ckpt, which is damaged" in (line := capsys.readouterr().err)
    assert "take it away" in line
    best.unlink()
    assert cifar_train(*TWO) == 0


def test_a_network_that_diverges_is_named(cifar_train, monkeypatch, capsys):
    weigh_classes = Classifier.weigh_classes

    def spoil(self, counts):
        weigh_classes(self, counts)
        seeds.append(len(seeds))
        if len(seeds) == 2:
            torch.nn.init.constant_(self.fc.bias, torch.nan)

    seeds: list[int] = []
    monkeypatch.setattr(Classifier, "weigh_classes", spoil)
    assert cifar_train(*TWO) == 1
    line = capsys.readouterr().err
    assert "the loss is no longer finite. Got nan with seed 4 by step 1" in line
    assert "; look at the network, its init and data.std" in line


@pytest.mark.slow
def test_its_folder_is_an_ensemble_to_the_other_commands(cifar_train):
    assert cifar_train("ensemble.size=2", "page=true") == 0
    folder = folder_of()
    assert [path.parent.parent.name for path in find_checkpoints(folder)] == ["seed-0", "seed-1"]
    assert cli.evaluate([f"checkpoint={folder}", "accelerator=cpu", "precision=32-true"]) == 0
    (evaluation,) = folder.glob("evaluation*/evaluation.json")
    result = json.loads(evaluation.read_text())
    for seed, scores in enumerate(result["members"]):
        record = record_of(folder / f"seed-{seed}")
        assert scores["acc"] == pytest.approx(record["metrics"]["test/acc"])
        assert record["config"]["seed"] == record["config"]["data"]["seed"] == seed
        assert (folder / f"seed-{seed}" / "page.html").exists()
        assert last_of(folder / f"seed-{seed}")["config"]["overrides"][-1] == f"seed={seed}"


def test_from_python_one_network_is_trained():
    with pytest.raises(UsageError, match="one run"):
        train([*TINY, "ensemble.size=2"])
    assert cli.train(["-m", *TINY, "ensemble.size=1,2"]) == 2


def test_a_member_goes_on_with_nothing_but_what_it_has(cifar_train, run_dirs, capsys):
    assert cifar_train("ensemble.size=2", "test=false") == 0
    member = next(path for path in run_dirs() if path.name.startswith("seed-"))
    assert cli.train([f"resume={member}", "page=true"]) == 2
    assert "nothing to go on from. Got " in capsys.readouterr().err
