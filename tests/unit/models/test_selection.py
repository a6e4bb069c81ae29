"""The images that a proxy selects, against a plain loop, and a proxy that stays out of the network."""

import copy
import csv
import types
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers import TINY, assert_equal, last_of, record_of, write_files
from lightning.pytorch import Trainer
from torch.nn.functional import cross_entropy

from cifar_resnet import checkpoints, cli
from cifar_resnet.data import Synthetic
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


def begun(network: ResNet, share: float, steps: int = 4, **trainer: object) -> Selection:
    selection = Selection(network, share)
    facts = {"world_size": 1, "max_epochs": 1, "gradient_clip_val": None, "gradient_clip_algorithm": None}
    model = types.SimpleNamespace(device=torch.device("cpu"), trainer=types.SimpleNamespace(**facts | trainer))
    selection.begin(model, steps, 1)
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


def test_of_mixed_images_those_are_hard_that_are_far_from_their_labels():
    """Not those whose labels are evenly mixed: half of these are told as they are, and half otherwise."""
    labels = torch.rand(8, 10).softmax(1)
    labels[::2] = torch.eye(10)[:4]
    far = labels.roll(1, dims=1)
    told = torch.where(torch.arange(8)[:, None] < 4, labels, far).clamp(min=1e-6)
    selection = begun(proxy(optimizer=partial(torch.optim.SGD, lr=0.1)), 0.5)
    distances = selection.distances(told.log(), labels)
    expected = [
        sum(p * (p / q).log() for p, q in zip(row, other, strict=True) if p > 0)
        for row, other in zip(labels, told, strict=True)
    ]
    torch.testing.assert_close(distances, torch.stack(expected), rtol=1e-3, atol=1e-4)
    assert distances.topk(4).indices.sort().values.tolist() == [4, 5, 6, 7]


@pytest.mark.parametrize("mixed", [False, True])
def test_the_proxys_loss_is_as_it_was_told(mixed):
    """Which smooths and weighs, here nothing but the first three classes: others are never hard."""
    weights = [1.0, 2.0, 3.0] + [0.0] * 7
    network = proxy(optimizer=partial(torch.optim.SGD, lr=0.1), label_smoothing=0.3, class_weights=weights)
    network.weigh_classes(torch.ones(10))
    alone, selection = copy.deepcopy(network), begun(network, 0.5)
    images, labels = torch.randn(8, 3, 32, 32), torch.tensor([0, 1, 2, 3, 4, 5, 6, 0])
    given = torch.eye(10)[labels] if mixed else labels
    _, found = selection(images, given)
    assert_equal(found, given[[0, 1, 2, 7]])
    cross_entropy(alone(images), labels, torch.tensor(weights), label_smoothing=0.3).backward()
    torch.testing.assert_close(network.fc.weight, alone.fc.weight - 0.1 * alone.fc.weight.grad)


@pytest.mark.parametrize("algorithm", [None, "norm", "value"])
def test_its_gradients_are_clipped_as_the_networks_are(algorithm):
    network = proxy(optimizer=partial(torch.optim.SGD, lr=1.0))
    before = copy.deepcopy(network)
    selection = begun(network, 0.5, gradient_clip_val=0.01, gradient_clip_algorithm=algorithm)
    selection(torch.randn(8, 3, 32, 32), torch.randint(10, (8,)))
    moved = torch.cat([(a - b).flatten() for a, b in zip(network.parameters(), before.parameters(), strict=True)])
    size = moved.abs().max() if algorithm == "value" else moved.norm()
    assert size.item() == pytest.approx(0.01, rel=1e-3)


def test_frozen_parts_of_a_proxy_have_no_gradients():
    network = proxy(optimizer=partial(torch.optim.SGD, lr=1.0), freeze=["conv1"])
    before, selection = network.conv1.weight.clone(), begun(network, 0.5)
    selection(torch.randn(8, 3, 32, 32), torch.randint(10, (8,)))
    assert torch.equal(network.conv1.weight, before)
    assert not network.conv1.weight.requires_grad


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
    told = "trained on 12 of each 40 images, selected by a ResNet of 1,"
    assert told in (selected / "train.log").read_text()
    before, after = record_of(plain), record_of(selected)
    assert before["parameters"] == after["parameters"]
    assert last_of(plain)["state_dict"].keys() == last_of(selected)["state_dict"].keys()
    proxy_macs = num_macs(proxy(shortcut="pad"), (3, 32, 32))
    assert after["training_flops"] == pytest.approx(6 * 200 * (0.3 * after["macs"] + proxy_macs))
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
def test_sams_second_pass_is_the_networks_alone_in_a_search_as_well(tmp_path):
    search = ["search.rounds=1", "search.trials=1", "search.target=0.01", "optimizer.lr=interval(0.01,0.02)"]
    assert cli.search([*TINY, *PROXY, "optimizer=sam", *search, f"output_dir={tmp_path}"]) == 0
    record = record_of(next(tmp_path.rglob("result.json")).parent)
    proxy_macs = num_macs(proxy(shortcut="pad"), (3, 32, 32))
    expected = pytest.approx(6 * 200 * (2 * 0.5 * record["macs"] + proxy_macs))
    assert record["training_flops"] == expected
    with next(tmp_path.rglob("trials.csv")).open() as table:
        (row,) = csv.DictReader(table)
    assert float(row["training_flops"]) == float(row["flops_to_target"]) == expected


def test_of_few_images_one_is_selected_and_counted(cifar_train, run_dirs):
    assert cifar_train(*PROXY, "selection.share=0.001") == 0
    record, proxy_macs = record_of(*run_dirs()), num_macs(proxy(shortcut="pad"), (3, 32, 32))
    assert record["training_flops"] == pytest.approx(6 * 200 * (record["macs"] / 40 + proxy_macs))


def test_without_its_proxy_a_checkpoint_is_nothing_to_go_on_from(cifar_train, run_dirs, send, capsys):
    send(3)
    assert cifar_train(*PROXY) == 143
    send(None)
    (run_dir,) = run_dirs()
    checkpoint = last_of(run_dir)
    del checkpoint["selection"]
    torch.save(checkpoint, run_dir / "checkpoints" / "last.ckpt")
    assert cli.train([f"resume={run_dir}"]) == 2
    assert "nothing for the proxy that selects images to go on from" in capsys.readouterr().err


def test_a_proxy_is_set_up_as_a_network_is(monkeypatch):
    """Its whitening by the training's images, its classes' weights by their number, its steps as the network's."""
    made = []
    begin = Selection.begin
    monkeypatch.setattr(Selection, "begin", lambda self, *rest: made.append(self.proxy) or begin(self, *rest))
    told = ["model.class_weights=balanced", "model.label_smoothing=0.2", "model.bias_lr_factor=3", "model.tta=flip"]
    tiny = [text for text in TINY if not text.startswith("model")]
    assert cli.train([*tiny, "model=resnet18", "model.widths=[4,4,4,4]", "selection=proxy", *told]) == 0
    (network,) = made
    assert (network.label_smoothing, network.bias_lr_factor, network.tta) == (0.2, 3, "none")
    assert network.loss_weights is not None
    with torch.no_grad():
        data = Synthetic(num_train=240, num_val=40, num_test=50)
        data.prepare_data()
        data.setup("fit")
        features = network.whitening(data.sample())[:, :12].permute(1, 0, 2, 3).flatten(1)
    assert torch.allclose(torch.cov(features), torch.eye(12), atol=0.3)


def test_its_dropblock_follows_the_training_too(cifar_train, monkeypatch):
    seen = []
    select = Selection.__call__

    def note(self, *batch):
        seen.append(next(each.progress.item() for each in self.proxy.modules() if hasattr(each, "progress")))
        return select(self, *batch)

    monkeypatch.setattr(Selection, "__call__", note)
    assert cifar_train(*PROXY, "selection.proxy.drop_block=0.2") == 0
    assert seen == pytest.approx([0, 0.2, 0.4, 0.6, 0.8])


TOGETHER = {
    "averaging": ["averaging=ema", "trainer.gradient_clip_val=1", "model.freeze=[conv1]"],
    "resizing": ["resize=progressive", "resize.sizes=[24]", "resize.until=[0.5]", "averaging=lookahead"],
    "compiled": ["compile=true", "augment=mixup", "init=before"],
}


@pytest.mark.slow
@pytest.mark.parametrize("option", TOGETHER)
def test_it_goes_together_with_what_else_there_is(cifar_train, option):
    """And what comes of it is evaluated, exported and asked like any other network."""
    assert cifar_train("run_dir=before") == 0
    assert cifar_train(*PROXY, "trainer.max_epochs=2", "run_dir=run", "distill.teacher=before", *TOGETHER[option]) == 0
    record, macs = record_of(Path("run")), [num_macs(proxy(shortcut="pad"), (3, size, size)) for size in (32, 24)]
    teacher = record["macs"]
    if option == "resizing":
        network = num_macs(ResNet(depth=8, widths=[4, 8, 8], shortcut="pad"), (3, 24, 24))
        expected = sum(2 * 200 * (0.5 * 4 * own + 3 * of) for own, of in ((network, macs[1]), (teacher, macs[0])))
    else:
        expected = 2 * 400 * (0.5 * 4 * teacher + 3 * macs[0])
    assert record["training_flops"] == pytest.approx(expected)
    assert cli.evaluate(["checkpoint=run", "output_dir=evaluated"]) == 0
    assert cli.export(["checkpoint=run", "output=exported"]) == 0


def test_from_python_a_network_has_one_too():
    sgd = partial(torch.optim.SGD, lr=0.1)
    network = ResNet(depth=8, widths=[4, 8, 8], optimizer=sgd, selection=Selection(proxy(optimizer=sgd), 0.25))
    data, sizes = Synthetic(num_train=240, num_val=40, num_test=50, batch_size=40), []
    loss = network.loss
    network.loss = lambda images, labels: sizes.append(len(images)) or loss(images, labels)
    Trainer(max_epochs=1, logger=False, enable_checkpointing=False, enable_progress_bar=False).fit(network, data)
    assert sizes == [10] * 5


@pytest.mark.slow
def test_a_network_that_was_fitted_before_goes_on_with_its_proxy_from_a_checkpoint(tmp_path):
    sgd = partial(torch.optim.SGD, lr=0.1, momentum=0.9)
    data = Synthetic(num_train=240, num_val=40, num_test=50, batch_size=40)
    quiet = {"logger": False, "enable_progress_bar": False, "num_sanity_val_steps": 0}

    def fresh() -> ResNet:
        torch.manual_seed(5)
        chosen = Selection(proxy(optimizer=sgd), 0.25)
        return ResNet(depth=8, widths=[4, 8, 8], optimizer=sgd, selection=chosen)

    def fit(network, epochs: int, path: str | None = None) -> None:
        trainer = Trainer(max_epochs=epochs, enable_checkpointing=False, **quiet)
        trainer.fit(network, data, ckpt_path=path)
        trainer.save_checkpoint(tmp_path / f"{epochs}.ckpt")

    first, whole = fresh(), fresh()
    fit(first, 1)
    fit(first, 2, str(tmp_path / "1.ckpt"))
    momentum = first.selection.optimizer.state_dict()
    weights = first.selection.proxy.state_dict()
    fit(whole, 1)
    again = fresh()  # in a process of its own, as it were
    fit(again, 2, str(tmp_path / "1.ckpt"))
    assert_equal(weights, again.selection.proxy.state_dict())
    assert_equal(momentum, again.selection.optimizer.state_dict())


def test_a_proxy_that_diverges_is_told_from_the_network(cifar_train, capsys, monkeypatch):
    begin = Selection.begin

    def spoiled(self, *arguments):
        begin(self, *arguments)
        self.proxy.fc.weight.data.fill_(torch.nan)

    monkeypatch.setattr(Selection, "begin", spoiled)
    assert cifar_train(*PROXY) == 1
    assert (
        "the loss is no longer finite. Got nan from the proxy that selects images, by step 1" in capsys.readouterr().err
    )


@pytest.mark.slow
def test_a_range_test_is_of_all_images(tmp_path, monkeypatch):
    monkeypatch.setattr(Selection, "__call__", lambda *args: pytest.fail("selects"))
    probes = ["range_test.steps=20", "range_test.suggest=minimum"]
    assert cli.find_lr([*TINY, *PROXY, *probes, f"output_dir={tmp_path}"]) == 0


@pytest.mark.slow
def test_the_usual_proxy_is_small():
    assert cli.train([*TINY, "selection=proxy", "data.batch_size=20"]) == 0
    (log,) = Path().glob("outputs/*/*/train.log")
    assert "10 of each 20 images, selected by a SpeedNet of 146,136 parameters" in log.read_text()
