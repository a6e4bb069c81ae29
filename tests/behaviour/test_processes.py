"""Several processes that train one network: on two CPU processes, by gloo."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import TINY, assert_equal, last_of, record_of, rows_of, rows_without_speed, write_files

from cifar_resnet import cli, runs
from cifar_resnet.api import train

TWO = ("trainer.accelerator=cpu", "trainer.devices=2", "data.batch_size=20", "model.dropout=0.1")
KILL = """
import os, time
from pathlib import Path
from lightning.pytorch import Callback

class Kill(Callback):
    def __init__(self, rank, step, number):
        self.rank, self.step, self.number = rank, step, number

    def on_train_batch_start(self, trainer, *others):
        if trainer.global_step == self.step and self.rank in (trainer.global_rank, -1):
            with open(f"sent-{trainer.global_rank}", "a") as file:
                file.write(".")
            if len(Path(f"sent-{trainer.global_rank}").read_text()) == 1:
                Path("when").write_text(str(time.time()))
                os.kill(os.getpid(), self.number)
"""


@pytest.fixture
def killing(tmp_path, monkeypatch):
    """An override that has a signal come to one process, or to all (-1), as a step begins, the first time it does."""
    write_files(tmp_path, {"killing.py": KILL})
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")

    def at(rank: int, step: int, number: int) -> str:
        return f"+callbacks.kill={{_target_:killing.Kill,rank:{rank},step:{step},number:{int(number)}}}"

    return at


def assert_same_training(one, other):
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "mid_epoch_state", "global_step"):
        assert_equal(last_of(one)[key], last_of(other)[key], key)
    assert rows_without_speed(one) == rows_without_speed(other)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_both(cifar_train, tmp_path, killing):
    assert cifar_train(*TWO, killing(1, 1, signal.SIGTERM), "run_dir=stopped") == 143
    assert 1 < last_of(tmp_path / "stopped")["global_step"] < 5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("rank", "number", "step"),
    [
        (1, signal.SIGTERM, 6),
        (0, signal.SIGTERM, 6),
        (-1, signal.SIGUSR2, 7),
        (1, signal.SIGUSR1, 9),  # in the last step of an epoch
    ],
)
def test_a_signal_to_one_process_stops_all_after_the_same_step(
    cifar_train, tmp_path, killing, rank, number, step, capsys
):
    """Within ten seconds, and what goes on from there ends as if it had never stopped, bit for bit."""
    long = [*TWO, killing(rank, step, number), "trainer.max_epochs=3"]
    assert cifar_train(*long, "run_dir=stopped") == 128 + number
    assert time.time() - float((tmp_path / "when").read_text()) < 10
    assert f"by {signal.Signals(number).name}" in capsys.readouterr().err
    assert 5 < last_of(tmp_path / "stopped")["global_step"] <= 10
    assert cli.train(["resume=stopped", "trust=[killing]"]) == 0
    assert cifar_train(*long, "run_dir=whole") == 0
    assert_same_training(tmp_path / "stopped", tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2)])
def test_another_number_of_processes_goes_on_with_the_same_global_batch(
    cifar_train, tmp_path, killing, before, after, capsys
):
    settings = [*TWO, killing(0, 7, signal.SIGTERM), "trainer.max_epochs=3", f"trainer.devices={before}"]
    settings += [f"data.batch_size={40 // before}", "run_dir=run"]
    assert cifar_train(*settings) == 143
    assert cli.train(["resume=run", "trust=[killing]", f"trainer.devices={after}"]) == 0
    assert f"goes on with {after} process" in (said := capsys.readouterr().out)
    assert "all together 40 as before" in said
    rows = rows_of(tmp_path / "run")
    assert [int(row["step"]) for row in rows] == [5, 10, 15]
    assert float(rows[-1]["lr"]) == 0  # which is where the schedule ends
    assert last_of(tmp_path / "run")["config"]["data"]["batch_size"] == 40 // after
    assert sum(len(each["metrics"]) > 0 for each in last_of(tmp_path / "run")["mid_epoch_state"]) == after
    assert cli.train(["resume=run", "trust=[killing]", "trainer.devices=3"]) == 0  # has finished: nothing is asked


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_a_lost_process_ends_the_other_with_one_line_and_the_run_can_go_on(tmp_path, killing, rank):
    command = [sys.executable, "-m", "cifar_resnet.train", *TINY, *TWO, killing(rank, 7, signal.SIGKILL)]
    command += ["trainer.max_epochs=3", "run_dir=run"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    # what is printed is read until no process is left that could print more
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == (-signal.SIGKILL if rank == 0 else 1)
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert "process of this training was lost" in line
    assert "Traceback" not in done.stderr
    assert cli.train(["resume=run", "trust=[killing]"]) == 0
    assert record_of(tmp_path / "run")["steps"] == 15


PICKY = """
import os
from cifar_resnet.models import ResNet

class Net(ResNet):
    def __init__(self, **settings):
        if os.environ.get("RANK", os.environ.get("SLURM_PROCID")) == "1":
            raise ValueError("no such file on this host")
        super().__init__(**settings)
"""


@pytest.mark.slow
def test_what_one_process_alone_cannot_build_ends_all_with_its_reason(tmp_path):
    write_files(tmp_path, {"picky.py": PICKY})
    command = [sys.executable, "-m", "cifar_resnet.train", *TINY, *TWO[:-1]]
    command += ["model._target_=picky.Net", "trust=[picky]"]
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    assert "error: process 1: no such file on this host" in done.stderr.splitlines()
    assert "Traceback" not in done.stderr


def start(tmp_path, environment: dict[str, str], *arguments: str) -> subprocess.Popen:
    command = [sys.executable, "-m", "cifar_resnet.train", *TINY, *arguments]
    return subprocess.Popen(
        command, env=os.environ | environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def by_srun(tmp_path, *arguments: str) -> list[tuple[int, str, str]]:
    """As two tasks of SLURM would run it; exit code, stdout and stderr of each."""
    tasks = [
        start(
            tmp_path,
            {
                "SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NAME": "train", "SLURM_STEP_ID": "0", "SLURM_NTASKS": "2",
                "SLURM_STEP_NUM_TASKS": "2", "SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0",
                "SLURM_NODELIST": "here", "SLURM_STEP_TASKS_PER_NODE": "2",
            },
            *arguments,
        )
        for rank in range(2)
    ]  # fmt: skip
    answers = [task.communicate(timeout=120) for task in tasks]
    return [(task.returncode, *texts) for task, texts in zip(tasks, answers, strict=True)]


@pytest.mark.slow
def test_where_nobody_ends_the_first_process_it_hears_why_another_never_came(tmp_path, monkeypatch):
    """srun leaves it waiting, in C++, for the other to join."""
    write_files(tmp_path, {"picky.py": PICKY})
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    first, second = by_srun(tmp_path, *TWO, "model._target_=picky.Net", "trust=[picky]")
    assert (first[0], second[0]) == (1, 1)
    assert "error: process 1 of this training failed: no such file on this host; what" in first[2]
    assert "error: process 1: no such file on this host" in second[2]


def test_more_tasks_on_a_host_than_devices_are_refused_by_the_first(tmp_path):
    first, second = by_srun(tmp_path, "trainer.devices=1", "trainer.num_nodes=2")
    assert (first[0], second[0]) == (2, 2)
    assert "Got 1, where srun has started 2 on one" in first[2]


PROGRAM = """
import json, os, sys
from cifar_resnet.api import train

found = [train([*json.loads(sys.argv[1]), f"seed={seed}", f"run_dir=run-{seed}", *sys.argv[2:]]) for seed in (0, 1)]
text = json.dumps([[each["run_dir"], each["config"]["seed"], each["metrics"]["test/loss"]] for each in found])
open(f"found-{os.environ['RANK']}", "w").write(text)
"""


@pytest.mark.slow
def test_a_program_under_torchrun_trains_one_after_the_other_and_finds_them_finished(tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    write_files(tmp_path, {"program.py": PROGRAM})
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "program.py"]
    arguments = json.dumps([*TINY, *TWO, "trainer.strategy=ddp"])
    answers = []
    for resume in ([], ["resume=auto"]):
        done = subprocess.run([*torchrun, arguments, *resume], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr
        ours, others = ((tmp_path / f"found-{rank}").read_text() for rank in (0, 1))
        assert ours == others
        answers.append(json.loads(ours))
    assert answers[0] == answers[1]
    assert [seed for _, seed, _ in answers[0]] == [0, 1]


@pytest.mark.slow
def test_whoever_starts_the_processes_it_is_the_same_training(tmp_path, monkeypatch, cifar_train, run_dirs):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    arguments = [*TWO, "trainer.max_epochs=2"]
    assert cifar_train(*arguments, "name=ours") == 0
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "-m", "cifar_resnet.train"]
    subprocess.run([*torchrun, *TINY, *arguments, "name=torchrun"], check=True, capture_output=True, timeout=120)
    (first, second) = by_srun(tmp_path, *arguments, "name=srun")
    assert (first[0], second[0]) == (0, 0)
    assert "run folder" in first[1]
    assert second[1:] == ("", "")
    ours, torchruns, sruns = run_dirs()  # a folder each
    assert_same_training(ours, torchruns)
    assert_same_training(ours, sruns)
    for run_dir in (torchruns, sruns):
        assert record_of(run_dir)["metrics"]["test/loss"] == record_of(ours)["metrics"]["test/loss"]


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["trainer.devices=1"], ["trainer.devices=3", "trainer.accelerator=cpu"]])
def test_another_number_of_processes_than_devices_is_refused_in_one_line(tmp_path, arguments):
    first, second = by_srun(tmp_path, *arguments)
    assert (first[0], second[0]) == (2, 2)
    (line,) = first[2].splitlines()
    assert "srun has started 2 processes for trainings of" in line
    assert f"Got {arguments[0]};" in line
    assert second[1:] == ("", "")
    assert not (tmp_path / "outputs").exists()


@pytest.mark.slow
def test_where_the_first_process_fails_the_others_end_quietly_with_its_code(tmp_path):
    first, second = by_srun(tmp_path, *TWO, "resume=nowhere")
    assert (first[0], second[0]) == (2, 2)
    assert first[2].startswith("error:")
    assert second[1:] == ("", "")


@pytest.mark.slow
def test_a_sweep_trains_each_of_its_jobs_on_all_devices(cifar_train, run_dirs, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    before = dict(os.environ)
    assert cifar_train("-m", *TWO, "seed=0,1", "optimizer.lr=0.1", "trainer.devices=2") == 0
    assert [record_of(run_dir)["steps"] for run_dir in run_dirs()] == [5, 5]
    left = {name for name in os.environ if os.environ[name] != before.get(name)}
    assert left <= {
        "PL_GLOBAL_SEED",
        "PL_SEED_WORKERS",
    }  # of the rest a next training would make something
    assert cifar_train() == 0  # as on one device


@pytest.mark.slow
def test_the_python_function_trains_on_several_devices(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    record = train([*TINY, *TWO])
    assert record["steps"] == 5
    assert record == runs.read_record(runs.Path(record["run_dir"]))


@pytest.mark.slow
def test_a_search_stops_a_hopeless_trial_in_all_processes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("optuna.Trial.should_prune", lambda trial: True)
    arguments = [*TINY, *TWO, "trainer.max_epochs=3", "search.trials=1"]
    arguments += ["search.method=tpe", "optimizer.lr=interval(0.01,0.1)"]
    cli.search(arguments)
    assert "ended early, after 1 of 3 epochs" in capsys.readouterr().out


@pytest.mark.slow
def test_a_peak_is_looked_for_on_one_device_in_batches_of_all(cifar_train, run_dirs, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    auto = ["scheduler=one_cycle", "scheduler.max_lr=auto", "range_test.steps=20", "range_test.suggest=valley"]
    auto += ["range_test.max_lr=10", "range_test.smoothing=0"]
    assert cifar_train(*TWO, *auto) == 0
    assert cifar_train(*TWO, *auto, "trainer.devices=1", "data.batch_size=40") == 0
    both, one = (record_of(run_dir)["config"]["scheduler"]["max_lr"] for run_dir in run_dirs())
    assert both == one
