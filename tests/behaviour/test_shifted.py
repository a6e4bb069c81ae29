"""Test sets outside of the training, from small files of the published format; figures by NumPy alone, from what the
network itself predicts."""

import csv
import hashlib
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, by_pairs
from PIL import Image
from torchvision import datasets

from cifar_resnet import cli, load
from cifar_resnet.compose import Composer
from cifar_resnet.constraints import BENCHMARK, CORRUPTIONS
from cifar_resnet.data import CIFAR10, DataModule, Synthetic
from cifar_resnet.data.corruptions import corrupted
from cifar_resnet.data.shifted import CLASSES
from cifar_resnet.files import PUBLISHED, Published
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models import Classifier
from cifar_resnet.results.inference import Ensemble, head_module, watching
from cifar_resnet.results.predictions import Predictions

NUM = 40  # test images


@pytest.fixture(scope="module")
def images() -> tuple[np.ndarray, np.ndarray]:
    """(NUM, 32, 32, 3) uint8, and as many labels."""
    found, labels = Synthetic(num_test=NUM, image_seed=3).read(train=False)
    return found.permute(0, 2, 3, 1).numpy(), labels.numpy()


@pytest.fixture(scope="module")
def sweep(tmp_path_factory) -> Path:
    """Two networks trained for a moment on drawn images with the names of CIFAR-10's classes."""
    folder = tmp_path_factory.mktemp("shifted")
    torch.set_num_threads(1)
    for train in (True, False):
        found, labels = Synthetic(num_train=240, num_test=NUM).read(train)
        np.savez(folder / f"{train}.npz", images=found.permute(0, 2, 3, 1), labels=labels, classes=np.array(CLASSES))
    tiny = [text for text in TINY if not text.startswith("data")]
    data = [
        "data=files", f"data.train={folder}/True.npz", f"data.test={folder}/False.npz", "data.num_val=40",
        "data.batch_size=40",
    ]  # fmt: skip
    assert cli.train(["-m", *tiny, *data, f"output_dir={folder}/outputs", "seed=0,1", "trainer.max_epochs=2"]) == 0
    return next((folder / "outputs").glob("train/sweep-*"))


@pytest.fixture
def run_dir(sweep) -> Path:
    return sweep / "seed-0"


@pytest.fixture
def cifar10(tmp_path, monkeypatch, images) -> Path:
    """The images as CIFAR-10's, in `data`."""
    folder, (pixels, labels) = tmp_path / "data" / "cifar-10-batches-py", images
    folder.mkdir(parents=True)
    content = {b"data": pixels.transpose(0, 3, 1, 2).reshape(NUM, -1), b"labels": labels.tolist()}
    for name in [*(f"data_batch_{place}" for place in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({key.decode(): value for key, value in content.items()}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": CLASSES}))
    known = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    published = Published("CIFAR10", "http://127.0.0.1:9/cifar-10-python.tar.gz", "0" * 32, folder.name, known)
    monkeypatch.setattr(CIFAR10, "published", published)
    monkeypatch.setitem(PUBLISHED, "CIFAR10", published)
    rows = [[name, md5] for name, md5 in known.items() if name.startswith("data")]
    monkeypatch.setattr(datasets.CIFAR10, "train_list", rows)
    monkeypatch.setattr(datasets.CIFAR10, "test_list", [["test_batch", known["test_batch"]]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": known["batches.meta"]}
    monkeypatch.setattr(datasets.CIFAR10, "meta", meta)
    return tmp_path / "data"


def write_cifar10_c(folder: Path, images: tuple[np.ndarray, np.ndarray]) -> dict[str, np.ndarray]:
    """Darker by each severity, and by each corruption in its own way."""
    folder.mkdir(parents=True)
    pixels, labels = images
    written = {}
    for place, name in enumerate(CORRUPTIONS):
        each = [(pixels * (1 - severity * (place + 1) / 120)).astype(np.uint8) for severity in range(1, 6)]
        written[name] = np.concatenate(each)
        np.save(folder / f"{name}.npy", written[name])
    np.save(folder / "labels.npy", np.tile(labels, 5).astype(np.uint8))
    return written


def probabilities(run_dir: Path, pixels: np.ndarray) -> np.ndarray:
    """(N, 10)."""
    return load(run_dir).predict(torch.from_numpy(pixels).permute(0, 3, 1, 2)).double().numpy()


def result_of(run_dir: Path, *overrides: str) -> dict:
    assert cli.evaluate([f"checkpoint={run_dir}", "output_dir=evaluated", "resamples=50", *overrides]) == 0
    return json.loads(Path("evaluated/evaluation.json").read_text())


def of_networks(sweep: Path, pixels: np.ndarray) -> np.ndarray:
    return np.mean([probabilities(path, pixels) for path in sorted(sweep.glob("seed-*"))], axis=0)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("members", [1, 2])
def test_cifar10_c_is_the_mean_over_its_conditions(sweep, tmp_path, images, members, capsys):
    written = write_cifar10_c(tmp_path / "data" / "CIFAR-10-C", images)
    shown = sweep if members == 2 else sweep / "seed-0"
    result = result_of(shown, "data=cifar10_c", "data.root=data")
    accs = {}
    for name, pixels in written.items():
        found = of_networks(sweep, pixels) if members == 2 else probabilities(shown, pixels)
        right = (found.argmax(1) == np.tile(images[1], 5)).reshape(5, NUM)
        accs |= {(name, severity + 1): right[severity].mean() for severity in range(5)}
    corruptions = result["corruptions"]
    assert len(corruptions["each"]) == 95
    for one in corruptions["each"]:
        assert one["acc"] == pytest.approx(accs[one["corruption"], one["severity"]]), one
    assert corruptions["mean_acc"] == pytest.approx(np.mean(list(accs.values())))
    benchmark = [acc for (name, _), acc in accs.items() if name in BENCHMARK]
    assert corruptions["benchmark_acc"] == pytest.approx(np.mean(benchmark))
    low, high = corruptions["mean_acc_interval"]
    assert low <= corruptions["mean_acc"] <= high
    assert (result["num_images"], len(Predictions.load(Path("evaluated/predictions.npz")).labels)) == (NUM, 95 * NUM)
    out = capsys.readouterr().out
    assert f"{corruptions['mean_acc']:.2%}, 95% interval" in out
    assert "glass_blur" in out
    assert "<h2>Corruptions</h2>" in Path("evaluated/page.html").read_text()


@pytest.mark.slow
def test_a_part_of_cifar10_c_is_the_same_images_under_each_condition(run_dir, tmp_path, images):
    write_cifar10_c(tmp_path / "data", images)  # without a folder of its own
    result = result_of(
        run_dir, "data=cifar10_c", "data.root=data", "data.corruptions=[fog,snow]", "data.severities=[2,5]",
        "data.num_test=20",
    )  # fmt: skip
    assert [(one["corruption"], one["severity"]) for one in result["corruptions"]["each"]] == [
        ("fog", 2), ("fog", 5), ("snow", 2), ("snow", 5),
    ]  # fmt: skip
    labels = Predictions.load(Path("evaluated/predictions.npz")).labels.view(4, 20)
    assert (labels == labels[0]).all()
    assert "benchmark_acc" not in result["corruptions"]


@pytest.mark.slow
def test_cifar10_1_is_a_test_set(run_dir, tmp_path, images, capsys):
    folder = tmp_path / "data" / "CIFAR-10.1" / "datasets"
    folder.mkdir(parents=True)
    for version, count in (("v4", 30), ("v6", 20)):
        np.save(folder / f"cifar10.1_{version}_data.npy", images[0][:count])
        np.save(folder / f"cifar10.1_{version}_labels.npy", images[1][:count].astype(np.int32))
    for version, count in (("v6", 20), ("v4", 30)):
        result = result_of(run_dir, "data=cifar10_1", "data.root=data", f"data.version={version}")
        right = probabilities(run_dir, images[0][:count]).argmax(1) == images[1][:count]
        assert (result["num_images"], result["scores"]["acc"]) == (count, pytest.approx(right.mean()))


def test_cifar10h_is_the_cross_entropy_to_the_votes(run_dir, cifar10, images, capsys):
    votes = np.random.default_rng(0).dirichlet(np.full(10, 0.2), NUM)
    (cifar10 / "cifar-10h" / "data").mkdir(parents=True)
    np.save(cifar10 / "cifar-10h" / "data" / "cifar10h-probs.npy", votes)
    result = result_of(run_dir, "data=cifar10h", f"data.root={cifar10}")
    found = probabilities(run_dir, images[0])
    assert result["votes"]["cross_entropy"] == pytest.approx(-(votes * np.log(found)).sum(1).mean(), rel=1e-4)
    logits = np.log(found) / result["temperature"]
    calibrated = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    assert result["votes"]["calibrated_cross_entropy"] == pytest.approx(-(votes * calibrated).sum(1).mean(), rel=1e-4)
    entropy = -(votes * np.log(votes.clip(1e-300))).sum(1).mean()
    assert result["votes"]["entropy_of_votes"] == pytest.approx(entropy)
    assert result["scores"]["acc"] == pytest.approx((found.argmax(1) == images[1]).mean())
    assert f"people's own {entropy:.4f}" in capsys.readouterr().out


@pytest.mark.slow
def test_our_own_corruptions_are_of_cifar10s_test_images(run_dir, cifar10, images, capsys):
    conditions = ["data.corruptions=[contrast,gaussian_noise]", "data.severities=[1,5]"]
    result = result_of(run_dir, "data=corrupted", f"data.root={cifar10}", *conditions)
    clean = torch.from_numpy(images[0]).permute(0, 3, 1, 2)
    for one in result["corruptions"]["each"]:
        pixels = corrupted(clean, one["corruption"], one["severity"]).permute(0, 2, 3, 1).numpy()
        assert one["acc"] == pytest.approx((probabilities(run_dir, pixels).argmax(1) == images[1]).mean())
    right = probabilities(run_dir, images[0]).argmax(1) == images[1]
    assert result["corruptions"]["clean_acc"] == pytest.approx(right.mean())
    assert f"uncorrupted, the same images {right.mean():.2%}, 95% interval" in " ".join(capsys.readouterr().out.split())
    assert cli.report([str(run_dir), "evaluated", "output=report"]) == 0
    assert f"uncorrupted, the same {NUM} images | {right.mean():.2%}" in Path("report/report.md").read_text()
    other = result_of(run_dir, "data=corrupted", f"data.root={cifar10}", *conditions, "data.corruption_seed=1")
    assert other["corruptions"]["each"][0] == result["corruptions"]["each"][0]  # no chance in it
    assert other["corruptions"]["each"][2]["loss"] != result["corruptions"]["each"][2]["loss"]


@pytest.mark.slow
def test_a_report_says_how_they_held_up(sweep, tmp_path, images):
    write_cifar10_c(tmp_path / "data", images)
    np.savez(tmp_path / "some.npz", images=images[0][:15])
    for place, overrides in enumerate((["data=cifar10_c", "data.root=data"], ["ood=some.npz"])):
        line = [f"checkpoint={sweep / 'seed-0'}", f"output_dir=evaluated/{place}", "resamples=20", *overrides]
        assert cli.evaluate(line) == 0
    assert cli.report([str(sweep), "evaluated"]) == 0
    with Path("outputs/report/holding_up.csv").open(newline="") as file:
        rows = {row["measure"]: row for row in csv.DictReader(file)}
    first, second = (json.loads(Path(f"evaluated/{place}/evaluation.json").read_text()) for place in (0, 1))
    assert (
        float(rows[f"mean corruption accuracy, 95 conditions, {NUM} images"]["value"])
        == first["corruptions"]["mean_acc"]
    )
    energy = second["ood"]["some.npz"]["scores"]["energy"]
    row = rows["AUROC against some.npz, energy"]
    assert [float(row[key]) for key in ("value", "low", "high")] == [energy["auroc"], *energy["auroc_interval"]]
    assert f"{energy['auroc']:.2%}" in Path("outputs/report/report.html").read_text()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("members", [1, 2])
def test_other_images_are_told_apart_as_a_plain_loop_does(sweep, tmp_path, images, members, capsys):
    """By maximum probability, energy and neighbours, of which the features are taken from the network's own layers."""
    pictures = tmp_path / "others" / "deep"
    pictures.mkdir(parents=True)
    strange = np.random.default_rng(1).integers(256, size=(12, 32, 32, 3), dtype=np.uint8)
    for place, pixels in enumerate(strange):
        Image.fromarray(pixels).save(pictures / f"{place:02d}.png")
    np.savez(tmp_path / "some.npz", images=images[0][:15])
    shown = sweep if members == 2 else sweep / "seed-0"
    result = result_of(shown, "ood=[others,some.npz,synthetic]", "neighbours=5", "precision=32-true")
    assert [(name, each["num_images"]) for name, each in result["ood"].items()] == [
        ("others", 12), ("some.npz", 15), ("synthetic", 2000),
    ]  # fmt: skip
    paths = sorted(sweep.glob("seed-*"))[:members]
    own = np.load(sweep.parents[2] / "False.npz")["images"]
    train = training_images(paths[0])
    scores = [by_hand(paths, pixels, train) for pixels in (own, strange)]
    for name, found in result["ood"]["others"]["scores"].items():
        assert found["auroc"] == pytest.approx(by_pairs(scores[0][name], scores[1][name]), abs=1e-6), name
        low, high = found["auroc_interval"]
        assert low <= found["auroc"] <= high
    assert len(result["ood"]["others"]["scores"]) == 3
    out = capsys.readouterr().out
    assert "nearest neighbours" in out
    assert "<h2>Images of other things</h2>" in Path("evaluated/page.html").read_text()


def training_images(run_dir: Path) -> torch.Tensor:
    cfg = load(run_dir).config["data"]
    (job,) = Composer("train").jobs(
        [
            "data=files",
            f"data.train={cfg['train']}",
            f"data.test={cfg['test']}",
            "data.num_val=40",
            "data.batch_size=40",
        ]
    )
    data: DataModule = instantiate(job.cfg.data, _convert_="all")
    data.load()
    return data.train.images


def by_hand(paths: list[Path], pixels: np.ndarray, train: torch.Tensor) -> dict[str, np.ndarray]:
    """Each network's layers up to the pooled features by a walk of our own, the rest in NumPy."""
    each: dict[str, list] = {"probability": [], "energy": [], "neighbours": []}
    for path in paths:
        network = load(path)
        mean, std = (value[:, None, None] for value in network.pixel_stats(torch.device("cpu")))

        def features(images: torch.Tensor, network=network, mean=mean, std=std) -> np.ndarray:
            with torch.inference_mode():
                x = network.stages(torch.relu(network.bn1(network.conv1((images / 255 - mean) / std))))
            return x.mean((2, 3)).numpy()

        own, known = features(torch.from_numpy(pixels).permute(0, 3, 1, 2)), features(train)
        logits = own @ network.fc.weight.detach().numpy().T + network.fc.bias.detach().numpy()
        each["energy"].append(np.log(np.exp(logits).sum(1)))
        each["probability"].append(np.exp(logits) / np.exp(logits).sum(1, keepdims=True))
        own, known = (values / np.linalg.norm(values, axis=1, keepdims=True) for values in (own, known))
        distances = np.sort(np.linalg.norm(own[:, None] - known[None], axis=2), axis=1)
        each["neighbours"].append(-distances[:, 4])
    found = {name: np.mean(values, axis=0) for name, values in each.items()}
    return found | {"probability": found["probability"].max(1)}


@pytest.mark.slow
def test_without_its_training_images_neighbours_are_left_out_and_that_is_said(run_dir, tmp_path, images, capsys):
    np.savez(tmp_path / "test.npz", images=images[0], labels=images[1], classes=np.array(CLASSES))
    np.savez(tmp_path / "some.npz", images=images[0][:15])
    command = (run_dir, "data=files", "data.test=test.npz", "ood=some.npz")
    result = result_of(*command)  # whose training images lie where they did
    assert set(result["ood"]["some.npz"]["scores"]) == {"probability", "energy", "neighbours"}
    assert result["temperature_from"] == "40 validation images"
    train = run_dir.parents[3] / "True.npz"
    train.rename("away.npz")
    try:
        result = result_of(*command)
    finally:
        Path("away.npz").rename(train)
    assert set(result["ood"]["some.npz"]["scores"]) == {"probability", "energy"}
    assert result["temperature"] is None
    assert "nearest neighbours" in capsys.readouterr().out


def test_a_corruption_that_is_not_made_here_is_refused(run_dir, cifar10, capsys):
    command = [f"checkpoint={run_dir}", "data=corrupted", f"data.root={cifar10}", "data.corruptions=[fog,frost]"]
    assert cli.evaluate(command) == 2
    error = capsys.readouterr().err
    assert "made here are gaussian_noise, " in error
    assert "Got data.corruptions=['frost']; leave that out" in error


@pytest.mark.parametrize("damage", [lambda votes: votes * 2, lambda votes: votes - 0.1, lambda votes: votes * np.nan])
def test_votes_that_are_no_shares_are_refused(run_dir, cifar10, capsys, damage):
    np.save(cifar10 / "cifar10h-probs.npy", damage(np.full((NUM, 10), 0.1)))
    assert cli.evaluate([f"checkpoint={run_dir}", "data=cifar10h", f"data.root={cifar10}"]) == 2
    error = capsys.readouterr().err
    assert "shares of the votes for each image, which sum to 1. Got others in " in error
    assert error.count("\n") == 1


WRONG = [
    (
        ["data=cifar10_c", "data.root=void"],
        "CIFAR-10-C is not in void. Got no gaussian_noise.npy there, nor in void/CIFAR-10-C;",
    ),
    (["data=cifar10_1", "data.root=void"], "CIFAR-10.1 is not in void. Got no cifar10.1_v6_data.npy"),
    (["data=cifar10h", "data.root=void"], "CIFAR-10H is not in void. Got no cifar10h-probs.npy"),
    (
        ["ood=nothing"],
        "ood names choices of data, or places with images. Got nothing, which is no choice, nor is it there",
    ),
    (["ood=[void]"], "ood must be pictures"),
    (["ood=notes.txt"], "ood must be pictures, or archives of them. Got notes.txt, where there is none"),
    (
        ["data=cifar10_c", "data.root=data", "data.corruptions=[rain]"],
        "data.corruptions[0] must be one of gaussian_noise, ",
    ),
    (["data=corrupted", "data.root=void"], "CIFAR10 is not in void"),
    (["data.image_size=16"], "the network looks at 32 pixels. Got images of 16"),
    (["data=cifar10_c", "data.root=data", "data.severities=[]"], "data.severities must be a list of 1 or more"),
    (["ood=corrupted"], "ood is one set of images. Got corrupted, of 85 conditions"),
    (["ood=image_folder"], "ood=image_folder does not say where its images are. Give the folder"),
    (["ood=medmnist"], "ood=medmnist does not say where its images are. Give the folder"),
    (["data=cifar10_c", "data.root=data", "data.severities=[6]"], "data.severities"),
    (["data=cifar10_c", "data.root=data", "data.num_test=41"], "Got 41 of 40"),
    (["data=cifar10_c", "data.root=data", "ood=synthetic"], "ood tells other images from test images as they are"),
]


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(("overrides", "said"), WRONG)
def test_what_is_missing_or_cannot_be_is_told_in_a_line(run_dir, tmp_path, images, capsys, overrides, said):
    (tmp_path / "void").mkdir()
    (tmp_path / "notes.txt").write_text("no picture")
    write_cifar10_c(tmp_path / "data", images)
    before = sorted(path.name for path in run_dir.iterdir())
    assert cli.evaluate([f"checkpoint={run_dir}", *overrides]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert sorted(path.name for path in run_dir.iterdir()) == before


def damaged_labels(folder: Path) -> None:
    np.save(folder / "labels.npy", np.full(5 * NUM, 10))


def fewer_labels(folder: Path) -> None:
    np.save(folder / "labels.npy", np.zeros(NUM, int))


def other_shape(folder: Path) -> None:
    np.save(folder / "gaussian_noise.npy", np.zeros((NUM, 3, 32, 32), np.uint8))


def floats(folder: Path) -> None:
    np.save(folder / "gaussian_noise.npy", np.zeros((5 * NUM, 32, 32, 3)))


def no_array(folder: Path) -> None:
    (folder / "gaussian_noise.npy").write_bytes(b"<html>not found</html>")


def archive(folder: Path) -> None:
    with (folder / "gaussian_noise.npy").open("wb") as file:
        np.savez(file, images=np.zeros(3))


def four_severities(folder: Path) -> None:
    np.save(folder / "gaussian_noise.npy", np.zeros((4 * NUM + 1, 32, 32, 3), np.uint8))
    np.save(folder / "labels.npy", np.zeros(4 * NUM + 1, int))


def cut_archive(folder: Path) -> None:
    archive(folder)
    (folder / "gaussian_noise.npy").write_bytes((folder / "gaussian_noise.npy").read_bytes()[:50])


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (damaged_labels, "labels from 0 to 9. Got 10 to 10"),
        (fewer_labels, "a label for each image. Got 40"),
        (other_shape, "with shape (40, 3, 32, 32), and not (N, 32, 32, 3)"),
        (floats, "images of whole numbers. Got float64"),
        (no_array, "not an array of NumPy's"),
        (archive, "not an array of NumPy's"),
        (cut_archive, "not an array of NumPy's"),
        (four_severities, f"the images of five severities, one after the other. Got {4 * NUM + 1}"),
    ],
)
def test_damaged_files_are_told_in_a_line(run_dir, tmp_path, images, capsys, damage, said):
    write_cifar10_c(tmp_path / "data", images)
    damage(tmp_path / "data")
    assert cli.evaluate([f"checkpoint={run_dir}", "data=cifar10_c", "data.root=data"]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_they_are_not_for_training(tmp_path, images, capsys):
    write_cifar10_c(tmp_path / "data", images)
    tiny = [text for text in TINY if not text.startswith("data")]
    assert cli.train([*tiny, "data=cifar10_c", "data.root=data"]) == 2
    assert "has no images to train on. Give it to cifar-evaluate checkpoint=…" in capsys.readouterr().err
    assert not list(tmp_path.glob("outputs/**/config.yaml"))


@pytest.fixture
def of_pictures(tmp_path) -> Path:
    """Pictures of three classes, in folders within folders."""
    random = np.random.default_rng(0)
    for half, count in (("train", 30), ("test", 15)):
        for place in range(count):
            folder = tmp_path / "photos" / half / ("cat", "dog", "owl")[place % 3] / f"part {place % 2}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{place:02d} é.png")
    return tmp_path / "photos"


def test_mistakes_carry_the_names_of_their_files(of_pictures, run_dirs):
    tiny = [text for text in TINY if not text.startswith(("data", "page"))]
    data = ["data=image_folder", "data.root=photos", "data.num_val=6", "data.batch_size=6"]
    assert cli.train([*tiny, *data, "run_dir=run"]) == 0
    page = Path("run/page.html").read_text()
    assert cli.evaluate(["checkpoint=run"]) == 0
    result = json.loads(Path("run/evaluation.json").read_text())
    kept = Predictions.load(Path("run/predictions.npz"))
    network = load("run")
    assert len(kept.files) == 15
    for row, name in enumerate(kept.files):  # the right one: the network sees the same in it
        pixels = np.asarray(Image.open(of_pictures / "test" / name))
        assert (
            network.predict(torch.from_numpy(pixels.copy()).permute(2, 0, 1)[None])[0].argmax()
            == kept.log_probs[row].argmax()
        )
        assert name.split("/")[0] == network.data_state["classes"][kept.labels[row]]
    wrong = [name for row, name in enumerate(kept.files) if kept.log_probs[row].argmax() != kept.labels[row]]
    assert sorted(one["file"] for one in result["mistakes"]) == sorted(wrong)
    for text in (page, Path("run/page.html").read_text()):
        assert all(name in text for name in wrong)
    confidences = [one["confidence"] for one in result["mistakes"]]
    assert confidences == sorted(confidences, reverse=True)


def test_files_are_named_where_the_test_images_are_drawn_from_all(of_pictures):
    (job,) = Composer("train").jobs(["data=image_folder", "data.root=photos/train", "data.num_test=9"])
    data = instantiate(job.cfg.data, _convert_="all")
    data.prepare_data()
    images, labels = data.read(train=False)
    for name, image, label in zip(data.test_files, images, labels, strict=True):
        assert np.array_equal(np.asarray(Image.open(of_pictures / "train" / name)), image.permute(1, 2, 0))
        assert name.split("/")[0] == data.classes[label]


def test_an_ensemble_looks_at_features_of_each_of_its_members(sweep):
    ensemble = Ensemble(sorted(sweep.glob("seed-*")))
    evidence = ensemble.evidence([torch.zeros(3, 3, 32, 32, dtype=torch.uint8)] * 2)
    assert [each.shape for each in evidence.features] == [(6, 8), (6, 8)]


class Strange(torch.nn.Module):
    """A network of one kind of head."""

    def __init__(self, head: str):
        super().__init__()
        self.head = head
        self.fc = torch.nn.Linear(12, 10)
        if head == "parametrized":
            self.fc = torch.nn.utils.parametrizations.weight_norm(self.fc)
        if head == "auxiliary":
            self.other = torch.nn.Linear(12, 10)
        if head == "own":
            self.weight = torch.nn.Parameter(torch.randn(10, 12))
        if head == "convolution":
            self.fc = torch.nn.Conv2d(3, 10, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1)
        if self.head == "auxiliary":
            self.other(features)
        if self.head == "own":
            return features @ self.weight.T
        if self.head == "convolution":
            return self.fc(images).mean((2, 3))
        return self.fc(input=features) if self.head == "by name" else 3 * self.fc(features)


@pytest.mark.parametrize(
    ("head", "size"),
    [("plain", 12), ("parametrized", 12), ("by name", 12), ("convolution", 3), ("own", None), ("auxiliary", None)],
)
def test_features_are_what_the_head_is_given_or_none(monkeypatch, head, size):
    torch.manual_seed(0)
    network = Classifier(num_classes=10)
    network.net = Strange(head)
    monkeypatch.setattr(network, "forward", network.net.forward)
    images = torch.randn(7, 3, 16, 16)
    with torch.inference_mode(), watching(head_module(network)) as calls:
        logits = network(images)
    found = calls.features_of(logits)
    if size is None:
        assert found == []
    else:
        expected = torch.nn.functional.adaptive_avg_pool2d(images, 2).flatten(1) if size == 12 else images.mean((2, 3))
        assert torch.allclose(found[0], expected, atol=1e-6)


def test_ties_that_16_bits_make_hide_no_features():
    torch.manual_seed(0)
    head, features = torch.nn.Linear(16, 10).bfloat16(), torch.randn(5000, 16).bfloat16()
    with torch.inference_mode(), watching(head) as calls:
        logits = (head(features) * 0.111).float()
    assert not torch.equal(calls.gave.argmax(1), logits.argmax(1))
    assert torch.equal(calls.features_of(logits)[0], features.float())
    assert calls.features_of(-logits) == []


def test_the_tests_own_images_are_no_others(run_dir, sweep, capsys):
    assert cli.evaluate([f"checkpoint={run_dir}", f"ood={sweep.parents[2] / 'False.npz'}"]) == 2
    assert "ood is of other images" in capsys.readouterr().err


@pytest.mark.slow
def test_a_place_is_passed_on_only_among_published_sets(of_pictures, tmp_path, capsys, monkeypatch):
    tiny = [text for text in TINY if not text.startswith("data")]
    data = ["data=image_folder", "data.root=photos", "data.num_val=6", "data.batch_size=6"]
    assert cli.train([*tiny, *data, "run_dir=run"]) == 0
    monkeypatch.setenv("CIFAR_RESNET_DATA", str(tmp_path / "elsewhere"))
    monkeypatch.setattr("cifar_resnet.data.published.time.sleep", lambda seconds: None)
    before = sorted(of_pictures.rglob("*"))
    assert cli.evaluate(["checkpoint=run", "ood=svhn"]) == 2
    assert f"{tmp_path / 'elsewhere'} and could not be downloaded" in capsys.readouterr().err
    assert sorted(of_pictures.rglob("*")) == before


@pytest.mark.slow
def test_predictions_under_conditions_are_not_compared_image_by_image(run_dir, tmp_path, images, capsys):
    write_cifar10_c(tmp_path / "data", images)
    for name in ("fog", "snow"):
        line = ["data=cifar10_c", "data.root=data", f"data.corruptions=[{name}]", f"output_dir={name}", "resamples=5"]
        assert cli.evaluate([f"checkpoint={run_dir}", *line]) == 0
    hashes = {Predictions.load(Path(name, "predictions.npz")).images_hash for name in ("fog", "snow")}
    assert len(hashes) == 2
    assert cli.report(["compare", "fog", "snow"]) == 2
    assert "of test images that come once. Got fog, of 5 conditions" in capsys.readouterr().err


@pytest.mark.slow
def test_an_ensemble_is_said_to_be_one(sweep):
    result = result_of(sweep)
    alone = result_of(sweep / "seed-0")
    assert result["network"] == "2 x resnet_cifar"
    assert (result["parameters"], result["macs"]) == (2 * alone["parameters"], 2 * alone["macs"])


def test_a_file_that_comes_while_a_training_runs_changes_no_name(of_pictures, monkeypatch):
    tiny = [text for text in TINY if not text.startswith(("data", "trainer"))]
    data = ["data=image_folder", "data.root=photos", "data.num_val=6", "data.batch_size=6", "trainer.max_epochs=1"]
    tested = Classifier.on_test_epoch_end

    def end(self):
        Image.new("RGB", (32, 32)).save(of_pictures / "test" / "cat" / "00.png")
        tested(self)

    monkeypatch.setattr(Classifier, "on_test_epoch_end", end)
    before = len(list((of_pictures / "test").rglob("*.png")))
    assert cli.train([*tiny, *data, "run_dir=run"]) == 0
    assert len(Predictions.load(Path("run/predictions.npz")).files) == before
    assert "cat/00.png" not in Predictions.load(Path("run/predictions.npz")).files
