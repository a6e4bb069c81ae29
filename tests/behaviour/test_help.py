"""Help and the printing of configurations, which Hydra does."""

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
