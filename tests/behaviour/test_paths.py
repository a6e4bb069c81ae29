"""Files and folders of any name: every command takes them as plain text, and what is printed can be pasted."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
from helpers import TINY, record_of
from PIL import Image

from cifar_resnet import cli
from cifar_resnet.compose import Composer
from cifar_resnet.data import Synthetic

ODD = "größe (1) [x]{y}~&;'#,=$ %?"


def run(line: str) -> int:
    program, *arguments = shlex.split(line)
    return cli.main(program.removeprefix("cifar-").replace("-", "_"), arguments)


@pytest.fixture
def odd_run(trained) -> str:
    return shutil.copytree(trained, f"run {ODD}")


def test_every_command_that_takes_a_run_takes_one_of_any_name(odd_run, capsys):
    assert cli.evaluate([f"checkpoint={odd_run}", "calibrate=false", f"output_dir=found {ODD}"]) == 0
    assert Path(f"found {ODD}", "evaluation.json").exists()
    assert cli.export([f"checkpoint={odd_run}/checkpoints/last.ckpt", "formats=[safetensors]", f"output=ex {ODD}"]) == 0
    assert Path(f"ex {ODD}", "model.safetensors").exists()
    assert cli.train([f"resume={odd_run}"]) == 0
    out = capsys.readouterr().out
    assert "finished before" in out
    assert f"run folder  {odd_run}\n" in out  # where it is now
    assert cli.report([odd_run, f"output=report {ODD}"]) == 0
    assert cli.report(["compare", odd_run, odd_run]) == 0
    assert cli.train([*TINY, f"distill.teacher={odd_run}", "dry_run=true", f"output_dir={ODD}", f"name={ODD}"]) == 0


def test_pictures_of_any_name_are_predicted_alone_in_folders_and_in_lists(trained):
    Path(f"in {ODD}").mkdir()
    for name in (ODD, "2024", "null", "写真"):
        Image.new("RGB", (32, 32)).save(f"in {ODD}/{name}.png")
    shutil.copy(f"in {ODD}/2024.png", "2024")
    for given, count in ((f"in {ODD}", 4), (f"in {ODD}/{ODD}.png", 1), (f"['in {ODD}',2024]".replace("'#", "\\'#"), 5)):
        assert cli.predict([f"checkpoint={trained}", f"input={given}", f"output=out {ODD}.csv"]) == 0
        assert len(Path(f"out {ODD}.csv").read_text().splitlines()) == count + 1


def test_a_run_begun_stopped_and_continued_under_odd_names_by_the_printed_command(crash, capsys):
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        cli.train([*TINY, f"output_dir=out {ODD}", f"name=a/{ODD}", "trainer.max_epochs=2"])
    crash(None)
    (line,) = re.findall(r"to continue: (.*)", capsys.readouterr().out)
    assert run(line) == 0
    (run_dir,) = Path(f"out {ODD}", "a", ODD).iterdir()
    assert record_of(run_dir)["epochs"] == 2
    assert cli.train([*TINY, f"run_dir={run_dir}"]) == 2
    (advice,) = re.findall(r"to continue it, (.*)", capsys.readouterr().err)
    assert run(f"cifar-train {advice}") == 0


@pytest.mark.slow
def test_data_of_any_name_are_swept_over_and_a_list_stays_one(capsys):
    images, labels = Synthetic(num_train=120).read(train=True)
    for name in ("größe", "it's", "test"):
        np.savez(f"{name}.npz", images=images.numpy(), labels=labels.numpy())
    own = [text for text in TINY if not text.startswith("data")]
    command = [*own, "data=files", "data.test=test.npz", "data.batch_size=20", "data.num_val=20"]
    assert cli.train(["-m", *command, "data.train=größe.npz,it's.npz"]) == 0
    assert len(list(Path("outputs").rglob("result.json"))) == 2
    (job,) = Composer("predict").jobs(["checkpoint=a", "input=[a,b]"])
    assert list(job.cfg.input) == ["a", "b"]


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("name", ["inf", "nan", "2024", "1e3", "true"])
def test_a_name_is_a_text_whatever_it_looks_like(name, capsys):
    assert cli.train([*TINY, f"name={name}"]) == 0
    (run_dir,) = [path.parent for path in Path("outputs", name).rglob("result.json")]
    assert record_of(run_dir)["name"] == name
    assert f"outputs/{name}/" in capsys.readouterr().out


def test_a_folder_of_ones_own_choices_may_have_any_name():
    folder = Path(f"mine {ODD}", "optimizer")
    folder.mkdir(parents=True)
    (folder / "own.yaml").write_text("_target_: torch.optim.RMSprop\n_partial_: true\nlr: 0.01\n")
    assert cli.train(["--config-dir", str(folder.parent), *TINY, "optimizer=own", "dry_run=true"]) == 0


def test_a_report_of_folders_that_look_like_settings(trained, monkeypatch, capsys):
    shutil.copytree(trained, "lr=0.1")
    assert cli.report(["lr=0.1"]) == 0
    assert cli.report(["compare", "lr=0.1", "lr=0.1"]) == 0


@pytest.mark.slow
def test_a_search_keeps_its_trials_in_a_folder_of_any_name_and_prints_a_command_that_can_be_pasted(capsys):
    one = ["search.rounds=1", "search.trials=1", "optimizer.lr=interval(0.01,0.1)", "trainer.max_epochs=1"]
    assert cli.search([*TINY, *one, f"output_dir=out {ODD}"]) == 0
    assert [path.parts[0] for path in Path().rglob("trials.log")] == [f"out {ODD}"]
    (line,) = re.findall(r"^cifar-train .*", capsys.readouterr().out, re.MULTILINE)
    assert run(line + " dry_run=true") == 0


def test_the_configuration_is_printed_and_words_completed_beside_odd_paths(monkeypatch, capsys):
    assert cli.train([f"data.root={ODD}", "--cfg", "job"]) == 0
    assert f"root: {ODD}" in capsys.readouterr().out
    monkeypatch.setenv("COMP_LINE", f"cifar-train {shlex.quote(f'data.root={ODD}')} trainer.max_e")
    assert cli.train(["-sc", "query=bash"]) == 0
    assert capsys.readouterr().out.split() == ["trainer.max_epochs="]


@pytest.mark.slow
def test_where_no_curves_were_written_none_are_recommended(cifar_train, capsys):
    assert cifar_train("~logger.tensorboard", "~callbacks.learning_rate") == 0
    assert "tensorboard" not in capsys.readouterr().out
    assert cifar_train("-m", "~logger.tensorboard", "~callbacks.learning_rate", "seed=0,1") == 0
    assert "tensorboard" not in capsys.readouterr().out.replace("~logger.tensorboard", "")
    assert cifar_train() == 0
    assert "look next   tensorboard --logdir outputs/train" in capsys.readouterr().out
