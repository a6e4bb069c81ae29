"""A user's own data sets: folders of classes, archives, and lists of them."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, last_of, record_of
from PIL import Image

from cifar_resnet import cli
from cifar_resnet.compose import Composer
from cifar_resnet.data import CIFAR10, Files, ImageFolder
from cifar_resnet.data.loaders import MappedImages
from cifar_resnet.instantiation import instantiate
from cifar_resnet.preflight import check_data


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(256, size=(12, 32, 32, 3), dtype=np.uint8)


@pytest.fixture
def told(monkeypatch):
    """The warnings in the log so far."""
    lines = []
    monkeypatch.setattr("cifar_resnet.data.sources.log.warning", lines.append)
    return lambda: lines


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


# Folders of classes


def put(path: str, level: int = 0) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (32, 32), level).save(path)


def levels_by_class(data: Files, train: bool) -> list[tuple[str, int]]:
    """Of each image its class, and its level of grey by which a test knows it."""
    images, labels = data.read(train=train)
    return [(data.classes[label], int(image[0, 0, 0])) for image, label in zip(images, labels, strict=True)]


def test_numbered_classes_are_outputs_in_numeric_order():
    for number in range(12):
        put(f"train/{number}/a.png", number)
        put(f"test/{number}/a.png", number)
    data = Files("test", "train")
    assert data.classes == [str(number) for number in range(12)]
    for train in (True, False):
        images, labels = data.read(train)
        assert labels.tolist() == list(range(12))
        assert images[:, 0, 0, 0].tolist() == list(range(12))
    np.savez("test.npz", images=np.zeros((3, 32, 32), np.uint8)[..., None], labels=[3, 10, 11])
    assert [data.classes[label] for label in Files("test.npz", "train").read(train=False)[1]] == ["3", "10", "11"]


def test_a_run_trained_before_keeps_its_order_of_classes():
    for number in range(12):
        put(f"train/{number}/b.png", 2 * number)
        put(f"train/{number}/a.png", 2 * number + 1)
    before = sorted(map(str, range(12)))  # 0, 1, 10, 11, 2, …
    expected = [(name, 2 * int(name) + file) for name in before for file in (1, 0)]
    for _ in range(2):  # decoded, then from the cache
        data = Files("train")
        natural = levels_by_class(data, train=False)
        data = Files("train")
        data.order_classes(before)
        assert data.classes == before
        assert levels_by_class(data, train=False) == expected
        assert sorted(natural) == sorted(expected) != natural
    data.order_classes(["cat", "dog"])
    assert data.classes == before


def test_what_is_passed_over_and_classes_without_images_are_told_once_and_nothing_else_is_read(told):
    for name in ("cat/1.png", "cat/deep/2.png", "dog/3.png", "cat/.hidden/4.png", "__MACOSX/cat/._1.png", "5.png"):
        put(f"train/{name}")
        put(f"test/{name}")
    for place in ("train/fox", "test/fox"):
        Path(place).mkdir()
    for place in ("train", "test/cat"):
        Path(place, "Thumbs.db").write_bytes(b"no picture")
    Path("train/dog/notes.TXT").write_text("no picture")
    data = Files("test", "train")
    data.prepare_data()
    assert [name for name, _ in levels_by_class(data, train=True)] == ["cat", "cat", "dog"]
    assert [name for name, _ in levels_by_class(data, train=False)] == ["cat", "cat", "dog"]
    assert told() == [
        "warning: passed over in train: hidden or system entries (3), files that are no pictures "
        "(train/dog/notes.TXT), files in no class's folder (1)",
        "warning: passed over in test: hidden or system entries (3), files in no class's folder (1)",
        "warning: no images of fox in train",
        "warning: no images of fox in test",
    ]


def test_a_class_that_an_archive_names_without_images_is_told(told):
    pixels = np.zeros((4, 32, 32, 3), np.uint8)
    np.savez("train.npz", images=pixels, labels=[0, 2, 0, 2], classes=["cat", "dog", "owl"])
    np.savez("test.npz", images=pixels, labels=[0, 1, 2, 0], classes=["cat", "dog", "owl"])
    Files("test.npz", "train.npz").read(train=True)
    assert told() == ["warning: no images of dog in train.npz"]


def test_linked_classes_and_images_are_read_and_dead_links_named():
    put("elsewhere/owl/1.png", 1)
    put("elsewhere/2.png", 2)
    put("train/cat/3.png", 3)
    put("train/dog/4.png", 4)
    Path("train/owl").symlink_to("../elsewhere/owl")
    Path("train/cat/more").symlink_to("../../elsewhere/owl")
    Path("train/dog/2.png").symlink_to("../../elsewhere/2.png")
    found = levels_by_class(Files("train"), train=False)
    assert found == [("cat", 3), ("cat", 1), ("dog", 2), ("dog", 4), ("owl", 1)]
    for name in ("cat/5.png", "dog/6.png"):
        Path("train", name).symlink_to("gone")
    Path("train/owl/7.png").write_bytes(b"no picture")
    with pytest.raises(
        ValueError, match=r"4 of 9 .* train: cat/5\.png, cat/more/7\.png, dog/6\.png, owl/7\.png;.* nowhere"
    ):
        Files("train").prepare_data()


def test_a_changed_target_of_a_link_is_decoded_anew():
    put("elsewhere/1.png", 1)
    put("train/dog/2.png", 2)
    Path("train/cat").symlink_to("../elsewhere")
    assert levels_by_class(Files("train"), train=False) == [("cat", 1), ("dog", 2)]
    put("elsewhere/1.png", 100)
    assert levels_by_class(Files("train"), train=False) == [("cat", 100), ("dog", 2)]


def test_what_an_earlier_version_decoded_is_decoded_anew(monkeypatch):
    put("train/cat/1.png", 1)
    put("train/dog/2.png", 2)
    with monkeypatch.context() as patched:
        patched.setattr("cifar_resnet.data.sources.CACHE_FORMAT", 1)
        patched.setattr("cifar_resnet.pictures.as_rgb", lambda image, scale: Image.new("RGB", image.size))
        assert levels_by_class(Files("train"), train=False) == [("cat", 0), ("dog", 0)]
    assert levels_by_class(Files("train"), train=False) == [("cat", 1), ("dog", 2)]


# Lists


def test_a_list_of_folders_and_archives_is_one_split_with_one_number_for_each_class(told):
    put("day/cat/1.png", 1)
    put("day/dog/2.png", 2)
    put("night/dog/3.png", 3)
    put("night/owl/4.png", 4)
    images = np.full((2, 32, 32, 3), 5, np.uint8)
    np.savez("more.npz", images=images, labels=[0, 2], classes=["owl", "cat", "dog"])
    put("dusk/dog/3.png", 3)
    put("dusk/owl/4.png", 4)
    (job,) = Composer("train").jobs(["data=files", "data.train=[day,night,more.npz]", "data.test=[dusk]"])
    check_data(job.cfg.data)
    data = instantiate(job.cfg.data, _convert_="all")
    assert data.classes == ["cat", "dog", "owl"]
    assert levels_by_class(data, train=True) == [
        ("cat", 1), ("dog", 2), ("dog", 3), ("owl", 4), ("owl", 5), ("dog", 5),
    ]  # fmt: skip
    assert levels_by_class(data, train=False) == [("dog", 3), ("owl", 4)]
    assert told() == [
        "warning: not each of day, night, more.npz has cat, owl", "warning: no images of cat in dusk",
    ]  # fmt: skip


def test_a_list_of_numbered_batches_counts_the_classes_of_all(told, pixels):
    np.savez("a.npz", images=pixels, labels=np.arange(12) % 3)
    np.savez("b.npz", images=pixels, labels=np.arange(12))  # of which a has but three
    np.savez("test.npz", images=pixels, labels=np.arange(12) % 3)
    data = Files("test.npz", ["a.npz", "b.npz"])
    assert data.classes == [str(number) for number in range(12)]
    images, labels = data.read(train=True)
    assert torch.equal(images, torch.from_numpy(np.concatenate([pixels, pixels])).permute(0, 3, 1, 2))
    assert labels.tolist() == [*(np.arange(12) % 3), *range(12)]
    assert told() == []
    np.savez("named.npz", images=pixels, labels=np.arange(12) % 3, classes=["cat", "dog", "owl"])
    with pytest.raises(ValueError, match=r"labels without names .* Got a\.npz in data\.train; give them classes"):
        Files("named.npz", ["named.npz", "a.npz"])
    with pytest.raises(ValueError, match=r"data\.train names a place twice\. Got a\.npz; leave out one"):
        Files("a.npz", ["a.npz", "b.npz", "a.npz"])
    with pytest.raises(ValueError, match=r"train must be text or a list of 1 or more"):
        Files("a.npz", [])


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


def test_a_test_split_without_its_first_class_is_none_that_counts_from_one(tmp_path, pixels):
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


# Other people's archives


def read(**settings: object) -> Files:
    data = Files(**{key: str(value) if key != "num_val" else value for key, value in settings.items()}, batch_size=2)
    data.prepare_data()
    return data


def test_one_archive_of_all_splits_under_the_names_of_keras_and_of_medmnist(tmp_path, pixels):
    parts = {"train": slice(0, 6), "val": slice(6, 9), "test": slice(9, 12)}
    labels = (np.arange(12) % 3)[:, None]
    forms = {"keras": ("x_{}", "y_{}"), "medmnist": ("{}_images", "{}_labels")}
    for name, (images_of, labels_of) in forms.items():
        content = {images_of.format(half): pixels[part] for half, part in parts.items()}
        content |= {labels_of.format(half): labels[part] for half, part in parts.items()}
        path = tmp_path / f"{name}.npz"
        np.savez(path, **content)
        data = Files(train=str(path), val=str(path), test=str(path), batch_size=2)
        for found, part in ((data.read(True), parts["train"]), (data.read_val(), parts["val"]),
                            (data.read(False), parts["test"])):  # fmt: skip
            assert np.array_equal(found[0], pixels[part].transpose(0, 3, 1, 2))
            assert found[1].tolist() == labels[part, 0].tolist()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16])
def test_floats_from_0_to_1_are_the_pixels_that_they_round_to(tmp_path, pixels, dtype):
    np.savez(tmp_path / "test.npz", x=(pixels / 255).astype(dtype), y=np.arange(12) % 3)
    images, _ = read(test=tmp_path / "test.npz").read(False)
    assert np.array_equal(images, pixels.transpose(0, 3, 1, 2))


@pytest.mark.parametrize("form", ["npy", "numbers", "names"])
def test_an_npy_with_a_file_of_labels(tmp_path, pixels, form):
    labels, names = np.arange(12) % 3, np.array(["owl", "cat", "dog"])
    np.save(tmp_path / "images.npy", pixels[..., :1])
    path = tmp_path / f"labels.{'npy' if form == 'npy' else 'txt'}"
    if form == "npy":
        np.save(path, labels)
    else:
        path.write_text("".join(f"{names[label] if form == 'names' else label}\n" for label in labels))
    data = read(test=tmp_path / "images.npy", test_labels=path)
    images, found = data.read(False)
    assert np.array_equal(images[:, 1], pixels[..., 0])
    if form == "names":
        assert data.classes == ["cat", "dog", "owl"]
        assert [data.classes[label] for label in found] == names[labels].tolist()
    else:
        assert found.tolist() == labels.tolist()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"test": "images.npy"}, "images without labels. Got .*images.npy; give data.test_labels"),
        ({"test": "images.npy", "test_labels": "nothing.npy"}, "data.test_labels is a file of labels. Got .*not there"),
        ({"test": "images.npy", "test_labels": "few.npy"}, r"one for each of the 12 images\. Got int64 \(3,\)"),
        ({"test": "images.npy", "test_labels": "gap.txt"}, r"a line without a label\. Got line 2 of"),
        ({"test": "images.npy", "test_labels": "images.png"}, "not a readable file of labels"),
        ({"test": "test.npz", "test_labels": "few.npy"}, r"data\.test_labels are for an \.npy file of images"),
        ({"test": "test.npz", "train_labels": "few.npy"}, r"labels of no images\. Got data\.train_labels"),
        ({"test": "broken.npy", "test_labels": "few.npy"}, "not a readable archive of images"),
    ],
)
def test_what_is_wrong_with_them_is_said(tmp_path, pixels, settings, text, monkeypatch):
    monkeypatch.chdir(tmp_path)
    np.save("images.npy", pixels)
    np.save("few.npy", np.arange(3))
    np.savez("test.npz", images=pixels, labels=np.arange(12) % 3)
    Path("gap.txt").write_text("cat\n\ndog\n")
    Path("broken.npy").write_bytes(b"\x93NUMPY")
    Image.new("RGB", (8, 8)).save("images.png")
    with pytest.raises((ValueError, FileNotFoundError), match=text):
        Files(**settings)


# Images to validate on, and folders without splits


def folder_of(root: str, levels: dict[str, range]) -> None:
    for place, numbers in levels.items():
        for number in numbers:
            put(f"{root}/{place}/{['cat', 'dog'][number % 2]}/{number}.png", number)


@pytest.mark.parametrize("name", ["val", "valid", "Validation"])
def test_a_folder_of_images_to_validate_on_is_used(name):
    folder_of("pets", {"train": range(20), name: range(20, 30), "test": range(30, 36)})
    data = ImageFolder(root="pets", batch_size=4)
    data.prepare_data()
    data.load()
    assert sorted(data.train.images[:, 0, 0, 0].tolist()) == list(range(20))
    assert sorted(data.val.images[:, 0, 0, 0].tolist()) == list(range(20, 30))
    assert (data.val.images[:, 0, 0, 0] % 2 == data.val.labels).all()
    everything = ImageFolder(root="pets", batch_size=4, num_val=0)
    everything.load()
    assert sorted(everything.train.images[:, 0, 0, 0].tolist()) == list(range(30))
    assert not everything.has_val


def test_validation_images_in_two_places_are_refused():
    folder_of("pets", {"train": range(20), "val": range(4), "valid": range(4), "test": range(30, 36)})
    with pytest.raises(ValueError, match=r"one split twice\. Got pets with val, valid; join them"):
        ImageFolder(root="pets")


def test_splits_under_other_names_are_no_classes():
    folder_of("scans", {"Training": range(20), "Testing": range(30, 36)})
    data = ImageFolder(root="scans", batch_size=4)
    assert data.classes == ["cat", "dog"]
    assert sorted(data.read(True)[0][:, 0, 0, 0].tolist()) == list(range(20))
    assert sorted(data.read(False)[0][:, 0, 0, 0].tolist()) == list(range(30, 36))
    for number, name in enumerate(["Bus", "Car", "Train"]):
        put(f"vehicles/{name}/{number}.png", number)
    assert ImageFolder(root="vehicles").classes == ["Bus", "Car", "Train"]
    folder_of("halved", {"Training": range(20), "validation": range(20, 24)})
    with pytest.raises(FileNotFoundError, match="Got halved, without test/"):
        ImageFolder(root="halved")


def test_what_is_trained_on_is_none_to_test_or_to_choose_with(tmp_path, pixels):
    folder_of("pets", {"train": range(20)})
    for name in ("all.npz", "other.npz"):
        np.savez(name, images=pixels, labels=np.arange(12) % 3)
    for given in (
        {"train": "pets/train", "test": "pets/../pets/train"},
        {"train": "all.npz", "test": str(tmp_path / "all.npz")},
        {"train": ["all.npz"], "test": "other.npz", "val": "all.npz"},
    ):
        data = Files(**given)
        assert len(data.read(False)[1])  # to look at, they may be
        with pytest.raises(ValueError, match=r"data\.train and data\.(test|val) are of other images each\. Got "):
            data.read(True)
    with pytest.raises(ValueError, match=r"data\.train names a place twice\. Got \./all\.npz"):
        Files(train=["all.npz", "./all.npz"], test="pets/train")


def test_a_test_set_alone_may_be_of_one_class(pixels):
    np.savez("cats.npz", images=pixels, labels=np.zeros(12, int))
    assert Files(test="cats.npz").read(False)[1].tolist() == [0] * 12
    with pytest.raises(ValueError, match="a classifier needs two classes or more"):
        Files(test="cats.npz", train="cats.npz")


def test_a_class_whose_only_image_is_held_out_is_told(caplog):
    labels = [number % 10 for number in range(100)] + list(range(10, 20))
    for number, label in enumerate(labels):
        put(f"pets/c{label:02}/{number}.png", number % 200)
    data = ImageFolder(root="pets", batch_size=4, num_test=0.2, num_val=0)
    data.load()
    (line,) = [line for line in caplog.messages if "left to train on" in line]
    lost = sorted(set(data.classes) - {data.classes[label] for label in data.train.labels.tolist()})
    assert lost
    assert all(name in line for name in lost)


def test_a_class_that_is_not_held_out_but_left_out_is_none_that_is(caplog):
    for number in range(44):
        put(f"pets/{'cat' if number < 40 else 'dog'}/{number}.png", number)
    ImageFolder(root="pets", batch_size=4, num_val=4, num_test=4, max_train=4).load()
    assert "left to train on" not in caplog.text


def test_test_images_that_were_trained_on_are_told_to_the_pixel(pixels, caplog):
    np.savez("train.npz", images=pixels, labels=np.arange(12) % 3)
    np.savez("test.npz", images=np.concatenate([255 - pixels, pixels[3:5]]), labels=np.arange(14) % 3)
    data = Files(test="test.npz", train="train.npz", batch_size=4, num_val=3)
    data.load()
    data.load_test()
    assert "2 of 14 test images are among those that were trained on or held out, to the pixel" in caplog.text


def test_a_test_is_not_drawn_anew_from_what_has_changed_since():
    for number in range(40):
        put(f"pets/{['cat', 'dog'][number % 2]}/{number:02}.png", number)
    data = ImageFolder(root="pets", num_test=10, num_val=4, batch_size=4)
    data.load()
    put("pets/cat/000.png", 77)  # by which all the others move up
    with pytest.raises(ValueError, match="images came or went since those to train on were read"):
        data.load_test()
    Path("pets/cat/000.png").unlink()
    data.load_test()
    assert not set(data.test.images[:, 0, 0, 0].tolist()) & set(data.train.images[:, 0, 0, 0].tolist())


def test_what_has_been_read_is_not_looked_for_again(monkeypatch):
    folder_of("pets", {"train": range(20), "test": range(30, 36)})
    data = ImageFolder(root="pets", batch_size=4)
    data.prepare_data()
    monkeypatch.setattr(ImageFolder, "decode", lambda self, part: pytest.fail("it has been read"))
    data.prepare_data()  # as each trainer asks for


def test_pictures_that_have_changed_places_are_decoded_anew():
    """Though size and time tell nothing, as of what was unpacked from an archive."""
    for number in range(8):
        path = Path(f"pets/{['cat', 'dog'][number % 2]}/{number}.bmp")
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (32, 32), (number, number, number)).save(path)
        os.utime(path, (1e9, 1e9))
    before = ImageFolder(root="pets").read_split("train")[0][:, 0, 0, 0].tolist()
    first, other = Path("pets/cat/0.bmp"), Path("pets/dog/1.bmp")
    first.rename("away")
    other.rename(first)
    Path("away").rename(other)
    after = ImageFolder(root="pets").read_split("train")[0][:, 0, 0, 0].tolist()
    assert before == [0, 2, 4, 6, 1, 3, 5, 7]
    assert after == [1, 2, 4, 6, 0, 3, 5, 7]


def test_a_class_without_test_images_is_told(caplog):
    folder_of("pets", {"train": range(20), "test": range(30, 36, 2)})
    ImageFolder(root="pets", batch_size=4).read(train=False)
    assert "no images of dog in" in caplog.text


def test_a_folder_of_classes_alone_is_divided_by_the_seed():
    for number in range(40):
        put(f"pets/{['cat', 'dog'][number % 2]}/{number}.png", number)
    for num_test, count in ((0.2, 8), (10, 10)):
        data = ImageFolder(root="pets", num_test=num_test if num_test < 1 else np.int64(num_test))
        data.prepare_data()
        (train, labels), (test, test_labels) = data.read(True), data.read(False)
        levels = train[:, 0, 0, 0].tolist(), test[:, 0, 0, 0].tolist()
        assert sorted([*levels[0], *levels[1]]) == list(range(40))
        assert len(levels[1]) == count
        assert test_labels.bincount().tolist() == [count // 2, count // 2]
        assert (train[:, 0, 0, 0] % 2 == labels).all()
        assert torch.equal(ImageFolder(root="pets", num_test=num_test).read(False)[0], test)
        assert not torch.equal(ImageFolder(root="pets", num_test=num_test, split_seed=1).read(False)[0], test)


def test_a_share_that_leaves_nothing_is_refused():
    for number in range(4):
        put(f"pets/{['cat', 'dog'][number % 2]}/{number}.png", number)
    for num_test in (4, 9, 0.01):
        with pytest.raises(ValueError, match=r"data\.num_test of the images are tested on"):
            ImageFolder(root="pets", num_test=num_test).read(True)
    with pytest.raises(ValueError, match="num_test must be"):
        ImageFolder(root="pets", num_test=0)


# More than memory holds


def written(count: int = 60, size: int = 32) -> None:
    random = np.random.default_rng(0)
    for half, number in (("train", count), ("test", 20)):
        np.save(f"{half}.npy", random.integers(256, size=(number, size, size, 3), dtype=np.uint8))
        np.save(f"{half}-labels.npy", np.arange(number) % 3)


NPY = {"train": "train.npy", "train_labels": "train-labels.npy", "test": "test.npy", "test_labels": "test-labels.npy"}


@pytest.mark.slow
def test_a_mapped_file_trains_as_one_in_memory_to_the_bit(run_dirs, monkeypatch):
    written()
    others = [text for text in TINY if not text.startswith("data")]
    command = ["data=files", *(f"data.{key}={path}" for key, path in NPY.items()), "data.batch_size=20"]
    for mapped in ("false", "true"):
        assert cli.train([*others, "page=true", *command, f"data.memory_map={mapped}"]) == 0
        # nor is all of it ever read at once
        monkeypatch.setattr(MappedImages, "images", property(lambda self: pytest.fail("read as a whole")))
    first, second = run_dirs()
    weights = [last_of(run_dir)["state_dict"] for run_dir in (first, second)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    records = [record_of(run_dir) for run_dir in (first, second)]
    for key in ("train_hash", "split_hash", "test_hash", "mean", "std"):
        assert records[0][key] == records[1][key], key
    assert records[0]["metrics"]["test/loss"] == records[1]["metrics"]["test/loss"]
    assert cli.evaluate([f"checkpoint={second}"]) == 0


def test_images_to_validate_on_have_a_file_of_labels_too():
    written()
    np.save("val.npy", np.load("test.npy")[::-1])
    Path("val.txt").write_text("".join(f"{label}\n" for label in [2, 1, 0] * 6 + [1, 1]))
    data = Files(**NPY, val="val.npy", val_labels="val.txt", batch_size=10, num_val=None)
    data.load()
    assert data.val.labels.tolist() == [2, 1, 0] * 6 + [1, 1]


def test_nothing_of_it_is_read_before_its_turn(monkeypatch):
    written()
    data = Files(**NPY, memory_map=True, batch_size=10, num_val=0)
    data.load()
    np.load("train.npy", mmap_mode="r+")[7] = 99  # as another program would
    assert (data.train.take(torch.tensor([7])) == 99).all()


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"device": "meta"}, r"data\.memory_map leaves images in their file\. Got data\.device=meta"),
        ({"image_size": 16}, r"data\.memory_map takes an \.npy file of uint8, \(N, 16, 16, 3\)"),
        (
            {"train": "train.npz", "train_labels": None},
            r"data\.memory_map is for \.npy files\. Got data\.train=train\.npz",
        ),
        ({"train": ["train.npy", "test.npy"], "train_labels": None}, "leaves each split in one file"),
        ({"val": "test.npy", "val_labels": "test-labels.npy"}, "holds out some of train's"),
    ],
)
def test_what_cannot_be_mapped_is_refused(changes, text):
    written()
    np.savez("train.npz", images=np.zeros((20, 32, 32, 3), np.uint8), labels=np.arange(20) % 3)
    with pytest.raises(ValueError, match=text):
        Files(**NPY | changes, memory_map=True)


def test_more_than_is_free_is_told_before_it_is_read(monkeypatch):
    for number in range(30):
        put(f"pets/{['cat', 'dog'][number % 2]}/{number}.png", number)
    monkeypatch.setattr("cifar_resnet.data.datamodule.free_memory", lambda device: 100_000)
    monkeypatch.setattr(Files, "decode_files", lambda *arguments: pytest.fail("it has been read"))
    data = ImageFolder(root="pets", image_size=64)
    with pytest.raises(ValueError, match=r"30 images of 64 pixels need 0\.0 GB of memory\. Got 0\.0 GB that are free"):
        data.read(True)
    data = CIFAR10(root="nowhere")
    monkeypatch.setattr("cifar_resnet.data.datamodule.free_memory", lambda device: 200e6)
    with pytest.raises(
        ValueError, match=r"50,000 images of 32 pixels need 0\.3 GB of memory\. Got 0\.2 GB .*memory_map"
    ):
        data.load()


def test_test_images_that_do_not_fit_on_a_gpu_are_told_as_well(monkeypatch, watch):
    written()
    data = Files(**NPY, batch_size=10, device="cuda")
    free = {None: 1e9, "cuda": 1e9}
    monkeypatch.setattr("cifar_resnet.data.datamodule.free_memory", lambda device: free[device and device.type])
    data.setup("fit")
    free["cuda"] = 1000
    with pytest.raises(ValueError, match=r"need 0\.0 GB of cuda.*give .*data\.device=cpu"):
        data.setup("test")


def test_a_gpu_that_is_too_small_is_told_of_with_a_way_on(monkeypatch, watch):
    written()
    data = Files(**NPY, batch_size=10, device="cuda")
    free = {None: 1e9, "cuda": 1000}
    monkeypatch.setattr("cifar_resnet.data.datamodule.free_memory", lambda device: free[device and device.type])
    with pytest.raises(ValueError, match=r"need 0\.0 GB of cuda.*give .*data\.device=cpu"):
        data.setup("fit")
