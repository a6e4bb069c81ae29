"""Which metrics a callback or a schedule may go by, and which way each of them is better."""

from typing import Literal

from cifar_resnet.errors import refuse_if

Mode = Literal["max", "min"]
Monitor = Literal["val/acc", "val/loss", "train/acc", "train/loss"]
MODES: dict[str, Mode] = {"val/acc": "max", "val/loss": "min", "train/acc": "max", "train/loss": "min"}


def mode_of(monitor: str, mode: Mode | None = None, name: str = "a callback") -> Mode:
    """Whether `monitor` is better "max" or "min"; UsageError for another metric, and where `mode` says otherwise.

    name: of the callback, for the error.
    """
    *others, last = MODES
    refuse_if(
        monitor not in MODES, f"{name} has nothing to go by. Got monitor={monitor}; give {', '.join(others)} or {last}"
    )
    refuse_if(
        mode not in (None, MODES[monitor]),
        f"{name} would take the worst for the best: {monitor} is better the {'higher' if mode == 'min' else 'lower'}. "
        f"Got mode={mode}; give {MODES[monitor]}, or leave it out",
    )
    return MODES[monitor]
