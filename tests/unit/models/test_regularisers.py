"""DropBlock, ShakeDrop and the rest against loops and closed forms."""

import pytest
import torch
from torch import nn

from cifar_resnet.models import ResNet
from cifar_resnet.models.regularisers import DropBlock, ShakeDrop, drop_block


@pytest.mark.parametrize("size", [1, 2, 3, 5])
@pytest.mark.parametrize(("height", "width"), [(4, 4), (9, 7)])
def test_drop_block_zeroes_whole_squares_inside_the_map(monkeypatch, size, height, width):
    seeds = {}
    rand = torch.rand

    def remember(*args, **kwargs):
        seeds["draws"] = rand(*args, **kwargs)
        return seeds["draws"]

    monkeypatch.setattr(torch, "rand", remember)
    features = torch.rand(6, 3, height, width) + 1
    result = drop_block(features, 0.3, size)
    tall, wide = min(size, height), min(size, width)
    gamma = 0.3 * height * width / (tall * wide) / ((height - tall + 1) * (width - wide + 1))
    expected = features.clone()
    for n, c, row, column in (seeds["draws"] < gamma).nonzero().tolist():
        expected[n, c, row : row + tall, column : column + wide] = 0
    expected *= expected.numel() / (expected > 0).sum()
    torch.testing.assert_close(result, expected)


def test_drop_block_zeroes_the_share_that_was_asked_for():
    torch.manual_seed(0)
    dropped = drop_block(torch.ones(200, 16, 16, 16), 0.1, 5) == 0
    assert 0.085 < dropped.float().mean() < 0.1  # overlapping squares zero a little less


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_drop_block_keeps_the_mean_in_every_precision(dtype):
    torch.manual_seed(0)
    features = torch.ones(64, 64, 32, 32, dtype=dtype)  # more cells than float16 can count
    result = drop_block(features, 0.1, 5)
    assert result.dtype == dtype
    assert abs(result.float().mean() - 1) < 0.01


def test_drop_block_of_five_on_a_map_of_four_drops_maps_whole():
    torch.manual_seed(0)
    zeros = (drop_block(torch.ones(400, 8, 4, 4, dtype=torch.float16), 0.2, 5) == 0).flatten(2)
    assert (zeros.all(2) == zeros.any(2)).all()
    assert 0.15 < zeros.float().mean() < 0.25


def test_drop_block_rises_with_progress_and_rests_in_eval():
    torch.manual_seed(0)
    layer, features = DropBlock(0.4, 3), torch.ones(100, 4, 8, 8)
    shares = []
    for progress in (0.0, 0.5, 1.0):
        layer.progress.fill_(progress)
        shares.append((layer(features) == 0).float().mean().item())
    assert shares[0] == 0
    assert shares[0] < shares[1] < shares[2]
    assert torch.equal(layer.eval()(features), features)


def test_shake_drop_has_the_paper_moments():
    torch.manual_seed(0)
    layer = ShakeDrop(survival=0.6)
    features = torch.ones(100_000, 1, 1, 1, requires_grad=True)
    out = layer(features)
    out.sum().backward()
    forward, backward = out.detach().flatten(), features.grad.flatten()
    for scale, low, mean in ((forward, -1, 0.6), (backward, 0, 0.6 + 0.4 * 0.5)):
        assert abs((scale == 1).float().mean() - 0.6) < 0.01
        assert abs(scale.mean() - mean) < 0.01
        shaken = scale[scale != 1]
        assert low <= shaken.min() < low + 0.01
        assert 0.99 < shaken.max() <= 1
    both = (forward != 1) & (backward != 1)
    assert torch.corrcoef(torch.stack([forward[both], backward[both]]))[0, 1].abs() < 0.02
    torch.testing.assert_close(layer.eval()(torch.ones(2, 1, 1, 1)), torch.full((2, 1, 1, 1), 0.6))


REGULARISED = [
    "block_dropout", "feature_dropout", "drop_block", "stochastic_depth", "shake_drop", "dropout",
]  # fmt: skip


@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact_basic", "preact_bottleneck"])
@pytest.mark.parametrize("option", REGULARISED)
def test_every_regulariser_is_noise_in_training_only(block, option):
    torch.manual_seed(0)
    model = ResNet(block=block, widths=[8, 8, 8], blocks=[1, 1, 1], **{option: 0.5})
    images = torch.randn(4, 3, 16, 16)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


@pytest.mark.parametrize("block", ["basic", "bottleneck", "preact_basic", "preact_bottleneck"])
def test_block_dropout_zeroes_values_before_the_last_convolution(block):
    torch.manual_seed(0)
    model = ResNet(block=block, widths=[16], blocks=[1], block_dropout=0.25)
    (module,) = model.stages[0]
    last = max(name for name, _ in module.named_children() if name.startswith("conv"))
    seen = []
    getattr(module, last).register_forward_hook(lambda _, inputs, out: seen.append(inputs[0]))
    for norm in (part for part in module.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.constant_(norm.bias, 100)  # nothing is below zero
    model(torch.randn(16, 3, 16, 16))
    zeros = seen[0].eq(0)
    assert abs(zeros.float().mean() - 0.25) < 0.02
    assert not zeros.flatten(2).all(2).any()  # values, and not whole channels


def test_feature_dropout_zeroes_whole_channels():
    torch.manual_seed(0)
    model = ResNet(widths=[16], blocks=[1], feature_dropout=0.25)
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        nn.init.constant_(norm.bias, 100)  # nothing is below zero
    zeros = model.stages(model.conv1(torch.randn(200, 3, 8, 8))).eq(0).flatten(2)
    assert torch.equal(zeros.all(2), zeros.any(2))
    assert abs(zeros.float().mean() - 0.25) < 0.03


def test_branches_are_left_out_the_more_the_deeper():
    model = ResNet(widths=[4, 4], blocks=[2, 2], stochastic_depth=0.4)
    rates = [module.after_branch.p for stage in model.stages for module in stage]
    assert rates == pytest.approx([0.1, 0.2, 0.3, 0.4])
    shaken = ResNet(widths=[4, 4], blocks=[2, 2], shake_drop=0.4)
    assert [b.after_branch.survival for s in shaken.stages for b in s] == pytest.approx([0.9, 0.8, 0.7, 0.6])


def test_a_branch_that_is_left_out_leaves_its_shortcut():
    torch.manual_seed(0)
    model = ResNet(widths=[4], blocks=[1], strides=[1], stem_width=4, stochastic_depth=0.5)
    features = torch.rand(200, 4, 6, 6)
    (block,) = model.stages[0]
    left_out = (block(features) == features).flatten(1).all(1)
    assert 0.4 < left_out.float().mean() < 0.6


def test_squeeze_excitation_scales_each_channel_of_the_branch():
    model = ResNet(widths=[32], blocks=[1], squeeze_excitation=16, num_classes=4)
    gate = model.stages[0][0].after_branch
    assert [tuple(p.shape) for p in gate.parameters()] == [(2, 32, 1, 1), (2,), (32, 2, 1, 1), (32,)]
    features = torch.randn(3, 32, 5, 5)
    weights = [p.flatten(1) if p.ndim > 1 else p for p in gate.parameters()]
    hidden = torch.relu(features.mean((2, 3)) @ weights[0].t() + weights[1])
    expected = features * torch.sigmoid(hidden @ weights[2].t() + weights[3])[:, :, None, None]
    torch.testing.assert_close(gate(features), expected)


def test_drop_block_acts_in_the_last_two_stages():
    model = ResNet(widths=[4, 4, 4], blocks=[1, 1, 1], drop_block=0.1)
    assert [isinstance(stage[0].after_block, DropBlock) for stage in model.stages] == [False, True, True]
    assert all(not isinstance(module, nn.BatchNorm2d) for module in model.stages[1][0].after_block.modules())
