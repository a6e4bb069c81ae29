"""The commands as they are installed: help, completion, their forms, and a wheel away from the clone."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import cifar_resnet
from cifar_resnet import cli

ROOT = Path(cifar_resnet.__file__).parents[1]


def python(program: str, *arguments: str, **options: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, **options)


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize("command", cli.COMMANDS)
def test_every_command_explains_itself_with_examples_and_every_setting(command, capsys):
    assert cli.main(command, ["--help"]) == 0
    text = capsys.readouterr().out
    name = f"cifar-{command.replace('_', '-')}"
    assert text.startswith(f"{name}: ")
    assert f"  {name} " in text.partition("Examples")[2]
    assert "Every setting, as key=value" in text


def test_help_shows_groups_choices_and_examples(capsys):
    assert cli.train(["--help"]) == 0
    text = capsys.readouterr().out
    for expected in (
        "optimizer: adam, adamw, asam, muon, sam, sgd", "resnet152", "16-mixed", "cifar-train -m model=", "resume=",
    ):  # fmt: skip
        assert expected in text


@pytest.mark.slow
def test_helping_composing_and_completing_import_no_torch():
    program = """
import sys
from cifar_resnet import cli
for arguments in (["--help"], ["--cfg", "job"], ["model=resnet50", "--cfg", "job"], ["-sc", "query=bash"]):
    cli.train(arguments)
    print("====")
assert not {"torch", "lightning"} & sys.modules.keys()
"""
    line = "cifar-train model=resnet1"
    done = python(program, env=os.environ | {"COMP_LINE": line, "COMP_POINT": str(len(line))})
    assert done.returncode == 0, done.stderr
    help_text, default, chosen, completed, _ = done.stdout.split("====")
    assert "model: custom_resnet" in help_text
    assert "depth: null" in default
    assert "blocks:\n  - 3\n  - 4\n  - 6\n  - 3\n" in chosen
    assert {"model=resnet18", "model=resnet101", "model=resnet110", "model=resnet152"} == set(completed.split())


@pytest.mark.slow
def test_help_into_a_pipe_that_closes_early_says_nothing():
    program = "from cifar_resnet import cli; cli.train(['--help'])"
    done = subprocess.run(f'"{sys.executable}" -c "{program}" | head -1', shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("cifar-train:")
    assert done.stderr == ""


@pytest.mark.slow
def test_the_same_command_in_three_forms():
    script = ROOT / "cifar_resnet" / "train.py"
    forms = [[sys.executable, "-m", "cifar_resnet.train"], [sys.executable, str(script)]]
    forms.append([str(Path(sys.executable).with_name("cifar-train"))])
    outputs = [
        subprocess.run([*form, "model=resnet56", "--cfg", "job"], capture_output=True, text=True).stdout
        for form in forms
    ]
    assert "depth: 56" in outputs[0]
    assert len(set(outputs)) == 1


@pytest.mark.slow
def test_the_wheel_carries_configuration_page_and_commands(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("cifar_resnet-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        names = archive.namelist()
        entry_points = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
    assert sum(name.endswith(".html") for name in names) == 1
    for command in cli.COMMANDS:
        assert f"cifar-{command.replace('_', '-')} = cifar_resnet.cli:{command}\n" in entry_points
        assert callable(getattr(cli, command))
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); from cifar_resnet import cli; "
        "assert 'site' in cli.__file__, cli.__file__; sys.exit(cli.train())"
    )
    done = python(program, str(tmp_path / "site"), "experiment=quickstart", "--cfg", "job", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "name: quickstart" in done.stdout
