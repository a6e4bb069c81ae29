"""The same sweep, search or run in several processes at once, and through a launcher of Hydra's."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from helpers import TINY, record_of
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from cifar_resnet import claims, cli, sweep

HOLD = """
import sys, time
from pathlib import Path
from cifar_resnet import claims
assert claims.Claim(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def begin():
    """Start a command in a process of its own, whose output is read at its end."""
    begun = []

    def start(command: str, *overrides: str) -> subprocess.Popen:
        entry = f"import sys; from cifar_resnet import cli; sys.exit(cli.{command}())"
        process = subprocess.Popen(
            [sys.executable, "-c", entry, *TINY, *overrides],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        begun.append(process)
        return process

    yield start
    for process in begun:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.fixture
def hold():
    """Have another process claim a folder; returns that process."""
    holders = []

    def start(folder: Path) -> subprocess.Popen:
        holders.append(subprocess.Popen([sys.executable, "-c", HOLD, folder], stdout=subprocess.PIPE, text=True))
        assert holders[-1].stdout.readline() == "held\n"
        return holders[-1]

    yield start
    for holder in holders:
        end(holder)
        holder.stdout.close()


def end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()  # or it would be there still, as a zombie


def wait_for(condition, seconds: float = 120.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.05)


def jobs_begun(output: str) -> list[str]:
    """The titles of the jobs that a sweep ran itself."""
    return re.findall(r"^job (\d+) of \d+: .*\n(?!finished before)", output, re.MULTILINE)


def test_a_run_that_another_process_is_at_is_left_alone(cifar_train, run_dirs, hold, capsys):
    assert cifar_train("run_dir=outputs/mine") == 0
    (Path("outputs/mine") / "result.json").unlink()
    holder, before = hold(Path("outputs/mine")), sorted(Path("outputs/mine").iterdir())
    capsys.readouterr()
    assert cli.train(["resume=outputs/mine"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"another process is at work there. Got outputs/mine, which process {holder.pid} on" in line
    assert sorted(Path("outputs/mine").iterdir()) == before
    hold(Path("outputs/new"))
    assert cifar_train("run_dir=outputs/new") == 2
    assert "another process is at work there. Got outputs/new" in capsys.readouterr().err
    assert [path.name for path in Path("outputs/new").iterdir()] == [claims.CLAIM]


@pytest.mark.slow
def test_a_job_whose_process_dies_is_taken_over_by_a_sweep_that_waits_for_it(
    cifar_train, run_dirs, hold, capsys, monkeypatch
):
    assert cifar_train("-m", "seed=0,1") == 0
    (run_dir,) = [path for path in run_dirs() if path.name == "seed-1"]
    (run_dir / "result.json").unlink()
    holder = hold(run_dir)
    monkeypatch.setattr(sweep.time, "sleep", lambda seconds: end(holder))
    capsys.readouterr()
    assert cifar_train("-m", "seed=0,1") == 0
    printed = capsys.readouterr().out
    assert "1 of 2 jobs are other processes': waiting for them" in printed
    assert jobs_begun(printed) == ["2"]
    assert (run_dir / "result.json").exists()


@pytest.mark.slow
def test_what_another_process_of_the_sweep_failed_at_is_not_tried_again_as_long_as_that_lives(
    cifar_train, run_dirs, hold, capsys
):
    command = ("-m", "optimizer.lr=0.1,1e25")
    assert cifar_train(*command) == 1
    (failed,) = [path.parent for path in Path("outputs").rglob("failure.txt")]
    hold(failed)
    capsys.readouterr()
    assert cifar_train(*command) == 1
    printed = capsys.readouterr().out
    assert jobs_begun(printed) == []
    assert re.search(r"optimizer.lr=1e\+25: the loss is no longer finite", printed)


@pytest.mark.slow
def test_of_a_job_that_goes_on_no_process_tells_how_it_failed_before(cifar_train, crash, monkeypatch):
    command = ("-m", "seed=0,1", "trainer.max_epochs=2")
    crash(1)
    assert cifar_train(*command) == 1
    crash(None)
    first, second = sorted(Path("outputs").rglob("failure.txt"))
    assert cli.train([f"resume={first.parent}", "trust=[helpers]"]) == 0
    assert not first.exists()
    told = []
    check = sweep.resume.check_same_job
    monkeypatch.setattr(sweep.resume, "check_same_job", lambda *rest: (told.append(second.exists()), check(*rest)))
    assert cifar_train(*command) == 0
    assert told[-1] is False


@pytest.mark.slow
def test_two_sweeps_share_four_jobs_and_both_end_with_all_of_them(begin, run_dirs):
    command = ("-m", "seed=0,1,2,3", "optimizer.lr=0.1", "trainer.max_epochs=15")
    outputs = [process.communicate()[0] for process in [begin("train", *command) for _ in range(2)]]
    jobs = [jobs_begun(output) for output in outputs]
    assert sorted(jobs[0] + jobs[1]) == ["1", "2", "3", "4"]
    assert all(jobs)
    for output in outputs:
        assert re.findall(r"^ (\d)  .*%.*seed-\d", output, re.MULTILINE) == ["0", "1", "2", "3"]
    assert len(run_dirs()) == 4
    assert not list(Path("outputs").rglob(claims.CLAIM))


@pytest.mark.slow
def test_a_sweep_goes_on_with_the_job_of_one_that_was_killed(begin, run_dirs):
    command = ("-m", "seed=0,1", "trainer.max_epochs=100")
    first, second = (begin("train", *command) for _ in range(2))
    wait_for(lambda: len(list(Path("outputs").rglob("checkpoints/last.ckpt"))) == 2)
    end(first)
    printed = second.communicate()[0]
    assert second.returncode == 0
    assert sorted(jobs_begun(printed)) == ["1", "2"]
    assert [record_of(run_dir)["epochs"] for run_dir in run_dirs()] == [100, 100]


@pytest.mark.slow
@pytest.mark.parametrize("method", ["random", "tpe"])
def test_three_searches_try_exactly_as_often_as_asked_though_one_is_killed(begin, method):
    command = (f"search.method={method}", "search.rounds=2", "search.trials=4", "trainer.max_epochs=20")
    processes = [begin("search", *command) for _ in range(3)]
    wait_for(lambda: len(list(Path("outputs").rglob("checkpoints/last.ckpt"))) >= 3)
    end(processes[0])
    outputs = [process.stdout.read() for process in processes]
    assert [process.wait() for process in processes] == [-signal.SIGKILL, 0, 0], outputs
    (journal,) = Path("outputs").rglob("trials.log")
    storage = JournalStorage(JournalFileBackend(str(journal)))
    trials = optuna.load_study(study_name=None, storage=storage).trials
    asked = 8 if method == "random" else 4
    assert [trial.state.name for trial in trials if trial.state.name not in ("COMPLETE", "PRUNED")] == []
    assert len(trials) == asked
    assert len({trial.params["optimizer.lr"] for trial in trials}) == asked


@pytest.mark.slow
def test_joblib_trains_two_at_once_and_tries_only_the_failed_one_again(begin, run_dirs):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    command = ("-m", "optimizer.lr=0.1,1e25,0.2", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2")
    process = begin("train", *command)
    printed = process.communicate()[0]
    assert process.returncode == 1, printed
    assert "1 of 3 jobs failed" in printed
    assert {path.name for path in run_dirs()} == {"lr-0.1", "lr-0.2", "lr-1e25"}
    failure = next(Path("outputs").rglob("failure.txt"))
    assert "the loss is no longer finite" in failure.read_text()
    records = {path.parent: path.stat().st_mtime for path in Path("outputs").rglob("result.json")}
    assert len(records) == 2
    again = begin("train", *command)
    printed = again.communicate()[0]
    assert re.findall(r"job (\d) of 3: \S+ begins", printed) == ["2"]
    assert {path.parent: path.stat().st_mtime for path in Path("outputs").rglob("result.json")} == records


def test_a_launcher_that_can_begin_nothing_is_told_in_one_line(cifar_train, run_dirs, capsys):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    assert cifar_train("-m", "seed=0,1", "hydra/launcher=joblib", "hydra.launcher.n_jobs=0") == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert "hydra/launcher=joblib could begin nothing: n_jobs == 0" in line
    assert "Got ++hydra.launcher.n_jobs=0;" in line
    assert not run_dirs()


@pytest.mark.slow
def test_joblib_tries_out_a_searchs_trials(begin):
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    process = begin(
        "search", "search.rounds=1", "search.trials=3", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2"
    )  # fmt: skip
    printed = process.communicate()[0]
    assert process.returncode == 0, printed
    assert printed.count(" begins: optimizer.lr=") == 3
    (table,) = Path("outputs").rglob("trials.csv")
    assert [line.rpartition(",")[2] for line in table.read_text().splitlines()[1:]] == ["COMPLETE"] * 3


def test_a_folder_of_somebody_elses_with_a_config_of_its_own_is_left_alone(cifar_train, capsys):
    Path("exp-0").mkdir()
    Path("exp-0/config.yaml").write_text("theirs: 1\n")
    Path("exp-0/notes.txt").write_text("mine")
    assert cifar_train("-m", "seed=0", "hydra.sweep.dir=.", "hydra.sweep.subdir=exp-${seed}") == 1
    assert "not the configuration of a run. Got exp-0/config.yaml" in capsys.readouterr().out
    assert {path.name for path in Path("exp-0").iterdir()} == {"config.yaml", "notes.txt"}


@pytest.mark.slow
def test_a_job_that_another_process_has_taken_over_is_waited_for_and_has_not_failed(cifar_train, monkeypatch, capsys):
    run_in = sweep.run_in

    def lost(run_dir, cfg, run):
        run_in(run_dir, cfg, run)  # as the other one does
        raise claims.Lost("another process has taken this run over")

    monkeypatch.setattr(sweep, "run_in", lost)
    assert cifar_train("-m", "seed=0") == 0
    assert "warning: another process has taken this run over" in capsys.readouterr().out
    assert not list(Path("outputs").rglob("failure.txt"))


@pytest.mark.slow
def test_each_jobs_folder_is_where_its_own_settings_say(capsys):
    assert cli.train([*TINY, "-m", "seed=4,5", "hydra.sweep.dir=by/${seed}"]) == 0
    assert sorted(str(path.parent) for path in Path("by").rglob("result.json")) == ["by/4/seed-4", "by/5/seed-5"]
    assert cli.train([*TINY, "-m", "seed=4,5", f"hydra.sweep.dir={Path.cwd()}/${{seed}}"]) == 0
    out = capsys.readouterr().out
    assert "cifar-report by/4 by/5\n" in out
    assert f"cifar-report {Path.cwd()}/4 {Path.cwd()}/5\n" in out
    assert "checkpoint=" not in out


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["hydra.sweep.dir", "hydra.sweep.subdir", "both"])
def test_hydras_names_for_a_sweeps_folders_are_those_of_the_sweep(cifar_train, run_dirs, name):
    folder = "hydra.sweep.dir=elsewhere/${name}"
    subdir = "hydra.sweep.subdir=${hydra.job.num}-${seed}"
    chosen = [text for text in (folder, subdir) if name in (text.partition("=")[0], "both")]
    assert (
        cli.train(
            [*(text for text in TINY if "max_epochs" not in text), "trainer.max_epochs=1", "-m", "seed=4,5", *chosen]
        )
        == 0
    )
    found = sorted(path.parent for path in Path().rglob("result.json"))
    assert [path.name for path in found] == (["seed-4", "seed-5"] if name == "hydra.sweep.dir" else ["0-4", "1-5"])
    assert all((path.parent == Path("elsewhere/train")) == (name != "hydra.sweep.subdir") for path in found)
