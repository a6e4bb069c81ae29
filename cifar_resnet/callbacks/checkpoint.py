"""Checkpoints at the ends of epochs, under names that stay the same, each whole or not there."""

import contextlib
import os
from pathlib import Path

import torch
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
