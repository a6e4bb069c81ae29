"""Checkpoints at the ends of epochs, under names that stay the same."""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.callbacks import ModelCheckpoint

from cifar_resnet.checkpoints import AtomicCheckpointIO, contents
from cifar_resnet.constraints import check
from cifar_resnet.models import StackedEnsemble
from cifar_resnet.monitored import Mode, mode_of


class Checkpoint(ModelCheckpoint):
    """One file, replaced whenever `monitor` improves, or after each epoch where `monitor` is None.

    mode: whether better is "max" or "min"; None for what `monitor` is.
    """

    def __init__(self, dirpath: str, filename: str, monitor: str | None = None, mode: Mode | None = None):
        check(Checkpoint, locals())
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=mode_of(monitor, mode, filename) if monitor else "min",
            save_top_k=1,
            save_on_train_epoch_end=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.monitor is None or self.monitor in trainer.callback_metrics:  # not every epoch need be validated
            super().on_train_epoch_end(trainer, pl_module)

    def load_state_dict(self, state_dict: dict) -> None:
        """Lightning forgets the best score so far when a run folder has been moved; this does not.

        Where the file itself has gone, the best of the epochs to come is kept.
        """

        def moved(value: object) -> object:
            return value.replace(str(state_dict["dirpath"]), str(self.dirpath), 1) if isinstance(value, str) else value

        if Path(self.dirpath, f"{self.filename}.ckpt").exists():
            best = {moved(path): score for path, score in state_dict.get("best_k_models", {}).items()}
            super().load_state_dict({key: moved(value) for key, value in state_dict.items()} | {"best_k_models": best})


class MemberCheckpoints(LightningCheckpoint):
    """Of networks that are trained side by side each one's own last.ckpt, and the best.ckpt of its own validation.

    Derived from Lightning's base so that it comes after the checkpoint of all of them, which it takes apart. What it
    knows it reads from these files, so that it goes on from wherever a training was stopped.

    whole: that checkpoint. run_dirs: of each member.
    monitor: of each member, which chooses its best; None keeps none.
    """

    def __init__(self, whole: Path, run_dirs: Iterable[Path], monitor: str | None = None):
        self.whole, self.io = whole, AtomicCheckpointIO()
        self.monitor, self.sign = monitor, -1 if monitor and mode_of(monitor) == "min" else 1
        self.folders = [run_dir / "checkpoints" for run_dir in run_dirs]
        self.best = [self.score_of(folder / "best.ckpt") if monitor else -math.inf for folder in self.folders]

    def score_of(self, path: Path) -> float:
        """The more, the better; that of a checkpoint that is not there is less than any other."""
        try:
            return self.sign * contents(path)["metrics"][self.monitor] if path.exists() else -math.inf
        except ValueError as error:
            raise ValueError(f"{error}; take it away, and the best of the epochs to come is kept") from error

    def on_train_start(self, trainer: Trainer, pl_module: StackedEnsemble) -> None:  # type: ignore[override]
        # stopped perhaps before it could be taken apart; within an epoch its scores are those of the epoch before
        if trainer.global_step and not trainer.fit_loop.restarted_mid_epoch:
            self.keep_best(pl_module, contents(self.whole))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: StackedEnsemble) -> None:  # type: ignore[override]
        scores = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if any(self.is_better(number, scores) for number in range(len(self.folders))):
            self.keep_best(pl_module, contents(self.whole))

    def complete(self, pl_module: StackedEnsemble) -> None:
        """After the training, even one that had ended before and was stopped only then."""
        whole = contents(self.whole)
        self.keep_best(pl_module, whole)
        for number, folder in enumerate(self.folders):
            self.io.save_checkpoint(pl_module.member_checkpoint(whole, number), folder / "last.ckpt")

    def is_better(self, number: int, scores: Mapping[str, float]) -> bool:
        key = f"{self.monitor}_{number}"
        return key in scores and self.sign * scores[key] > self.best[number]

    def keep_best(self, pl_module: StackedEnsemble, whole: dict) -> None:
        for number, folder in enumerate(self.folders):
            if self.is_better(number, whole["metrics"]):
                self.io.save_checkpoint(pl_module.member_checkpoint(whole, number), folder / "best.ckpt")
                self.best[number] = self.sign * whole["metrics"][f"{self.monitor}_{number}"]
