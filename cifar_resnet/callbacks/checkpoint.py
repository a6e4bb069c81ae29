"""Checkpoints at the ends of epochs, under names that stay the same, each whole or not there."""

import contextlib
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint as LightningCheckpoint
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import TorchCheckpointIO

from cifar_resnet.command import RunError


class WholeCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside the last one and then renames it: at no moment is there only half of one."""

    def save_checkpoint(self, checkpoint: dict, path: str | Path, storage_options: object = None) -> None:
        path = Path(path)
        part = path.with_name(f"{path.name}.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with part.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())  # or, after a power cut, the new name could stand for an empty file
            part.replace(path)
        except (OSError, RuntimeError) as error:  # torch's writer raises the latter on a full disk
            with contextlib.suppress(OSError):
                part.unlink()
            kept = f"the one of the epoch before is whole: {path}" if path.exists() else "there is none yet"
            raise RunError(f"a checkpoint could not be written ({' '.join(str(error).split())}); {kept}") from error


class Checkpoint(ModelCheckpoint):
    """One file, replaced whenever `monitor` improves, or after each epoch where `monitor` is None.

    mode: whether better is "max" or "min".
    """

    def __init__(self, dirpath: str, filename: str, monitor: str | None = None, mode: str = "min"):
        super().__init__(
            dirpath=dirpath,
            filename=filename,
            monitor=monitor,
            mode=mode,
            save_top_k=1,
            save_on_train_epoch_end=True,
            auto_insert_metric_name=False,
            enable_version_counter=False,
        )

    def load_state_dict(self, state_dict: dict) -> None:
        """Lightning forgets the best score so far when a run folder has been moved; this does not.

        Where the file itself has gone, the best of the epochs to come is kept.
        """
        if not Path(self.dirpath, f"{self.filename}.ckpt").exists():
            return
        old, new = str(state_dict["dirpath"]), str(self.dirpath)
        moved = {
            key: value.replace(old, new, 1) if isinstance(value, str) else value for key, value in state_dict.items()
        }
        moved["best_k_models"] = {
            path.replace(old, new, 1): score for path, score in state_dict.get("best_k_models", {}).items()
        }
        super().load_state_dict(moved)


class MemberCheckpoints(LightningCheckpoint):
    """Of networks that are trained side by side each one's own last.ckpt, and the best.ckpt of its own validation.

    Derived from Lightning's base so that it comes after the checkpoint of all of them, which it takes apart. What it
    knows it reads from these files, so that it goes on from wherever a training was stopped.

    whole: that checkpoint. run_dirs: of each member.
    monitor: of each member, which chooses its best; None keeps none. mode: whether better is "max" or "min".
    """

    def __init__(self, whole: Path, run_dirs: Sequence[Path], monitor: str | None, mode: str):
        self.whole = whole
        self.monitor, self.sign = monitor, {"max": 1, "min": -1}[mode]
        self.folders = [run_dir / "checkpoints" for run_dir in run_dirs]
        self.io = WholeCheckpoints()
        self.best = [-math.inf] * len(self.folders)
        for number, folder in enumerate(self.folders):
            if monitor and (folder / "best.ckpt").exists():
                self.best[number] = self.sign * read(folder / "best.ckpt")["metrics"][monitor]

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.global_step:  # stopped perhaps before it could be taken apart
            self.keep_best(pl_module, read(self.whole))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        scores = {name: value.item() for name, value in trainer.callback_metrics.items()}
        if any(self.is_better(number, scores) for number in range(len(self.folders))):
            self.keep_best(pl_module, read(self.whole))

    def complete(self, pl_module: LightningModule) -> None:
        """After the training, even one that had ended before and was stopped only then."""
        whole = read(self.whole)
        self.keep_best(pl_module, whole)
        for number, folder in enumerate(self.folders):
            self.io.save_checkpoint(pl_module.part(whole, number), folder / "last.ckpt")

    def is_better(self, number: int, scores: Mapping[str, float]) -> bool:
        key = f"{self.monitor}_{number}"
        return key in scores and self.sign * scores[key] > self.best[number]

    def keep_best(self, pl_module: LightningModule, whole: dict) -> None:
        if any(whole["moment"]["batches"]):  # saved within an epoch: its scores are those of the epoch before
            return
        for number, folder in enumerate(self.folders):
            if self.is_better(number, whole["metrics"]):
                self.io.save_checkpoint(pl_module.part(whole, number), folder / "best.ckpt")
                self.best[number] = self.sign * whole["metrics"][f"{self.monitor}_{number}"]


def read(path: Path) -> dict:
    return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
