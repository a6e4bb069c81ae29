"""Images of one's own, in files, and drawn ones; data sets as their authors published them are in published.py."""

import contextlib
import hashlib
import itertools
import json
import os
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge, Interval
from filelock import FileLock
from torch import Tensor

from cifar_resnet.constraints import Count, ImageSize, Paths, Seed, check
from cifar_resnet.data.datamodule import KEPT_BACK, DataModule
from cifar_resnet.data.samplers import stratified_split
from cifar_resnet.errors import refuse_if
from cifar_resnet.files import Part, Splits, splits_in
from cifar_resnet.folders import as_text, named
from cifar_resnet.pictures import decode_all
from cifar_resnet.terminal import log

AtLeastTen = Annotated[int, Ge(10)]
NumberOrShare = Count | Annotated[float, Interval(gt=0, lt=1)]
CACHE_FORMAT = 2  # of decoded pictures: another number where the same file gives other pixels


class OwnImages(DataModule):
    """Images in files. Whoever derives from this says which, by `open`.

    Pictures are decoded once, into a cache beside their folder that is made anew when a file changes.

    image_size: side in pixels of what the network sees; images of other sizes are resized, with a warning.
    max_megapixels: larger pictures are refused.
    num_test: where both splits are one place, so many of its images, or such a share, are the test's; else None.
    """

    num_test: int | float | None = None

    def __init__(self, image_size: ImageSize = 32, max_megapixels: Count = 100, **shared: Any):
        super().__init__(**shared)
        check(OwnImages, locals())
        self.image_size, self.max_megapixels = image_size, max_megapixels
        self.told: set[str] = set()
        self.is_ready = False  # what can be kept of decoded pictures
        self.decoded: dict[Path, list[str]] = {}  # by folder the names of its pictures, in the order that they have

    def open(self, splits: Splits) -> None:
        self.splits = splits
        self.classes, self.num_classes = splits.classes, len(splits.classes)
        self.check_image_size()

    def order_classes(self, known: Sequence[str]) -> None:
        if sorted(known) == sorted(self.classes):
            self.classes = list(known)

    def prepare_data(self) -> None:
        """Once: what has been read is not looked for again, each time that a trainer asks for it."""
        if self.train is not None or self.is_ready:
            return
        for part in itertools.chain.from_iterable(self.splits.parts.values()):
            if part.archive is None and os.access(part.path.parent, os.W_OK):  # or what is decoded could not be kept
                self.decode(part)
        self.is_ready = True

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        refuse_if(
            train and "train" not in self.splits.parts,
            "no images to train on. Got data.train=null; give a folder or an archive",
        )
        images, labels = self.read_split("train" if train else "test")
        rows = None if self.num_test is None else self.rows_of(train, labels)
        parts = self.splits.parts["test"]
        if rows is not None:
            content = labels.numpy().tobytes() + "\n".join(self.names_in(parts[0], 1)).encode()
            of_all = hashlib.sha256(content).hexdigest()
            refuse_if(
                not train and self.drawn_from not in (None, of_all),
                f"images came or went since those to train on were read, and the test would be of such as the network "
                f"has seen. Got {self.splits.place('test')}; put it as it was",
            )
            if train:
                self.kept_for_test, self.drawn_from = len(labels) - len(rows), of_all
                self.tell_of_lost(labels, rows, KEPT_BACK)
        if not train and not all(part.archive for part in parts):
            names = [name for part in parts for name in self.names_in(part, len(parts))]
            self.test_files = names if rows is None else [names[row] for row in rows.tolist()]
        return (images, labels) if rows is None else (images[rows], labels[rows])

    def load_test(self) -> None:
        is_new = self.test is None
        super().load_test()
        if is_new and self.train is not None and not self.is_mapped:
            seen = {*digests(self.train.images), *digests(self.val.images)}
            if count := sum(digest in seen for digest in digests(self.test.images)):
                self.tell(
                    f"{count:,} of {len(self.test):,} test images are among those that were trained on or held out, to "
                    f"the pixel, so that the test's scores are too good to go by"
                )

    def rows_of(self, train: bool, labels: Tensor) -> Tensor:
        """Which images are drawn for one split. labels: of all."""
        count = int(self.num_test) if isinstance(self.num_test, Integral) else round(self.num_test * len(labels))
        refuse_if(
            not 0 < count < len(labels),
            f"data.num_test of the images are tested on, the others trained on. Got {self.num_test} of {len(labels)}",
        )
        return stratified_split(labels, count, self.split_seed)[0 if train else 1]

    def names_in(self, part: Part, num_parts: int) -> list[str]:
        """Of each image of a part that has been read."""
        front = f"{part.path.name}/" if num_parts > 1 else ""
        if part.archive is not None:
            return [f"{part.path.name}[{row}]" for row in range(len(part.archive.images))]
        return [front + name for name in self.decoded[part.path]]

    def by_class(self, names: Sequence[str]) -> np.ndarray:
        """The order in which images of these classes are read."""
        return np.array([self.classes.index(name) for name in names]).argsort(kind="stable")

    def read_val(self) -> tuple[Tensor, Tensor] | None:
        return self.read_split("val") if "val" in self.splits.parts else None

    def read_split(self, split: str) -> tuple[Tensor, Tensor]:
        each = [self.decode(part) if part.archive is None else self.unpack(part) for part in self.splits.parts[split]]
        images, labels = (one[0] if len(one) == 1 else np.concatenate(one) for one in list(zip(*each, strict=True))[:2])
        self.tell_of_classes(split, labels)
        if resized := sum(count for _, _, count in each):
            self.tell(
                f"{resized} of {len(images)} images in {self.splits.place(split)} were not {self.image_size}x"
                f"{self.image_size} and have been squeezed to that, whatever their shape (data.image_size)"
            )
        return torch.from_numpy(images), torch.from_numpy(labels)

    def tell(self, text: str) -> None:
        """Once: images are looked for, and then read."""
        if text not in self.told:
            self.told.add(text)
            log.warning(f"warning: {text}")

    def tell_of_classes(self, split: str, labels: np.ndarray) -> None:
        """Name classes without images: of a test alone, which may be of some classes, those that have a folder."""
        parts, place = self.splits.parts[split], self.splits.place(split)
        expected = (
            set(self.classes)
            if "train" in self.splits.parts
            else {name for part in parts if part.archive is None for name in part.names}
        )
        counts = np.bincount(labels, minlength=len(self.classes))
        empty = [name for name, count in zip(self.classes, counts, strict=True) if not count and name in expected]
        if empty:
            self.tell(f"no images of {named(empty)} in {place}")
        lacking = [name for name in self.classes if any(name not in (part.classes or [name]) for part in parts)]
        if lacking and len(parts) > 1:
            self.tell(f"not each of {place} has {named(lacking)}")

    def unpack(self, part: Part) -> tuple[np.ndarray, np.ndarray, int]:
        """Every image of an archive, its label, and how many were resized."""
        places = np.array([self.classes.index(name) for name in part.names])
        return part.archive.images, places[part.archive.labels], part.archive.resized

    def decode(self, part: Part) -> tuple[np.ndarray, np.ndarray, int]:
        """Every picture of a folder, its label, and how many were resized; from the cache where it is up to date."""
        folder, (files, passed_over) = part.path, part.files()
        if passed_over:
            self.tell(f"passed over in {folder}: {passed_over}")
        if not files:
            raise FileNotFoundError(f"no images. Got {folder} with none in its class folders")
        self.check_room(len(files), copies=2)  # as read, and divided
        names = [str(path.relative_to(folder)) for path, _ in files]
        stamps = [(name, *stamp) for name, stamp in zip(names, stamps_of(files), strict=True)]
        about = json.dumps([CACHE_FORMAT, self.image_size, stamps])
        fingerprint = hashlib.sha256(about.encode()).hexdigest()[:16]
        cache = folder.parent / f".cifar_resnet_{folder.name}_{self.image_size}.npz"
        cached = read_cache(cache, fingerprint)
        if cached is None:
            with alone_at(cache.with_suffix(".lock")):
                cached = read_cache(cache, fingerprint)  # another process may have been quicker
                if cached is None:
                    images, resized = self.decode_files([path for path, _ in files])
                    cached = {"images": np.stack(images), "resized": np.array(resized)}
                    write_cache(cache, fingerprint, cached)
        labels = np.array([self.classes.index(name) for _, name in files])
        order = self.by_class([name for _, name in files])
        self.decoded[folder] = [as_text(files[row][0].relative_to(folder)) for row in order]
        if (np.diff(labels) >= 0).all():
            return cached["images"].transpose(0, 3, 1, 2), labels, int(cached["resized"])
        return cached["images"][order].transpose(0, 3, 1, 2), labels[order], int(cached["resized"])

    def decode_files(self, paths: list[Path]) -> tuple[list[np.ndarray], int]:
        """Arrays of (image_size, image_size, 3), and how many images had another size."""
        return decode_all(paths, self.image_size, self.max_megapixels)


class Files(OwnImages):
    """Your own images: each split folders of <class>/…, .npz or .npy files or CIFAR-style pickles (see files.py).

    test, train: where they are, one place or a list of them; cifar-evaluate needs no train.
    val: likewise, of images to validate on; None holds out some of train's. With num_val=0 these are trained on too.
    train_labels, val_labels, test_labels: of a split that is an .npy file the file of its labels, see
        `archives.read_labels`.
    memory_map: leave .npy files where they are, and read from them batch by batch: for more than memory holds.
    """

    def __init__(
        self,
        test: Paths,
        train: Paths | None = None,
        val: Paths | None = None,
        train_labels: str | None = None,
        val_labels: str | None = None,
        test_labels: str | None = None,
        memory_map: bool = False,
        **shared: Any,
    ):
        super().__init__(**shared)
        check(Files, locals())
        refuse_if(
            memory_map and self.device not in (None, "cpu"),
            f"data.memory_map leaves images in their file. Got data.device={self.device}; leave one of them out",
        )
        self.is_mapped = memory_map
        labels = {"train": train_labels, "val": val_labels, "test": test_labels}
        labels = {split: path for split, path in labels.items() if path}
        self.open(Splits(test, train, self.image_size, val, labels, memory_map))

    def read(self, train: bool) -> tuple[Tensor, Tensor]:
        if train:
            self.splits.refuse_what_is_in_two()
        return super().read(train)


class ImageFolder(OwnImages):
    """Your own images, in root/train/<class>/… and root/test/<class>/…, in any of `pictures.FORMATS`.

    Those in root/val/<class>/… are validated on; training/, testing/, valid/ and validation/ are read as well. Where
    there is but root/<class>/…, the test images are drawn from these, by split_seed.

    num_test: how many of them: a number, or a share below 1.
    """

    def __init__(self, root: str, num_test: NumberOrShare = 0.2, **shared: Any):
        super().__init__(**shared)
        check(ImageFolder, locals())
        splits = splits_in(root, self.image_size)
        self.num_test = num_test if splits.is_drawn else None
        self.open(splits)


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


def digests(images: Tensor) -> list[bytes]:
    """Of each of (N, C, H, W) uint8."""
    return [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.cpu().numpy()]


def stamps_of(files: Sequence[tuple[Path, str]]) -> list[tuple[int, ...]]:
    """By which a change is noticed: of each size and time of change, and where that is another's as well, which file it
    is, whatever it is called by now."""
    found = [status_of(path) for path, _ in files]
    counts = Counter((each.st_size, each.st_mtime_ns) for each in found)
    return [
        (each.st_size, each.st_mtime_ns) + ((each.st_ino,) if counts[each.st_size, each.st_mtime_ns] > 1 else ())
        for each in found
    ]


def status_of(path: Path) -> os.stat_result:
    """Of the link itself where that leads nowhere, as decoding will say."""
    try:
        return path.stat()
    except OSError:
        return path.lstat()


def read_cache(path: Path, fingerprint: str) -> dict[str, np.ndarray] | None:
    try:
        with np.load(path) as arrays:
            return dict(arrays) if str(arrays["fingerprint"]) == fingerprint else None
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # none, or a damaged one
        return None


def write_cache(path: Path, fingerprint: str, arrays: dict[str, Any]) -> None:
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            np.savez(file, fingerprint=fingerprint, **arrays)
        part.replace(path)
    except OSError as error:
        log.warning(f"warning: no cache could be written, so images are decoded anew each time ({error})")
    finally:
        with contextlib.suppress(OSError):  # where nothing can be written, nothing can be taken away
            part.unlink(missing_ok=True)


class Synthetic(DataModule):
    """Ten classes of 32x32 colour images, drawn from a seed: for first runs and tests, without a download.

    Figure and ground have random colours, so that no colour gives a class away; figures have random places, sizes and
    tilts, so that no pixel does either.
    """

    classes = ["disk", "ring", "square", "frame", "triangle", "plus", "star", "bars", "checks", "dots"]  # noqa: RUF012
    num_classes, image_size = len(classes), 32

    def __init__(
        self, num_train: AtLeastTen = 10_000, num_test: AtLeastTen = 2_000, image_seed: Seed = 0, **shared: Any
    ):
        super().__init__(**shared)
        check(Synthetic, locals())
        self.num_train, self.num_test, self.image_seed = num_train, num_test, image_seed

    def known_num_images(self, train: bool) -> int:
        return self.num_train if train else self.num_test

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
