"""cifar-design: what it prints is what one gets."""

import re
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate

from cifar_resnet import design, train
from cifar_resnet.command import Composer
from cifar_resnet.models import ResNet
from cifar_resnet.models.size import num_macs, num_parameters

SMALL_GRID = ("stages=[2,3]", "blocks_per_stage=[1,2]", "stem_strides=[1,2]")


def proposals(overrides: list[str] | tuple[str, ...]) -> list[design.Design]:
    (job,) = Composer("design").jobs(list(overrides))
    return design.design(job.cfg)


def test_every_proposal_has_the_size_it_claims_and_fits(capsys):
    assert design.main(["max_params=3e5", "max_macs=3e7", "num_designs=20", *SMALL_GRID]) == 0
    output = capsys.readouterr().out
    rows = re.findall(r"^ (\w+_s\d) .* ([\d,]+) +[\d.]+% +([\d,]+) $", output, re.MULTILINE)
    assert {name[-3:] for name, _, _ in rows} == {"_s1", "_s2"}  # depth, width, and resolution
    assert len(rows) == 16  # two blocks, two numbers of stages, two depths, two resolutions
    for name, parameters, macs in rows:
        (job,) = Composer("train", "designs").jobs([f"experiment={name}"])
        with torch.device("meta"):
            model = instantiate(job.cfg.model, num_classes=10, _convert_="all")
            assert f"{num_parameters(model):,}" == parameters
            assert f"{num_macs(model, (3, 32, 32)):,}" == macs
        assert num_parameters(model) <= 3e5
        assert num_macs(model, (3, 32, 32)) <= 3e7


@pytest.mark.parametrize("limits", [["max_params=2e5"], ["max_params=1e7", "max_macs=2e7"]])
def test_one_step_wider_would_not_fit(limits):
    for proposal in proposals([*limits, *SMALL_GRID]):
        narrowest, *_ = proposal.settings["widths"]
        wider = [width * (narrowest + 8) // narrowest for width in proposal.settings["widths"]]
        with torch.device("meta"):
            model = ResNet(**{**proposal.settings, "widths": wider})
            too_many = num_parameters(model) > float(limits[0].split("=")[1])
            too_slow = len(limits) > 1 and num_macs(model, (3, 32, 32)) > 2e7
        assert too_many or too_slow


def test_nearest_to_the_limit_first_and_no_two_alike():
    found = proposals(["max_params=1e6", "num_designs=5", *SMALL_GRID])
    assert len(found) == 5
    assert [each.parameters for each in found] == sorted((each.parameters for each in found), reverse=True)
    assert (
        len({(each.settings["block"], tuple(each.settings["blocks"]), each.settings["stem_stride"]) for each in found})
        == 5
    )


def test_the_default_grid_fits_and_has_both_resolutions():
    found = proposals(["max_params=5e6"])
    assert len(found) == 12
    assert all(4.5e6 < each.parameters <= 5e6 for each in found)
    assert {each.settings["stem_stride"] for each in found} == {1, 2}


def test_the_sweep_that_it_prints_runs(capsys):
    assert design.main(["max_params=5e4", "num_designs=2", "output_dir=small", *SMALL_GRID]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("cifar-train -m")]
    tiny = ["data=synthetic", "data.num_train=60", "data.num_val=20", "data.num_test=20", "data.batch_size=20"]
    assert train.main([*line.split()[1:], *tiny, "trainer.max_epochs=1"]) == 0
    assert len(list(Path("outputs/small").glob("sweep-*/*/result.json"))) == 2


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "max_params has no default"),
        (["max_params=-5"], "max_params must be a number from 1 to 1e+12. Got -5"),
        (["max_params=lots"], "max_params must be a number from 1 to 1e+12. Got lots"),
        (["max_params=1e30"], "max_params must be a number from 1 to 1e+12. Got 1e+30"),
        (["max_params=1e6", "stages=[3,50]"], "stages must be a list of whole numbers from 1 to 8. Got [3, 50]"),
        (["max_params=5"], "no network of this grid is so small. Got max_params=5"),
        (["max_params=1e6", "stages=[]"], "stages must be a list of whole numbers from 1 to 8"),
        (["max_params=1e6", "blocks=[dense]"], "unknown model.block. Got 'dense'"),
        (["max_parms=1e6"], "Did you mean max_params or max_macs?"),
        (["max_params=1e6", "-m"], "leave out -m"),
    ],
)
def test_a_mistake_gets_one_line_and_writes_nothing(capsys, arguments, answer):
    assert design.main(arguments) == 2
    captured = capsys.readouterr()
    assert answer in captured.err
    assert captured.err.count("\n") == 1
    assert list(Path.cwd().iterdir()) == []
