"""cifar-report: its statistics against NumPy and closed forms, its tables and files, and two runs compared."""

import csv
import html
import itertools
import json
import re
import shutil
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
import torch
from helpers import BROWSER, seen_in_a_browser

from cifar_resnet import cli
from cifar_resnet.data import Synthetic
from cifar_resnet.results.comparison import comparison
from cifar_resnet.results.predictions import Predictions


def a_run(folder: str, overrides: list[str], acc: float | None, seed: int = 0, **more) -> Path:
    """A finished run's record, of 5 epochs, and its curves."""
    path = Path(folder)
    path.mkdir(parents=True)
    settings = dict(text.split("=") for text in overrides)
    config = {
        "seed": seed,
        "data": {"root": str(more.pop("root", "data"))},
        "optimizer": {"lr": float(settings.get("optimizer.lr", 0.1))},
        "model": {"depth": int(settings.get("model.depth", 20))},
        "choices": {"model": "resnet_cifar", "data": more.get("data", "cifar10")},
        "overrides": [*overrides, f"seed={seed}"],
    }
    record = {
        "name": "train",
        "run_dir": str(path),
        "data": "cifar10",
        "num_train": 45_000,
        "num_val": 5_000,
        "network": "resnet_cifar",
        "parameters": 272_474,
        "train_seconds": 60.0,
        "images_per_second": 3750.0,
        "precision": "32-true",
        "selected": "best on validation",
        "epoch": 4,
        "epochs": 5,
        "device": "a test",
        "metrics": {"val/acc": 0.9} | ({} if acc is None else {"test/acc": acc}),
        "config": config,
    }
    (path / "result.json").write_text(json.dumps(record | more))
    rows = [f"{epoch},{epoch * 10},0.1,1.0,0.5,{1 / epoch},{0.5 + epoch / 20}" for epoch in range(1, 6)]
    head = "epoch,step,lr,train/loss,train/acc,val/loss,val/acc"
    (path / "metrics.csv").write_text("\n".join([head, *rows]) + "\n")
    return path


@pytest.fixture
def sweep():
    """Two depths by two learning rates, three seeds each; one cell has a single run."""
    scores = {}
    random = np.random.default_rng(0)
    for depth in (20, 110):
        for lr in (0.05, 0.1):
            for seed in range(1 if (depth, lr) == (110, 0.1) else 3):
                acc = 0.85 + depth / 2000 + lr / 10 + random.normal() / 300
                a_run(f"sweep/{depth}-{lr}-{seed}", [f"model.depth={depth}", f"optimizer.lr={lr}"], acc, seed)
                scores.setdefault((depth, lr), []).append(acc)
    return scores


def rows_of(path: str) -> list[list[str]]:
    with Path(path).open(newline="") as file:
        return list(csv.reader(file))


def table_in(path: str) -> list[dict[str, str]]:
    head, *rows = rows_of(path)
    assert len(set(head)) == len(head)  # no two columns of one name
    return [dict(zip(head, row, strict=True)) for row in rows]


def section(name: str, path: str = "outputs/report/report.md") -> list[list[str]]:
    """The cells of a table in Markdown, its head first."""
    lines = Path(path).read_text().partition(f"## {name}\n")[2].partition("\n## ")[0].splitlines()
    return [
        [cell.strip() for cell in line[1:-1].split("|")] for line in lines if line.startswith("|") and "---" not in line
    ]


def test_ensembles_that_were_evaluated_are_listed_with_their_best_member(sweep, capsys):
    scores = {"acc": 0.923, "loss": 0.25, "calibration_error": 0.031}
    members = [scores | {"acc": acc} for acc in (0.90, 0.911)]
    evaluation = {"data": "cifar10", "members": members, "scores": scores, "calibrated": scores | {"loss": 0.24}}
    Path("sweep/evaluation.json").write_text(json.dumps(evaluation))
    alone = evaluation | {"members": members[:1]}
    Path("sweep/20-0.05-0/evaluation.json").write_text(json.dumps(alone))
    assert cli.report(["sweep"]) == 0
    (row,) = table_in("outputs/report/ensembles.csv")
    assert row == {
        "ensemble": "sweep", "data": "cifar10", "members": "2", "best_member_acc": "0.911", "test_acc": "0.923",
        "loss": "0.25", "calibrated_loss": "0.24", "ece": "0.031", "calibrated_ece": "0.031",
    }  # fmt: skip
    assert section("Ensembles")[0][5:] == ["loss", "calibrated loss", "ECE", "calibrated ECE"]
    assert "best member" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_report_leaves_nothing_of_the_one_before(sweep, capsys):
    assert cli.report(["sweep", "output=out", "pivot=[model.depth,optimizer.lr]"]) == 0
    assert {"pivot.csv", "curves.png"} <= {path.name for path in Path("out").iterdir()}
    for path in Path("sweep").rglob("metrics.csv"):
        path.unlink()
    assert cli.report(["sweep", "output=out"]) == 0
    assert not {"pivot.csv", "curves.png"} & {path.name for path in Path("out").iterdir()}
    assert "curves.png" not in capsys.readouterr().out + Path("out/report.md").read_text()


def test_groups_over_seeds_with_mean_deviation_and_interval(sweep, capsys):
    assert cli.report(["sweep"]) == 0
    rows, (head, *shown) = table_in("outputs/report/groups.csv"), section("Groups")
    assert head[:3] == ["depth", "lr", "n"]
    assert [row[:3] for row in shown] == [
        ["20", "0.05", "3"], ["20", "0.1", "3"], ["110", "0.05", "3"], ["110", "0.1", "1"],
    ]  # fmt: skip
    for row, cells in zip(rows, shown, strict=True):
        values = sweep[int(row["depth"]), float(row["lr"])]
        assert float(row["test_acc_mean"]) == pytest.approx(np.mean(values))
        if len(values) == 1:
            assert cells[4:6] == [f"{values[0]:.2%}", ""]
            continue
        assert float(row["test_acc_sd"]) == pytest.approx(np.std(values, ddof=1))
        # two degrees of freedom have a closed form: the quantile of 0.975 is 0.95 * sqrt(2 / (1 - 0.95²))
        reach = 0.95 * np.sqrt(2 / (1 - 0.95**2)) * np.std(values, ddof=1) / np.sqrt(3)
        low, high = np.mean(values) - reach, np.mean(values) + reach
        assert [float(row[f"test_acc_{end}"]) for end in ("low", "high")] == pytest.approx([low, high])
        assert cells[4:6] == [f"{np.mean(values):.2%} ± {np.std(values, ddof=1):.2%}", f"{low:.2%} … {high:.2%}"]
    assert all(row["tested_epoch"] == "best" for row in rows)
    out = capsys.readouterr().out
    assert "depth" in out
    assert "outputs/report/report.md" in out
    assert len(rows_of("outputs/report/runs.csv")) == 11


def test_every_setting_that_was_given_and_differs_is_shown_though_one_would_tell_the_groups_apart():
    a_run("runs/a", ["optimizer.lr=0.2", "model.depth=110"], 0.8, 0)
    a_run("runs/b", [], 0.7, 0)
    assert cli.report(["runs"]) == 0
    head, *rows = section("Groups")
    assert head[:3] == ["lr", "depth", "n"]
    assert [row[:2] for row in rows] == [["0.1", "20"], ["0.2", "110"]]


def varied(name: str, overrides: dict[str, object], config: dict, **more) -> None:
    """A run whose configuration has these settings beside the others."""
    path = a_run(f"runs/{name}", [f"{key}={value}" for key, value in overrides.items()], 0.8, **more) / "result.json"
    record = json.loads(path.read_text())
    record["config"] |= config
    path.write_text(json.dumps(record))


def test_where_many_settings_differ_groups_have_numbers_and_one_column_says_what_few_have(capsys):
    """As of everything under outputs/."""
    for place in range(8):
        varied(f"a{place}", {"optimizer.lr": place / 10 + 0.1, "model.depth": 8 + 6 * (place % 4)}, {})
    odd = {"one": 1, "two": {"x": 2}, "three": 3, "four": 4, "five": 5, "seven": True}
    for name, value in odd.items():
        varied(name, {name: value}, {name: value})
    assert cli.report(["runs"]) == 0
    head, *rows = section("Groups")
    assert (head[:3], head[6]) == (["group", "lr", "depth"], "other settings")
    assert set(head[3:6]) < {*odd, "x"}
    assert [row[0] for row in rows] == [str(number) for number in range(1, 15)]
    cells = [row[head.index("other settings")] for row in rows]
    assert sum(cell != "" for cell in cells) <= len(odd)
    shown = [dict(zip(head, row, strict=True)) for row in rows]
    for row, plain in zip(shown, table_in("outputs/report/groups.csv"), strict=True):
        assert row["group"] == plain["group"]
        for key in ("one", "three", "four", "five"):  # each is in a column or in words, and the CSV has columns for all
            said = row[key] if key in row else f"{key} {plain[key]}" in row["other settings"] and plain[key]
            assert (said or "") == plain[key]
    head, *rows = section("Runs")
    assert head[:3] == ["run", "group", "seed"]
    groups = {row["one"]: row["group"] for row in table_in("outputs/report/groups.csv")}
    assert next(row[1] for row in rows if "runs/one" in row[0]) == groups["1"]
    assert "collapsed" not in capsys.readouterr().err


def test_what_most_groups_have_is_said_once_and_not_in_each_row(capsys):
    for place in range(8):
        usual = {"optimizer": {"lr": 0.1 + place, "a": 3 if place else 4}}
        usual |= {name: 1 if place == number else 0 for number, name in enumerate("bcdefg")}
        varied(str(place), {"optimizer.lr": 0.1 + place}, usual)
    keys = ["optimizer.lr", "optimizer.a", *"bcdefg"]
    assert cli.report(["runs", f"by=[{','.join(keys)}]"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    assert "all groups, but for what stands beside one: " in text
    said = text.partition("stands beside one: ")[2].partition(" report ")[0].split(", ")
    head, *rows = section("Groups")
    others = [row[head.index("other settings")] for row in rows]
    for words in said:
        assert words.split()[0] in "abcdefg"
        assert not any(words in cell for cell in others)
        assert sum(words.split()[0] in cell for cell in others) == 1  # of the one that has it otherwise


def test_what_was_trained_on_is_shown_where_the_data_sets_names_do_not_tell_it():
    sets = ((1000, {"num_train": 1000}), (None, {}), (None, {"split_hash": "other", "num_val": 1}))
    for place, (most, other) in enumerate(sets):
        overrides = {} if most is None else {"data.max_train": most}
        varied(str(place), overrides, {"data": {"root": "data", "max_train": most}}, **ONE_SET | other)
    assert cli.report(["runs"]) == 0
    rows = table_in("outputs/report/groups.csv")
    assert sorted((row["data"], row["max_train"]) for row in rows) == [
        ("cifar10 45,000+1", ""), ("cifar10 45,000+5,000", ""), ("cifar10 45,000+5,000", "1000"),
    ]  # fmt: skip


def test_a_run_that_repeats_another_under_another_name_is_in_its_group():
    for place in range(8):
        varied(f"a{place}", {"optimizer.lr": place / 10 + 0.1}, dict.fromkeys("bcdefg", place))
    varied("a9", {"optimizer.lr": 0.1}, dict.fromkeys("bcdefg", 0) | {"choices": {"model": "resnet20"}})
    keys = ["model", "optimizer.lr", *"bcdefg"]
    assert cli.report(["runs", f"by=[{','.join(keys)}]"]) == 0
    groups = {row["run"]: row["group"] for row in table_in("outputs/report/runs.csv")}
    assert groups["runs/a9"] == groups["runs/a0"]


def test_a_record_whose_numbers_are_damaged_is_skipped_and_named(sweep, capsys):
    path = a_run("damaged", [], 0.8) / "result.json"
    path.write_text(path.read_text().replace('"num_train": 45000', '"num_train": null'))
    assert cli.report(["sweep", "damaged"]) == 0
    assert "Got damaged/result.json, in which num_train must be a whole number" in capsys.readouterr().out


def test_a_settings_last_name_is_enough_where_it_is_clear(sweep, capsys):
    assert cli.report(["sweep", "pivot=[depth,lr]", "by=[depth]"]) == 0
    assert section("Pivot")[0][0] == "val/acc, depth by lr"
    assert cli.report(["sweep", "by=[depth,model.depth]"]) == 0
    assert rows_of("outputs/report/groups.csv")[0][:2] == ["depth", "n"]
    for wrong, told in {
        "pivot=[depht,lr]": "no run has the setting depht. Got pivot=[depht,lr] Did you mean model.depth?",
        "pivot=[depth,model.depth]": "a pivot has rows and columns. Got pivot=[depth,model.depth]; give two settings",
        "pivot=[depth]": "a pivot has rows and columns. Got pivot=[depth]; give two settings",
    }.items():
        assert cli.report(["sweep", wrong]) == 2
        assert told in capsys.readouterr().err


def test_a_run_that_was_stopped_is_said_to_be_one_that_can_go_on(capsys):
    Path("runs/one").mkdir(parents=True)
    Path("runs/one/config.yaml").write_text("name: train\n")
    for path in ("runs", "runs/one"):
        assert cli.report([path]) == 2
        told = capsys.readouterr().err
        assert f"no finished run. Got {path}; cifar-train resume=runs/one finishes what was stopped" in told
    assert cli.report(["gone"]) == 2
    assert f"Got gone, which is not there, seen from {Path.cwd()}" in capsys.readouterr().err


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("key", ["sweep.max_time", "graph", "trainer.strategy", "data.eval_batch_size"])
def test_runs_that_differ_in_nothing_that_bears_on_results_are_one_group(key):
    """Such as those of a sweep that was given more time for the rest of its jobs."""
    for seed in (0, 1):
        path = a_run(f"runs/{seed}", [], 0.8, seed) / "result.json"
        record = json.loads(path.read_text())
        group, _, name = key.partition(".")
        record["config"] |= {group: {name: f"value {seed}"} if name else f"value {seed}"}
        record["config"]["overrides"].append(f"{key}=value {seed}")
        path.write_text(json.dumps(record))
    assert cli.report(["runs"]) == 0
    (row,) = table_in("outputs/report/groups.csv")
    assert row["n"] == "2"


def test_a_pivot_has_a_row_and_a_column_for_each_value(sweep):
    assert cli.report(["sweep", "pivot=[model.depth,optimizer.lr]", "metric=test/acc"]) == 0
    head, *rows = section("Pivot")
    assert head == ["test/acc, depth by lr", "0.05", "0.1"]
    assert [row[0] for row in rows] == ["20", "110"]
    values = sweep[20, 0.1]
    assert rows[0][2] == f"{np.mean(values):.2%} ± {np.std(values, ddof=1):.2%}"
    assert rows[1][2] == f"{sweep[110, 0.1][0]:.2%}"
    for row in table_in("outputs/report/pivot.csv"):
        values = sweep[int(row["depth"]), float(row["lr"])]
        assert (float(row["mean"]), int(row["n"])) == (pytest.approx(np.mean(values)), len(values))
        assert float(row["sd"] or 0) == pytest.approx(np.std(values, ddof=1) if len(values) > 1 else 0)
    text = Path("outputs/report/report.md").read_text()
    assert "| 20 |" in text
    assert Path("outputs/report/curves.png").stat().st_size > 5000


def test_a_pivot_is_of_validation_images_and_of_the_test_where_there_are_none(sweep):
    assert cli.report(["sweep", "pivot=[model.depth,optimizer.lr]", "output=out"]) == 0
    assert section("Pivot", "out/report.md")[0][0].startswith("val/acc")
    for path in Path("sweep").glob("*/result.json"):
        record = json.loads(path.read_text())
        del record["metrics"]["val/acc"]
        path.write_text(json.dumps(record))
    assert cli.report(["sweep", "pivot=[model.depth,optimizer.lr]", "output=out"]) == 0
    assert section("Pivot", "out/report.md")[0][0].startswith("test/acc")


def test_by_chooses_the_groups(sweep):
    assert cli.report(["sweep", "by=[model.depth]"]) == 0
    assert [row[:2] for row in rows_of("outputs/report/groups.csv")] == [
        ["depth", "n"],
        ["20", "6"],
        ["110", "4"],
    ]


@pytest.mark.slow
def test_settings_that_others_imply_are_no_columns():
    for depth, epochs in ((20, 5), (32, 9)):
        a_run(f"runs/{depth}", [f"model.depth={depth}", f"trainer.max_epochs={epochs}"], 0.9)
    assert cli.report(["runs"]) == 0
    assert rows_of("outputs/report/groups.csv")[0][:2] == ["depth", "n"]


@pytest.mark.slow
def test_several_folders_and_none_twice(sweep):
    a_run("other", ["model.depth=20"], 0.9)
    assert cli.report(["sweep", "other", "other"]) == 0
    assert len(rows_of("outputs/report/runs.csv")) == 12


TEN, FIVE = [f"class {place}" for place in range(10)], [f"class {place}" for place in range(5)]
ONE_SET = {"classes": TEN, "split_hash": "s", "train_hash": "a", "test_hash": "t", "num_tested": 100}


def groups_of(*arguments: str) -> list[dict[str, str]]:
    for path in Path("runs").rglob("metrics.csv"):
        path.unlink()  # no picture is needed
    assert cli.report(["runs", *arguments]) == 0
    return table_in("outputs/report/groups.csv")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "other",
    [{"classes": FIVE}, {"split_hash": "other"}, {"train_hash": "other"}, {"test_hash": "other"}],
    ids=["classes", "held out", "training images", "test images"],
)
def test_two_data_sets_are_not_two_seeds(other):
    a_run("runs/a", [], 0.3, 0, data="image_folder", root="here/animals", **ONE_SET)
    a_run("runs/b", [], 0.9, 1, data="image_folder", root="here/plants", **(ONE_SET | other))
    rows = groups_of()
    assert {row["data"]: row["n"] for row in rows} == {"image_folder animals": "1", "image_folder plants": "1"}
    assert all(0 <= float(row["test_acc_low"]) < float(row["test_acc_high"]) <= 1 for row in rows)
    # nor where somebody asks for other groups
    assert [row["n"] for row in groups_of("by=[model.depth]")] == ["1", "1"]
    assert cli.report(["runs", "pivot=[model.depth,optimizer.lr]"]) == 0
    assert [row[0] for row in section("Pivot")[1:]] == ["image_folder animals, 20", "image_folder plants, 20"]
    assert {row["n"] for row in table_in("outputs/report/pivot.csv")} == {"1"}


def test_what_was_held_out_tells_two_data_sets_of_one_name_apart():
    a_run("runs/a", [], 0.8, 0, **ONE_SET)
    a_run("runs/b", [], 0.9, 1, **ONE_SET | {"split_hash": "other", "num_train": 50_000, "num_val": 0})
    assert [row["data"] for row in groups_of()] == ["cifar10 45,000+5,000", "cifar10 50,000+0"]


def test_folds_are_one_row_and_none_with_other_runs():
    for fold in range(3):
        config = a_run(f"runs/fold-{fold}", [], 0.5, 0, **ONE_SET | {"split_hash": str(fold), "num_train": 40_000})
        set_fold(config / "result.json", fold)
    a_run("runs/a", [], 0.8, 0, **ONE_SET)
    assert [(row["data"], row["n"]) for row in groups_of()] == [
        ("cifar10 40,000+5,000", "3"),
        ("cifar10 45,000+5,000", "1"),
    ]
    a_run("runs/b", [], 0.8, 0, **ONE_SET | {"split_hash": "other"})
    assert sorted(row["n"] for row in groups_of()) == ["1", "1", "3"]


def set_fold(path: Path, fold: int) -> None:
    record = json.loads(path.read_text())
    record["config"]["data"]["fold"] = fold
    path.write_text(json.dumps(record))


def test_one_run_that_was_tested_beside_others_that_were_not_keeps_its_interval():
    a_run("runs/a", [], 0.8, 0, **ONE_SET)
    (alone,) = groups_of()
    a_run("runs/b", [], None, 1, **ONE_SET | {"num_tested": None})
    (row,) = groups_of()
    assert row["test_acc_interval"] == alone["test_acc_interval"] == "Wilson"
    assert row["test_acc_low"] == alone["test_acc_low"]


def test_a_run_that_was_tested_on_a_part_is_of_the_same_data_set():
    a_run("runs/a", [], 0.8, 0, **ONE_SET)
    a_run("runs/b", [], 0.9, 1, **ONE_SET | {"num_test": 10_000, "num_tested": 1_000, "test_hash": "of a part"})
    a_run("runs/c", [], None, 2, **ONE_SET | {"num_tested": None, "test_hash": None})
    (row,) = groups_of()
    assert "data" not in row


def test_seeds_that_found_learning_rates_of_their_own_are_one_group():
    for seed, rate in enumerate((0.31, 0.29)):
        path = a_run(f"runs/{seed}", ["scheduler.max_lr=auto"], 0.8, seed)
        record = json.loads((path / "result.json").read_text())
        record["config"]["scheduler"] = {"max_lr": rate}
        (path / "result.json").write_text(json.dumps(record))
        (path / "lr_range_test.json").write_text("{}")
    (row,) = groups_of()
    assert row["n"] == "2"


def test_an_evaluation_of_weights_that_were_trained_on_since_is_left_out_and_said(capsys):
    path = a_run("runs/a", [], 0.8, step=200)
    (path / "checkpoints").mkdir()
    (path / "checkpoints" / "best.ckpt").touch()
    (path / "config.yaml").touch()
    scores = {"acc": 0.923, "loss": 0.25, "calibration_error": 0.031}
    evaluation = {"data": "cifar10", "members": [scores] * 2, "scores": scores, "calibrated": None}
    evaluation["checkpoints"] = ["runs/a/checkpoints/best.ckpt"]
    for steps, is_listed in (([200], True), ([100], False), (None, True)):
        told = evaluation | ({"steps": steps} if steps else {})
        Path("runs/evaluation.json").write_text(json.dumps(told))
        assert cli.report(["runs"]) == 0
        assert Path("outputs/report/ensembles.csv").exists() == is_listed
        line = "of weights that are there no more. Got runs/evaluation.json, and runs/a/checkpoints/best.ckpt was"
        assert (line in " ".join(capsys.readouterr().out.split())) != is_listed


def test_copies_of_the_same_images_in_two_places_are_one_data_set():
    for seed, (root, overrides) in enumerate([("here", []), ("there/copy", ["data.root=there/copy"])]):
        a_run(f"runs/{seed}", overrides, 0.8 + seed / 10, seed, data="image_folder", root=root, **ONE_SET)
    (row,) = groups_of()
    assert row["n"] == "2"
    assert "data" not in row


def test_records_from_before_there_were_hashes_are_of_the_one_set_that_they_can_be():
    a_run("runs/new", [], 0.8, 0, **ONE_SET)
    a_run("runs/old", [], 0.9, 1, **{key: ONE_SET[key] for key in ("classes", "split_hash")})
    assert [row["n"] for row in groups_of()] == ["2"]
    a_run("runs/other", [], 0.9, 2, **(ONE_SET | {"train_hash": "other"}))
    assert [row["n"] for row in groups_of()] == ["1", "1", "1"]  # now it could be of either


def test_the_same_seed_again_is_no_second_run_and_the_table_says_so(capsys):
    for place in range(3):
        a_run(f"runs/{place}", [], 0.2, 0, **ONE_SET)
    (row,) = groups_of()
    assert (row["n"], row["repeats"], row["test_acc_sd"]) == ("1", "2", "")
    assert float(row["test_acc_high"]) - float(row["test_acc_low"]) > 0.1  # of 100 images, and not 20% … 20%
    assert [run["repeats"] for run in table_in("outputs/report/runs.csv")] == ["", "runs/0", "runs/0"]
    said = "2 of 3 runs repeat another's settings, seed and data, and count once"
    assert said in capsys.readouterr().out
    assert said in Path("outputs/report/report.md").read_text()
    assert section("Groups")[0][2] == "repeats"
    a_run("runs/3", [], 0.3, 1, **ONE_SET)
    (row,) = groups_of()
    assert (row["n"], row["repeats"], float(row["test_acc_mean"])) == ("2", "2", pytest.approx(0.25))


def test_of_the_same_run_twice_the_one_that_was_tested_counts():
    a_run("runs/0", [], None, 0)
    a_run("runs/1", [], 0.9, 0)
    (row,) = groups_of()
    assert (row["n"], float(row["test_acc_mean"])) == ("1", 0.9)


def test_a_training_that_a_search_has_ended_stands_for_none_that_came_to_its_end():
    for name, epochs in (("a-search", 2), ("train", 5)):
        path = a_run(f"runs/{name}", [], None, epochs=epochs) / "result.json"
        record = json.loads(path.read_text())
        record["config"]["trainer"] = {"max_epochs": 5}
        record["metrics"]["val/acc"] = epochs / 10
        path.write_text(json.dumps(record))
    (row,) = groups_of()
    assert (row["n"], row["repeats"], float(row["val_acc_mean"])) == ("1", "1", 0.5)


def test_a_whole_number_is_one_setting_however_it_is_written():
    for place, lr in enumerate((1, 1.0)):
        path = a_run(f"runs/{place}", ["optimizer.lr=1"], 0.9, place) / "result.json"
        record = json.loads(path.read_text())
        record["config"]["optimizer"]["lr"] = lr
        path.write_text(json.dumps(record))
    (row,) = groups_of()
    assert row["n"] == "2"


def test_a_metric_that_no_run_has_is_refused_with_and_without_a_pivot(sweep, capsys):
    for arguments in ([], ["pivot=[depth,lr]"]):
        assert cli.report(["sweep", "metric=tests/acc", *arguments]) == 2
        err = capsys.readouterr().err
        assert "no run has a number for tests/acc. Got metric=tests/acc; give test/acc, val/acc" in err


def test_a_default_that_has_changed_since_tells_runs_apart():
    for seed, lr in enumerate((0.1, 0.1, 0.2)):
        path = a_run(f"runs/{seed}", [], 0.9, seed) / "result.json"
        record = json.loads(path.read_text())
        record["config"]["optimizer"]["lr"] = lr
        record["config"]["callbacks"] = {"best": {"dirpath": f"runs/{seed}/checkpoints"}}
        path.write_text(json.dumps(record))
    assert {row["lr"]: row["n"] for row in groups_of()} == {"0.1": "2", "0.2": "1"}


def test_a_mean_over_fewer_runs_than_the_group_has_says_so():
    a_run("runs/0", [], 0.8, 0)
    a_run("runs/1", [], None, 1)
    (row,) = groups_of()
    assert (row["n"], row["val_acc_n"], row["test_acc_n"]) == ("2", "2", "1")
    head, cells = section("Groups")
    assert cells[head.index("test")] == "80.00% (1 of 2)"


def test_what_is_no_record_is_skipped_and_said(sweep, capsys):
    for name, text in {
        "result.json": '{"accuracy": 0.9}', "cut/result.json": '{"name": ', "evaluation.json": "[]",
        "percent/result.json": Path("sweep/20-0.1-0/result.json").read_text().replace('/acc": 0.9', '/acc": 90'),
    }.items():  # fmt: skip
        path = Path("foreign", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    Path("sweep/20-0.1-1/metrics.csv").write_text("epoch,train/loss\nx,y\n")
    assert cli.report(["sweep", "foreign"]) == 0
    out = capsys.readouterr().out
    for name in ("result.json", "cut/result.json", "percent/result.json", "evaluation.json"):
        assert f"foreign/{name}" in out
        assert f"foreign/{name}" in Path("outputs/report/report.md").read_text()
    assert "skipped: not the metrics of a run. Got sweep/20-0.1-1/metrics.csv" in out
    assert len(table_in("outputs/report/runs.csv")) == 10


def test_files_that_no_report_left_are_kept(sweep, capsys):
    Path("mine").mkdir()
    Path("mine/runs.csv").write_text("my own")
    assert cli.report(["sweep", "output=mine"]) == 2
    assert "Got mine, where runs.csv is not of a report; give another one" in capsys.readouterr().err
    assert [path.read_text() for path in Path("mine").iterdir()] == ["my own"]


@pytest.mark.slow
def test_csvs_hold_plain_numbers(sweep):
    assert cli.report(["sweep", "pivot=[model.depth,optimizer.lr]"]) == 0
    texts = {"run", "device", "repeats", "tested_epoch", "val_acc_interval", "test_acc_interval", "interval"}
    for name in ("groups", "runs", "pivot"):
        for row in table_in(f"outputs/report/{name}.csv"):
            for key, value in row.items():
                assert key in texts or value == "" or float(value) >= 0, (name, key, value)
    assert {float(row["seconds"]) for row in table_in("outputs/report/runs.csv")} == {60.0}
    assert {float(row["parameters_min"]) for row in table_in("outputs/report/groups.csv")} == {272_474}


def test_settings_called_like_other_columns_have_names_of_their_own():
    for seed in (0, 1):
        a_run(f"runs/{seed}", [], 0.9, seed)
    assert [row["setting seed"] for row in groups_of("by=[seed]")] == ["0", "1"]
    assert len(set(rows_of("outputs/report/runs.csv")[0])) == len(rows_of("outputs/report/runs.csv")[0])


def test_names_stand_in_markdown_and_csv_as_they_are():
    name = "a|b $x_1$ <i> [red] \\"
    path = a_run(f"runs/{name}", [], 0.9) / "result.json"
    a_run("runs/other", [], 0.8, 1)
    record = json.loads(path.read_text())
    record["config"]["name"] = name
    path.write_text(json.dumps(record))
    assert name in {row["name"] for row in groups_of("by=[name]")}
    shown = "a&#124;b &#36;x_1&#36; &#60;i&#62; [red] &#92;"
    assert shown in [row[0] for row in section("Groups")]
    assert f"runs/{shown}" in [row[0] for row in section("Runs")]


def test_real_runs_are_reported(sweep_dir, capsys):
    assert cli.report([str(sweep_dir)]) == 0
    assert rows_of("outputs/report/groups.csv")[1][1] == "2"  # two seeds of one network
    assert str(sweep_dir / "seed-1") in Path("outputs/report/runs.csv").read_text()


def predictions(folder: str, right: np.ndarray, images: str = "same") -> None:
    """A run that predicts class 1, which all images are, where `right`, and else class 0."""
    Path(folder).mkdir(exist_ok=True)
    log_probs = torch.tensor([[0.3, 0.7] if is_right else [0.6, 0.4] for is_right in right]).log()
    Predictions(log_probs, torch.ones(len(right), dtype=torch.int64), images).save(Path(folder, "predictions.npz"))


def test_two_runs_compared_image_by_image(capsys):
    random = np.random.default_rng(1)
    a = random.random(1000) < 0.8
    b = np.where(random.random(1000) < 0.2, random.random(1000) < 0.95, a)
    predictions("a", a)
    predictions("b", b)
    assert cli.report(["compare", "a", "b"]) == 0
    out = capsys.readouterr().out
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    assert f"{a.mean():.2%} right: a" in out
    assert f"{only_a} of 1,000 images" in out
    draws = random.binomial(only_a + only_b, 0.5, size=1_000_000)
    p = np.mean(np.abs(draws - (only_a + only_b) / 2) >= abs(only_a - only_b) / 2)
    found = float(out.split("p = ")[1].split(",")[0])
    assert found == pytest.approx(p, rel=0.1, abs=2e-5)
    # the bootstrap, image by image
    difference = b.astype(float) - a
    means = difference[random.integers(1000, size=(4000, 1000))].mean(1)
    low, high = 100 * np.quantile(means, [0.025, 0.975])
    found = next(line for line in out.splitlines() if "bootstrap" in line)
    ends = [float(word) for word in found.split("interval ")[1].split(" (")[0].split(" … ")]
    assert ends == pytest.approx([low, high], abs=0.25)
    assert f"{100 * difference.mean():+.2f} points" in found


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (3, 3), (1, 6), (9, 2)])
def test_mcnemar_by_counting_every_outcome(only_a, only_b):
    outcomes = list(itertools.product((0, 1), repeat=only_a + only_b))
    extreme = sum(abs(2 * sum(each) - len(each)) >= abs(only_a - only_b) for each in outcomes)
    predictions("a", np.repeat([True, False, True], [only_a, only_b, 20]))
    predictions("b", np.repeat([False, True, True], [only_a, only_b, 20]))
    found = comparison(["a", "b"], resamples=10, seed=0)["McNemar"]
    assert found.startswith(f"p = {extreme / len(outcomes):.2g}, exact: no difference shown")


def test_another_run_is_better_where_chance_would_rarely_have_it_so(capsys):
    predictions("a", np.arange(100) < 50)
    predictions("b", np.arange(100) < 58)
    assert cli.report(["compare", "a", "b"]) == 0
    assert "p = 0.0078, exact: b is better" in capsys.readouterr().out  # 2 of 2**8 outcomes


@pytest.mark.slow
def test_a_folder_that_an_evaluation_made_is_compared(trained, capsys, tmp_path):
    images, labels = Synthetic(num_test=30).read(train=False)
    np.savez("x.npz", images=images.numpy(), labels=labels.numpy(), classes=Synthetic.classes)
    for seed in (0, 1):
        checkpoint = trained.parent / f"seed-{seed}"
        own = shutil.copytree(checkpoint, f"run-{seed}")
        assert cli.evaluate([f"checkpoint={own}", "data=files", "data.test=x.npz"]) == 0
    first, second = sorted(map(str, Path().glob("run-*/evaluation-*")))
    capsys.readouterr()
    assert cli.report(["compare", first, f"{second}/predictions.npz"]) == 0
    assert "of 30 images" in capsys.readouterr().out
    shutil.move(first, "x-test.npz")  # a folder all the same
    assert cli.report(["compare", "x-test.npz", second]) == 0


def test_where_an_evaluation_lies_elsewhere_its_folder_is_named(capsys):
    predictions("a", np.arange(100) < 50)
    Path("b").mkdir()
    assert cli.report(["compare", "a", "b"]) == 2
    assert "cifar-evaluate checkpoint=b leaves one, and names its folder" in capsys.readouterr().err
    predictions("b/evaluation-best", np.arange(100) < 58)
    assert cli.report(["compare", "a", "b"]) == 2
    assert "no predictions.npz in b; give b/evaluation-best" in capsys.readouterr().err
    assert cli.report(["compare", "a", "b/evaluation-best"]) == 0


def test_runs_on_other_images_are_not_compared(capsys):
    predictions("a", np.ones(5, bool))
    predictions("others", np.ones(5, bool), images="others")
    assert cli.report(["compare", "a", "others"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "the same test images. Got a and others" in line


@pytest.fixture
def grid() -> list[Path]:
    """Three depths by three learning rates, two seeds each, with a page for every run but one."""
    found = []
    for depth in (20, 56, 110):
        for lr in (0.05, 0.1, 0.2):
            for seed in range(2):
                overrides = [f"model.depth={depth}", f"optimizer.lr={lr}"]
                acc = 0.85 + depth / 2000 + lr / 10 + seed / 100
                cost = {"parameters": 1000 * depth, "training_flops": depth * 1e13, "train_seconds": 10.0 * depth}
                found.append(a_run(f"grid/{depth} é-{lr}-{seed}", overrides, acc, seed, **cost))
    for run_dir in found[1:]:
        (run_dir / "page.html").write_text("a page")
    return found


def test_the_page_of_a_sweep_has_its_grid_and_a_link_to_each_runs_page(grid):
    assert cli.report(["grid", "output=out/report", "metric=test/acc"]) == 0
    text = Path("out/report/report.html").read_text()
    for heading in ("depth by lr", "Groups compared", "What it costs", "Curves", "Groups", "Runs"):
        assert f"<h2>{heading}</h2>" in text
    links = [html.unescape(link) for link in re.findall(r'<a xlink:href="([^"]+)"', text)]
    assert len(links) == 3 * 17  # parameters, arithmetic, time
    found = {Path("out/report", unquote(link)).resolve() for link in links}
    assert found == {(run_dir / "page.html").resolve() for run_dir in grid[1:]}
    assert text.count("<title>grid/20 é-0.2-1</title>") == 3  # what is shown at a dot
    assert text.count('<svg role="group"') == 3
    in_table = re.findall(r'<td[^>]*><a href="([^"]+)">([^<]+)</a></td>', text)
    assert {name: Path("out/report", unquote(html.unescape(link))).resolve() for link, name in in_table} == {
        str(run_dir): (run_dir / "page.html").resolve() for run_dir in grid[1:]
    }
    cells = {each.strip() for each in re.findall("<text [^>]*>(.*?)</text>", text)}
    for depth in (20, 56, 110):
        for lr in (0.05, 0.1, 0.2):
            assert f"{100 * (0.85 + depth / 2000 + lr / 10 + 0.005):.1f}" in cells


@pytest.mark.slow
def test_a_grid_with_a_gap_leaves_its_cell_empty(grid):
    for run_dir in grid[:2]:
        (run_dir / "result.json").unlink()
    assert cli.report(["grid", "pivot=[model.depth,optimizer.lr]"]) == 0
    assert "nan" not in Path("outputs/report/report.html").read_text()


@pytest.mark.slow
@pytest.mark.skipif(BROWSER is None, reason="needs a Chromium to open the page in")
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_of_it_is_wider_than_the_screen(grid, tmp_path, width):
    assert cli.report(["grid"]) == 0
    seen = seen_in_a_browser(tmp_path / "outputs" / "report" / "report.html", width, tmp_path)
    assert seen["wide"] == []
    assert not seen["scrolls"]
    assert len(seen["widths"]) == 10  # grid, groups, three costs and three curves, each with what their colours mean
    assert min(seen["widths"]) > 240


@pytest.mark.slow
def test_an_evaluation_of_an_earlier_version_is_still_listed(sweep):
    scores = {"acc": 0.923, "loss": 0.25, "calibration_error": 0.031}
    earlier = {
        "data": "files",
        "own_test_images": False,
        "members": [scores, scores],
        "scores": scores,
        "calibrated": None,
    }
    Path("sweep/evaluation.json").write_text(json.dumps(earlier))
    assert cli.report(["sweep"]) == 0
    assert [row["test_acc"] for row in table_in("outputs/report/ensembles.csv")] == ["0.923"]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("damage", [{"scores": {"acc": "0.9"}}, {"corruptions": {"mean_acc": 0.5, "each": []}}, []])
def test_a_damaged_evaluation_is_named_and_the_rest_reported(sweep, capsys, damage):
    scores = {"acc": 0.923, "loss": 0.25, "calibration_error": 0.031}
    whole = {"data": "files", "members": [scores, scores], "scores": scores, "calibrated": None, "num_images": 5}
    Path("sweep/evaluation.json").write_text(json.dumps(whole | damage if damage else damage))
    assert cli.report(["sweep"]) == 0
    assert "not what cifar-evaluate leaves. Got sweep/evaluation.json" in " ".join(capsys.readouterr().out.split())


@pytest.mark.slow
def test_a_grid_of_what_nobody_was_asked_for_is_left_out(sweep):
    """Two settings differ, and one run has neither a test nor validation images."""
    for path in Path("sweep").rglob("result.json"):
        record = json.loads(path.read_text())
        del record["metrics"]["val/acc"]
        path.write_text(json.dumps(record))
    a_run("sweep/untested", ["model.depth=20", "optimizer.lr=0.3"], None, 9)
    record = json.loads(Path("sweep/untested/result.json").read_text())
    Path("sweep/untested/result.json").write_text(json.dumps(record | {"metrics": {}}))
    assert cli.report(["sweep"]) == 0
    text = Path("outputs/report/report.html").read_text()
    assert "<h2>depth by lr</h2>" in text
    assert "1 of 5 groups have no such score." in text
