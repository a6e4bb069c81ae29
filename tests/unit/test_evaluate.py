"""cifar-evaluate: against NumPy and the run's own test, and that nothing of the test set enters a fit."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, record_of
from PIL import Image

from cifar_resnet import checkpoints, cli, load
from cifar_resnet.data import SVHN, ImageFolder, Synthetic
from cifar_resnet.errors import UsageError
from cifar_resnet.evaluate import differences, places_of
from cifar_resnet.results import calibration
from cifar_resnet.results.inference import Ensemble
from cifar_resnet.results.predictions import Predictions
from cifar_resnet.terminal import log

PLAIN = ["precision=32-true"]


@pytest.fixture
def own_sweep(sweep_dir, tmp_path) -> Path:
    return shutil.copytree(sweep_dir, tmp_path / "sweep")


@pytest.fixture
def own_run(own_sweep) -> Path:
    return own_sweep / "seed-0"


def result_in(folder: Path) -> dict:
    return json.loads((folder / "evaluation.json").read_text())


def test_one_run_scores_what_its_own_test_did(own_run, capsys):
    assert cli.evaluate([f"checkpoint={own_run}", *PLAIN]) == 0
    (folder,) = own_run.glob("evaluation-*")  # precision= was asked for
    result, record = result_in(folder), record_of(own_run)
    assert result["scores"]["acc"] == pytest.approx(record["metrics"]["test/acc"])
    assert result["scores"]["loss"] == pytest.approx(record["metrics"]["test/loss"], rel=1e-4)
    predictions = Predictions.load(folder / "predictions.npz")
    assert torch.allclose(predictions.log_probs, Predictions.load(own_run / "predictions.npz").log_probs, atol=1e-4)
    assert predictions.images_hash == Predictions.load(own_run / "predictions.npz").images_hash
    confusion = np.zeros((10, 10), int)
    np.add.at(confusion, (predictions.labels.numpy(), predictions.log_probs.argmax(1).numpy()), 1)
    assert result["confusion"] == confusion.tolist()
    out = capsys.readouterr().out
    assert f"{result['scores']['acc']:.2%} of 50 images" in out
    assert "most often taken for" in out


def test_a_plain_evaluation_lies_in_the_run_folder(own_run):
    assert cli.evaluate([f"checkpoint={own_run}"]) == 0
    assert (own_run / "evaluation.json").exists()
    assert (own_run / "page.html").exists()


@pytest.fixture(scope="module")
def of_pictures(tmp_path_factory) -> Path:
    """A run on pictures in `data`, beside another set of the same classes in `other`; only read."""
    folder = tmp_path_factory.mktemp("pictures")
    for seed, name in enumerate(("data", "other")):
        draw_pictures(folder / name, seed)
    tiny = [text for text in TINY if not text.startswith("data")]
    data = ["data=image_folder", f"data.root={folder}/data", "data.num_val=9", "data.batch_size=9"]
    assert cli.train([*tiny, *data, "page=true", f"run_dir={folder}/run"]) == 0
    return folder


def draw_pictures(root: Path, seed: int, count: int = 18) -> None:
    random = np.random.default_rng(seed)
    for half in ("train", "test"):
        for place in range(count):
            folder = root / half / ("cat", "dog", "owl")[place % 3]
            folder.mkdir(parents=True, exist_ok=True)
            pixels = random.integers(256, size=(32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{place:02d}.png")


@pytest.fixture
def pictures(of_pictures, tmp_path, monkeypatch) -> Path:
    """A copy of the run, in the working folder as `run`, and what it left; the data stays where it is."""
    shutil.copytree(of_pictures / "run", "run")
    return of_pictures


def left_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_another_data_set_leaves_the_runs_own_files_alone_and_the_page_names_it(pictures):
    before = left_in(Path("run"))
    assert cli.evaluate(["checkpoint=run", f"data.root={pictures}/other"]) == 0
    assert left_in(Path("run")) == before
    (folder,) = Path("run").glob("evaluation-*")
    text = (folder / "page.html").read_text()
    assert f"image_folder {pictures}/other</h1>" in text
    assert "not the images of the run&#39;s own test" in text
    assert result_in(folder)["own_test_images"] is False
    # its held-out images are as many of the same classes, and still not those of the training, which are at hand
    assert result_in(folder)["temperature_from"] == "9 validation images"
    own = load("run")
    shutil.copytree(pictures / "data", "copy")
    assert result_in(folder)["temperature"] == pytest.approx(temperature_on(own, Path("copy")), rel=1e-2)


def temperature_on(network, root: Path) -> float:
    """Fitted on the images that the run held out."""
    data = ImageFolder(root=str(root), num_val=9, batch_size=9)
    data.load()
    return calibration.fit_temperature(network.predict(data.val.images).log(), data.val.labels)


def test_a_test_drawn_otherwise_from_the_images_of_the_training_is_told(pictures, capsys):
    """Most of its images would be such that the network was trained on."""
    shutil.copytree(pictures / "data" / "train", "pets")
    tiny = [text for text in TINY if not text.startswith("data")]
    data = ["data=image_folder", "data.root=pets", "data.num_val=3", "data.batch_size=3"]
    assert cli.train([*tiny, *data, "run_dir=drawn"]) == 0
    capsys.readouterr()
    assert cli.evaluate(["checkpoint=drawn"]) == 0
    assert "warning" not in capsys.readouterr().out
    for other in ("split_seed=3", "num_test=0.5"):
        assert cli.evaluate(["checkpoint=drawn", f"data.{other}"]) == 0
        told = f"drawn by another data.{other.partition('=')[0]} than when drawn/checkpoints/"
        assert told in capsys.readouterr().out
    draw_pictures(Path("more"), seed=7, count=3)
    Path("more/train/cat/00.png").rename("pets/cat/0.png")  # by which all images move on
    assert cli.evaluate(["checkpoint=drawn"]) == 0
    assert "drawn from other images than when drawn/checkpoints/" in capsys.readouterr().out
    whatever = ["data=image_folder", "data.root=pets", "data.batch_size=999"]  # which is for a training alone
    for each in (whatever, whatever[:2], ["batch_size=64"]):
        assert cli.evaluate(["checkpoint=drawn", *each]) == 0
        assert "drawn from other images than when drawn/checkpoints/" in capsys.readouterr().out
    assert cli.evaluate(["checkpoint=drawn", "data=files", "data.train=pets", "data.test=pets"]) == 0


def test_evaluations_on_sets_whose_names_look_alike_have_folders_of_their_own(own_run):
    """Though nobody knows what the run's own test was on."""
    record = record_of(own_run)
    (own_run / "result.json").write_text(json.dumps({key: record[key] for key in record if key != "test_hash"}))
    (own_run / "predictions.npz").unlink()
    random = np.random.default_rng(0)
    for name in ("set_1.npz", "set-1.npz", "фото.npz", "кошки.npz"):
        np.savez(name, images=random.integers(256, size=(6, 32, 32, 3), dtype=np.uint8), labels=np.arange(6))
        assert cli.evaluate([f"checkpoint={own_run}", "data=files", f"data.test={name}"]) == 0
    found = [json.loads(path.read_text())["data_from"] for path in own_run.glob("evaluation-*/evaluation.json")]
    assert sorted(found) == [["set-1.npz"], ["set_1.npz"], ["кошки.npz"], ["фото.npz"]]


def test_digits_that_are_published_are_no_numbers_of_other_classes():
    """SVHN's 3 is no cat."""
    labels, data = torch.tensor([3, 1]), SVHN()
    data.classes = list("0123456789")  # as it finds them
    with pytest.raises(UsageError, match=r"classes that the network does not know\. Got '1', '3'; it knows 'disk'"):
        places_of(labels, data, Synthetic.classes)
    assert places_of(labels, data, list("9876543210")).tolist() == [6, 8]


def test_a_place_that_is_gone_and_has_no_default_is_none_at_hand(own_run, capsys):
    arrays = {}
    for half, count in (("train", 60), ("val", 15), ("test", 20)):
        arrays[f"{half}_images"] = np.random.default_rng(0).integers(256, size=(count, 28, 28, 3), dtype=np.uint8)
        arrays[f"{half}_labels"] = (np.arange(count) % 3)[:, None]
    np.savez("pathmnist.npz", **arrays)
    tiny = [text for text in TINY if not text.startswith("data")]
    own = ["data=medmnist", "data.root=pathmnist.npz", "data.batch_size=20"]
    assert cli.train([*tiny, *own, "run_dir=medical"]) == 0
    np.savez("mine.npz", images=arrays["test_images"], labels=arrays["test_labels"])
    Path("pathmnist.npz").unlink()
    assert cli.evaluate(["checkpoint=medical", "data=files", "data.test=mine.npz", "data.image_size=28"]) == 0
    (folder,) = Path("medical").glob("evaluation-*")
    assert result_in(folder)["temperature_from"].startswith("no validation images: ")
    assert cli.export(["checkpoint=medical", "formats=[safetensors]"]) == 0
    assert "synthetic images" in capsys.readouterr().out
    assert cli.evaluate(["checkpoint=medical"]) == 2
    assert "pathmnist.npz" in capsys.readouterr().err


def test_unfinished_runs_are_told_of_once(own_sweep, capsys, monkeypatch):
    monkeypatch.setattr(log, "handlers", [])  # as in a new process
    (own_sweep / "seed-1" / "result.json").unlink()
    assert cli.evaluate([f"checkpoint={own_sweep}"]) == 0
    out, err = capsys.readouterr()
    assert out.count("1 of 2 runs in") == 1
    assert err == ""


def test_a_checkpoint_is_known_for_its_runs_from_within_its_folder(own_run, monkeypatch):
    monkeypatch.chdir(own_run / "checkpoints")
    assert cli.evaluate(["checkpoint=last.ckpt"]) == 0
    assert [path.name for path in Path().iterdir() if path.is_dir()] == []
    result = result_in(own_run / "evaluation-last")
    assert result["own_test_images"] is True


def test_a_network_is_exported_where_the_images_of_its_training_are_gone(pictures, capsys):
    (pictures / "data").rename(pictures / "gone")
    try:
        assert cli.export(["checkpoint=run", "formats=[safetensors]"]) == 0
        assert "synthetic images" in capsys.readouterr().out
        assert cli.export(["checkpoint=run", "formats=[safetensors]", "data.root=nowhere"]) == 2
    finally:
        (pictures / "gone").rename(pictures / "data")


def test_where_the_images_of_the_training_are_others_now_there_is_no_temperature(pictures):
    path = next((pictures / "data" / "train").rglob("*.png"))
    before = path.read_bytes()
    try:
        Image.new("RGB", (32, 32)).save(path)
        assert cli.evaluate(["checkpoint=run", f"data.root={pictures}/other"]) == 0
    finally:
        path.write_bytes(before)
    (folder,) = Path("run").glob("evaluation-*")
    assert result_in(folder)["temperature"] is None
    assert "others than in training" in result_in(folder)["temperature_from"]


def test_a_copy_of_its_own_data_is_its_own_test(pictures):
    shutil.copytree(pictures / "data", "copy")
    own = Predictions.load(Path("run/predictions.npz"))
    assert cli.evaluate(["checkpoint=run", "data.root=copy"]) == 0
    assert not list(Path("run").glob("evaluation-*"))
    again = Predictions.load(Path("run/predictions.npz"))
    assert torch.allclose(again.log_probs, own.log_probs, atol=1e-5)
    text = Path("run/page.html").read_text()
    assert "own test" not in text
    assert "<dt>trained</dt>" in text  # as on the page that the training left
    assert result_in(Path("run"))["temperature"] is not None


def test_data_that_has_changed_in_its_place_is_another(pictures):
    before = left_in(Path("run"))
    shutil.copytree(pictures / "data", "moving")
    checkpoint = torch.load("run/checkpoints/best.ckpt", weights_only=True)
    checkpoint["config"]["data"]["root"] = "moving"
    torch.save(checkpoint, "run/checkpoints/best.ckpt")
    draw_pictures(Path("moving"), seed=5)
    assert cli.evaluate(["checkpoint=run"]) == 0
    assert left_in(Path("run")) == before
    (folder,) = Path("run").glob("evaluation-images-*")
    assert result_in(folder)["own_test_images"] is False


@pytest.mark.slow
def test_two_archives_of_almost_one_name_do_not_overwrite_each_other(own_run):
    for seed, name in enumerate(("a/b.npz", "a-b.npz")):
        Path(name).parent.mkdir(exist_ok=True)
        images, labels = Synthetic(num_test=20, image_seed=seed).read(train=False)
        np.savez(name, images=images.numpy(), labels=labels.numpy(), classes=np.array(Synthetic.classes))
        assert cli.evaluate([f"checkpoint={own_run}", "data=files", f"data.test={name}"]) == 0
    assert len(list(own_run.glob("evaluation-*"))) == 2


def test_other_images_of_almost_one_name_do_not_overwrite_each_other():
    asked = ("ood=svhn", "ood=a/b", "ood=a-b", "ood=фото", "ood=кошки")
    names = ["-".join(differences([], [text], "32-true", True, torch.zeros(1))) for text in asked]
    assert names[0] == "ood-svhn"
    assert len(set(names)) == len(names)


@pytest.mark.slow
def test_labels_of_the_runs_own_test_are_not_those_of_another(own_run, tmp_path):
    images, labels = Synthetic(num_test=60).read(train=False)
    np.save("t.npy", images.numpy())
    np.save("tl.npy", labels.numpy())
    np.savez("train.npz", images=images.flip(0).numpy(), labels=labels.flip(0).numpy())
    files = ["data=files", "data.train=train.npz", "data.test=t.npy", "data.test_labels=tl.npy"]
    tiny = [text for text in TINY if not text.startswith("data")]
    assert cli.train([*tiny, *files, "data.num_val=9", "data.batch_size=9", "run_dir=of_files"]) == 0
    np.savez("other.npz", images=images[:20].numpy(), labels=labels[:20].numpy())
    assert cli.evaluate(["checkpoint=of_files", "data.test=other.npz"]) == 0
    assert cli.evaluate(["checkpoint=of_files"]) == 0
    assert result_in(Path("of_files"))["own_test_images"] is True


@pytest.mark.slow
def test_the_runs_own_precision_is_the_default_and_another_has_a_folder_of_its_own(own_run):
    assert cli.evaluate([f"checkpoint={own_run}"]) == 0
    assert result_in(own_run)["precision"] == record_of(own_run)["precision"] == "32-true"
    before = left_in(own_run)
    assert cli.evaluate([f"checkpoint={own_run}", "precision=bf16-mixed"]) == 0
    assert left_in(own_run) == before
    assert result_in(own_run / "evaluation-precision-bf16-mixed")["precision"] == "bf16-mixed"
    (own_run / "result.json").write_text(
        json.dumps(record_of(own_run) | {"precision": "16-mixed"})  # of a GPU, which is not here
    )
    before = left_in(own_run)
    assert cli.evaluate([f"checkpoint={own_run}", "accelerator=cpu"]) == 0
    assert left_in(own_run) == before


def test_a_run_that_has_not_finished_is_left_as_it_is(own_run, capsys):
    (own_run / "result.json").unlink()
    before = left_in(own_run)
    assert cli.evaluate([f"checkpoint={own_run}"]) == 0
    assert left_in(own_run) == before
    assert (own_run / "evaluation-best" / "page.html").exists()
    assert "best.ckpt, of a run that has not finished" in capsys.readouterr().out


@pytest.mark.slow
def test_an_ensembles_folder_keeps_the_evaluation_of_its_own_test(own_sweep):
    assert cli.evaluate([f"checkpoint={own_sweep}"]) == 0
    before = left_in(own_sweep)
    assert cli.evaluate([f"checkpoint={own_sweep}", "data.image_seed=5"]) == 0
    assert left_in(own_sweep) == before
    (folder,) = own_sweep.glob("evaluation-image_seed-5-*")
    assert result_in(folder)["own_test_images"] is False


def test_a_run_folder_that_is_called_like_a_file_is_one(own_run, tmp_path):
    shutil.move(own_run, "teacher-best.ckpt")
    assert cli.evaluate(["checkpoint=teacher-best.ckpt"]) == 0
    assert Path("teacher-best.ckpt/evaluation.json").exists()


@pytest.mark.slow
def test_temperature_is_fitted_on_validation_images_alone(own_run):
    assert cli.evaluate([f"checkpoint={own_run}", f"output_dir={own_run}/a", *PLAIN]) == 0
    first = result_in(own_run / "a")
    config = record_of(own_run)["config"]["data"]
    data = Synthetic(**{key: value for key, value in config.items() if key != "_target_"})
    data.load()
    log_probs = load(own_run).predict(data.val.images).log()
    assert first["temperature"] == pytest.approx(
        calibration.fit_temperature(log_probs.clone(), data.val.labels), rel=1e-2
    )
    # other test images, and as many as there are: the temperature stays
    assert cli.evaluate([f"checkpoint={own_run}", f"output_dir={own_run}/b", "data.num_test=400", *PLAIN]) == 0
    second = result_in(own_run / "b")
    assert second["num_images"] == 400
    assert second["temperature"] == first["temperature"]
    test = Predictions.load(own_run / "a/predictions.npz")
    loss = F.cross_entropy(test.log_probs / first["temperature"], test.labels).item()
    assert first["calibrated"]["loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.slow
def test_the_temperature_is_of_the_images_held_out_in_training_whatever_settings_the_test_has(own_run):
    found = []
    for name, more in (("a", []), ("b", ["data.split_seed=7"]), ("c", ["data.num_val=50"])):
        assert cli.evaluate([f"checkpoint={own_run}", f"output_dir={own_run}/{name}", *more, *PLAIN]) == 0
        found.append(result_in(own_run / name))
    assert len({each["temperature"] for each in found}) == 1
    assert {each["temperature_from"] for each in found} == {"40 validation images"}


def test_of_a_run_that_was_tested_on_a_part_nobody_knows_whether_these_were_its_images(cifar_train, run_dirs):
    assert cifar_train("trainer.limit_test_batches=1", "data.eval_batch_size=20") == 0
    (run_dir,) = run_dirs()
    assert record_of(run_dir)["num_tested"] == 20
    assert cli.evaluate([f"checkpoint={run_dir}"]) == 0
    (folder,) = run_dir.glob("evaluation-*")  # beside what its own test left
    assert result_in(folder)["own_test_images"] is None
    assert result_in(folder)["num_images"] == 50


@pytest.mark.slow
def test_of_members_that_look_at_other_views_each_is_named(own_sweep):
    path = own_sweep / "seed-1/checkpoints/best.ckpt"
    saved = torch.load(path, weights_only=True)
    saved["hyper_parameters"]["tta"] = "flip"
    torch.save(saved, path)
    assert cli.evaluate([f"checkpoint={own_sweep}", "output_dir=all", *PLAIN]) == 0
    assert result_in(Path("all"))["tta"] == "none, flip"


@pytest.mark.slow
def test_an_ensemble_equals_an_average_in_numpy(own_sweep, capsys):
    assert cli.evaluate([f"checkpoint={own_sweep}", f"output_dir={own_sweep}/all", *PLAIN]) == 0
    result = result_in(own_sweep / "all")
    each = [Predictions.load(own_sweep / f"seed-{seed}" / "predictions.npz") for seed in (0, 1)]
    labels = each[0].labels.numpy()
    probabilities = np.mean([np.exp(one.log_probs.numpy().astype(np.float64)) for one in each], axis=0)
    assert result["scores"]["acc"] == pytest.approx(np.mean(probabilities.argmax(1) == labels))
    assert result["scores"]["loss"] == pytest.approx(-np.log(probabilities[np.arange(50), labels]).mean(), rel=1e-4)
    assert result["growth"][0] == result["members"][0]
    assert result["growth"][1] == result["scores"]
    assert result["growth_calibrated"][1] == result["calibrated"]
    for grown, calibrated in zip(result["growth"], result["growth_calibrated"], strict=True):
        assert calibrated["acc"] == grown["acc"]  # which no temperature changes
    own = [np.mean(one.log_probs.argmax(1).numpy() == labels) for one in each]
    assert [member["acc"] for member in result["members"]] == pytest.approx(own)
    assert f"2, alone {np.mean(own):.2%} ± {np.std(own, ddof=1):.2%}" in capsys.readouterr().out
    differ = np.mean(each[0].log_probs.argmax(1).numpy() != each[1].log_probs.argmax(1).numpy())
    assert result["disagreement"] == pytest.approx(differ)
    listed = [f"{own_sweep}/seed-0", f"{own_sweep}/seed-1/checkpoints/best.ckpt"]
    assert cli.evaluate([f"checkpoint=[{','.join(listed)}]", *PLAIN]) == 0
    (folder,) = Path("outputs/evaluate").iterdir()
    assert result_in(folder)["scores"] == result["scores"]


def test_flipping_at_test_time_averages_both_sides(own_run, test_images):
    assert cli.evaluate([f"checkpoint={own_run}", "tta=flip", *PLAIN]) == 0
    (folder,) = own_run.glob("evaluation-tta-flip*")
    images, labels = test_images(own_run)
    network = load(own_run)
    with torch.no_grad():
        both = (network(images).softmax(1) + network(images.flip(3)).softmax(1)) / 2
    assert torch.allclose(Predictions.load(folder / "predictions.npz").log_probs.exp(), both, atol=1e-5)
    assert result_in(folder)["scores"]["acc"] == pytest.approx((both.argmax(1) == labels).float().mean().item())


@pytest.mark.slow
def test_a_test_set_of_ones_own_by_the_names_of_its_classes(own_run, tmp_path):
    images, labels = Synthetic(num_test=60).read(train=False)
    names = Synthetic.classes
    for index, label in enumerate(labels.tolist()):
        if names[label] in ("ring", "disk", "star"):
            folder = tmp_path / "mine" / names[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    chosen = torch.tensor([names[label] in ("ring", "disk", "star") for label in labels.tolist()])
    np.savez("mine.npz", images=images[chosen].numpy(), labels=labels[chosen].numpy())
    for test in ("mine", "mine.npz"):
        arguments = [f"checkpoint={own_run}", "data=files", f"data.test={test}", f"output_dir=out-{test}", *PLAIN]
        assert cli.evaluate(arguments) == 0
        result = result_in(Path(f"out-{test}"))
        assert result["num_images"] == int(chosen.sum())
        assert result["temperature"] is not None  # of the network's own validation images
        expected = (load(own_run).predict(images[chosen]).argmax(1) == labels[chosen]).float().mean().item()
        assert result["scores"]["acc"] == pytest.approx(expected)


NUMBERS = [str(number) for number in range(10)]
CLASSES = {
    "numbers": NUMBERS,
    "of a run trained before": ["0", "1", "10", "11", "2", "3", "4", "5", "6", "7"],
    "from one": [str(number) for number in range(1, 11)],
    "with zeros": [f"{number:02}" for number in range(10)],
    "names": Synthetic.classes,
    "names and a number": ["1", *Synthetic.classes[1:]],
}


@pytest.fixture
def with_classes(own_run):
    """The run, as if its classes had other names, or another order."""

    def rename(classes: list[str]) -> Path:
        path = own_run / "checkpoints" / "best.ckpt"
        checkpoint = torch.load(path, weights_only=True)
        checkpoint["data"]["classes"] = list(classes)
        torch.save(checkpoint, path)
        return own_run

    return rename


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("classes", CLASSES.values(), ids=CLASSES.keys())
def test_cifar_predicts_own_labels_given_back_are_all_right(with_classes, classes):
    run = with_classes(classes)
    images, _ = Synthetic(num_test=60).read(train=False)
    np.savez("images.npz", images=images.numpy())
    given = ["input=images.npz", "format=ids", "output=ids.csv"]
    assert cli.predict([f"checkpoint={run}", *given, *PLAIN]) == 0
    labels = np.loadtxt("ids.csv", delimiter=",", skiprows=1, dtype=int)[:, 1]
    np.savez("mine.npz", images=images.numpy(), labels=labels)
    assert cli.evaluate([f"checkpoint={run}", "data=files", "data.test=mine.npz", "output_dir=out", *PLAIN]) == 0
    result = result_in(Path("out"))
    assert result["scores"]["acc"] == 1
    predicted = load(run).predict(images).argmax(1)
    assert np.diag(result["confusion"]).tolist() == predicted.bincount(minlength=10).tolist()
    if all(name.isdecimal() for name in classes):
        assert labels.tolist() == [int(classes[label]) for label in predicted.tolist()]  # the classes' own names


def test_numbered_folders_are_compared_by_number_and_unknown_numbers_named(with_classes, capsys):
    run = with_classes(CLASSES["of a run trained before"])
    images, labels = Synthetic(num_test=60).read(train=False)
    names = load(run).data_state["classes"]
    for index, label in enumerate(labels.tolist()):
        folder = Path("mine", names[label])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    given = [f"checkpoint={run}", "data=files", "data.test=mine", "output_dir=out", *PLAIN]
    assert cli.evaluate(given) == 0
    expected = (load(run).predict(images).argmax(1) == labels).float().mean().item()
    assert result_in(Path("out"))["scores"]["acc"] == pytest.approx(expected)
    Path("mine/11").rename("mine/12")
    capsys.readouterr()
    assert cli.evaluate(given) == 2
    assert (
        "classes that the network does not know. Got '12'; it knows '0', '1', '10', '11', '2'"
        in capsys.readouterr().err
    )


@pytest.mark.slow
def test_the_validation_images_of_a_run_trained_before_are_found_again(tmp_path, monkeypatch):
    """Their order, and with it the split, was that of the class names as texts."""
    images, labels = Synthetic(num_train=240).read(train=True)
    for half in ("train", "test"):
        for index, label in enumerate(labels.tolist()):
            folder = Path("pets", half, str(label + 2))  # 2 … 11
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(images[index].permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    files = [text for text in TINY if not text.startswith("data")]
    given = ["data=image_folder", "data.root=pets", "data.num_val=40", "data.batch_size=40", "run_dir=run"]
    with monkeypatch.context() as before:
        before.setattr("cifar_resnet.folders.natural", str)
        assert cli.train([*files, *given]) == 0
    assert load("run").data_state["classes"] == ["10", "11", *map(str, range(2, 10))]
    assert cli.evaluate(["checkpoint=run", "output_dir=out", *PLAIN]) == 0
    result = result_in(Path("out"))
    assert result["temperature_from"] == "40 validation images"
    data = ImageFolder(root="pets", num_val=40)
    data.order_classes(load("run").data_state["classes"])
    data.load()
    log_probs = load("run").predict(data.val.images).log()
    assert result["temperature"] == pytest.approx(
        calibration.fit_temperature(log_probs.clone(), data.val.labels), rel=1e-2
    )
    assert result["scores"]["acc"] == pytest.approx(record_of(Path("run"))["metrics"]["test/acc"])


def test_foreign_checkpoints_are_explained(own_run, capsys):
    Path("text.ckpt").write_bytes(b"hello")
    torch.save([1, 2], "list.ckpt")
    checkpoint = torch.load(own_run / "checkpoints" / "best.ckpt", weights_only=True)
    torch.save(checkpoint | {"architecture": "cifar_resnet.models.nothing.Net"}, "unknown.ckpt")
    torch.save(checkpoint | {"hyper_parameters": {"wings": 2}}, "wings.ckpt")
    for path in sorted(Path().glob("*.ckpt")):
        assert cli.evaluate([f"checkpoint={path}"]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert str(path) in line


def test_an_evaluation_of_a_run_in_training_is_of_the_weights_that_it_read(own_run, monkeypatch):
    (own_run / "result.json").unlink()
    best = own_run / "checkpoints" / "best.ckpt"
    step, log_probs = checkpoints.read(best)["global_step"], Ensemble.log_probs

    def while_it_trains(*arguments):
        torch.save(checkpoints.read(best) | {"global_step": step + 1}, best)
        return log_probs(*arguments)

    monkeypatch.setattr(Ensemble, "log_probs", while_it_trains)
    assert cli.evaluate([f"checkpoint={own_run}", "output_dir=out"]) == 0
    assert result_in(Path("out"))["steps"] == [step]


def test_a_checkpoint_without_its_step_is_evaluated(own_run):
    whole = checkpoints.read(own_run)
    torch.save({key: whole[key] for key in whole if key != "global_step"}, "slim.ckpt")
    assert cli.evaluate(["checkpoint=slim.ckpt", "output_dir=out"]) == 0
    assert result_in(Path("out"))["steps"] == [None]


def test_networks_that_give_nan_have_no_scores(own_run, monkeypatch, capsys):
    log_probs = Ensemble.log_probs

    def broken(*arguments):
        found = log_probs(*arguments).clone()  # or it would be inference mode's
        found[:, :3] = torch.nan
        return found

    monkeypatch.setattr(Ensemble, "log_probs", broken)
    assert cli.evaluate([f"checkpoint={own_run}", "output_dir=out", *PLAIN]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "Got nan for 3 of 50, in 32-true; train anew" in line
    assert not Path("out").exists()


def test_a_file_is_no_folder_to_write_to(own_run, monkeypatch, capsys):
    monkeypatch.setattr(Ensemble, "log_probs", lambda *args: 1 / 0)
    Path("notes.txt").write_text("mine")
    for place in ("notes.txt", "notes.txt/deeper"):
        assert cli.evaluate([f"checkpoint={own_run}", f"output_dir={place}", *PLAIN]) == 2
        assert "a folder is to be written to. Got" in capsys.readouterr().err


def test_where_nothing_can_be_written_nothing_is_computed(own_run, capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("cifar_resnet.results.inference.Ensemble.log_probs", lambda *args: 1 / 0)
    assert cli.evaluate([f"checkpoint={own_run}", *PLAIN]) == 2
    assert f"nothing can be written there. Got {own_run}" in capsys.readouterr().err


def test_a_table_without_learning_rates_is_drawn_without(own_run):
    text = (own_run / "metrics.csv").read_text()
    (own_run / "metrics.csv").write_text(text.replace(",lr", ",rate", 1))
    assert cli.evaluate([f"checkpoint={own_run}", "output_dir=out", *PLAIN]) == 0
    assert "<svg" in Path("out/page.html").read_text(encoding="utf-8")


def test_data_are_looked_for_here_where_their_folder_is_gone_and_never_fetched(own_run, monkeypatch):
    path = own_run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["config"]["choices"]["data"] = "cifar10"
    checkpoint["config"]["data"]["root"] = "gone"
    torch.save(checkpoint, path)
    images, labels = Synthetic(num_train=240, num_test=50).read(train=False)
    np.savez("mine.npz", images=images.numpy(), labels=labels.numpy(), classes=np.array(Synthetic.classes))
    monkeypatch.setenv("CIFAR_RESNET_DATA", "here")
    monkeypatch.setattr("cifar_resnet.data.CIFAR10.download", lambda self: 1 / 0)
    assert cli.evaluate([f"checkpoint={own_run}", "data=files", "data.test=mine.npz", "output_dir=out", *PLAIN]) == 0
    assert "cifar10 is not in here" in result_in(Path("out"))["temperature_from"]
    assert not Path("gone").exists()
    assert not Path("here").exists()


KILLED_IN_THE_SECOND = """
import os, signal
from cifar_resnet import cli
from cifar_resnet.models import Classifier

start = Classifier.on_train_epoch_start

def on_train_epoch_start(self):
    if self.trainer.datamodule.seed == 1 and self.current_epoch == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    start(self)

Classifier.on_train_epoch_start = on_train_epoch_start
cli.train()
"""


@pytest.mark.slow
def test_a_killed_member_sweep_trains_only_what_is_missing(tmp_path):
    arguments = ["-m", *TINY, "trainer.max_epochs=2", "seed=0,1,2"]
    killed = subprocess.run([sys.executable, "-c", KILLED_IN_THE_SECOND, *arguments], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    (sweep,) = tmp_path.glob("outputs/train/sweep-*")
    assert (sweep / "seed-1" / "checkpoints" / "last.ckpt").exists()
    assert [path.parent.name for path in sweep.glob("*/result.json")] == ["seed-0"]
    before = record_of(sweep / "seed-0")
    assert cli.train(arguments) == 0
    assert record_of(sweep / "seed-0") == before  # with the time it finished
    assert sorted(path.parent.name for path in sweep.glob("*/result.json")) == ["seed-0", "seed-1", "seed-2"]
    assert cli.evaluate([f"checkpoint={sweep}", "output_dir=all", *PLAIN]) == 0
    each = [Predictions.load(sweep / f"seed-{seed}" / "predictions.npz") for seed in range(3)]
    mean = np.mean([np.exp(one.log_probs.numpy()) for one in each], axis=0)
    assert result_in(Path("all"))["scores"]["acc"] == pytest.approx(np.mean(mean.argmax(1) == each[0].labels.numpy()))


@pytest.mark.slow
def test_without_calibration_there_is_no_temperature(own_run):
    assert cli.evaluate([f"checkpoint={own_run}", "calibrate=false", "output_dir=out", *PLAIN]) == 0
    result = result_in(Path("out"))
    assert (result["temperature"], result["temperature_from"]) == (None, "not asked for")
