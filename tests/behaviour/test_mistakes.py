"""Mistakes: each gets one line that names key, value and remedy, exit code 2, and leaves nothing behind.

BAD_COMMANDS=300 pytest tests/behaviour/test_mistakes.py                          # more generated ones
COLD=1 BAD_COMMANDS=300 pytest --durations=20 tests/behaviour/test_mistakes.py    # each a process, and the slowest
"""

import json
import os
import random
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from behaviour.bad_inputs import EXECUTED, PARTS, bad_inputs
from behaviour.mistakes import BEFORE_DATA_IS_READ, LATER, WITHOUT_TORCH
from helpers import TINY, one_in_four_quick
from omegaconf import OmegaConf
from PIL import Image

from cifar_resnet import cli
from cifar_resnet.compose import CONF, Composer
from cifar_resnet.constraints import leaves, select
from cifar_resnet.data import DataModule
from cifar_resnet.overrides import COLLECTIONS, MAY_BE_LEFT_OUT, kind
from cifar_resnet.quoting import plain_path

COUNT = int(os.environ.get("BAD_COMMANDS", "20"))
COLD = "COLD" in os.environ
TRAINERS = ("train", "find_lr", "search")


@pytest.fixture(scope="module")
def things(trained, tmp_path_factory) -> Path:
    """A folder with what the commands name: a finished run, and damaged files."""
    folder = tmp_path_factory.mktemp("things")
    shutil.copytree(trained, folder / "run")
    for name in (
        "void",
        "void.csv",
        "broken",
        "notes",
        "half/train/cat",
        "cifar/cifar-10-batches-py",
        "mine/experiment",
    ):
        (folder / name).mkdir(parents=True)
    for name in ("mine/optimizer", "mine/model", "ours", "ours/model", "flat"):
        (folder / name).mkdir()
    pixels = np.zeros((12, 32, 32, 3), np.uint8)
    labels = np.arange(12) % 3
    np.savez(folder / "floats.npz", images=pixels + 1.5, labels=labels)
    np.savez(folder / "twice.npz", images=pixels, labels=labels, classes=["disk", "disk", "ring"])
    np.savez(folder / "few.npz", images=pixels, labels=labels, classes=["cat", "dog", "fox"])
    np.savez(folder / "same.npz", images=pixels, labels=labels, classes=["cat", "dog", "fox"])
    np.savez(folder / "more.npz", images=pixels, labels=labels, classes=["cat", "dog", "bird"])
    np.savez(folder / "plain.npz", images=pixels, labels=labels)
    np.savez(folder / "lone.npz", images=pixels[0], labels=labels[:1])
    picture = Image.new("RGB", (32, 32))
    for name in (
        "picture.png", "flat/picture.png", "twins/a/1.png", "twins/b/1.png", "dead/dog/1.png", "pets/train/cat/1.png",
        "pets/train/dog/1.png", "pets/test/cat/1.png", "broken_pets/train/cat/2.png", "broken_pets/test/cat/1.png",
    ):  # fmt: skip
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        picture.save(folder / name)
    Image.new("1", (1001, 1000)).save(folder / "pets/train/dog/large.png")
    (folder / "dead" / "cat").symlink_to("nowhere")
    (folder / "broken_pets/train/dog").mkdir()
    np.savez(folder / "one.npz", images=pixels, labels=labels + 1)
    np.savez(folder / "ten.npz", images=pixels, labels=np.arange(12) % 10 + 1)
    torch.save({"net": torch.zeros(3)}, folder / "other.ckpt")
    for name, content in {
        "cut.ckpt": (trained / "checkpoints" / "best.ckpt").read_bytes()[:5000], "empty.ckpt": b"",
        "broken.npz": b"PK\x03\x04broken", "broken.png": b"no picture", "broken/result.json": b"{}",
        "broken_pets/train/cat/1.png": b"no picture", "broken_pets/train/dog/2.png": b"no picture",
        "notes/README.md": b"# Mine", "notes/report.md": b"# Mine",
        "trap.pkl": f"cposix\nmkdir\n(S'{EXECUTED}'\ntR.".encode(),
        "cifar/cifar-10-batches-py/test_batch": b"damaged",
        "mine/experiment/typo.yaml": b"# @package _global_\ntrainr: {max_epochs: 1}\n",
        "mine/experiment/unpacked.yaml": b"trainer: {max_epochs: 1}\n",
        "mine/experiment/cut.yaml": b"# @package _global_\ntrainer: [1\n",
        "mine/experiment/circle.yaml": b"# @package _global_\ndefaults: [circle]\n",
        "mine/experiment/two.yaml": b"# @package _global_\ntrainer: {max_epochs: two}\n",
        "mine/experiment/modelled.yaml": b"# @package _global_\nmodel: resnet20\n",
        "mine/experiment/scheduled.yaml": b"# @package _global_\nscheduler: cosine\n",
        "mine/experiment/averaged.yaml": b"# @package _global_\naveraging: ema\n",
        "mine/experiment/counted.yaml": b"# @package _global_\ncallbacks: {best: 3}\n",
        "mine/experiment/filled.yaml": b"# @package _global_\noverrides: [a]\n",
        "mine/experiment/listed.yaml": b"# @package _global_\nmodel: [a, b]\n",
        "mine/experiment/several.yaml": b"# @package _global_\ndefaults: [override /scheduler: [cosine, linear]]\n",
        "mine/experiment/again.yaml": b"# @package _global_\ndefaults: [/scheduler: linear]\n",
        "mine/experiment/stray.yaml": b"# @package _global_\ndefaults: [override /modl: resnet20]\n",
        "mine/experiment/number.yaml": b"# @package _global_\n0: 2\n",
        "mine/experiment/number_within.yaml": b"# @package _global_\nmodel: {3: 4}\n",
        "mine/experiment/latin.yaml": b"# @package _global_\nname: gr\xf6\xdfe\n",
        "mine/experiment/lost.yaml": b"# @package _global_\ndefaults: [/nothing/there]\n",
        "mine/optimizer/lost.yaml": b"defaults: [adem]\n",
        "mine/optimizer/whole.yaml": b"_target_: torch.optim.RMSprop\nlr: 0.01\n",
        "mine/model/later.yaml": b"_target_: cifar_resnet.models.ResNet\n_partial_: true\n",
        "ours/model/resnet20.yaml": b"_target_: torch.nn.Identity\n",
        "mine/optimizer/dangling.yaml": b"_target_: torch.optim.SGD\n_partial_: true\nlr: ${trainer.rate}\n",
    }.items():  # fmt: skip
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def offline(monkeypatch):
    """The network is not there, and says so at once."""

    def refuse(*arguments, **options):
        raise URLError(socket.gaierror(-2, "no network"))

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("https_proxy", "http://offline.invalid")  # of a process of its own
    monkeypatch.setattr("cifar_resnet.data.published.time.sleep", lambda seconds: None)


@pytest.fixture
def refused(things, offline, monkeypatch, capsys):
    """Give a command, which must refuse it and leave everything as it was; its line."""
    monkeypatch.chdir(things)

    def run(command: str, line: str) -> str:
        before = everything(things)
        code, out, err = outcome(command, on_tiny(command, line), capsys)
        assert code == 2, (out, err)
        assert "Traceback" not in out + err
        assert everything(things) == before
        return the_line(err)

    return run


def everything(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size if path.is_file() else 0 for path in folder.rglob("*")}


def on_tiny(command: str, line: str) -> list[str]:
    """Its arguments, with what they leave open of `TINY` in front, where it trains."""
    arguments = line.split()
    given = {text.partition("=")[0] for text in arguments}
    if command not in TRAINERS or "resume" in given:
        return arguments
    replaced = tuple(f"{group}." for group in given & {"data", "model"})
    tiny = [text for text in (*TINY, "trainer.accelerator=cpu") if text.partition("=")[0] not in given]
    return [*(text for text in tiny if not text.startswith(replaced)), *arguments]


def outcome(command: str, arguments: list[str], capsys) -> tuple[int, str, str]:
    if COLD:
        program = f"import sys; from cifar_resnet import cli; sys.exit(cli.{command}())"
        ran = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
        return ran.returncode, ran.stdout, ran.stderr
    try:
        code = cli.main(command, arguments)
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


def the_line(err: str) -> str:
    """The only one, beside those that name files which could not be read."""
    (line,) = [text for text in err.splitlines() if not text.startswith("skipped: ")]
    assert line.startswith("error: ")
    assert 20 < len(line) < 700
    return line


def assert_names(line: str, words: tuple[str, ...]) -> None:
    """It holds these, in this order."""
    place = 0
    for word in words:
        place = line.find(word, place)
        assert place >= 0, (word, line)
        place += len(word)


IN_A_PROCESS = """
import contextlib, io, json, sys
from cifar_resnet import cli

class Imported(BaseException):
    pass

class NoTorch:
    def find_spec(self, name, *others):
        if name.partition(".")[0] in ("torch", "torchvision", "lightning"):
            raise Imported(name)

sys.meta_path.insert(0, NoTorch())
answers = []
for command, arguments in json.load(sys.stdin):
    with contextlib.redirect_stderr(io.StringIO()) as err, contextlib.redirect_stdout(err):
        try:
            code = cli.main(command, arguments)
        except Imported as error:
            code = f"{error} is imported"
    answers.append([code, err.getvalue()])
json.dump(answers, sys.stdout)
"""


def answers_without_torch(jobs: list[tuple[str, list[str]]], folder: Path) -> list[tuple[int, str]]:
    """Exit code and output of each command, in a process in which nothing may import torch or Lightning."""
    ran = subprocess.run(
        [sys.executable, "-c", IN_A_PROCESS], input=json.dumps(jobs), cwd=folder, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    return json.loads(ran.stdout)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("part", range(6))
def test_unknown_words_kinds_grammar_and_missing_files_are_told_without_torch(things, offline, part):
    """Importing it takes most of the time that a command needs to say so."""
    rows = WITHOUT_TORCH[part::6]
    before = everything(things)
    answers = answers_without_torch([(command, on_tiny(command, line)) for command, line, *_ in rows], things)
    for (command, line, *words), (code, output) in zip(rows, answers, strict=True):
        assert code == 2, (command, line, output)
        assert_names(the_line(output), words)
    assert everything(things) == before


def slow_if_long(row: tuple[str, ...]) -> object:
    """Where other processes are started, which take seconds."""
    return pytest.param(row, marks=pytest.mark.slow) if "trainer.devices=2" in row[1] else row


def names_of(row: tuple[str, ...]) -> str:
    return " ".join(row[:2])[:80]


@pytest.mark.parametrize("row", one_in_four_quick(BEFORE_DATA_IS_READ), ids=names_of)
def test_ranges_types_and_relations_are_told_before_data_is_read_and_before_there_is_a_folder(
    row, refused, monkeypatch
):
    command, line, *words = row
    made = []
    mkdir = Path.mkdir
    monkeypatch.setattr(Path, "mkdir", lambda self, *args, **named: mkdir(self, *args, **named) or made.append(self))
    for source in (DataModule, *DataModule.__subclasses__()):
        monkeypatch.setattr(source, "read", lambda self, train: pytest.fail("images are read"))
    assert_names(refused(command, line), words)
    assert not made


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize("row", [slow_if_long(row) for row in LATER], ids=names_of)
def test_what_only_images_or_a_trainer_can_tell_leaves_no_folder(row, refused):
    command, line, *words = row
    assert_names(refused(command, line), words)


def test_the_table_names_each_mistake_once_and_says_of_each_what_and_what_instead():
    rows = [*WITHOUT_TORCH, *BEFORE_DATA_IS_READ, *LATER]
    assert len({row[:2] for row in rows}) == len(rows)
    assert {row[0] for row in rows} == set(cli.COMMANDS)
    assert all(len(row) >= 4 and all(row[2:]) for row in rows)


# Generated


def misspelt(word: str, dice: random.Random) -> str:
    place = dice.randrange(len(word))
    return dice.choice([word[:place] + word[place + 1 :], word[:place] + "q" + word[place:], word + "s"])


def generated(count: int) -> Iterator[tuple[str, str]]:
    """Commands and their arguments, each with one mistake."""
    dice = random.Random(0)
    settings = {}
    for command in cli.COMMANDS:
        cfg = Composer(command).jobs([])[0].cfg
        keys = [key for key in leaves(cfg) if not OmegaConf.is_missing(cfg, key)]
        settings[command] = {key: select(cfg, key) for key in keys if key.split(".")[0] not in ("overrides", "choices")}
    choices = {path.name: sorted(file.stem for file in path.glob("*.yaml")) for path in CONF.iterdir() if path.is_dir()}
    # where a training's settings are wrong, they are so for a search and a range test as well
    ranges = [line for command, line, *_ in BEFORE_DATA_IS_READ if command == "train" and line.startswith(SHARED)]
    made = set()
    while len(made) < count:
        command = dice.choice(cli.COMMANDS)
        key, value = dice.choice(list(settings[command].items()))
        parent, _, name = key.rpartition(".")
        group = dice.choice(sorted(choices))
        typo = ".".join(filter(None, [parent, misspelt(name, dice)]))
        lines = {
            "key": f"{typo}=1" if typo not in settings[command] else None,
            "grammar": dice.choice(["{0}=[1", "{0}=a(b", "{0}=c=d", "={0}", "{0}={{1"]).format(key)
            if plain_path(key, "[1", swept=False) == f"{key}=[1"  # not a path, which is plain text
            else None,
            "kind": f"{key}=several" if kind(value) in ("a number", "true or false") else None,
            "taken away": f"~{key}" if parent not in COLLECTIONS and key not in MAY_BE_LEFT_OUT else None,
            "null": f"{key}=null" if value is not None and (parent in COLLECTIONS or not parent) else None,
        }
        if command in TRAINERS:
            lines |= {
                "added key": f"+{typo}=1" if typo not in settings[command] else None,
                "choice": f"{group}={misspelt(dice.choice(choices[group]), dice)}",
                "number for a name": f"{group}={dice.choice([18, 0.5, 'true'])}",
                "range": dice.choice(ranges),
            }
        line = dice.choice(list(lines.values()))
        if line and (command, line) not in made:
            made.add((command, line))
            yield command, line


SHARED = ("data.", "augment.", "model", "optimizer.w", "optimizer.m", "optimizer=", "scheduler", "averaging", "seed")


@pytest.mark.quick_cases(7)
@pytest.mark.parametrize(("command", "line"), generated(COUNT))
def test_whatever_is_mistaken_gets_one_line_exit_code_two_and_leaves_nothing(command, line, refused):
    refused(command, line)


# Files that are damaged, hostile, or another's


@pytest.fixture(scope="module")
def inputs(trained, tmp_path_factory) -> list[list[str]]:
    return bad_inputs(tmp_path_factory.mktemp("bad"), trained / "checkpoints" / "best.ckpt")


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("part", range(PARTS))
def test_two_hundred_bad_inputs_get_one_line_each_run_no_code_and_leave_nothing(part, inputs, capsys, tmp_path):
    assert len(inputs) == 200
    elsewhere = Path(inputs[-1][0].partition("=")[2]).parent

    def all_files() -> set[Path]:
        # pictures that could be read are kept decoded, whatever their classes are then found to be
        return {path for path in elsewhere.rglob("*") if not path.name.startswith(".cifar_resnet_")}

    before = all_files()
    for arguments in inputs[part::PARTS]:
        code = cli.evaluate([*arguments, f"output_dir={tmp_path}/predictions"])
        captured = capsys.readouterr()
        assert code == 2, (arguments, captured)
        the_line(captured.err)
        assert captured.out == ""
        assert all_files() == before, arguments
        assert not list(tmp_path.iterdir()), arguments


def test_what_a_checkpoint_names_as_its_data_is_not_called(trained, tmp_path):
    content = torch.load(trained / "checkpoints" / "best.ckpt", weights_only=True)
    content["config"]["data"] |= {"_target_": "os.mkdir", "path": EXECUTED}
    torch.save(content, "hostile.ckpt")
    assert cli.evaluate(["checkpoint=hostile.ckpt"]) == 0
    assert cli.export(["checkpoint=hostile.ckpt", "formats=[safetensors]"]) == 0
    assert not Path(EXECUTED).exists()


@pytest.fixture
def own_run(trained) -> Path:
    return Path(shutil.copytree(trained, "own"))


def assert_named(path: Path, calls: list[tuple[str, list[str]]], capsys) -> None:
    """Each of these commands names this file, and leaves everything as it is."""
    before = everything(Path())
    for command, arguments in calls:
        assert cli.main(command, arguments) == 2
        assert path.name in the_line(capsys.readouterr().err)
    assert everything(Path()) == before


@pytest.mark.parametrize("content", ["", "{}"])
def test_a_damaged_record_is_named_by_all_that_read_it(own_run, capsys, content):
    (own_run / "result.json").write_text(content)
    calls = [
        ("report", ["own"]), ("train", ["resume=own"]), ("evaluate", ["checkpoint=."]), ("export", ["checkpoint=own"]),
    ]  # fmt: skip
    assert_named(own_run / "result.json", calls, capsys)


def test_a_damaged_table_of_epochs_is_named_before_anything_is_written(own_run, capsys):
    (own_run / "metrics.csv").write_text("epoch,train/loss\nx,y\n")
    assert_named(own_run / "metrics.csv", [("report", ["own"]), ("evaluate", ["checkpoint=own"])], capsys)


@pytest.mark.parametrize("shape", [(50, 10), (5, 10), (50,)])
def test_predictions_that_are_none_are_not_compared(own_run, trained, capsys, shape):
    log_probs = np.full(shape, np.nan if shape == (50, 10) else 0, np.float32)
    np.savez(own_run / "predictions.npz", log_probs=log_probs, labels=np.zeros(50, int), images_hash="x")
    assert cli.report(["compare", "own", str(trained)]) == 2
    line = the_line(capsys.readouterr().err)
    assert_names(line, ("not readable: own/predictions.npz", "cifar-evaluate makes a new one"))
