"""Schedules of torch's and of one's own, from a YAML file: by the epoch or by the step, stopped and resumed."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_equal, last_of, record_of, rows_of, write_files
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import ReduceLROnPlateau

from cifar_resnet import cli

TORCH = "_target_: torch.optim.lr_scheduler."
FILES = {
    "mine/scheduler/step.yaml": f"{TORCH}StepLR\nstep_size: 2\ngamma: 0.5\n",
    "mine/scheduler/milestones.yaml": f"{TORCH}MultiStepLR\nmilestones: [1, 3]\ngamma: 0.5\n",
    "mine/scheduler/cosine_steps.yaml": f"{TORCH}CosineAnnealingLR\nT_max: 20\ninterval: step\n",
    "mine/scheduler/cycle.yaml": f"{TORCH}OneCycleLR\nmax_lr: 0.2\n",
    "mine/scheduler/plateau.yaml": f"{TORCH}ReduceLROnPlateau\npatience: 0\nthreshold: 0.05\nfactor: 0.5\n",
    "mine/scheduler/accuracy.yaml": f"{TORCH}ReduceLROnPlateau\npatience: 0\nmonitor: train/acc\nthreshold: 0.5\n",
    "mine/scheduler/halved.yaml": f"{TORCH}LambdaLR\nlr_lambda: {{_target_: my_rates.halved, _partial_: true}}\n",
    "mine/scheduler/warm.yaml": f"{TORCH}SequentialLR\nmilestones: [2]\nschedulers:\n"
    f"- {{{TORCH}LinearLR, total_iters: 2}}\n- {{{TORCH}ExponentialLR, gamma: 0.5}}\n",
    "my_rates.py": "def halved(epoch):\n    return 0.5**epoch\n",
}
EPOCHS, STEPS = 4, 5  # in each epoch


@pytest.fixture(autouse=True)
def own_files(tmp_path, monkeypatch):
    write_files(tmp_path, FILES)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_rates", None)


def train(name: str, *overrides: str) -> int:
    given = [*TINY, f"trainer.max_epochs={EPOCHS}", f"scheduler={name}", *overrides]
    return cli.train(["--config-dir", "mine", *given])


def rates_by_hand(name: str, metrics: list[dict[str, str]]) -> list[float]:
    """The rate in each epoch, or by step at its end, of torch's schedule alone; metrics: what the run measured."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    make = {
        "step": lambda: lr_scheduler.StepLR(optimizer, 2, 0.5),
        "cosine_steps": lambda: lr_scheduler.CosineAnnealingLR(optimizer, 20),
        "cycle": lambda: lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=EPOCHS * STEPS),
        "plateau": lambda: ReduceLROnPlateau(optimizer, patience=0, threshold=0.05, factor=0.5),
        "accuracy": lambda: ReduceLROnPlateau(optimizer, "max", patience=0, threshold=0.5),
        "halved": lambda: lr_scheduler.ExponentialLR(optimizer, 0.5),
        "milestones": lambda: lr_scheduler.MultiStepLR(optimizer, [1, 3], 0.5),
        "warm": lambda: lr_scheduler.SequentialLR(
            optimizer,
            [lr_scheduler.LinearLR(optimizer, total_iters=2), lr_scheduler.ExponentialLR(optimizer, 0.5)],
            [2],
        ),
    }
    scheduler, found = make[name](), []
    monitor = {"plateau": "val/loss", "accuracy": "train/acc"}.get(name)
    for row in metrics:
        for _ in range(STEPS if name in ("cosine_steps", "cycle") else 0):
            optimizer.step()
            scheduler.step()
        found.append(optimizer.param_groups[0]["lr"])
        if name not in ("cosine_steps", "cycle"):
            optimizer.step()
            scheduler.step(*([float(row[monitor])] if monitor else []))
    return found


def assert_whole_and_resumed_are_one(name: str, run_dirs, crash, send, *overrides: str) -> Path:
    """Killed after two epochs, stopped within the third, and resumed each time."""
    assert train(name, *overrides) == 0
    crash(2)
    with pytest.raises(RuntimeError, match="power"):
        train(name, *overrides)
    crash(None)
    whole, resumed = run_dirs()
    assert (whole / "schedule.png").exists()
    trust = ["trust=[my_rates]"] if name == "halved" else []
    send(2 * STEPS + 2)
    assert cli.train([f"resume={resumed}", *trust]) == 143
    send(None)
    assert cli.train([f"resume={resumed}", *trust]) == 0
    for key in ("state_dict", "optimizer_states", "lr_schedulers"):
        assert_equal(last_of(whole)[key], last_of(resumed)[key], key)
    assert (whole / "schedule.png").read_bytes() == (resumed / "schedule.png").read_bytes()
    rates = [[float(row["lr"]) for row in rows_of(run_dir)] for run_dir in (whole, resumed)]
    assert rates[0] == rates[1] == pytest.approx(rates_by_hand(name, rows_of(whole)))
    return whole


@pytest.mark.slow
def test_a_schedule_of_torchs_is_followed_and_goes_on_to_the_last_bit(run_dirs, crash, send):
    assert_whole_and_resumed_are_one("plateau", run_dirs, crash, send)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["step", "milestones", "cosine_steps", "cycle", "accuracy", "halved", "warm"])
def test_so_are_all_the_others(name, run_dirs, crash, send):
    assert_whole_and_resumed_are_one(name, run_dirs, crash, send)


@pytest.mark.slow
@pytest.mark.parametrize(
    "overrides", [("optimizer=sam",), ("averaging=ema",), ("optimizer=adam", "model.bias_lr_factor=2")]
)
def test_with_every_kind_of_optimizer(overrides, run_dirs, crash, send):
    assert train("step", *overrides) == 0
    (run_dir,) = run_dirs()
    rates = [float(row["lr"]) for row in rows_of(run_dir)]
    assert [rate / rates[0] for rate in rates] == pytest.approx([1, 1, 0.5, 0.5])


@pytest.mark.slow
def test_an_epoch_that_was_not_validated_does_not_count_as_a_bad_one(run_dirs):
    """Of four epochs two are validated, the second of them no better than the first."""
    assert (
        train("plateau", "trainer.check_val_every_n_epoch=2", "+scheduler.cooldown=9", "scheduler.threshold=0.9") == 0
    )
    (run_dir,) = run_dirs()
    (state,) = last_of(run_dir)["lr_schedulers"]
    assert state["last_epoch"] == 2
    assert [float(row["lr"]) for row in rows_of(run_dir)] == pytest.approx([0.1] * 4)


@pytest.mark.slow
def test_without_validation_images_a_plateau_is_looked_for_on_training_images(run_dirs):
    assert train("plateau", "data.num_val=0", "scheduler.threshold=0.9") == 0
    (run_dir,) = run_dirs()
    assert [float(row["lr"]) for row in rows_of(run_dir)] == pytest.approx([0.1, 0.1, 0.05, 0.025])
    assert record_of(run_dir)["selected"] == "last"


@pytest.mark.slow
def test_a_function_may_give_a_plateau(run_dirs):
    source = (
        "from torch.optim.lr_scheduler import ReduceLROnPlateau\n"
        "def plateau(optimizer, mode='min'):\n"
        "    return ReduceLROnPlateau(optimizer, mode, patience=0, threshold=0.9)\n"
    )
    write_files(Path(), {"my_rates.py": source, "mine/scheduler/own.yaml": "_target_: my_rates.plateau\n"})
    assert train("own", "data.num_val=0") == 0
    assert train("plateau", "data.num_val=0", "scheduler.threshold=0.9", "scheduler.factor=0.1") == 0
    own, torchs = ([float(row["lr"]) for row in rows_of(run_dir)] for run_dir in run_dirs())
    assert own == torchs
    assert train("own", "+scheduler.monitor=val/acc", "+scheduler.mode=max") == 0
    assert train("own", "+scheduler.monitor=val/acc") == 2


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("scheduler=step ~scheduler.step_size", "scheduler.step_size"),
        ("scheduler=step +scheduler.interval=often", "scheduler.interval must be step, epoch or null. Got 'often'"),
        ("scheduler=step +scheduler.wings=2", "unknown key scheduler.wings."),
        ("scheduler=step +scheduler.stepsize=2", "unknown key scheduler.stepsize. Did you mean scheduler.step_size?"),
        ("scheduler=plateau +scheduler.monitor=val/los", "scheduler.monitor must be val/acc, val/loss"),
        ("scheduler=plateau +scheduler.monitor=val/acc data.num_val=0", "scheduler.monitor=val/acc needs validation"),
        ("scheduler=plateau +scheduler.mode=max", "Got max for the loss; leave it out"),
        ("scheduler=plateau ensemble.size=2", "Got ensemble.size=2; give another scheduler, or ensemble.size=1"),
        ("scheduler=cycle +scheduler.total_steps=7", "OneCycleLR ends before the training. Got 7 of 20 steps"),
        ("scheduler=cycle model.bias_lr_factor=4", "OneCycleLR gives all weights one learning rate."),
    ],
)
def test_a_schedule_that_cannot_work_gets_one_line_and_leaves_nothing(line, message, capsys):
    assert train(*(text.removeprefix("scheduler=") for text in line.split())) == 2
    (error,) = capsys.readouterr().err.splitlines()
    assert message in error
    assert not list(Path("outputs").rglob("config.yaml"))
