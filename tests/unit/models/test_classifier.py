"""What every network shares: groups of parameters, a budget, and predictions."""

import contextlib
import inspect
import re

import numpy as np
import pytest
import torch
from helpers import assert_equal
from PIL import Image
from torch import nn

from cifar_resnet import load
from cifar_resnet.compose import Composer
from cifar_resnet.data import Synthetic
from cifar_resnet.errors import UsageError
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models import ResNet
from cifar_resnet.models.summary import num_parameters


def test_budget_says_by_how_much():
    model = ResNet(widths=[4], blocks=[1], max_params=100)
    with pytest.raises(
        ValueError, match=rf"Got {num_parameters(model):,} parameters, {num_parameters(model) - 100:,} too"
    ):
        model.check_budget()
    ResNet(widths=[4], blocks=[1], max_params=num_parameters(model)).check_budget()


def test_weight_decay_can_spare_norm_and_bias():
    model = ResNet(widths=[4, 8], blocks=[1, 1], decay_norm_and_bias=False)
    decayed, spared = model.parameter_groups()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = {id(p) for norm in norms for p in norm.parameters()} | {id(model.fc.bias)}
    assert {id(p) for p in spared["params"]} == expected
    assert spared["weight_decay"] == 0
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "muon", "sam"])
def test_biases_and_norms_learn_at_their_own_rate_and_decay_no_faster(optimizer):
    decay = "optimizer.other_weight_decay=0.01" if optimizer == "muon" else "optimizer.weight_decay=0.01"
    cfg = Composer("train").jobs([f"optimizer={optimizer}", "optimizer.lr=0.01", decay, "model=resnet20"])[0].cfg
    for factor in (1.0, 8.0):
        recipe = {"optimizer": cfg.optimizer, "scheduler": cfg.scheduler, "bias_lr_factor": factor}
        model = instantiate(cfg.model, **recipe, _convert_="all")
        built, schedule = model.build_optimizer(total_steps=10)
        rates = {id(p): group["lr"] for group in built.param_groups for p in group["params"]}
        assert len(rates) == len(list(model.parameters()))
        base = rates[id(model.fc.weight)]
        (rate,) = {rates[id(p)] for p in model.parameters() if p.ndim <= 1}
        assert rate == pytest.approx(base * factor)
        decays = {id(p): group["lr"] * group["weight_decay"] for group in built.param_groups for p in group["params"]}
        assert decays[id(model.bn1.bias)] == pytest.approx(decays[id(model.fc.weight)])
        assert decays[id(model.fc.weight)] == pytest.approx(base * 0.01)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        built.step()
        schedule.step()
        moved = {id(p): group["lr"] for group in built.param_groups for p in group["params"]}
        assert moved[id(model.bn1.bias)] == pytest.approx(moved[id(model.fc.weight)] * factor)


def test_predict_asks_about_the_views_that_the_network_was_tested_with(trained):
    network = load(trained)
    images, _ = Synthetic(num_test=10).read(train=False)
    mirrored = (network.predict(images) + network.predict(images.flip(3))) / 2
    network.tta = "flip"
    assert torch.allclose(network.predict(images), mirrored, atol=1e-6)


def test_predict_takes_images_of_any_size_and_layout(trained):
    network = load(trained)
    images, _ = Synthetic(num_test=20).read(train=False)
    probabilities = network.predict(images)
    assert probabilities.shape == (20, 10)
    assert torch.allclose(probabilities.sum(1), torch.ones(20), atol=1e-5)
    assert torch.allclose(network.predict(images.permute(0, 2, 3, 1).numpy()), probabilities, atol=1e-6)
    large = images.repeat_interleave(3, 2).repeat_interleave(3, 3)
    assert (network.predict(large) - probabilities).abs().max() < 0.2
    grey = Image.new("L", (40, 50), 99)
    assert network.predict(np.asarray(grey)[None]).shape == (1, 10)
    with pytest.raises(ValueError, match="whole numbers from 0 to 255"):
        network.predict(images / 255)


@pytest.mark.parametrize(
    "shape", [(40, 50, 3), (40, 50, 4), (40, 50, 2), (3, 40, 50), (4, 40, 50), (40, 50), (40, 3072)]
)
def test_one_picture_is_no_stack_of_grey_ones(trained, shape):
    pixels = np.random.default_rng(0).integers(256, size=shape, dtype=np.uint8)
    for images in (pixels, torch.from_numpy(pixels)):
        with pytest.raises(ValueError, match=rf"one picture, or .*Got {re.escape(str(shape))} in .*images\[None\]"):
            load(trained).predict(images)


def test_a_few_grey_pictures_with_their_channel_are_beyond_doubt(trained):
    network = load(trained)
    grey = np.random.default_rng(0).integers(256, size=(3, 32, 32), dtype=np.uint8)
    expected = network.predict(np.stack([grey] * 3, axis=3))
    assert torch.equal(network.predict(grey[..., None]), expected)
    assert torch.equal(network.predict(grey[:, None]), expected)
    assert torch.equal(network.predict(np.concatenate([grey, grey]))[:3], expected)


def test_predict_looks_at_a_batch_at_a_time(trained):
    network, seen = load(trained), []
    images, _ = Synthetic(num_test=26).read(train=False)
    large = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    for given in (images, large, images[:, 0]):
        at_once = network.predict(given)
        with noting_batches(network, seen):
            by_batch = network.predict(given, batch_size=8)
        assert torch.allclose(by_batch, at_once, atol=1e-6)
        assert seen == [8, 8, 8, 2]  # two grey ones at the end are no picture of two channels
        seen.clear()
    assert inspect.signature(network.predict).parameters["batch_size"].default <= 500


@contextlib.contextmanager
def noting_batches(network, seen):
    """Within this, the sizes of the batches that the network sees are noted."""
    hook = network.register_forward_pre_hook(lambda module, args: seen.append(len(args[0])))
    yield
    hook.remove()


def test_a_network_without_a_checkpoint_cannot_know_what_its_images_mean():
    network = ResNet(depth=8, widths=[4, 8, 8])
    with pytest.raises(ValueError, match="use load"):
        network.predict(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))


def test_lightnings_own_way_to_load_gives_a_network_that_predicts(trained):
    path = trained / "checkpoints" / "best.ckpt"
    images, _ = Synthetic(num_test=20).read(train=False)
    network = ResNet.load_from_checkpoint(path, weights_only=True).eval()
    assert torch.equal(network.predict(images), load(path).predict(images))
    assert_equal(network.data_state, load(path).data_state)


def test_a_network_without_an_optimizer_says_so_when_it_is_to_be_trained(trained):
    with pytest.raises(UsageError, match=r"Got ResNet with optimizer=None; give what makes one"):
        load(trained).build_optimizer(total_steps=1)
    network = ResNet(depth=8, widths=[4, 4, 4], optimizer=lambda parameters: 7)
    with pytest.raises(UsageError, match=r"must make a torch.optim.Optimizer of parameters. Got int from"):
        network.build_optimizer(total_steps=1)


@pytest.mark.parametrize(
    ("forward", "message"),
    [
        (lambda self, images: images.mean((2, 3)), r"must return logits, \(1, 10\) for one image.*Got \(1, 3\)"),
        (lambda self, images: None, r"must return logits, .*Got NoneType; mend its forward"),
        (lambda self, images: images.nothing, r"cannot take images of 32 pixels. Got: .*nothing.*; mend its forward"),
    ],
)
def test_a_network_that_gives_no_logits_is_refused_before_training(forward, message):
    network = type("Own", (ResNet,), {"forward": forward})(depth=8, widths=[4, 4, 4])
    with pytest.raises(ValueError, match=message):
        network.check_image_size(32)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("config", {"width": 4}, r"an attribute called 'config', which a training sets for its own use; rename it"),
        ("seed", 3, r"an attribute called 'seed', which a training sets"),
        ("loss", torch.nn.functional.cross_entropy, r"an attribute called 'loss', as a method of every Classifier is"),
    ],
)
def test_attributes_that_hide_or_would_be_overwritten_are_refused(name, value, message):
    network = ResNet(depth=8, widths=[4, 4, 4])
    setattr(network, name, value)
    with pytest.raises(ValueError, match=message):
        network.check_unset()


def weighing(weights: list[float], smoothing: float) -> tuple[ResNet, torch.Tensor, torch.Tensor]:
    """A network whose loss weighs four classes so, with logits and labels for it."""
    model = ResNet(widths=[4], blocks=[1], num_classes=4, class_weights=weights, label_smoothing=smoothing)
    model.weigh_classes(torch.tensor([5.0, 5.0, 5.0, 5.0]))
    return model, torch.randn(9, 4), torch.tensor([0, 1, 2, 3, 3, 1, 0, 0, 2])


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_classes_weigh_in_the_loss_as_a_plain_loop_has_them(smoothing):
    weights = [0.5, 2.0, 0.0, 3.0]
    model, logits, labels = weighing(weights, smoothing)
    total = whole = 0.0
    for row, label in zip(logits.log_softmax(1), labels, strict=True):
        # torch spreads the smoothed share over all classes, each by its weight
        spread = sum(weights[each] * -row[each].item() for each in range(4)) * smoothing / 4
        total += (1 - smoothing) * weights[label] * -row[label].item() + spread
        whole += weights[label]
    assert model.loss_of(None, logits, labels).item() == pytest.approx(total / whole, rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_mixed_images_weigh_as_those_they_are_made_of(smoothing):
    weights = [50.0, 200.0, 0.0, 300.0]
    model, logits, labels = weighing(weights, smoothing)
    expected = model.loss_of(None, logits, labels).item()
    one_hot = torch.nn.functional.one_hot(labels, 4).float()
    assert model.loss_of(None, logits, one_hot).item() == pytest.approx(expected, rel=1e-5)
    mixed = 0.3 * one_hot + 0.7 * one_hot.roll(1, 0)
    share = (mixed @ torch.tensor(weights)).sum().item()
    smoothed = mixed * (1 - smoothing) + smoothing / 4
    by_hand = -(smoothed * torch.tensor(weights) * logits.log_softmax(1)).sum().item() / share
    assert model.loss_of(None, logits, mixed).item() == pytest.approx(by_hand, rel=1e-5)


def test_a_batch_of_classes_that_weigh_nothing_teaches_nothing():
    model = ResNet(widths=[4], blocks=[1], num_classes=3, class_weights=[1, 0, 0])
    model.weigh_classes(torch.tensor([5.0, 5.0, 5.0]))
    logits = torch.randn(4, 3, requires_grad=True)
    loss = model.loss_of(None, logits, torch.tensor([1, 2, 2, 1]))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_balanced_weights_are_scikit_learns():
    model = ResNet(widths=[4], blocks=[1], num_classes=3, class_weights="balanced")
    counts = [2, 8, 5]
    model.weigh_classes(torch.tensor(counts).double())
    assert model.loss_weights.tolist() == pytest.approx([15 / (3 * count) for count in counts])
    assert "loss_weights" not in model.state_dict()


@pytest.mark.parametrize(
    ("weights", "counts", "text"),
    [
        ("balanced", [1.0, 0.0, 2.0], "needs images of each class. Got none of class 1"),
        ([1.0, 2.0], [1.0, 1.0, 2.0], r"are of each of the 3 classes, not all 0. Got \[1.0, 2.0\]"),
        ([0.0, 0.0, 0.0], [1.0, 1.0, 2.0], "not all 0"),
    ],
)
def test_weights_that_cannot_be_are_refused(weights, counts, text):
    model = ResNet(widths=[4], blocks=[1], num_classes=3, class_weights=weights)
    with pytest.raises(ValueError, match=text):
        model.weigh_classes(torch.tensor(counts).double())
    with pytest.raises(UsageError, match="class_weights must be"):
        ResNet(widths=[4], class_weights="even")


@pytest.mark.slow
def test_a_run_weighs_its_classes_and_networks_side_by_side_do_too(cifar_train, run_dirs):
    weighed = ["model.class_weights=[1,0,0,0,0,0,0,0,0,0]", "trainer.max_epochs=3"]
    assert cifar_train(*weighed) == 0
    assert cifar_train(*weighed, "ensemble.size=2", "name=two") == 0
    for run_dir in run_dirs():
        if (run_dir / "predictions.npz").exists():
            predicted = np.load(run_dir / "predictions.npz")["log_probs"].argmax(1)
            assert (predicted == 0).mean() > 0.9
