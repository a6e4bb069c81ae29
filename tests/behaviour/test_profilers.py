"""trainer.profiler: what it found is in the run folder, and the terminal says where."""

import re
from pathlib import Path

import pytest
from helpers import TINY

from cifar_resnet import cli

FILES = ("fit-profile.txt", "test-profile.txt")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("profiler", "words"),
    [
        ("simple", r"SingleDeviceStrategy\.training_step +\t\|  [\d.e-]+ +\t\|  5 "),  # of 5 batches
        ("advanced", r"\s5\s.*\(training_step\)"),
        ("pytorch", r"Self CPU time total"),
        ("{_target_:lightning.pytorch.profilers.SimpleProfiler,extended:false}", r"training_step"),
    ],
)
def test_what_a_profiler_found_is_in_the_run_folder_and_named_in_the_terminal(
    cifar_train, run_dirs, capsys, profiler, words
):
    assert cifar_train(f"trainer.profiler={profiler}") == 0
    (run_dir,) = run_dirs()
    output = capsys.readouterr().out
    for name in FILES:
        assert re.search(rf"^  profile +\S*{run_dir.name}/{name}$", output, re.MULTILINE)
        assert "Profiler Report" in (run_dir / name).read_text()
    assert re.search(words, (run_dir / FILES[0]).read_text())
    assert bool(list(run_dir.glob("*.pt.trace.json"))) == (profiler == "pytorch")


def test_a_profilers_own_folder_and_name_are_left_to_it(cifar_train):
    profiler = "{_target_:lightning.pytorch.profilers.SimpleProfiler,dirpath:mine,filename:times}"
    assert cifar_train(f"trainer.profiler={profiler}", "test=false") == 0
    assert [path.name for path in Path("mine").iterdir()] == ["fit-times.txt"]


def test_without_a_profiler_nothing_is_profiled(cifar_train, run_dirs, capsys):
    assert cifar_train() == 0
    assert not list(run_dirs()[0].glob("*profile*"))
    assert "profile" not in capsys.readouterr().out


@pytest.mark.slow
def test_networks_side_by_side_and_trials_of_a_search_are_profiled_where_they_lie(cifar_train, capsys):
    assert cifar_train("trainer.profiler=simple", "ensemble.size=2") == 0
    (together,) = Path("outputs/train").glob("ensemble-*/together")
    assert [path.name for path in together.glob("*profile*")] == [FILES[0]]
    assert f"{together}/{FILES[0]}" in capsys.readouterr().out
    assert cli.search([*TINY, "trainer.profiler=simple", "search.rounds=1", "search.trials=1"]) == 0
    (trial,) = Path("outputs/search").glob("*/000-*")
    assert [path.name for path in trial.glob("*profile*")] == [FILES[0]]
