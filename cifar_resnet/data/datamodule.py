"""A data set on a device: its split and its loaders. Where images come from is in sources.py."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Len
from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import DDPStrategy
from torch import Generator, Tensor

from cifar_resnet.constraints import Count, CountOrZero, FractionBelowOne, Positive, Seed, check
from cifar_resnet.data.augment import Augment, random_mask
from cifar_resnet.data.loaders import EvalLoader, LabelledImages, StackedLoader, TrainLoader, limited
from cifar_resnet.data.resizing import ProgressiveResize
from cifar_resnet.data.samplers import ShuffledBatchSampler, stratified_split
from cifar_resnet.errors import refuse_if
from cifar_resnet.images import Normalise, content_hash
from cifar_resnet.seeds import seed_for


class DataModule(LightningDataModule, ABC):
    """Images that live as uint8 on one device, batches drawn from them by index, augmented there.

    A source (CIFAR10, ImageFolder, …) derives from this and gives `num_classes`, `image_size`, `read` and, by then,
    `classes`. It needs no trainer: after `prepare_data()` and `setup("fit")`, `train_dataloader()` yields augmented,
    normalised batches.

    batch_size: training images per step and device.
    eval_batch_size: validation and test images at a time; changes no score.
    num_val: training images held out for validation: a number, or a share of them below 1; 0 trains on all.
    split_seed: alone decides which those are.
    mean, std: of the pixels, per channel, for pixels in [0, 1]; None measures them on the training images.
    seed: with the epoch and the rank decides order and augmentation.
    device: where the images live and are augmented; None for the trainer's device, or without a trainer the CPU.
    augment: what training batches go through; None for nothing but normalisation.
    resize: the size of training images by epoch; None for their own.
    """

    num_classes: int
    image_size: int  # height and width, in pixels
    classes: list[str]  # in the order of their labels; known once images have been read

    def __init__(
        self,
        batch_size: Count = 128,
        eval_batch_size: Count = 500,
        num_val: CountOrZero | FractionBelowOne = 0.1,
        split_seed: Seed = 0,
        mean: Annotated[Sequence[float], Len(3, 3)] | None = None,
        std: Annotated[Sequence[Positive], Len(3, 3)] | None = None,
        seed: Seed = 0,
        device: str | None = None,
        augment: Augment | None = None,
        resize: ProgressiveResize | None = None,
    ):
        super().__init__()
        check(DataModule, locals())
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_val, self.split_seed, self.seed, self.device = num_val, split_seed, seed, device
        self.mean, self.std = mean, std
        self.augment = augment or Augment(crop_padding=0, flip="none", cutout_size=0)
        self.resize = resize
        if hasattr(self, "image_size"):
            self.check_image_size()
        self.train = self.val = self.test = None  # LabelledImages, once read
        self.split_hash = self.train_hash = None  # of which images are held out, and of all of them, likewise

    def check_image_size(self) -> None:
        """Refuse what images of this size cannot have; a source that learns of it late calls this then."""
        self.augment.check_image_size(self.image_size)
        if self.resize:
            self.resize.check_image_size(self.image_size)

    @property
    def image_sizes(self) -> list[int]:
        """All sizes that a network will see, in pixels."""
        return [self.image_size, *(self.resize.sizes if self.resize else [])]

    def known_num_images(self, train: bool) -> int | None:
        """How many `read` would give; None where only reading them tells."""
        return None

    @abstractmethod
    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        """All images of one half of the data: (N, C, H, W) uint8, and their labels: (N,) int64."""

    def order_classes(self, known: Sequence[str]) -> None:
        """Number the classes as a network does that was trained on them before, where their order is for us to say.

        To be called before images are read. known: the network's classes, in the order of its outputs.
        """

    def load(self) -> None:
        """Read the training images and split them, once, in ordinary memory."""
        if self.train is None:
            images, labels = self.read(train=True)
            num_val = self.num_held_out(len(labels))
            self.check_batch_size(len(labels), num_val)
            train, val = stratified_split(labels, num_val, self.split_seed)
            self.train_hash = content_hash(images, labels)
            self.split_hash = hashlib.sha256(val.numpy().astype("<i8").tobytes()).hexdigest()[:16]
            self.measure(images[train])
            self.train, self.val = (LabelledImages(images[part], labels[part]) for part in (train, val))

    def num_held_out(self, count: int) -> int:
        """Validation images among so many."""
        return self.num_val if isinstance(self.num_val, int) else round(self.num_val * count)

    def load_test(self) -> None:
        """Read the test images, once, in ordinary memory."""
        if self.test is None:
            self.test = LabelledImages(*self.read(train=False))

    def check_batch_size(self, num_images: int, num_val: int) -> None:
        refuse_if(
            num_images - num_val < self.batch_size,
            f"too few training images for one batch. Got {num_images} less {num_val} for validation, and "
            f"data.batch_size={self.batch_size}; lower data.batch_size or data.num_val",
        )

    def measure(self, images: Tensor) -> None:
        """Fill in the mean and standard deviation that the configuration leaves open."""
        if self.mean is None or self.std is None:
            counts = torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in images.unbind(1)])
            shares = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
            values = torch.arange(256, dtype=torch.float64) / 255
            mean = shares @ values
            std = (shares @ values**2 - mean**2).sqrt().clamp(min=1 / 255)  # one flat colour has none to divide by
            self.mean, self.std = self.mean or mean.tolist(), self.std or std.tolist()

    def adopt(self, other: "DataModule") -> None:
        """Take over what another module of the same images and the same split has read."""
        self.check_batch_size(len(other.train) + len(other.val), len(other.val))
        for name in ("train", "val", "test", "mean", "std", "split_hash", "train_hash", "classes"):
            setattr(self, name, getattr(other, name))

    def sample(self, num_images: int = 5000) -> Tensor:
        """Training images from all over the data, which may lie class by class, normalised: (N, C, H, W) float32."""
        images = self.train.images[:: max(1, len(self.train) // num_images)][:num_images]
        return Normalise(*torch.tensor([self.mean, self.std], device=images.device))(images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return 3, self.image_size, self.image_size

    @property
    def has_val(self) -> bool:
        return len(self.val) > 0

    def setup(self, stage: str) -> None:
        """Bring what the stage ("fit" or "test") needs onto the device: test images only for the test."""
        device = torch.device(self.device or (self.trainer.strategy.root_device if self.trainer else "cpu"))
        self.load()
        self.train, self.val = self.train.to(device), self.val.to(device)
        # here, once: a copy waits for the GPU
        self.normalise = Normalise(*torch.tensor([self.mean, self.std], device=device))
        if stage == "test":
            self.load_test()
            self.test = self.test.to(device)

    def train_dataloader(self) -> TrainLoader:
        refuse_if(self.train is None, "no images have been read. Call prepare_data() and setup('fit') first")
        count, device = len(self.train), self.train.device
        rank, world_size = (self.trainer.global_rank, self.trainer.world_size) if self.trainer else (0, 1)
        refuse_if(
            count < self.batch_size * world_size,
            f"too few training images for one batch on every device. Got {count} for {world_size} "
            f"batches of {self.batch_size}; lower data.batch_size or trainer.devices",
        )
        sampler = ShuffledBatchSampler(count, self.batch_size, self.seed, rank, world_size, device)
        flip_mask = random_mask(count, 0.5, Generator().manual_seed(seed_for("flips", self.seed))).to(device)
        return TrainLoader(self.train, sampler, self.augment, self.normalise, self.num_classes, flip_mask, self.resize)

    def val_dataloader(self) -> EvalLoader:
        refuse_if(self.val is None, "no images have been read. Call prepare_data() and setup('fit') first")
        return self.eval_loader(self.val, "limit_val_batches")

    def test_dataloader(self) -> EvalLoader:
        refuse_if(self.test is None, "no test images have been read. Call prepare_data() and setup('test') first")
        return self.eval_loader(self.test, "limit_test_batches")

    def eval_loader(self, data: LabelledImages, limit: str) -> EvalLoader:
        """limit: the trainer's attribute that limits its batches."""
        if self.trainer is None:
            return EvalLoader(data, self.eval_batch_size, self.normalise)
        # where a network is spread over the ranks, each of its forward passes needs all of them: all see every batch
        is_whole = isinstance(self.trainer.strategy, DDPStrategy)
        place = (self.trainer.global_rank, self.trainer.world_size) if is_whole else (0, 1)
        return EvalLoader(data, self.eval_batch_size, self.normalise, getattr(self.trainer, limit), *place)

    def num_batches(self, world_size: int = 1) -> dict[str, int | None]:
        """Of an epoch's training, of validation and of the test; None where only reading the images tells."""
        found, count = dict.fromkeys(("train", "val", "test")), self.known_num_images(train=True)
        if self.train is not None:
            found |= {"train": len(self.train), "val": len(self.val)}
        elif count is not None:
            found |= {"train": count - self.num_held_out(count), "val": self.num_held_out(count)}
        found["test"] = self.known_num_images(train=False) if self.test is None else len(self.test)
        size = self.batch_size * world_size
        return {
            split: count and (count // size if split == "train" else -(-count // self.eval_batch_size))
            for split, count in found.items()
        }

    def num_trained(self, limit: int | float | None, world_size: int = 1) -> int:
        """Images that an epoch trains on where the trainer limits its batches; of all batches all, in their turn."""
        size = self.batch_size * world_size
        whole = len(self.train) // size
        return len(self.train) if (count := limited(whole, limit)) == whole else count * size

    def num_evaluated(self, num_images: int, limit: int | float | None) -> int:
        """Of so many validation or test images those that are looked at where the trainer limits the batches."""
        return min(num_images, limited(-(-num_images // self.eval_batch_size), limit) * self.eval_batch_size)

    def state(self) -> dict:
        """What somebody needs to use a network trained on this data: plain values, for checkpoints and records."""
        return {
            "classes": self.classes,
            "mean": list(self.mean),
            "std": list(self.std),
            "image_size": self.image_size,
            "split_hash": self.split_hash,
            "train_hash": self.train_hash,
            "num_train": len(self.train),
            "num_val": len(self.val),
        }


class StackedData(LightningDataModule):
    """The data of networks that are trained side by side: the same images, in an order of its own for each.

    members: data modules that differ in nothing but their seed.
    """

    def __init__(self, members: Sequence[DataModule]):
        super().__init__()
        self.members = members

    def setup(self, stage: str) -> None:
        for member in self.members:
            member.trainer = self.trainer
            if member is not self.members[0]:  # which is on the device by now
                member.adopt(self.members[0])
            member.setup(stage)

    def train_dataloader(self) -> StackedLoader:
        return StackedLoader([member.train_dataloader() for member in self.members])

    def val_dataloader(self) -> EvalLoader:
        return self.members[0].val_dataloader()

    def test_dataloader(self) -> EvalLoader:
        return self.members[0].test_dataloader()
