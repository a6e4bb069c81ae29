"""The lines that a training prints."""

from types import SimpleNamespace

import pytest

from cifar_resnet.callbacks import progress
from cifar_resnet.callbacks.progress import Progress


@pytest.mark.parametrize(("done", "left"), [(0, "0:02"), (9, "0:20")])
def test_the_time_left_goes_by_the_part_of_an_epoch_that_was_trained_in_this_life(done, left, monkeypatch):
    """Of ten batches, a second in all; two epochs are to come."""
    lines, now = [], iter((100.0, 101.0))
    monkeypatch.setattr(progress.time, "perf_counter", lambda: next(now))
    monkeypatch.setattr(progress.log, "info", lines.append)
    batches = SimpleNamespace(batch_progress=SimpleNamespace(current=SimpleNamespace(completed=done)))
    trainer = SimpleNamespace(
        current_epoch=1, max_epochs=4, num_training_batches=10, is_global_zero=True, callback_metrics={},
        fit_loop=SimpleNamespace(epoch_loop=batches, restarted_mid_epoch=done > 0),
        optimizers=[SimpleNamespace(param_groups=[{"lr": 0.1}])],
    )  # fmt: skip
    told = Progress()
    told.on_train_start(trainer, None)
    told.on_train_epoch_end(trainer, None)
    assert lines[-1].split()[0] == "2/4"
    assert lines[-1].split()[-1] == left
