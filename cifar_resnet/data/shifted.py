"""Test sets that a network meets outside of its training: CIFAR-10's, corrupted, collected anew, or seen by people.

None has images to train on; they are for cifar-evaluate.
"""

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Len
from torch import Tensor

from cifar_resnet import constraints
from cifar_resnet.constraints import Corruption, Count, Seed, Severity, check
from cifar_resnet.data.corruptions import CORRUPTIONS, corrupted
from cifar_resnet.data.datamodule import Condition, DataModule, TestSet
from cifar_resnet.data.published import CIFAR10
from cifar_resnet.data.samplers import stratified_split
from cifar_resnet.errors import first_sentence, refuse_if
from cifar_resnet.files import UNPACKED
from cifar_resnet.folders import named

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]


class TestOnly(DataModule):
    """Images to test on, and none to train on."""

    __test__ = False  # for pytest, which goes by its name

    num_classes, image_size = 10, 32

    def __init__(self, root: str = "data", **shared: Any):
        super().__init__(**shared)
        self.root = Path(root).expanduser()
        self.classes = list(CLASSES)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        refuse_if(train, f"{type(self).__name__} has no images to train on. Give it to cifar-evaluate checkpoint=…")
        sets = list(self.test_sets())
        return torch.cat([each.images for each in sets]), torch.cat([each.labels for each in sets])

    @abstractmethod
    def test_sets(self) -> Iterator[TestSet]:
        """See `DataModule`."""


class OfFiles(TestOnly):
    """Of `files.UNPACKED`: arrays that its authors have published, which lie in root or in a folder there."""

    @property
    def place(self) -> Path:
        """The folder with the files; FileNotFoundError where one is missing."""
        return UNPACKED[type(self).__name__].place_in(self.root, self.file_names())

    def file_names(self) -> list[str]:
        return UNPACKED[type(self).__name__].files(vars(self))

    def prepare_data(self) -> None:
        _ = self.place

    def array(self, name: str, *shape: int | None) -> np.ndarray:
        """What a file holds, left in it until it is needed. shape: of which None may be anything."""
        path = self.place / name
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
            refuse_if(not isinstance(found, np.ndarray), "an archive of several")
        except Exception as error:  # a damaged file may raise anything
            raise ValueError(f"not an array of NumPy's. Got {path} ({first_sentence(error)}); fetch it anew") from error
        fits = len(found.shape) == len(shape) and all(b in (None, a) for a, b in zip(found.shape, shape, strict=True))
        refuse_if(
            not fits,
            f"not as published. Got {path} with shape {found.shape}, and not "
            f"({', '.join('N' if side is None else str(side) for side in shape)}); fetch it anew",
        )
        return found

    def images(self, name: str) -> np.ndarray:
        """(N, 3, 32, 32) uint8, in the file."""
        found = self.array(name, None, 32, 32, 3)
        refuse_if(found.dtype != np.uint8, f"images of whole numbers. Got {found.dtype} in {self.place / name}")
        return found.transpose(0, 3, 1, 2)

    def labels(self, name: str, count: int) -> Tensor:
        """(N,) int64, as many as images."""
        found = self.array(name, None)
        path = self.place / name
        refuse_if(len(found) != count, f"a label for each image. Got {len(found)} in {path} for {count}")
        refuse_if(
            not np.isin(found, np.arange(10)).all(), f"labels from 0 to 9. Got {found.min()} to {found.max()} in {path}"
        )
        return torch.from_numpy(found.astype(np.int64))


class Corruptions(TestOnly):
    """Test images under many conditions, each of them a set of its own.

    corruptions: by name; None for all. severities: from 1 to 5. num_test: under each condition only so many of the
    images, each class in proportion and the same ones everywhere; None for all.
    """

    known: Sequence[str]  # corruptions

    def __init__(
        self,
        corruptions: Annotated[list[Corruption], Len(1)] | None = None,
        severities: Annotated[list[Severity], Len(1)] = [1, 2, 3, 4, 5],  # noqa: B006 - only read
        num_test: Count | None = None,
        **shared: Any,
    ):
        super().__init__(**shared)
        check(Corruptions, locals())
        unknown = [name for name in corruptions or () if name not in self.known]
        refuse_if(
            unknown, f"made here are {named(self.known, most=20)}. Got data.corruptions={unknown}; leave that out"
        )
        self.corruptions = list(dict.fromkeys(self.known if corruptions is None else corruptions))
        self.severities = sorted(set(severities))
        self.num_test = num_test

    @property
    def conditions(self) -> Sequence[Condition]:
        return [Condition(name, severity) for name in self.corruptions for severity in self.severities]

    def part(self, labels: Tensor) -> Tensor:
        """Which images are tested on. labels: of one condition."""
        if self.num_test is None:
            return torch.arange(len(labels))
        refuse_if(
            self.num_test > len(labels),
            f"data.num_test of the images are tested on. Got {self.num_test} of {len(labels)}",
        )
        return stratified_split(labels, self.num_test, self.split_seed)[1]


class CIFAR10C(Corruptions, OfFiles):
    """CIFAR-10-C (Hendrycks & Dietterich 2019, arXiv 1903.12261): CIFAR-10's test images under 19 corruptions of five
    severities."""

    known = constraints.CORRUPTIONS

    def test_sets(self) -> Iterator[TestSet]:
        for name in self.corruptions:
            images = self.images(f"{name}.npy")
            labels = self.labels("labels.npy", len(images))
            refuse_if(
                len(images) % 5 != 0,
                f"the images of five severities, one after the other. Got {len(images)} in {self.place / name}.npy",
            )
            count = len(images) // 5
            for severity in self.severities:
                rows = slice((severity - 1) * count, severity * count)
                part = self.part(labels[rows])
                found = torch.from_numpy(images[rows][part.numpy()])
                yield TestSet(found, labels[rows][part], Condition(name, severity))


class CIFAR101(OfFiles):
    """CIFAR-10.1 (Recht et al. 2018, arXiv 1806.00451): 2,000 images collected anew as CIFAR-10's were.

    version: "v6", whose classes are equally large, or "v4", 2,021 images as the authors' first draft had them.
    """

    def __init__(self, version: Literal["v4", "v6"] = "v6", **shared: Any):
        super().__init__(**shared)
        check(CIFAR101, locals())
        self.version = version

    def test_sets(self) -> Iterator[TestSet]:
        data, labels = self.file_names()
        images = self.images(data)
        yield TestSet(torch.from_numpy(np.array(images)), self.labels(labels, len(images)))


class OfCIFAR10(TestOnly):
    """CIFAR-10's test images, found or fetched as `CIFAR10` does."""

    def prepare_data(self) -> None:
        CIFAR10(root=str(self.root)).prepare_data()

    def is_complete(self) -> bool:
        return CIFAR10(root=str(self.root)).is_complete()

    def clean(self) -> tuple[Tensor, Tensor]:
        """(N, 3, 32, 32) uint8 and (N,) int64."""
        return CIFAR10(root=str(self.root)).read(train=False)


class CIFAR10H(OfCIFAR10, OfFiles):
    """CIFAR-10H (Peterson et al. 2019, arXiv 1908.07086): what some fifty people each saw in CIFAR-10's test images."""

    def prepare_data(self) -> None:
        OfFiles.prepare_data(self)
        OfCIFAR10.prepare_data(self)

    def test_sets(self) -> Iterator[TestSet]:
        yield TestSet(*self.clean())

    def votes(self) -> Tensor:
        (name,) = self.file_names()
        found = self.array(name, len(self.clean()[1]), 10)
        refuse_if(
            not np.isfinite(found).all() or (found < 0).any() or not np.allclose(found.sum(1), 1, atol=1e-3),
            f"shares of the votes for each image, which sum to 1. Got others in {self.place / name}; fetch it anew",
        )
        return torch.from_numpy(np.array(found, dtype=np.float64))


class Corrupted(Corruptions, OfCIFAR10):
    """CIFAR-10's test images, corrupted here by the published definitions; see `corruptions`. Not CIFAR-10-C.

    corruption_seed: of what is drawn.
    """

    known = tuple(CORRUPTIONS)

    def __init__(self, corruption_seed: Seed = 0, **shared: Any):
        super().__init__(**shared)
        check(Corrupted, locals())
        self.corruption_seed = corruption_seed

    def uncorrupted(self) -> TestSet:
        images, labels = self.clean()
        part = self.part(labels)
        return TestSet(images[part], labels[part])

    def test_sets(self) -> Iterator[TestSet]:
        images, labels, _ = self.uncorrupted()
        for condition in self.conditions:
            yield TestSet(corrupted(images, *condition, seed=self.corruption_seed), labels, condition)
