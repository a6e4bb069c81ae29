"""A data set on a device: its split and its loaders. Where images come from is in sources.py."""

import hashlib
import uuid
import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from numbers import Integral
from typing import Annotated, NamedTuple

import torch
from annotated_types import Ge, Len
from lightning.pytorch import LightningDataModule
from lightning.pytorch.strategies import DDPStrategy
from torch import Generator, Tensor

from cifar_resnet.constraints import (
    Count,
    CountOrZero,
    Fraction,
    FractionAboveZero,
    FractionBelowOne,
    Seed,
    check,
)
from cifar_resnet.data.augment import Augment, random_mask
from cifar_resnet.data.loaders import EvalLoader, LabelledImages, MappedImages, StackedLoader, TrainLoader, limited
from cifar_resnet.data.resizing import ProgressiveResize
from cifar_resnet.data.samplers import ShuffledBatchSampler, fold_split, stratified_split
from cifar_resnet.errors import UsageError, first_sentence, refuse_if
from cifar_resnet.folders import named
from cifar_resnet.hardware import free_memory
from cifar_resnet.images import Normalise, content_hash
from cifar_resnet.seeds import seed_for
from cifar_resnet.terminal import log

NUM_FOLDS = 5
# why no image of some classes is trained on
KEPT_BACK = "no images of {} are left to train on: all are held out or tested on"


class Condition(NamedTuple):
    """Under which images were taken, or might have been. severity: 1 to 5."""

    corruption: str
    severity: int


class TestSet(NamedTuple):
    """images: (N, C, H, W) uint8; labels: (N,) int64; condition: under which they were taken, if any."""

    images: Tensor
    labels: Tensor
    condition: Condition | None = None


class DataModule(LightningDataModule, ABC):
    """Images that live as uint8 on one device, batches drawn from them by index, augmented there.

    A source (CIFAR10, ImageFolder, …) derives from this and gives `num_classes`, `image_size`, `read` and, by then,
    `classes`. It needs no trainer: after `prepare_data()` and `setup("fit")`, `train_dataloader()` yields augmented,
    normalised batches, in each pass over it those of the next epoch.

    batch_size: training images per step and device.
    eval_batch_size: validation and test images at a time; changes no score.
    num_val: training images held out for validation: a number, or a share of them below 1; 0 trains on all,
        and on what the data has of its own for validation; None is that alone.
    split_seed: alone decides which those are.
    fold, num_folds: instead, hold out this one, from 0, of so many parts: cross-validation, a run for each.
    max_train: train on so many of the images that are not held out, every class in proportion; None for all of them.
    balanced_sampling: draw training images so that each class comes as often, some of them several times an epoch.
    mean, std: of the pixels, per channel, for pixels in [0, 1]; None measures them on the training images.
    seed: with the epoch and the rank decides order and augmentation.
    device: where the images live and are augmented; None for the trainer's device, or without a trainer the CPU.
    augment: what training batches go through; None for nothing but normalisation.
    resize: the size of training images by epoch; None for their own.
    """

    num_classes: int
    image_size: int  # height and width, in pixels
    classes: list[str]  # in the order of their labels; known once images have been read
    kept_for_test = 0  # images, where those of a test are drawn from the same as those to train on
    drawn_from: str | None = None  # a hash of all of these, as they were when those to train on were read
    has_own_val = False  # images that it keeps for validation; known once images have been read
    trains_on_own_val = False  # for num_val is 0
    is_mapped = False  # whether images stay in the file that `read` gives

    def __init__(
        self,
        batch_size: Count = 128,
        eval_batch_size: Count = 500,
        num_val: CountOrZero | FractionBelowOne | None = 0.1,
        split_seed: Seed = 0,
        fold: CountOrZero | None = None,
        num_folds: Annotated[int, Ge(2)] = NUM_FOLDS,
        max_train: Count | None = None,
        balanced_sampling: bool = False,
        mean: Annotated[Sequence[Fraction], Len(3, 3)] | None = None,
        std: Annotated[Sequence[FractionAboveZero], Len(3, 3)] | None = None,
        seed: Seed = 0,
        device: str | None = None,
        augment: Augment | None = None,
        resize: ProgressiveResize | None = None,
    ):
        super().__init__()
        check(DataModule, locals())
        self.identity = uuid.uuid4().hex  # by which a network knows whether it has been prepared for this one
        refuse_if(
            fold is not None and fold >= num_folds,
            f"data.fold counts data.num_folds from 0. Got {fold} of {num_folds}; give less",
        )
        refuse_if(
            fold is None and num_folds != NUM_FOLDS,
            f"data.num_folds is of cross-validation, and data.fold says which is held out. Got {num_folds} without it; "
            f'give -m "data.fold=range(0,{num_folds})"',
        )
        refuse_if(
            fold is not None and num_val == 0,
            f"data.fold says what is held out. Got {fold} and data.num_val=0; leave one of them out",
        )
        try:
            place = torch.device(device or "cpu")
            if place.type == "cuda":  # counted without taking memory of one
                refuse_if(torch.cuda.device_count() <= (place.index or 0), f"there are {torch.cuda.device_count()}")
            else:
                torch.empty(0, device=place)
        except (RuntimeError, AssertionError, UsageError) as error:  # the second of a torch without such devices
            raise UsageError(
                f"data.device is where images live. Got {device} ({first_sentence(error)}); give cpu, cuda, or null "
                f"for the trainer's"
            ) from error
        self.fold, self.num_folds = fold, num_folds
        self.max_train, self.balanced_sampling = max_train, balanced_sampling
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_val, self.split_seed, self.seed, self.device = num_val, split_seed, seed, device
        self.mean, self.std = mean, std
        self.augment = augment or Augment(crop_padding=0, flip="none", cutout_size=0)
        self.resize = resize
        if hasattr(self, "image_size"):
            self.check_image_size()
        self.train: LabelledImages | None = None  # until they are read, and what follows likewise
        self.val: LabelledImages | None = None
        self.test: LabelledImages | None = None
        self.test_files: list[str] | None = None  # of each test image, once read, the name of its file, if it has one
        self.split_hash: str | None = None  # of which images are held out
        self.train_hash: str | None = None  # of all of them

    @property
    def augment(self) -> Augment:
        """What training batches go through; another takes effect with the next batch."""
        return self._augment

    @augment.setter
    def augment(self, augment: Augment) -> None:
        self._augment = augment
        for loader in getattr(self, "_train_loaders", ()):
            loader.augment = augment

    def __getstate__(self) -> dict:
        """A copy has made no loaders."""
        return {key: value for key, value in vars(self).items() if key != "_train_loaders"}

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
        """All images of one split of the data: (N, C, H, W) uint8, and their labels: (N,) int64."""

    def read_val(self) -> tuple[Tensor, Tensor] | None:
        """Images that the data set itself keeps for validation, as `read` gives them; None where there are none."""
        return None

    def test_sets(self) -> Iterator[TestSet]:
        """The test images, as `read` gives them: under each of the `conditions` in turn, or once."""
        yield TestSet(*self.read(train=False))

    @property
    def conditions(self) -> Sequence[Condition]:
        """Under which the test images come, all of them under each; none where they are as they were taken."""
        return ()

    def votes(self) -> Tensor | None:
        """What people saw in each test image, as shares of the classes: (N, num_classes); None where nobody asked."""
        return None

    def uncorrupted(self) -> TestSet | None:
        """The same images as they were before what their conditions did to them; None where they are not at hand."""
        return None

    def order_classes(self, known: Sequence[str]) -> None:
        """Number the classes as a network does that was trained on them before, where their order is for us to say.

        To be called before images are read. known: the network's classes, in the order of its outputs.
        """

    def load(self) -> None:
        """Read the training images and split them, once, in ordinary memory."""
        if self.train is None:
            if expected := self.known_num_images(train=True):
                self.check_room(expected, copies=2)  # as read, and divided
            images, labels = self.checked(*self.read(train=True))
            refuse_if(
                len(names := getattr(self, "classes", ())) != self.num_classes,
                f"{type(self).__name__} must know the names of its {self.num_classes} classes, in the order of their "
                f"labels. Got {len(names)}; set self.classes, at the latest in read",
            )
            count, apart = len(labels), self.read_val()
            refuse_if(
                self.num_val is None and self.fold is None and apart is None,
                "data.num_val=null holds out what the data has of its own for validation. Got data without such; give "
                "a number, or a share",
            )
            self.trains_on_own_val = apart is not None and self.num_val == 0
            if apart:
                images, labels = (torch.cat(both) for both in zip((images, labels), self.checked(*apart), strict=True))
            if self.fold is not None:
                refuse_if(
                    self.num_folds > len(labels),
                    f"each fold holds out an image or more. Got data.num_folds={self.num_folds} of {len(labels)} "
                    f"images; give fewer",
                )
                train, val = fold_split(labels, self.fold, self.num_folds, self.split_seed)
            elif apart and self.num_val != 0:
                self.has_own_val = True
                train, val = torch.arange(len(labels)).split([count, len(labels) - count])
            else:
                train, val = stratified_split(labels, self.num_held_out(len(labels)), self.split_seed)
            self.tell_of_lost(labels, train, KEPT_BACK)
            if self.max_train is not None and self.max_train < len(train):
                rows = stratified_split(labels[train], self.max_train, self.split_seed)[1]
                self.tell_of_lost(labels[train], rows, f"data.max_train={self.max_train} takes no image of {{}}")
                train = train[rows]
            # before what only a training asks: an evaluation compares them
            self.train_hash = content_hash(images, labels)
            self.split_hash = hashlib.sha256(val.numpy().astype("<i8").tobytes()).hexdigest()[:16]
            self.check_batch_size(len(train))
            self.measure(images, train)
            self.train, self.val = (self.labelled(images, labels, rows) for rows in (train, val))

    def tell_of_lost(self, labels: Tensor, rows: Tensor, text: str) -> None:
        """Warn of classes of which none of these rows are, but others. text: with {} for their names."""
        there, left = (torch.bincount(each, minlength=self.num_classes) for each in (labels, labels[rows]))
        if lost := ((there > 0) & (left == 0)).nonzero()[:, 0].tolist():
            names = named(self.class_names[label] for label in lost)
            log.warning(f"warning: {text.format(names)}\n")

    def checked(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What `read` gave; ValueError where it is not what it has to be."""
        name = f"{type(self).__name__}.read"
        for what, value, dtype, shape in (
            ("images", images, torch.uint8, (len(images), *self.image_shape)),
            ("labels", labels, torch.int64, (len(images),)),
        ):
            refuse_if(
                (value.dtype, tuple(value.shape)) != (dtype, shape),
                f"{name} must give {what} as {dtype} of {shape}. Got {value.dtype} of {tuple(value.shape)}; mend it, "
                f"or its image_size",
            )
        strange = [label for label in labels.unique().tolist() if not 0 <= label < self.num_classes]
        refuse_if(
            strange,
            f"{name} must give labels from 0 to {self.num_classes - 1}. Got {strange[:1]}; mend it, or its num_classes",
        )
        return images, labels

    def labelled(self, images: Tensor, labels: Tensor, rows: Tensor) -> LabelledImages:
        if self.is_mapped:
            return MappedImages(images, rows, labels[rows])
        return LabelledImages(images[rows], labels[rows])

    def num_held_out(self, count: int) -> int:
        """Validation images among so many."""
        if self.fold is not None:
            return len(range(self.fold, count, self.num_folds))
        return int(self.num_val) if isinstance(self.num_val, Integral) else round((self.num_val or 0) * count)

    def load_test(self) -> None:
        """Read the test images, once, in ordinary memory."""
        if self.test is None:
            images, labels = self.checked(*self.read(train=False))
            self.test = self.labelled(images, labels, torch.arange(len(labels)))

    def check_room(self, num_images: int, device: torch.device | None = None, copies: int = 1) -> None:
        """ValueError where so many images do not fit into what is free. device: None for this computer's memory."""
        needed, free = copies * num_images * 3 * self.image_size**2, free_memory(device)
        place, remedy = (
            ("memory", "an .npy with data.memory_map=true") if device is None else (device, "data.device=cpu")
        )
        if free is not None and needed > free:
            raise UsageError(
                f"{num_images:,} images of {self.image_size} pixels need {needed / 1e9:.1f} GB of {place}. Got "
                f"{free / 1e9:.1f} GB that are free; give a smaller data.image_size, or {remedy}"
            )

    def check_batch_size(self, num_train: int) -> None:
        refuse_if(
            num_train <= 0,
            f"no images are left to train on. Got data.num_val={self.num_val}; hold out fewer",
        )
        refuse_if(
            num_train < self.batch_size,
            f"too few training images for one batch. Got {num_train}, without those held out for validation, and "
            f"data.batch_size={self.batch_size}; lower data.batch_size, or hold out fewer",
        )

    def measure(self, images: Tensor, rows: Tensor) -> None:
        """Fill in the mean and standard deviation that the configuration leaves open, of these rows of the images."""
        if self.mean is None or self.std is None:
            counts = torch.zeros(images.shape[1], 256, dtype=torch.int64)
            for batch in rows.split(5000):
                channels = images[batch].unbind(1)
                counts += torch.stack([torch.bincount(channel.flatten(), minlength=256) for channel in channels])
            shares = counts / counts.sum(1, keepdim=True, dtype=torch.float64)
            values = torch.arange(256, dtype=torch.float64) / 255
            mean = shares @ values
            std = (shares @ values**2 - mean**2).sqrt().clamp(min=1 / 255)  # one flat colour has none to divide by
            self.mean, self.std = self.mean or mean.tolist(), self.std or std.tolist()

    def adopt(self, other: "DataModule") -> None:
        """Take over what another module of the same images and the same split has read."""
        self.check_batch_size(len(other.train))
        read = ("train", "val", "test", "classes", "test_files", "kept_for_test", "drawn_from", "has_own_val")
        for name in (*read, "mean", "std", "split_hash", "train_hash"):
            setattr(self, name, getattr(other, name))

    def sample(self, num_images: int = 5000) -> Tensor:
        """Training images from all over the data, which may lie class by class, normalised: (N, C, H, W) float32."""
        count = min(num_images, len(self.train))
        rows = torch.arange(count) * len(self.train) // count
        images = self.train.take(rows.to(self.train.device))
        return Normalise(*torch.tensor([self.mean, self.std], device=images.device))(images)

    @property
    def class_counts(self) -> Tensor:
        """Training images of each class: (num_classes,) float64."""
        return torch.bincount(self.train.labels.cpu(), minlength=self.num_classes).double()

    @property
    def class_names(self) -> list[str]:
        """As text, whatever a data set's own may be."""
        return list(map(str, self.classes))

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return 3, self.image_size, self.image_size

    @property
    def has_val(self) -> bool:
        return len(self.val) > 0

    def setup(self, stage: str) -> None:
        """Bring what the stage ("fit" or "test") needs onto the device: test images only for the test."""
        usual = self.trainer.strategy.root_device if self.trainer and not self.is_mapped else "cpu"
        device = torch.empty(0, device=self.device or usual).device  # a GPU with its number
        self.load()
        if device != self.train.device and not self.is_mapped:
            self.check_room(len(self.train) + len(self.val), device)
        self.train, self.val = self.train.to(device), self.val.to(device)
        # here, once: a copy waits for the GPU
        self.normalise = Normalise(*torch.tensor([self.mean, self.std], device=device))
        if stage in ("test", "predict"):
            self.load_test()
            if device != self.test.device and not self.is_mapped:
                self.check_room(len(self.test), device)
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
        weights = (1 / self.class_counts)[self.train.labels.cpu()] if self.balanced_sampling else None
        sampler = ShuffledBatchSampler(count, self.batch_size, self.seed, rank, world_size, device, weights)
        flip_mask = random_mask(count, 0.5, Generator().manual_seed(seed_for("flips", self.seed))).to(device)
        loader = TrainLoader(
            self.train, sampler, self.augment, self.normalise, self.num_classes, flip_mask, self.resize
        )
        self._train_loaders = weakref.WeakSet([*getattr(self, "_train_loaders", ()), loader])
        return loader

    def val_dataloader(self) -> EvalLoader:
        refuse_if(self.val is None, "no images have been read. Call prepare_data() and setup('fit') first")
        return self.eval_loader(self.val, "limit_val_batches")

    def test_dataloader(self) -> EvalLoader:
        refuse_if(self.test is None, "no test images have been read. Call prepare_data() and setup('test') first")
        return self.eval_loader(self.test, "limit_test_batches")

    def predict_dataloader(self) -> EvalLoader:
        """The test images, in the order in which they lie, for `Trainer.predict`."""
        refuse_if(self.test is None, "no test images have been read. Call prepare_data() and setup('predict') first")
        return self.eval_loader(self.test, "limit_predict_batches", as_they_lie=True)

    def eval_loader(self, data: LabelledImages, limit: str, as_they_lie: bool = False) -> EvalLoader:
        """limit: the trainer's attribute that limits its batches."""
        if self.trainer is None:
            return EvalLoader(data, self.eval_batch_size, self.normalise, as_they_lie=as_they_lie)
        # where a network is spread over the ranks, each of its forward passes needs all of them: all see every batch
        is_whole = isinstance(self.trainer.strategy, DDPStrategy)
        place = (self.trainer.global_rank, self.trainer.world_size) if is_whole else (0, 1)
        return EvalLoader(data, self.eval_batch_size, self.normalise, getattr(self.trainer, limit), *place, as_they_lie)

    def num_batches(self, world_size: int = 1) -> dict[str, int | None]:
        """Of an epoch's training, of validation and of the test; None where only reading the images tells."""
        found, count = dict.fromkeys(("train", "val", "test")), self.known_num_images(train=True)
        if self.train is not None:
            found |= {"train": len(self.train), "val": len(self.val)}
        elif count is not None:
            held_out = self.num_held_out(count)
            found |= {"train": min(count - held_out, self.max_train or count), "val": held_out}
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
            "classes": self.class_names,
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

    @property
    def augment(self) -> Augment:
        """As of any data module: another takes effect with the next batch, of all members."""
        return self.members[0].augment

    @augment.setter
    def augment(self, augment: Augment) -> None:
        for member in self.members:
            member.augment = augment

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
