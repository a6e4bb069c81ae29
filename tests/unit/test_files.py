"""Reading a user's own files: what they mean, and that nothing in them is executed."""

import pickle
import resource

import numpy as np
import pytest
from behaviour.bad_inputs import EXECUTED, Trap
from helpers import png_that_claims
from PIL import Image

from cifar_resnet.data import Files
from cifar_resnet.files import decode, is_archive, read_archive


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(256, size=(12, 32, 32, 3), dtype=np.uint8)


def planes(pixels: np.ndarray) -> np.ndarray:
    return pixels.transpose(0, 3, 1, 2)


# Pictures


@pytest.mark.parametrize("mode", ["RGB", "L", "P", "RGBA", "LA", "1", "CMYK", "I;16"])
def test_any_mode_becomes_rgb(tmp_path, mode):
    path = tmp_path / f"picture.{'tiff' if mode == 'CMYK' else 'png'}"
    if mode == "I;16":
        Image.fromarray(np.full((32, 32), 40_000, dtype=np.uint16)).save(path)
        expected = [155, 155, 155]  # 40,000 / 257
    else:
        Image.new("RGB", (32, 32), (204, 204, 204)).convert(mode).save(path)
        expected = [255] * 3 if mode == "1" else [204, 204, 204]
    found, resized = decode(path, 32)
    assert found.shape == (32, 32, 3)
    assert found.dtype == np.uint8
    assert not resized
    if mode == "1":  # dithered
        assert set(np.unique(found)) <= {0, 255}
    else:
        assert abs(found.astype(int) - expected).max() <= 1


def test_transparent_pixels_are_white(tmp_path):
    Image.new("RGBA", (32, 32), (255, 0, 0, 0)).save(tmp_path / "clear.png")
    assert (decode(tmp_path / "clear.png", 32)[0] == 255).all()


def test_pictures_are_turned_as_their_camera_noted(tmp_path):
    image = Image.new("RGB", (32, 32), "black")
    image.paste("white", (0, 0, 32, 8))  # the sensor's top
    exif = Image.Exif()
    exif[0x0112] = 6  # which the camera held on the right
    image.save(tmp_path / "photo.png", exif=exif)
    found, _ = decode(tmp_path / "photo.png", 32)
    assert found[:, -8:].min() == 255
    assert found[:, :-8].max() == 0


def test_other_sizes_are_resized_and_said_to_be(tmp_path):
    Image.new("RGB", (900, 500), (10, 20, 30)).save(tmp_path / "large.jpg")
    found, resized = decode(tmp_path / "large.jpg", 32)
    assert resized
    assert found.shape == (32, 32, 3)
    assert abs(found.astype(int) - [10, 20, 30]).max() <= 2


def test_decompression_bombs_are_refused_before_they_unpack(tmp_path):
    for name, width, height in (("bomb.png", 60_000, 60_000), ("large.png", 10_001, 10_000)):
        (tmp_path / name).write_bytes(png_that_claims(width, height))
        with pytest.raises(ValueError, match=rf"not a readable image: .*{name} .*pixels"):
            decode(tmp_path / name, 32)


def test_postscript_is_not_handed_to_another_program(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "page.eps")
    with pytest.raises(ValueError, match="not a readable image"):
        decode(tmp_path / "page.eps", 32)


# Archives


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
        ({"images": np.zeros((2, 32, 32, 3))}, "uint8. Got float64"),
        ({"images": np.zeros((2, 31), np.uint8)}, r"Got \(2, 31\)"),
        ({"images": np.zeros((0, 32, 32, 3), np.uint8)}, "Got"),
        ({"pictures": np.zeros((2, 32, 32, 3), np.uint8)}, "Got pictures; it needs images"),
        ({"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.zeros(3, int)}, "one for each of the 2 images"),
        ({"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.array([0.5, 1])}, "labels are whole numbers"),
        ({"images": np.zeros((2, 32, 32, 3), np.uint8), "labels": np.array([-1, 1])}, "labels are whole numbers"),
        ({"images": np.zeros((2, 32, 32, 3), np.uint8), "ids": np.arange(3)}, "2 images, but 3 ids"),
    ],
)
def test_wrong_archives_are_explained(tmp_path, content, message):
    np.savez(tmp_path / "wrong.npz", **content)
    with pytest.raises(ValueError, match=message):
        read_archive(tmp_path / "wrong.npz", 32)


# As a data module


def test_files_train_from_archives_and_test_on_folders(tmp_path, pixels):
    np.savez(tmp_path / "train.npz", images=pixels, labels=np.arange(12) % 3, classes=["owl", "cat", "dog"])
    for name, level in (("cat", 1), ("owl", 2)):
        (tmp_path / "test" / name).mkdir(parents=True)
        Image.new("RGB", (32, 32), (level,) * 3).save(tmp_path / "test" / name / "0.png")
    data = Files(train=str(tmp_path / "train.npz"), test=str(tmp_path / "test"), batch_size=4, num_val=3)
    data.prepare_data()
    assert data.classes == ["owl", "cat", "dog"]
    assert data.num_classes == 3
    images, labels = data.read(train=False)
    assert [(int(image[0, 0, 0]), data.classes[label]) for image, label in zip(images, labels, strict=True)] == [
        (2, "owl"),
        (1, "cat"),
    ]
    data.load()
    assert len(data.train) == 9


def test_an_archives_own_class_names_count_not_their_order(tmp_path, pixels):
    np.savez(tmp_path / "train.npz", images=pixels, labels=np.arange(12) % 3, classes=["owl", "cat", "dog"])
    np.savez(tmp_path / "test.npz", images=pixels[:2], labels=[0, 1], classes=["dog", "owl"])
    data = Files(train=str(tmp_path / "train.npz"), test=str(tmp_path / "test.npz"))
    assert data.read(train=False)[1].tolist() == [2, 0]


def test_files_say_what_is_wrong(tmp_path, pixels):
    np.savez(tmp_path / "test.npz", images=pixels, labels=np.arange(12) % 3)
    with pytest.raises(FileNotFoundError, match=r"data\.train must be a folder.*which is not there"):
        Files(train=str(tmp_path / "nothing"), test=str(tmp_path / "test.npz"))
    with pytest.raises(ValueError, match=r"no images to train on. Got data\.train=null"):
        Files(test=str(tmp_path / "test.npz")).load()
    np.savez(tmp_path / "unlabelled.npz", images=pixels)
    with pytest.raises(ValueError, match="images without labels"):
        Files(test=str(tmp_path / "unlabelled.npz"))
    np.savez(tmp_path / "beyond.npz", images=pixels, labels=np.arange(12), classes=["cat", "dog"])
    with pytest.raises(ValueError, match=r"labels count the classes from 0\. Got 0 to 11 in .*, for 2 classes$"):
        Files(test=str(tmp_path / "beyond.npz"))
    np.savez(tmp_path / "more.npz", images=pixels, labels=np.arange(12) % 4)
    with pytest.raises(ValueError, match=r"test has classes that train lacks\. Got '3' in .*; train has '0', '1', '2'"):
        Files(train=str(tmp_path / "test.npz"), test=str(tmp_path / "more.npz"))


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("half", ["train", "test"])
def test_labels_that_count_from_one_are_told_so(tmp_path, pixels, named, half):
    names = {"classes": ["cat", "dog", "owl"]} if named else {}
    labels = {"train": np.arange(12) % 3, "test": np.arange(12) % 3}
    labels[half] = labels[half] + 1
    for name, own in labels.items():
        np.savez(tmp_path / f"{name}.npz", images=pixels, labels=own, **names)
    with pytest.raises(ValueError, match=rf"from 0\. Got 1 to 3 in .*{half}.npz(, for 3 classes)?; take 1 from each$"):
        Files(train=str(tmp_path / "train.npz"), test=str(tmp_path / "test.npz"))


def test_a_test_half_without_its_first_class_is_none_that_counts_from_one(tmp_path, pixels):
    np.savez(tmp_path / "train.npz", images=pixels, labels=np.arange(12) % 3)
    np.savez(tmp_path / "test.npz", images=pixels, labels=np.arange(12) % 2 + 1)
    assert Files(train=str(tmp_path / "train.npz"), test=str(tmp_path / "test.npz")).read(train=False)[1].min() == 1


COMPOSED, DECOMPOSED = "caf\u00e9", "cafe\u0301"  # one name to a reader, two to a file system


@pytest.mark.parametrize("archived", [False, True])
def test_a_class_whose_name_is_written_in_two_forms_of_unicode_is_one(tmp_path, pixels, archived):
    for half, name in (("train", COMPOSED), ("test", DECOMPOSED)):
        for number, folder in enumerate((name, "dog")):
            (tmp_path / half / folder).mkdir(parents=True)
            Image.fromarray(np.full((32, 32, 3), 10 * number, np.uint8)).save(tmp_path / half / folder / "1.png")
    if archived:
        np.savez(tmp_path / "test.npz", images=pixels[:2], labels=[0, 1], classes=["dog", DECOMPOSED])
    data = Files(train=str(tmp_path / "train"), test=str(tmp_path / ("test.npz" if archived else "test")))
    images, labels = data.read(train=False)
    assert data.classes == [COMPOSED, "dog"]
    assert labels.tolist() == ([1, 0] if archived else [0, 1])
    assert archived or images[:, 0, 0, 0].tolist() == [0, 10]


def test_names_are_quoted_so_that_a_blank_at_their_end_shows(tmp_path, pixels):
    for name, classes in (("train", ["cat", "dog"]), ("test", ["cat", "dog "])):
        np.savez(tmp_path / f"{name}.npz", images=pixels, labels=np.arange(12) % 2, classes=classes)
    with pytest.raises(ValueError, match=r"Got 'dog ' in .*test\.npz; train has 'cat', 'dog'"):
        Files(train=str(tmp_path / "train.npz"), test=str(tmp_path / "test.npz"))


def test_pictures_beside_each_other_are_told_to_need_a_folder_for_each_class_or_cifar_predict(tmp_path):
    Image.new("RGB", (32, 32)).save(tmp_path / "1.png")
    with pytest.raises(ValueError, match=r"data\.test must hold a folder .*<class>.*holds no folder; .*cifar-predict"):
        Files(test=str(tmp_path))
