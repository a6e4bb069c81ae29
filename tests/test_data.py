"""The split, the order of batches, and each source of images."""

import hashlib
import http.server
import pickle
import shutil
import socket
import tarfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from http.client import BadStatusLine
from types import SimpleNamespace
from unittest.mock import Mock
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torchvision import datasets

from cifar_resnet.data import CIFAR10, Augment, ImageFolder, Synthetic
from cifar_resnet.data.augment import normalise
from cifar_resnet.data.datamodule import ShuffledBatches, stratified_split
from cifar_resnet.files import PUBLISHED, Published


def as_if_training(data, training=True):
    """What a Trainer on one CPU would tell the data module."""
    cpu = SimpleNamespace(root_device=torch.device("cpu"))
    data.trainer = SimpleNamespace(training=training, global_rank=0, world_size=1, strategy=cpu)
    return data


def tiny(**options) -> Synthetic:
    return Synthetic(**({"num_train": 300, "num_test": 70, "num_val": 100, "batch_size": 32} | options))


def batches_of(data, loader):
    return [data.on_after_batch_transfer(batch, 0) for batch in loader]


def test_split_is_disjoint_complete_and_stratified():
    labels = torch.arange(50_000) % 10
    labels = labels[torch.randperm(50_000, generator=torch.Generator().manual_seed(0))]
    train, val = stratified_split(labels, 5_000, seed=0)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(50_000))
    assert labels[val].bincount().tolist() == [500] * 10


def test_split_of_uneven_classes_is_in_proportion():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    for num_val in (0, 1, 7, 33, 99, 100):
        _, val = stratified_split(labels, num_val, seed=3)
        assert len(val) == num_val
        counts = labels[val].bincount(minlength=3).float()
        assert (counts - num_val * torch.tensor([0.7, 0.2, 0.1])).abs().max() < 1


def test_split_follows_split_seed_alone():
    def hash_of(**options):
        data = tiny(**options)
        data.load()
        return data.split_hash

    torch.manual_seed(5)
    first = hash_of(seed=1)
    torch.manual_seed(6)
    assert hash_of(seed=2, batch_size=16) == first
    assert hash_of(split_seed=1) != first


def test_split_is_the_same_in_every_release():
    """Somebody's validation images must not become training images by an update."""
    _, val = stratified_split(torch.arange(1000) % 10, 100, seed=0)
    assert hashlib.sha256(val.numpy().tobytes()).hexdigest()[:16] == "55479a2a2d999980"


def test_validation_and_test_images_come_unaugmented_in_order_and_complete():
    data = as_if_training(tiny(augment=Augment(), eval_batch_size=32), training=False)
    images, labels = data.read(train=True)
    test_images, test_labels = data.read(train=False)
    _, val = stratified_split(labels, 100, seed=0)
    data.setup("fit")
    data.setup("test")
    constants = torch.tensor(data.mean), torch.tensor(data.std)
    for loader, expected_images, expected_labels in (
        (data.val_dataloader(), images[val], labels[val]),
        (data.test_dataloader(), test_images, test_labels),
    ):
        found = batches_of(data, loader)
        assert torch.equal(torch.cat([batch[1] for batch in found]), expected_labels)
        assert torch.equal(torch.cat([batch[0] for batch in found]), normalise(expected_images, *constants))


def test_training_never_sees_a_validation_image():
    data = as_if_training(tiny())
    data.setup("fit")
    val = {image.numpy().tobytes() for image in data.val.tensors[0]}
    seen = [image.numpy().tobytes() for batch in data.train_dataloader() for image in batch[0]]
    assert len(set(seen)) == 192  # six whole batches of the 200, no image twice
    assert not val & set(seen)


def test_training_batches_are_augmented_by_seed_and_epoch():
    def epoch(seed, number):
        data = as_if_training(tiny(seed=seed, augment=Augment()))
        data.setup("fit")
        loader = data.train_dataloader()
        loader.sampler.set_epoch(number)
        return batches_of(data, loader)

    first, again = epoch(0, 3), epoch(0, 3)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(first, again, strict=True))
    for seed, number in ((0, 4), (1, 3)):
        other = epoch(seed, number)
        assert not torch.equal(first[0][1], other[0][1])
        assert not torch.equal(first[0][0], other[0][0])


def test_ranks_share_out_one_order_and_augment_differently():
    cpu = torch.device("cpu")
    ranks = [ShuffledBatches(103, 10, seed=0, rank=rank, world_size=3, device=cpu) for rank in range(3)]
    dealt = [torch.cat(list(rank)) for rank in ranks]
    assert [len(indices) for indices in dealt] == [30, 30, 30]
    assert len(torch.cat(dealt).unique()) == 90
    seeds = {rank.generator.initial_seed() for rank in ranks}
    ranks[0].set_epoch(1)
    list(ranks[0])
    assert len(seeds | {ranks[0].generator.initial_seed()}) == 4


def test_num_val_zero_trains_on_everything():
    data = as_if_training(tiny(num_val=0))
    data.setup("fit")
    assert len(data.train) == 300
    assert not data.has_val


def test_mean_and_std_are_those_of_the_training_images():
    data = tiny()
    data.load()
    pixels = data.train.tensors[0].double() / 255
    torch.testing.assert_close(torch.tensor(data.mean).double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(data.std).double(), pixels.std((0, 2, 3), correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size counts images. Got 0"),
        ({"num_val": -1}, "data.num_val .* Got -1"),
        ({"num_val": 1.5}, "data.num_val .* Got 1.5"),
        ({"split_seed": -1}, "data.split_seed is a seed. Got -1"),
        ({"std": [0.0, 1.0, 1.0]}, r"data.std\[0\] divides"),
        ({"num_train": 3}, "data.num_train counts images. Got 3"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_too_few_images_for_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"Got 300 less 100 for validation, and data.batch_size=512"):
        tiny(batch_size=512).load()


# the synthetic images


def test_synthetic_images_follow_their_seed_and_halves_differ():
    images, labels = tiny().read(train=True)
    again, _ = tiny().read(train=True)
    assert torch.equal(images, again)
    assert images.shape == (300, 3, 32, 32)
    assert labels.unique().tolist() == list(range(10))
    assert not torch.equal(images[:70], tiny().read(train=False)[0])
    assert not torch.equal(images, tiny(image_seed=1).read(train=True)[0])


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


def test_a_damaged_cache_is_made_anew(folder):
    folder_data(folder)
    (cache,) = folder.glob(".*train*.npz")
    cache.write_bytes(cache.read_bytes()[:100])
    assert folder_data(folder).read(train=True)[0].shape == (12, 3, 32, 32)


def test_other_sizes_are_resized_with_a_warning(folder):
    Image.new("L", (80, 60), 128).save(folder / "train" / "cat" / "large.png")
    for _ in range(2):  # decoded, then from the cache
        with pytest.warns(UserWarning, match=r"1 of 13 images .* were not 32x32"):
            images, _ = folder_data(folder).read(train=True)
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
    with pytest.raises(FileNotFoundError, match="without train/"):
        ImageFolder(root=str(tmp_path / "nowhere"))
    (folder / "test" / "fox").mkdir()
    with pytest.raises(ValueError, match=r"test has classes that train lacks. Got fox"):
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
    monkeypatch.setattr("cifar_resnet.data.sources.time.sleep", lambda seconds: None)
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


def test_half_a_download_never_counts_as_present(server, tmp_path):
    server.failures = 99
    data = CIFAR10(root=str(tmp_path / "data"))
    with pytest.raises(FileNotFoundError, match="could not be downloaded"):
        data.prepare_data()
    assert not data.is_complete()
    server.failures = 0
    data.prepare_data()
    assert data.is_complete()


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


def test_real_cifar10_is_split_45k_5k_with_its_own_constants(cifar10_root):
    data = CIFAR10(root=str(cifar10_root), num_val=5000)
    data.prepare_data()
    data.load()
    assert (len(data.train), len(data.val)) == (45_000, 5_000)
    assert data.val.tensors[1].bincount().tolist() == [500] * 10
    assert data.split_hash == "721d3fd60e6eddf2"
    everything = CIFAR10(root=str(cifar10_root), num_val=0)
    everything.load()
    assert [round(value, 4) for value in everything.mean] == [0.4914, 0.4822, 0.4465]
    assert [round(value, 4) for value in everything.std] == [0.2470, 0.2435, 0.2616]
