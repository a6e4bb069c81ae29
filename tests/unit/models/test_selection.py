"""The images that a proxy selects, against a plain loop, and a proxy that stays out of the network."""

import copy
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_equal, last_of, record_of, write_files
from torch.nn.functional import cross_entropy

from cifar_resnet import checkpoints, cli
from cifar_resnet.models import ResNet, Selection
from cifar_resnet.models.summary import num_macs
from cifar_resnet.optim import cosine

PROXY = (
    "selection=proxy",
    "model@selection.proxy=resnet_cifar",
    "selection.proxy.depth=8",
    "selection.proxy.widths=[4,4,4]",
)


def proxy(**options) -> ResNet:
    torch.manual_seed(1)
    return ResNet(depth=8, widths=[4, 4, 4], **options)


def begun(network: ResNet, share: float, steps: int = 4) -> Selection:
    selection = Selection(network, share)
    trainer = types.SimpleNamespace(world_size=1, max_epochs=1)
    model = types.SimpleNamespace(device=torch.device("cpu"), trainer=trainer, monitor="val/loss")
    selection.begin(model, steps)
    return selection


@pytest.mark.parametrize(("share", "count"), [(0.5, 5), (0.33, 3), (0.01, 1), (1.0, 10)])
def test_the_hardest_of_a_batch_are_selected_while_the_proxy_learns_from_all(share, count):
    sgd, (network, alone) = partial(torch.optim.SGD, lr=0.1, momentum=0.9), (proxy(), proxy())
    network.optimizer = sgd
    network.scheduler = cosine
    selection = begun(network, share)
    optimizer = sgd(alone.parameters())
    for step in range(3):
        images, labels = torch.randn(10, 3, 32, 32), torch.randint(10, (10,))
        found = selection(images, labels)
        selection.scheduler.step()
        logits = alone(images)
        losses = [cross_entropy(one, label).item() for one, label in zip(logits, labels, strict=True)]
        hardest = sorted(sorted(range(10), key=lambda index: -losses[index])[:count])
        assert_equal(found, (images[hardest], labels[hardest]))
        optimizer.param_groups[0]["lr"] = 0.05 * (1 + torch.cos(torch.tensor(step / 4 * torch.pi)).item())
        optimizer.zero_grad()
        cross_entropy(logits, labels).backward()
        optimizer.step()
    for name, value in alone.state_dict().items():
        torch.testing.assert_close(network.state_dict()[name], value)


def test_labels_may_be_probabilities_and_the_proxys_loss_is_its_own():
    """Which smooths and weighs; what is hard is told by the plain one."""
    network = proxy(optimizer=partial(torch.optim.SGD, lr=0.1), label_smoothing=0.3)
    alone, selection = copy.deepcopy(network), begun(network, 0.5)
    images, labels = torch.randn(8, 3, 32, 32), torch.rand(8, 10).softmax(1)
    chosen, targets = selection(images, labels)
    logits = alone(images)
    hardest = sorted((-(labels * logits.log_softmax(1)).sum(1)).argsort(descending=True)[:4].tolist())
    assert_equal((chosen, targets), (images[hardest], labels[hardest]))
    cross_entropy(logits, labels, label_smoothing=0.3).backward()
    weight = alone.fc.weight - 0.1 * alone.fc.weight.grad
    torch.testing.assert_close(network.fc.weight, weight)


def test_in_float16_a_proxy_takes_its_steps_in_float32(monkeypatch):
    network = proxy(optimizer=partial(torch.optim.SGD, lr=0.1))
    selection, seen = begun(network, 0.5), []
    forward = network.forward
    monkeypatch.setattr(network, "forward", lambda images: seen.append(forward(images).dtype) or forward(images))
    for lower, expected in ((torch.float16, torch.float32), (torch.bfloat16, torch.bfloat16)):
        with torch.autocast("cpu", lower):
            selection(torch.randn(8, 3, 32, 32), torch.randint(10, (8,)))
        assert seen.pop() == expected


def test_a_network_trains_on_the_selected_and_its_proxy_is_no_part_of_it(cifar_train, run_dirs, monkeypatch):
    sizes = []
    training_loss = ResNet.loss

    def note(self, images, labels):
        sizes.append(len(images))
        return training_loss(self, images, labels)

    monkeypatch.setattr(ResNet, "loss", note)
    assert cifar_train() == 0
    assert cifar_train(*PROXY, "selection.share=0.3") == 0
    assert sizes == [40] * 5 + [12] * 5
    plain, selected = run_dirs()
    told = "trained on 30% of each batch, selected by a ResNet of 1,"
    assert told in (selected / "train.log").read_text()
    before, after = record_of(plain), record_of(selected)
    assert before["parameters"] == after["parameters"]
    assert last_of(plain)["state_dict"].keys() == last_of(selected)["state_dict"].keys()
    proxy_macs = num_macs(proxy(shortcut="pad"), (3, 32, 32))
    assert after["training_flops"] == round(0.3 * 3 * after["macs"] + 3 * proxy_macs) * 2 * 200
    assert checkpoints.load(selected).selection is None


def test_a_proxy_changes_nothing_but_the_images(cifar_train, run_dirs):
    """All of which are selected here: the network's weights are drawn, and its steps taken, as without."""
    assert cifar_train() == 0
    assert cifar_train(*PROXY, "selection.share=1.0") == 0
    plain, selected = run_dirs()
    assert_equal(last_of(plain)["state_dict"], last_of(selected)["state_dict"])


TORCH = "_target_: torch.optim.lr_scheduler"
FILES = {
    "mine/scheduler/halved.yaml": f"{TORCH}.ExponentialLR\ngamma: 0.5\n",
    "mine/scheduler/plateau.yaml": f"{TORCH}.ReduceLROnPlateau\npatience: 0\nthreshold: 9\n",
}
OPTIONS = {
    "as it is": [],
    "accumulated, by the epoch": ["scheduler=halved", "trainer.accumulate_grad_batches=2"],
    "by a metric": ["scheduler=plateau"],
    "sam, mixed": ["optimizer=sam", "augment=cutmix"],
}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("option", OPTIONS)
def test_stopped_it_goes_on_bit_for_bit_at_the_networks_learning_rate(cifar_train, tmp_path, send, option):
    write_files(tmp_path, FILES)
    options = ["--config-dir", "mine", "trainer.max_epochs=3", *PROXY, *OPTIONS[option]]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    assert cifar_train(*options, f"run_dir={whole}") == 0
    send(2 if "accumulated" in option else 3)
    assert cifar_train(*options, f"run_dir={resumed}") == 143
    send(None)
    assert cli.train([f"resume={resumed}"]) == 0
    for key in ("state_dict", "optimizer_states", "selection"):
        assert_equal(last_of(whole)[key], last_of(resumed)[key], key)
    own, ours = last_of(whole)["optimizer_states"][0], last_of(whole)["selection"]["optimizer"]
    assert own["param_groups"][0]["lr"] == ours["param_groups"][0]["lr"] < 0.1


@pytest.mark.slow
def test_sams_second_pass_is_the_networks_alone(cifar_train, run_dirs):
    assert cifar_train(*PROXY, "optimizer=sam") == 0
    record = record_of(*run_dirs())
    proxy_macs = num_macs(proxy(shortcut="pad"), (3, 32, 32))
    assert record["training_flops"] == 2 * 200 * (2 * round(0.5 * 3 * record["macs"] + 3 * proxy_macs / 2))


def test_a_proxy_that_diverges_is_told_from_the_network(cifar_train, capsys, monkeypatch):
    begin = Selection.begin

    def spoiled(self, model, total_steps):
        begin(self, model, total_steps)
        self.proxy.fc.weight.data.fill_(torch.nan)

    monkeypatch.setattr(Selection, "begin", spoiled)
    assert cifar_train(*PROXY) == 1
    assert "the loss is no longer finite. Got nan by the proxy that selects images" in capsys.readouterr().err


def test_networks_side_by_side_have_no_proxy(cifar_train, capsys):
    assert cifar_train(*PROXY, "ensemble.size=2") == 2
    assert "leave selection out, or train one after the other" in capsys.readouterr().err


@pytest.mark.slow
def test_a_range_test_is_of_all_images(tmp_path, monkeypatch):
    monkeypatch.setattr(Selection, "__call__", lambda *args: pytest.fail("selects"))
    probes = ["range_test.steps=20", "range_test.suggest=minimum"]
    assert cli.find_lr([*TINY, *PROXY, *probes, f"output_dir={tmp_path}"]) == 0


@pytest.mark.slow
def test_the_usual_proxy_is_small():
    assert cli.train([*TINY, "selection=proxy", "data.batch_size=20"]) == 0
    (log,) = Path().glob("outputs/*/*/train.log")
    assert "50% of each batch, selected by a SpeedNet of 14" in log.read_text()
