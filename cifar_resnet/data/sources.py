"""Where images come from: one data module per source."""

import contextlib
import hashlib
import json
import os
import socket
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge
from filelock import FileLock
from torch import Tensor
from torchvision import datasets

from cifar_resnet.constraints import ImageSize, Seed, check
from cifar_resnet.data.datamodule import DataModule
from cifar_resnet.errors import refuse_if
from cifar_resnet.files import PUBLISHED, Halves, decode, folders_of, is_final

AtLeastTen = Annotated[int, Ge(10)]


class CIFAR10(DataModule):
    """CIFAR-10 (Krizhevsky 2009), read, checked and where need be downloaded by torchvision.

    root: the folder that holds, or will hold, cifar-10-batches-py or its archive.
    """

    num_classes, image_size = 10, 32
    dataset, published = datasets.CIFAR10, PUBLISHED["CIFAR10"]

    def __init__(self, root: str = "data", **shared):
        super().__init__(**shared)
        self.root = Path(root).expanduser()

    def prepare_data(self) -> None:
        """Download the archive unless the batches, or the archive, are there with the right MD5."""
        if self.train is not None or self.is_complete():  # once read, nothing more is needed
            return
        is_new, lock, reason = not self.root.exists(), self.root / f".{self.published.folder}.lock", None
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            with FileLock(lock):
                for pause in (0, 2, 8):
                    time.sleep(pause)
                    reason = None if self.is_complete() else self.download()  # another process may have been quicker
                    if reason is None or is_final(reason):
                        break
                if reason:
                    lock.unlink()  # while it is held: those who wait for it see that it is gone, and make a new one
            if reason and is_new:
                self.root.rmdir()
        except OSError as error:  # a folder that cannot be written, or is not empty any more
            reason = reason or error
        if reason:
            raise FileNotFoundError(self.published.missing(self.root, reason))

    def is_complete(self) -> bool:
        return self.published.is_in(self.root)

    def download(self) -> Exception | None:
        """Fetch and unpack; returns what went wrong, if anything.

        Half a file cannot pass for a whole one: torchvision checks MD5s before it unpacks and before it reads.
        """
        timeout = socket.getdefaulttimeout()
        socket.setdefaulttimeout(30)
        try:
            self.dataset(self.root, download=True)
        except (OSError, RuntimeError, EOFError) as error:
            return error
        finally:
            socket.setdefaulttimeout(timeout)
        return None

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        data = self.dataset(self.root, train=train)
        self.classes = data.classes
        return torch.from_numpy(data.data).permute(0, 3, 1, 2), torch.tensor(data.targets)


class CIFAR100(CIFAR10):
    """CIFAR-100 (Krizhevsky 2009), with its 100 fine labels."""

    num_classes = 100
    dataset, published = datasets.CIFAR100, PUBLISHED["CIFAR100"]


class Files(DataModule):
    """Your own images: each half a folder of <class>/…, an .npz archive or a CIFAR-style pickle (see files.py).

    Pictures are decoded once, into a cache beside their folder that is made anew when a file changes.

    test, train: where they are; cifar-evaluate needs no train.
    image_size: side in pixels of what the network sees; images of other sizes are resized, with a warning.
    """

    def __init__(self, test: str, train: str | None = None, image_size: ImageSize = 32, **shared):
        super().__init__(**shared)
        check(Files, locals())
        self.halves, self.image_size = Halves(test, train, image_size), image_size
        self.paths, self.classes, self.num_classes = self.halves.paths, self.halves.classes, len(self.halves.classes)
        self.augment.check_image_size(image_size)

    def prepare_data(self) -> None:
        for half, path in self.paths.items():
            if path.is_dir():
                self.decode(half)

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        half = "train" if train else "test"
        refuse_if(
            half not in self.paths,
            "no images to train on. Got data.train=null; give a folder or an archive",
        )
        path = self.paths[half]
        images, labels, resized = self.decode(half) if path.is_dir() else self.unpack(half)
        if resized:
            warnings.warn(
                f"{resized} of {len(images)} images in {path} were not {self.image_size}x{self.image_size} and have "
                f"been resized; data.image_size chooses the size",
                stacklevel=2,
            )
        return torch.from_numpy(images), torch.from_numpy(labels)

    def unpack(self, half: str) -> tuple[np.ndarray, np.ndarray, int]:
        """Every image of one half's archive, its label, and how many were resized."""
        archive = self.halves.archives[half]
        places = np.array([self.classes.index(name) for name in self.halves.names(half)])
        return archive.images, places[archive.labels], archive.resized

    def decode(self, half: str) -> tuple[np.ndarray, np.ndarray, int]:
        """Every picture of one half, its label, and how many were resized; from the cache where it is up to date."""
        folder = self.paths[half]
        files = [
            (path, label)
            for label, name in enumerate(self.classes)
            if name in self.halves.folders[half]
            for path in sorted(self.halves.folders[half][name].rglob("*"))
            if path.is_file() and not path.name.startswith(".")
        ]
        if not files:
            raise FileNotFoundError(f"no images. Got {folder} with none in its class folders")
        stamps = [(str(path.relative_to(folder)), path.stat().st_size, path.stat().st_mtime_ns) for path, _ in files]
        fingerprint = hashlib.sha256(json.dumps([self.image_size, self.classes, stamps]).encode()).hexdigest()[:16]
        cache = folder.parent / f".cifar_resnet_{folder.name}_{self.image_size}.npz"
        cached = read_cache(cache, fingerprint)
        if cached is None:
            with alone_at(cache.with_suffix(".lock")):
                cached = read_cache(cache, fingerprint)  # another process may have been quicker
                if cached is None:
                    images, resized = self.decode_files([path for path, _ in files])
                    labels = np.array([label for _, label in files])
                    cached = {"images": np.stack(images), "labels": labels, "resized": np.array(resized)}
                    write_cache(cache, fingerprint, cached)
        return cached["images"].transpose(0, 3, 1, 2), cached["labels"], int(cached["resized"])

    def decode_files(self, paths: list[Path]) -> tuple[list[np.ndarray], int]:
        """Arrays of (image_size, image_size, 3), and how many images had another size."""
        decoded = [decode(path, self.image_size) for path in paths]
        return [pixels for pixels, _ in decoded], sum(was_resized for _, was_resized in decoded)


class ImageFolder(Files):
    """Your own images, in root/train/<class>/… and root/test/<class>/…, in any format that Pillow reads."""

    def __init__(self, root: str, **files):
        super().__init__(**folders_of(root), **files)


@contextlib.contextmanager
def alone_at(lock: Path) -> Iterator[None]:
    """One process after the other, where the folder lets a lock be made."""
    held = FileLock(lock)
    with contextlib.suppress(OSError):
        held.acquire()
    try:
        yield
    finally:
        if held.is_locked:
            lock.unlink(missing_ok=True)  # while it is held: who waits for it finds the work done, and nothing is left
        held.release()


def read_cache(path: Path, fingerprint: str) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path) as arrays:
            return dict(arrays) if str(arrays["fingerprint"]) == fingerprint else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none, or a damaged one
        return None


def write_cache(path: Path, fingerprint: str, arrays: dict[str, np.ndarray]) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, fingerprint=fingerprint, **arrays)
        part.replace(path)
    except OSError as error:
        warnings.warn(f"no cache could be written, so images are decoded anew each time ({error})", stacklevel=2)
        part.unlink(missing_ok=True)


class Synthetic(DataModule):
    """Ten classes of 32x32 colour images, drawn from a seed: for first runs and tests, without a download.

    Figure and ground have random colours, so that no colour gives a class away; figures have random places, sizes and
    tilts, so that no pixel does either.
    """

    classes = ["disk", "ring", "square", "frame", "triangle", "plus", "star", "bars", "checks", "dots"]  # noqa: RUF012
    num_classes, image_size = len(classes), 32

    def __init__(self, num_train: AtLeastTen = 10_000, num_test: AtLeastTen = 2_000, image_seed: Seed = 0, **shared):
        super().__init__(**shared)
        check(Synthetic, locals())
        self.num_train, self.num_test, self.image_seed = num_train, num_test, image_seed

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        generator = torch.Generator().manual_seed(2 * self.image_seed + train)
        labels = torch.randint(self.num_classes, (self.num_train if train else self.num_test,), generator=generator)
        return torch.cat([draw(chunk, self.image_size, generator) for chunk in labels.split(2000)]), labels


def draw(labels: Tensor, size: int, generator: torch.Generator) -> Tensor:
    """One image for each label of `Synthetic.classes`: (N, 3, size, size) uint8."""

    def uniform(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(len(labels), 1, 1, generator=generator)

    radius, tilt, centre_x, centre_y = uniform(0.35, 0.75), *(uniform(-0.35, 0.35) for _ in range(3))
    grid = torch.linspace(-1, 1, size)
    x, y = grid[None, None, :] - centre_x, grid[None, :, None] - centre_y
    x, y = (x * tilt.cos() + y * tilt.sin()) / radius, (y * tilt.cos() - x * tilt.sin()) / radius
    distance, angle = torch.hypot(x, y), torch.atan2(y, x)
    square = torch.maximum(x.abs(), y.abs())
    waves_x, waves_y = torch.sin(x * 7), torch.sin(y * 7)
    figures = [
        distance < 1,
        (distance < 1) & (distance > 0.55),
        square < 0.9,
        (square < 0.9) & (square > 0.5),
        (y < 0.75) & (y > 2 * x.abs() - 1),
        (square < 1) & (torch.minimum(x.abs(), y.abs()) < 0.3),
        distance < 0.65 + 0.35 * torch.cos(5 * angle),
        (square < 1) & (waves_x > 0),
        (square < 1) & (waves_x * waves_y > 0),
        (square < 1) & (waves_x > 0.3) & (waves_y > 0.3),
    ]
    mask = torch.stack(figures)[labels, torch.arange(len(labels))].float()[:, None]
    figure, ground = torch.rand(2, len(labels), 3, 1, 1, generator=generator)
    # colours too alike would hide the figure: push them apart along their own difference
    difference = figure - ground
    contrast = difference.norm(dim=1, keepdim=True)
    figure = ground + difference / contrast.clamp(min=1e-3) * contrast.clamp(min=0.45)
    patches = torch.rand(len(labels), 3, size // 4, size // 4, generator=generator)
    clutter = torch.nn.functional.interpolate(patches - 0.5, size=(size, size), mode="bilinear")
    noise = torch.randn(len(labels), 3, size, size, generator=generator)
    pixels = ground + mask * (figure - ground) + 0.3 * clutter + 0.06 * noise
    return (pixels.clamp(0, 1) * 255).round().to(torch.uint8)
