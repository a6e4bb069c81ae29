"""Data sets as their authors published them: one data module each."""

import contextlib
import csv
import io
import socket
import time
from abc import abstractmethod
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from filelock import FileLock
from torch import Tensor
from torchvision import datasets

from cifar_resnet.archives import read_pickle, to_size
from cifar_resnet.constraints import ImageSize, check
from cifar_resnet.data.datamodule import DataModule
from cifar_resnet.data.sources import NumberOrShare, OwnImages
from cifar_resnet.errors import UsageError, first_sentence, one_line, refuse_if
from cifar_resnet.files import PUBLISHED, ListedPart, Splits, is_final


class Downloaded(DataModule):
    """A data set that is looked for in a folder, and fetched where it is not there.

    root: the folder that holds it, or will.
    """

    made: tuple[str, ...]  # names in root of what a download leaves there

    def __init__(self, root: str = "data", **shared: Any):
        super().__init__(**shared)
        self.root = Path(root).expanduser()

    @abstractmethod
    def is_complete(self) -> bool:
        """Whether nothing has to be fetched."""

    @abstractmethod
    def fetch(self) -> None:
        """Download and unpack it, by torchvision, which checks MD5s before it unpacks."""

    @abstractmethod
    def missing(self, reason: Exception) -> str:
        """In one line, what is not there, and what to do."""

    def prepare_data(self) -> None:
        """Download unless all is there."""
        if self.train is not None or self.is_complete():  # once read, nothing more is needed
            return
        is_new, lock, reason = not self.root.exists(), self.root / f".{type(self).__name__}.lock", None
        before = self.own_files()
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):
                for pause in (0, 2, 8):
                    time.sleep(pause)
                    reason = None if self.is_complete() else self.download()  # another process may have been quicker
                    if reason is None or is_final(reason):
                        break
                if reason:
                    for path in sorted(self.own_files() - before, reverse=True):
                        (path.rmdir if path.is_dir() else path.unlink)()  # half of what was to come
                    lock.unlink()  # while it is held: those who wait for it see that it is gone, and make a new one
            if reason and is_new:
                self.root.rmdir()
        except OSError as error:  # a folder that cannot be written, or is not empty any more
            reason = reason or error
        if reason:
            raise FileNotFoundError(self.missing(reason))

    def own_files(self) -> set[Path]:
        """Of what lies in root that which a download makes."""
        made = [self.root / name for name in self.made]
        return {path for place in made if place.exists() for path in (place, *place.rglob("*"))}

    def download(self) -> Exception | None:
        """Returns what went wrong, if anything."""
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(30)
        try:
            self.fetch()
        except (OSError, RuntimeError, EOFError, HTTPException) as error:
            return error
        finally:
            socket.setdefaulttimeout(timeout)
        return None


class CIFAR10(Downloaded):
    """CIFAR-10 (Krizhevsky 2009), read, checked and where need be downloaded by torchvision.

    root: the folder that holds, or will hold, cifar-10-batches-py or its archive.
    """

    num_classes, image_size = 10, 32
    dataset, published = datasets.CIFAR10, PUBLISHED["CIFAR10"]

    @property
    def made(self) -> tuple[str, ...]:  # type: ignore[override]
        return self.published.archive, self.published.folder

    def is_complete(self) -> bool:
        return self.published.is_in(self.root)

    def known_num_images(self, train: bool) -> int:
        return 50_000 if train else 10_000

    def fetch(self) -> None:
        self.dataset(self.root, download=True)

    def missing(self, reason: Exception) -> str:
        return self.published.missing(self.root, reason)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        data = self.dataset(self.root, train=train)
        self.classes = data.classes
        return torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)


class CIFAR100(CIFAR10):
    """CIFAR-100 (Krizhevsky 2009).

    labels: "fine", 100 classes; or "coarse", the 20 that these are grouped into.
    """

    num_classes = 100
    dataset, published = datasets.CIFAR100, PUBLISHED["CIFAR100"]

    def __init__(self, labels: Literal["fine", "coarse"] = "fine", **shared: Any):
        super().__init__(**shared)
        check(CIFAR100, locals())
        self.labels, self.num_classes = labels, 100 if labels == "fine" else 20

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = super().read(train)
        if self.labels == "fine":
            return images, labels
        folder = self.root / self.published.folder
        self.classes = [name.decode() for name in read_pickle(folder / "meta")["coarse_label_names"]]
        return images, torch.tensor(read_pickle(folder / ("train" if train else "test"))["coarse_labels"])


class OfTorchvision(Downloaded):
    """A data set that one of torchvision's classes reads, checks and downloads.

    image_size: side in pixels of what the network sees; images of another size are resized.
    """

    num_classes = 10
    dataset: Callable[..., datasets.VisionDataset]
    own_size: int  # of the images as published, in pixels
    files: str  # for people: what has to lie in root

    def __init__(self, image_size: ImageSize | None = None, **shared: Any):
        super().__init__(**shared)
        check(OfTorchvision, locals())
        self.image_size = image_size or self.own_size
        self.check_image_size()
        self.found: dict[bool, tuple[np.ndarray, np.ndarray]] = {}

    def part(self, train: bool) -> dict[str, object]:
        """What torchvision calls one split of it."""
        return {"split": "train" if train else "test"}

    def is_complete(self) -> bool:
        try:
            self.found = {train: self.images_and_labels(train) for train in (True, False)}
        except RuntimeError:  # so torchvision says that it is not there, or is damaged
            return False
        return True

    def images_and_labels(self, train: bool) -> tuple[np.ndarray, np.ndarray]:
        """(N, 3, H, W) or, grey, (N, H, W) uint8, and (N,)."""
        try:
            data = self.dataset(self.root, **self.part(train))
        except RuntimeError:
            raise
        except ImportError as error:
            raise UsageError(f"{type(self).__name__} needs {error.name}. Give: pip install {error.name}") from error
        except Exception as error:  # a damaged file may raise anything
            raise ValueError(
                f"{type(self).__name__} is damaged in {self.root} ({first_sentence(error)}). Take {self.files} away, "
                f"and it is fetched anew"
            ) from error
        self.classes = list(getattr(data, "classes", map(str, range(self.num_classes))))
        return np.asarray(data.data), np.asarray(data.targets if hasattr(data, "targets") else data.labels)

    def fetch(self) -> None:
        with contextlib.redirect_stdout(io.StringIO()):
            for train in (True, False):
                self.dataset(self.root, download=True, **self.part(train))

    def missing(self, reason: Exception) -> str:
        return (
            f"{type(self).__name__} is not, or not whole, in {self.root} and could not be downloaded "
            f"({one_line(reason)}). Put {self.files} there, or give another folder: data.root=…"
        )

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        images, labels = self.found.pop(train, None) or self.images_and_labels(train)
        planes = images if images.ndim == 4 else np.broadcast_to(images[:, None], (len(images), 3, *images.shape[1:]))
        return torch.from_numpy(to_size(planes, self.image_size)), torch.from_numpy(labels.astype(np.int64))


class MNIST(OfTorchvision):
    """MNIST (LeCun et al. 1998), handwritten digits, grey, 28 pixels."""

    dataset, own_size = datasets.MNIST, 28
    files = "the folder MNIST/raw with train-images-idx3-ubyte and the other three"
    made = ("MNIST",)

    def part(self, train: bool) -> dict[str, object]:
        return {"train": train}


class FashionMNIST(MNIST):
    """Fashion-MNIST (Xiao et al. 2017), pieces of clothing, grey, 28 pixels."""

    dataset = datasets.FashionMNIST
    files = "the folder FashionMNIST/raw with train-images-idx3-ubyte and the other three"
    made = ("FashionMNIST",)


class SVHN(OfTorchvision):
    """SVHN (Netzer et al. 2011), house numbers, cropped to digits of 32 pixels: 73,257 + 26,032 images."""

    dataset, own_size = datasets.SVHN, 32
    files = "train_32x32.mat and test_32x32.mat"
    made = ("train_32x32.mat", "test_32x32.mat")


class STL10(OfTorchvision):
    """STL-10 (Coates et al. 2011), 96 pixels: 5,000 + 8,000 labelled images."""

    dataset, own_size = datasets.STL10, 96
    files = "the folder stl10_binary, or its archive stl10_binary.tar.gz"
    made = ("stl10_binary", "stl10_binary.tar.gz")


class MedMNIST(OwnImages):
    """One of MedMNIST's two-dimensional sets (Yang et al. 2023), from its file, such as pathmnist.npz.

    Sets with several labels for an image, or of three dimensions, are refused.
    """

    def __init__(self, root: str, **shared: Any):
        super().__init__(**shared)
        path = Path(root).expanduser()
        what = "a folder" if path.is_dir() else "which is not there"
        refuse_if(
            not path.is_file(),
            f"data.root is one of MedMNIST's files, such as pathmnist.npz. Got {root}, {what}; they are on Zenodo, "
            f"record 10519652",
        )
        self.open(Splits(root, root, self.image_size, root))


class OfLists(OwnImages):
    """Pictures whose classes a list says, and not the folders that they lie in.

    root: the folder of the data set.
    """

    def __init__(self, root: str, **shared: Any):
        super().__init__(**shared)
        self.root = Path(root).expanduser()
        self.open(Splits.listed(self.parts_in(self.root)))

    @abstractmethod
    def parts_in(self, root: Path) -> dict[str, ListedPart]:
        """By split; FileNotFoundError or ValueError where it is not as published."""


class TinyImageNet(OfLists):
    """Tiny ImageNet (Le & Yang 2015): 200 classes of 64 pixels; tested on its val/, for its test/ has no labels.

    root: the folder tiny-imagenet-200, or the one it lies in.
    """

    def parts_in(self, root: Path) -> dict[str, ListedPart]:
        place = root / "tiny-imagenet-200" if (root / "tiny-imagenet-200").is_dir() else root
        needed = [place / "wnids.txt", place / "train", place / "val" / "val_annotations.txt"]
        refuse_missing("Tiny ImageNet", "tiny-imagenet-200.zip, unpacked", needed)
        wnids = needed[0].read_text("utf-8-sig").split()
        words = place / "words.txt"
        named = words.read_text("utf-8-sig").splitlines() if words.is_file() else []
        rows = dict(line.split("\t", 1) for line in named if "\t" in line)
        names = {wnid: f"{rows[wnid].split(',')[0]} ({wnid})" if wnid in rows else wnid for wnid in wnids}
        train = [
            (path, names[wnid]) for wnid in wnids for path in sorted((place / "train" / wnid / "images").glob("*.JPEG"))
        ]
        lines = [row for row in csv.reader(needed[2].read_text("utf-8-sig").splitlines(), delimiter="\t") if row]
        strange = next((row for row in lines if len(row) < 2 or row[1] not in names), None)
        refuse_if(
            strange is not None,
            f"a line for each image, its file and its class. Got {strange} in {needed[2]}",
        )
        test = [(place / "val" / "images" / row[0], names[row[1]]) for row in lines]
        listed = {"train": (place / "train", train), "test": (place / "val", test)}
        return {split: ListedPart(path, list(names.values()), listed=found) for split, (path, found) in listed.items()}


class KaggleCIFAR10(OfLists):
    """CIFAR-10 as Kaggle's competition gives it: train/<id>.png with trainLabels.csv; its test/ has no labels.

    num_test: of the images, how many are tested on: a number, or a share of them below 1.
    """

    def __init__(self, num_test: NumberOrShare = 0.2, **shared: Any):
        super().__init__(**shared)
        check(KaggleCIFAR10, locals())
        self.num_test = num_test

    def parts_in(self, root: Path) -> dict[str, ListedPart]:
        table = root / "trainLabels.csv"
        refuse_missing("Kaggle's CIFAR-10", "train.7z, unpacked, and trainLabels.csv", [table, root / "train"])
        head, *rows = [row for row in csv.reader(table.read_text("utf-8-sig").splitlines()) if row] or [[]]
        strange = head if head != ["id", "label"] else next((row for row in rows if len(row) != 2), None)
        refuse_if(strange is not None, f"two columns, id and label. Got {strange} in {table}")
        found = [(root / "train" / f"{number}.png", label) for number, label in rows]
        part = ListedPart(root / "train", sorted({label for _, label in rows}), listed=found)
        return {"train": part, "test": part}


def refuse_missing(name: str, what: str, needed: list[Path]) -> None:
    if lacking := [path for path in needed if not path.exists()]:
        raise FileNotFoundError(f"{name} is not there. Got no {lacking[0]}; put {what} there, or give data.root=…")
