"""Sizes of networks against published ones, and the parts that they are made of."""

import pytest
import torch

from cifar_resnet.compose import Composer
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models import Classifier
from cifar_resnet.models.summary import num_macs, num_parameters, summarize

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


def build(overrides: str) -> Classifier:
    return instantiate(Composer("train").jobs(overrides.split())[0].cfg.model, num_classes=10, _convert_="all")


@pytest.mark.quick_cases(4)
@pytest.mark.parametrize(("overrides", "counts"), COUNTS.items())
def test_parameters_and_multiply_adds_as_published(overrides, counts):
    parameters, macs = counts
    with torch.device("meta"):
        model = build(overrides)
        assert num_parameters(model) == parameters
        assert num_macs(model, (3, 32, 32)) == macs


# the papers' tables, in millions; theirs are rounded
@pytest.mark.quick_cases(4)
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


def test_size_of_the_recipes_network():
    with torch.device("meta"):
        network = build("experiment=speed94")
        filters = 9 * (24 * 64 + 64 * 64 + 64 * 256 + 3 * 256 * 256)
        assert num_parameters(network) == filters + 24 + 2 * (64 + 256 + 256) + 2560
        maps = 961 * (12 * 24 + 9 * 24 * 64) + 225 * 9 * (64 * 64 + 64 * 256) + 49 * 9 * 256 * 256 * 2
        assert num_macs(network, (3, 32, 32)) == maps + 9 * 9 * 256 * 256 + 2560


RECIPES = {  # parameters, epochs, batch size and learning rate, as ../shared/architectures.md has them
    "resnet34_ensemble": (21_282_122, 100, 64, 0.05),
    "slim_resnet50": (4_815_794, 300, 64, 0.02),
    "slim_resnet34": (4_348_082, 200, 64, 0.02),
    "slim_resnet34_100": (4_348_082, 100, 64, 0.02),
    "slim_resnet26": (4_196_906, 100, 64, 0.02),
    "rescaled_resnet18": (4_435_082, 60, 64, 1e-3),
    "custom_resnet_onecycle": (6_573_130, 20, 512, 0.017),
}


@pytest.mark.quick_cases(3)
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
    table = summarize(model, (3, 32, 32))
    assert sum(part.parameters for part in table) == num_parameters(model)
    assert sum(part.macs for part in table) == num_macs(model, (3, 32, 32))


class Pair(torch.nn.Module):
    """A network whose parts give several tensors, and which has a parameter of its own."""

    def __init__(self):
        super().__init__()
        self.first, self.last = torch.nn.LSTM(3, 4, batch_first=True), torch.nn.Linear(4, 10)
        self.own = torch.nn.Parameter(torch.zeros(7))

    def forward(self, images):
        found, _ = self.first(images.flatten(2).transpose(1, 2))
        return self.last(found[:, -1])


def test_parts_may_give_several_tensors_and_what_is_in_none_of_them_is_told():
    table = summarize(Pair(), (3, 8, 8))
    assert [(part.name, part.output_shape) for part in table] == [
        ("first", (64, 4)), ("last", (10,)), ("all else", ()),
    ]  # fmt: skip
    assert table[-1].parameters == 7
    assert sum(part.parameters for part in table) == num_parameters(Pair())


class Attention(torch.nn.Module):
    """One layer of attention between 64 pixels, 16 wide, of which a part is never to be trained."""

    def __init__(self):
        super().__init__()
        self.embed = torch.nn.Conv2d(3, 16, 1)
        self.layer = torch.nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
        self.last = torch.nn.Linear(16, 10)
        self.embed.eval()

    def forward(self, images):
        return self.last(self.layer(self.embed(images).flatten(2).transpose(1, 2)).mean(1))


def test_attention_is_counted():
    count, width, wide = 64, 16, 32
    projections, products, feed_forward = 4 * count * width**2, 2 * count**2 * width, 2 * count * width * wide
    expected = count * 3 * width + projections + products + feed_forward + width * 10
    assert num_macs(Attention(), (3, 8, 8)) == expected


def test_looking_at_a_network_leaves_each_part_in_the_mode_that_it_was_in():
    network = Attention()
    before = [module.training for module in network.modules()]
    num_macs(network, (3, 8, 8))
    summarize(network, (3, 8, 8))
    assert [module.training for module in network.modules()] == before
    assert len(set(before)) == 2


def test_parameters_that_parts_share_count_once():
    network = Pair()
    network.again = torch.nn.Linear(4, 10)
    network.again.weight = network.last.weight
    network.forward = lambda images: network.again(network.first(images.flatten(2).transpose(1, 2))[0][:, -1])
    network.last.register_forward_hook(lambda *_: None)
    calls = network.forward
    network.forward = lambda images: calls(images) + network.last(torch.zeros(1, 4))
    table = summarize(network, (3, 8, 8))
    assert sum(part.parameters for part in table) == num_parameters(network)
    assert all(part.parameters >= 0 for part in table)


def test_parts_are_the_stages_of_the_network():
    model = build("model=resnet20")
    table = summarize(model, (3, 32, 32))
    assert [part.name for part in table] == ["conv1", "bn1", "stages.0", "stages.1", "stages.2", "fc"]
    assert [part.output_shape for part in table][2:5] == [(16, 32, 32), (32, 16, 16), (64, 8, 8)]
    assert sum(part.parameters for part in table) == 269_722
    assert table[0].macs == 16 * 3 * 9 * 32 * 32
    assert table[-1].macs == 640
