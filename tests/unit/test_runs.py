"""Names of runs, their folders, and the files in them."""

import json
import os
import shutil
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from helpers import record_of
from omegaconf import OmegaConf

from cifar_resnet import checkpoints, claims, runs
from cifar_resnet.errors import UsageError


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=resnet20", "trainer.max_epochs=15"], "model-resnet20_max_epochs-15"),
        (["model.widths=[4,8,8]"], "widths-4-8-8"),
        (["optimizer.lr=1e-3", "~logger.tensorboard"], "lr-1e-3_tensorboard"),
        (["data.root=/a/b c/$d"], "root-a-b-c-d"),
    ],
)
def test_folder_names_say_what_differs(overrides, expected):
    assert runs.slug(overrides) == expected


def test_a_folders_name_begins_with_what_tells_most_and_leaves_out_what_its_path_says():
    given = ["data.num_train=600", "name=try", "optimizer.lr=0.1", "model=resnet20", "output_dir=/x/y", "seed=3"]
    cfg = OmegaConf.create({"run_dir": None, "output_dir": "x", "name": "try", "overrides": given})
    folder = runs.create_run_dir(cfg).relative_to("x/try").name
    assert folder[len("2026-11-20_16-19-10-") :] == "model-resnet20_lr-0.1_seed-3_num_train-600"


def test_of_a_setting_given_again_and_again_the_last_is_in_the_name():
    given = ["optimizer.lr=0.1", "optimizer.lr=0.2", "optimizer.lr=0.1", "model=resnet20"]
    assert runs.slug(runs.in_telling_order(given)) == "model-resnet20_lr-0.1"


def test_two_who_write_one_file_at_once_leave_a_whole_one(tmp_path, monkeypatch):
    path = tmp_path / "page.html"
    with runs.replacing(path) as first:
        first.write(b"A" * 50)
        with monkeypatch.context() as patch:
            patch.setattr("cifar_resnet.runs.os.getpid", lambda: 1)  # another process
            with runs.replacing(path) as second:
                second.write(b"B" * 70)
        assert path.read_bytes() == b"B" * 70
    assert path.read_bytes() == b"A" * 50
    assert list(tmp_path.iterdir()) == [path]


def test_long_folder_names_are_cut_and_stay_distinct():
    names = {runs.slug([f"model.widths=[{','.join(['128'] * 40)},{last}]"]) for last in range(5)}
    assert len(names) == 5
    assert max(map(len, names)) <= 80


def test_jobs_whose_names_would_be_alike_are_told_apart():
    assert len(set(runs.distinct_slugs([["name=a/b"], ["name=a-b"], ["name=c"]]))) == 3
    assert runs.distinct_slugs([["optimizer.lr=0.1"], ["optimizer.lr=0.1"]]) == ["lr-0.1", "lr-0.1"]


def test_the_folder_of_a_sweep_is_that_of_its_command():
    def folder(fixed: str, *values: str) -> Path:
        return runs.sweep_dir(Path("outputs"), [fixed], [f"optimizer.lr={value}" for value in values])

    one = folder("seed=0", "0.1", "0.2")
    assert one.name.startswith("sweep-lr-")
    assert one == folder("seed=0", "0.2", "0.1")
    assert len({one, folder("seed=0", "0.1", "0.3"), folder("seed=1", "0.1", "0.2")}) == 3


def settings(tmp_path: Path, **others: object):
    values = {"run_dir": None, "resume": None, "output_dir": str(tmp_path), "name": "x", "overrides": ["a.b=1"]}
    return OmegaConf.create(values | others)


def test_runs_that_start_in_the_same_second_get_folders_of_their_own(tmp_path):
    cfg = settings(tmp_path)
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: runs.create_run_dir(cfg), range(40)))
    assert len(set(folders)) == 40
    assert all(folder.is_dir() for folder in folders)


@pytest.mark.parametrize("left", [False, True])
def test_a_run_folder_that_nothing_came_of_goes_again_and_one_with_something_stays(tmp_path, left):
    def begin() -> None:
        with runs.open_folder(settings(tmp_path / "outputs")) as run_dir:
            assert OmegaConf.load(run_dir / "config.yaml").overrides == ["a.b=1"]
            if left:
                (run_dir / "metrics.csv").write_text("epoch")
            (run_dir / "train.log").write_text("begun")
            raise UsageError("what only the trainer knows")

    with pytest.raises(UsageError, match="trainer"):
        begin()
    files = {path.name for path in tmp_path.rglob("*") if path.is_file()}
    assert files == ({"config.yaml", "metrics.csv", "train.log"} if left else set())
    assert (tmp_path / "outputs").exists() is left


def test_what_lay_in_a_run_folder_before_stays_where_nothing_comes_of_the_run(tmp_path):
    (tmp_path / "lr_range_test.json").write_text("{}")
    with pytest.raises(UsageError, match="trainer"), runs.open_folder(settings(tmp_path, run_dir=str(tmp_path))):
        raise UsageError("what only the trainer knows")
    assert [path.name for path in tmp_path.iterdir()] == ["lr_range_test.json"]


def test_a_job_of_a_sweep_that_was_refused_late_still_says_that_there_was_one(tmp_path):
    job = settings(tmp_path, run_dir=str(tmp_path / "job"))
    as_in_a_sweep, refused = claims.held(tmp_path / "job"), pytest.raises(UsageError, match="trainer")
    with as_in_a_sweep, refused, runs.open_folder(job):
        raise UsageError("what only the trainer knows")
    assert runs.begun_in(tmp_path) == [tmp_path / "job"]


def test_what_may_not_be_read_is_told_from_what_cannot_be(tmp_path, monkeypatch, caplog):
    def closed(path, *rest):
        raise PermissionError(13, "Permission denied", str(path))  # root, as in a container, may read anything

    monkeypatch.setattr(Path, "iterdir", closed)
    assert runs.begun_in(tmp_path) == runs.begun_in(tmp_path) == []
    assert caplog.text.count(f"left out, for you may not look into it: {tmp_path}") == 1
    monkeypatch.setattr(Path, "read_text", closed)
    with pytest.raises(UsageError, match=r"that you may not read\. Got .*result\.json; have that allowed"):
        runs.read_record(tmp_path)
    monkeypatch.setattr(zipfile, "ZipFile", closed)
    with pytest.raises(ValueError, match=r"a checkpoint that you may not read\. Got .*last\.ckpt"):
        checkpoints.contents(tmp_path / "last.ckpt")


def test_what_a_range_test_left_before_there_was_a_run_is_no_run(tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "lr_range_test.csv").touch()
    runs.check_new(tmp_path / "run")
    (tmp_path / "run" / "metrics.csv").touch()
    with pytest.raises(UsageError, match="run_dir must be a new folder"):
        runs.check_new(tmp_path / "run")


def test_a_run_folder_in_use_is_nobody_elses(tmp_path):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "config.yaml.part").write_text("data: {")  # killed before it was whole
    with runs.open_folder(settings(tmp_path, run_dir=str(mine))) as run_dir:
        assert run_dir == mine
    with pytest.raises(UsageError, match=f"to continue it, resume={mine}"):
        runs.create_run_dir(settings(tmp_path, run_dir=str(mine)))
    assert (mine / "config.yaml").exists()


def test_a_file_is_replaced_whole_through_links_and_written_into_pipes(tmp_path):
    (tmp_path / "real.txt").write_text("before")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real.txt")
    runs.write_atomically(tmp_path / "link.txt", "after\n")
    assert (tmp_path / "link.txt").is_symlink()
    assert (tmp_path / "real.txt").read_text() == "after\n"
    runs.write_atomically(Path("/dev/null"), "nothing")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link.txt", "real.txt"]
    reading, writing = os.pipe()
    runs.write_atomically(Path(f"/dev/fd/{writing}"), "through a link to no name")  # as /dev/stdout is, before a |
    os.close(writing)
    with os.fdopen(reading) as pipe:
        assert pipe.read() == "through a link to no name"


DAMAGED_RECORDS = {
    "": "cannot be read", '{"metrics": ': "cannot be read", "[1, 2]": "not the record", "{}": "without name",
    '{"metrics": {}}': "without name",
}  # fmt: skip


@pytest.mark.parametrize("content", DAMAGED_RECORDS)
def test_a_damaged_record_is_named_with_how_to_mend_it(tmp_path, content):
    (tmp_path / "result.json").write_text(content)
    with pytest.raises(UsageError, match=DAMAGED_RECORDS[content]) as raised:
        runs.read_record(tmp_path)
    assert str(tmp_path / "result.json") in str(raised.value)
    assert "resume=<run folder> tests the run again" in str(raised.value)


def test_a_whole_record_is_read_and_none_is_none(trained, tmp_path):
    assert runs.read_record(trained) == record_of(trained)
    assert runs.read_record(tmp_path) is None


@pytest.mark.parametrize("key", runs.IN_A_RECORD)
def test_a_record_without_what_others_rely_on_is_none(trained, tmp_path, key):
    record = record_of(trained)
    del record[key]
    (tmp_path / "result.json").write_text(json.dumps(record))
    with pytest.raises(UsageError, match=f"without {key}"):
        runs.read_record(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not the configuration of a run"), (b"data: [1", "cannot be read"), (b"\xff\xfe\x00", "cannot be read"),
        (b"[1, 2]", "not the configuration of a run"), (b"name: x", "without seed, data, model"),
    ],
)  # fmt: skip
def test_a_damaged_configuration_is_named(tmp_path, content, message):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(UsageError, match=message) as raised:
        runs.load_config(tmp_path)
    assert str(tmp_path / "config.yaml") in str(raised.value)


@pytest.mark.parametrize("content", [b"epoch,train/loss\nx,y\n", b"loss\n1\n", b"epoch,loss\n1,2,3\n", b"\xff\xfe,\n"])
def test_a_damaged_table_of_epochs_is_named(tmp_path, content):
    (tmp_path / "metrics.csv").write_bytes(content)
    with pytest.raises(UsageError, match=r"not the metrics of a run\. Got .*metrics\.csv .*take it away"):
        runs.read_metrics(tmp_path / "metrics.csv")
    assert runs.read_metrics(tmp_path / "none.csv") == []


def test_checkpoints_are_found_by_file_run_folder_and_folder_of_runs(sweep_dir, trained, tmp_path):
    best, last = (trained / "checkpoints" / name for name in ("best.ckpt", "last.ckpt"))
    assert runs.find_checkpoint(trained) == best
    assert runs.find_checkpoint(last) == last
    both = [folder / "checkpoints" / "best.ckpt" for folder in (trained, sweep_dir / "seed-1")]
    assert runs.find_checkpoints(str(sweep_dir)) == both
    assert runs.find_checkpoints([str(last), str(sweep_dir)]) == [last, *both]
    assert runs.run_dir_of(best) == trained.resolve()
    assert runs.run_dir_of(tmp_path / "best.ckpt") is None


def test_runs_that_links_lead_to_are_found(sweep_dir, tmp_path):
    (tmp_path / "best").mkdir()
    for seed in (0, 1):
        (tmp_path / "best" / f"run-{seed}").symlink_to(sweep_dir / f"seed-{seed}")
    found = runs.find_checkpoints(tmp_path / "best")
    assert [path.relative_to(tmp_path).parts[:2] for path in found] == [("best", "run-0"), ("best", "run-1")]


def test_what_a_tracker_keeps_within_a_run_is_no_run(sweep_dir, tmp_path, caplog):
    shutil.copytree(sweep_dir, tmp_path / "sweep")
    for place in ("artifacts", "wandb/run-1/files"):
        kept = tmp_path / "sweep/seed-0" / place / "config.yaml"
        kept.parent.mkdir(parents=True)
        kept.touch()
    assert len(runs.find_checkpoints(tmp_path / "sweep")) == 2
    assert "have not finished" not in caplog.text
    (tmp_path / "sweep/seed-1/result.json").unlink()
    runs.find_checkpoints(tmp_path / "sweep")
    assert "1 of 2 runs in" in caplog.text


def test_a_run_is_known_by_its_checkpoint_through_links_and_from_within(sweep_dir, tmp_path, monkeypatch):
    run_dir = shutil.copytree(sweep_dir / "seed-0", tmp_path / "run")
    (run_dir / "checkpoints").rename(tmp_path / "elsewhere")
    (run_dir / "checkpoints").symlink_to(tmp_path / "elsewhere")
    assert runs.run_dir_of(run_dir / "checkpoints/best.ckpt") == run_dir.resolve()
    (tmp_path / "link.ckpt").symlink_to(sweep_dir / "seed-1/checkpoints/best.ckpt")
    assert runs.run_dir_of(tmp_path / "link.ckpt") == (sweep_dir / "seed-1").resolve()
    monkeypatch.chdir(sweep_dir / "seed-1/checkpoints")
    assert runs.run_dir_of(Path("best.ckpt")) == (sweep_dir / "seed-1").resolve()


def test_tens_come_after_nines():
    names = ["run-1", "run-9", "run-10"]
    assert sorted(map(Path, reversed(names)), key=runs.natural) == list(map(Path, names))


def test_a_folders_name_keeps_the_sign_of_an_exponent():
    assert runs.slug(["optimizer.lr=1e+25"]) == "lr-1e25"
    assert runs.slug(["optimizer.lr=1e-05"]) == "lr-1e-05"


def test_of_a_setting_given_twice_a_folder_has_the_one_that_holds():
    assert runs.slug(["model.depth=20", "optimizer.lr=0.1", "model.depth=8"]) == "depth-8_lr-0.1"


def test_what_is_no_run_folder_is_told_apart(tmp_path):
    with pytest.raises(UsageError, match="Got nowhere, which is not there"):
        runs.load_config(Path("nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match=r"empty, which holds no config\.yaml"):
        runs.load_config(tmp_path / "empty")
    (tmp_path / "above" / "run").mkdir(parents=True)
    (tmp_path / "above" / "run" / "config.yaml").write_text("")
    with pytest.raises(UsageError, match=r"above, which holds .*above/run"):
        runs.load_config(tmp_path / "above")
