"""cifar-train -m: one job after the other, each in a folder of its own, and a table of all."""

import json
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, record_of
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import OmegaConf

from cifar_resnet import cli, runs, sweep
from cifar_resnet.data import Synthetic
from cifar_resnet.models import Classifier


def test_a_sweep_makes_one_named_folder_per_job_and_is_not_run_twice(cifar_train, run_dirs, capsys, monkeypatch):
    command = ("-m", "model.depth=8,14", "optimizer.lr=0.05,0.1,0.2")
    assert cifar_train(*command) == 0
    folders = run_dirs()
    expected = {f"depth-{depth}_lr-{rate}" for depth in (8, 14) for rate in (0.05, 0.1, 0.2)}
    assert {folder.name for folder in folders} == expected
    assert len({folder.parent for folder in folders}) == 1
    for folder in folders:
        model, optimizer = record_of(folder)["config"]["model"], record_of(folder)["config"]["optimizer"]
        assert folder.name == f"depth-{model['depth']}_lr-{optimizer['lr']}"
    table = capsys.readouterr().out
    assert table.count("depth-14_lr-") >= 3
    sweep, told = folders[0].parent.name, " ".join(table.split())
    assert f"compare cifar-report outputs/train/{sweep}" in told
    assert f"as an ensemble cifar-evaluate checkpoint=outputs/train/{sweep}" in told

    (folders[3] / "result.json").unlink()
    trained = []
    setup = Classifier.setup
    monkeypatch.setattr(Classifier, "setup", lambda self, stage: trained.append(stage) or setup(self, stage))
    assert cifar_train(*command) == 0
    assert trained == ["fit", "test"]
    assert len(run_dirs()) == 6


def test_a_share_of_validation_images_that_is_none_changes_no_recipe(cifar_train, capsys):
    command = ("-m", "seed=0,1", "data.num_val=0.001")
    assert cifar_train(*command) == 0
    assert cifar_train(*command) == 0
    assert "finished before" in capsys.readouterr().out


@pytest.mark.slow
def test_what_has_finished_is_shown_again_without_its_images(capsys):
    for train in (True, False):
        images, labels = Synthetic(num_train=60, num_test=20).read(train)
        np.savez("some.npz" if train else "test.npz", images=images.numpy(), labels=labels.numpy())
    tiny = [text for text in TINY if not text.startswith("data")]
    data = ["data=files", "data.train=some.npz", "data.test=test.npz", "data.num_val=10", "data.batch_size=10"]
    command = ["-m", *tiny, *data, "seed=0,1"]
    assert cli.train(command) == 0
    Path("some.npz").rename("gone.npz")
    capsys.readouterr()
    assert cli.train(command) == 0
    assert capsys.readouterr().out.count("seed-") >= 2
    record = next(Path("outputs").glob("train/*/seed-1/result.json"))
    record.unlink()
    assert cli.train(command) == 2  # but what has not needs them
    assert "Got some.npz, which is not there" in capsys.readouterr().err


@pytest.mark.slow
def test_a_finished_job_that_went_on_with_what_may_change_is_of_the_same_recipe(cifar_train, run_dirs, capsys):
    command = ("-m", "seed=0,1", "test=false")
    assert cifar_train(*command) == 0
    first, _ = run_dirs()
    assert cli.train([f"resume={first}", "test=true", "trainer.limit_test_batches=1"]) == 0
    assert "test/acc" in record_of(first)["metrics"]
    assert cifar_train(*command) == 0
    assert "finished before" in capsys.readouterr().out


@pytest.mark.parametrize("launcher", ["basic", "joblib"])
def test_a_process_that_hands_its_jobs_to_workers_takes_no_gpu_from_them(cifar_train, monkeypatch, launcher):
    if launcher == "joblib":
        pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    taken = []
    monkeypatch.setattr("cifar_resnet.train.claim_gpu", taken.append)
    monkeypatch.setattr("cifar_resnet.search.claim_gpu", taken.append)
    monkeypatch.setattr(sweep, "sweep", lambda jobs, run: 0)
    monkeypatch.setattr("cifar_resnet.search.Search.launch", lambda self: None)
    monkeypatch.setattr("cifar_resnet.search.Search.go_on", lambda self: None)
    monkeypatch.setattr("cifar_resnet.search.Search.report", lambda self: 0)
    assert cifar_train("-m", "seed=0,1", f"hydra/launcher={launcher}") == 0
    assert cli.search([*TINY, f"hydra/launcher={launcher}"]) == 0
    assert len(taken) == (2 if launcher == "basic" else 0)


def test_a_process_that_trains_alone_leaves_its_curves_whatever_its_launcher_says(cifar_train, run_dirs, monkeypatch):
    """As each but the first of those that srun starts for a sweep, which Lightning takes for one of several."""
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    assert cifar_train("-m", "seed=0", "logger=[tensorboard,csv]") == 0
    (run_dir,) = run_dirs()
    assert list(run_dir.rglob("events.out.tfevents.*"))
    assert list(run_dir.rglob("hparams.yaml"))


@pytest.mark.slow
def test_the_jobs_of_a_sweep_read_their_images_once(cifar_train, run_dirs, monkeypatch):
    reads = []
    read = Synthetic.read
    monkeypatch.setattr(Synthetic, "read", lambda self, train: reads.append(train) or read(self, train))
    assert cifar_train("-m", "seed=0,1", "optimizer.lr=0.1,0.2") == 0
    assert reads == [True, False]
    together = {path.name: record_of(path)["metrics"] for path in run_dirs()}
    alone = ["seed=1", "optimizer.lr=0.2"]
    assert cifar_train(*alone) == 0
    assert reads == [True, False] * 2
    assert record_of(run_dirs()[-1])["metrics"]["test/loss"] == together["seed-1_lr-0.2"]["test/loss"]
    assert cifar_train("-m", "data.num_val=40,60") == 0  # another split is read anew
    assert reads == [True, False] * 4


def test_a_job_that_fails_before_it_reads_does_not_stop_the_sweep_and_leaves_the_next_nothing_to_take_over(
    cifar_train, run_dirs, monkeypatch, capsys
):
    """With a source that, as CIFAR-10 does, knows its classes only once it has read."""
    read, classes = Synthetic.read, Synthetic.classes

    def read_and_learn_classes(self, train):
        self.classes = classes
        return read(self, train)

    monkeypatch.delattr(Synthetic, "classes")
    monkeypatch.setattr(Synthetic, "read", read_and_learn_classes)
    assert cifar_train("-m", "optimizer.lr=-1,0.1") == 1
    assert [path.name for path in run_dirs()] == ["lr-0.1"]
    assert record_of(run_dirs()[0])["epochs"] == 1
    output = capsys.readouterr().out
    assert "optimizer.lr must be a number above 0. Got -1" in output
    assert "failed" in output


def test_a_job_that_asks_for_what_cannot_be_gets_the_line_that_it_would_get_alone(cifar_train, run_dirs, capsys):
    """Also where the images have been read by the job before."""
    assert cifar_train("data.batch_size=5000") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert cifar_train("-m", "data.batch_size=40,5000") == 1
    captured = capsys.readouterr()
    assert (run_dirs()[0].parent / "batch_size-5000" / "failure.txt").read_text() == f"{line.removeprefix('error: ')}\n"
    assert "Traceback" not in captured.out + captured.err
    assert "stopped before its end" not in captured.out


@pytest.mark.slow
def test_a_recipe_of_ones_own_is_mended_and_never_mixed_with_what_it_was(cifar_train, capsys):
    def write(lr: str, momentum: str) -> None:
        text = f"_target_: torch.optim.SGD\n_partial_: true\nlr: {lr}\nmomentum: {momentum}\nweight_decay: 0\n"
        Path("mine/optimizer/own.yaml").write_text(text)

    Path("mine/optimizer").mkdir(parents=True)
    command = ["-m", "--config-dir", "mine", "optimizer=own", "seed=0,1", "trainer.gradient_clip_val=1"]
    write("1e25", "0.9")
    assert cifar_train(*command) == 1
    captured = capsys.readouterr()
    assert "the loss is no longer finite" in captured.out + captured.err
    write("0.01", "0.9")
    assert cifar_train(*command) == 0
    assert "finished before" not in capsys.readouterr().out
    assert cifar_train(*command) == 0
    assert capsys.readouterr().out.count("finished before") == 2
    write("0.01", "0.5")
    assert cifar_train(*command) == 1
    captured = capsys.readouterr()
    assert (
        "its recipe has changed since this job was trained. Got another optimizer.momentum"
        in captured.out + captured.err
    )
    Path("other/optimizer").mkdir(parents=True)
    Path("mine/optimizer/own.yaml").rename("other/optimizer/own.yaml")
    assert cifar_train(*("other" if text == "mine" else text for text in command)) == 0
    assert "finished before" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_damaged_record_stops_its_own_job_alone(cifar_train, run_dirs, capsys):
    assert cifar_train("-m", "seed=0,1") == 0
    first, second = run_dirs()
    (first / "result.json").write_text("{")
    (second / "result.json").unlink()
    assert cifar_train("-m", "seed=0,1", "sweep.max_time=00:01:00:00") == 1
    assert record_of(second)["epochs"] == 1
    assert "1 of 2 jobs failed" in capsys.readouterr().out


@pytest.mark.slow
def test_a_sweep_with_failures_ends_and_tries_only_those_again(capsys):
    tiny = [text for text in TINY if not text.startswith(("data", "trainer"))]
    images, labels = Synthetic(num_train=120, num_test=40).read(train=True)
    for name in ("a", "b", "test"):
        np.savez(f"{name}.npz", images=images[:100].numpy(), labels=labels[:100].numpy())
    command = [
        "-m", *tiny, "data=files", "data.train=a.npz,b.npz,c.npz", "data.test=test.npz", "data.batch_size=20",
        "data.num_val=20", "seed=0,1", "trainer.max_epochs=1",
    ]  # fmt: skip
    assert cli.train(command) == 1
    out = capsys.readouterr().out
    assert "2 of 6 jobs failed" in out
    assert out.count("c.npz, which is not there") >= 2
    results = sorted(Path("outputs").rglob("result.json"))
    assert len(results) == 4
    stamps = [path.stat().st_mtime_ns for path in results]
    failures = list(Path("outputs").rglob("failure.txt"))
    assert len(failures) == 2
    assert "c.npz" in failures[0].read_text()
    shutil.copy("a.npz", "c.npz")
    assert cli.train(command) == 0
    assert [path.stat().st_mtime_ns for path in results] == stamps
    assert len(list(Path("outputs").rglob("result.json"))) == 6
    assert not list(Path("outputs").rglob("failure.txt"))
    assert "failed" not in capsys.readouterr().out


def test_ctrl_c_has_an_exit_code_of_its_own_and_ends_a_sweep(cifar_train, run_dirs, send, capsys):
    send(3, signal.SIGINT)
    assert cifar_train("-m", "seed=0,1") == 130
    assert "by SIGINT" in capsys.readouterr().err
    assert len(run_dirs()) == 1
    send(None)
    assert cifar_train("-m", "seed=0,1") == 0
    assert len(list(Path("outputs").rglob("result.json"))) == 2


@pytest.mark.slow
def test_no_job_is_begun_that_would_not_end_in_the_time_of_the_sweep(cifar_train, run_dirs, monkeypatch, capsys):
    """By a clock that each job moves by the 100 seconds that it says it took."""
    run_in, seen = sweep.run_in, []

    def slow(run_dir, cfg, run):
        record = run_in(run_dir, cfg, run) | {"seconds": 100.0}
        (run_dir / "result.json").write_text(json.dumps(record))
        seen.append(run_dir.name)
        return record

    monkeypatch.setattr(sweep, "run_in", slow)
    monkeypatch.setattr(sweep.runs, "time_in", lambda folder: 100.0 * len(seen))
    command = ["-m", "seed=3,4,5,6"]
    assert cifar_train(*command, "sweep.max_time=00:00:04:10") == 0
    assert seen == ["seed-3", "seed-4"]
    out = capsys.readouterr()
    told = "2 of 4 jobs were not begun: 0:50 of sweep.max_time=4:10 were left, and one before took 1:40"
    assert told in out.out + out.err
    assert out.out.count(" left ") >= 2
    folder = run_dirs()[-1].parent
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["seed-3", "seed-4"]
    assert cli.evaluate([f"checkpoint={folder}"]) == 0  # what there is makes the ensemble
    assert cifar_train(*command, "sweep.max_time=00:00:01:50") == 0  # another limit is no other sweep
    assert seen == ["seed-3", "seed-4", "seed-5"]
    assert cifar_train(*command) == 0
    assert seen[3:] == ["seed-6"]


def test_a_sweeps_limit_needs_a_sweep(cifar_train, run_dirs, capsys):
    assert cifar_train("sweep.max_time=00:00:01:00") == 2
    assert "sweep.max_time is the limit of a sweep. Got it without -m" in capsys.readouterr().err
    assert not run_dirs()


@pytest.mark.parametrize("was_trained", [True, False])
def test_a_job_whose_worker_was_lost_is_none_that_there_was_no_time_for(tmp_path, was_trained):
    began = time.time()
    task = sweep.Task("job 1 of 2: seed=0", OmegaConf.create(), tmp_path / "seed-0", [], None)
    task.record, task.failure = (lambda: None), (lambda since=None: None)
    task.left = lambda: sweep.Left("0:10 of sweep.max_time were left")
    task.run_dir.mkdir()
    if was_trained:
        (task.run_dir / runs.LOG).write_text("epoch 1")
    outcome = task.attempt(None, began - 1)
    assert isinstance(outcome, sweep.Left) != was_trained
    assert ("its worker was stopped or lost" in outcome) == was_trained
