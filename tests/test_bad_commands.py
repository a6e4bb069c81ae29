"""Generated mistakes: each gets one line that names what was given, exit code 2, and leaves nothing behind.

BAD_COMMANDS=300 pytest tests/test_bad_commands.py                      # the long form
COLD=1 BAD_COMMANDS=300 pytest --durations=20 tests/test_bad_commands.py   # each a process of its own, and the slowest
"""

import os
import random
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from conftest import TINY
from omegaconf import OmegaConf

from cifar_resnet import design, evaluate, export, find_lr, predict, report, search, train
from cifar_resnet.command import COLLECTIONS, CONF, MAY_BE_LEFT_OUT, Composer, kind, leaves, select

COUNT = int(os.environ.get("BAD_COMMANDS", "20"))
COLD = "COLD" in os.environ
COMMANDS = {
    "train": train, "find_lr": find_lr, "search": search, "design": design,
    "evaluate": evaluate, "predict": predict, "export": export, "report": report,
}  # fmt: skip
TRAINERS = ("train", "find_lr", "search")
TAKES_A_CHECKPOINT = ("evaluate", "predict", "export")

OUT_OF_RANGE = [
    "data.batch_size=0", "data.batch_size=-5", "data.eval_batch_size=0", "data.num_val=-1", "data.num_val=1e9",
    "ensemble.size=0", "data.split_seed=-1", "data.num_train=3", "data.mean=[0,0,0] data.std=[0,1,1]", "seed=-1",
    "model.depth=21", "model.depth=0", "model.widths=[]", "model.widths=[4,8,-8]", "model.dropout=1.5",
    "model.label_smoothing=1.0", "model.drop_block=-0.5", "model.stochastic_depth=2.0", "model.kernel_sizes=4",
    "model.block=wide", "model.shortcut=none", "model.stem=patch", "model.tta=twice", "model.max_params=10",
    "model.bias_lr_factor=-1", "model.squeeze_excitation=-2", "model.pool_size=0", "model.strides=[1,2]",
    "scheduler.warmup_fraction=2", "scheduler.end_factor=-1", "scheduler=one_cycle scheduler.shape=round",
    "scheduler=one_cycle scheduler.peak_fraction=3", "scheduler=one_cycle scheduler.max_lr=-1",
    "optimizer.lr=-0.1", "optimizer.momentum=-1", "optimizer.weight_decay=-1", "optimizer=sam optimizer.rho=-1",
    "optimizer=muon optimizer.momentum=1", "optimizer=adam optimizer.betas=[2,0.9]",
    "augment.crop_padding=-1", "augment.crop_padding=99", "augment.cutout_size=-4", "augment.flip=sideways",
    "augment.cutout_probability=7", "augment.policy=randomness", "augment.mixing=blender",
    "averaging=ema averaging.decay=2", "trainer.max_epochs=0", "trainer.max_epochs=-1",
    "trainer.accelerator=abacus", "trainer.gradient_clip_algorithm=scissors trainer.gradient_clip_val=1",
    "precision=16-mixed", "precision.float32_matmul=most", "callbacks.finite_loss.every_n_steps=0",
    "optimizer.lr=nan", "optimizer.lr=inf", "optimizer.lr=null", "name=../elsewhere", "name=/",
    "callbacks.augmented_batch.num_images=0", "distill.teacher=[] distill.weight=0.5",
]  # fmt: skip
IMPOSSIBLE = {
    "train": [
        "resume=RUN seed=3", "resume=nowhere", "run_dir=RUN", "-m resume=RUN seed=0,1", "-m trainer.devices=2 seed=0,1",
        "optimizer.lr=0.1,0.2", "-m optimizer.lr=interval(0,1)", "trainer.limit_val_batches=0",
        "optimizer=sam trainer.devices=2", "hydra.run.dir=there", "--nonsense", "--config-dir nowhere",
        "distill.teacher=nowhere", "distill.teacher=CUT", "data.num_val=230",
    ],
    "find_lr": [
        "range_test.steps=0", "range_test.suggest=best", "range_test.min_lr=3 range_test.max_lr=1", "resume=RUN",
    ],
    "search": [
        "search.method=luck", "search.trials=0", "search.narrow=0", "data.num_val=0", "optimizer.lr=0.1", "-m seed=0",
    ],
    "design": ["max_params=5", "max_params=-1", "max_params=1e6 stages=[]", "max_params=lots", "max_params=1e6 keep=0"],
    "evaluate": ["checkpoint=RUN tta=often", "checkpoint=RUN data=files data.test=nowhere", "checkpoint=[]"],
    "predict": [
        "checkpoint=RUN input=nowhere", "checkpoint=RUN input=PICTURE top_k=0",
        "checkpoint=RUN input=PICTURE output=a.txt",
    ],
    "export": ["checkpoint=RUN formats=[tflite]", "checkpoint=nowhere"],
    "report": ["nowhere", "compare RUN", "compare RUN nowhere", "RUN pivot=[seed]", "RUN pivot=[seed,wings]"],
}  # fmt: skip
DAMAGED = [
    "data=files data.train=BROKEN.npz data.test=BROKEN.npz", "data=files data.train=FLOATS.npz data.test=FLOATS.npz",
    "data=files data.train=TRAP.pkl data.test=TRAP.pkl", "data=image_folder data.root=HALF",
    "data=image_folder data.root=nowhere", "data=cifar10 data.root=CIFAR",
]  # fmt: skip
SORTS = [
    "key", "added key", "choice", "type", "range", "impossible", "damaged", "checkpoint", "taken away", "null",
    "number for a name", "grammar",
]  # fmt: skip


def misspelt(word: str, dice: random.Random) -> str:
    place = dice.randrange(len(word))
    return dice.choice([word[:place] + word[place + 1 :], word[:place] + "q" + word[place:], word + "s"])


def generated(count: int) -> Iterator[tuple[str, str]]:
    """Commands and their arguments, each with one mistake."""
    dice = random.Random(0)
    keys = {}
    for command in COMMANDS:
        cfg = Composer(command).jobs([])[0].cfg
        keys[command] = {key: select(cfg, key) for key in leaves(cfg) if not OmegaConf.is_missing(cfg, key)}
    groups = sorted(path.name for path in CONF.iterdir() if path.is_dir())
    made = set()
    while len(made) < count:
        command = dice.choice(list(COMMANDS))
        key = dice.choice([key for key in keys[command] if key.split(".")[0] not in ("overrides", "choices")])
        parent, _, name = key.rpartition(".")
        typo = ".".join(filter(None, [parent, misspelt(name, dice)]))
        sort = dice.choice(SORTS)
        line = None
        if sort == "key" and typo not in keys[command]:
            line = f"{typo}=1"
        elif sort == "added key" and typo not in keys[command] and command in TRAINERS:
            line = f"+{typo}=1"
        elif sort == "choice" and command in TRAINERS:
            group = dice.choice(groups)
            line = f"{group}={misspelt(dice.choice(sorted((CONF / group).glob('*.yaml'))).stem, dice)}"
        elif sort == "type" and kind(keys[command][key]) in ("a number", "true or false"):
            line = f"{key}=several"
        elif sort == "taken away" and parent not in COLLECTIONS and key not in MAY_BE_LEFT_OUT:
            line = f"~{key}"
        elif sort == "null" and (parent in COLLECTIONS or not parent) and keys[command][key] is not None:
            line = f"{key}=null"
        elif sort == "number for a name" and command in TRAINERS:
            line = f"{dice.choice(groups)}={dice.choice([18, 0.5, 'true'])}"
        elif sort == "grammar":
            line = dice.choice(["{0}=[1", "{0}=a(b", "{0}=c=d", "={0}", "{0}", "{0}={{1"]).format(key)
        elif sort == "range" and command in TRAINERS:
            line = dice.choice(OUT_OF_RANGE)
        elif sort == "impossible":
            line = dice.choice(IMPOSSIBLE[command])
        elif sort == "damaged" and command in TRAINERS:
            line = dice.choice(DAMAGED)
        elif sort == "checkpoint" and command in TAKES_A_CHECKPOINT:
            line = f"checkpoint={dice.choice(['CUT', 'OTHER', 'EMPTY', 'nowhere', 'HALF'])} input=PICTURE"
            line = line if command == "predict" else line.split()[0]
        if line and (command, line) not in made:
            made.add((command, line))
            yield command, line


@pytest.fixture(scope="module")
def things(sweep_dir, tmp_path_factory) -> dict[str, str]:
    """What the placeholders stand for: a good run, and damaged files."""
    folder = tmp_path_factory.mktemp("things")
    good = (sweep_dir / "seed-0" / "checkpoints" / "best.ckpt").read_bytes()
    (folder / "cut.ckpt").write_bytes(good[:5000])
    (folder / "empty.ckpt").write_bytes(b"")
    torch.save({"net": torch.zeros(3)}, folder / "other.ckpt")
    (folder / "broken.npz").write_bytes(b"PK\x03\x04broken")
    np.savez(folder / "floats.npz", images=np.zeros((9, 32, 32, 3)), labels=np.arange(9))
    (folder / "trap.pkl").write_bytes(b"cposix\nmkdir\n(S'executed'\ntR.")
    (folder / "half" / "train" / "cat").mkdir(parents=True)
    (folder / "cifar" / "cifar-10-batches-py").mkdir(parents=True)
    (folder / "cifar" / "cifar-10-batches-py" / "test_batch").write_bytes(b"damaged")
    (folder / "picture.png").write_bytes(b"no picture")
    names = {
        "CUT": "cut.ckpt", "EMPTY": "empty.ckpt", "OTHER": "other.ckpt", "HALF": "half", "CIFAR": "cifar",
        "BROKEN.npz": "broken.npz", "FLOATS.npz": "floats.npz", "TRAP.pkl": "trap.pkl", "PICTURE": "picture.png",
    }  # fmt: skip
    return {name: str(folder / file) for name, file in names.items()} | {"RUN": str(sweep_dir / "seed-0")}


@pytest.fixture
def offline(monkeypatch):
    """The network is not there, and says so at once."""

    def refuse(*arguments, **options):
        raise URLError(socket.gaierror(-2, "no network"))

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setenv("https_proxy", "http://offline.invalid")  # of a process of its own
    monkeypatch.setattr("cifar_resnet.data.sources.time.sleep", lambda seconds: None)


def everything(folder: Path) -> set[str]:
    return {str(path) for path in folder.rglob("*")}


def test_what_is_wrong_with_settings_and_files_is_told_before_torch_is_imported(things, offline):
    """Which takes most of the time that a command needs to say so."""
    later = ("model.max_params=10", "precision=16-mixed", "trainer.accelerator=abacus")
    lines = [line for line in OUT_OF_RANGE if line not in later] + DAMAGED
    jobs = [on_tiny(placed(line, things)) for line in lines]
    script = f"""
import sys
from cifar_resnet import limits
from cifar_resnet.command import Composer, UsageError
for overrides in {jobs}:
    try:
        (job,) = Composer("train").jobs(overrides)
        limits.check(job.cfg, files=True)
    except (UsageError, ValueError, OSError):
        assert not {{"torch", "lightning"}} & sys.modules.keys(), overrides
    else:
        print(overrides)
"""
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (ran.returncode, ran.stdout, ran.stderr) == (0, "", "")


def placed(line: str, things: dict[str, str]) -> list[str]:
    for name, path in things.items():
        line = line.replace(name, path)
    return line.split()


def on_tiny(arguments: list[str]) -> list[str]:
    """These, and of `TINY` what they leave open."""
    given = {text.partition("=")[0] for text in arguments}
    left = [text for text in TINY if text.partition("=")[0] not in given]
    if "data" in given:
        left = [text for text in left if not text.startswith("data")]
    return [*left, *arguments]


def answer_of(command: str, arguments: list[str], capsys) -> tuple[int, str, str]:
    if COLD:
        module = COMMANDS[command].__name__
        ran = subprocess.run([sys.executable, "-m", module, *arguments], capture_output=True, text=True)
        return ran.returncode, ran.stdout, ran.stderr
    try:
        code = COMMANDS[command].main(arguments)
    except SystemExit as ended:
        code = ended.code
    return code, *capsys.readouterr()


@pytest.mark.parametrize(("command", "line"), generated(COUNT))
def test_one_line_exit_code_two_and_nothing_left(command, line, things, offline, capsys, tmp_path):
    arguments = placed(line, things)
    if command in TRAINERS and not any(text.startswith("resume=") for text in arguments):
        arguments = on_tiny(arguments)
    elsewhere = Path(things["CUT"]).parent
    before = everything(tmp_path) | everything(elsewhere)
    code, out, err = answer_of(command, arguments, capsys)
    complaint = [text for text in err.splitlines() if not text.startswith("skipped: ")]
    assert code == 2, (arguments, out, err)
    assert len(complaint) == 1, err
    assert complaint[0].startswith("error: ")
    assert 20 < len(complaint[0]) < 600
    assert "Traceback" not in out + err
    assert everything(tmp_path) | everything(elsewhere) == before
