"""Checkpoints at the ends of epochs, under names that stay the same, each whole or not there."""

import contextlib
import math
import os
from collections.abc import Sequence
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
        """Lightning forgets the best score so far when a run folder has been moved; this does not."""
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

    Derived from Lightning's base so that it comes after the checkpoint of all of them, which it takes apart.

    whole: that checkpoint. run_dirs: of each member. choose: False keeps no best.
    """

    def __init__(self, whole: Path, run_dirs: Sequence[Path], choose: bool):
        self.whole = whole
        self.choose = choose
        self.folders = [run_dir / "checkpoints" for run_dir in run_dirs]
        self.best = [-math.inf for _ in run_dirs]
        self.io = WholeCheckpoints()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Of a training that goes on: what the files hold is true whenever it was stopped."""
        if not self.choose or not trainer.global_step:
            return
        for number, folder in enumerate(self.folders):
            if (folder / "best.ckpt").exists():
                checkpoint = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)
                self.best[number] = checkpoint["metrics"]["val/acc"]
        whole = self.read()
        if not trainer.fit_loop.restarted_mid_epoch:
            self.keep_best(pl_module, whole)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.choose:
            self.keep_best(pl_module, self.read())

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        whole = self.read()
        for number, folder in enumerate(self.folders):
            self.io.save_checkpoint(pl_module.part(whole, number), folder / "last.ckpt")

    def keep_best(self, pl_module: LightningModule, whole: dict) -> None:
        for number, folder in enumerate(self.folders):
            accuracy = whole["metrics"].get(f"val/acc_{number}", -math.inf)
            if accuracy > self.best[number]:
                self.io.save_checkpoint(pl_module.part(whole, number), folder / "best.ckpt")
                self.best[number] = accuracy

    def read(self) -> dict:
        return torch.load(self.whole, map_location="cpu", weights_only=True)
