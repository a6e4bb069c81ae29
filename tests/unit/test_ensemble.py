"""Networks trained side by side: that each becomes what it would have become alone."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_equal, last_of, record_of
from torch.utils._python_dispatch import TorchDispatchMode

from cifar_resnet import cli
from cifar_resnet.callbacks import MemberCheckpoints
from cifar_resnet.errors import UsageError
from cifar_resnet.models import ResNet, SpeedNet, StackedEnsemble
from cifar_resnet.runs import find_checkpoints
from cifar_resnet.train import train

FOUR = ["ensemble.size=4", "optimizer.lr=0.02", "trainer.max_epochs=2"]


def folder_of(name: str = "train") -> Path:
    (folder,) = Path("outputs", name).glob("ensemble-*")
    return folder


def weights_of(run_dir: Path, name: str = "last") -> dict[str, torch.Tensor]:
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]


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
