"""Networks against published parameter counts and torchvision's own modules."""

import pytest
import torch
import torchvision
from hydra.utils import instantiate
from torch import nn

from cifar_resnet.command import Composer
from cifar_resnet.models import PyramidNet, ResNet
from cifar_resnet.models.size import num_macs, num_parameters, parts

# ../shared/architectures.md: confirmed there with real modules. Option A where nothing is said of the shortcut; of the
# multiply-adds that it gives in millions the whole number is 14,155,776 n - 1,916,288, and 262,144 more with option B
COUNTS = {
    "model=resnet34": (21_282_122, 1_159_402_496),
    "model=resnet20": (269_722, 40_551_040),
    "model=resnet32": (464_154, 68_862_592),
    "model=resnet44": (658_586, 97_174_144),
    "model=resnet56": (853_018, 125_485_696),
    "model=resnet110": (1_727_962, 252_887_680),
    "model=resnet20 model.shortcut=conv": (272_474, 40_813_184),
    "model=resnet32 model.shortcut=conv": (466_906, 69_124_736),
    "model=resnet44 model.shortcut=conv": (661_338, 97_436_288),
    "model=resnet56 model.shortcut=conv": (855_770, 125_747_840),
    "model=resnet110 model.shortcut=conv": (1_730_714, 253_149_824),
    "model=resnet_cifar model.depth=32": (464_154, 68_862_592),
    "model=slim_resnet34": (4_348_082, 366_106_336),
    "model=slim_resnet50": (4_815_794, 407_300_992),
    "model=slim_resnet26": (4_196_906, 232_625_152),
    "model=rescaled_resnet18": (4_435_082, 453_872_128),
    "model=rescaled_resnet18 model.shortcut_kernel_sizes=1": (4_172_938, 437_094_912),
    "model=rescaled_resnet18 model.shortcut_kernel_sizes=5": (4_959_370, 487_426_560),
    "model=custom_resnet": (6_573_130, 379_261_952),
}


def build(overrides: str) -> ResNet:
    return instantiate(Composer("train").jobs(overrides.split())[0].cfg.model, num_classes=10, _convert_="all")


@pytest.mark.parametrize(("overrides", "counts"), COUNTS.items())
def test_parameters_and_multiply_adds_as_published(overrides, counts):
    parameters, macs = counts
    with torch.device("meta"):
        model = build(overrides)
        assert num_parameters(model) == parameters
        assert num_macs(model, (3, 32, 32)) == macs


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


# the papers' tables, in millions; theirs are rounded
@pytest.mark.parametrize(
    ("overrides", "millions"),
    [
        ("model=preact_resnet_cifar", 1.7),
        ("model=wide_resnet", 11.0),
        ("model=wide_resnet28_10", 36.5),
        ("model=wide_resnet model.depth=40 model.widen_factor=4", 8.9),
        ("model=wide_resnet model.depth=40 model.widen_factor=2", 2.2),
        ("model=pyramidnet", 1.7),
        ("model=pyramidnet model.alpha=84", 3.8),
        ("model=pyramidnet model.alpha=270", 28.3),
        ("model=pyramidnet272", 26.0),
    ],
)
def test_parameters_as_in_the_papers(overrides, millions):
    with torch.device("meta"):
        assert num_parameters(build(overrides)) / 1e6 == pytest.approx(millions, rel=0.05)


def test_preactivated_blocks_equal_the_paper():
    """Figure 1b of He et al. 2016, written out, for a block with a convolution in its shortcut and one without."""
    model = ResNet(block="preact_basic", widths=[4, 6], blocks=[1, 2]).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 4, 8, 8)
    strided, plain = model.stages[1]
    for block, features in ((strided, x), (plain, torch.randn(2, 6, 4, 4))):
        active = torch.relu(block.bn1(features))
        branch = block.conv2(torch.relu(block.bn2(block.conv1(active))))
        shortcut = block.shortcut(active) if block is strided else features
        torch.testing.assert_close(block(features), branch + shortcut)
    images = torch.randn(2, 3, 8, 8)
    head = torch.relu(model.norm(model.stages(model.conv1(images)))).mean((2, 3))
    torch.testing.assert_close(model(images), model.fc(head))


def test_pyramidnets_widths_rise_evenly():
    model = PyramidNet(depth=20, alpha=90)
    assert [b.convs[-1].num_features for s in model.stages for b in s] == [26, 36, 46, 56, 66, 76, 86, 96, 106]
    features = torch.randn(2, 36, 8, 8)
    block = model.stages[0][2]
    out = block(features)
    torch.testing.assert_close(out[:, :36], block.convs(block.bn(features))[:, :36] + features)
    down = model.stages[1][0]
    features = torch.randn(2, 46, 8, 8)
    shortcut = down.shortcut(features)
    torch.testing.assert_close(shortcut[:, :46], torch.nn.functional.avg_pool2d(features, 2))
    assert shortcut.shape[1] == 56
    assert not shortcut[:, 46:].any()


RECIPES = {  # parameters, epochs, batch size and learning rate, as ../shared/architectures.md has them
    "resnet34_ensemble": (21_282_122, 100, 64, 0.05),
    "slim_resnet50": (4_815_794, 300, 64, 0.02),
    "slim_resnet34": (4_348_082, 200, 64, 0.02),
    "slim_resnet34_100": (4_348_082, 100, 64, 0.02),
    "slim_resnet26": (4_196_906, 100, 64, 0.02),
    "rescaled_resnet18": (4_435_082, 60, 64, 1e-3),
    "custom_resnet_onecycle": (6_573_130, 20, 512, 0.017),
}


@pytest.mark.parametrize(("recipe", "expected"), RECIPES.items())
def test_a_recipe_trains_the_network_it_is_named_for(recipe, expected):
    (job,) = Composer("train").jobs([f"experiment={recipe}"])
    with torch.device("meta"):
        parameters = num_parameters(build(f"experiment={recipe}"))
    cfg = job.cfg
    assert (parameters, cfg.trainer.max_epochs, cfg.data.batch_size, cfg.optimizer.lr) == expected


@pytest.mark.parametrize("network", ["model=speednet", "model=resnet18 model.stem=whitening", "model=custom_resnet"])
def test_parts_sum_to_the_whole(network):
    model = build(network)
    table = parts(model, (3, 32, 32))
    assert sum(part.parameters for part in table) == num_parameters(model)
    assert sum(part.macs for part in table) == num_macs(model, (3, 32, 32))


def test_parts_are_the_stages_of_the_network():
    model = build("model=resnet20")
    table = parts(model, (3, 32, 32))
    assert [part.name for part in table] == ["conv1", "bn1", "stages.0", "stages.1", "stages.2", "fc"]
    assert [part.output_shape for part in table][2:5] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert sum(part.parameters for part in table) == 269_722
    assert table[0].macs == 16 * 3 * 9 * 32 * 32
    assert table[-1].macs == 640


def test_budget_says_by_how_much():
    model = ResNet(widths=[4], blocks=[1], max_params=100)
    with pytest.raises(
        ValueError, match=rf"Got {num_parameters(model):,} parameters, {num_parameters(model) - 100:,} too"
    ):
        model.check_budget()
    ResNet(widths=[4], blocks=[1], max_params=num_parameters(model)).check_budget()


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
        ({"block": "dense"}, "Got 'dense'; give basic, bottleneck, preact_basic or"),
        ({"widths": [16, 32, 64], "depth": 26, "widen_factor": 2}, r"must be 6n \+ 4.*Got 26; the nearest is"),
        ({"widths": [16], "blocks": [1], "block": "preact_basic", "zero_init_last_norm": True}, "needs a norm"),
        ({"widths": [16], "blocks": [1], "shake_drop": 1.5}, "model.shake_drop is a probability. Got 1.5"),
        ({"widths": [16], "blocks": [1], "max_params": 0}, "Got 0"),
        ({"shortcut": "none"}, "Got 'none'; give conv or pad"),
        ({"widths": [16, 32, 64], "depth": 21}, r"must be 6n \+ 2.*Got 21; the nearest is 20"),
        ({"widths": [16, 32, 64], "depth": 2}, "the nearest is 8"),
        ({"widths": [16, 32, 64]}, "Got neither"),
        ({"widths": [16, 32], "blocks": [1, 1, 1]}, "model.blocks and model.widths must be equally long"),
        ({"widths": [16, 0], "blocks": [1, 1]}, r"model.widths\[1\] counts channels. Got 0"),
        ({"widths": [16], "blocks": [1], "kernel_sizes": 2}, "must be odd"),
        ({"widths": [16], "blocks": [1], "pool_size": 0}, "model.pool_size .*Got 0; give 1 or more"),
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
