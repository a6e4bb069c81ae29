"""An optimizer and a network of one's own, in a folder of one's own: nothing of this package is touched."""

import sys
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_equal, last_of, record_of, write_files
from omegaconf import OmegaConf
from PIL import Image

from cifar_resnet import checkpoints, cli, load
from cifar_resnet.build import new_data
from cifar_resnet.compose import Composer
from cifar_resnet.data import Synthetic
from cifar_resnet.models import Classifier

NETWORK = '''
from annotated_types import Ge
from torch import Tensor, nn
from typing import Annotated

from cifar_resnet.models import Classifier


class TwoLayers(Classifier):
    """One convolution, one linear layer."""

    def __init__(self, channels: Annotated[int, Ge(1)] = 8, num_classes: int = 10, **of_every_network):
        super().__init__(num_classes=num_classes, **of_every_network)
        self.conv = nn.Sequential(nn.Conv2d(3, channels, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.fc(self.conv(images))
'''
FILES = {
    "my_networks.py": NETWORK,
    "mine/model/mine.yaml": "defaults: [/classifier@_here_, _self_]\n_target_: my_networks.TwoLayers\nchannels: 4\n",
    "mine/optimizer/rmsprop.yaml": "_target_: torch.optim.RMSprop\n_partial_: true\nlr: 0.01\nmomentum: 0.5\n",
}
MINE = ("--config-dir", "mine", "optimizer=rmsprop", "model=mine")


@pytest.fixture
def own_files(tmp_path, monkeypatch):
    write_files(tmp_path, FILES)
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("my_networks", None)


def train(*overrides: str) -> int:
    return cli.train([*(text for text in TINY if not text.startswith("model")), *MINE, *overrides])


def test_they_train_evaluate_predict_and_export(own_files, run_dirs):
    assert train("optimizer.lr=0.005") == 0
    (run_dir,) = run_dirs()
    record = record_of(run_dir)
    assert record["network"] == "mine"
    assert record["parameters"] == 4 * 3 * 9 + 4 + 4 * 10 + 10
    assert record["config"]["optimizer"] == {
        "_target_": "torch.optim.RMSprop", "_partial_": True, "lr": 0.005, "momentum": 0.5,
    }  # fmt: skip

    network = load(run_dir)
    images, labels = Synthetic(num_test=50).read(train=False)
    probabilities = network.predict(images)
    assert type(network).__name__ == "TwoLayers"
    assert (probabilities.argmax(1) == labels).float().mean().item() == pytest.approx(record["metrics"]["test/acc"])
    assert torch.allclose(probabilities.sum(1), torch.ones(50))

    checkpoint = f"checkpoint={run_dir}"
    assert cli.evaluate([checkpoint, "calibrate=false"]) == 0
    assert cli.export([checkpoint, "formats=[safetensors]"]) == 0
    assert (run_dir / "export" / "model.safetensors").exists()
    Image.fromarray(images[0].permute(1, 2, 0).numpy()).save("picture.png")
    assert cli.predict([checkpoint, "input=picture.png", "output=found.csv", "top_k=1"]) == 0
    assert Synthetic.classes[probabilities[0].argmax()] in Path("found.csv").read_text()


def test_a_range_beside_its_argument_is_held_like_one_of_ours(own_files, capsys):
    assert train("model.channels=0") == 2
    assert "model.channels must be a whole number, 1 or more. Got 0" in capsys.readouterr().err
    assert train("optimizer.momentum=2") == 2
    assert "optimizer.momentum must be a number from 0 to below 1. Got 2" in capsys.readouterr().err


def test_what_their_constructors_do_not_take_is_an_unknown_key(own_files, capsys):
    assert train("+model.chanels=3") == 2
    assert "unknown key model.chanels. Did you mean model.channels?" in capsys.readouterr().err
    assert train("+optimizer.moment=0.5") == 2
    assert "unknown key optimizer.moment. Did you mean optimizer.momentum?" in capsys.readouterr().err


def test_a_resumed_run_needs_the_folder_no_more_but_to_hear_whose_code_it_may_name(own_files, run_dirs, crash, capsys):
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        train("trainer.max_epochs=2")
    crash(None)
    (run_dir,) = run_dirs()
    assert cli.train([f"resume={run_dir}"]) == 2
    assert "Got model._target_=my_networks.TwoLayers; if you trust it, add" in capsys.readouterr().err
    assert cli.train([f"resume={run_dir}", "trust=[my_networks]"]) == 0
    assert record_of(run_dir)["epochs"] == 2


def test_a_network_derived_from_one_of_ours_is_known_to_its_checkpoints(tmp_path, monkeypatch, run_dirs):
    (tmp_path / "my_resnet.py").write_text(
        "from cifar_resnet.models import ResNet\nclass Doubled(ResNet):\n"
        "    def forward(self, images):\n        return 2 * super().forward(images)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.train([*TINY, "model._target_=my_resnet.Doubled"]) == 0
    (run_dir,) = run_dirs()
    assert type(load(run_dir)).__name__ == "Doubled"
    sys.modules.pop("my_resnet")


@pytest.fixture
def own_network(tmp_path, monkeypatch):
    """Makes a network of its __init__'s signature, and what follows within it."""

    def write(signature: str, *lines: str, settings: str = "defaults: [/classifier@_here_, _self_]\n") -> list[str]:
        head = f"from cifar_resnet.models import ResNet\nclass Own(ResNet):\n    def {signature}:\n"
        write_files(tmp_path, {
            "own_nets.py": head + "".join(f"        {line}\n" for line in lines),
            "mine/model/own.yaml": f"{settings}_target_: own_nets.Own\n",
        })  # fmt: skip
        monkeypatch.syspath_prepend(tmp_path)
        return [*(text for text in TINY if not text.startswith("model")), "--config-dir", "mine", "model=own"]

    yield write
    sys.modules.pop("own_nets", None)


def test_a_network_that_could_not_be_loaded_again_is_refused_before_it_trains(own_network, run_dirs, capsys):
    made = own_network(
        "__init__(self, num_classes, optimizer, scheduler)",
        "given = dict(num_classes=num_classes, optimizer=optimizer, scheduler=scheduler)",
        "super().__init__(depth=8, widths=[4, 8, 8], **given)",
        settings="",
    )
    assert cli.train(made) == 2
    assert "Own does not take what every Classifier takes. Got no argument" in capsys.readouterr().err
    assert not run_dirs()


def test_a_networks_argument_that_no_checkpoint_could_hold_is_refused_before_it_trains(own_network, run_dirs, capsys):
    lines = ["super().__init__(depth=8, widths=[4, 8, 8], **shared)", "self.last = last"]
    settings = "defaults: [/classifier@_here_, _self_]\nlast: {_target_: torch.nn.GELU}\n"
    made = own_network("__init__(self, last, **shared)", *lines, settings=settings)
    assert cli.train(made) == 2
    assert "are plain values. Got last, an object of GELU; give it by name" in capsys.readouterr().err
    assert not run_dirs()


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["optimizer=sam"]])
def test_what_a_network_draws_of_numpy_and_python_is_drawn_again(own_network, run_dirs, send, options):
    """By a run that was stopped within an epoch, or between two; by SAM's second pass, the same as in its first."""
    lines = ["super().__init__(depth=8, widths=[4, 8, 8], **shared)", "self.drawn = []", ""]
    lines[2] = (
        "\n    def forward(self, images):"
        "\n        import random, numpy; own = random.random() + numpy.random.random()"
        "\n        self.drawn += [own] if self.training else []"
        "\n        return super().forward(images) * (1 + own * self.training)"
    )
    made = [*own_network("__init__(self, **shared)", *lines), "trainer.max_epochs=3", "trust=[own_nets]", *options]
    drawn = []
    end = Classifier.on_train_end
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Classifier, "on_train_end", lambda self: drawn.append(self.drawn) or end(self))
        assert cli.train([*made, "run_dir=whole"]) == 0
    (drawn,) = drawn
    passes = 2 if options else 1
    assert drawn[::passes] == drawn[passes - 1 :: passes]
    assert len(set(drawn)) == 15
    for step in (6, 8):
        send(step)
        assert cli.train([*made, f"run_dir=stopped-{step}"]) == 143
        send(None)
        assert cli.train([f"resume=stopped-{step}", "trust=[own_nets]"]) == 0
        assert_equal(last_of(Path(f"stopped-{step}"))["state_dict"], last_of(Path("whole"))["state_dict"])


@pytest.mark.slow
def test_data_with_a_loader_of_its_own_trains_and_says_that_its_order_begins_anew(shades, run_dirs, send, capsys):
    shades()
    source = (
        Path("shades.py").read_text()
        + """
    def train_dataloader(self):
        images, labels = self.train.images.float() / 255, self.train.labels
        pairs = torch.utils.data.TensorDataset(images, labels)
        return torch.utils.data.DataLoader(pairs, batch_size=10, shuffle=True)
"""
    )
    write_files(Path(), {"shades.py": source})
    assert cli.train([*OWN_DATA, "trainer.max_epochs=2", "run_dir=whole"]) == 0
    send(9)
    assert cli.train([*OWN_DATA, "trainer.max_epochs=2", "run_dir=stopped"]) == 143
    send(None)
    capsys.readouterr()
    assert cli.train(["resume=stopped", "trust=[shades]"]) == 0
    assert "warning: batches come from a loader of your own" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "arguments"),
    [("loss_of", ", images, logits, labels"), ("parameter_groups", ""), ("on_train_batch_start", ", batch, batch_idx")],
)
def test_networks_side_by_side_do_not_pass_over_what_is_ones_own(own_network, name, arguments, capsys):
    lines = ["super().__init__(depth=8, widths=[4, 8, 8], **shared)", f"\n    def {name}(self{arguments}):"]
    lines += [f"return super().{name}({arguments.lstrip(', ')})"]
    made = own_network("__init__(self, **shared)", *lines)
    assert cli.train([*made, "ensemble.size=2"]) == 2
    assert f"Got a {name} of Own's own; give ensemble.size=1" in capsys.readouterr().err


def test_a_metric_of_ones_own_takes_no_place_of_what_is_measured(own_network, capsys):
    lines = ["from torchmetrics import MeanMetric", "super().__init__(depth=8, widths=[4, 8, 8], **shared)"]
    made = own_network("__init__(self, **shared)", *lines, "self.val_loss = MeanMetric()")
    assert cli.train(made) == 2
    assert "Own has a layer called 'val_loss', as something of every Classifier is; re" in capsys.readouterr().err


def test_a_training_whose_every_step_sam_leaves_out_ends(own_network, run_dirs, capsys):
    """Its loss is finite, and its gradient is not a number."""
    lines = [
        "super().__init__(depth=8, widths=[4, 8, 8], **shared)", "\n    def forward(self, images):",
        "return super().forward(images) + (self.fc.weight.sum() * 0).sqrt()",
    ]  # fmt: skip
    made = own_network("__init__(self, **shared)", *lines)
    assert cli.train([*made, "optimizer=sam", "trainer.max_epochs=5"]) == 1
    error = capsys.readouterr().err
    assert "the gradients are no longer finite. Got 20 steps in a row that SAM skipped" in error
    assert "look at the network, or give " in error
    assert not list(run_dirs()[0].glob("result.json"))


def test_images_that_a_hook_makes_larger_are_counted_at_their_size(own_network, run_dirs):
    """Once the training is over, of its cost."""
    lines = [
        "super().__init__(depth=8, widths=[4, 8, 8], **shared)",
        "\n    def on_after_batch_transfer(self, batch, index):", "images, labels = batch",
        "return torch.nn.functional.interpolate(images, size=64), labels",
    ]  # fmt: skip
    made = own_network("__init__(self, **shared)", *lines)
    Path("own_nets.py").write_text(f"import torch\n{Path('own_nets.py').read_text()}")
    assert cli.train([*made, "graph=false"]) == 0
    record = record_of(run_dirs()[0])
    assert record["images_by_size"] == {"64": 200}
    assert record["training_flops"] == pytest.approx(2 * 3 * 200 * 4 * record["macs"], rel=0.01)


def test_weights_that_lightning_averages_are_those_that_are_tested(cifar_train, run_dirs, test_images):
    average = "{_target_:lightning.pytorch.callbacks.EMAWeightAveraging,decay:0.9}"
    assert cifar_train(f"+callbacks.avg={average}", "trainer.max_epochs=2") == 0
    (run_dir,) = run_dirs()
    images, labels = test_images(run_dir)
    with torch.no_grad():
        logits = load(run_dir)(images)
    found = record_of(run_dir)["metrics"]
    assert found["test/loss"] == pytest.approx(torch.nn.functional.cross_entropy(logits, labels).item(), rel=1e-4)


def test_callbacks_that_need_a_logger_say_so(cifar_train, run_dirs, capsys):
    monitor = "+callbacks.stats={_target_:lightning.pytorch.callbacks.DeviceStatsMonitor}"
    assert cifar_train("logger=none", monitor) == 2
    error = capsys.readouterr().err
    assert "callbacks.stats sends what it sees to a logger. Got logger=none; give a logger, or leave it out" in error
    assert not run_dirs()


def test_a_metric_of_ones_own_goes_on_in_the_middle_of_an_epoch(own_network, run_dirs, send, capsys):
    lines = [
        "from torchmetrics import CatMetric", "super().__init__(depth=8, widths=[4, 8, 8], **shared)",
        "self.seen = CatMetric()",
        "\n    def loss_of(self, images, logits, labels):", "self.seen.update(labels.float())",
        "return super().loss_of(images, logits, labels)",
        "\n    def on_train_epoch_end(self):", "super().on_train_epoch_end()",
        "print('seen', len(self.seen.compute()))", "self.seen.reset()",
    ]  # fmt: skip
    made = own_network("__init__(self, **shared)", *lines)
    send(3)
    assert cli.train(made) == 143
    send(None)
    assert cli.train([f"resume={run_dirs()[0]}", "trust=[own_nets]"]) == 0
    assert "seen 200\n" in capsys.readouterr().out


DATA = """
import torch
from cifar_resnet.data import DataModule

class Shades(DataModule):
    num_classes, image_size, classes = 2, 8, ["dark", "light"]

    def read(self, train):
        labels = torch.arange(80) % 2
        return {images}, labels{labels}
"""
RIGHT = "(labels[:, None, None, None] * 200 + torch.arange(64).view(8, 8) % 50).expand(-1, 3, -1, -1).to(torch.uint8)"
OWN_DATA = ["--config-dir", "mine", "data=shades", *(text for text in TINY if not text.startswith("data"))]


@pytest.fixture
def shades(tmp_path, monkeypatch):
    """Makes a data set of these images and labels, its YAML without the defaults that ours share."""

    def write(images: str = RIGHT, labels: str = "", settings: str = "batch_size: 10\nnum_val: 20\n") -> None:
        write_files(tmp_path, {
            "shades.py": DATA.format(images=images, labels=labels),
            "mine/data/shades.yaml": f"_target_: shades.Shades\n{settings}",
        })  # fmt: skip
        monkeypatch.syspath_prepend(tmp_path)

    yield write
    sys.modules.pop("shades", None)


def test_data_of_ones_own_is_drawn_by_the_runs_seed_whatever_its_yaml_says(shades, run_dirs):
    shades()
    modules = []
    for seed in (3, 4):
        (job,) = Composer("train", "mine").jobs([*OWN_DATA[2:], f"seed={seed}"])
        modules.append(new_data(job.cfg))
    assert [data.seed for data in modules] == [3, 4]


def test_what_is_trained_on_data_of_ones_own_is_evaluated_with_its_folder(shades, run_dirs, capsys):
    shades()
    assert cli.train(OWN_DATA) == 0
    (run_dir,) = run_dirs()
    capsys.readouterr()
    assert cli.evaluate([f"checkpoint={run_dir}"]) == 2
    assert "trained on data=shades; give the --config-dir that has data/shades.yaml" in capsys.readouterr().err
    assert cli.evaluate([f"checkpoint={run_dir}", "--config-dir", "mine"]) == 0


@pytest.mark.slow
def test_data_of_ones_own_may_have_classes_of_any_kind_settings_within_settings_and_a_folder(shades, run_dirs):
    shades()
    source = Path("shades.py").read_text().replace('["dark", "light"]', "(0, 1)")
    source += """
    def __init__(self, options, reader, **shared):
        super().__init__(**shared)
        assert options["within"] == {"threshold": 3} and reader == 3
"""
    settings = (
        "defaults: [/datamodule@_here_, _self_]\n_target_: shades.Shades\nbatch_size: 10\nnum_val: 20\n"
        "options: {within: {threshold: 3}}\nreader: {_target_: fractions.Fraction, numerator: 3}\n"
    )
    write_files(Path(), {"shades.py": source, "mine/data/light/shades.yaml": settings})
    given = [text for text in OWN_DATA if text != "data=shades"]
    assert cli.train([*given, "data=light/shades"]) == 0
    (run_dir,) = run_dirs()
    assert load(run_dir, trust=["shades"]).data_state["classes"] == ["0", "1"]
    assert cli.evaluate([f"checkpoint={run_dir}", "--config-dir", "mine"]) == 0


def test_no_checkpoint_says_what_is_called_within_settings():
    own = OmegaConf.create(
        {"_target_": "mine.Data", "reader": {"_target_": "mine.Reader", "path": "a"}, "options": {"x": 1}, "steps": [1]}
    )
    theirs = {
        "_target_": "os.mkdir",
        "path": {"_target_": "os.getcwd"},
        "reader": {"_target_": "os.system", "path": "b"},
        "options": {"_target_": "os.system"},
        "steps": [{"_target_": "os.system"}],
    }
    checkpoints.restore_data(own, {"config": {"data": theirs}})
    reader = {"_target_": "mine.Reader", "path": "b"}
    assert own == {"_target_": "mine.Data", "reader": reader, "options": {"x": 1}, "steps": [1]}


@pytest.mark.parametrize(
    ("images", "labels", "told"),
    [
        (f"{RIGHT}.float()", "", "must give images as torch.uint8 of (80, 3, 8, 8). Got torch.float32"),
        (f"{RIGHT}[:, :1]", "", "must give images as torch.uint8 of (80, 3, 8, 8). Got torch.uint8 of (80, 1, 8, 8)"),
        (f"{RIGHT}.repeat(1, 1, 2, 2)", "", "Got torch.uint8 of (80, 3, 16, 16); mend it, or its image_size"),
        (RIGHT, ".int()", "must give labels as torch.int64 of (80,). Got torch.int32"),
        (RIGHT, " + 1", "must give labels from 0 to 1. Got [2]"),
    ],
)
def test_data_of_ones_own_that_is_not_what_it_must_be_is_refused_before_training(
    images, labels, told, shades, run_dirs, capsys
):
    shades(images, labels)
    assert cli.train(OWN_DATA) == 2
    assert told in capsys.readouterr().err
    assert not run_dirs()


@pytest.mark.slow
def test_a_way_of_ones_own_to_learn_from_a_teacher(tmp_path, monkeypatch, trained, run_dirs):
    (tmp_path / "my_teaching.py").write_text(
        "from cifar_resnet.models import Distillation\nclass Ignored(Distillation):\n"
        "    def __call__(self, images, logits, loss):\n        return loss\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert cli.train([*TINY, f"distill.teacher={trained}", "distill._target_=my_teaching.Ignored"]) == 0
    assert cli.train([*TINY, f"distill.teacher={trained}", "distill.weight=0"]) == 0
    losses = [record_of(run_dir)["metrics"]["train/loss"] for run_dir in run_dirs()]
    assert losses[0] == losses[1]
