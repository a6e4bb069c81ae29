"""Each source of images."""

import hashlib
import http.server
import pickle
import shlex
import shutil
import socket
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import BadStatusLine
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import datasets

from cifar_resnet.compose import Composer
from cifar_resnet.data import CIFAR10, ImageFolder, Synthetic
from cifar_resnet.files import PUBLISHED, Published
from cifar_resnet.instantiation import instantiate
from cifar_resnet.preflight import check_data

# the synthetic images


def test_synthetic_images_follow_their_seed_and_halves_differ():
    images, labels = Synthetic(num_train=300, num_test=70).read(train=True)
    again, _ = Synthetic(num_train=300, num_test=70).read(train=True)
    assert torch.equal(images, again)
    assert images.shape == (300, 3, 32, 32)
    assert labels.unique().tolist() == list(range(10))
    assert not torch.equal(images[:70], Synthetic(num_train=300, num_test=70).read(train=False)[0])
    assert not torch.equal(images, Synthetic(num_train=300, num_test=70, image_seed=1).read(train=True)[0])


@pytest.mark.slow
def test_synthetic_images_defeat_a_linear_classifier():
    data = Synthetic()
    (images, labels), (test_images, test_labels) = data.read(train=True), data.read(train=False)
    model = nn.Linear(3 * 32 * 32, 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    for _ in range(10):
        for batch in torch.randperm(len(labels)).split(200):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch].flatten(1) / 255 - 0.5), labels[batch]).backward()
            optimizer.step()
    accuracy = (model(test_images.flatten(1) / 255 - 0.5).argmax(1) == test_labels).float().mean()
    assert accuracy < 0.6


# image folders


@pytest.fixture
def folder(tmp_path):
    """Three classes, several formats, 12 images for training and 3 for testing."""
    random = np.random.default_rng(0)
    for half, count in (("train", 4), ("test", 1)):
        for name in ("cat", "dog", "owl"):
            target = tmp_path / "pets" / half / name
            target.mkdir(parents=True)
            for index, suffix in zip(range(count), (".png", ".bmp", ".tiff", ".webp"), strict=False):
                pixels = random.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(target / f"{index}{suffix}", lossless=True)
    return tmp_path / "pets"


def folder_data(root, **options) -> ImageFolder:
    data = ImageFolder(root=str(root), **({"batch_size": 4, "num_val": 3} | options))
    data.prepare_data()
    return data


def test_image_folder_reads_every_image_with_its_class(folder):
    data = folder_data(folder)
    images, labels = data.read(train=True)
    assert data.classes == ["cat", "dog", "owl"]
    assert data.num_classes == 3
    assert labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    for index, path in enumerate(sorted((folder / "train").glob("*/*"))):
        expected = torch.from_numpy(np.asarray(Image.open(path).convert("RGB")).copy()).permute(2, 0, 1)
        assert torch.equal(images[index], expected)


def test_image_folder_decodes_once_until_a_file_changes(folder, monkeypatch):
    decoded = []
    decode_files = ImageFolder.decode_files
    monkeypatch.setattr(
        ImageFolder, "decode_files", lambda self, paths: decoded.append(len(paths)) or decode_files(self, paths)
    )
    folder_data(folder)
    folder_data(folder)
    assert decoded == [12, 3]
    Image.new("RGB", (32, 32), "red").save(folder / "test" / "owl" / "0.png")
    images, _ = folder_data(folder).read(train=False)
    assert decoded == [12, 3, 3]
    assert images[2, 0].eq(255).all()


def test_where_nothing_can_be_kept_each_half_is_decoded_once(folder, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr("cifar_resnet.data.sources.log.warning", told.append)
    decoded, decode_files = [], ImageFolder.decode_files
    monkeypatch.setattr(
        ImageFolder, "decode_files", lambda self, paths: decoded.append(len(paths)) or decode_files(self, paths)
    )
    monkeypatch.setattr("cifar_resnet.data.sources.os.access", lambda path, mode: False)
    read_only = OSError(30, "Read-only file system")
    monkeypatch.setattr("cifar_resnet.data.sources.np.savez", Mock(side_effect=read_only))
    monkeypatch.setattr("cifar_resnet.data.sources.FileLock.acquire", Mock(side_effect=read_only))
    monkeypatch.setattr(Path, "unlink", Mock(side_effect=read_only))
    data = folder_data(folder)
    assert not decoded
    data.read(train=True)
    data.read(train=False)
    assert decoded == [12, 3]
    line = "warning: no cache could be written, so images are decoded anew each time ([Errno 30] Read-only file system)"
    assert told == [line] * 2


def test_a_cache_that_is_interrupted_leaves_nothing(folder, monkeypatch):
    monkeypatch.setattr("cifar_resnet.data.sources.np.savez", Mock(side_effect=KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        folder_data(folder)
    assert not list(folder.glob(".*.part"))


def test_a_damaged_cache_is_made_anew(folder):
    folder_data(folder)
    (cache,) = folder.glob(".*train*.npz")
    cache.write_bytes(cache.read_bytes()[:100])
    assert folder_data(folder).read(train=True)[0].shape == (12, 3, 32, 32)


def test_other_sizes_are_resized_with_a_warning(folder, monkeypatch):
    told = []
    monkeypatch.setattr("cifar_resnet.data.sources.log.warning", told.append)
    Image.new("L", (80, 60), 128).save(folder / "train" / "cat" / "large.png")
    for times in (1, 2):  # decoded, then from the cache
        images, _ = folder_data(folder).read(train=True)
        assert [line[:25] for line in told] == ["warning: 1 of 13 images i"] * times
    assert images[4].eq(128).all()


def test_a_broken_image_is_named(folder):
    (folder / "train" / "dog" / "1.bmp").write_bytes(b"not an image")
    with pytest.raises(ValueError, match=r"not a readable image: .*dog/1.bmp"):
        folder_data(folder)


def test_two_that_begin_at_once_decode_once(folder, monkeypatch):
    decode_files, decoded = ImageFolder.decode_files, []

    def slowly(self, paths):
        decoded.append(len(paths))
        time.sleep(0.3)
        return decode_files(self, paths)

    monkeypatch.setattr(ImageFolder, "decode_files", slowly)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(folder_data, [folder, folder])
    assert sorted(decoded) == [3, 12]
    assert torch.equal(first.read(train=True)[0], second.read(train=True)[0])


def test_image_folder_says_what_is_missing(folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="which is not there"):
        ImageFolder(root=str(tmp_path / "nowhere"))
    (folder / "test" / "fox").mkdir()
    with pytest.raises(ValueError, match=r"test has classes that train lacks. Got 'fox'"):
        ImageFolder(root=str(folder))


# CIFAR-10


@pytest.fixture
def published(tmp_path, monkeypatch):
    """A CIFAR-10 of ten images a batch, in the published format; gives the archive and makes torchvision expect it."""
    random = np.random.default_rng(0)
    source = tmp_path / "published" / "cifar-10-batches-py"
    source.mkdir(parents=True)
    content = {f"data_batch_{n}": None for n in range(1, 6)} | {"test_batch": None}
    for name in content:
        pixels = random.integers(256, size=(10, 3072), dtype=np.uint8)
        (source / name).write_bytes(pickle.dumps({"data": pixels, "labels": list(range(10))}))
    (source / "batches.meta").write_bytes(pickle.dumps({"label_names": list("abcdefghij")}))
    archive = tmp_path / "published" / "cifar-10-python.tar.gz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(source, arcname=source.name)

    def md5(path):
        return hashlib.md5(path.read_bytes()).hexdigest()

    known = Published(
        name="CIFAR10",
        url=datasets.CIFAR10.url,
        md5=md5(archive),
        folder=source.name,
        files={path.name: md5(path) for path in source.iterdir()},
    )
    monkeypatch.setattr(CIFAR10, "published", known)
    entries = [[name, md5(source / name)] for name in content]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", entries[:5])
    monkeypatch.setattr(datasets.CIFAR10, "test_list", entries[5:])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": md5(source / "batches.meta")}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(archive))
    monkeypatch.setattr("cifar_resnet.data.published.time.sleep", lambda seconds: None)
    return archive


@pytest.fixture
def server(published, monkeypatch):
    """Serves the archive, cut short for the first `server.failures` requests."""
    state = SimpleNamespace(failures=0, requests=0)

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_response(200)
            self.end_headers()

        def do_GET(self):
            state.requests += 1
            content = published.read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if state.requests <= state.failures else content)

        def log_message(self, *arguments):
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        monkeypatch.setattr(datasets.CIFAR10, "url", f"http://127.0.0.1:{running.server_port}/cifar-10-python.tar.gz")
        yield state
        running.shutdown()


def test_cifar10_is_downloaded_once(server, tmp_path):
    data = CIFAR10(root=str(tmp_path / "data"))
    data.prepare_data()
    requests = server.requests
    data = CIFAR10(root=str(tmp_path / "data"))
    data.prepare_data()
    images, labels = data.read(train=True)
    assert images.shape == (50, 3, 32, 32)
    assert labels.tolist() == list(range(10)) * 5
    assert data.classes == list("abcdefghij")
    assert server.requests == requests


def test_an_interrupted_download_is_tried_again(server, tmp_path):
    server.failures = 2
    data = CIFAR10(root=str(tmp_path / "data"))
    data.prepare_data()
    assert data.is_complete()
    assert server.requests > server.failures


def test_a_proxy_that_answers_nonsense_is_told_as_any_failed_download(server, tmp_path, monkeypatch):
    monkeypatch.setattr(CIFAR10, "fetch", Mock(side_effect=BadStatusLine("what?")))
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        CIFAR10(root=str(tmp_path / "data")).prepare_data()


def test_half_a_download_never_counts_as_present(server, tmp_path):
    server.failures = 99
    data = CIFAR10(root=str(tmp_path / "data"))
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        data.prepare_data()
    assert not data.is_complete()
    assert not (tmp_path / "data").exists()  # half an archive would look like one that another packed
    server.failures = 0
    data.prepare_data()
    assert data.is_complete()


def test_what_others_have_put_there_meanwhile_is_left(server, tmp_path, monkeypatch):
    fetch, root = CIFAR10.fetch, tmp_path / "data"

    def fetched(self):
        (root / "MNIST").mkdir(exist_ok=True)
        (root / "MNIST" / "raw").write_text("another's")
        fetch(self)

    monkeypatch.setattr(CIFAR10, "fetch", fetched)
    server.failures = 99
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        CIFAR10(root=str(root)).prepare_data()
    assert [path.name for path in root.iterdir()] == ["MNIST"]
    assert (root / "MNIST" / "raw").read_text() == "another's"


def test_an_archive_put_there_by_hand_needs_no_network(published, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/nothing")
    root = tmp_path / "data"
    root.mkdir()
    (root / published.name).write_bytes(published.read_bytes())
    data = CIFAR10(root=str(root))
    data.prepare_data()
    assert data.is_complete()


def test_without_a_network_the_message_says_what_to_put_where(published, tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR10, "url", "http://127.0.0.1:9/nothing")
    root = tmp_path / "data"
    with pytest.raises(FileNotFoundError, match=rf"not in {root}.*Put the folder cifar-10-batches-py.*data.root="):
        CIFAR10(root=str(root)).prepare_data()


def test_without_batches_archive_and_network_the_command_line_says_so_at_once(published, tmp_path, monkeypatch):
    known, root = CIFAR10.published, tmp_path / "data"
    outcomes = [URLError(socket.gaierror(-2, "no such host")), URLError(TimeoutError("slow")), BadStatusLine("?")]
    monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=outcomes))
    with pytest.raises(FileNotFoundError, match=rf"not in {root} and could not be downloaded.*no such host"):
        known.check(str(root))
    for _ in ("slow", "odd"):  # which may be better next time
        known.check(str(root))
    monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=AssertionError("asked for nothing")))
    root.mkdir()
    (root / published.name).write_bytes(published.read_bytes())
    known.check(str(root))
    (root / published.name).unlink()
    shutil.copytree(published.parent / known.folder, root / known.folder)
    known.check(str(root))


def test_what_is_damaged_is_named(published, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=URLError(socket.gaierror(-2, "no such host"))))
    shutil.copytree(published.parent / CIFAR10.published.folder, tmp_path / CIFAR10.published.folder)
    (tmp_path / CIFAR10.published.folder / "data_batch_4").write_bytes(b"half")
    with pytest.raises(FileNotFoundError, match=rf"is damaged in {tmp_path} \(data_batch_4\)"):
        CIFAR10.published.check(str(tmp_path))


def overrides_in(message: str) -> list[str]:
    """What it says to give instead."""
    return shlex.split(message.partition("as it is: ")[2].partition(". Put the folder")[0].rstrip(". "))


def test_a_copy_that_another_packed_is_read_with_the_list_that_the_message_gives(published, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=URLError(socket.gaierror(-2, "no such host"))))
    folder = tmp_path / CIFAR10.published.folder
    shutil.copytree(published.parent / folder.name, folder)
    for path in folder.iterdir():
        path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()), protocol=2))
    with pytest.raises(FileNotFoundError, match="another packed it") as caught:
        CIFAR10.published.check(str(tmp_path))
    (job,) = Composer("train").jobs(overrides_in(str(caught.value)))
    check_data(job.cfg.data)
    data = instantiate(job.cfg.data, _convert_="all")
    for train, names in ((True, [f"data_batch_{number}" for number in range(1, 6)]), (False, ["test_batch"])):
        content = [pickle.loads((folder / name).read_bytes()) for name in names]
        images, labels = data.read(train)
        assert np.array_equal(images.flatten(1), np.concatenate([each["data"] for each in content]))
        assert labels.tolist() == [label for each in content for label in each["labels"]]
    (folder / "data_batch_2").write_bytes((folder / "data_batch_2").read_bytes()[:100])
    with pytest.raises(FileNotFoundError, match=r"damaged in .*data_batch_2") as caught:
        CIFAR10.published.check(str(tmp_path))
    assert overrides_in(str(caught.value)) == []


def test_an_archive_that_another_packed_is_to_be_unpacked(published, tmp_path, monkeypatch):
    monkeypatch.setattr("urllib.request.urlopen", Mock(side_effect=URLError(socket.gaierror(-2, "no such host"))))
    (tmp_path / published.name).write_bytes(published.read_bytes() + b"\0")
    with pytest.raises(FileNotFoundError, match=rf"where {published.name} has another MD5: it was cut short, or "):
        CIFAR10.published.check(str(tmp_path))


def test_a_cifar100_that_another_packed_is_read_by_its_fine_labels(tmp_path):
    folder = tmp_path / "cifar-100-python"
    folder.mkdir()
    for name in ("train", "test"):
        content = {"data": np.zeros((6, 3072), np.uint8), "fine_labels": [5, 4, 3, 2, 1, 0], "coarse_labels": [0] * 6}
        (folder / name).write_bytes(pickle.dumps(content))
    (job,) = Composer("train").jobs(overrides_in(PUBLISHED["CIFAR100"].as_it_is(tmp_path)))
    assert instantiate(job.cfg.data, _convert_="all").read(train=True)[1].tolist() == [5, 4, 3, 2, 1, 0]


@pytest.mark.parametrize("theirs", [datasets.CIFAR10, datasets.CIFAR100])
def test_cifar_is_known_by_what_torchvision_knows(theirs):
    known = PUBLISHED[theirs.__name__]
    assert (known.url, known.md5, known.folder) == (theirs.url, theirs.tgz_md5, theirs.base_folder)
    assert known.archive == theirs.filename
    meta = (theirs.meta["filename"], theirs.meta["md5"])
    assert list(known.files.items()) == [tuple(entry) for entry in [*theirs.train_list, *theirs.test_list, meta]]


def test_a_damaged_batch_is_not_read(server, tmp_path):
    data = CIFAR10(root=str(tmp_path / "data"))
    data.prepare_data()
    (data.root / "cifar-10-batches-py" / "data_batch_3").write_bytes(b"cos\nsystem\n(S'touch hacked'\ntR.")
    assert not data.is_complete()
    data.prepare_data()
    assert data.is_complete()


@pytest.mark.parametrize(
    ("name", "mean", "std"),
    [
        ("cifar10", [0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
        ("cifar100", [0.5071, 0.4865, 0.4409], [0.2673, 0.2564, 0.2762]),
    ],
)
def test_pixels_are_normalised_by_the_training_sets_own_numbers(name, mean, std):
    """As torchvision's users have measured them on all 50,000 images."""
    (job,) = Composer("train").jobs([f"data={name}"])
    assert list(job.cfg.data.mean) == pytest.approx(mean, abs=2e-4)
    assert list(job.cfg.data.std) == pytest.approx(std, abs=2e-4)


def test_real_cifar10_is_split_45k_5k_with_its_own_constants(cifar10_root):
    data = CIFAR10(root=str(cifar10_root), num_val=5000)
    data.prepare_data()
    data.load()
    assert (len(data.train), len(data.val)) == (45_000, 5_000)
    assert data.val.labels.bincount().tolist() == [500] * 10
    assert data.split_hash == "721d3fd60e6eddf2"
    everything = CIFAR10(root=str(cifar10_root), num_val=0)
    everything.load()
    assert [round(value, 4) for value in everything.mean] == [0.4914, 0.4822, 0.4465]
    assert [round(value, 4) for value in everything.std] == [0.2470, 0.2435, 0.2616]
