"""From index tensors to batches as the network wants them; on the device that holds the images."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from cifar_resnet.data.augment import Augment, Randomness
from cifar_resnet.data.resizing import ProgressiveResize, resized
from cifar_resnet.data.samplers import ShuffledBatchSampler, spread_order
from cifar_resnet.images import Normalise


class LabelledImages:
    """images: (N, C, H, W) uint8, channels_last; labels: (N,) int64; both on one device."""

    def __init__(self, images: Tensor, labels: Tensor):
        self.images, self.labels = images.contiguous(memory_format=torch.channels_last), labels

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def device(self) -> torch.device:
        return self.labels.device

    @property
    def side(self) -> int:
        """In pixels."""
        return self.images.shape[-1]

    def take(self, indices: Tensor) -> Tensor:
        """Some of the images. indices: (n,) int64."""
        return self.images.index_select(0, indices)  # each row of pixels is copied as one block of memory

    def in_parts(self, indices: Tensor | None = None) -> Iterator[Tensor]:
        """Some of the images, or all, a few thousand at a time: what lies in a file may be more than memory holds."""
        rows = torch.arange(len(self)) if indices is None else indices
        return (self.take(part.to(self.device)) for part in rows.split(5000))

    def __getitem__(self, index: int) -> Tensor:
        """An image, (C, H, W)."""
        return self.take(torch.tensor([index], device=self.device))[0]

    def to(self, device: torch.device) -> "LabelledImages":
        return self if device == self.device else LabelledImages(self.images.to(device), self.labels.to(device))


class MappedImages(LabelledImages):
    """Some of the images in a file that is mapped into memory, where only those of a batch are read at a time.

    source: (M, C, H, W) uint8; rows: (N,) int64, which of them; labels: (N,) int64.
    """

    def __init__(self, source: Tensor, rows: Tensor, labels: Tensor):
        self.source, self.rows, self.labels = source, rows, labels

    @property
    def images(self) -> Tensor:  # type: ignore[override]
        """All of them, read into memory."""
        return self.take(torch.arange(len(self)))

    @property
    def side(self) -> int:
        return self.source.shape[-1]

    def take(self, indices: Tensor) -> Tensor:
        found = self.source.index_select(0, self.rows[indices])
        return found.contiguous(memory_format=torch.channels_last)

    def to(self, device: torch.device) -> "LabelledImages":
        return self


class TrainLoader:
    """An epoch of augmented batches: images (N, C, H, W) float32, normalised, channels_last, and their labels.

    H and W are `image_size`, which may change between epochs.
    Labels are (N,) int64, or where images are mixed their shares of each class, (N, num_classes) float32.
    """

    def __init__(
        self,
        data: LabelledImages,
        sampler: ShuffledBatchSampler,
        augment: Augment,
        normalise: Normalise,
        num_classes: int,
        flip_mask: Tensor,
        resize: ProgressiveResize | None = None,
    ):
        """flip_mask: (N,) bool, of alternating flips those that are mirrored in even epochs."""
        self.data, self.sampler, self.augment = data, sampler, augment
        self.normalise, self.num_classes, self.flip_mask = normalise, num_classes, flip_mask
        self.resize = resize

    def __len__(self) -> int:
        return len(self.sampler)

    @property
    def image_size(self) -> int:
        """The side of the images in the sampler's epoch, in pixels."""
        return (self.resize and self.resize.size_in(self.sampler.epoch)) or self.data.side

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for indices in self.sampler:
            yield self.deliver(indices)

    def deliver(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The next batch; `callbacks.StepGraph` puts another way in its place."""
        return self.batch(indices)

    def batch(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """Of these images, (N,) int64, in the sampler's epoch."""
        images, labels = self.data.take(indices), self.data.labels.index_select(0, indices)
        flips = self.flip_mask[indices] ^ self.sampler.is_odd
        randomness = Randomness(self.sampler.generator, self.sampler.numpy_rng, flips)
        images, plan = self.augment(images, self.normalise, randomness)
        images = resized(images, self.image_size)
        return images, labels if plan is None else plan.probabilities(labels, self.num_classes)


class EvalLoader:
    """Every image once, normalised, dealt so that a part of the batches is a sample of all classes; the last batch may
    be smaller.

    Of several ranks each gets whole batches, in turn, so that a batch gives the same numbers on however many; the last
    ranks may get fewer of them, or none.

    limit: how many of all batches there are, or which share of them, as Lightning's trainer means it.
    as_they_lie: in the order of the data instead.
    order: (N,) int64, which image comes when: the same in each epoch and each run.
    """

    def __init__(
        self,
        data: LabelledImages,
        batch_size: int,
        normalise: Normalise,
        limit: int | float | None = None,
        rank: int = 0,
        world_size: int = 1,
        as_they_lie: bool = False,
    ):
        self.data, self.batch_size, self.normalise, self.limit = data, batch_size, normalise, limit
        self.rank, self.world_size = rank, world_size
        order = torch.arange(len(data)) if as_they_lie else spread_order(data.labels)
        self.order = order.to(data.device)

    def __len__(self) -> int:
        """The batches of all ranks without the limit: the trainer applies that, and must not apply it to a share."""
        return -(-len(self.data) // self.batch_size)

    def batches_of(self, rank: int) -> Sequence[Tensor]:
        """Which images come in each of that rank's batches, (batch_size,) int64 or fewer."""
        return self.order.split(self.batch_size)[: limited(len(self), self.limit)][rank :: self.world_size]

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches_of(self.rank):
            yield self.normalise(self.data.take(batch)), self.data.labels[batch]


def limited(num_batches: int, limit: int | float | None) -> int:
    """So many batches of an epoch's, as Lightning's trainer counts them. limit: how many, or which share of them."""
    if limit is None:
        return num_batches
    is_share = isinstance(limit, float) and limit <= 1
    return int(num_batches * limit) if is_share else min(num_batches, int(limit))


class StackedLoader:
    """The batches of several trainings, each as it would be alone, one behind the other in one tensor."""

    def __init__(self, loaders: Sequence[TrainLoader]):
        self.loaders = loaders
        self.sampler = StackedSampler([loader.sampler for loader in loaders])

    def __len__(self) -> int:
        return len(self.loaders[0])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batches in zip(*self.loaders, strict=True):
            images, labels = map(torch.cat, zip(*batches, strict=True))
            yield images, labels


class StackedSampler:
    """The samplers of several trainings, moved and kept together."""

    def __init__(self, samplers: Sequence[ShuffledBatchSampler]):
        self.samplers = samplers

    def set_epoch(self, epoch: int) -> None:
        for sampler in self.samplers:
            sampler.set_epoch(epoch)

    def state_dict(self) -> list[dict]:
        return [sampler.state_dict() for sampler in self.samplers]

    def load_state_dict(self, states: list[dict]) -> None:
        for sampler, state in zip(self.samplers, states, strict=True):
            sampler.load_state_dict(state)
