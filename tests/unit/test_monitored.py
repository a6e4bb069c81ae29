"""By which metric a callback goes, and which way: against a plain look at the table of epochs."""

from pathlib import Path

import pytest
from helpers import record_of, rows_of

from cifar_resnet import checkpoints
from cifar_resnet.callbacks import Checkpoint, EarlyStopping
from cifar_resnet.errors import UsageError
from cifar_resnet.monitored import mode_of

BETTER = {"val/acc": max, "val/loss": min, "train/acc": max, "train/loss": min}
# a rate that rises until it ruins the network: the best epoch is neither the first nor the last
RISING = ("trainer.max_epochs=5", "scheduler=one_cycle", "scheduler.peak_fraction=1.0", "optimizer.lr=10")
RUINED = (*RISING, "scheduler.start_factor=0.001", "data.num_val=120")


@pytest.mark.parametrize("monitor", BETTER)
def test_the_mode_follows_from_the_metric_and_a_contradiction_is_refused(monitor):
    right, wrong = ("max", "min") if BETTER[monitor] is max else ("min", "max")
    for mode in (None, right):
        assert mode_of(monitor, mode) == right
        assert Checkpoint("folder", "best", monitor, mode).mode == right
        assert EarlyStopping(monitor, mode).mode == right
    for refused in (lambda: Checkpoint("folder", "best", monitor, wrong), lambda: EarlyStopping(monitor, wrong)):
        with pytest.raises(UsageError, match=f"{monitor} is better the .*er. Got mode={wrong}; give {right}"):
            refused()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("monitor", BETTER)
def test_the_best_epoch_by_each_metric_is_kept(cifar_train, run_dirs, monitor):
    assert cifar_train(*RUINED, f"callbacks.best.monitor={monitor}") == 0
    (run_dir,) = run_dirs()
    values = [float(row[monitor]) for row in rows_of(run_dir)]
    assert values.index(BETTER[monitor](values)) + 1 == record_of(run_dir)["epoch"]
    assert len(set(values)) > 2


@pytest.mark.slow
def test_each_network_side_by_side_keeps_its_best_by_a_loss(cifar_train):
    assert cifar_train(*RUINED, "callbacks.best.monitor=val/loss", "ensemble.size=2") == 0
    (folder,) = Path("outputs/train").glob("ensemble-*")
    rows = rows_of(folder / "together")
    for number in range(2):
        losses = [float(row[f"val/loss_{number}"]) for row in rows]
        best = folder / f"seed-{number}" / "checkpoints" / "best.ckpt"
        assert checkpoints.read(best)["epoch"] == losses.index(min(losses)) < 4


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("monitor", BETTER)
def test_early_stopping_goes_on_while_its_metric_improves(cifar_train, run_dirs, monitor):
    own = [f"callbacks.early_stopping.monitor={monitor}", "callbacks.early_stopping.patience=1"]
    more = ["callbacks=early_stopping", *own, "callbacks.early_stopping.min_delta=0"]
    assert cifar_train(*RUINED, "trainer.max_epochs=9", *more) == 0
    values = [float(row[monitor]) for row in rows_of(run_dirs()[0])]
    # the first that is no better than all before it
    expected = next(
        (count for count in range(2, 9) if BETTER[monitor](values[:count]) in values[: count - 1]), 9
    )  # fmt: skip
    assert len(values) == record_of(run_dirs()[0])["epochs"] == expected
