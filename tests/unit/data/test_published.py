"""Data sets as published, each from small files of its format, made here."""

import csv
import hashlib
import pickle
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, record_of
from hydra.errors import InstantiationException
from PIL import Image
from torchvision import datasets

from cifar_resnet import cli
from cifar_resnet.compose import Composer
from cifar_resnet.data import CIFAR100, DataModule
from cifar_resnet.files import PUBLISHED, Published
from cifar_resnet.instantiation import instantiate

RANDOM = np.random.default_rng(0)
SMALL = ("data.num_val=10", "data.batch_size=20", *(text for text in TINY if not text.startswith("data")))


def pixels(count: int, *shape: int) -> np.ndarray:
    """Each image of one level, by which a test knows it: its number."""
    return np.broadcast_to(np.arange(count, dtype=np.uint8).reshape(-1, *[1] * len(shape)), (count, *shape)).copy()


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_idx(path: Path, array: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = struct.pack(f">HBB{array.ndim}I", 0, 8, array.ndim, *array.shape)
    path.write_bytes(head + array.astype(np.uint8).tobytes())


def mnist(root: Path, monkeypatch: pytest.MonkeyPatch, name: str = "MNIST") -> None:
    for half, count in (("train", 60), ("t10k", 20)):
        write_idx(root / name / "raw" / f"{half}-images-idx3-ubyte", pixels(count, 28, 28))
        write_idx(root / name / "raw" / f"{half}-labels-idx1-ubyte", np.arange(count) % 10)


def fashion_mnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mnist(root, monkeypatch, "FashionMNIST")


def svhn(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scipy_io = pytest.importorskip("scipy.io")
    root.mkdir(exist_ok=True)
    known = {}
    for half, count in (("train", 60), ("test", 20)):
        path = root / f"{half}_32x32.mat"
        labels = np.where(np.arange(count) % 10 == 0, 10, np.arange(count) % 10)[:, None]  # ten stands for 0
        scipy_io.savemat(path, {"X": pixels(count, 32, 32, 3).transpose(1, 2, 3, 0), "y": labels})
        known[half] = [f"http://127.0.0.1:9/{path.name}", path.name, md5(path)]
    monkeypatch.setattr(datasets.SVHN, "split_list", known)


def stl10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "stl10_binary"
    folder.mkdir(parents=True)
    for half, count in (("train", 60), ("test", 20), ("unlabeled", 1)):
        pixels(count, 3, 96, 96).tofile(folder / f"{half}_X.bin")
        (np.arange(count) % 10 + 1).astype(np.uint8).tofile(folder / f"{half}_y.bin")
    (folder / "class_names.txt").write_text("\n".join("abcdefghij") + "\n")
    known = {path.name: [path.name, md5(path)] for path in folder.iterdir()}
    monkeypatch.setattr(
        datasets.STL10, "train_list", [known[f"{n}.bin"] for n in ("train_X", "train_y", "unlabeled_X")]
    )
    monkeypatch.setattr(datasets.STL10, "test_list", [known["test_X.bin"], known["test_y.bin"]])


def cifar100(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for half, count in (("train", 100), ("test", 100)):
        content = {"data": pixels(count, 3072), "fine_labels": list(range(100)), "coarse_labels": [*range(20)] * 5}
        (folder / half).write_bytes(pickle.dumps(content))
    names = {"fine_label_names": [f"fine{n}" for n in range(100)],
             "coarse_label_names": [f"coarse{n}" for n in range(20)]}  # fmt: skip
    names = {name: [text.encode() for text in value] for name, value in names.items()}
    (folder / "meta").write_bytes(pickle.dumps({k.encode(): v for k, v in names.items()}))
    known = {path.name: md5(path) for path in folder.iterdir()}
    published = Published("CIFAR100", "http://127.0.0.1:9/cifar-100-python.tar.gz", "0" * 32, folder.name, known)
    monkeypatch.setattr(CIFAR100, "published", published)
    monkeypatch.setitem(PUBLISHED, "CIFAR100", published)
    monkeypatch.setattr(datasets.CIFAR100, "train_list", [["train", known["train"]]])
    monkeypatch.setattr(datasets.CIFAR100, "test_list", [["test", known["test"]]])
    meta = {"filename": "meta", "key": b"fine_label_names", "md5": known["meta"]}
    monkeypatch.setattr(datasets.CIFAR100, "meta", meta)


def tiny_imagenet(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, wnids = root / "tiny-imagenet-200", ["n01", "n02", "n03", "n04"]
    rows = []
    for place, wnid in enumerate(wnids):
        images = folder / "train" / wnid / "images"
        images.mkdir(parents=True)
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text("no picture")
        for number in range(15):
            Image.new("RGB", (64, 64), (10 * place, 0, number)).save(images / f"{wnid}_{number}.JPEG")
        rows += [(f"val_{5 * place + number}.JPEG", wnid) for number in range(5)]
    (folder / "val" / "images").mkdir(parents=True)
    for name, wnid in rows:
        Image.new("L", (64, 64), 10 * wnids.index(wnid)).save(folder / "val" / "images" / name)
    (folder / "val" / "val_annotations.txt").write_text(
        "".join(f"{name}\t{wnid}\t0\t0\t63\t63\n" for name, wnid in rows)
    )
    (folder / "wnids.txt").write_text("\n".join(wnids))
    (folder / "words.txt").write_text("n00\tnothing\n\nn02\tgoldfish, Carassius auratus\n")


def kaggle_cifar10(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "train").mkdir(parents=True)
    rows = [(number, ["frog", "truck", "deer"][number % 3]) for number in range(1, 91)]
    for number, _ in rows:
        Image.new("RGB", (32, 32), (number, number, number)).save(root / "train" / f"{number}.png")
    with (root / "trainLabels.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("id", "label"), *rows])


def medmnist(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrays = {}
    for half, count in (("train", 60), ("val", 15), ("test", 20)):
        arrays[f"{half}_images"] = pixels(count, 28, 28)
        arrays[f"{half}_labels"] = (np.arange(count) % 3)[:, None]
    np.savez(root, **arrays)


# each: what writes it, where it lies, classes, trained and validated on, tested on, and what its first settings are
CASES: dict[str, tuple[Callable, str, int, int, int, int]] = {
    "mnist": (mnist, "data", 10, 50, 20, 28),
    "fashion_mnist": (fashion_mnist, "data", 10, 50, 20, 28),
    "svhn": (svhn, "data", 10, 50, 20, 32),
    "stl10": (stl10, "data", 10, 50, 20, 96),
    "cifar100 data.labels=coarse": (cifar100, "data", 20, 90, 100, 32),
    "tiny_imagenet": (tiny_imagenet, "data", 4, 50, 20, 64),
    "kaggle_cifar10": (kaggle_cifar10, "data", 3, 62, 18, 32),
    "medmnist": (medmnist, "pathmnist.npz", 3, 60, 20, 28),
}


@pytest.fixture(autouse=True)
def no_waiting(monkeypatch):
    monkeypatch.setattr("cifar_resnet.data.published.time.sleep", lambda seconds: None)


def module(choice: str, root: str, *overrides: str) -> DataModule:
    (job,) = Composer("train").jobs([f"data={choice.split()[0]}", f"data.root={root}", *choice.split()[1:], *overrides])
    data = instantiate(job.cfg.data, _convert_="all")
    data.prepare_data()
    return data


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("choice", CASES)
def test_it_trains_an_epoch(choice, tmp_path, monkeypatch, run_dirs):
    write, root, classes, num_train, num_test, size = CASES[choice]
    write(tmp_path / root, monkeypatch)
    smaller = ["data.image_size=32"] if size > 32 else []
    small = [text for text in SMALL if choice != "medmnist" or text != "data.num_val=10"]  # which has its own
    assert cli.train([f"data={choice.split()[0]}", *choice.split()[1:], f"data.root={root}", *smaller, *small]) == 0
    record = record_of(*run_dirs())
    assert (len(record["classes"]), record["num_train"]) == (classes, num_train)
    assert record["image_size"] == (32 if smaller else size)
    assert record["num_tested"] == num_test
    assert cli.evaluate([f"checkpoint={run_dirs()[0]}"]) == 0


@pytest.mark.parametrize("choice", CASES)
def test_each_image_has_its_label(choice, tmp_path, monkeypatch):
    write, root, classes, *_, size = CASES[choice]
    write(tmp_path / root, monkeypatch)
    data = module(choice, root, "data.batch_size=20")
    for train in (True, False):
        images, labels = data.read(train)
        assert images.shape[1:] == (3, size, size)
        assert images.dtype == torch.uint8
        assert labels.dtype == torch.int64
        level = images[:, 0, 0, 0].long()
        if choice == "tiny_imagenet":
            assert data.classes == ["n01", "goldfish (n02)", "n03", "n04"]
            assert (level - 10 * labels).abs().max() <= 2  # JPEG
        elif choice == "kaggle_cifar10":
            assert [data.classes[label] for label in labels] == [["frog", "truck", "deer"][n % 3] for n in level]
        else:
            assert torch.equal(level % classes, labels)
    if choice == "kaggle_cifar10":
        both = torch.cat([data.read(train)[0][:, 0, 0, 0] for train in (True, False)])
        assert both.sort().values.tolist() == list(range(1, 91))
    if choice == "medmnist":
        data.load()
        assert len(data.val) == 15


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("choice", CASES)
def test_what_is_not_there_is_told_in_one_line(choice, tmp_path, monkeypatch, capsys):
    def refused(*arguments: object, **options: object) -> None:
        raise RuntimeError("no network")

    for name in ("download_and_extract_archive", "download_url"):
        for place in ("mnist", "svhn", "stl10", "cifar"):
            monkeypatch.setattr(f"torchvision.datasets.{place}.{name}", refused, raising=False)
    assert cli.train([f"data={choice.split()[0]}", *choice.split()[1:], "data.root=nowhere", *SMALL]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "nowhere" in line
    assert "data.root" in line
    assert not Path("outputs").exists()
    assert not Path("nowhere").exists()


@pytest.mark.parametrize(
    ("choice", "damage", "text"),
    [
        ("mnist", "MNIST/raw/train-images-idx3-ubyte", "MNIST is damaged in"),
        ("stl10", "stl10_binary/train_X.bin", "STL10 is not, or not whole, in"),
        ("tiny_imagenet", "tiny-imagenet-200/val/val_annotations.txt", "a line for each image, its file and its class"),
        ("kaggle_cifar10", "trainLabels.csv", "two columns, id and label. Got ['damaged'] in"),
        ("kaggle_cifar10", "train/7.png", "7.png"),
        ("medmnist", "", "not a readable archive of images"),
    ],
)  # fmt: skip
def test_what_is_damaged_is_named(choice, damage, text, tmp_path, monkeypatch, capsys):
    def refused(*arguments: object, **options: object) -> None:
        raise RuntimeError("no network")

    write, root, *_ = CASES[choice]
    write(tmp_path / root, monkeypatch)
    monkeypatch.setattr("torchvision.datasets.stl10.download_and_extract_archive", refused)
    (tmp_path / root / damage if damage else tmp_path / root).write_text("damaged")
    assert cli.train([f"data={choice}", f"data.root={root}", *SMALL]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert not Path("outputs").exists()


def test_a_download_makes_what_it_takes_away_when_it_fails(tmp_path, monkeypatch):
    for choice in ("mnist", "fashion_mnist", "svhn", "stl10"):
        if choice == "svhn":
            pytest.importorskip("scipy.io")
        root = tmp_path / choice
        CASES[choice][0](root, monkeypatch)
        (job,) = Composer("train").jobs([f"data={choice}", f"data.root={root}"])
        data = instantiate(job.cfg.data, _convert_="all")
        assert {path.name for path in root.iterdir()} <= set(data.made)


def test_a_blank_line_among_the_annotations_is_passed_over(tmp_path, monkeypatch):
    write, root, *_ = CASES["tiny_imagenet"]
    write(tmp_path / root, monkeypatch)
    (lines,) = (tmp_path / root).rglob("val_annotations.txt")
    lines.write_text(lines.read_text() + "\n")
    assert len(module("tiny_imagenet", root, "data.batch_size=20").read(False)[1]) == 20
    lines.write_text(lines.read_text() + "alone\n")
    with pytest.raises(InstantiationException, match="a line for each image, its file and its class"):
        module("tiny_imagenet", root, "data.batch_size=20")
