"""A training by two processes against one process that sees both parts of each batch."""

import functools
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import two_ranks
from filelock import FileLock
from helpers import TINY, assert_equal, record_of, rows_of
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from two_ranks import CASES, FROZEN, USUAL, Batches, Training

from cifar_resnet import cli, hardware

QUICK = ("sgd", "sam, accumulation", "one validation batch")
SLOW = tuple(case for case in CASES if case not in QUICK)


def cases(of: dict[str, tuple[str, ...]]) -> list:
    return [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in of]


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """By case: what each rank found, after a training by two processes; and what they printed to stderr."""

    @functools.cache
    def ranks(case: str) -> tuple[list[dict], str]:
        group = QUICK if case in QUICK else SLOW
        base = tmp_path_factory.getbasetemp()  # of pytest-xdist's workers each has its own, in a folder of all
        shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
        folder = shared / f"two-ranks-{'quick' if group is QUICK else 'slow'}"
        folder.mkdir(exist_ok=True)
        with FileLock(folder / "lock"):
            if not (folder / "stderr").exists():
                environment = os.environ | {"OMP_NUM_THREADS": "1"}
                command = [sys.executable, two_ranks.__file__, str(folder), *group]
                done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=400)
                assert done.returncode == 0, done.stderr
                (folder / "stderr").write_text(done.stderr)
        found = [torch.load(folder / f"{case}-{rank}.pt") for rank in range(two_ranks.RANKS)]
        return found, (folder / "stderr").read_text()

    return ranks


def of_both(ranks: list[dict]) -> Batches:
    """The batches of one process that sees what both saw."""
    return [
        tuple(map(torch.cat, zip(*parts, strict=True))) for parts in zip(*(r["batches"] for r in ranks), strict=True)
    ]


def distance(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    """The largest difference of any weight or statistic."""
    return max((value - b[name]).abs().max().item() for name, value in a.items())


def sam_by_hand(start: dict[str, Tensor], ranks: list[dict], case: str) -> dict[str, Tensor]:
    """Each half-batch's own worst point; their gradients' mean, added up over the batches of a step."""
    training = Training(case)
    cfg, model, schedule = training.cfg, training.model, training.model.schedule
    model.load_state_dict(start)
    model.eval()  # BatchNorm by its statistics
    parameters, accumulate = list(model.parameters()), cfg.trainer.accumulate_grad_batches
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    steps = [range(at, min(at + accumulate, 10)) for at in range(0, 10, accumulate)]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(steps))

    def gradients(images: Tensor, labels: Tensor) -> list[Tensor]:
        loss = cross_entropy(model(images), labels, label_smoothing=model.label_smoothing)
        return list(torch.autograd.grad(loss, parameters))

    def at_worst_point(images: Tensor, labels: Tensor) -> list[Tensor]:
        before, first = [parameter.detach().clone() for parameter in parameters], gradients(images, labels)
        with torch.no_grad():
            sizes = [p.abs() + 0.01 if cfg.optimizer.adaptive else torch.ones_like(p) for p in parameters]
            norm = sum((size * g).square().sum() for size, g in zip(sizes, first, strict=True)).sqrt()
            for parameter, size, g in zip(parameters, sizes, first, strict=True):
                parameter += cfg.optimizer.rho * size**2 * g / norm
        second = gradients(images, labels)
        with torch.no_grad():
            for parameter, value in zip(parameters, before, strict=True):
                parameter.copy_(value)
        return second

    for batches in steps:
        found = [at_worst_point(*rank["batches"][index]) for index in batches for rank in ranks]
        for parameter, *each in zip(parameters, *found, strict=True):
            parameter.grad = torch.stack(each).mean(0)
        if cfg.trainer.gradient_clip_val:
            nn.utils.clip_grad_norm_(parameters, cfg.trainer.gradient_clip_val)
        optimizer.step()
        schedule.step()
    return model.state_dict()


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(FROZEN))
def test_two_halves_of_a_batch_train_as_the_whole(case, trained):
    ranks, _ = trained(case)
    first, second = ranks
    assert distance(first["start"], second["start"]) == 0
    assert not torch.equal(first["batches"][0][0], second["batches"][0][0])
    assert distance(first["weights"], second["weights"]) == 0
    whole, alone = Training(case), Training(case)
    if "sam" in case:
        expected = sam_by_hand(first["start"], ranks, case)
        steps = -(-10 // whole.cfg.trainer.accumulate_grad_batches)
    else:
        found = whole.fit(of_both(ranks))
        expected, steps = found["weights"], found["steps"]
        for name in ("train/loss", "train/acc", "val/loss", "val/acc"):
            assert first["metrics"][name] == second["metrics"][name] == pytest.approx(found["metrics"][name], abs=1e-5)
    assert first["steps"] == second["steps"] == steps
    error = distance(first["weights"], expected)
    assert error < 1e-5
    # that it would be no rank's own half
    assert distance(alone.fit(first["batches"])["weights"], expected) > 100 * error


@pytest.mark.slow
@pytest.mark.parametrize("case", cases(USUAL))
def test_all_ranks_know_the_same(case, trained):
    (first, second), _ = trained(case)
    if "a loss of nan" in case:
        assert first["ended"] == second["ended"]
        assert "the loss is no longer finite. Got nan by step 3 (epoch 1)" in first["ended"]
        return
    assert distance(first["weights"], second["weights"]) == 0
    assert first["metrics"] == second["metrics"]
    assert (first["lr"], first["epochs"]) == (second["lr"], second["epochs"])
    # and that is what one process finds
    alone = Training(case)
    alone.model.load_state_dict(first["weights"])
    trainer = alone.trainer([])
    (found,) = trainer.validate(alone.model, alone.data, verbose=False)
    expected = alone.test(trainer)
    for rank in (first, second):
        assert rank["tested"] == pytest.approx(expected["tested"], abs=1e-6)
        assert_equal(rank["predictions"], expected["predictions"])
    for name in ("val/loss", "val/acc"):
        assert first["metrics"][name] == pytest.approx(found[name], abs=1e-6)
    if "16 bits" in case:
        assert first["metrics"]["train/skipped_steps"] == 1
    if case == "a plateau":
        assert first["lr"] == pytest.approx(0.02 * 0.1**4)
    if case == "early stopping":
        assert first["epochs"] == 2


@pytest.mark.slow
def test_all_ranks_have_one_proxy_which_learns_from_what_each_of_them_sees(trained):
    """By hand: a gradient of each rank's batch, normalised by itself, and a step by their mean."""
    ranks, _ = trained("a proxy")
    proxy = Training("a proxy").model.selection.proxy.train()
    proxy.load_state_dict(ranks[0]["proxy"][0])
    parameters = list(proxy.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.02, momentum=0.9, nesterov=True, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for batches in zip(*(rank["batches"] for rank in ranks), strict=True):
        losses = [cross_entropy(proxy(images), labels) for images, labels in batches]
        gradients = [torch.autograd.grad(loss, parameters) for loss in losses]
        for parameter, *each in zip(parameters, *gradients, strict=True):
            parameter.grad = torch.stack(each).mean(0)
        optimizer.step()
        schedule.step()
    for rank in ranks:
        for name, parameter in proxy.named_parameters():
            torch.testing.assert_close(rank["proxy"][1][name], parameter.detach(), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("case", cases({"sgd": (), "ema": ()}))
def test_nothing_warns_of_what_is_in_order(case, trained):
    _, stderr = trained(case)
    assert [line for line in stderr.splitlines() if "Warning" in line or "sync_dist" in line] == []


@pytest.mark.slow
def test_a_run_on_two_devices_leaves_what_its_test_on_one_would():
    """The command, with page and all; then a copy of its folder, from which one process tests again."""
    command = [*TINY, "page=true", "data.batch_size=20", "data.eval_batch_size=20", "trainer.limit_test_batches=2"]
    command += ["trainer.accelerator=cpu", "trainer.devices=2", "trainer.strategy=ddp", "trainer.max_epochs=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "cifar_resnet.train", *command, "run_dir=two"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    assert "sync_dist" not in done.stderr
    shutil.copytree("two", "one")
    for name in ("result.json", "predictions.npz", "page.html"):
        Path("one", name).unlink()
    assert cli.train(["resume=one", "trainer.devices=1"]) == 0
    two, one = (record_of(Path(folder)) for folder in ("two", "one"))
    assert (two["num_tested"], two["num_test"]) == (40, 50)
    for key in ("num_tested", "num_test", "test_hash", "num_validated", "num_trained", "steps", "images"):
        assert two[key] == one[key], key
    assert two["device"] == f"2 x {hardware.device_name(torch.device('cpu'))}"
    assert two["metrics"] == pytest.approx(one["metrics"], abs=1e-6)
    rows = rows_of(Path("two"))
    assert len(rows) == 2
    assert {"train/loss", "val/acc", "train/images_per_second"} <= rows[0].keys()
    with np.load("two/predictions.npz") as ours, np.load("one/predictions.npz") as theirs:
        for name in theirs:
            assert np.array_equal(ours[name], theirs[name]), name
    assert Path("two/page.html").exists()
