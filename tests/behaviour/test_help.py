"""Help and the printing of configurations, which Hydra does."""

from pathlib import Path

import pytest

from cifar_resnet import cli


def test_options_may_stand_between_overrides(capsys):
    assert cli.train(["optimizer=sgd", "--cfg", "job", "seed=7", "--package", "optimizer", "optimizer.lr=0.25"]) == 0
    between = capsys.readouterr().out
    assert cli.train(["--cfg", "job", "--package", "optimizer", "optimizer=sgd", "seed=7", "optimizer.lr=0.25"]) == 0
    assert between == capsys.readouterr().out
    assert "lr: 0.25" in between


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--cfg", "jobb"], "error: argument --cfg/-c: invalid choice: 'jobb'"),
        (["model=resnet20", "--cfg"], "error: argument --cfg/-c: expected one argument. See cifar-train --help"),
        (["--help", "--nonsense"], "error: unrecognized arguments: --nonsense. See cifar-train --help"),
    ],
)
def test_a_mistake_in_them_gets_one_line(arguments, message, capsys):
    assert cli.train(arguments) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(message)


@pytest.mark.parametrize("option", ["-c", "--cfg"])
def test_a_configuration_is_printed_by_hydras_short_option_as_well(option, capsys):
    Path("job").mkdir()
    assert cli.train([option, "job", "model=resnet20"]) == 0
    assert "depth: 20" in capsys.readouterr().out
    assert not Path("outputs").exists()


def test_the_configuration_of_a_run_that_goes_on_is_in_its_folder(trained, capsys):
    assert cli.train(["--cfg", "job", f"resume={trained}"]) == 2
    assert f"look into {trained}/config.yaml" in capsys.readouterr().err
    assert cli.train(["--cfg", "job", "resume=auto"]) == 0
