"""Which images come next: index tensors, a batch at a time."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from cifar_resnet.seeds import seed_for


def stratified_split(labels: Tensor, num_val: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and validation images, each ascending, every class in proportion.

    labels: (N,) int64. Where num_val does not divide evenly, the classes with the largest remainders give one more.
    """
    random = np.random.RandomState(seed)  # its stream is frozen: the split outlives NumPy releases
    members = [np.flatnonzero(labels.numpy() == label) for label in labels.unique().tolist()]
    shares = np.array([len(indices) for indices in members]) * num_val / len(labels)
    counts = np.floor(shares).astype(int)
    counts[np.argsort(counts - shares, kind="stable")[: num_val - counts.sum()]] += 1
    val = np.concatenate([random.permutation(indices)[:n] for indices, n in zip(members, counts, strict=True)])
    return torch.from_numpy(np.setdiff1d(np.arange(len(labels)), val)), torch.from_numpy(np.sort(val))


def fold_split(labels: Tensor, fold: int, num_folds: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and validation images, each ascending, of one fold of a stratified cross-validation.

    Each image is held out in one fold; their sizes, and those of each class in them, differ by no more than one.

    labels: (N,) int64. fold: counted from 0.
    """
    random = np.random.RandomState(seed)  # its stream is frozen
    members = [random.permutation(np.flatnonzero(labels.numpy() == label)) for label in labels.unique().tolist()]
    dealt = np.concatenate(members)
    val = torch.from_numpy(np.sort(dealt[fold::num_folds]))
    is_held_out = torch.zeros(len(labels), dtype=torch.bool).index_fill_(0, val, True)
    return (~is_held_out).nonzero()[:, 0], val


def spread_order(labels: Tensor) -> Tensor:
    """All (N,) images in one fixed order in which every beginning, and every part, shows the classes in proportion.

    labels: (N,) int64. Each class lies evenly over the order, itself in an order that files have no part in.
    """
    random = np.random.RandomState(0)  # its stream is frozen
    numbers, places = labels.cpu().numpy(), np.empty(len(labels))
    for label in np.unique(numbers):
        members = np.flatnonzero(numbers == label)
        # each class begins somewhere in its first stride: or the first labels would always be one image ahead
        places[random.permutation(members)] = (np.arange(len(members)) + random.uniform()) / len(members)
    return torch.from_numpy(np.argsort(places, kind="stable"))


class ShuffledBatchSampler(torch.utils.data.Sampler[Tensor]):
    """The batches of one epoch as index tensors, in an order drawn from (seed, epoch) and dealt out among the ranks.

    weights: (N,), by which each image of the order is drawn, with replacement; None: each comes once.

    The last images of the order, too few for a batch on every rank, wait for another epoch. `generator` and `numpy_rng`
    are where the augmentation of this epoch's batches, on this rank, draws from; `state_dict` is that of the moment
    after the latest batch has been augmented, so that an epoch can go on in its middle.
    """

    def __init__(
        self,
        num_images: int,
        batch_size: int,
        seed: int,
        rank: int,
        world_size: int,
        device: torch.device,
        weights: Tensor | None = None,
    ):
        self.weights = weights
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world_size, self.device = rank, world_size, device
        self.num_given = 0
        self.restored: dict[str, Any] = {}
        self.generator = Generator(device)
        self.is_odd = torch.zeros((), dtype=torch.bool, device=device)  # the epoch
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch, a resumed one included; elsewhere the next pass is the next epoch."""
        self.epoch = epoch
        self.is_odd.fill_(epoch % 2 == 1)
        self.generator.manual_seed(seed_for("augmentation", self.seed, epoch, self.rank))
        self.numpy_rng = np.random.default_rng(seed_for("policies", self.seed, epoch, self.rank))

    def __len__(self) -> int:
        return self.num_images // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[Tensor]:
        self.set_epoch(self.epoch)  # one that has been broken off is drawn again
        shuffle = Generator().manual_seed(seed_for("order", self.seed, self.epoch))
        if self.weights is None:
            order = torch.randperm(self.num_images, generator=shuffle)
        else:
            order = torch.multinomial(self.weights, self.num_images, replacement=True, generator=shuffle)
        batches = order[: len(self) * self.batch_size * self.world_size].view(-1, self.world_size, self.batch_size)
        state, self.restored = self.restored, {}
        self.num_given = state.get("num_given", 0)
        if state:
            anew = self.seed, self.epoch, self.rank, self.num_given
            if len(state.get("generator", ())) == len(self.generator.get_state()):
                self.generator.set_state(state["generator"])
            else:  # that of another kind of device, or there is none
                self.generator.manual_seed(seed_for("augmentation", *anew))
            if "numpy_rng" in state:
                self.numpy_rng.bit_generator.state = json.loads(state["numpy_rng"])
            else:
                self.numpy_rng = np.random.default_rng(seed_for("policies", *anew))
        for batch in batches[self.num_given :, self.rank].to(self.device):
            self.num_given += 1
            yield batch
        self.epoch += 1

    def state_dict(self) -> dict:
        """Empty between two epochs."""
        if not 0 < self.num_given < len(self):
            return {}
        return {
            "num_given": self.num_given,
            "generator": self.generator.get_state(),
            "numpy_rng": json.dumps(self.numpy_rng.bit_generator.state),
        }

    def load_state_dict(self, state: dict) -> None:
        """state: as `state_dict` gave it, or of it only num_given: then augmentation draws anew."""
        self.restored = state
