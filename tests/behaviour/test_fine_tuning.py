"""Starting from other weights, with parts frozen or at a learning rate of their own."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, last_of, record_of, weights_of
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import shufflenet_v2_x0_5

from cifar_resnet import cli, load
from cifar_resnet.data import Synthetic
from cifar_resnet.initialisation import start_from
from cifar_resnet.models import Classifier, ResNet, Wrapped

FIVE = ("data=files", "data.train=five-train.npz", "data.test=five-test.npz", "data.num_val=20", "data.batch_size=40")


@pytest.fixture
def five_classes():
    """Five of the figures, as a data set of one's own."""
    for train, count in ((True, 240), (False, 100)):
        images, labels = Synthetic(num_train=count, num_test=count, image_seed=3).read(train)
        kept = labels >= 5
        names = np.array(Synthetic.classes[5:])
        path = f"five-{'train' if train else 'test'}.npz"
        np.savez(path, images=images[kept].numpy(), labels=(labels[kept] - 5).numpy(), classes=names)


def emptied(run_dir: Path) -> Classifier:
    """The run's network, all of its weights zero."""
    network = load(run_dir)
    for tensor in network.state_dict().values():
        tensor.zero_()
    return network


def train(*overrides: str) -> dict[str, torch.Tensor]:
    """What a tiny training ends with."""
    before = set(Path("outputs").glob("*/*"))
    others = [text for text in TINY if not text.startswith("data")]
    assert cli.train([*others, *overrides, "test=false"]) == 0
    (run_dir,) = set(Path("outputs").glob("*/*")) - before
    return last_of(run_dir)["state_dict"]


def test_weights_that_know_what_is_held_out_now_are_warned_of(cifar_train, run_dirs, capsys):
    assert cifar_train("data.num_val=0") == 0
    (whole,) = run_dirs()
    capsys.readouterr()
    assert cifar_train("name=again", f"init={whole}") == 0
    told = "warning: init has been trained on some of the validation images: the same images were divided otherwise"
    assert told in capsys.readouterr().out
    for more in (["data.num_val=0"], ["data.image_seed=7"]):
        assert cifar_train("name=other", f"init={whole}", *more) == 0
        assert "warning: init" not in capsys.readouterr().out


@pytest.mark.slow
def test_weights_that_know_test_images_drawn_from_the_same_folder_are_warned_of(cifar_train, run_dirs, capsys):
    images, labels = Synthetic(num_train=240, num_test=20).read(train=True)
    for index, (image, label) in enumerate(zip(images, labels.tolist(), strict=True)):
        folder = Path("drawn", Synthetic.classes[label])
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(folder / f"{index}.png")
    own = ["data=image_folder", "data.root=drawn", "data.num_test=40", "data.num_val=20", "data.batch_size=40"]
    tiny = [text for text in TINY if not text.startswith("data")]
    assert cli.train([*tiny, *own]) == 0
    (whole,) = run_dirs()
    for seed, is_warned in ((0, False), (1, True)):
        capsys.readouterr()
        assert cli.train([*tiny, *own, f"data.split_seed={seed}", "name=again", f"init={whole}"]) == 0
        assert ("warning: init has been trained on some of the" in capsys.readouterr().out) == is_warned
    next(Path("drawn").rglob("*.png")).unlink()  # by which the others move up
    assert cli.train([*tiny, *own, "name=less", f"init={whole}"]) == 0
    assert "warning: init has been trained on some of the test images" in capsys.readouterr().out


def test_all_is_taken_but_a_classifier_of_another_number_of_classes(trained, five_classes, capsys):
    source, alone = weights_of(trained, "best"), train(*FIVE, "optimizer.lr=1e-30")
    capsys.readouterr()
    found = train(*FIVE, "optimizer.lr=1e-30", f"init={trained}")
    assert f"from {trained}; fresh: fc.weight, fc.bias, for 5 classes" in capsys.readouterr().out
    weights = [name for name in found if name.endswith(("weight", "bias"))]
    for name in weights:
        assert torch.equal(found[name], (alone if name.startswith("fc") else source)[name]), name
    assert len(found["fc.bias"]) == 5


def test_with_as_many_classes_nothing_is_fresh(trained, capsys):
    network = emptied(trained)
    text = start_from(network, trained)
    assert "fresh" not in text
    source = weights_of(trained, "best")
    assert all(torch.equal(tensor, source[name]) for name, tensor in network.state_dict().items())


def test_frozen_parts_stay_as_they_are_to_the_last_statistic(trained, five_classes):
    source = weights_of(trained, "best")
    found = train(*FIVE, f"init={trained}", "model.freeze=[conv1,bn1,stages.0]")
    for name, tensor in found.items():
        is_frozen = name.startswith(("conv1", "bn1", "stages.0"))
        assert torch.equal(tensor, source.get(name, tensor)) == is_frozen or name.startswith("fc"), name


@pytest.mark.slow
def test_networks_side_by_side_freeze_the_same_parts_and_learn_them_at_the_same_rate(trained, run_dirs):
    source = weights_of(trained, "best")
    options = [f"init={trained}", "model.freeze=[conv1,bn1]", "model.lr_factors={fc: 0.5}"]
    assert cli.train([*TINY, *options, "ensemble.size=2", "test=false"]) == 0
    assert cli.train([*TINY, *options, "seed=1", "name=alone", "test=false"]) == 0
    members = [run_dir for run_dir in run_dirs() if run_dir.name.startswith("seed-")]
    for member in members:
        found = weights_of(member, "best")
        assert torch.equal(found["conv1.weight"], source["conv1.weight"])
        assert torch.equal(found["bn1.running_mean"], source["bn1.running_mean"])
        assert not torch.equal(found["fc.weight"], source["fc.weight"])
    (alone,) = [run_dir for run_dir in run_dirs() if "alone" in run_dir.parts]
    second = weights_of(next(member for member in members if member.name == "seed-1"), "best")
    for name, tensor in weights_of(alone, "best").items():
        torch.testing.assert_close(second[name], tensor, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.slow
def test_frozen_parts_count_as_parameters_and_their_run_goes_on(trained, five_classes, crash, run_dirs):
    command = [*(text for text in TINY if not text.startswith("data")), *FIVE, f"init={trained}",
               "model.freeze=[stages]", "trainer.max_epochs=2"]  # fmt: skip
    assert cli.train(command) == 0
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        cli.train(command)
    crash(None)
    whole, broken = run_dirs()
    assert cli.train([f"resume={broken}"]) == 0
    assert record_of(whole)["parameters"] > record_of(trained)["parameters"] / 2
    first, second = (last_of(run_dir)["state_dict"] for run_dir in (whole, broken))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_that_goes_on_needs_what_it_started_from_no_more(trained, five_classes, crash, run_dirs):
    shutil.copytree(trained, "source")
    crash(1)
    with pytest.raises(RuntimeError, match="power"):
        cli.train([*(text for text in TINY if not text.startswith("data")), *FIVE, "init=source",
                   "trainer.max_epochs=2"])  # fmt: skip
    crash(None)
    shutil.rmtree("source")
    (run_dir,) = run_dirs()
    assert cli.train([f"resume={run_dir}"]) == 0
    assert record_of(run_dir)["epochs"] == 2


def test_parts_move_at_their_own_rates(trained, five_classes):
    """After one step of plain SGD a weight has moved by its rate times its gradient."""
    one = [*FIVE, "optimizer.lr=0.1", "optimizer.momentum=0", "optimizer.nesterov=false", "optimizer.weight_decay=0",
           "scheduler=constant", "trainer.limit_train_batches=1", f"init={trained}"]  # fmt: skip
    source, usual = weights_of(trained, "best"), train(*one)
    found = train(*one, "model.lr_factors={stages: 0.5, stages.2: 0.25}")
    expected = {"conv1.weight": 1, "stages.0.0.conv1.weight": 0.5, "stages.2.0.conv1.weight": 0.25}
    for name, factor in expected.items():
        moved, usually = found[name] - source[name], usual[name] - source[name]
        assert torch.allclose(moved, factor * usually, atol=1e-7), name
        assert usually.abs().max() > 1e-4


def test_rates_of_parts_and_of_biases_multiply_and_decay_stays_that_of_the_weights():
    network = ResNet(depth=8, widths=[4, 8, 8], lr_factors={"stages": 0.1}, bias_lr_factor=4.0,
                     optimizer=lambda groups: torch.optim.SGD(groups, lr=1.0, weight_decay=0.8))  # fmt: skip
    optimizer, _ = network.build_optimizer(total_steps=1)
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    rates = {names[id(p)]: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates.keys() == set(names.values())
    for name, parameter in network.named_parameters():
        factor, is_small = 0.1 if name.startswith("stages") else 1.0, parameter.ndim == 1
        assert rates[name] == pytest.approx((factor * (4 if is_small else 1), 0.2 if is_small else 0.8)), name


def test_an_exported_file_and_one_of_torchvision_are_read_as_well(trained, tmp_path, capsys):
    assert cli.export([f"checkpoint={trained}", "formats=[safetensors]", f"output={tmp_path / 'out'}"]) == 0
    network = emptied(trained)
    start_from(network, tmp_path / "out" / "model.safetensors")
    assert torch.equal(network.fc.weight, weights_of(trained, "best")["fc.weight"])

    other = shufflenet_v2_x0_5(num_classes=1000)
    save_file(other.state_dict(), "theirs.safetensors")
    wrapped = Wrapped({"_target_": "torchvision.models.shufflenet_v2_x0_5"}, num_classes=3)
    assert "fresh: net.fc.weight, net.fc.bias, for 3 classes" in start_from(wrapped, "theirs.safetensors")
    assert torch.equal(wrapped.net.conv5[0].weight, other.conv5[0].weight)


@pytest.mark.quick_cases(5)
@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["init=nowhere"], "no checkpoint. Got nowhere"),
        (["init=nowhere.safetensors"], "no such file. Got init=nowhere.safetensors"),
        (["init=broken.safetensors"], "not a readable .safetensors file. Got broken.safetensors"),
        (["init=[a,b]"], "init must be text"),
        (["init={trained}", "model.depth=14"], "lacks stages.0.1"),
        (["init={trained}", "model.widths=[4,8,16]"], "has of another shape stages.2.0"),
        (["init={trained}", "model=speednet", "model.widths=[8,8,8]"], "init must be of a network like this one"),
        (["model.freeze=[stage]"], "model.freeze names parts of the network. Got 'stage'; the parts are conv1, "),
        (["model.freeze=[conv1,bn1,stages,fc]"], "nothing would be trained. Got model.freeze="),
        (["model.lr_factors={head: 0.1}"], "model.lr_factors names parts of the network. Got 'head'"),
        (["model.lr_factors={fc: 0}"], "model.lr_factors.fc must be a number above 0"),
        (["model.freeze=conv1"], "model.freeze must be a list"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told_in_one_line_and_leaves_nothing(overrides, text, trained, capsys):
    Path("broken.safetensors").write_bytes(b"1234")
    others = [each for each in TINY if "model=speednet" not in overrides or not each.startswith("model")]
    assert cli.train([*others, *(each.replace("{trained}", str(trained)) for each in overrides)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert text in line
    assert not Path("outputs").exists()


def test_weights_that_are_no_numbers_and_a_frozen_fresh_classifier_are_refused(trained, five_classes, capsys):
    weights = {name: tensor.contiguous() for name, tensor in weights_of(trained, "best").items()}
    save_file(weights | {"conv1.weight": torch.full_like(weights["conv1.weight"], torch.nan)}, "nan.safetensors")
    assert cli.train([*TINY, "init=nan.safetensors"]) == 2
    assert "numbers that are not finite. Got conv1.weight in nan.safetensors" in capsys.readouterr().err
    others = [text for text in TINY if not text.startswith("data")]
    assert cli.train([*others, *FIVE, f"init={trained}", "model.freeze=[fc]"]) == 2
    assert "what begins anew has to be trained. Got model.freeze=['fc']" in capsys.readouterr().err
    torch.save(weights, "weights.pt")
    assert cli.train([*TINY, "init=weights.pt"]) == 2
    assert "or a .safetensors file. Got weights.pt" in capsys.readouterr().err
