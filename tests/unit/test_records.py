"""Each figure under benchmarks/results says where it comes from."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
RECORDS, RECORD = sorted((BENCHMARKS / "results").glob("*.json")), BENCHMARKS / "record.py"


@pytest.mark.parametrize("path", RECORDS, ids=lambda path: path.stem)
def test_a_record_holds_command_clean_commit_device_threads_versions_and_date(path):
    record = json.loads(path.read_text())
    assert re.match(r"(cifar-|python benchmarks/)", record["command"])
    assert not re.search(r"(^|[ =])[/~]", record["command"])  # another machine's folders
    assert re.fullmatch("[0-9a-f]{12}", record["commit"])
    assert record["device"]
    assert re.search(r", \d+ threads?$", record["device"]) or record["threads"] >= 1
    assert {"python", "torch", "lightning"} <= record["versions"].keys()
    assert re.match(r"20\d\d-\d\d-\d\d", record.get("date") or record["finished"])


def test_there_are_records():
    assert len(RECORDS) > 20


def finished_run(folder: Path, seed: int, **changes: object) -> None:
    folder.mkdir(parents=True)
    record = {
        "config": {"seed": seed, "choices": {"model": "resnet20"}},
        "device": "some CPU, 2 threads", "precision": "32-true", "threads": 2,
        "versions": {"python": "3.11"}, "commit": "0123456789ab", "finished": f"2026-11-2{seed}T10:00:00",
        "network": "resnet20", "parameters": 5, "epochs": 3, "training_flops": 10,
        "metrics": {"test/acc": 0.9 + seed / 10},
    }  # fmt: skip
    (folder / "result.json").write_text(json.dumps(record | changes))


def record(folder: str, *more: str) -> subprocess.CompletedProcess:
    given = ["--command", "cifar-train -m seed=0,1", "--chosen", "on validation images", "--json", "out.json", *more]
    return subprocess.run([sys.executable, RECORD, folder, *given], capture_output=True, text=True)


def test_finished_runs_become_one_record(tmp_path):
    for seed in (1, 0):
        finished_run(tmp_path / "sweep" / f"seed-{seed}", seed)
    assert record("sweep").returncode == 0
    found = json.loads(Path("out.json").read_text())
    assert [run["seed"] for run in found["runs"]] == [0, 1]
    assert found["test_acc"] == {"mean": pytest.approx(0.95), "sd": pytest.approx(0.1 / 2**0.5)}
    expected = {"command": "cifar-train -m seed=0,1", "commit": "0123456789ab", "date": "2026-11-21", "threads": 2}
    assert expected.items() <= found.items()


def test_of_several_recipes_each_has_its_own_mean(tmp_path):
    for place, (recipe, seed) in enumerate([("sgd", 0), ("sgd", 1), ("adam", 0)]):
        finished_run(tmp_path / "sweep" / f"{place}", seed, config={"seed": seed, "choices": {"experiment": recipe}})
    assert record("sweep").returncode == 0
    found = json.loads(Path("out.json").read_text())
    assert [(run["experiment"], run["seed"]) for run in found["runs"]] == [("sgd", 0), ("sgd", 1), ("adam", 0)]
    assert found["test_acc"]["sgd"]["mean"] == pytest.approx(0.95)
    assert found["test_acc"]["adam"] == {"mean": 0.9}


def test_what_they_are_together_stands_beside_them(tmp_path):
    for seed in (0, 1):
        finished_run(tmp_path / "sweep" / f"seed-{seed}", seed)
    keys = (
        "num_images",
        "tta",
        "scores",
        "intervals",
        "calibrated",
        "temperature",
        "temperature_from",
        "growth",
        "commit",
    )
    evaluation = {key: key for key in keys} | {"members": [{"acc": 0.9}, {"acc": 1.0}], "classes": ["left out"]}
    Path("evaluation.json").write_text(json.dumps(evaluation))
    assert record("sweep", "--ensemble", "evaluation.json").returncode == 0
    found = json.loads(Path("out.json").read_text())
    assert found["training_flops"] == 20
    assert found["ensemble"] == {key: value for key, value in evaluation.items() if key != "classes"}
    finished_run(tmp_path / "sweep" / "seed-2", 2)
    assert "Got 2 members of 3 runs" in record("sweep", "--ensemble", "evaluation.json").stderr


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"commit": "0123456789ab+"}, "share their commit"),
        ({"device": "another"}, "share their device"),
    ],
)
def test_runs_of_different_code_or_machines_are_no_record(tmp_path, changes, text):
    finished_run(tmp_path / "sweep" / "seed-0", 0)
    finished_run(tmp_path / "sweep" / "seed-1", 1, **changes)
    outcome = record("sweep")
    assert outcome.returncode == 1
    assert text in outcome.stderr
    assert not Path("out.json").exists()


def test_runs_of_uncommitted_code_are_no_record(tmp_path):
    finished_run(tmp_path / "sweep", 0, commit="0123456789ab+")
    assert "a record is of committed code" in record("sweep").stderr
    assert not Path("out.json").exists()
