"""What a training says of itself, where no whole training is needed to see it."""

import pytest
from omegaconf import OmegaConf

from cifar_resnet.compose import Composer
from cifar_resnet.narration import OF, idle


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["augment.magnitude=5"], ["augment.magnitude=5 changes nothing: augment.policy is null"]),
        (
            ["augment=trivialaugment", "augment.num_ops=3"],
            ["augment.num_ops=3 changes nothing: augment.policy is trivialaugment"],
        ),
        (["augment=randaugment", "augment.magnitude=5"], []),
        (["augment.mixing_alpha=0.2"], ["augment.mixing_alpha=0.2 changes nothing: augment.mixing is null"]),
        (["augment=mixup", "augment.mixing_alpha=0.2"], []),
        (
            ["augment.cutout_size=0", "augment.cutout_probability=1.0"],
            ["augment.cutout_probability=1.0 changes nothing: augment.cutout_size is 0"],
        ),
        (["distill.weight=0.5"], ["distill.weight=0.5 changes nothing: distill.teacher is null"]),
        (["distill.weight=0.5", "distill.teacher=run"], []),
    ],
)
def test_settings_that_change_nothing_are_told(overrides, told):
    (job,) = Composer().jobs(overrides)
    assert idle(job.cfg) == told


def test_an_optimizer_of_ones_own_may_have_a_setting_of_this_name():
    cfg = OmegaConf.create({"overrides": ["optimizer.eta=0.1"], "optimizer": {"eta": 0.1}})
    assert idle(cfg) == []


def test_a_training_tells_them(cifar_train, run_dirs, capsys):
    assert cifar_train("augment.magnitude=5") == 0
    line = "warning: augment.magnitude=5 changes nothing: augment.policy is null"
    assert line in capsys.readouterr().out
    assert line in (run_dirs()[0] / "train.log").read_text()


def test_they_are_settings_that_there_are():
    (job,) = Composer().jobs(["optimizer=sam"])
    for key, (of, _) in OF.items():
        for each in (key, of):
            group, _, name = each.partition(".")
            assert name in job.cfg[group]
