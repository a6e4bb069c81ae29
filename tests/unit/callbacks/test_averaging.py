"""Averaged weights, and weights that step back, against a plain loop over the weights of each step."""

from functools import partial
from types import SimpleNamespace

import pytest
import torch
from helpers import assert_equal, last_of, record_of, rows_of, write_files
from lightning.pytorch import Trainer

from cifar_resnet import checkpoints, cli
from cifar_resnet.callbacks import EMA, Lookahead
from cifar_resnet.data import Synthetic
from cifar_resnet.models import ResNet
from cifar_resnet.precision import ScaledPrecision


def test_a_checkpoint_holds_the_average_of_weights_and_statistics(cifar_train, run_dirs, monkeypatch):
    history = []
    on_train_batch_end = EMA.on_train_batch_end

    def remember(self, trainer, pl_module, *rest):
        history.append({name: value.clone() for name, value in pl_module.state_dict().items()})
        on_train_batch_end(self, trainer, pl_module, *rest)

    monkeypatch.setattr(EMA, "on_train_batch_end", remember)
    assert cifar_train("averaging=ema", "averaging.decay=0.6", "trainer.max_epochs=3") == 0
    average = {name: value.clone() for name, value in history[0].items()}
    for step, weights in enumerate(history[1:], 1):
        decay = min(0.6, (1 + step) / (10 + step))
        for name, value in weights.items():
            average[name] = decay * average[name] + (1 - decay) * value if value.is_floating_point() else value
    checkpoint = last_of(run_dirs()[0])
    for name, value in average.items():
        torch.testing.assert_close(checkpoint["state_dict"][name], value)
    assert_equal(checkpoint["current_model_state"], history[-1])


def test_the_average_is_what_validation_and_test_see(cifar_train, run_dirs, test_images):
    assert cifar_train("averaging=ema", "averaging.decay=0.9", "trainer.max_epochs=2", "data.num_val=0") == 0
    (run_dir,) = run_dirs()
    images, labels = test_images(run_dir)
    with torch.no_grad():
        logits = checkpoints.load(run_dir)(images)
    loss = torch.nn.functional.cross_entropy(logits, labels).item()
    assert record_of(run_dir)["metrics"]["test/loss"] == pytest.approx(loss, rel=1e-4)


@pytest.mark.slow
def test_validation_sees_the_average(cifar_train, run_dirs):
    """Weights that hardly keep an average at all, and weights that keep all of it, are validated differently."""
    for decay in (0.0, 0.99):
        assert cifar_train("averaging=ema", f"averaging.decay={decay}", "trainer.max_epochs=2") == 0
    assert cifar_train("trainer.max_epochs=2") == 0
    none, much, without = (rows_of(run)[0] for run in run_dirs())
    assert none["train/loss"] == much["train/loss"] == without["train/loss"]
    assert none["val/loss"] == without["val/loss"] != much["val/loss"]


@pytest.mark.slow
def test_two_epochs_and_two_more_equal_four_with_averaged_weights(cifar_train, run_dirs, crash):
    overrides = ["averaging=ema", "averaging.decay=0.7", "trainer.max_epochs=4"]
    assert cifar_train(*overrides) == 0
    crash(2)
    with pytest.raises(RuntimeError, match="power"):
        cifar_train(*overrides)
    whole, resumed = run_dirs()
    crash(None)
    assert cli.train([f"resume={resumed}"]) == 0
    for key in ("state_dict", "current_model_state", "averaging_state", "optimizer_states"):
        assert_equal(last_of(whole)[key], last_of(resumed)[key], key)
    assert rows_of(whole)[-1]["val/loss"] == rows_of(resumed)[-1]["val/loss"]
    assert record_of(whole)["metrics"]["test/loss"] == record_of(resumed)["metrics"]["test/loss"]


@pytest.mark.parametrize("make", [lambda: EMA(0.9), lambda: Lookahead(2, 0.5)])
def test_one_that_is_used_again_takes_nothing_along(make):
    """As in a loop over folds, in a program of one's own."""
    data = Synthetic(num_train=240, num_val=40, num_test=50, batch_size=40)

    def trained(averaging, seed: int) -> dict:
        torch.manual_seed(seed)
        network = ResNet(depth=8, widths=[4, 8, 8], optimizer=partial(torch.optim.SGD, lr=0.1))
        quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        Trainer(max_epochs=1, num_sanity_val_steps=0, callbacks=[averaging], **quiet).fit(network, data)
        return network.state_dict()

    again = make()
    trained(again, 1)
    assert_equal(trained(again, 2), trained(make(), 2))


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_impossible_decays_are_refused(decay):
    with pytest.raises(ValueError, match=f"^decay must be a number from 0 to below 1. Got {decay}"):
        EMA(decay)


LOOKAHEAD = ("averaging=lookahead", "averaging.every=3", "averaging.share=0.7", "trainer.max_epochs=3")


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(("start", "first"), [(0.4, 6), (0.0, 0)])
def test_lookahead_equals_a_plain_loop_over_the_weights_of_each_step(cifar_train, run_dirs, monkeypatch, start, first):
    """Fifteen steps: those that step back are the third after the first, and so on, and the last."""
    before, after = {}, {}
    on_train_start, on_train_batch_end = Lookahead.on_train_start, Lookahead.on_train_batch_end

    def weights_of(module):
        return {name: value.clone() for name, value in module.state_dict().items() if value.is_floating_point()}

    def begin(self, trainer, pl_module):
        after[0] = weights_of(pl_module)
        on_train_start(self, trainer, pl_module)

    def remember(self, trainer, pl_module, *rest):
        before[trainer.global_step] = weights_of(pl_module)
        on_train_batch_end(self, trainer, pl_module, *rest)
        after[trainer.global_step] = weights_of(pl_module)

    monkeypatch.setattr(Lookahead, "on_train_start", begin)
    monkeypatch.setattr(Lookahead, "on_train_batch_end", remember)
    assert cifar_train(*LOOKAHEAD, f"averaging.start={start}") == 0
    slow = after[first]
    for step in range(1, 16):
        if step > first and ((step - first) % 3 == 0 or step == 15):
            slow = {name: value + 0.7 * (before[step][name] - value) for name, value in slow.items()}
            torch.testing.assert_close(after[step], slow)
        else:
            assert_equal(after[step], before[step], f"step {step}")
    kept = {name: value for name, value in last_of(run_dirs()[0])["state_dict"].items() if value.is_floating_point()}
    assert_equal(kept, after[15])


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["averaging.start=0.5", "trainer.accumulate_grad_batches=2"], ["graph=true"]])
def test_lookahead_goes_on_bit_for_bit(cifar_train, tmp_path, send, options):
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert cifar_train(*LOOKAHEAD, *options, "graph=false", f"run_dir={whole}") == 0
    send(5)
    assert cifar_train(*LOOKAHEAD, *options, f"run_dir={resumed}") == 143
    send(7)
    assert cli.train([f"resume={resumed}"]) == 143
    send(None)
    assert cli.train([f"resume={resumed}"]) == 0
    for key in ("state_dict", "optimizer_states"):
        assert_equal(last_of(whole)[key], last_of(resumed)[key], key)
    assert_equal(*(last_of(run_dir)["callbacks"]["Lookahead"] for run_dir in (whole, resumed)))


WATCHES = """
import torch
from lightning.pytorch import Callback

class Watches(Callback):
    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.fit_loop._skip_backward and batch_idx == 0:
            self.before = [each.clone() for each in pl_module.parameters()]

    def on_train_epoch_end(self, trainer, pl_module):
        if hasattr(self, "before"):
            open("same", "w").write(str(all(map(torch.equal, self.before, pl_module.parameters()))))
"""


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("optimizer", ["sgd", "muon", "sam"])
def test_lightnings_averaged_weights_take_no_step_of_their_own(cifar_train, tmp_path, monkeypatch, optimizer):
    """In the epoch that their BatchNorm statistics take, where no validation has cleared the last gradients."""
    write_files(tmp_path, {"watches.py": WATCHES})
    monkeypatch.syspath_prepend(tmp_path)
    swa = "+callbacks.swa={_target_: lightning.pytorch.callbacks.StochasticWeightAveraging, swa_lrs: 0.01}"
    watching = ["+callbacks.watches._target_=watches.Watches", "trust=[watches]"]
    options = ["data.num_val=0", "trainer.max_epochs=2", f"optimizer={optimizer}"]
    assert cifar_train(swa, *watching, *options) == 0
    assert (tmp_path / "same").read_text() == "True"


def test_nor_has_a_loss_scale_a_gradient_to_look_at():
    called = []
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([weight], lr=1.0)
    precision = ScaledPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    model = SimpleNamespace(trainer=SimpleNamespace(fit_loop=SimpleNamespace(_skip_backward=True), gradient_clip_val=1))
    precision.optimizer_step(optimizer, model, lambda: called.append(1) or torch.ones(()))
    assert called == [1]
    assert weight.tolist() == [1, 1]


def test_a_lookahead_that_steps_back_once_only_is_told(cifar_train, capsys):
    assert cifar_train("averaging=lookahead", "averaging.every=6") == 0
    assert "averaging.every=6 is longer than what is left of 5 steps" in capsys.readouterr().out
    assert cifar_train("averaging=lookahead", "averaging.every=5", "name=other") == 0
    assert "is longer than" not in capsys.readouterr().out
