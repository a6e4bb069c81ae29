"""An end of the training once a metric no longer improves."""

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from cifar_resnet.constraints import CountOrZero, NonNegative, check
from cifar_resnet.monitored import Mode, mode_of


class EarlyStopping(LightningEarlyStopping):
    """Lightning's, by any of our metrics: looks at the end of each whole epoch that measured `monitor`.

    mode: whether better is "max" or "min"; None for what `monitor` is.
    min_delta: a change no larger than this is no improvement.
    patience: so many such epochs without an improvement end the training.
    stopping_threshold: ends it once the metric is better than this; divergence_threshold: once it is worse.
    check_finite: ends it where the metric is nan or infinite.
    """

    def __init__(
        self,
        monitor: str = "val/acc",
        mode: Mode | None = None,
        min_delta: NonNegative = 0.001,
        patience: CountOrZero = 10,
        stopping_threshold: float | None = None,
        divergence_threshold: float | None = None,
        check_finite: bool = True,
    ):
        check(EarlyStopping, locals())
        super().__init__(
            monitor=monitor,
            mode=mode_of(monitor, mode, "early stopping"),
            min_delta=min_delta,
            patience=patience,
            stopping_threshold=stopping_threshold,
            divergence_threshold=divergence_threshold,
            check_finite=check_finite,
            strict=False,  # an epoch may be left without validation
            check_on_train_epoch_end=True,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.is_last_batch:  # one that ran out of time may go on
            super().on_train_epoch_end(trainer, pl_module)
