"""Reading a user's archives: what they mean, and that nothing in them is executed."""

import pickle
import resource
from pathlib import Path

import numpy as np
import pytest
import torch
from behaviour.bad_inputs import EXECUTED, Trap
from torchvision.transforms.v2 import functional

from cifar_resnet.archives import is_archive, read_archive, to_size


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(256, size=(12, 32, 32, 3), dtype=np.uint8)


def planes(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(0, 3, 1, 2)


def test_npz_in_each_layout(tmp_path, pixels):
    for name, array in {"last": pixels, "first": pixels.transpose(0, 3, 1, 2)}.items():
        np.savez(tmp_path / f"{name}.npz", images=array, labels=np.arange(12))
        found = read_archive(tmp_path / f"{name}.npz", 32)
        assert np.array_equal(found.images, planes(pixels))
        assert found.labels.tolist() == list(range(12))
        assert found.resized == 0
    np.savez(tmp_path / "grey.npz", images=pixels[..., 0])
    grey = read_archive(tmp_path / "grey.npz", 32)
    assert np.array_equal(grey.images[:, 2], pixels[..., 0])
    assert grey.labels is None
    for name, array in {"channel_last": pixels[:3, ..., :1], "channel_first": pixels[:3, None, ..., 0]}.items():
        np.savez(tmp_path / f"{name}.npz", images=array)  # three grey ones, beyond doubt
        assert np.array_equal(read_archive(tmp_path / f"{name}.npz", 32).images, grey.images[:3])
    np.savez(tmp_path / "large.npz", images=np.full((2, 64, 48, 3), 77, dtype=np.uint8))
    large = read_archive(tmp_path / "large.npz", 32)
    assert large.resized == 2
    assert (large.images == 77).all()


@pytest.mark.parametrize("protocol", range(6))
def test_cifar_style_pickles_of_any_protocol(tmp_path, pixels, protocol):
    data = pixels.transpose(0, 3, 1, 2).reshape(12, 3072)
    content = {b"data": data, b"labels": [*range(10), 0, 1], b"filenames": [b"%d.png" % i for i in range(12)]}
    (tmp_path / "test_batch").write_bytes(pickle.dumps(content, protocol=protocol))
    assert is_archive(tmp_path / "test_batch")
    found = read_archive(tmp_path / "test_batch", 32)
    assert np.array_equal(found.images, planes(pixels))
    assert found.labels.tolist() == [*range(10), 0, 1]
    assert found.ids[3] == "3.png"


def test_code_in_a_pickle_is_not_run(tmp_path):
    (tmp_path / "trap.pkl").write_bytes(pickle.dumps({"data": Trap()}))
    with pytest.raises(ValueError, match=r"asks for posix\.mkdir, and only plain data is read"):
        read_archive(tmp_path / "trap.pkl", 32)
    np.savez(tmp_path / "trap.npz", images=np.array([Trap()], dtype=object))
    with pytest.raises(ValueError, match="not a readable archive"):
        read_archive(tmp_path / "trap.npz", 32)
    assert not (tmp_path / EXECUTED).exists()


def test_a_number_in_a_pickle_takes_no_memory(tmp_path):
    path = tmp_path / "memo.pkl"
    path.write_bytes(b"\x80\x02}r" + (2**28).to_bytes(4, "little") + b".")  # in C a memo of that many places
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ValueError, match="no images in"):
        read_archive(path, 32)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < before + 500_000  # kilobytes


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"images": np.full((2, 32, 32, 3), 1.5)}, r"or floats from 0 to 1\. Got float64 from 1\.5 to 1\.5"),
        ({"images": np.full((2, 32, 32, 3), np.nan)}, r"Got nan or infinity in image 0 of"),
        ({"images": np.zeros((2, 32, 32, 3), np.uint16)}, "uint8. Got uint16 in .*scale them"),
        ({"images": np.zeros((2, 32, 32, 3), np.int32)}, "uint8. Got int32 in .*scale them"),
        ({"images": np.zeros((2, 32, 32, 3), bool)}, "uint8. Got bool in .*scale them"),
        ({"images": np.zeros((2, 31), np.uint8)}, r"Got \(2, 31\)"),
        ({"images": np.zeros((40, 50, 3), np.uint8)}, r"one picture, or several grey ones\? Got \(40, 50, 3\) in"),
        ({"images": np.zeros((3, 40, 50), np.uint8)}, r"one picture, or several grey ones\? Got \(3, 40, 50\) in"),
        (
            {"images": np.zeros((40, 50), np.uint8)},
            r"or several in rows\? Got \(40, 50\) in .*images\[None\]",
        ),
        ({"images": np.zeros((4, 3072), np.uint8)}, "rows say nothing of how their pixels lie"),
        ({"images": np.zeros((0, 32, 32, 3), np.uint8)}, "there are no images. Got"),
        ({"pictures": np.zeros((2, 32, 32, 3), np.uint8)}, "Got pictures; it needs images"),
        ({"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.zeros(3, int)}, "one for each of the 2 images"),
        ({"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.array([0.5, 1])}, "labels are whole numbers"),
        ({"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.array([-1, 1])}, "whole numbers from 0. Got -1"),
        ({"images": np.zeros((2, 32, 32, 3), np.uint8), "ids": np.arange(3)}, "2 images, but 3 ids"),
    ],
)
def test_wrong_archives_are_explained(tmp_path, content, message):
    np.savez(tmp_path / "wrong.npz", **content)
    with pytest.raises(ValueError, match=message):
        read_archive(tmp_path / "wrong.npz", 32)


def test_a_text_of_labels_is_read_as_windows_writes_it_and_counted(tmp_path, pixels):
    np.save(tmp_path / "x.npy", pixels)
    names = tmp_path / "names.txt"
    for encoding, newline in (("utf-8", "\n"), ("utf-8-sig", "\r\n")):
        names.write_bytes(newline.join(["cat", "dog"] * 6 + [""]).encode(encoding))
        found = read_archive(tmp_path / "x.npy", 32, labels_at=names)
        assert found.classes == ["cat", "dog"]
        assert found.labels.tolist() == [0, 1] * 6
    names.write_text("label\n" + "cat\ndog\n" * 6)
    with pytest.raises(ValueError, match=r"of the 12 images, and no other\. Got 13 lines in .*, the first 'label'"):
        read_archive(tmp_path / "x.npy", 32, labels_at=names)


def test_images_are_resized_a_batch_at_a_time(pixels, monkeypatch):
    resize, seen = functional.resize, []
    monkeypatch.setattr(
        functional, "resize", lambda batch, *how, **more: seen.append(len(batch)) or resize(batch, *how, **more)
    )
    for array in (planes(pixels), np.broadcast_to(pixels[:, None, ..., 0], (12, 3, 32, 32))):
        expected = resize(torch.from_numpy(np.array(array)), [20, 20], antialias=True)
        assert np.array_equal(to_size(array, 20, batch_size=5), expected)
        assert seen == [5, 5, 2]
        seen.clear()


def test_images_of_a_split_have_the_labels_of_that_split_or_none(tmp_path, pixels):
    np.savez(tmp_path / "all.npz", x_train=pixels, x_test=pixels[:3], y_train=np.arange(12), labels=np.arange(3))
    assert read_archive(tmp_path / "all.npz", 32, "train").labels.tolist() == list(range(12))
    assert read_archive(tmp_path / "all.npz", 32, "test").labels is None
    assert len(read_archive(tmp_path / "all.npz", 32).images) == 3


def test_arrays_of_no_use_here_are_not_read_and_one_that_cannot_be_is_named(tmp_path, pixels):
    path = tmp_path / "some.npz"
    strange = np.array(["a", None], dtype=object)
    np.savez(path, images=pixels, labels=np.arange(len(pixels)) % 3, meta=strange)
    assert read_archive(path, 32).labels.tolist() == (np.arange(len(pixels)) % 3).tolist()
    np.savez(path, images=pixels, labels=np.arange(len(pixels)) % 3, filenames=strange)
    with pytest.raises(ValueError, match=r"not a readable archive of images: .*\(filenames: Object arrays"):
        read_archive(path, 32)


def test_floats_that_rounding_put_beyond_white_are_white(tmp_path, pixels):
    path, shares = tmp_path / "some.npz", pixels / np.float32(255)
    shares[0, 0, 0, 0], shares[0, 0, 0, 1] = np.nextafter(np.float32(1), np.float32(2)), -1e-7
    np.savez(path, images=shares)
    found = read_archive(path, 32).images
    assert (found[0, 0, 0, 0], found[0, 1, 0, 0]) == (255, 0)


def test_whether_a_file_is_an_archive_can_be_asked_where_nobody_may_look(tmp_path, monkeypatch):
    def locked(path):
        raise PermissionError(13, "Permission denied")  # root, as in a container, may look anywhere

    monkeypatch.setattr(Path, "is_file", locked)
    assert not is_archive(tmp_path / "link")


def test_images_under_two_names_are_refused(tmp_path, pixels):
    path = tmp_path / "both.npz"
    np.savez(path, images=pixels, labels=np.arange(12), x_train=pixels[:4], y_train=np.arange(4))
    with pytest.raises(ValueError, match=r"images twice\. Got x_train and images in "):
        read_archive(path, 32, split="train")
