"""ResNets against torchvision's own modules and the papers, written out."""

import pytest
import torch
import torchvision
from torch import nn

from cifar_resnet.compose import Composer
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models import ResNet
from cifar_resnet.models.regularisers import DropBlock
from cifar_resnet.models.resnet import conv_bn


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50", "resnet101", "resnet152"])
def test_resnets_equal_torchvisions_with_the_cifar_stem(name):
    theirs = getattr(torchvision.models, name)(num_classes=10)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    cfg = Composer("train").jobs([f"model={name}"])[0].cfg
    ours = instantiate(cfg.model, num_classes=10, _convert_="all")
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


@pytest.mark.parametrize(("kind", "num_convs"), [("preact_basic", 2), ("preact_bottleneck", 3)])
def test_preactivated_blocks_equal_the_paper(kind, num_convs):
    """Figure 1b of He et al. 2016, written out, for a block with a convolution in its shortcut and one without."""
    model = ResNet(block=kind, widths=[4, 6], blocks=[1, 2]).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-0.1, 0.1)
            module.running_var.uniform_(0.5, 2)
    strided, plain = model.stages[1]
    for block, side in ((strided, 8), (plain, 4)):
        features = torch.randn(2, block.bn1.num_features, side, side)
        active = branch = torch.relu(block.bn1(features))
        for number in range(1, num_convs + 1):
            branch = getattr(block, f"conv{number}")(branch)
            if number < num_convs:
                branch = torch.relu(getattr(block, f"bn{number + 1}")(branch))
        shortcut = block.shortcut(active) if block is strided else features
        torch.testing.assert_close(block(features), branch + shortcut)
    images = torch.randn(2, 3, 8, 8)
    head = torch.relu(model.norm(model.stages(model.conv1(images)))).mean((2, 3))
    torch.testing.assert_close(model(images), model.fc(head))


def test_pad_shortcut_subsamples_and_adds_empty_channels():
    images = torch.randn(2, 4, 8, 8)
    shortcut = ResNet(widths=[4, 6], blocks=[1, 1], shortcut="pad").stages[1][0].shortcut
    result = shortcut(images)
    assert torch.equal(result[:, :4], images[:, :, ::2, ::2])
    assert result.shape == (2, 6, 4, 4)
    assert result[:, 4:].eq(0).all()


@pytest.mark.parametrize("channels", [4, 15, 16])
def test_a_narrow_strided_shortcut_is_the_convolution_that_it_stands_for(channels):
    """oneDNN's own writes beyond its memory."""
    conv, _ = conv_bn(channels, 24, 1, stride=2)
    assert (type(conv) is nn.Conv2d) == (channels == 16)
    images = torch.randn(3, channels, 9, 8, dtype=torch.float64)
    one, other = (images.clone().requires_grad_() for _ in range(2))
    weights = [conv.weight.detach().double().requires_grad_() for _ in range(2)]
    conv.weight = nn.Parameter(weights[0])
    out, expected = conv(one), nn.functional.conv2d(other, weights[1], stride=2)
    torch.testing.assert_close(out, expected)
    (out**2).sum().backward()
    (expected**2).sum().backward()
    torch.testing.assert_close(one.grad, other.grad)
    torch.testing.assert_close(conv.weight.grad, weights[1].grad)


def test_zero_init_makes_every_block_its_shortcut():
    model = ResNet(widths=[4, 4], blocks=[2, 1], strides=[1, 1], zero_init_last_norm=True)
    features = torch.rand(2, 4, 8, 8)
    assert torch.equal(model.stages(features), features)


def test_zero_init_is_of_the_last_norm_of_each_block():
    model = ResNet(block="bottleneck", widths=[4, 4], blocks=[2, 1], zero_init_last_norm=True)
    for name, module in model.named_modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.weight.unique().tolist() == [0.0 if name.endswith("bn3") else 1.0], name


@pytest.mark.parametrize("options", [{}, {"block": "bottleneck"}, {"stem": "whitening"}])
def test_convolutions_begin_with_the_variance_of_he(options):
    torch.manual_seed(0)
    model = ResNet(widths=[64, 128], blocks=[1, 1], **options)
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.requires_grad and module.weight.numel() > 3000:
            expected = (2 / (module.out_channels * module.kernel_size[0] ** 2)) ** 0.5
            assert module.weight.std().item() == pytest.approx(expected, rel=0.1), name


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


@pytest.mark.parametrize(("pool_size", "side"), [(2, 16), (4, 16), (3, 16), (2, 14)])
def test_a_map_is_pooled_as_adaptive_pooling_does_it(pool_size, side):
    model = ResNet(widths=[4, 8], blocks=[1, 1], pool_size=pool_size).eval()
    images, maps = torch.randn(2, 3, side, side), []
    model.stages.register_forward_hook(lambda module, given, found: maps.append(found))
    logits = model(images)
    expected = model.fc(torch.nn.functional.adaptive_avg_pool2d(maps[0], pool_size).flatten(1))
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "dense"}, "block must be basic, bottleneck, preact_basic or .*Got 'dense'"),
        ({"widths": [16, 32, 64], "depth": 26, "widen_factor": 2}, r"must be 6n \+ 4.*Got 26; the nearest is"),
        ({"widths": [16], "blocks": [1], "block": "preact_basic", "zero_init_last_norm": True}, "needs a norm"),
        ({"widths": [16], "blocks": [1], "shake_drop": 1.5}, "shake_drop must be a number from 0 to below 1. Got 1.5"),
        (
            {"widths": [16], "blocks": [1], "max_params": 0},
            "max_params must be a whole number, 1 or more .*Got 0",
        ),
        ({"shortcut": "none"}, "shortcut must be conv or pad. Got 'none'"),
        ({"widths": [16, 32, 64], "depth": 21}, r"must be 6n \+ 2.*Got 21; the nearest is 20"),
        ({"widths": [16, 32, 64], "depth": 2}, "the nearest is 8"),
        ({"widths": [16, 32, 64]}, "Got neither"),
        ({"widths": [16, 32], "blocks": [1, 1, 1]}, "model.blocks and model.widths must be equally long"),
        ({"widths": [16, 0], "blocks": [1, 1]}, r"widths\[1\] must be a whole number, 1 or more. Got 0"),
        (
            {"widths": [16], "blocks": [1], "kernel_sizes": 2},
            "kernel_sizes must be an odd number: 1, 3, 5 .*Got 2",
        ),
        ({"widths": [16], "blocks": [1], "pool_size": 0}, "pool_size must be a whole number, 1 or more. Got 0"),
        ({"widths": [16, 8], "blocks": [1, 1], "shortcut": "pad"}, "can only add channels"),
        ({"widths": [16], "blocks": [1], "dropout": 1.0}, "dropout must be a number from 0 to below 1. Got 1.0"),
        ({"widths": [16], "blocks": [1], "num_classes": 1}, "num_classes must be a whole number, 2 or more. Got 1"),
        (
            {"widths": [16], "blocks": [1], "label_smoothing": 1.0},
            "label_smoothing must be .*below 1. Got 1.0",
        ),
    ],
)
def test_impossible_networks_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)


def test_a_whitening_stem_is_an_option():
    images = torch.randn(40, 3, 32, 32)
    network = ResNet(depth=8, widths=[8, 8, 8], stem="whitening")
    network.init_whitening(images)
    assert network(images[:2]).shape == (2, 10)
    assert not network.conv1[0].weight.requires_grad
    with torch.no_grad():
        whitening, _, mixing = network.conv1
        whitened = torch.nn.functional.conv2d(images, whitening.weight, getattr(whitening, "bias", None), padding=1)
        expected = torch.nn.functional.conv2d(whitened.relu(), mixing.weight)
        torch.testing.assert_close(network.conv1(images), expected)
    with pytest.raises(ValueError, match=r"stem must be conv or whitening. Got 'patch'"):
        ResNet(depth=8, widths=[8, 8, 8], stem="patch")


def test_a_stems_kernel_has_the_size_that_was_given():
    for size in (3, 5):
        assert ResNet(depth=8, widths=[8, 8, 8], stem_kernel_size=size).conv1.weight.shape == (8, 3, size, size)


def test_blocks_are_dropped_in_squares_of_the_size_that_was_given():
    model = ResNet(widths=[8], blocks=[1], drop_block=0.2, drop_block_size=2)
    (layer,) = (module for module in model.modules() if isinstance(module, DropBlock))
    layer.progress.fill_(1.0)
    torch.manual_seed(0)
    found = layer.train()(torch.ones(1, 8, 16, 16))
    torch.manual_seed(0)
    expected = DropBlock(0.2, 2)
    expected.progress.fill_(1.0)
    assert torch.equal(found, expected.train()(torch.ones(1, 8, 16, 16)))
    torch.manual_seed(0)
    other = DropBlock(0.2, 5)
    other.progress.fill_(1.0)
    assert not torch.equal(found, other.train()(torch.ones(1, 8, 16, 16)))
