"""Runs that look at a part of the images: the part shows all classes, and everything says how large it is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, record_of

from cifar_resnet import cli, load
from cifar_resnet.data import Synthetic
from cifar_resnet.models import Classifier
from cifar_resnet.results.predictions import Predictions

PARTS = ["data.eval_batch_size=10", "trainer.limit_test_batches=2", "trainer.limit_val_batches=1"]


@pytest.fixture
def by_class():
    """Archives whose images come class by class, as folders of classes are read."""
    for train, name in ((True, "train.npz"), (False, "test.npz")):
        images, labels = Synthetic(num_train=240, num_test=60).read(train=train)
        order = labels.sort(stable=True).indices
        pixels = images[order].permute(0, 2, 3, 1).numpy()
        np.savez(name, images=pixels, labels=labels[order].numpy(), classes=Synthetic.classes)
    return ["data=files", "data.train=train.npz", "data.test=test.npz"]


def test_a_part_of_class_ordered_images_is_of_all_classes(by_class, monkeypatch):
    seen: dict[str, list[int]] = {"val": [], "test": []}
    evaluation_step = Classifier.evaluation_step

    def note(self, split, batch):
        seen[split] += batch[1].tolist()
        return evaluation_step(self, split, batch)

    monkeypatch.setattr(Classifier, "evaluation_step", note)
    tiny = [text for text in TINY if not text.startswith(("data=", "data.num_tr", "data.num_te"))]
    limits = ["data.eval_batch_size=20", "trainer.limit_val_batches=1", "trainer.limit_test_batches=1"]
    assert cli.train([*tiny, *by_class, *limits]) == 0
    assert {split: (len(labels), len(set(labels))) for split, labels in seen.items()} == {
        "val": (20, 10),
        "test": (20, 10),
    }


def test_predictions_of_a_part_say_of_which_images_they_are_in_the_files_order(cifar_train, run_dirs, test_images):
    assert cifar_train(*PARTS) == 0
    (run_dir,) = run_dirs()
    found = Predictions.load(run_dir / "predictions.npz")
    assert (len(found.labels), found.num_images, found.share) == (20, 50, "20 of 50")
    assert torch.equal(found.indices, found.indices.sort().values)
    images, labels = test_images(run_dir)
    with torch.no_grad():
        expected = load(run_dir)(images[found.indices]).log_softmax(1)
    torch.testing.assert_close(found.log_probs, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.labels, labels[found.indices])
    right = (expected.argmax(1) == found.labels).float().mean().item()
    assert record_of(run_dir)["metrics"]["test/acc"] == pytest.approx(right)


def test_predictions_of_all_images_are_in_the_files_order(cifar_train, run_dirs, test_images):
    assert cifar_train("data.eval_batch_size=7") == 0
    (run_dir,) = run_dirs()
    found = Predictions.load(run_dir / "predictions.npz")
    images, labels = test_images(run_dir)
    with torch.no_grad():
        expected = load(run_dir)(images).log_softmax(1)
    torch.testing.assert_close(found.log_probs, expected, rtol=1e-4, atol=1e-5)
    assert torch.equal(found.labels, labels)
    assert (found.share, found.indices.tolist()) == ("all 50", list(range(50)))


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("more", [[], ["ensemble.size=2"]], ids=["alone", "side by side"])
def test_record_page_and_terminal_say_of_how_many_images_a_score_is(cifar_train, capsys, more):
    assert cifar_train(*PARTS, *more, "trainer.limit_train_batches=0.5", "page=true") == 0
    out = capsys.readouterr().out
    assert "an epoch sees 80 of 200 training images and 10 of 40 validation images" in out
    for path in Path("outputs").rglob("result.json"):
        record = json.loads(path.read_text())
        assert [record[key] for key in ("num_trained", "num_validated", "num_tested")] == [80, 10, 20]
        assert [record[key] for key in ("num_train", "num_val", "num_test")] == [200, 40, 50]
        page = path.with_name("page.html").read_text()
        for text in (
            "on 20 of 50 test images",
            "on 10 of 40 validation images",
            "1 epoch of 80 of 200 training images",
        ):
            assert text in page
            assert text in out or more
    if more:
        assert "(20 of 50 test images)" in out


def test_a_run_that_looks_at_everything_speaks_of_no_part(cifar_train, run_dirs, capsys):
    assert cifar_train("data.batch_size=30") == 0  # 20 images wait for another epoch
    (run_dir,) = run_dirs()
    assert "0 of" not in capsys.readouterr().out
    record = record_of(run_dir)
    assert [record[key] for key in ("num_trained", "num_validated", "num_tested")] == [200, 40, 50]


@pytest.mark.slow
def test_a_sweeps_table_and_a_report_say_of_how_many_images_a_score_is(cifar_train, capsys):
    assert cifar_train("-m", "trainer.limit_test_batches=1,null", "data.eval_batch_size=20") == 0
    out = capsys.readouterr().out
    assert out.count("(20 of 50 test images)") == 1
    assert cli.report(["outputs", "output=report"]) == 0
    remark = "limit_test_batches-1: scores of 20 of 50 test images"
    assert remark in capsys.readouterr().out
    assert remark in Path("report/report.md").read_text()


@pytest.mark.slow
def test_a_part_is_compared_with_the_same_part_alone(cifar_train, capsys):
    for name, overrides in {"a": PARTS, "b": [*PARTS, "seed=1"], "whole": []}.items():
        assert cifar_train(*overrides, f"run_dir={name}") == 0
    capsys.readouterr()
    assert cli.report(["compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    assert "20 of 50" in out
    assert "of 20 images" in out
    assert cli.report(["compare", "a", "whole"]) == 2
    err = capsys.readouterr().err
    assert "Got 20 of 50 in a and all 50 in whole, which differ in them; cifar-evaluate checkpoint=" in err
    assert cli.evaluate(["checkpoint=a"]) == 0
    (evaluated,) = Path("a").glob("evaluation*")  # of other images than the run's own test
    assert cli.report(["compare", str(evaluated), "whole"]) == 0


@pytest.mark.slow
def test_a_search_says_of_how_many_images_its_scores_are_and_leaves_the_part_out_of_its_advice(capsys):
    command = [*TINY, "search.rounds=1", "search.trials=1", "optimizer.lr=interval(0.01,0.1)", *PARTS]
    for _ in range(2):  # the second has nothing left to do
        assert cli.search(command) == 0
        out = capsys.readouterr().out
        assert "on 10 of 40 validation images" in out
        (advice,) = [line for line in out.splitlines() if line.startswith("cifar-train")]
        assert "limit_val_batches" not in advice
