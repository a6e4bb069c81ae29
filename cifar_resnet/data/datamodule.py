"""The split, the batches and their way onto the device; where images come from is in sources.py."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from lightning.pytorch import LightningDataModule
from torch import Generator, Tensor
from torch.utils.data import DataLoader, Sampler, TensorDataset

from cifar_resnet import limits
from cifar_resnet.data.augment import Augment, Draws, normalise


def seed_for(purpose: str, *numbers: int) -> int:
    """A 64-bit seed for one purpose from numbers such as (seed, epoch, rank); others get unrelated ones."""
    return int(np.random.SeedSequence([*purpose.encode(), *numbers]).generate_state(1, np.uint64)[0])


def stratified_split(labels: Tensor, num_val: int, seed: int) -> tuple[Tensor, Tensor]:
    """Indices of the training and validation images, each ascending, every class in proportion.

    labels: (N,) int64. Where num_val does not divide evenly, the classes with the largest remainders give one more.
    """
    random = np.random.RandomState(seed)  # its stream is frozen: the split outlives NumPy releases
    members = [np.flatnonzero(labels.numpy() == label) for label in labels.unique().tolist()]
    shares = np.array([len(indices) for indices in members]) * num_val / len(labels)
    counts = np.floor(shares).astype(int)
    counts[np.argsort(counts - shares, kind="stable")[: num_val - counts.sum()]] += 1
    held_out = np.concatenate([random.permutation(indices)[:n] for indices, n in zip(members, counts, strict=True)])
    is_val = torch.zeros(len(labels), dtype=torch.bool)
    is_val[torch.from_numpy(held_out)] = True
    return (~is_val).nonzero()[:, 0], is_val.nonzero()[:, 0]


class ShuffledBatches(Sampler[Tensor]):
    """The batches of one epoch as index tensors, in an order drawn from (seed, epoch) and dealt out among the ranks.

    The last images of the order, too few for a batch on every rank, wait for another epoch. `state_dict` is that of the
    moment after the latest batch has been augmented, so that an epoch can go on in its middle.
    """

    def __init__(self, num_images: int, batch_size: int, seed: int, rank: int, world_size: int, device: torch.device):
        self.num_images, self.batch_size, self.seed = num_images, batch_size, seed
        self.rank, self.world_size, self.device = rank, world_size, device
        self.epoch, self.num_given = 0, 0
        self.generator = Generator(device)  # for what happens to the batches of this epoch, on this rank
        self.restored: dict | None = None

    def set_epoch(self, epoch: int) -> None:
        """Lightning calls this before each epoch, a resumed one included."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.num_images // (self.batch_size * self.world_size)

    def __iter__(self) -> Iterator[Tensor]:
        self.generator.manual_seed(seed_for("augmentation", self.seed, self.epoch, self.rank))
        self.host = np.random.default_rng(seed_for("policies", self.seed, self.epoch, self.rank))
        shuffle = Generator().manual_seed(seed_for("order", self.seed, self.epoch))
        order = torch.randperm(self.num_images, generator=shuffle)
        batches = order[: len(self) * self.batch_size * self.world_size].view(-1, self.world_size, self.batch_size)
        self.num_given = 0
        if self.restored:
            self.num_given = self.restored["num_given"]
            self.generator.set_state(self.restored["generator"])
            self.host.bit_generator.state = json.loads(self.restored["host"])
            self.restored = None
        for batch in batches[self.num_given :, self.rank].to(self.device):
            self.num_given += 1
            yield batch

    def state_dict(self) -> dict:
        if not 0 < self.num_given < len(self):
            return {}
        host = json.dumps(self.host.bit_generator.state)
        return {"num_given": self.num_given, "generator": self.generator.get_state(), "host": host}

    def load_state_dict(self, state: dict) -> None:
        self.restored = state or None


class BatchesSideBySide(Sampler[Tensor]):
    """The batches of several trainings, each as it would be alone, one behind the other in one tensor."""

    def __init__(self, trainings: Sequence[ShuffledBatches]):
        self.trainings = trainings

    def set_epoch(self, epoch: int) -> None:
        for training in self.trainings:
            training.set_epoch(epoch)

    def __len__(self) -> int:
        return len(self.trainings[0])

    def __iter__(self) -> Iterator[Tensor]:
        for batches in zip(*self.trainings, strict=True):
            yield torch.cat(batches)

    def state_dict(self) -> list[dict]:
        return [training.state_dict() for training in self.trainings]

    def load_state_dict(self, state: list[dict]) -> None:
        for training, own in zip(self.trainings, state, strict=True):
            training.load_state_dict(own)


class OrderedBatches(Sampler[Tensor]):
    """Every index once, in order; the last batch may be smaller."""

    def __init__(self, num_images: int, batch_size: int, device: torch.device):
        self.batches = torch.arange(num_images, device=device).split(batch_size)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Tensor]:
        yield from self.batches


class Rows(TensorDataset):
    """Tensors indexed by a whole batch of indices at once, which copies each row as one block of memory."""

    def __getitem__(self, index: Tensor) -> tuple[Tensor, ...]:
        return tuple(tensor.index_select(0, index) for tensor in self.tensors)

    def to(self, device: torch.device) -> "Rows":
        return Rows(*(tensor.to(device) for tensor in self.tensors))

    @property
    def device(self) -> torch.device:
        return self.tensors[0].device


def rows(images: Tensor, labels: Tensor) -> Rows:
    return Rows(images.contiguous(memory_format=torch.channels_last), labels)


def loader(images: Rows, batches: Sampler[Tensor]) -> DataLoader:
    # a DataLoader draws a seed for workers, even without any: from its own generator, or dropout would differ on resume
    return DataLoader(images, sampler=batches, batch_size=None, generator=Generator())


class DataModule(LightningDataModule, ABC):
    """Images that live as uint8 on the training device, batches drawn from them by index, augmented there.

    A source (CIFAR10, ImageFolder, …) derives from this and gives `num_classes`, `image_size`, `read` and, by then,
    `classes`.

    batch_size: training images per step and device.
    num_val: training images held out for validation: a number, or a share of them below 1; 0 trains on all.
    split_seed: alone decides which those are.
    mean, std: of the pixels, per channel, for pixels in [0, 1]; None measures them on the training images.
    seed: with the epoch and the rank decides order and augmentation.
    augment: what training batches go through; None for nothing but normalisation.
    """

    num_classes: int
    image_size: int  # height and width, in pixels
    classes: list[str]  # in the order of their labels; known once images have been read

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        num_val: int | float = 0.1,
        split_seed: int = 0,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        augment: Augment | None = None,
    ):
        super().__init__()
        limits.require(
            "data", batch_size=batch_size, eval_batch_size=eval_batch_size, split_seed=split_seed, seed=seed, std=std
        )
        limits.check_pixels(num_val, mean, std)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_val, self.split_seed, self.seed = num_val, split_seed, seed
        self.seeds = [seed]  # of all the networks that are trained side by side
        self.mean, self.std = mean, std
        self.augment = augment or Augment(crop_padding=0, flip="none", cutout_size=0)
        if hasattr(self, "image_size"):
            self.augment.check(self.image_size)
        self.split_hash: str | None = None
        self.train: Rows | None = None
        self.val: Rows | None = None
        self.test: Rows | None = None

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """All images of one half of the data: (N, C, H, W) uint8, and their labels: (N,) int64."""

    def load(self) -> None:
        """Read the training images and split them, once, in ordinary memory."""
        if self.train is None:
            images, labels = self.read(train=True)
            num_val = self.num_val if isinstance(self.num_val, int) else round(self.num_val * len(labels))
            if len(labels) - num_val < self.batch_size:
                raise ValueError(
                    f"too few training images for one batch. Got {len(labels)} less {num_val} for validation, and "
                    f"data.batch_size={self.batch_size}; lower data.batch_size or data.num_val"
                )
            train, val = stratified_split(labels, num_val, self.split_seed)
            self.split_hash = hashlib.sha256(val.numpy().astype("<i8").tobytes()).hexdigest()[:16]
            self.measure(images[train])
            self.train, self.val = rows(images[train], labels[train]), rows(images[val], labels[val])

    def adopt(self, other: "DataModule") -> None:
        """Take over what another module of the same images and the same split has read."""
        for name in ("train", "val", "test", "mean", "std", "split_hash", "classes"):
            setattr(self, name, getattr(other, name))

    def sample(self, num_images: int = 5000) -> Tensor:
        """The first of the training images, normalised: (N, C, H, W) float32."""
        images = self.train.tensors[0][:num_images]
        return normalise(images, *(torch.tensor(values, device=images.device) for values in (self.mean, self.std)))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return 3, self.image_size, self.image_size

    @property
    def has_val(self) -> bool:
        return len(self.val) > 0

    def setup(self, stage: str) -> None:
        """Bring what the stage needs onto the device: test images only in stage "test"."""
        device = self.trainer.strategy.root_device
        self.load()
        self.train, self.val = self.train.to(device), self.val.to(device)
        self.constants = torch.tensor([self.mean, self.std], device=device)  # here, once: a copy waits for the GPU
        tossers = [Generator().manual_seed(seed_for("flips", seed)) for seed in self.seeds]
        self.mirrored_first = [(torch.rand(len(self.train), generator=coin) < 0.5).to(device) for coin in tossers]
        if stage == "test" and self.test is None:
            self.test = rows(*self.read(train=False)).to(device)

    def measure(self, images: Tensor) -> None:
        """Fill in the mean and standard deviation that the configuration leaves open."""
        if self.mean is None or self.std is None:
            counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
            shares = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
            values = torch.arange(256, dtype=torch.float64) / 255
            mean = shares @ values
            std = (shares @ values**2 - mean**2).sqrt()
            self.mean = self.mean or mean.tolist()
            self.std = self.std or std.clamp(min=1 / 255).tolist()  # one flat colour has no deviation to divide by

    def train_dataloader(self) -> DataLoader:
        rank, world_size = self.trainer.global_rank, self.trainer.world_size
        self.batches = BatchesSideBySide(
            [
                ShuffledBatches(len(self.train), self.batch_size, seed, rank, world_size, self.train.device)
                for seed in self.seeds
            ]
        )
        if not len(self.batches):
            raise ValueError(
                f"too few training images for one batch on every device. Got {len(self.train)} for {world_size} "
                f"batches of {self.batch_size}; lower data.batch_size or trainer.devices"
            )
        numbered = Rows(*self.train.tensors, torch.arange(len(self.train), device=self.train.device))
        return loader(numbered, self.batches)

    def eval_dataloader(self, images: Rows) -> DataLoader:
        # every rank sees all of them: shares would count some images twice where they do not divide evenly
        sampler = OrderedBatches(len(images), self.eval_batch_size, images.device)
        return loader(images, sampler)

    def val_dataloader(self) -> DataLoader:
        return self.eval_dataloader(self.val)

    def test_dataloader(self) -> DataLoader:
        return self.eval_dataloader(self.test)

    def normalise(self, images: Tensor) -> Tensor:
        return normalise(images, *self.constants)

    def on_after_batch_transfer(self, batch: tuple[Tensor, ...], dataloader_idx: int) -> tuple[Tensor, Tensor]:
        """uint8 in, normalised float32 out; augmented in training only.

        Where images are mixed, their labels become probabilities: (N, num_classes) float32.
        """
        images, labels, *numbers = batch
        if self.trainer.training:
            count = len(self.seeds)
            each = zip(images.chunk(count), labels.chunk(count), numbers[0].chunk(count), strict=True)
            augmented = [self.augmented(index, *own) for index, own in enumerate(each)]
            return augmented[0] if count == 1 else tuple(map(torch.cat, zip(*augmented, strict=True)))
        return self.normalise(images), labels

    def augmented(self, index: int, images: Tensor, labels: Tensor, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """One network's batch. numbers: (N,), which images of the training set these are."""
        batches = self.batches.trainings[index]
        turns = self.mirrored_first[index][numbers] ^ bool(batches.epoch % 2)
        images, parts = self.augment(images, self.normalise, Draws(batches.generator, batches.host, turns))
        return images, labels if parts is None else parts.probabilities(labels, self.num_classes)

    def state(self) -> dict:
        """What somebody needs to use a network trained on this data: plain values, for checkpoints and records."""
        return {
            "classes": self.classes,
            "mean": list(self.mean),
            "std": list(self.std),
            "image_size": self.image_size,
            "split_hash": self.split_hash,
            "num_train": len(self.train),
            "num_val": len(self.val),
        }
