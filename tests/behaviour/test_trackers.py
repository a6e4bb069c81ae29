"""Trackers hold the numbers of metrics.csv, and a run that goes on goes on in theirs."""

import json
import struct
from pathlib import Path

import pytest
from helpers import TINY, record_of, rows_of
from omegaconf import OmegaConf

from cifar_resnet import cli
from cifar_resnet.errors import UsageError
from cifar_resnet.trackers import hyper_parameters, known_ids

MORE = ("trainer.max_epochs=3", "page=true")
TRAINING = [text for text in TINY if text.partition("=")[0] not in ("trainer.max_epochs", "page")]


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def stopped_and_resumed(tracker: str, crash, run_dirs, *more: str) -> Path:
    crash(2)
    with pytest.raises(RuntimeError, match="power"):
        cli.train([*TRAINING, *MORE, f"logger={tracker}", *more])
    crash(None)
    (run_dir,) = run_dirs()
    before = json.loads((run_dir / "trackers.json").read_text())
    assert cli.train([f"resume={run_dir}", "trust=[lightning.pytorch.loggers]"]) == 0
    assert json.loads((run_dir / "trackers.json").read_text()) == before
    return run_dir


@pytest.mark.slow
def test_tables_step_by_step(run_dirs):
    assert cli.train([*TRAINING, *MORE, "logger=[tensorboard,csv]"]) == 0
    (run_dir,) = run_dirs()
    assert (run_dir / "csv" / "version_0" / "metrics.csv").exists()
    assert list((run_dir / "tensorboard").glob("events.*"))


def test_none_at_all(run_dirs):
    assert cli.train([*TRAINING, *MORE, "logger=none"]) == 0
    (run_dir,) = run_dirs()
    assert not (run_dir / "tensorboard").exists()
    assert len(rows_of(run_dir)) == 3
    assert (run_dir / "page.html").exists()


def test_hyper_parameters_are_what_people_vary_and_what_was_given():
    from cifar_resnet.compose import Composer
    from cifar_resnet.constraints import plain

    (job,) = Composer("train").jobs(["model=resnet20", "optimizer.lr=0.3", "augment.crop_padding=3"])
    found = hyper_parameters(plain(job.cfg))
    assert found["model"] == "resnet20"
    assert found["optimizer.lr"] == 0.3
    assert found["augment.crop_padding"] == 3
    assert len(found) < 20


@pytest.mark.parametrize("text", ["{", "[]", '{"wandb": 5}', "\ufffd"])
def test_ids_that_cannot_be_read_are_told_in_one_line(text, tmp_path):
    (tmp_path / "trackers.json").write_text(text)
    with pytest.raises(UsageError, match=r"trackers' ids.*trackers.json.*; restore it, or remove it") as error:
        known_ids(OmegaConf.create({"run_dir": str(tmp_path), "resume": str(tmp_path)}))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("choice", "module"), [("wandb", "wandb"), ("mlflow", "mlflow")])
def test_without_its_package_one_line_says_how_to_get_it(choice, module, monkeypatch, capsys):
    monkeypatch.setattr("cifar_resnet.trackers.find_spec", lambda name: None)
    assert cli.train([*TRAINING, f"logger={choice}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"logger={choice} needs {module}. Give, in the clone: pip install -e '.[{choice}]'" in line
    assert not list(Path("outputs").rglob("config.yaml"))


@pytest.mark.slow
def test_mlflow_holds_the_same_numbers_and_goes_on_in_the_same_run(crash, run_dirs):
    mlflow = pytest.importorskip("mlflow")
    run_dir = stopped_and_resumed("mlflow", crash, run_dirs)
    record = record_of(run_dir)
    client = mlflow.MlflowClient(f"sqlite:///{Path('mlruns/mlflow.db').absolute()}")
    (experiment,) = [each for each in client.search_experiments() if each.name == "train"]
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.run_id == json.loads((run_dir / "trackers.json").read_text())["mlflow"]
    for name in ("train/loss", "val/acc"):
        logged = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, name)}
        expected = [float(row[name]) for row in rows_of(run_dir)]
        assert [logged[step] for step in sorted(logged)] == pytest.approx(expected)
    assert run.data.metrics["tested_epoch/test/acc"] == pytest.approx(record["metrics"]["test/acc"])
    assert run.data.tags["checkpoint"].endswith("checkpoints/best.ckpt")
    assert {file.path for file in client.list_artifacts(run.info.run_id)} >= {"curves.png", "confusion.png"}


@pytest.mark.slow
def test_what_is_refused_begins_no_run_of_a_tracker(capsys):
    mlflow = pytest.importorskip("mlflow")
    assert cli.train([*TRAINING, "logger=mlflow", "trainer.accumulate_grad_batches=100"]) == 2
    assert "a step would need more batches than an epoch has" in capsys.readouterr().err
    client = mlflow.MlflowClient(f"sqlite:///{Path('mlruns/mlflow.db').absolute()}")
    assert client.search_runs([each.experiment_id for each in client.search_experiments()]) == []


def kept_offline(path: Path) -> list:
    """The records in wandb's own file: a log in blocks of 32 KiB, as LevelDB's, after 7 bytes of its own."""
    from wandb.proto.wandb_internal_pb2 import Record

    content, place, found, part = path.read_bytes(), 7, [], b""
    while place + 7 <= len(content):
        if 32768 - place % 32768 < 7:  # too little for another head
            place += 32768 - place % 32768
            continue
        length, kind = struct.unpack("<HB", content[place + 4 : place + 7])
        part += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or its last part
            found.append(Record.FromString(part))
            part = b""
    return found


@pytest.mark.slow
def test_wandb_offline_holds_the_same_numbers_and_goes_on_under_the_same_id(crash, run_dirs):
    pytest.importorskip("wandb")
    run_dir = stopped_and_resumed("wandb", crash, run_dirs, "logger.wandb.offline=true")
    own, record = json.loads((run_dir / "trackers.json").read_text())["wandb"], record_of(run_dir)
    files = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"))
    assert [file.stem for file in files] == [f"run-{own}"] * 2  # it cannot write into the first one's again
    logged: dict[str, list[float]] = {}
    summary = {}
    for each in (each for file in files for each in kept_offline(file)):
        for item in each.history.item:
            logged.setdefault("/".join(item.nested_key) or item.key, []).append(json.loads(item.value_json))
        for item in each.summary.update:
            summary["/".join(item.nested_key) or item.key] = json.loads(item.value_json)
    for name in ("train/loss", "val/acc"):
        assert logged[name] == pytest.approx([float(row[name]) for row in rows_of(run_dir)]), name
    assert logged["tested_epoch/test/acc"] == [pytest.approx(record["metrics"]["test/acc"])]
    assert summary["checkpoint"].endswith("checkpoints/best.ckpt")
    assert {"curves", "confusion"} <= {name.partition("/")[0] for name in logged}
