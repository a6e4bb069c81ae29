"""The table of epochs, and the metrics that a checkpoint holds."""

from helpers import TINY, last_of, rows_of
from lightning.pytorch import Callback

from cifar_resnet.compose import Composer
from cifar_resnet.train import train_run


class Own(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        pl_module.log_dict({"lrp/relevance": 0.25, "lr_noise": 0.5}, on_step=False, on_epoch=True)


def test_metrics_whose_names_begin_like_the_learning_rate_are_kept_and_the_monitors_are_not(run_dirs):
    (job,) = Composer().jobs([*TINY, "model.decay_norm_and_bias=false"])  # two groups: lr/pg1, lr/pg2
    train_run(job.cfg, [Own()])
    (run_dir,) = run_dirs()
    (row,) = rows_of(run_dir)
    metrics = last_of(run_dir)["metrics"]
    assert (row["lrp/relevance"], row["lr_noise"]) == ("0.25", "0.5")
    assert (metrics["lrp/relevance"], metrics["lr_noise"]) == (0.25, 0.5)
    assert [name for name in row if name.startswith("lr")] == ["lr", "lr_noise", "lrp/relevance"]
    assert not any(name.startswith("lr/") for name in metrics)
