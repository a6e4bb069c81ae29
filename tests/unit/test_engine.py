"""What is used of Hydra's own settings, on the command line and in a recipe's file."""

from pathlib import Path

import hydra
import pytest
from helpers import TINY, write_files
from omegaconf import OmegaConf

from cifar_resnet import cli, sweep
from cifar_resnet.compose import Composer, hydra_for_us
from cifar_resnet.engine import no_such_launcher
from cifar_resnet.errors import UsageError
from cifar_resnet.launch import settings_of


@pytest.fixture
def recipe():
    """Write a recipe of one's own with these settings of Hydra's; returns the arguments that choose it."""

    def write(settings: str, defaults: str = "") -> list[str]:
        text = f"# @package _global_\n{defaults}name: mine\nhydra:\n{settings}"
        write_files(Path("own/experiment"), {"mine.yaml": text})
        return ["--config-dir", "own", "experiment=mine"]

    return write


def test_a_single_run_lies_where_hydras_name_for_it_says(cifar_train):
    assert cifar_train("hydra.run.dir=there/${model.depth}-${hydra:job.override_dirname}", "seed=3") == 0
    (run_dir,) = [path.parent for path in Path().rglob("result.json")]
    assert run_dir.parent == Path("there")
    assert run_dir.name.startswith("8-")
    assert "seed=3" in run_dir.name


@pytest.mark.slow
def test_a_recipes_file_names_folders_and_launcher(recipe, cifar_train):
    arguments = recipe("  run: {dir: 'runs/${model.depth}'}\n  sweep: {dir: sweeps, subdir: '${seed}'}\n")
    assert cifar_train(*arguments) == 0
    assert cifar_train(*arguments, "-m", "seed=5,6") == 0
    found = {str(path.parent) for path in Path().rglob("result.json")}
    assert found == {"runs/8", "sweeps/5", "sweeps/6"}


def test_what_launches_a_sweep_says_nothing_of_where_it_lies():
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    composer = Composer()
    jobs = [
        composer.jobs(["seed=0,1", *launcher], multirun=True)[0]
        for launcher in ([], ["hydra/launcher=joblib", "hydra.launcher.n_jobs=3"])
    ]
    assert [job.engine.launcher for job in jobs] == ["basic", "joblib"]
    assert jobs[1].engine.hydra.launcher.n_jobs == 3
    assert jobs[0].overrides == jobs[1].overrides
    assert jobs[0].cfg == jobs[1].cfg


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("settings", "got"),
    [
        ("  job: {chdir: true}\n", "hydra.job.chdir"),
        ("  verbose: true\n", "hydra.verbose"),
        ("  sweeper: {max_batch_size: 2}\n", "hydra.sweeper.max_batch_size"),
        ("  callbacks: {mine: {_target_: some.Callback}}\n", "hydra.callbacks.mine._target_"),
        ("  output_subdir: .hydra\n", "hydra.output_subdir"),
    ],
)
def test_nothing_of_hydras_in_a_file_is_dropped_without_a_word(recipe, settings, got, capsys):
    assert cli.train([*TINY, *recipe(settings)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: of Hydra's own settings hydra/launcher")
    assert f"Got {got}; leave it out" in line
    assert not Path("outputs").exists()


def test_a_sweep_is_of_one_time(cifar_train):
    jobs = Composer("train").jobs(["seed=range(0,4)", "hydra.sweep.dir=sw/${now:%f}/${seed}"], multirun=True)
    folders, _ = sweep.folders_of(jobs)
    assert len({folder.parent for folder in folders}) == 1
    assert [folder.name for folder in folders] == ["0", "1", "2", "3"]


def test_jobs_are_numbered_as_hydra_does_where_one_says_so(capsys):
    jobs = Composer("train").jobs(["seed=3,4", "hydra.sweep.subdir=${hydra.job.num}"], multirun=True)
    assert [run_dir.name for run_dir in sweep.folders_of(jobs)[1]] == ["0", "1"]
    jobs = Composer("train").jobs(["seed=3,3", "hydra.sweep.subdir=${hydra.job.num}"], multirun=True)
    assert [run_dir.name for run_dir in sweep.folders_of(jobs)[1]] == ["0", "1"]
    jobs = Composer("train").jobs(["seed=3,4,3"], multirun=True)
    with pytest.raises(UsageError, match=r"a sweep trains each job once\. Got seed=3 twice; name it once"):
        sweep.folders_of(jobs)


def test_jobs_that_would_share_a_folder_are_refused(capsys):
    assert cli.train([*TINY, "-m", "optimizer.lr=0.1,0.2", "hydra.sweep.subdir=${seed}"]) == 2
    assert "each job needs a folder of its own. Got hydra.sweep.subdir=0 twice" in capsys.readouterr().err


@pytest.mark.parametrize(("launcher", "extra"), [("joblib", "joblib"), ("submitit_slurm", "slurm"), ("ray", "ray")])
def test_a_launcher_that_is_not_installed_is_told_with_what_installs_it(launcher, extra):
    text = no_such_launcher(launcher, ["basic"])
    assert text.endswith(f"Got hydra/launcher={launcher}; in the clone: pip install -e '.[{extra}]'")


def test_an_unknown_launcher_is_told_with_those_that_there_are():
    with pytest.raises(UsageError, match=r"Got hydra/launcher=nothing; give one of .*basic"):
        Composer().jobs(["hydra/launcher=nothing", "seed=0,1"], multirun=True)


def test_a_workers_launcher_is_composed_as_the_commands_was():
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    composer = Composer()
    given = [
        "hydra/launcher=submitit_slurm", "hydra.launcher.partition=a", "hydra.launcher.timeout_min=7",
        "hydra.launcher.setup=['module load x','y=\\'1\\'']", "+hydra.launcher.additional_parameters.gres='gpu:2'",
        "hydra.launcher.mem_gb=3", "hydra.launcher.stderr_to_stdout=true",
    ]  # fmt: skip
    wanted = composer.jobs([*given, "seed=0,1"], multirun=True)[0].engine.hydra.launcher
    with hydra_for_us():
        usual = hydra.compose("train", given[:1], return_hydra_config=True).hydra.launcher
        overrides = list(settings_of("hydra.launcher", wanted, usual))
        again = hydra.compose("train", [given[0], *overrides], return_hydra_config=True).hydra.launcher
    assert len(overrides) == 6
    assert OmegaConf.to_container(again) == OmegaConf.to_container(wanted)
    assert again.setup == ["module load x", "y='1'"]
