"""Every command in the README and in docs/ runs: trainings on a tiny network and data set."""

import os
import pickle
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from helpers import TINY
from PIL import Image

import cifar_resnet
from cifar_resnet import cli
from cifar_resnet.build import sketch
from cifar_resnet.compose import Composer
from cifar_resnet.constraints import check_config
from cifar_resnet.data import Synthetic

ROOT = Path(cifar_resnet.__file__).parents[1]
FILES = (
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    *sorted((ROOT / "docs").glob("*.md")),
)
PAGES = {path: path.read_text() for path in FILES}
BLOCKS = re.findall(r"```(bash|python)\n(.*?)```", "\n".join(PAGES.values()), re.DOTALL)
SCRIPTS = [block for kind, block in BLOCKS if kind == "bash" and block.startswith("#!")]
LINES = "".join(block for kind, block in BLOCKS if kind == "bash" and block not in SCRIPTS).replace("\\\n", " ")
COMMANDS = list(dict.fromkeys(filter(None, (line.split("  #")[0].strip() for line in LINES.splitlines()))))
# what it takes to run these is in the tests of launchers and of several processes
ENGINES = {"joblib": "hydra_joblib_launcher", "submitit_slurm": "hydra_submitit_launcher", "ray": "hydra_ray_launcher"}
OF_CIFAR = ("data=cifar10", "data=corrupted", "ood=[cifar100")  # for its classes and images: see test_shifted.py
STARTED_BY = ("hydra/launcher=", "trainer.devices=")


def lines_of(*programs: str) -> list[str]:
    return [line for line in COMMANDS if line.split()[0] in programs]


TRAININGS, DESIGNS = lines_of("cifar-train"), lines_of("cifar-design")
LEARNING_RATES = lines_of("cifar-find-lr", "cifar-search")
ABOUT_RUNS = lines_of("cifar-evaluate", "cifar-predict", "cifar-report", "cifar-export")
OTHERS = [line for line in COMMANDS if line not in (*TRAININGS, *DESIGNS, *LEARNING_RATES, *ABOUT_RUNS)]
SHORT_TEST = ["range_test.steps=40", "range_test.probe_steps=20"]
DATA = ("data=", "data.root=", "data.image_size=", "data.num_val=", "data.batch_size=", "trainer.max_epochs=", "model=")


def run(program: str, arguments: list[str]) -> int:
    try:
        return cli.main(program.removeprefix("cifar-").replace("-", "_"), arguments)
    except SystemExit as ended:  # Hydra's way of ending --help
        return ended.code


def trained_small(line: str, run_dir: Path | None) -> list[str]:
    """The command's arguments, with the network, the data and the length of the training cut down."""
    arguments = shlex.split(line.replace("outputs/train/<run folder>", str(run_dir)))[1:]
    if {"--help", "--cfg"} & set(arguments) or any("resume=" in text and text != "resume=auto" for text in arguments):
        return arguments
    is_wrapped = "model=wrapped" in arguments  # whose network is its own
    same = ("data.num_val=0", "model=wrapped")
    kept = [argument for argument in arguments if not argument.startswith(DATA) or argument in same]
    depths = [argument for argument in kept if argument.startswith("model.depth=")]
    given = {text.split("=")[0] for text in kept}
    tiny = [setting for setting in TINY if setting.split("=")[0] not in given]
    tiny = [setting for setting in tiny if not is_wrapped or not setting.startswith("model")]
    tiny += SHORT_TEST if "scheduler.max_lr=auto" in arguments else []
    kept = [re.sub(r"range\(0,\d+\)", "range(0,2)", text) for text in kept if text not in depths]
    return [*kept, *tiny, *(["model.depth=8,14"] if depths else [])]


def composes(arguments: list[str]) -> None:
    """Whether a command's arguments are understood, where it takes several processes to run it."""
    for launcher in (text.partition("=")[2] for text in arguments if text.startswith("hydra/launcher=")):
        pytest.importorskip(f"hydra_plugins.{ENGINES[launcher]}")
    in_sweep = "-m" in arguments
    assert Composer().jobs([text for text in arguments if text != "-m"], multirun=in_sweep)


@pytest.mark.slow
@pytest.mark.parametrize("line", TRAININGS)
def test_cifar_train_lines_run(line, cifar_train, run_dirs):
    if "timm." in line:
        pytest.importorskip("timm")
    if any(word in line for word in STARTED_BY):
        composes(shlex.split(line)[1:])
        return
    if "<run folder>" in line:
        cifar_train()
    before = run_dirs()
    assert run("cifar-train", trained_small(line, before[0] if before else None)) == 0


# which name no folder, and nothing that is not installed everywhere
AS_TYPED = [
    line for line in TRAININGS if not any(word in line for word in ("<", "=pets", "files", "resume", "wrapped", "--"))
]


@pytest.mark.slow
@pytest.mark.parametrize("line", AS_TYPED)
def test_what_cifar_train_lines_describe_can_be_built_as_typed(line):
    arguments = [text for text in shlex.split(line)[1:] if not text.startswith(("hydra/launcher", "hydra.launcher"))]
    job, *_ = Composer().jobs([text for text in arguments if text != "-m"], multirun="-m" in arguments)
    sketch(job.cfg)


@pytest.mark.parametrize("line", DESIGNS)
def test_cifar_design_lines_run(line):
    assert run("cifar-design", [*shlex.split(line)[1:], "blocks_per_stage=[2]", "blocks=[basic]"]) == 0


@pytest.mark.slow
@pytest.mark.parametrize("line", LEARNING_RATES)
def test_learning_rate_lines_run(line):
    program, *arguments = shlex.split(line)
    short = ["search.rounds=1", "search.trials=2"] if program == "cifar-search" else SHORT_TEST
    kept = [argument for argument in arguments if not argument.startswith(("model=", "search.trials="))]
    kept = [re.sub(r"(search.target)=.*", r"\1=0.01", argument) for argument in kept]
    given = {argument.split("=")[0] for argument in kept}
    assert run(program, [*kept, *(text for text in TINY if text.split("=")[0] not in given), *short]) == 0


@pytest.fixture
def own_pictures():
    """What the pages' commands are given to look at."""
    images, _ = Synthetic(num_test=20).read(train=False)
    for folder in ("photos", "my_test_set/ring", "my_test_set/star"):
        Path(folder).mkdir(parents=True)
        Image.fromarray(images[0].permute(1, 2, 0).numpy()).save(f"{folder}/1.png")
    Path("test_nolabels.pkl").write_bytes(pickle.dumps({"data": images.flatten(1).numpy()}))


@pytest.mark.slow
@pytest.mark.parametrize("line", ABOUT_RUNS)
def test_lines_about_finished_runs_run(line, sweep_dir, own_pictures):
    for name in ("train", "five", "folds"):
        shutil.copytree(sweep_dir, f"outputs/{name}/sweep")
    folders = {"<sweep folder>": "sweep", "<run folder>": "sweep/seed-0", "<other run folder>": "sweep/seed-1"}
    for name, folder in folders.items():
        line = line.replace(name, folder)
    program, *arguments = shlex.split(line)
    if any(word.startswith(OF_CIFAR) for word in arguments):
        (job,) = Composer("evaluate").jobs(arguments)
        check_config(job.cfg)
        return
    assert run(program, arguments) == 0


@pytest.mark.parametrize("line", OTHERS)
def test_other_lines_name_what_exists(line, monkeypatch):
    words = shlex.split(line)
    if words[0] == "make":
        subprocess.run(["make", "-n", *words[1:]], cwd=ROOT, check=True, capture_output=True)
    elif words[0] == "tensorboard":
        assert Path(sys.executable).with_name("tensorboard").exists() or shutil.which("tensorboard")
    elif words[0] == "python":
        script = ROOT / words[1]
        monkeypatch.setattr(sys, "argv", [str(script), "--help"])
        monkeypatch.syspath_prepend(script.parent)
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(script), run_name="__main__")
        assert ended.value.code == 0
    elif words[:3] == ["pip", "install", "-e"]:
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert re.fullmatch(r"\.\[(\w+)\]", words[3])[1] in extras
    elif words[0] in ("torchrun", "srun"):
        start = next(place for place, word in enumerate(words) if word in ("cifar-train", "cifar_resnet.train"))
        composes(words[start + 1 :])
    elif words[0] == "sbatch":
        wrapped = [text.partition("cifar-train ")[2] for text in words if text.startswith("--wrap=")]
        composes(shlex.split(wrapped[0]) if wrapped else words[2:])
    else:
        assert words == ["source", ".venv/bin/activate"]


def test_scripts_parse_and_call_our_commands():
    assert SCRIPTS
    for script in SCRIPTS:
        subprocess.run(["bash", "-n"], input=script, text=True, check=True)
        for command in re.findall(r"\bcifar-[a-z-]+", script):
            assert Path(sys.executable).with_name(command).exists(), command


@pytest.mark.slow
@pytest.mark.parametrize("example", [block for kind, block in BLOCKS if kind == "python"])
def test_python_examples_run(example):
    exec(example.replace('"trainer.max_epochs=1"', ", ".join(map(repr, TINY))), {})


@pytest.mark.slow
def test_the_notebook_runs(monkeypatch):
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    monkeypatch.setenv("PATH", str(Path(sys.executable).parent), prepend=os.pathsep)
    notebook = nbformat.read(ROOT / "docs" / "first_hour.ipynb", as_version=4)
    nbformat.validate(notebook)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    (settings,) = (cell for cell in notebook.cells if "EPOCHS =" in cell.source and cell.cell_type == "code")
    small = ["data=synthetic", "data.num_train=600", "data.num_test=50", "data.num_val=100"]
    whole = '["data=synthetic"], data.Synthetic(num_test=500), 4'
    assert whole in settings.source
    settings.source = settings.source.replace(whole, f"{small!r}, data.Synthetic(num_test=50), 1")
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": "."}}).execute()
    told = "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()))
    assert "error:" not in told
    assert len(list(Path("outputs").rglob("result.json"))) == 4


def test_the_workflow_and_the_hook_run_what_is_there():
    workflow = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())
    (job,) = workflow["jobs"].values()
    assert job["steps"][-1]["run"] == "bash .ci/run"
    assert (ROOT / ".ci" / "run").exists()
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    subprocess.run([*hooks[0]["entry"].split(), "-n"], cwd=ROOT, check=True, capture_output=True)


def anchors(page: str) -> set[str]:
    """What its headings are called in links, as GitHub does it."""
    headings = re.findall(r"(?m)^#+ (.*)$", re.sub(r"(?s)```.*?```", "", page))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_links_lead_somewhere(page):
    for link in re.findall(r"\]\(([^)]+)\)", PAGES[page]):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.exists(), link
        assert not anchor or anchor in anchors(PAGES[target]), link


def test_the_readme_is_short():
    assert len(PAGES[ROOT / "README.md"].splitlines()) <= 200


def test_promised_commands_are_there():
    assert "make quickstart" in COMMANDS
    assert "make test" in COMMANDS
    assert len(TRAININGS) >= 8
