"""Data sets in files: CIFAR as published, and a user's own pictures, .npz archives and CIFAR-style pickles.

Nothing in them is executed. It takes no torch to import this: what is wrong with a file is said at once.
"""

import functools
import hashlib
import pickle
import socket
import unicodedata
import zipfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from cifar_resnet.errors import one_line, refuse_if

MAX_PIXELS = 100_000_000  # of one picture; what claims more is taken for a decompression bomb
MAX_BYTES = 4 * 2**30  # of what an archive unpacks to
# not those that PIL hands to another program, such as EPS to Ghostscript
FORMATS = ("AVIF", "BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "PPM", "TGA", "TIFF", "WEBP")
ARCHIVE_SUFFIXES = (".npz", ".pkl", ".pickle", ".p")
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
        damaged = [
            name
            for name, md5 in self.files.items()
            if (path := root / self.folder / name).exists() and md5_of(path) != md5
        ]
        what = f"is damaged in {root} ({', '.join(damaged)})" if damaged else f"is not in {root}"
        return (
            f"{self.name} {what} and could not be downloaded ({reason}). Put the folder {self.folder} or the archive "
            f"{self.archive} (MD5 {self.md5}) there, or give another folder: data.root=… or CIFAR_RESNET_DATA=…"
        )


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
class Images:
    """images: (N, 3, height, width) uint8; labels: (N,) int64 or None; classes: their names, where the file has them.

    ids: one for each image, where the file has them. resized: how many images had another size.
    """

    images: np.ndarray
    labels: np.ndarray | None
    classes: list[str] | None = None
    ids: list | None = None
    resized: int = 0


class Halves:
    """Where the two halves of a data set are, and the names of their classes.

    test, train: each a folder of <class>/…, or an archive; train may be None.
    image_size: side in pixels of what the network sees.
    """

    def __init__(self, test: str, train: str | None = None, image_size: int = 32):
        self.paths = {half: Path(path).expanduser() for half, path in {"train": train, "test": test}.items() if path}
        for half, path in self.paths.items():
            if not path.is_dir() and not (path.is_file() and is_archive(path)):
                raise FileNotFoundError(
                    f"data.{half} must be a folder of <class>/…, an .npz archive or a CIFAR-style pickle. "
                    f"Got {path}, which is {'none of these' if path.exists() else 'not there'}"
                )
        self.archives = {half: read_archive(path, image_size) for half, path in self.paths.items() if path.is_file()}
        self.folders = {half: class_folders(path, half) for half, path in self.paths.items() if path.is_dir()}
        half = "train" if train else "test"
        self.classes = self.names(half)
        refuse_if(
            len(self.classes) < 2,
            f"a classifier needs two classes or more. Got {len(self.classes)} in {self.paths[half]}",
        )
        unknown = sorted(set(self.names("test")) - set(self.classes)) if train else []
        refuse_if(
            unknown,
            f"test has classes that train lacks. Got {named(unknown)} in {self.paths['test']}; train has "
            f"{named(self.classes)}",
        )

    def names(self, half: str) -> list[str]:
        path, archive = self.paths[half], self.archives.get(half)
        if archive is None:
            return sorted(self.folders[half])
        refuse_if(
            archive.labels is None,
            f"images without labels. Got {path}; for those there is cifar-predict",
        )
        low, high = int(archive.labels.min()), int(archive.labels.max())
        # of a test half without names some classes may be missing, of a train half hardly just the first
        known = len(archive.classes) if archive.classes else len(self.classes) if hasattr(self, "classes") else None
        limit = MAX_CLASSES if known is None else known
        from_one = low == 1 and (high == known or (half == "train" and archive.classes is None))
        refuse_if(
            from_one or (high >= limit and (archive.classes or known is None)),
            f"labels count the classes from 0. Got {low} to {high} in {path}"
            + (f", for {known} classes" if known else "")
            + "; take 1 from each" * from_one,
        )
        if archive.classes is None:
            return [str(label) for label in range(high + 1)]
        refuse_if(
            len(set(archive.classes)) < len(archive.classes),
            f"two classes of one name. Got {named(archive.classes)} in {path}",
        )
        return archive.classes


def class_folders(path: Path, half: str) -> dict[str, Path]:
    """The folder of each class, by the class's name."""
    found = [folder for folder in path.iterdir() if folder.is_dir() and folder.name[0] != "."]
    refuse_if(
        not found,
        f"data.{half} must hold a folder of pictures for each class, <class>/…. Got {path}, which holds no folder; "
        f"for pictures without classes there is cifar-predict",
    )
    folders = {class_name(folder.name): folder for folder in found}
    refuse_if(len(folders) < len(found), f"two classes of one name. Got {named(f.name for f in found)} in {path}")
    return folders


def class_name(name: str) -> str:
    """In one form, for file systems and archives write an accent as a letter of its own or not (Unicode's NFC)."""
    return unicodedata.normalize("NFC", name)


def named(names: Iterable[str]) -> str:
    """The first of these names, in quotes, so that blanks show."""
    names = list(names)
    return ", ".join(map(repr, names[:10])) + ", …" * (len(names) > 10)


def folders_of(root: str) -> dict[str, str]:
    """The halves of root/train/<class>/… and root/test/<class>/…."""
    halves = {half: str(Path(root, half)) for half in ("train", "test")}
    for half, path in halves.items():
        if not Path(path).expanduser().is_dir():
            raise FileNotFoundError(
                f"data.root must hold train/<class>/… and test/<class>/…. Got {root}, without {half}/"
            )
    return halves


def decode(path: Path, image_size: int) -> tuple[np.ndarray, bool]:
    """One picture as (image_size, image_size, 3) uint8, and whether it had another size and was squeezed.

    Turned upright as its camera noted, transparent parts on white, 16-bit grey levels scaled to 8 bits; of an animation
    the first frame.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            width, height = image.size
            refuse_if(
                width * height > MAX_PIXELS,
                f"{width} x {height} pixels, more than {MAX_PIXELS:,}",
            )
            image.draft("RGB", (2 * image_size, 2 * image_size))  # a large JPEG need not be decoded whole
            image = as_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # a damaged file may raise anything in one of the decoders
        raise ValueError(f"not a readable image: {path} ({one_line(error)}); mend it or take it away") from error
    is_other_size = (width, height) != (image_size, image_size)
    if is_other_size:
        image = image.resize((image_size, image_size), Image.Resampling.BILINEAR, reducing_gap=3)
    return np.asarray(image), is_other_size


def as_rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # PIL would clip 16-bit levels at 255
        levels = np.asarray(image).astype(np.int64)
        image = Image.fromarray((levels.clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image.convert("RGBA"))
    return image.convert("RGB")


def is_archive(path: Path) -> bool:
    """Whether a file claims to be an .npz archive or a pickle; those of CIFAR itself have no suffix."""
    if path.suffix:
        return path.suffix.lower() in ARCHIVE_SUFFIXES
    try:
        with path.open("rb") as file:
            return file.read(1) in (b"\x80", b"(", b"}")  # how pickles of a dictionary begin
    except OSError:  # whoever opens it next will say so
        return False


def read_archive(path: Path, image_size: int) -> Images:
    """Images, and labels where there are any, of an .npz archive or a CIFAR-style pickle.

    .npz: `images`, uint8 of (N, H, W, 3), (N, 3, H, W) or (N, H, W), and perhaps `labels` and `classes`.
    Pickle: a dictionary with `data`, (N, 3072) uint8, and perhaps `labels` (or `fine_labels`), `label_names`, `ids`.
    """
    try:
        found = read_npz(path) if path.suffix.lower() == ".npz" else read_pickle(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # as above: a damaged or hostile archive may raise anything
        raise ValueError(f"not a readable archive of images: {path} ({one_line(error)})") from error
    images = first_of(found, "images", "data")
    refuse_if(
        images is None,
        f"no images in {path}. Got {', '.join(found) or 'nothing'}; it needs images, or data",
    )
    pixels, num_resized = as_images(np.asarray(images), image_size, path)
    labels = as_labels(first_of(found, "labels", "fine_labels"), len(pixels), path)
    classes = as_texts(first_of(found, "classes", "label_names", "fine_label_names"), "names of classes", path)
    classes = classes and list(map(class_name, classes))
    ids = as_texts(first_of(found, "ids", "filenames"), "ids", path)
    refuse_if(
        ids is not None and len(ids) != len(pixels),
        f"{len(pixels)} images, but {len(ids or ())} ids. Got {path}",
    )
    return Images(pixels, labels, classes, ids, num_resized)


def first_of(found: dict, *names: str) -> object:
    value = next((found[name] for name in names if found.get(name) is not None), None)
    return value.tolist() if isinstance(value, np.ndarray) and names[0] not in ("images", "labels") else value


def as_texts(values: object, what: str, path: Path) -> list[str] | None:
    refuse_if(
        values is not None and not isinstance(values, (list, tuple)),
        f"{what} are a list. Got {type(values).__name__} in {path}",
    )
    return values and [text(value) for value in values]


def text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def read_npz(path: Path) -> dict:
    with zipfile.ZipFile(path) as archive:
        refuse_if(
            (size := sum(info.file_size for info in archive.infolist())) > MAX_BYTES,
            f"it would unpack to {size:,} bytes, more than {MAX_BYTES:,}",
        )
    with np.load(path, allow_pickle=False) as arrays:
        return {name: arrays[name] for name in arrays.files}


class PlainUnpickler(pickle._Unpickler):
    """Builds dictionaries, lists, numbers, text and NumPy arrays, and refuses to look up anything else.

    In pure Python: the one in C takes as much memory as a number in the file tells it to (its memo is an array).
    """

    KNOWN = {  # noqa: RUF012
        *(
            (f"{core}.multiarray", name)
            for core in ("numpy.core", "numpy._core")
            for name in ("_reconstruct", "scalar")
        ),
        *((f"{core}.numeric", "_frombuffer") for core in ("numpy.core", "numpy._core")),
        ("numpy", "ndarray"),
        ("numpy", "dtype"),
        ("_codecs", "encode"),
    }

    def find_class(self, module: str, name: str) -> Callable:
        if (module, name) not in self.KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and only plain data is read")
        return super().find_class(module, name)


def read_pickle(path: Path) -> dict:
    with path.open("rb") as file:
        found = PlainUnpickler(file, encoding="bytes").load()
    refuse_if(
        not isinstance(found, dict),
        f"it holds a {type(found).__name__}, not a dictionary",
    )
    return {text(name): value for name, value in found.items()}


def as_images(array: np.ndarray, image_size: int, path: Path | str) -> tuple[np.ndarray, int]:
    """(N, 3, image_size, image_size), and how many images had another size."""
    refuse_if(
        array.dtype != np.uint8,
        f"pixels are whole numbers from 0 to 255, as uint8. Got {array.dtype} in {path}",
    )
    refuse_if(
        array.nbytes > MAX_BYTES,
        f"{array.nbytes:,} bytes of pixels, more than {MAX_BYTES:,}. Got {path}",
    )
    if array.ndim == 2 and array.shape[1] == 3072:  # CIFAR's own: red, green and blue planes
        array = array.reshape(-1, 3, 32, 32)
    elif array.ndim == 3:
        array = np.broadcast_to(array[:, None], (len(array), 3, *array.shape[1:]))
    elif array.ndim == 4 and array.shape[3] == 3:
        array = array.transpose(0, 3, 1, 2)
    refuse_if(
        array.ndim != 4 or array.shape[1] != 3 or 0 in array.shape,
        f"images are (N, H, W, 3), (N, 3, H, W), (N, H, W) or (N, 3072). Got {array.shape} in {path}",
    )
    array = np.ascontiguousarray(array)
    return (array, 0) if array.shape[2:] == (image_size, image_size) else (resized(array, image_size), len(array))


def resized(images: np.ndarray, image_size: int) -> np.ndarray:
    import torch
    from torchvision.transforms.v2.functional import resize

    return resize(torch.from_numpy(images), [image_size, image_size], antialias=True).numpy()


def as_labels(labels: object, num_images: int, path: Path) -> np.ndarray | None:
    if labels is None:
        return None
    array = np.asarray(labels)
    refuse_if(
        array.shape != (num_images,) or array.dtype.kind not in "iu" or array.min() < 0,
        f"labels are whole numbers from 0, one for each of the {num_images} images. "
        f"Got {array.dtype} {array.shape} in {path}",
    )
    return array.astype(np.int64)
