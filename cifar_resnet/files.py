"""Data sets in files: CIFAR as published, and a user's own, of which each split is folders of pictures or archives.

It takes no torch to import this: what is wrong with a file is said at once.
"""

import functools
import hashlib
import itertools
import socket
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from cifar_resnet.archives import Images, is_archive, read_archive
from cifar_resnet.constraints import CORRUPTIONS
from cifar_resnet.errors import UsageError, refuse_if
from cifar_resnet.folders import Listing, classes_in, files_in, named, natural

FOLDERS = {"train": ("train", "training"), "test": ("test", "testing"), "val": ("val", "valid", "validation")}
PLAIN = ("train", "test", "val", "valid")  # of these those that mean splits whatever is beside them
MAX_CLASSES = 100_000  # that a file without names for them may have


@dataclass(frozen=True)
class Published:
    """A data set as its author published it, known by the MD5s of its archive and of the files in that."""

    name: str
    url: str
    md5: str
    folder: str
    files: dict[str, str]

    def is_in(self, root: Path) -> bool:
        return all(md5_of(root / self.folder / name) == md5 for name, md5 in self.files.items())

    @property
    def archive(self) -> str:
        return self.url.rpartition("/")[2]

    def check(self, root: str) -> None:
        """FileNotFoundError where it is not there, and not to be had either."""
        path = Path(root).expanduser()
        is_there = self.is_in(path) or md5_of(path / self.archive) == self.md5
        if not is_there and (reason := no_network(self.url)):
            raise FileNotFoundError(self.missing(path, reason))

    def missing(self, root: Path, reason: Exception) -> str:
        others = [
            name
            for name, md5 in self.files.items()
            if (path := root / self.folder / name).exists() and md5_of(path) != md5
        ]
        what = f"is damaged in {root} ({', '.join(others)})" if others else f"is not in {root}"
        if (root / self.archive).exists() and not others:
            what += f" (where {self.archive} has another MD5: it was cut short, or unpack what others packed)"
        return (
            f"{self.name} {what} and could not be downloaded ({reason}). {self.as_it_is(root)}Put the folder "
            f"{self.folder} or the archive {self.archive} (MD5 {self.md5}) there, or give another folder: data.root=… "
            f"or CIFAR_RESNET_DATA=…"
        )

    def as_it_is(self, root: Path) -> str:
        """How to train on a copy that somebody else packed; empty where it cannot be read."""
        splits: dict[bool, list[str]] = {True: [], False: []}
        try:
            for name in sorted(self.files, key=natural):
                if not name.endswith("meta"):
                    path = root / self.folder / name
                    refuse_if(read_archive(path, 32).labels is None, "no labels")
                    splits["test" in name].append(str(path))
        except (ValueError, OSError):
            return ""
        train, test = ",".join(splits[False]), ",".join(splits[True])
        return f'If another packed it, it is read as it is: data=files "data.train=[{train}]" data.test={test}. '


PUBLISHED = {
    "CIFAR10": Published(
        name="CIFAR10",
        url="https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        md5="c58f30108f718f92721af3b95e74349a",
        folder="cifar-10-batches-py",
        files={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
            "test_batch": "40351d587109b95175f43aff81a1287e",
            "batches.meta": "5ff9c542aee3614f3951f8cda6e48888",
        },
    ),
    "CIFAR100": Published(
        name="CIFAR100",
        url="https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        md5="eb9058c3a382ffc7106e4002c42a8d85",
        folder="cifar-100-python",
        files={
            "train": "16019d7e3df5f24257cddd939b257f8d",
            "test": "f0ef6b0ae62326f3e7ffdfab6717acfc",
            "meta": "7973b15100ade9c7d40fb424638fde48",
        },
    ),
}


@dataclass(frozen=True)
class Unpacked:
    """A set to test on, in files that nobody's program downloads.

    folders: in which of root's they may lie, root itself being one of them. home: where they are published.
    files: their names, by the settings of `data`.
    """

    name: str
    folders: tuple[str, ...]
    home: str
    files: Callable[[Mapping[str, Any]], list[str]]

    def place_in(self, root: Path, names: Sequence[str]) -> Path:
        """The folder with these files; FileNotFoundError where one is missing."""
        places = [root / folder for folder in (*self.folders, "")]
        place = max(places, key=lambda folder: sum((folder / name).is_file() for name in names))
        if lacking := next((name for name in names if not (place / name).is_file()), None):
            raise FileNotFoundError(
                f"{self.name} is not in {root}. Got no {lacking} there, nor in {root / self.folders[0]}; put "
                f"{self.home} there, or give another folder: data.root=…"
            )
        return place


UNPACKED = {
    "CIFAR10C": Unpacked(
        "CIFAR-10-C",
        ("CIFAR-10-C",),
        "CIFAR-10-C.tar, unpacked, from Zenodo, record 2535967,",
        lambda data: [*(f"{name}.npy" for name in data["corruptions"] or CORRUPTIONS), "labels.npy"],
    ),
    "CIFAR101": Unpacked(
        "CIFAR-10.1",
        ("CIFAR-10.1", "CIFAR-10.1/datasets"),
        "datasets/ of github.com/modestyachts/CIFAR-10.1",
        lambda data: [f"cifar10.1_{data['version']}_{what}.npy" for what in ("data", "labels")],
    ),
    "CIFAR10H": Unpacked(
        "CIFAR-10H",
        ("cifar-10h", "cifar-10h/data"),
        "data/ of github.com/jcpeterson/cifar-10h",
        lambda data: ["cifar10h-probs.npy"],
    ),
}


def md5_of(path: Path) -> str | None:
    """None where there is no file that can be read."""
    try:
        stamp = path.stat()
        return md5_of_stamped(path, stamp.st_size, stamp.st_mtime_ns) if path.is_file() else None
    except OSError:
        return None


@functools.lru_cache
def md5_of_stamped(path: Path, size: int, mtime_ns: int) -> str:
    """Read once for the command line's check and for the data module's."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def no_network(url: str) -> Exception | None:
    """What there is no point in trying again for, if that shows within seconds; None where a download may work."""
    import http.client
    import urllib.request

    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=3).close()
    except (OSError, http.client.HTTPException) as error:
        return error if is_final(error) else None
    return None


def is_final(error: Exception) -> bool:
    """Whether a download failed as there is no network at all, rather than for now."""
    return isinstance(getattr(error, "reason", None), socket.gaierror)


@dataclass
class Part:
    """A folder of <class>/…, or an archive.

    classes: names, those of a folder 10 after 9; None where an archive has labels without names. archive: None for a
    folder. beside: what lies in a folder beside its classes. folders: of each class the name of its folder.
    """

    path: Path
    classes: list[str] | None
    archive: Images | None = None
    beside: Listing = field(default_factory=Listing)
    folders: dict[str, str] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """By label."""
        if self.classes is None:
            return [str(label) for label in range(int(self.archive.labels.max()) + 1)]
        return self.classes

    def files(self) -> tuple[list[tuple[Path, str]], str]:
        """Of a folder: every file with its class, class by class, and in words what was passed over."""
        found, passed_over = [], Listing(hidden=self.beside.hidden, circles=[*self.beside.circles])
        for name in self.names:
            inside = files_in(self.path / self.folders[name]).without_documents()
            found += [(path, name) for path in sorted(inside.files, key=lambda path: path.parts)]
            passed_over.hidden += inside.hidden
            passed_over.circles += inside.circles
            passed_over.documents += sorted(inside.documents)
        outside = f"files in no class's folder ({len(self.beside.files):,})" if self.beside.files else ""
        return found, ", ".join(filter(None, [passed_over.in_words(), outside]))


@dataclass
class ListedPart(Part):
    """Pictures, all of them somewhere in the folder, whose classes a list says. listed: every file with its class."""

    listed: list[tuple[Path, str]] = field(default_factory=list)

    def files(self) -> tuple[list[tuple[Path, str]], str]:
        return self.listed, ""


def part_at(path: Path, split: str, image_size: int, labels_at: Path | None = None, memory_map: bool = False) -> Part:
    """The part that lies there. split: which it is of, by the setting's name. labels_at, memory_map: of an .npy."""
    setting = f"data.{split}"
    refuse_if(
        memory_map and path.suffix.lower() != ".npy",
        f"data.memory_map is for .npy files. Got {setting}={path}; write it as one, or leave that out",
    )
    refuse_if(
        labels_at and path.suffix.lower() != ".npy",
        f"{setting}_labels are for an .npy file of images. Got {path}, which has its own; leave that out",
    )
    if path.is_dir():
        folders, beside = classes_in(path)
        refuse_if(
            not folders,
            f"{setting} must hold a folder of pictures for each class, <class>/…. Got {path}, which holds no folder; "
            f"for pictures without classes there is cifar-predict",
        )
        return Part(path, list(folders), beside=beside, folders=folders)
    if not (path.is_file() and is_archive(path)):
        raise FileNotFoundError(
            f"{setting} must be a folder of <class>/…, an .npz or .npy file, a CIFAR-style pickle, or a list of these. "
            f"Got {path}, which is {'none of these' if path.exists() else 'not there'}"
        )
    archive = read_archive(path, image_size, split, labels_at, memory_map)
    refuse_if(
        archive.labels is None,
        f"images without labels. Got {path}; "
        + (f"give {setting}_labels" if path.suffix.lower() == ".npy" else "for those there is cifar-predict"),
    )
    refuse_if(
        archive.classes is None and archive.labels.max() >= MAX_CLASSES,
        f"labels count the classes from 0. Got one of {archive.labels.max()} in {path}",
    )
    if archive.classes is not None:
        refuse_unless_from_zero(archive.labels, path, len(archive.classes))
        refuse_if(
            len(set(archive.classes)) < len(archive.classes),
            f"two classes of one name. Got {named(map(repr, archive.classes))} in {path}",
        )
    return Part(path, archive.classes, archive)


class Splits:
    """Where the splits of a data set are, and the names of their classes.

    test, train, val: each a folder of <class>/…, an archive, or a list of these; train and val may be None.
    image_size: side in pixels of what the network sees.
    labels: of a split that is an .npy file the file of its labels.
    memory_map: leave .npy files where they are.
    is_drawn: whether test images are drawn from those of train, so that both are in one place.
    """

    is_drawn = False

    def __init__(
        self,
        test: str | Sequence[str],
        train: str | Sequence[str] | None = None,
        image_size: int = 32,
        val: str | Sequence[str] | None = None,
        labels: Mapping[str, str] = MappingProxyType({}),
        memory_map: bool = False,
        is_drawn: bool = False,
    ):
        given = {split: paths for split, paths in {"train": train, "val": val, "test": test}.items() if paths}
        for split, path in labels.items():
            refuse_if(
                split not in given, f"labels of no images. Got data.{split}_labels={path}; give data.{split} as well"
            )
            refuse_if(
                not isinstance(given[split], str),
                f"data.{split}_labels are those of one file. Got {len(given[split])} in data.{split}; give one",
            )
            if not Path(path).expanduser().is_file():
                raise FileNotFoundError(f"data.{split}_labels is a file of labels. Got {path}, which is not there")
        paths = {split: [each] if isinstance(each, str) else list(each) for split, each in given.items()}
        refuse_if(
            memory_map and any(len(listed) > 1 for listed in paths.values()),
            "data.memory_map leaves each split in one file. Got several; join them",
        )
        refuse_if(memory_map and val, f"data.memory_map holds out some of train's. Got data.val={val}; leave that out")
        for split, listed in paths.items():
            places = [Path(path).expanduser().resolve() for path in listed]
            twice = [path for number, path in enumerate(listed) if places[number] in places[:number]]
            refuse_if(twice, f"data.{split} names a place twice. Got {named(twice)}; leave out one of them")
        self.parts = {
            split: [
                part_at(
                    Path(path).expanduser(),
                    split,
                    image_size,
                    Path(labels[split]).expanduser() if split in labels else None,
                    memory_map,
                )
                for path in listed
            ]
            for split, listed in paths.items()
        }
        split, self.is_drawn = "train" if train else "test", is_drawn
        self.classes = self.names(split)
        refuse_if(
            split == "train" and len(self.classes) < 2,
            f"a classifier needs two classes or more. Got {len(self.classes)} in {self.place(split)}",
        )
        for each, parts in self.parts.items():
            self.refuse_labels_from_one(each, parts)
        for other in [other for other in ("test", "val") if train and other in self.parts]:
            unknown = sorted(set(self.names(other)) - set(self.classes), key=natural)
            refuse_if(
                unknown,
                f"{other} has classes that train lacks. Got {named(map(repr, unknown))} in {self.place(other)}; train "
                f"has {named(map(repr, self.classes))}",
            )

    def refuse_what_is_in_two(self) -> None:
        """For whoever trains: what is trained on is none to test or to choose with. An archive may hold several splits
        by name."""
        for one, other in itertools.combinations([] if self.is_drawn else self.parts, 2):
            for part, again in itertools.product(self.parts[one], self.parts[other]):
                is_named = part.archive is not None and part.archive.is_of_a_split
                refuse_if(
                    part.path.resolve() == again.path.resolve() and not is_named,
                    f"data.{one} and data.{other} are of other images each. Got {part.path} for both; "
                    f"data=image_folder divides a folder, data.num_val holds out some of train's",
                )

    @classmethod
    def listed(cls, parts: Mapping[str, ListedPart]) -> "Splits":
        """Those of lists, by split."""
        self = cls.__new__(cls)
        self.parts = {split: [part] for split, part in parts.items()}
        self.classes = self.names("train")
        return self

    def refuse_labels_from_one(self, split: str, parts: list[Part]) -> None:
        """Of labels without names: a test split may lack some classes, a train split hardly just the first."""
        unnamed = [part for part in parts if part.classes is None]
        for labels, path in [(part.archive.labels, part.path) for part in unnamed if part.archive.labels.min() == 1]:
            is_alone = split == "train" and len(parts) == 1
            refuse_if(
                is_alone or ("train" in self.parts and split == "test" and labels.max() == len(self.classes)),
                f"labels count the classes from 0. Got 1 to {labels.max()} in {path}; take 1 from each",
            )

    def place(self, split: str) -> str:
        return named(part.path for part in self.parts[split])

    def names(self, split: str) -> list[str]:
        """The classes of a split, each once: as its first part has them if that has all, or else 10 after 9."""
        parts = self.parts[split]
        unnamed = [part.path for part in parts if part.classes is None]
        names = dict.fromkeys(itertools.chain.from_iterable(part.names for part in parts))
        refuse_if(
            unnamed and not are_numbers(names),
            f"labels without names of classes beside classes with names. Got {named(unnamed)} in data.{split}; give "
            f"them classes",
        )
        return parts[0].names if len(parts[0].names) == len(names) else sorted(names, key=natural)


def are_numbers(classes: Iterable[str]) -> bool:
    return all(name.isdecimal() for name in classes)


def numbers_of(classes: Sequence[str]) -> list[int]:
    """What files of labels call classes: their own numbers, where all are numbers, or else their places, from 0."""
    numbers = list(map(int, classes)) if are_numbers(classes) else []
    return numbers if len(set(numbers)) == len(classes) else list(range(len(classes)))


def refuse_unless_from_zero(labels: np.ndarray, path: Path, num_classes: int) -> None:
    low, high = int(labels.min()), int(labels.max())
    refuse_if(
        high >= num_classes,
        f"labels count the classes from 0. Got {low} to {high} in {path}, for {num_classes} classes"
        + "; take 1 from each" * (low == 1 and high == num_classes),
    )


def splits_in(root: str, image_size: int) -> Splits:
    """See `folders_of`."""
    found = folders_of(root)
    return Splits(found["test"], found["train"], image_size, found.get("val"), is_drawn=found["train"] == found["test"])


def folders_of(root: str) -> dict[str, str]:
    """The splits in a folder: train/<class>/…, test/<class>/… and perhaps val/…, under any of the names in `FOLDERS`,
    with capitals or without; or <class>/… alone, for both splits to be drawn from."""
    place = Path(root).expanduser()
    names = sorted(path.name for path in place.iterdir() if path.is_dir()) if place.is_dir() else []
    there = {split: [name for name in names if name.casefold() in each] for split, each in FOLDERS.items()}
    if not (there["train"] and there["test"]) and len(names) > sum(map(len, there.values())):  # classes, a Train one of
        there = {split: [name for name in found if name in PLAIN] for split, found in there.items()}
    several = next((found for found in there.values() if len(found) > 1), None)
    if several:
        raise UsageError(f"one split twice. Got {root} with {named(several)}; join them")
    folders = {split: next(iter(found), None) for split, found in there.items()}
    if place.is_dir() and not any(folders.values()):
        return {"train": root, "test": root}
    for split in ("train", "test"):
        if folders[split] is None:
            raise FileNotFoundError(
                f"data.root must hold train/<class>/… and test/<class>/…, or <class>/… alone. Got {root}, "
                f"{f'without {split}/' if place.is_dir() else 'which is not there'}"
            )
    return {split: str(Path(root, folder)) for split, folder in folders.items() if folder}
