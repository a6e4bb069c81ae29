"""What makes short trainings short: whitening, identity initialisation, scaled rates, test-time augmentation."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY, last_of, record_of
from hydra.utils import instantiate
from torch import nn

from cifar_resnet import checkpoints, train
from cifar_resnet.command import Composer
from cifar_resnet.data import Synthetic
from cifar_resnet.models import ResNet, SpeedNet
from cifar_resnet.models.size import num_macs, num_parameters
from cifar_resnet.models.tta import log_probabilities
from cifar_resnet.models.whitening import Whitening


@pytest.fixture(scope="module")
def images() -> torch.Tensor:
    data = Synthetic(num_train=600, num_val=0)
    data.load()
    return data.sample(400)


@pytest.mark.parametrize("kernel_size", [2, 3])
def test_whitened_patches_are_uncorrelated_with_equal_variance(images, kernel_size):
    layer = Whitening(3, kernel_size, eps=0.0)
    layer.fit_to(images)
    half = 3 * kernel_size**2
    with torch.no_grad():
        out = layer(images).transpose(0, 1).flatten(1).double()
    assert layer.out_channels == 2 * half
    assert torch.equal(out[half:], -out[:half])
    second_moments = out[:half] @ out[:half].T / out.shape[1]
    assert torch.allclose(second_moments, torch.eye(half, dtype=torch.float64), atol=1e-3)


def test_a_training_fits_the_stem_to_its_images_and_leaves_it(cifar_train, run_dirs):
    small = ["model=speednet", "model.widths=[8,8,8]"]
    kept = [text for text in TINY if not text.startswith("model")]
    from cifar_resnet import train

    assert train.main([*kept, *small, "trainer.max_epochs=2"]) == 0
    (run_dir,) = run_dirs()
    data = Synthetic(num_train=240, num_val=40, batch_size=40)
    data.load()
    expected = Whitening(3, 2)
    expected.fit_to(data.sample())
    state = last_of(run_dir)["state_dict"]
    assert torch.allclose(state["whitening.weight"], expected.weight, atol=1e-5)
    assert state["whitening.bias"].abs().max() > 0  # which is learned
    assert state["stages.0.norms.0.weight"].eq(1).all()
    assert checkpoints.load(run_dir).predict(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)


def test_convolutions_start_as_the_identity(images):
    network = SpeedNet(widths=[32, 48, 48])
    for conv in (module for module in network.stages.modules() if isinstance(module, nn.Conv2d)):
        features = torch.randn(2, conv.in_channels, 6, 6)
        with torch.no_grad():
            assert torch.allclose(conv(features)[:, : conv.in_channels], features, atol=1e-6)


def test_size_of_the_recipes_network():
    with torch.device("meta"):
        network = instantiate(Composer("train").jobs(["experiment=speed94"])[0].cfg.model, _convert_="all")
        filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
        assert num_parameters(network) == filters + 24 + 2 * (64 + 256 + 256) + 2560
        maps = 961 * (12 * 24 + 9 * 24 * 64) + 225 * 9 * (64 * 64 + 64 * 256) + 49 * 9 * 256 * 256 * 2
        assert num_macs(network, (3, 32, 32)) == maps + 9 * 9 * 256 * 256 + 2560


def test_the_residual_form_adds_what_the_first_convolution_gave(images):
    network = SpeedNet(widths=[32], num_convs=3, residual=True).eval()
    stage = network.stages[0]
    with torch.no_grad():
        features = F.gelu(network.whitening(images[:4]))
        first = F.gelu(stage.norms[0](F.max_pool2d(stage.convs[0](features), 2)))
        second = F.gelu(stage.norms[1](stage.convs[1](first)))
        expected = F.gelu(stage.norms[2](stage.convs[2](second)) + first)
        assert torch.allclose(stage(features), expected)


def test_a_whitening_stem_is_an_option_of_resnets(images):
    network = ResNet(depth=8, widths=[8, 8, 8], stem="whitening")
    network.fit_to(images)
    assert network(images[:2]).shape == (2, 10)
    assert not network.conv1[0].weight.requires_grad
    with pytest.raises(ValueError, match=r"unknown model\.stem"):
        ResNet(depth=8, widths=[8, 8, 8], stem="patch")


@pytest.mark.parametrize(
    ("overrides", "answer"),
    [
        (["model=speednet", "model.whitening_size=40"], "leaves 0 pixels of 32"),
        (["model=speednet", "model.widths=[8,8,8,8,8]"], "Got 2 and 5 widths"),
        (["model=resnet20", "model.stem=whitening", "model.stem_kernel_size=33"], "of the images, of 32 pixels"),
    ],
)
def test_patches_and_pooling_that_images_are_too_small_for_are_refused(capsys, overrides, answer):
    assert train.main(["data=synthetic", *overrides]) == 2
    error = capsys.readouterr().err
    assert answer in error
    assert error.count("\n") == 1


def test_smaller_images_allow_fewer_poolings(tmp_path, capsys):
    for half, count in (("train", 20), ("test", 10)):
        pixels = np.zeros((count, 8, 8, 3), np.uint8)
        np.savez(tmp_path / f"{half}.npz", images=pixels, labels=np.arange(count) % 2)
    files = ["data=files", "data.image_size=8", f"data.train={tmp_path}/train.npz", f"data.test={tmp_path}/test.npz"]
    assert train.main([*files, "model=speednet", "model.widths=[8,8,8]"]) == 2
    assert "leaves 7 pixels of 8" in capsys.readouterr().err


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


def test_validation_and_test_ask_about_each_view(cifar_train, run_dirs, test_images):
    assert cifar_train("model.tta=flip_shift") == 0
    (run_dir,) = run_dirs()
    network = checkpoints.load(run_dir)
    assert network.tta == "flip_shift"
    images, labels = test_images(run_dir)
    with torch.no_grad():
        expected = log_probabilities(network, images, "flip_shift")
    metrics = record_of(run_dir)["metrics"]
    assert metrics["test/loss"] == pytest.approx(F.nll_loss(expected, labels).item(), rel=1e-4)
    assert metrics["test/loss"] != pytest.approx(F.cross_entropy(network(images), labels).item(), rel=1e-4)


def test_unit_filters_keep_their_norm():
    from cifar_resnet.optim import Muon

    weights = [nn.Parameter(torch.randn(8, 4, 3, 3)), nn.Parameter(torch.randn(8, 4, 3, 3) * 30)]
    optimizer = Muon(weights, lr=0.1, weight_decay=0.0, unit_filters=True)
    before = [weight.detach() / weight.norm() * 8**0.5 for weight in weights]
    for weight in weights:
        weight.grad = torch.randn_like(weight)
    optimizer.step()
    for weight, start in zip(weights, before, strict=True):
        assert 0.2 < (weight - start).norm() / 8**0.5 / 0.1 < 1.3  # a step changes this share of a layer


def test_the_record_counts_training_flops(trained):
    record = record_of(trained)
    images = 2 * (200 // 40) * 40
    assert record["training_flops"] == 6 * record["macs"] * images
