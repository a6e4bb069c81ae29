"""cifar-predict: right predictions in input order, and damaged or hostile files left out by name."""

import csv
import io
import json
import os
import pickle
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from behaviour.bad_inputs import EXECUTED, Trap, in_memory
from helpers import png_that_claims
from PIL import Image

from cifar_resnet import cli, load
from cifar_resnet.archives import is_archive
from cifar_resnet.data import Synthetic
from cifar_resnet.results.inference import Ensemble
from cifar_resnet.terminal import log

PLAIN = ["precision=32-true"]


@pytest.fixture
def pictures(tmp_path) -> torch.Tensor:
    """Twelve pictures, 0.png to 11.png, in the folder photos."""
    images, _ = Synthetic(num_test=12).read(train=False)
    (tmp_path / "photos").mkdir()
    for index, image in enumerate(images):
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(f"photos/{index}.png")
    return images


@pytest.fixture
def predict(trained, capsys):
    """Run cifar-predict; returns the exit code, what it printed and what it complained about."""

    def run(*arguments: str) -> tuple[int, str, str]:
        code = cli.predict([f"checkpoint={trained}", *PLAIN, *arguments])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return run


def test_predictions_come_in_input_order_as_csv(predict, pictures, trained):
    code, out, err = predict("input=photos", "top_k=2", "batch_size=5")
    assert code == 0
    assert err == ""
    rows = list(csv.DictReader(io.StringIO(out)))
    assert [row["input"] for row in rows] == [f"photos/{index}.png" for index in range(12)]  # 10 after 9
    expected = load(trained).predict(pictures)
    for row, probabilities in zip(rows, expected, strict=True):
        shares, labels = probabilities.topk(2)
        assert [row["class_1"], row["class_2"]] == [Synthetic.classes[label] for label in labels]
        assert float(row["probability_1"]) == pytest.approx(shares[0].item(), abs=1e-4)


def test_json_and_the_two_columns_of_competitions(predict, pictures, trained):
    data = pictures.flatten(1).numpy()
    Path("test_nolabels.pkl").write_bytes(pickle.dumps({b"data": data, b"ids": np.arange(100, 112)}))
    expected = load(trained).predict(pictures)
    assert predict("input=test_nolabels.pkl", "format=ids", "output=submission.csv")[0] == 0
    lines = Path("submission.csv").read_text().splitlines()
    assert lines[0] == "ID,Labels"
    assert lines[1:] == [f"{100 + index},{label}" for index, label in enumerate(expected.argmax(1).tolist())]
    np.savez("images.npz", images=pictures.numpy())
    assert predict("input=images.npz", "output=predictions.json", "top_k=99")[0] == 0
    predictions = json.loads(Path("predictions.json").read_text())
    assert [each["input"] for each in predictions] == [f"images.npz[{index}]" for index in range(12)]
    assert sum(top["probability"] for top in predictions[3]["top"]) == pytest.approx(1, abs=1e-4)
    assert len(predictions[3]["top"]) == 10
    assert predict("input=images.npz", "format=ids")[1].splitlines()[1].startswith("0,")


def test_several_inputs_keep_their_order(predict, pictures):
    np.savez("two.npz", images=pictures[:2].numpy())
    _, out, _ = predict("input=[photos/3.png,two.npz,photos/1.png]")
    assert [line.split(",")[0] for line in out.splitlines()[1:]] == [
        "photos/3.png",
        "two.npz[0]",
        "two.npz[1]",
        "photos/1.png",
    ]


def ids_in(text: str) -> dict[str, str]:
    rows = list(csv.reader(io.StringIO(text)))
    assert len({row[0] for row in rows}) == len(rows)
    return dict(rows[1:])


def test_a_pictures_id_is_its_files_stem(predict, pictures, trained):
    expected = load(trained).predict(pictures).argmax(1).tolist()
    Path("photos/sub").mkdir()
    for index in (0, 3, 7):
        Path(f"photos/{index}.png").unlink()
    Path("photos/5.png").rename("photos/sub/5.png")
    Path("photos/9.png").rename("photos/a.9.png")
    _, out, _ = predict("input=photos", "format=ids", "batch_size=4")
    numbers = {str(index): index for index in (1, 2, 4, 5, 6, 8, 10, 11)} | {"a.9": 9}
    assert ids_in(out) == {stem: str(expected[index]) for stem, index in numbers.items()}


def test_kaggles_columns_and_those_of_a_course_come_out(predict, pictures, trained):
    expected = load(trained).predict(pictures).argmax(1).tolist()
    names = [Synthetic.classes[label] for label in expected]
    for index in reversed(range(12)):
        Path(f"photos/{index}.png").rename(f"photos/{index + 1}.png")
    _, out, _ = predict("input=photos", "format=ids", "ids.header=[id,label]", "ids.labels=names")
    assert out.splitlines() == ["id,label", *(f"{index},{name}" for index, name in enumerate(names, 1))]
    np.savez("images.npz", images=pictures.numpy())
    _, out, _ = predict("input=images.npz", "format=ids", "ids.header=[ImageId,Label]", "ids.first=1")
    assert out.splitlines() == ["ImageId,Label", *(f"{index},{label}" for index, label in enumerate(expected, 1))]


def test_two_images_of_one_id_are_named_and_nothing_is_written(predict, pictures):
    np.savez("images.npz", images=pictures[:4].numpy())
    np.savez("named.npz", images=pictures[:2].numpy(), ids=["x", "x"])
    Path("photos/3.jpg").write_bytes(Path("photos/3.png").read_bytes())
    for inputs, line in {
        "photos": "two images of one id. Got photos/3.jpg and photos/3.png, both 3; leave one out",
        "[photos/2.png,images.npz]": "two images of one id. Got photos/2.png and images.npz[1], both 2; leave one out",
        "named.npz": "two images of one id. Got named.npz[0] and named.npz[1], both x; leave one out",
    }.items():
        code, out, err = predict(f"input={inputs}", "format=ids", "output=ids.csv")
        assert (code, out) == (2, "")
        assert line in err
        assert not Path("ids.csv").exists()
        assert predict(f"input={inputs}")[0] == 0


def test_numbers_that_a_damaged_archive_hides_are_not_made_up(predict, pictures):
    Path("1.npz").write_bytes(b"PK damaged")
    np.savez("2.npz", images=pictures[:3].numpy())
    code, _, err = predict("input=[2.npz,1.npz]", "format=ids", "output=ids.csv")
    assert code == 1
    assert Path("ids.csv").read_text().splitlines()[1].startswith("0,")
    code, _, err = predict("input=[1.npz,2.npz]", "format=ids", "output=other.csv")
    assert code == 2
    assert "ids count the images of all archives, of which one before 2.npz[0] could not be read" in err
    assert not Path("other.csv").exists()
    np.savez("2.npz", images=pictures[:3].numpy(), ids=["x", "y", "z"])
    assert predict("input=[1.npz,2.npz]", "format=ids", "output=other.csv")[0] == 1
    assert predict("input=[1.npz,2.npz]")[0] == 1


@pytest.mark.parametrize("labels", [[-1] * 3, ["cat", "dog", "owl"], [[0, 1], [1, 1], [0, 0]], [None, "dog", 3]])
def test_labels_of_any_kind_are_of_no_concern(predict, pictures, labels):
    np.savez("some.npz", images=pictures[:3].numpy(), labels=np.array(labels))
    code, out, _ = predict("input=some.npz")
    assert code == 0
    assert len(out.splitlines()) == 4


def test_hidden_and_system_entries_are_counted_links_followed_and_dead_ones_named(predict, pictures):
    Path("photos/.hidden").mkdir()
    Path("photos/__MACOSX").mkdir()
    Path("photos/.hidden/1.png").write_bytes(Path("photos/1.png").read_bytes())
    Path("photos/__MACOSX/._1.png").write_bytes(b"no picture")
    Path("photos/Thumbs.db").write_bytes(b"no picture")
    assert predict("input=photos")[::2] == (0, "passed over: hidden or system entries (3)\n")
    Path("elsewhere").mkdir()
    Path("photos/3.png").rename("elsewhere/3.png")
    Path("photos/more").symlink_to("../elsewhere")
    Path("photos/up").symlink_to("..")
    Path("photos/dead.png").symlink_to("nowhere")
    code, out, err = predict("input=photos")
    assert code == 1
    found = [line.split(",")[0] for line in out.splitlines()[1:]]
    assert found == [f"photos/{name}" for name in (*(f"{n}.png" for n in range(12) if n != 3), "more/3.png")]
    assert err.splitlines() == [
        "passed over: hidden or system entries (3), links back to where they lie (photos/up)",
        "skipped: not a readable image: photos/dead.png (a link that leads nowhere); mend it or take it away",
    ]


def test_texts_and_tables_in_a_folder_are_no_damaged_pictures(predict, pictures):
    Path("photos/notes.txt").write_text("of June")
    code, out, err = predict("input=photos", "top_k=1")
    assert code == 0
    assert len(out.splitlines()) == 13
    assert "passed over: files that are no pictures (photos/notes.txt)" in err
    code, _, err = predict("input=[photos,photos/notes.txt]", "top_k=1")  # which somebody takes for a picture
    assert code == 1
    assert "skipped: not a readable image: photos/notes.txt" in err


def test_how_large_a_picture_may_be_is_a_setting(predict, pictures):
    Image.new("L", (1001, 1000)).save("photos/large.png")
    code, out, err = predict("input=photos", "max_megapixels=1")
    assert code == 1
    assert "photos/large.png (1001 x 1000 pixels, more than max_megapixels=1)" in err
    assert len(out.splitlines()) == 13
    assert predict("input=photos")[0] == 0


def test_what_is_told_of_unfinished_runs_is_no_prediction(sweep_dir, pictures, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(log, "handlers", [])  # as in a new process
    shutil.copytree(sweep_dir, tmp_path / "sweep")
    Path("sweep/seed-1/result.json").unlink()
    assert cli.predict(["checkpoint=sweep", "input=photos", *PLAIN]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("input,class_1")
    assert err.count("1 of 2 runs in sweep have not finished") == 1


def test_what_is_not_there_is_named_and_the_rest_predicted_under_its_own_name(predict, pictures):
    Path("photos/1.png").write_bytes(b"no picture")
    Path("empty").mkdir()
    Path(os.fsdecode(b"photos/3.\xff.png")).write_bytes(Path("photos/3.png").read_bytes())
    code, out, err = predict("input=[photos,gone.png,gone.npz,empty]", "format=ids", "batch_size=5")
    assert code == 1
    names = ["0", "2", "3", "3.\N{REPLACEMENT CHARACTER}", *map(str, range(4, 12))]
    assert [line.split(",")[0] for line in out.splitlines()[1:]] == names
    assert [line.split(": ")[0] for line in err.splitlines()] == ["skipped"] * 4
    for name in ("photos/1.png", "gone.png", "gone.npz", "empty"):
        assert name in err
    assert predict("input=photos", "output=predictions.csv")[0] == 1
    assert "photos/3.\N{REPLACEMENT CHARACTER}.png" in Path("predictions.csv").read_text(encoding="utf-8")


def test_an_ensemble_predicts_its_mean(sweep_dir, pictures, capsys):
    assert cli.predict([f"checkpoint={sweep_dir}", "input=photos", "output=predictions.json", "top_k=10", *PLAIN]) == 0
    mean = (load(sweep_dir / "seed-0").predict(pictures) + load(sweep_dir / "seed-1").predict(pictures)) / 2
    for each, expected in zip(json.loads(Path("predictions.json").read_text()), mean, strict=True):
        found = {top["class"]: top["probability"] for top in each["top"]}
        assert [found[name] for name in Synthetic.classes] == pytest.approx(expected.tolist(), abs=1e-5)


def bad_files(pictures: torch.Tensor, count: int) -> dict[str, bytes]:
    """Damaged and hostile files, by name: fuzzed pictures and archives, code in pickles, bombs, wrong shapes."""
    dice = random.Random(0)
    sources = {}
    for suffix in ("png", "jpg", "webp", "gif", "tiff", "bmp"):
        save = Image.fromarray(pictures[0].permute(1, 2, 0).numpy()).save
        sources[suffix] = in_memory(save, "jpeg" if suffix == "jpg" else suffix)
    sources["npz"] = in_memory(np.savez, images=pictures.numpy(), labels=np.arange(12))
    sources["pkl"] = pickle.dumps({"data": pictures.flatten(1).numpy(), "labels": list(range(12))})
    wrong = {
        "trap.pkl": pickle.dumps({"data": Trap()}),
        "trap.p": pickle.dumps(Trap()),
        "trap0.pickle": pickle.dumps(Trap(), protocol=0),
        "trap": pickle.dumps({"data": Trap()}),
        "bomb.png": png_that_claims(60_000, 60_000),
        "negative.png": png_that_claims(2**31 - 1, 2**31 - 1),
        "empty.png": b"",
        "empty.npz": b"",
        "empty.pkl": b"",
        "notes": b"no picture at all",
        "page.eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(%pipe%touch executed) (w) file\n",
        "drawing.svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "list.pkl": pickle.dumps([1, 2, 3]),
        "shape.pkl": pickle.dumps({"data": np.zeros((3, 7), np.uint8)}),
        "floats.pkl": pickle.dumps({"data": np.full((3, 3072), 2.0)}),
        "huge.pkl": b"\x80\x04\x8a\xff" + b"\xff" * 20,
    }
    while len(wrong) < count:
        suffix, name = dice.choice(list(sources)), f"fuzzed-{len(wrong)}"
        content = bytearray(sources[suffix])
        if dice.random() < 0.5:
            content = content[: dice.randrange(1, max(2, len(content) // 2))]
        elif suffix == "pkl":  # which nobody should load with a random change in it
            continue
        else:  # its beginning, where the format is told
            for _ in range(dice.randrange(8, 40)):
                content[dice.randrange(min(len(content), 24))] = dice.randrange(256)
        if not is_readable(bytes(content), suffix):  # a flipped bit may leave a picture
            wrong[f"{name}.{suffix}"] = bytes(content)
    return wrong


def is_readable(content: bytes, suffix: str) -> bool:
    """What the libraries themselves say."""
    try:
        if suffix == "npz":
            with np.load(io.BytesIO(content)) as arrays:
                return arrays["images"].size > 0
        if suffix == "pkl":
            return len(content) > 0 and len(pickle.loads(content)["data"]) > 0
        with Image.open(io.BytesIO(content)) as image:
            image.load()
    except Exception:
        return False
    return True


def test_bad_files_are_named_and_the_good_ones_predicted(predict, pictures):
    wrong = bad_files(pictures, 200)
    for name, content in wrong.items():
        Path("photos", name).write_bytes(content)
    code, out, err = predict("input=photos")
    assert code == 1
    predicted = {line.split(",")[0] for line in out.splitlines()[1:]}
    assert {f"photos/{index}.png" for index in range(12)} <= predicted
    complaints = [line for line in err.splitlines() if line.startswith("skipped: ")]
    assert len(complaints) == len(err.splitlines())
    assert "Traceback" not in err
    assert len(complaints) == 200
    assert all(any(f"photos/{name}" in line for line in complaints) for name in wrong)
    assert not Path(EXECUTED).exists()


def test_a_terminal_shows_a_bar_and_a_file_does_not(predict, pictures, monkeypatch):
    assert predict("input=photos")[2] == ""
    monkeypatch.setenv("FORCE_COLOR", "1")  # by which rich takes anything for a terminal
    err = predict("input=photos", "batch_size=4")[2]
    assert "pictures" in err
    assert "100%" in err


def test_nothing_readable_is_an_error(predict):
    Path("broken.png").write_bytes(b"broken")
    code, out, err = predict("input=broken.png", "output=predictions.csv")
    assert code == 2
    assert out == ""
    assert "skipped: not a readable image: broken.png" in err
    assert "nothing could be predicted. Got broken.png" in err
    assert not Path("predictions.csv").exists()


def test_an_image_that_the_network_gives_nan_for_is_named_and_left_out(predict, pictures, monkeypatch):
    log_probs = Ensemble.log_probs

    def broken(*arguments):
        found = log_probs(*arguments).clone()  # or it would be inference mode's
        found[:, 2] = torch.nan
        return found

    monkeypatch.setattr(Ensemble, "log_probs", broken)
    code, out, err = predict("input=photos")
    assert code == 1
    assert err == "skipped: photos/2.png: the network gives nan for it, in 32-true; train anew\n"
    assert [row["input"] for row in csv.DictReader(io.StringIO(out))] == [
        f"photos/{index}.png" for index in range(12) if index != 2
    ]


def test_an_output_that_could_not_be_written_is_told_before_anything_is_computed(predict, pictures, monkeypatch):
    monkeypatch.setattr(Ensemble, "log_probs", lambda *arguments: 1 / 0)
    Path("link.csv").symlink_to("nowhere/out.csv")
    assert "must lie in a folder that exists. Got link.csv" in predict("input=photos", "output=link.csv")[2]


def test_a_pipe_is_left_for_who_reads_it():
    reading, writing = os.pipe()
    os.write(writing, b"\x80 as a pickle begins")
    os.close(writing)
    assert not is_archive(Path(f"/dev/fd/{reading}"))
    with os.fdopen(reading, "rb") as pipe:
        assert pipe.read() == b"\x80 as a pickle begins"
