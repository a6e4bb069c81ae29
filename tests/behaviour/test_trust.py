"""A stranger's run folder: whatever its files name, no command runs code that its user has not named."""

import shutil
import sys
from pathlib import Path

import pytest
import torch
from behaviour.bad_inputs import EXECUTED
from helpers import TINY, record_of
from omegaconf import OmegaConf
from PIL import Image

from cifar_resnet import cli
from cifar_resnet.trust import KNOWN, check_targets, is_trusted

TRAP = {"_target_": "os.makedirs", "name": EXECUTED}
GET_TRAP = {"_target_": "hydra.utils.get_method", "path": "os.makedirs"}
# what a hostile config.yaml holds, by what it tries
HOSTILE = {
    "a callback": {"callbacks": {"x": TRAP}},
    "a logger": {"logger": {"x": TRAP}},
    "a group": {"averaging": TRAP},
    "a group in place of ours": {"augment": TRAP},
    "torch.load": {"callbacks": {"x": {"_target_": "torch.load", "f": "evil.pt", "weights_only": False}}},
    "torch.hub.load": {"callbacks": {"x": {"_target_": "torch.hub.load", "repo_or_dir": ".", "source": "local"}}},
    "within what is known": {"scheduler": {"end_factor": TRAP}},
    "within the optimizer": {"optimizer": {"lr": TRAP}},
    "deep within": {"model": {"widths": [8, {"deeper": [TRAP]}]}},
    "a positional argument": {"callbacks": {"x": {"_target_": "cifar_resnet.callbacks.Progress", "_args_": [TRAP]}}},
    "for a callback of Lightning's to call": {
        "callbacks": {
            "x": {"_target_": "lightning.pytorch.callbacks.LambdaCallback", "setup": {**TRAP, "_partial_": True}}
        }
    },
    "looked up by Hydra": {"scheduler": {"_target_": "torch.optim.lr_scheduler.LambdaLR", "lr_lambda": GET_TRAP}},
    "looked up by position": {"trainer": {"x": {"_target_": "hydra.utils.get_object", "_args_": ["os.makedirs"]}}},
    "called by Hydra": {"callbacks": {"x": {"_target_": "hydra.utils.instantiate", "config": {"a": 1}}}},
    "imported by a module of ours": {"callbacks": {"x": TRAP | {"_target_": "cifar_resnet.runs.os.makedirs"}}},
    "a function of ours that writes": {
        "callbacks": {"x": {"_target_": "cifar_resnet.runs.write_atomically", "path": EXECUTED, "text": ""}}
    },
    "imported by a module of torch's": {"callbacks": {"x": TRAP | {"_target_": "torch.optim.sgd.torch.load"}}},
    "Lightning's command line": {"callbacks": {"x": {"_target_": "lightning.pytorch.cli.LightningCLI"}}},
    "an interpolated name": {"name": "os.makedirs", "callbacks": {"x": {"_target_": "${name}", "name": EXECUTED}}},
    "decoded by a resolver": {"callbacks": {"x": f"${{oc.decode:'{{_target_: os.makedirs, name: {EXECUTED}}}'}}"}},
    "created by a resolver": {"logger": {"x": f"${{oc.create:{{_target_: os.makedirs, name: {EXECUTED}}}}}"}},
    "no text": {"callbacks": {"x": {"_target_": ["os", "makedirs"], "name": EXECUTED}}},
    "itself trusted": {"trust": ["os"], "callbacks": {"x": TRAP}},
}


def assert_refused(command: list[str], capsys) -> str:
    assert cli.train(command) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "names what is called only if you name it too: code that is neither this project's nor" in line
    assert "if you trust it, add" in line
    assert not Path(EXECUTED).exists()
    return line


def poisoned(run_dir: Path, settings: dict) -> None:
    """Put these into its config.yaml, and into its checkpoints' and its record's configuration."""
    path = run_dir / "config.yaml"
    cfg = OmegaConf.merge(OmegaConf.load(path), settings)
    path.write_text(OmegaConf.to_yaml(cfg))


@pytest.fixture
def strange(trained) -> Path:
    run_dir = Path(shutil.copytree(trained, "strange"))
    (run_dir / "result.json").unlink()
    return run_dir


@pytest.mark.quick_cases(7)
@pytest.mark.parametrize("case", HOSTILE)
def test_resume_builds_nothing_that_only_a_strangers_file_names(case, strange, capsys):
    poisoned(strange, HOSTILE[case])
    before = {path: path.stat().st_mtime_ns for path in strange.rglob("*")}
    assert_refused([f"resume={strange}"], capsys)
    assert {path: path.stat().st_mtime_ns for path in strange.rglob("*")} == before


def test_what_is_ours_torchs_or_lightnings_goes_on(cifar_train, run_dirs, crash):
    crash(1)
    own = [
        "+callbacks.stats={_target_: lightning.pytorch.callbacks.Timer}",
        "+logger.csv={_target_: lightning.pytorch.loggers.CSVLogger, save_dir: logs}",
        "optimizer=sam", "averaging=ema",
    ]  # fmt: skip
    with pytest.raises(RuntimeError, match="power"):
        cifar_train("trainer.max_epochs=2", *own)
    crash(None)
    (run_dir,) = run_dirs()
    assert cli.train([f"resume={run_dir}"]) == 0
    assert record_of(run_dir)["epochs"] == 2


@pytest.mark.slow
def test_the_other_commands_that_take_a_run_folder_or_a_checkpoint_build_nothing_of_it(trained, capsys):
    """Nor does a sweep's folder, or a teacher's."""
    run_dir = Path("sweep", "strange")
    shutil.copytree(trained, run_dir)
    poisoned(run_dir, {"data": TRAP, "model": TRAP, "callbacks": {"x": TRAP}, "optimizer": TRAP})
    for path in run_dir.glob("checkpoints/*.ckpt"):
        content = torch.load(path, weights_only=True)
        content["config"] |= {"model": TRAP, "callbacks": {"x": TRAP}, "optimizer": TRAP, "trainer": TRAP}
        content["config"]["data"] |= TRAP
        torch.save(content, path)
    Image.new("RGB", (32, 32)).save("picture.png")
    for path in (run_dir, run_dir.parent, run_dir / "checkpoints" / "last.ckpt"):
        assert cli.evaluate([f"checkpoint={path}", "calibrate=false", "output_dir=found"]) == 0
        assert cli.predict([f"checkpoint={path}", "input=picture.png", "output=found.csv"]) == 0
    assert cli.export([f"checkpoint={run_dir}", "formats=[safetensors]"]) == 0
    assert cli.report([str(run_dir.parent)]) == 0
    assert cli.train([*TINY, f"distill.teacher={run_dir}", "test=false"]) == 0
    assert not Path(EXECUTED).exists()


@pytest.mark.slow
def test_folders_that_a_command_finds_again_are_held_to_what_the_command_names(cifar_train, run_dirs, crash, capsys):
    """A sweep's jobs and what resume=auto goes on with; settings that decide on no result are not even compared."""
    crash(1)
    auto = ["resume=auto", "run_dir=mine", "trainer.max_epochs=2"]
    with pytest.raises(RuntimeError, match="power"):
        cifar_train(*auto)
    sweep = ["-m", "seed=0,1", "trainer.max_epochs=2"]
    assert cifar_train(*sweep) == 1
    crash(None)
    for run_dir in (*run_dirs(), Path("mine")):
        poisoned(run_dir, {"logger": {"x": TRAP}})
    capsys.readouterr()
    assert_refused([*TINY, *auto], capsys)
    assert cifar_train(*sweep) == 1
    assert capsys.readouterr().out.count("if you trust it, add") >= 2
    assert not Path(EXECUTED).exists()


@pytest.mark.slow
def test_so_are_an_ensemble_and_a_search(cifar_train, capsys):
    command = [*TINY, "ensemble.size=2"]
    assert cli.train(command) == 0
    (folder,) = Path("outputs/train").glob("ensemble-*")
    (folder / "seed-1" / "result.json").unlink()
    poisoned(folder / "seed-0", {"logger": {"x": TRAP}})
    capsys.readouterr()
    assert_refused(command, capsys)
    search = [*TINY, "search.rounds=1", "search.trials=1"]
    assert cli.search(search) == 0
    (trial,) = Path("outputs/search").glob("*/000-*")
    for name in ("result.json", "../trials.log"):
        (trial / name).unlink()
    poisoned(trial, {"logger": {"x": TRAP}})
    cli.search(search)
    assert not Path(EXECUTED).exists()


# What the user names


MODULE = """
from os import makedirs
from lightning.pytorch import Callback

class Mine(Callback):
    pass
"""


@pytest.fixture
def begun_with_own(tmp_path, monkeypatch, cifar_train, run_dirs, crash) -> Path:
    """A run of two epochs with a callback of one's own from a folder of one's own, stopped after the first."""
    (tmp_path / "my_callbacks.py").write_text(MODULE)
    (tmp_path / "mine" / "callbacks").mkdir(parents=True)
    text = "defaults: [default, _self_]\nmine: {_target_: my_callbacks.Mine}\n"
    (tmp_path / "mine" / "callbacks" / "own.yaml").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train("--config-dir", "mine", "callbacks=own", "trainer.max_epochs=2")
    crash(None)
    yield run_dirs()[0]
    sys.modules.pop("my_callbacks", None)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "naming", [["trust=[my_callbacks]"], ["trust=[my_callbacks.Mine]"], ["--config-dir", "mine"]], ids=" ".join
)
def test_code_of_ones_own_is_named_where_its_run_is_resumed(begun_with_own, naming, capsys):
    line = assert_refused([f"resume={begun_with_own}"], capsys)
    assert 'callbacks.mine._target_=my_callbacks.Mine; if you trust it, add "trust=[my_callbacks]"' in line
    assert cli.train([f"resume={begun_with_own}", *naming]) == 0
    assert record_of(begun_with_own)["epochs"] == 2


def test_a_module_that_is_trusted_is_trusted_with_its_own_and_not_with_what_it_imports(begun_with_own, capsys):
    poisoned(begun_with_own, {"callbacks": {"x": TRAP | {"_target_": "my_callbacks.makedirs"}}})
    line = assert_refused([f"resume={begun_with_own}", "trust=[my_callbacks]"], capsys)
    assert "callbacks.x._target_=my_callbacks.makedirs" in line
    assert "callbacks.mine" not in line


@pytest.mark.parametrize("name", ["cifar_resnet.cli.train", "cifar_resnet.models", "torch.optim.sgd.F.x", "torch.load",
                                  "lightning.pytorch.Trainer.fit", "lightning.pytorch.loggers.WandbLogger", "Trainer",
                                  "cifar_resnet.data.sources.os.mkdir", "xcifar_resnet.models.ResNet", ""])  # fmt: skip
def test_names_that_are_not_known(name):
    assert not KNOWN.fullmatch(name)


@pytest.mark.parametrize(
    ("name", "expected"),
    [("torchvision.models.resnet18", True), ("torchvision.models.resnet.ResNet", True), ("torch.nn.Linear", True),
     ("torchvision.models.resnet.partial", False), ("torchvision.io.read_file", False), ("torch.load", False)],
)  # fmt: skip
def test_of_a_library_its_own_networks_are_known_and_not_what_their_modules_import(name, expected):
    assert is_trusted(name) is expected


def test_all_that_our_own_choices_build_is_known():
    from cifar_resnet.compose import CONF
    from cifar_resnet.trust import named_in_files

    assert len(named_in_files([CONF])) > 30
    # what has no default, and what sends what it gets to somebody
    others = {"???", "lightning.pytorch.loggers.WandbLogger", "lightning.pytorch.loggers.MLFlowLogger"}
    assert {name for name in named_in_files([CONF]) if not KNOWN.fullmatch(name)} == others
    check_targets(OmegaConf.create({"a": [{"_target_": "torch.optim.SGD"}]}), Path("config.yaml"), [], [])
