"""Where a training ends."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.trainer.states import TrainerFn

from cifar_resnet.terminal import log


def is_ending(trainer: Trainer, epochs: int | None = None) -> bool:
    """Whether somebody has asked the training to stop, and trainer.min_epochs allows it.

    epochs: that have ended by then; None for those that have by now.
    """
    epochs = trainer.fit_loop.epoch_progress.current.processed if epochs is None else epochs  # type: ignore[attr-defined]
    return trainer.should_stop and epochs >= (trainer.min_epochs or 0)


def epochs_trained(trainer: Trainer) -> float:
    """How many epochs there were, a whole number unless the last one was cut short: then with its share of batches."""
    loop = trainer.fit_loop
    begun = loop.epoch_progress.current.processed  # type: ignore[attr-defined]
    return begun if trainer.is_last_batch else round(begun - 1 + (loop.batch_idx + 1) / trainer.num_training_batches, 3)


class TimeLimit(Timer):
    """Ends a training that has taken so long, with its validations and what came before a resume.

    As Lightning's, but only after an optimizer's step, so that nothing that has been accumulated is lost.

    duration: "DD:HH:MM:SS", or a dictionary with keys as datetime.timedelta has them; None for no end, and the time is
        noted all the same, for another life of the training may have one.
    """

    def __init__(self, duration: str | dict[str, float] | None):
        super().__init__(duration, verbose=False)  # type: ignore[arg-type]

    def on_fit_start(self, trainer: Trainer, *others: object) -> None:
        """Leave it to the first step."""

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.is_last_batch or (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @staticmethod
    def overrun(trainer: Trainer, before: float = 0.0) -> float | None:
        """The seconds that a training has taken that has no more; None while it has. before: those of another life."""
        for limit in trainer.callbacks:  # type: ignore[attr-defined]
            left = limit.time_remaining() if isinstance(limit, TimeLimit) else None
            if left is not None and left <= before:
                return before + limit.time_elapsed()
        return None


class Ending(LightningCheckpoint):
    """Makes an early end as good as any other, whoever asked for it by `trainer.should_stop`.

    The last epoch is validated, whatever trainer.check_val_every_n_epoch. A request that trainer.min_epochs does not
    allow is over with its epoch, and the next decides anew. A checkpoint notes as `ended` that the training had ended
    early; to go on from there leaves only the test, unless it was out of time and now has more.

    Derived from Lightning's base of checkpoints so that it comes after all who may ask; has to come before those that
    save.
    """

    ended = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self.every_n_epochs = trainer.check_val_every_n_epoch
        self.savers = [each for each in trainer.checkpoint_callbacks if isinstance(each, ModelCheckpoint)]

    def __getattr__(self, name: str) -> Any:
        """What others ask `trainer.checkpoint_callback`, which this is, is for the first of those that save."""
        if name.startswith("_") or not (savers := vars(self).get("savers")):
            raise AttributeError(f"{type(self).__name__} has no {name}")
        return getattr(savers[0], name)

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        checkpoint["ended"] = is_ending(trainer)
        checkpoint["out_of_time"] = TimeLimit.overrun(trainer)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict) -> None:
        if trainer.state.fn != TrainerFn.FITTING:  # a test goes on with nothing
            return
        seconds, loops = checkpoint["out_of_time"], checkpoint["loops"]["fit_loop"]
        self.ended = checkpoint["ended"] and (seconds is None or TimeLimit.overrun(trainer, seconds) is not None)
        if checkpoint["ended"] and not self.ended:
            log.info("its time was over, and it is given more: it goes on; if it was tested before, it is tested again")
            if not loops["epoch_loop.batch_progress"]["is_last_batch"]:
                for progress in (loops["epoch_progress"]["total"], loops["epoch_progress"]["current"]):
                    progress["processed"] -= 1  # this epoch, which goes on in its middle

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.ended:
            log.info("its training had ended; what is left is the test")
            trainer.should_stop = True

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # which an epoch that goes on in its middle does without

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        is_last = trainer.current_epoch + 1 == trainer.max_epochs
        trainer.check_val_every_n_epoch = 1 if is_last else self.every_n_epochs

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if is_ending(trainer, epochs=trainer.current_epoch + trainer.is_last_batch):
            trainer.check_val_every_n_epoch = 1

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # a search asks the first process alone, in the validation
        trainer.should_stop = trainer.strategy.reduce_boolean_decision(is_ending(trainer), all=False)
        if trainer.should_stop and trainer.enable_validation and "val/loss" not in trainer.callback_metrics:
            trainer.validating = True  # as Lightning does within an epoch
            trainer.fit_loop.epoch_loop.val_loop.run()
            trainer.training = True

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if (epochs := epochs_trained(trainer)) < trainer.max_epochs:
            log.info(f"\nended early, after {epochs:g} of {trainer.max_epochs} epochs")
