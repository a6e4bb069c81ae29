"""What may be in a checkpoint: plain values and tensors, which are read again without running any code."""

import io

import torch


def why_unreadable(value: object) -> Exception | None:
    """What goes wrong where a checkpoint with this in it is written and read again; None where nothing does."""
    file = io.BytesIO()
    try:
        torch.save(value, file)
        file.seek(0)
        torch.load(file, weights_only=True)
    except Exception as error:  # a pickler raises anything
        return error
    return None
