"""Networks that know nothing of this package, through every command."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, last_of, record_of, write_files
from PIL import Image
from safetensors.torch import load_file

from cifar_resnet import cli, load, trust
from cifar_resnet.data import Synthetic
from cifar_resnet.models import Wrapped

PLAIN = """
from torch import nn

class Plain(nn.Module):
    def __init__(self, width, outputs=10):
        super().__init__()
        conv = nn.Conv2d(3, width, 3, 2)
        self.layers = nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, width, 3, 2))
        self.head = nn.Linear(width, outputs)
        self.progress = "a name that means something else to ours"

    def forward(self, images):
        return self.head(self.layers(images).mean((2, 3)))

def number(num_classes):
    return num_classes

class Heads(Plain):
    def forward(self, images):
        found = super().forward(images)
        return (found, found) if self.training else found

class Twice(Plain):
    def __init__(self, width, num_classes):
        super().__init__(width, num_classes)
        self.again = self.layers[3]

def fetched(num_classes, pretrained=False):
    if pretrained:
        open("fetched", "a").write("once ")
    return Plain(4, num_classes)
"""
ALONE = [text for text in TINY if not text.startswith("model")]
OWN = ["model=wrapped", "model.net._target_=their_networks.Plain", "+model.net.width=6", "model.classes_as=outputs"]
TORCHVISION = ["model=wrapped", "model.net._target_=torchvision.models.shufflenet_v2_x0_5"]


@pytest.fixture(autouse=True)
def their_networks(tmp_path, monkeypatch):
    write_files(tmp_path, {"their_networks.py": PLAIN})
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("their_networks", None)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("network", "trusting"), [(OWN, ["trust=[their_networks]"]), (TORCHVISION, [])], ids=["own", "torchvision"]
)
def test_it_trains_resumes_evaluates_predicts_and_exports(network, trusting, crash, run_dirs, capsys):
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        cli.train([*ALONE, *network, "trainer.max_epochs=2"])
    crash(None)
    (run_dir,) = run_dirs()
    assert cli.train([f"resume={run_dir}", *trusting]) == 0
    record = record_of(run_dir)
    assert record["network"] == "wrapped"
    assert record["epochs"] == 2
    checkpoint = [f"checkpoint={run_dir}", *trusting]
    assert cli.evaluate([*checkpoint, "calibrate=false"]) == 0
    assert f"{record['metrics']['test/acc']:.2%} of 50 images" in capsys.readouterr().out
    images, _ = Synthetic(num_test=50).read(train=False)
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save("picture.png")
    assert cli.predict([*checkpoint, "input=picture.png", "output=found.csv", "top_k=1"]) == 0
    assert cli.export([*checkpoint, "formats=[safetensors,torch]"]) == 0
    found = load(run_dir, trust=["their_networks"]).predict(images)
    assert Synthetic.classes[found[0].argmax()] in Path("found.csv").read_text()


def test_what_the_network_is_made_of_is_shown_part_by_part(capsys):
    assert cli.train([*ALONE, *OWN, "dry_run=true"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    parts = {words[0]: words for words in lines if words}
    assert parts["net.layers.0"][6] == f"{3 * 9 * 6 + 6}"
    assert parts["net.head"][2] == f"{6 * 10 + 10}"


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("command", ["evaluate", "predict", "export"])
def test_a_checkpoint_has_nothing_imported_that_nobody_has_named(command, run_dirs, capsys):
    assert cli.train([*ALONE, *OWN]) == 0
    (run_dir,) = run_dirs()
    sys.modules.pop("their_networks")
    capsys.readouterr()
    Image.new("RGB", (32, 32)).save("picture.png")
    inputs = ["input=picture.png", "output=found.csv"] if command == "predict" else []
    assert getattr(cli, command)([f"checkpoint={run_dir}", *inputs]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "names what is called only if you name it too: code that is neither this project's nor" in line
    assert "Got net._target_=" in line
    assert line.endswith('if you trust it, add "trust=[their_networks]"')
    assert "their_networks" not in sys.modules


@pytest.mark.slow
def test_nor_has_one_of_a_network_derived_from_ours(tmp_path, run_dirs, capsys):
    (tmp_path / "their_resnet.py").write_text(
        "from cifar_resnet.models import ResNet\nclass Theirs(ResNet):\n    pass\n"
    )
    assert cli.train([*TINY, "model._target_=their_resnet.Theirs"]) == 0
    (run_dir,) = run_dirs()
    content = last_of(run_dir)
    content["architecture"] = "another_module.Theirs"
    torch.save(content, run_dir / "checkpoints" / "best.ckpt")
    (tmp_path / "another_module.py").write_text("from their_resnet import ResNet\nclass Theirs(ResNet):\n    pass\n")
    capsys.readouterr()
    assert cli.evaluate([f"checkpoint={run_dir}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a checkpoint of a network that is not in this package. Got another_module.Theirs in" in line
    assert line.endswith('if you trust it, add "trust=[another_module]"')
    assert "another_module" not in sys.modules
    assert cli.evaluate([f"checkpoint={run_dir}", "trust=[another_module]", "calibrate=false"]) == 0
    for name in ("their_resnet", "another_module"):
        sys.modules.pop(name)


@pytest.mark.slow
def test_an_installed_package_can_say_that_its_modules_are_meant(tmp_path, monkeypatch, run_dirs):
    assert cli.train([*ALONE, *OWN]) == 0
    (run_dir,) = run_dirs()
    write_files(tmp_path / "theirs-1.0.dist-info", {
        "METADATA": "Metadata-Version: 2.1\nName: theirs\nVersion: 1.0\n",
        "entry_points.txt": "[cifar_resnet]\nnetworks = their_networks\n",
    })  # fmt: skip
    trust.installed.cache_clear()
    try:
        assert cli.evaluate([f"checkpoint={run_dir}", "calibrate=false"]) == 0
    finally:
        trust.installed.cache_clear()


def test_trained_weights_are_fetched_once_and_not_again_for_a_checkpoint(run_dirs):
    fetched = ["model=wrapped", "model.net._target_=their_networks.fetched", "+model.net.pretrained=true"]
    assert cli.train([*ALONE, *fetched, "test=false"]) == 0
    before = Path("fetched").read_text()
    (run_dir,) = run_dirs()
    load(run_dir, trust=["their_networks"])
    assert Path("fetched").read_text() == before


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["model=wrapped"], "model.net._target_ has no default. Give it: model.net._target_=…"),
        (["model=wrapped", "model.net._target_=nowhere.Net"], "_target_ names a class or a function. Got nowhere.Net"),
        ([*OWN[:2], "model.classes_as=outputs"], "width"),
        ([*OWN, "+model.net.depth=3"], "unknown key model.net.depth."),
        ([*OWN[:3]], "model.classes_as names the argument that is told the number of classes, or is null"),
        (["model=wrapped", "model.net._target_=their_networks.number"], "model.net makes a torch.nn.Module. Got int"),
        ([*OWN[:3], "model.classes_as=null", "+model.net.outputs=7"], "must return logits, (1, 10)"),
        ([*TORCHVISION, "+model.net.weights=DEFAULT"], "num_classes"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(overrides, text, capsys):
    assert cli.train([*ALONE, *overrides]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert not Path("outputs").exists()


def test_heads_for_training_alone_are_refused_before_anything_is_written(capsys):
    assert cli.train([*ALONE, "model=wrapped", "model.net._target_=their_networks.Heads", *OWN[2:]]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "must return logits in training too, (2, 10) for two images. Got tuple" in line
    assert not Path("outputs").exists()


def test_the_number_of_classes_is_not_to_be_given(capsys):
    assert cli.train([*ALONE, *OWN, "+model.net.outputs=7"]) == 2
    assert "the data says how many classes there are: 10. Got model.net.outputs=7" in capsys.readouterr().err


def test_parts_that_share_their_weights_are_exported_under_each_name(run_dirs):
    network = ["model=wrapped", "model.net._target_=their_networks.Twice", "+model.net.width=4"]
    assert cli.train([*ALONE, *network]) == 0
    (run_dir,) = run_dirs()
    assert cli.export([f"checkpoint={run_dir}", "formats=[safetensors]", "trust=[their_networks]"]) == 0
    found = load_file(next(run_dir.rglob("model.safetensors")))
    assert torch.equal(found["net.again.weight"], found["net.layers.3.weight"])


def test_what_a_part_shares_with_a_frozen_one_does_not_move():
    network = Wrapped(net={"_target_": "their_networks.Twice", "width": 4}, freeze=["net.again"],
                      lr_factors={"net.again": 0.5}, optimizer=torch.optim.SGD)  # fmt: skip
    shared = network.net.layers[3].weight
    assert not any(shared is each for group in network.parameter_groups() for each in group["params"])
    network.freeze_parts = ()
    (group,) = [group for group in network.parameter_groups() if any(shared is each for each in group["params"])]
    assert group["lr_factor"] == 0.5


def test_the_command_that_goes_on_says_whose_code_it_trusts(crash, run_dirs, capsys):
    crash(0)
    with pytest.raises(RuntimeError, match="power"):
        cli.train([*ALONE, *OWN])
    (run_dir,) = run_dirs()
    assert f'{run_dir.name} "trust=[their_networks]"' in capsys.readouterr().out


def test_whose_code_is_trusted_does_not_set_an_evaluation_apart(run_dirs):
    assert cli.train([*ALONE, *OWN]) == 0
    (run_dir,) = run_dirs()
    assert cli.evaluate([f"checkpoint={run_dir}", "trust=[their_networks]", "calibrate=false"]) == 0
    assert not list(run_dir.glob("evaluation-trust*"))
