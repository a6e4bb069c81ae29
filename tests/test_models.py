"""Networks against published parameter counts and torchvision's own modules."""

import pytest
import torch
import torchvision
from hydra.utils import instantiate
from torch import nn

from cifar_resnet.command import Composer
from cifar_resnet.models import ResNet
from cifar_resnet.models.size import num_macs, num_parameters

# ../shared/architectures.md: confirmed there with real modules. Option A where nothing is said of the shortcut
COUNTS = {
    "model=resnet34": (21_282_122, 1_159_402_496),
    "model=resnet20": (269_722, 40_551_040),
    "model=resnet32": (464_154, None),
    "model=resnet44": (658_586, None),
    "model=resnet56": (853_018, None),
    "model=resnet110": (1_727_962, None),
    "model=resnet20 model.shortcut=conv": (272_474, None),
    "model=resnet32 model.shortcut=conv": (466_906, None),
    "model=resnet44 model.shortcut=conv": (661_338, None),
    "model=resnet56 model.shortcut=conv": (855_770, None),
    "model=resnet110 model.shortcut=conv": (1_730_714, None),
    "model=resnet_cifar model.depth=32": (464_154, None),
    # the slim and rescaled ResNets, by overrides alone
    "model=resnet34 model.widths=[40,80,144,176] model.dropout=0.5": (4_348_082, 366_106_336),
    "model=resnet50 model.widths=[40,80,144,176] model.dropout=0.5": (4_815_794, 407_300_992),
    "model=resnet50 model.widths=[32,64,128,256] model.expansion=2": (4_196_906, 232_625_152),
    "model=resnet18 model.widths=[128,256] model.blocks=[3,3] model.stem_stride=2 model.shortcut_kernel_sizes=3": (
        4_435_082,
        453_872_128,
    ),
    "model=resnet18 model.widths=[128,256] model.blocks=[3,3] model.stem_stride=2": (4_172_938, 437_094_912),
    "model=resnet18 model.widths=[128,256] model.blocks=[3,3] model.stem_stride=2 model.shortcut_kernel_sizes=5": (
        4_959_370,
        487_426_560,
    ),
}


def build(overrides: str) -> ResNet:
    return instantiate(Composer("train").jobs(overrides.split())[0].cfg.model, num_classes=10, _convert_="all")


@pytest.mark.parametrize(("overrides", "counts"), COUNTS.items())
def test_parameters_and_multiply_adds_as_published(overrides, counts):
    parameters, macs = counts
    with torch.device("meta"):
        model = build(overrides)
        assert num_parameters(model) == parameters
        assert macs is None or num_macs(model, (3, 32, 32)) == macs


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_resnets_equal_torchvisions_with_the_cifar_stem(name):
    theirs = getattr(torchvision.models, name)(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    ours = build(f"model={name}")
    for module in theirs.modules():  # statistics that a test can tell apart
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    state = theirs.state_dict()
    assert [value.shape for value in state.values()] == [value.shape for value in ours.state_dict().values()]
    ours.load_state_dict(dict(zip(ours.state_dict(), state.values(), strict=True)))
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-3, atol=1e-3)


def test_pad_shortcut_subsamples_and_adds_empty_channels():
    images = torch.randn(2, 4, 8, 8)
    shortcut = ResNet(widths=[4, 6], blocks=[1, 1], shortcut="pad").stages[1][0].shortcut
    result = shortcut(images)
    assert torch.equal(result[:, :4], images[:, :, ::2, ::2])
    assert result.shape == (2, 6, 4, 4)
    assert result[:, 4:].eq(0).all()


def test_zero_init_makes_every_block_its_shortcut():
    model = ResNet(widths=[4, 4], blocks=[2, 1], strides=[1, 1], zero_init_last_norm=True)
    features = torch.rand(2, 4, 8, 8)
    assert torch.equal(model.stages(features), features)


def test_dropout_acts_before_the_classifier_in_training_only():
    model = ResNet(widths=[4], blocks=[1], dropout=0.5)
    images = torch.randn(2, 3, 8, 8)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_pool_size_keeps_a_map_of_that_side():
    model = ResNet(widths=[4, 8], blocks=[1, 1], pool_size=2)
    assert model.fc.in_features == 8 * 2 * 2
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "dense"}, "Got 'dense'; give basic or bottleneck"),
        ({"shortcut": "none"}, "Got 'none'; give conv or pad"),
        ({"widths": [16, 32, 64], "depth": 21}, r"must be 6n \+ 2.*Got 21; the nearest is 20"),
        ({"widths": [16, 32, 64], "depth": 2}, "the nearest is 8"),
        ({"widths": [16, 32, 64]}, "Got neither"),
        ({"widths": [16, 32], "blocks": [1, 1, 1]}, "model.blocks and model.widths must be equally long"),
        ({"widths": [16, 0], "blocks": [1, 1]}, "model.widths must be positive"),
        ({"widths": [16], "blocks": [1], "kernel_sizes": 2}, "must be odd"),
        ({"widths": [16], "blocks": [1], "pool_size": 0}, "pool_size must be positive"),
        ({"widths": [16, 8], "blocks": [1, 1], "shortcut": "pad"}, "can only add channels"),
        ({"widths": [16], "blocks": [1], "dropout": 1.0}, "Got 1.0"),
        ({"widths": [16], "blocks": [1], "num_classes": 1}, "Got 1"),
        ({"widths": [16], "blocks": [1], "label_smoothing": 1.0}, "Got 1.0"),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)


def test_weight_decay_can_spare_norm_and_bias():
    model = ResNet(widths=[4, 8], blocks=[1, 1], decay_norm_and_bias=False)
    decayed, spared = model.parameter_groups()
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    expected = {id(p) for norm in norms for p in norm.parameters()} | {id(model.fc.bias)}
    assert {id(p) for p in spared["params"]} == expected
    assert spared["weight_decay"] == 0
    assert len(decayed["params"]) + len(spared["params"]) == len(list(model.parameters()))
