"""One seed for every purpose, from the seed of a run."""

import numpy as np


def seed_for(purpose: str, *numbers: int) -> int:
    """A 64-bit seed for one purpose from numbers such as (seed, epoch, rank); others get unrelated ones."""
    return int(np.random.SeedSequence([*purpose.encode(), *numbers]).generate_state(1, np.uint64)[0])
