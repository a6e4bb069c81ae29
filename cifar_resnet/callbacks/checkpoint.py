"""Checkpoints at the ends of epochs, under names that stay the same."""

from lightning.pytorch.callbacks import ModelCheckpoint


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
