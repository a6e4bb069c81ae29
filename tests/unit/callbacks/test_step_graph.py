"""A step that is called as a function, as on CUDA it is recorded, against Lightning's own steps."""

from fractions import Fraction

import pytest
import torch
from helpers import assert_equal, last_of, rows_without_speed, write_files

from cifar_resnet import cli
from cifar_resnet.callbacks.step_graph import OURS, Recorded, StepGraph, attributes_of, whose_python_runs
from cifar_resnet.data import Augment, Synthetic
from cifar_resnet.models import Distillation, ResNet, SpeedNet, Wrapped
from cifar_resnet.optim import SGD

CASES = {
    "sgd": (),
    "adam": ("optimizer=adam",),
    "adamw, one cycle": ("optimizer=adamw", "scheduler=one_cycle", "scheduler.max_lr=0.01"),
    "muon": ("optimizer=muon", "model.bias_lr_factor=4"),
    "averaged": ("averaging=ema", "averaging.decay=0.9", "model.tta=flip"),
    "mixed, with dropout": ("augment=cutmix", "model.dropout=0.1", "model.drop_block=0.1", "model.drop_block_size=3"),
    "clipped, in bfloat16": ("trainer.gradient_clip_val=0.5", "precision=bf16-mixed", "augment.flip=random"),
    "per epoch, all images": ("scheduler=multistep", "model.label_smoothing=0.1", "data.num_val=0"),
    "a momentum that cycles": ("--config-dir=mine", "scheduler=cycle"),
}


OWN = """
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import LambdaCallback
from cifar_resnet.data import Augment
from cifar_resnet.models import ResNet

class Looks(Callback):
    def on_after_backward(self, trainer, pl_module): pass

class Early(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx): pass

class Keeps(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx): pass

def given():
    return LambdaCallback(on_train_batch_start=lambda *args: None)

class Own(ResNet):
    def training_step(self, batch, batch_idx): return super().training_step(batch, batch_idx)

class Logs(ResNet):
    def loss(self, images, labels):
        loss, logits = super().loss(images, labels)
        self.log("mine", loss.detach(), on_step=False, on_epoch=True)
        return loss, logits

class Freezes(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.conv1.requires_grad_(False)

class Smooths(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.label_smoothing = 0.1 * (trainer.current_epoch == 1)

class Drops(Callback):
    def on_validation_end(self, trainer, pl_module):
        for module in pl_module.modules():
            if type(module).__name__ == "Dropout":
                module.p = 0.5

class Mixes(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        trainer.datamodule.augment.mixing.probability = 0.1 + 0.1 * trainer.current_epoch

class Replaces(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        trainer.datamodule.augment = Augment(cutout_size=8 * trainer.current_epoch, flip="random")

class MixesNoMore(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        trainer.datamodule.augment = Augment(mixing="cutmix" if trainer.current_epoch % 2 else None)

class DrawsOnTheHost(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        trainer.datamodule.augment = Augment(policy="trivialaugment" if trainer.current_epoch == 1 else None)

class Weighs(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        pl_module.loss_weights = pl_module.loss_weights * (1 + trainer.current_epoch)

class AtSomeStep(Callback):
    needs_no_batch = True
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        pl_module.label_smoothing = 0.1 * (trainer.global_step > 2)

class AtNoStep(AtSomeStep):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx): pass

class Warms(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        trainer.optimizers[0].momentum = 0.9 + 0.01 * trainer.current_epoch

class Hooks(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            pl_module.fc.register_forward_hook(lambda module, given, found: found * 2)

class Quiet(ResNet):
    pass

class Ends(ResNet):
    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.label_smoothing = 0.1 * (self.trainer.global_step > 2)

class Keeping(ResNet):
    def forward(self, images):
        if self.training:
            self.images = images * 2
        return super().forward(images)
"""


def assert_same_training(one, other):
    for key in ("state_dict", "optimizer_states", "lr_schedulers", "global_step"):
        assert_equal(last_of(one)[key], last_of(other)[key], key)
    for name in ("EMA", "FiniteLoss"):
        assert_equal(last_of(one)["callbacks"].get(name), last_of(other)["callbacks"].get(name), name)
    assert rows_without_speed(one) == rows_without_speed(other)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("case", CASES)
def test_it_equals_lightnings_own_steps_to_the_last_bit_and_goes_on_from_any(cifar_train, tmp_path, case, send):
    cycle = "_target_: torch.optim.lr_scheduler.OneCycleLR\n_partial_: true\nmax_lr: 0.05\n"
    write_files(tmp_path, {"mine/scheduler/cycle.yaml": cycle})
    options = [*CASES[case], "trainer.max_epochs=2"]
    plain, resumed = tmp_path / "plain", tmp_path / "resumed"
    assert cifar_train(*options, "graph=false", f"run_dir={plain}") == 0
    send(3)
    assert cifar_train(*options, "graph=true", f"run_dir={resumed}") == 143
    send(7)  # in the other epoch
    assert cli.train([f"resume={resumed}"]) == 143
    send(None)
    assert cli.train([f"resume={resumed}"]) == 0
    assert "graph=true" not in (resumed / "train.log").read_text()
    pictures = [(run_dir / "augmented_batch.png").read_bytes() for run_dir in (plain, resumed)]
    assert pictures[0] == pictures[1]
    assert_same_training(plain, resumed)


@pytest.mark.slow
def test_a_run_that_began_without_goes_on_with_it_and_the_other_way_round(cifar_train, tmp_path, send):
    plain = tmp_path / "plain"
    assert cifar_train("trainer.max_epochs=2", "graph=false", f"run_dir={plain}") == 0
    for before, after in (("true", "false"), ("false", "true")):
        send(8)
        assert cifar_train("trainer.max_epochs=2", f"graph={before}", f"run_dir={before}") == 143
        send(None)
        assert cli.train([f"resume={before}", f"graph={after}"]) == 0
        assert_same_training(plain, tmp_path / before)


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["optimizer=sam"], "SAM takes two passes"),
        (["optimizer.fused=false"], "SGD is not fused"),
        (["selection=proxy"], "a proxy selects the images"),
        (["augment=randaugment"], "augment.policy is drawn on the host"),
        (["trainer.reload_dataloaders_every_n_epochs=1"], "trainer.reload_dataloaders_every_n_epochs makes others"),
        (["trainer.accumulate_grad_batches=2"], "gradients of several batches are added up"),
        (["ensemble.size=2"], "networks side by side take their batches together"),
        (["+callbacks.looks._target_=own.Looks", "trust=[own]"], "Looks looks into the step"),
        (["+callbacks.early._target_=own.Early", "trust=[own]"], "Early may look at a batch before it is made"),
        (["+callbacks.keeps._target_=own.Keeps", "trust=[own]"], "Keeps may look at a batch before it is made"),
        (["+callbacks.given._target_=own.given", "trust=[own]"], "LambdaCallback may look at a batch"),
        (["model._target_=own.Logs", "trust=[own]"], "Logs logs within the step"),
        (["model._target_=own.Own", "trust=[own]"], "Own has a training_step of its own"),
        (["trainer.strategy=ddp"], "a strategy wraps the network"),
    ],
)
def test_what_cannot_be_recorded_is_trained_as_usual_and_said(
    cifar_train, tmp_path, monkeypatch, capsys, options, reason
):
    write_files(tmp_path, {"own.py": OWN})
    monkeypatch.syspath_prepend(tmp_path)
    assert cifar_train(*options, "graph=true") == 0
    assert f"graph=true has no effect: {reason}" in capsys.readouterr().out
    assert cifar_train(*options, "name=again") == 0
    assert "graph" not in "".join(capsys.readouterr())


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        ["+callbacks.x._target_=lightning.pytorch.callbacks.GradientAccumulationScheduler",
         "+callbacks.x.scheduling={1:2}"],
        ["+callbacks.x._target_=lightning.pytorch.callbacks.StochasticWeightAveraging", "+callbacks.x.swa_lrs=0.01",
         "+callbacks.x.swa_epoch_start=1"],
        ["+callbacks.x._target_=own.Freezes"],
        ["+callbacks.x._target_=own.Replaces"],
        ["+callbacks.x._target_=own.DrawsOnTheHost"],
        ["+callbacks.x._target_=own.MixesNoMore"],
        ["model._target_=own.Quiet"],
        ["model._target_=own.Logs"],
    ],
    ids=["accumulation from the second epoch on", "weights averaged by Lightning", "frozen", "augmented otherwise",
         "augmented on the host", "mixed in each other epoch", "own", "own, that logs"],
)  # fmt: skip
def test_what_changes_on_the_way_is_followed(cifar_train, tmp_path, monkeypatch, options):
    write_files(tmp_path, {"own.py": OWN})
    monkeypatch.syspath_prepend(tmp_path)
    for graph in ("false", "true"):
        assert cifar_train(*options, "trust=[own]", "trainer.max_epochs=4", f"graph={graph}", f"run_dir={graph}") == 0
    assert_same_training(tmp_path / "false", tmp_path / "true")


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize(
    ("options", "is_changed"),
    [
        ([], False),
        (["+callbacks.x._target_=own.Smooths"], True),
        (["+callbacks.x._target_=own.Drops", "model.dropout=0.1"], True),
        (["+callbacks.x._target_=own.Mixes", "augment=cutmix"], True),
        (["+callbacks.x._target_=own.Replaces"], True),
        (["+callbacks.x._target_=own.Weighs", "model.class_weights=balanced"], True),
        (["+callbacks.x._target_=own.AtSomeStep", "trainer.max_epochs=1"], True),
        (["model._target_=own.Ends", "trainer.max_epochs=1"], True),
        (["+callbacks.x._target_=own.Warms", "optimizer=muon"], True),
        (["+callbacks.x._target_=own.AtNoStep", "model._target_=own.Keeping"], False),
        (["+callbacks.x._target_=own.Hooks"], True),
        (["model.drop_block=0.1", "model.dropout=0.1", "averaging=ema", "augment=cutmix"], False),
        (["averaging=lookahead", "optimizer=muon"], False),
    ],
)  # fmt: skip
def test_what_a_callback_changes_is_recorded_anew_and_nothing_else_is(
    cifar_train, tmp_path, monkeypatch, options, is_changed
):
    """On a CPU nothing is recorded; what would be is forgotten all the same."""
    write_files(tmp_path, {"own.py": OWN})
    monkeypatch.syspath_prepend(tmp_path)
    forget, forgotten = Recorded.forget, []

    def forgetting(self):
        if getattr(self, "count", 0):
            forgotten.append(self)
        forget(self)

    monkeypatch.setattr(Recorded, "forget", forgetting)
    arguments = ["graph=true", "trust=[own]", "trainer.max_epochs=3", "scheduler=multistep"]
    assert cifar_train(*arguments, *options) == 0
    assert bool(forgotten) is is_changed


def test_from_one_look_to_the_next_the_same_object_is_compared(cifar_train, monkeypatch):
    """Or each step would compare thousands of values one by one."""
    compared, go = [], Recorded.go
    set_up = StepGraph.on_train_start

    def starting(self, *arguments):
        set_up(self, *arguments)
        monkeypatch.setattr(Recorded, "go", lambda each: (compared.append(self.fixed[-1] is self.attributes), go(each)))

    monkeypatch.setattr(StepGraph, "on_train_start", starting)
    assert cifar_train("graph=true", "trainer.max_epochs=2") == 0
    assert len(compared) == 9
    assert all(compared)


def test_what_has_no_attributes_of_its_own_has_none_that_change():
    assert attributes_of("mine") == attributes_of(Fraction(1, 2)) == []


def test_what_is_drawn_on_the_host_is_in_no_recorded_step(cifar_train, tmp_path, monkeypatch):
    write_files(tmp_path, {"own.py": OWN})
    monkeypatch.syspath_prepend(tmp_path)
    steps, step = [], StepGraph.step

    def stepping(self, *arguments):
        steps.append(self.trainer.current_epoch)
        return step(self, *arguments)

    monkeypatch.setattr(StepGraph, "step", stepping)
    arguments = ["graph=true", "+callbacks.x._target_=own.DrawsOnTheHost", "trust=[own]", "trainer.max_epochs=3"]
    assert cifar_train(*arguments) == 0
    assert set(steps) == {0, 2}


def test_of_somebody_elses_layers_nobody_knows_what_their_python_does():
    def strangers(network):
        return {
            type(part).__name__ for part in whose_python_runs(network) if not type(part).__module__.startswith(OURS)
        }

    ours = [ResNet(depth=8, widths=[4, 4, 4], stochastic_depth=0.1), SpeedNet(widths=[8, 8, 8])]
    assert not any(strangers(network) for network in ours)
    wrapped = Wrapped(net={"_target_": "torchvision.models.shufflenet_v2_x0_5"})
    assert strangers(wrapped) == {"ShuffleNetV2", "InvertedResidual"}
    ours[0].distillation = Distillation([wrapped])
    assert strangers(ours[0]) == {"ShuffleNetV2", "InvertedResidual"}


def test_nor_of_their_augmentation_and_optimizer():
    class Drawn(Augment):
        pass

    class Stepping(torch.optim.AdamW):
        pass

    network = ResNet(depth=8, widths=[4, 4, 4])
    for augment, optimizer, expected in (
        (Augment(mixing="cutmix"), torch.optim.AdamW, set()),
        (Drawn(), SGD, {"Drawn"}),
        (Augment(), Stepping, {"Stepping"}),
    ):
        data = Synthetic(num_train=40, num_val=10, num_test=10, batch_size=10, augment=augment)
        data.prepare_data()
        data.setup("fit")
        parts = whose_python_runs(network, optimizer(network.parameters(), lr=0.1), data.train_dataloader())
        assert {type(part).__name__ for part in parts if not type(part).__module__.startswith(OURS)} == expected
