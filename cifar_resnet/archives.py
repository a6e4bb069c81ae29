"""A user's archives of images: .npz and .npy files and CIFAR-style pickles. Nothing in them is executed.

It takes no torch to import this: what is wrong with a file is said at once.
"""

import functools
import pickle
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cifar_resnet.errors import UsageError, one_line, refuse_if
from cifar_resnet.folders import class_name, natural

MAX_BYTES = 4 * 2**30  # of what an archive unpacks to
SUFFIXES = (".npz", ".npy", ".pkl", ".pickle", ".p")
IMAGES, LABELS = ("images", "data", "x"), ("labels", "fine_labels", "y")  # of an archive of one split
OF_A_SPLIT = (("x_{}", "y_{}"), ("{}_images", "{}_labels"))  # of one of all splits: Keras's names, and MedMNIST's
CLASSES, IDS = ("classes", "label_names", "fine_label_names"), ("ids", "filenames")
SPLITS = ("train", "val", "test")
ROUNDING = 1e-4  # by which pixels that somebody has resized may leave [0, 1]


@dataclass
class Images:
    """images: (N, 3, height, width) uint8; labels: (N,) int64 or None; classes: their names, where the file has them.

    ids: one for each image, where the file has them. resized: how many images had another size.
    is_of_a_split: whether the file has a name for the split that was meant.
    """

    images: np.ndarray
    labels: np.ndarray | None
    classes: list[str] | None = None
    ids: list | None = None
    resized: int = 0
    is_of_a_split: bool = False


def is_archive(path: Path) -> bool:
    """Whether a file claims to be an .npz or .npy file or a pickle; those of CIFAR itself have no suffix."""
    if path.suffix:
        return path.suffix.lower() in SUFFIXES
    try:
        if not path.is_file():  # what is read from a pipe is gone for who reads it next
            return False
        with path.open("rb") as file:
            return file.read(1) in (b"\x80", b"(", b"}")  # how pickles of a dictionary begin
    except OSError:  # whoever opens it next will say so
        return False


def read_archive(
    path: Path,
    image_size: int,
    split: str | None = None,
    labels_at: Path | None = None,
    memory_map: bool = False,
    labelled: bool = True,
) -> Images:
    """Images, and labels where there are any, of an .npz or .npy file or a CIFAR-style pickle.

    .npz: `images` (or `x`), uint8, or floats in [0, 1], of (N, H, W, 3), (N, 3, H, W) or, grey, (N, H, W) or
        (N, H, W, 1), and perhaps `labels` (or `y`), (N,) or (N, 1), and `classes`. Where it holds several splits, as
        Keras's (`x_train`, `y_train`) and MedMNIST's (`train_images`, `train_labels`) do, that which is meant.
    .npy: such images alone.
    Pickle: a dictionary with `data`, (N, 3072) uint8, and perhaps `labels` (or `fine_labels`), `label_names`, `ids`.
    split: "train", "val" or "test"; None where none is meant, which reads a test split.
    labels_at: a file of labels beside the images, see `read_labels`.
    memory_map: of an .npy file, give its images where they lie; refused where they would have to be changed.
    labelled: whether labels are wanted; else they may be anything.
    """
    readers: dict[str, Callable[[Path], dict[str, Any]]] = {
        ".npz": functools.partial(read_npz, split=split or "test", labelled=labelled),
        ".npy": functools.partial(read_npy, memory_map=memory_map),
    }
    try:
        found = readers.get(path.suffix.lower(), read_pickle)(path)
    except FileNotFoundError:
        raise
    except Exception as error:  # a damaged or hostile archive may raise anything
        raise ValueError(f"not a readable archive of images: {path} ({one_line(error)})") from error
    pairs = [[form.format(split or "test") for form in forms] for forms in OF_A_SPLIT]
    own = next((pair for pair in pairs if found.get(pair[0]) is not None), None)
    plain = next((name for name in IMAGES if found.get(name) is not None), None)
    if own and plain:
        raise UsageError(f"images twice. Got {own[0]} and {plain} in {path}; leave out those that are not meant")
    images, labels = map(found.get, own) if own else (first_of(found, *IMAGES), first_of(found, *LABELS))
    refuse_if(
        images is None,
        f"no images in {path}. Got {', '.join(found) or 'nothing'}; it needs images, or data"
        + (f", or x_{split}, or {split}_images" if split else ""),
    )
    if memory_map:
        pixels, num_resized = as_they_lie(images, image_size, path), 0
    else:
        pixels, num_resized = as_images(
            np.asarray(images), image_size, path, is_cifar=path.suffix.lower() not in readers
        )
    classes = as_texts(first_of(found, *CLASSES), "names of classes", path)
    if labels_at:
        refuse_if(labels is not None, f"labels twice. Got those in {path} and {labels_at}; leave one out")
        labels, classes = read_labels(labels_at, len(pixels))
    labels = as_labels(labels, len(pixels), labels_at or path) if labelled else None
    classes = classes and list(map(class_name, classes))
    ids = as_texts(first_of(found, *IDS), "ids", path)
    if ids is not None and len(ids) != len(pixels):
        raise UsageError(f"{len(pixels)} images, but {len(ids)} ids. Got {path}")
    return Images(pixels, labels, classes, ids, num_resized, split is not None and own is not None)


def first_of(found: dict[str, Any], *names: str) -> Any:
    return next((found[name] for name in names if found.get(name) is not None), None)


def as_texts(values: Any, what: str, path: Path) -> list[str] | None:
    values = values.tolist() if isinstance(values, np.ndarray) else values
    refuse_if(
        values is not None and not isinstance(values, (list, tuple)),
        f"{what} are a list. Got {type(values).__name__} in {path}",
    )
    return values and [text(value) for value in values]


def text(value: object) -> str:
    return value.decode(errors="replace") if isinstance(value, bytes) else str(value)


def read_npz(path: Path, split: str, labelled: bool) -> dict[str, np.ndarray | None]:
    """Its arrays by name, None for those that are of no use here, which are not read."""
    images, labels = ([forms[place].format(split) for forms in OF_A_SPLIT] for place in (0, 1))
    useful = {*IMAGES, *images, *IDS, *((*LABELS, *labels, *CLASSES) if labelled else ())}
    with zipfile.ZipFile(path) as archive:
        sizes = {info.filename.removesuffix(".npy"): info.file_size for info in archive.infolist()}
        size = sum(sizes[name] for name in sizes if name in useful)
        refuse_if(size > MAX_BYTES, f"it would unpack to {size:,} bytes, more than {MAX_BYTES:,}")
    found: dict[str, np.ndarray | None] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for name in arrays.files:
            try:
                found[name] = arrays[name] if name in useful else None
            except ValueError as error:
                raise ValueError(f"{name}: {error}") from error
    return found


def as_they_lie(array: np.ndarray, image_size: int, path: Path) -> np.ndarray:
    """(N, 3, image_size, image_size), nothing read. ValueError for what is not of that size and kind."""
    is_last = array.ndim == 4 and array.shape[3] == 3
    refuse_if(
        array.dtype != np.uint8 or array.shape[1:] not in ((image_size, image_size, 3), (3, image_size, image_size)),
        f"data.memory_map takes an .npy file of uint8, (N, {image_size}, {image_size}, 3), by data.image_size. Got "
        f"{array.dtype} {array.shape} in {path}; write it so",
    )
    return array.transpose(0, 3, 1, 2) if is_last else array


def read_npy(path: Path, memory_map: bool = False) -> dict:
    if memory_map:
        return {"images": np.load(path, mmap_mode="c", allow_pickle=False)}  # c: torch wants to be able to write
    array = np.load(path, mmap_mode="r", allow_pickle=False)  # of a file that is too large nothing is read
    refuse_if(
        array.nbytes > MAX_BYTES,
        f"{array.nbytes:,} bytes, more than {MAX_BYTES:,}; data.memory_map=true leaves it there",
    )
    return {"images": np.array(array)}


def read_labels(path: Path, num_images: int) -> tuple[np.ndarray, list[str] | None]:
    """(num_images,) int64, and the names of the classes where the file has names.

    path: an .npy file of numbers, or a text with a line for each image: a number from 0, or a name.
    """
    try:
        if path.suffix.lower() == ".npy":
            return np.load(path, allow_pickle=False), None
        lines = path.read_text("utf-8-sig").split("\n")  # Windows' editors begin with a mark
    except FileNotFoundError:
        raise
    except (OSError, ValueError, EOFError) as error:
        raise ValueError(f"not a readable file of labels: {path} ({one_line(error)})") from error
    names = [line.strip() for line in (lines[:-1] if not lines[-1].strip() else lines)]
    refuse_if("" in names, f"a line without a label. Got line {names.index('') + 1 if '' in names else 0} of {path}")
    refuse_if(
        len(names) != num_images,
        f"a text of labels has a line for each of the {num_images} images, and no other. Got {len(names)} lines in "
        f"{path}, the first {names[0] if names else ''!r}; mend it",
    )
    if all(name.isdecimal() for name in names):
        return np.array(names, dtype=np.int64), None
    classes = sorted(set(names), key=natural)
    return np.array([classes.index(name) for name in names]), classes


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


def as_images(array: np.ndarray, image_size: int, path: Path, is_cifar: bool = False) -> tuple[np.ndarray, int]:
    """(N, 3, image_size, image_size), and how many images had another size. is_cifar: in rows of three planes."""
    if is_cifar and array.ndim == 2 and array.shape[1] == 3072:
        array = array.reshape(-1, 3, 32, 32)
    refuse_if(
        array.nbytes > MAX_BYTES,
        f"{array.nbytes:,} bytes of pixels, more than {MAX_BYTES:,}. Got {path}",
    )
    planes = as_planes(from_floats(array, path), path)
    return to_size(planes, image_size), 0 if planes.shape[2:] == (image_size, image_size) else len(planes)


def from_floats(array: np.ndarray, path: Path) -> np.ndarray:
    """Floats in [0, 1] as uint8; whatever else as it is."""
    if array.dtype.kind != "f" or not array.size:
        return array
    low, high = array.min(), array.max()
    refuse_if(
        not (low >= -ROUNDING and high <= 1 + ROUNDING),
        f"pixels are whole numbers from 0 to 255, as uint8, or floats from 0 to 1. Got {array.dtype} from {low:g} to "
        f"{high:g} in {path}; scale them to that"
        if np.isfinite([low, high]).all()
        else f"pixels are numbers. Got nan or infinity in image {first_without_numbers(array)} of {path}, counted from "
        f"0; leave it out",
    )
    return np.concatenate([(batch * 255).round().clip(0, 255).astype(np.uint8) for batch in batches_of(array, 1000)])


def first_without_numbers(array: np.ndarray) -> int:
    return next(number for number, image in enumerate(array) if not np.isfinite(image).all())


def as_planes(array: np.ndarray, place: Path | str) -> np.ndarray:
    """(N, 3, H, W), nothing copied, of uint8 images in any layout that says what it is. place: where they are from.

    ValueError for other numbers, whose white nothing says, and for one picture, which might be several grey ones.
    """
    shape = array.shape
    refuse_if(
        array.dtype != np.uint8,
        f"pixels are whole numbers from 0 to 255, as uint8. Got {array.dtype} in {place}; scale them to that, and give "
        f".astype(np.uint8)",
    )
    refuse_if(
        array.ndim == 3 and (shape[2] <= 4 or shape[0] in (3, 4)),
        f"one picture, or several grey ones? Got {shape} in {place}; one is images[None], several are "
        f"images[..., None]",
    )
    refuse_if(
        array.ndim == 2,
        f"one picture, or several in rows? Got {shape} in {place}; one is images[None], rows say nothing of how their "
        f"pixels lie: reshape them to (N, H, W, 3), (N, 3, H, W) or (N, H, W)",
    )
    if array.ndim == 3:
        array = array[:, None]
    elif array.ndim == 4 and (shape[3] == 3 or (shape[3] == 1 and shape[1] != 3)):
        array = array.transpose(0, 3, 1, 2)
    refuse_if(0 in shape, f"there are no images. Got {shape} in {place}; give at least one")
    refuse_if(
        array.ndim != 4 or array.shape[1] not in (1, 3),
        f"images are (N, H, W, 3), (N, 3, H, W), or grey (N, H, W). Got {shape} in {place}",
    )
    return array if array.shape[1] == 3 else np.broadcast_to(array, (len(array), 3, *array.shape[2:]))


def to_size(planes: np.ndarray, image_size: int, batch_size: int = 500) -> np.ndarray:
    """(N, 3, image_size, image_size), a batch at a time. planes: (N, 3, H, W) uint8."""
    if planes.shape[2:] == (image_size, image_size):
        return np.require(planes, requirements=["C", "W"])
    import torch
    from torchvision.transforms.v2.functional import resize

    batches = (torch.from_numpy(np.require(batch, requirements=["C", "W"])) for batch in batches_of(planes, batch_size))
    return torch.cat([resize(batch, [image_size, image_size], antialias=True) for batch in batches]).numpy()


def batches_of(array: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    return (array[start : start + batch_size] for start in range(0, len(array), batch_size))


def as_labels(labels: object, num_images: int, path: Path) -> np.ndarray | None:
    if labels is None:
        return None
    array = np.asarray(labels)
    array = array[:, 0] if array.shape == (num_images, 1) else array
    refuse_if(
        array.shape != (num_images,) or array.dtype.kind not in "iu",
        f"labels are whole numbers from 0, one for each of the {num_images} images. "
        f"Got {array.dtype} {array.shape} in {path}",
    )
    refuse_if(
        num_images and array.min() < 0,
        f"labels are whole numbers from 0. Got {array.min() if num_images else 0} in {path}; number the classes from 0",
    )
    return array.astype(np.int64)
