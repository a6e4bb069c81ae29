"""cifar-design: what it prints is what one gets."""

import re
from pathlib import Path

import pytest
import torch

from cifar_resnet import cli, design
from cifar_resnet.compose import Composer
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models import ResNet
from cifar_resnet.models.summary import num_macs, num_parameters
from cifar_resnet.quoting import in_quotes

SMALL_GRID = ("stages=[2,3]", "blocks_per_stage=[1,2]", "stem_strides=[1,2]")


def proposals(overrides: list[str] | tuple[str, ...]) -> list[design.Design]:
    (job,) = Composer("design").jobs(list(overrides))
    return design.design(job.cfg)


@pytest.mark.slow
def test_every_proposal_has_the_size_it_claims_and_fits(capsys):
    assert cli.design(["max_params=3e5", "max_macs=3e7", "num_designs=20", "blocks=[bottleneck]", *SMALL_GRID]) == 0
    output = capsys.readouterr().out
    rows = re.findall(r"^ (\w+_s\d) .* ([\d,]+) +[\d.]+% +([\d,]+) $", output, re.MULTILINE)
    assert {name[-3:] for name, _, _ in rows} == {"_s1", "_s2"}  # depth, width, and resolution
    assert len(rows) == 8  # two numbers of stages, two depths, two resolutions
    for name, parameters, macs in rows:
        (job,) = Composer("train", "designs").jobs([f"experiment={name}"])
        with torch.device("meta"):
            model = instantiate(job.cfg.model, num_classes=10, _convert_="all")
            assert f"{num_parameters(model):,}" == parameters
            assert f"{num_macs(model, (3, 32, 32)):,}" == macs
        assert num_parameters(model) <= 3e5
        assert num_macs(model, (3, 32, 32)) <= 3e7


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("limits", [["max_params=2e5"], ["max_params=1e7", "max_macs=2e7", "blocks=[basic]"]])
def test_one_step_wider_would_not_fit(limits):
    found = proposals([*limits, *SMALL_GRID])
    assert found
    for proposal in found:
        narrowest, *_ = proposal.settings["widths"]
        wider = [width * (narrowest + 8) // narrowest for width in proposal.settings["widths"]]
        with torch.device("meta"):
            model = ResNet(**{**proposal.settings, "widths": wider})
            too_many = num_parameters(model) > float(limits[0].split("=")[1])
            too_slow = len(limits) > 1 and num_macs(model, (3, 32, 32)) > 2e7
        assert too_many or too_slow


def test_proposals_are_for_the_classes_the_images_and_the_kernels_that_are_asked_for():
    own = ["num_classes=100", "image_size=64", "width_multiple=16", "kernel_sizes=[5]", "shortcut_kernel_sizes=[3]"]
    found = proposals(["max_params=4e5", "max_macs=1.2e8", *own, *SMALL_GRID])
    assert found
    for each in found:
        assert each.settings["kernel_sizes"] == 5
        assert each.settings["shortcut_kernel_sizes"] == 3
        assert not any(width % 16 for width in each.settings["widths"])
        with torch.device("meta"):
            model = ResNet(num_classes=100, **each.settings)
            size = num_parameters(model), num_macs(model, (3, 64, 64))
        assert size == (each.parameters, each.macs)
        assert size[0] <= 4e5
        assert size[1] <= 1.2e8


def test_nearest_to_the_limit_first_and_no_two_alike():
    found = proposals(["max_params=1e6", "num_designs=5", *SMALL_GRID])
    assert [each.parameters for each in found] == sorted((each.parameters for each in found), reverse=True)
    shapes = [(each.settings["block"], each.settings["blocks"], each.settings["stem_stride"]) for each in found]
    assert len(set(map(str, shapes))) == len(found) == 5


@pytest.mark.slow
def test_the_default_grid_fits_and_has_both_blocks_and_resolutions():
    found = proposals(["max_params=5e6"])
    assert len(found) == 12
    assert all(4.5e6 < each.parameters <= 5e6 for each in found)
    assert {each.settings["stem_stride"] for each in found} == {1, 2}
    assert {each.settings["block"] for each in found} == {"basic", "bottleneck"}


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["small", "5e6", "on"])
def test_the_sweep_that_it_prints_runs(capsys, folder):
    assert cli.design(["max_params=5e4", "num_designs=2", f"output_dir={folder}", *SMALL_GRID]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cifar-train -m")]
    tiny = ["data=synthetic", "data.num_train=60", "data.num_val=20", "data.num_test=20", "data.batch_size=20"]
    assert cli.train([*line.split()[1:], *tiny, "trainer.max_epochs=1", "page=false"]) == 0
    assert len(list(Path("outputs", folder).glob("sweep-*/*/result.json"))) == 2


def test_designs_can_be_trained_wherever_they_lie():
    folder = "designs \N{OWL} of 'mine'"
    assert cli.design(["max_params=2e5", "num_designs=1", *SMALL_GRID, f"output_dir={in_quotes(folder)}"]) == 0
    (design,) = Path(folder).glob("experiment/*.yaml")
    (job,) = Composer("train", folder).jobs([f"experiment={design.stem}"])
    assert job.cfg.name == folder
