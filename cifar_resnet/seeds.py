"""One seed for every purpose, from the seed of a run."""

import random

import numpy as np
import torch


def seed_all(seed: int) -> None:
    """Of torch, NumPy and Python, whose draws a network or an augmentation of one's own may take. seed: of 64 bits."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)
    random.seed(seed)


def seed_for(purpose: str, *numbers: int) -> int:
    """A 64-bit seed for one purpose from numbers such as (seed, epoch, rank); others get unrelated ones."""
    return int(np.random.SeedSequence([*purpose.encode(), *numbers]).generate_state(1, np.uint64)[0])
