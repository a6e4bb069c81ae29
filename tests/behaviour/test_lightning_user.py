"""The classes in the hands of somebody who writes a program with Lightning, or a notebook."""

import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TINY, record_of, rows_of
from lightning.pytorch import LightningDataModule, LightningModule, Trainer, seed_everything
from torch.optim.lr_scheduler import StepLR

import cifar_resnet
from cifar_resnet import api, cli, load
from cifar_resnet.callbacks import EMA, Lookahead, ScheduleCurve
from cifar_resnet.data import Synthetic
from cifar_resnet.errors import UsageError
from cifar_resnet.models import ResNet, SpeedNet
from cifar_resnet.models.distillation import Distillation
from cifar_resnet.models.whitening import Whitening
from cifar_resnet.optim import cosine

QUIET = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False, "enable_progress_bar": False,
         "enable_model_summary": False}  # fmt: skip


@pytest.fixture
def data() -> Synthetic:
    return Synthetic(num_train=240, num_test=50, num_val=40, batch_size=40, eval_batch_size=20)


def test_a_checkpoint_is_lightnings(trained):
    network = ResNet.load_from_checkpoint(trained / "checkpoints" / "best.ckpt")
    assert isinstance(network, LightningModule)
    images, _ = Synthetic(num_test=10).read(train=False)
    assert torch.equal(network.eval().predict(images), load(trained).predict(images))


def test_predict_gives_each_images_probabilities_in_the_order_of_the_data(trained, data):
    network = load(trained)
    data.mean, data.std = network.data_state["mean"], network.data_state["std"]
    found = torch.cat(Trainer(**QUIET).predict(network, datamodule=data))
    images, _ = data.read(train=False)
    assert found.shape == (50, 10)
    assert torch.allclose(found, network.predict(images), atol=1e-6)
    limited = Trainer(**QUIET, limit_predict_batches=1).predict(network, datamodule=data)
    assert torch.equal(torch.cat(limited), found[:20])


def test_a_program_of_its_own_fits_validates_and_tests(data):
    network = ResNet(depth=8, widths=[4, 8, 8], optimizer=lambda groups: torch.optim.SGD(groups, lr=0.1))
    trainer = Trainer(**QUIET, max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(network, datamodule=data)
    assert isinstance(data, LightningDataModule)
    (scores,) = trainer.test(network, datamodule=data, verbose=False)
    assert 0 <= scores["test/acc"] <= 1
    assert trainer.global_step == 2 * (200 // 40)


def fit(network, data, **options) -> None:
    Trainer(**QUIET, max_epochs=1, num_sanity_val_steps=0, **options).fit(network, **data)


def sgd(groups):
    return torch.optim.SGD(groups, lr=0.01)


def test_what_the_training_images_decide_is_taken_from_the_data_module(data):
    network = SpeedNet(widths=[8, 8, 8], class_weights="balanced", optimizer=sgd)
    seed_everything(7, verbose=False)
    fit(network, {"datamodule": data})
    expected = Whitening(3, 2)
    expected.init_whitening(data.sample())
    assert torch.allclose(network.whitening.weight, expected.weight, atol=1e-5)
    counts = torch.bincount(data.train.labels, minlength=10)
    assert torch.allclose(network.loss_weights, 200 / (10 * counts.float()))
    assert network.seed == 7
    assert network.predict(torch.zeros(2, 3, 32, 32, dtype=torch.uint8)).shape == (2, 10)  # it knows its pixels now


def test_a_loaded_network_keeps_its_filters_and_a_list_of_weights_needs_no_data_module(data):
    network = SpeedNet(widths=[8, 8, 8], class_weights=[1.0] * 9 + [2.0], optimizer=sgd)
    network.load_state_dict(SpeedNet(widths=[8, 8, 8]).state_dict())
    before = network.whitening.weight.clone()
    data.prepare_data()
    data.setup("fit")
    fit(network, {"train_dataloaders": data.train_dataloader()})
    assert torch.equal(network.whitening.weight, before)
    assert network.loss_weights.tolist() == [1.0] * 9 + [2.0]


def test_an_average_and_weights_of_classes_go_together(data):
    for checks in (0, 2):
        network = ResNet(depth=8, widths=[4, 8, 8], class_weights="balanced", optimizer=sgd)
        trainer = Trainer(**QUIET, max_epochs=1, num_sanity_val_steps=checks, callbacks=[EMA()])
        trainer.fit(network, datamodule=data)
        counts = torch.bincount(data.train.labels, minlength=10)
        assert torch.allclose(network.loss_weights, 200 / (10 * counts.float()))


def test_weights_without_filters_are_no_fitted_filters(data):
    network = SpeedNet(widths=[8, 8, 8], optimizer=sgd)
    network.load_state_dict({"whitening.bias": torch.zeros(24)}, strict=False)
    data.prepare_data()
    data.setup("fit")
    with pytest.raises(ValueError, match="filters of whitening layers are fitted"):
        fit(network, {"train_dataloaders": data.train_dataloader()})


def test_on_other_data_a_network_learns_what_its_pixels_mean_anew(data):
    network = ResNet(depth=8, widths=[4, 8, 8], class_weights="balanced", optimizer=sgd)
    fit(network, {"datamodule": data})
    first, weights = network.data_state, network.loss_weights
    other = Synthetic(num_train=240, num_test=50, num_val=40, batch_size=40, image_seed=5, mean=[0.1] * 3)
    fit(network, {"datamodule": other})
    assert network.data_state["mean"] == [0.1] * 3 != first["mean"]
    assert not torch.equal(network.loss_weights, weights)


def test_from_a_checkpoint_filters_come_with_it(data, tmp_path):
    options = {"enable_checkpointing": True, "default_root_dir": tmp_path}
    trainer = Trainer(**QUIET | options, max_epochs=1, num_sanity_val_steps=0)
    trainer.fit(SpeedNet(widths=[8, 8, 8], optimizer=sgd), datamodule=data)
    trainer.save_checkpoint(tmp_path / "here.ckpt")
    network = SpeedNet(widths=[8, 8, 8], optimizer=sgd)
    again = Trainer(**QUIET | options, max_epochs=2, num_sanity_val_steps=0)
    again.fit(network, train_dataloaders=data.train_dataloader(), ckpt_path=tmp_path / "here.ckpt", weights_only=False)
    assert torch.equal(network.whitening.weight, trainer.lightning_module.whitening.weight)


@pytest.mark.slow
def test_a_student_learns_from_a_teacher(data, trained):
    network = ResNet(depth=8, widths=[4, 8, 8], distillation=Distillation([load(trained)]), optimizer=sgd)
    fit(network, {"datamodule": data})
    assert len(network.distillation.rescale) == 1


@pytest.mark.parametrize(
    ("network", "message"),
    [
        (lambda: SpeedNet(widths=[8, 8, 8], optimizer=sgd), "filters of whitening layers are fitted"),
        (
            lambda: ResNet(depth=8, widths=[4, 8, 8], class_weights="balanced", optimizer=sgd),
            "class_weights=balanced counts them",
        ),
        (
            lambda: ResNet(depth=8, widths=[4, 8, 8], freeze=["conv9"], optimizer=sgd),
            "names parts of the network. Got 'conv9'",
        ),
    ],
)
def test_what_cannot_be_known_is_refused(data, network, message):
    data.prepare_data()
    data.setup("fit")
    with pytest.raises(ValueError, match=message):
        fit(network(), {"train_dataloaders": data.train_dataloader()})


def test_data_of_another_number_of_classes_is_refused(data):
    with pytest.raises(ValueError, match=r"tells 7 classes apart\. Got data of 10; give num_classes=10"):
        fit(ResNet(depth=8, widths=[4, 8, 8], num_classes=7, optimizer=sgd), {"datamodule": data})


def test_a_data_module_needs_no_trainer(data):
    data.prepare_data()
    data.setup("fit")
    images, labels = next(iter(data.train_dataloader()))
    assert images.shape == (40, 3, 32, 32)
    assert labels.shape == (40,)
    assert sum(len(labels) for _, labels in data.val_dataloader()) == 40
    with pytest.raises(ValueError, match=r"setup\('predict'\) first"):
        data.predict_dataloader()
    data.setup("predict")
    labels = torch.cat([labels for _, labels in data.predict_dataloader()])
    assert torch.equal(labels, data.read(train=False)[1])


# What is left of Lightning's own names


@pytest.mark.quick_cases(3)
@pytest.mark.parametrize(
    "override",
    ["trainer.enable_progress_bar=false", "trainer.enable_progress_bar=true", "trainer.deterministic=warn",
     "trainer.deterministic=true", "logger=none", "trainer.limit_predict_batches=3",
     "trainer.reload_dataloaders_every_n_epochs=0", "trainer.inference_mode=false"],
)  # fmt: skip
def test_what_the_design_does_not_contradict_passes(override, cifar_train, run_dirs):
    assert cifar_train(override, "test=false") == 0
    assert len(run_dirs()) == 1


def test_a_quick_look_leaves_its_folder_among_what_is_thrown_away(cifar_train, run_dirs):
    assert cifar_train("debug=fast", "trainer.max_epochs=1") == 0
    (run_dir,) = run_dirs()
    assert run_dir.parent == Path.cwd() / "outputs" / "debug"
    record = record_of(run_dir)
    assert record["num_trained"] == 80
    assert record["steps"] == 2


@pytest.mark.slow
def test_a_few_images_are_known_by_heart_in_the_end(run_dirs):
    network = ["data=synthetic", "model=resnet_cifar", "model.depth=8", "precision=32-true", "optimizer.lr=0.05"]
    assert cli.train([*network, "debug=overfit"]) == 0
    (run_dir,) = run_dirs()
    record = record_of(run_dir)
    assert record["num_train"] == 100
    assert float(rows_of(run_dir)[-1]["train/acc"]) > 0.95
    assert "test/acc" not in record["metrics"]


def test_what_a_network_predicts_does_not_hang_on_the_mode_it_was_left_in(trained):
    network = ResNet.load_from_checkpoint(trained / "checkpoints" / "best.ckpt").train()
    images, _ = Synthetic(num_test=10).read(train=False)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert torch.equal(network.predict(images), load(trained).predict(images))
    assert network.training
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_an_optimizer_and_a_schedule_of_its_own_move_as_lightnings_do(data):
    class Own(ResNet):
        def configure_optimizers(self):
            optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)]

    network = Own(depth=8, widths=[4, 8, 8], drop_block=0.1)
    trainer = Trainer(**QUIET, max_epochs=2, num_sanity_val_steps=0)
    trainer.fit(network, datamodule=data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.025


def test_a_plateau_that_a_function_gives_goes_by_what_was_measured(data):
    network = ResNet(
        depth=8, widths=[4, 8, 8], optimizer=lambda groups: torch.optim.SGD(groups, lr=1e-12),
        scheduler=lambda optimizer: torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=0, threshold=0.5),
    )  # fmt: skip
    trainer = Trainer(**QUIET, max_epochs=3, num_sanity_val_steps=0)
    trainer.fit(network, datamodule=data)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(1e-14)  # no better in two epochs


def test_a_name_that_hides_a_method_is_refused_by_any_trainer(data):
    class Own(ResNet):
        def __init__(self, **shared):
            super().__init__(**shared)
            self.loss = torch.nn.CrossEntropyLoss()

    with pytest.raises(ValueError, match=r"Own has a layer called 'loss', as something of every Classifier is"):
        fit(Own(depth=8, widths=[4, 8, 8], optimizer=sgd), {"datamodule": data})


def test_lightnings_own_checkpoint_is_told_from_one_of_cifar_train(data, tmp_path):
    trainer = Trainer(**QUIET | {"enable_checkpointing": True, "default_root_dir": tmp_path}, max_epochs=1)
    trainer.fit(ResNet(depth=8, widths=[4, 8, 8], optimizer=sgd), datamodule=data)
    trainer.save_checkpoint(tmp_path / "here.ckpt")
    with pytest.raises(ValueError, match=r"here.ckpt, of Lightning's own Trainer, .* load_from_checkpoint"):
        load(tmp_path / "here.ckpt")
    assert ResNet.load_from_checkpoint(tmp_path / "here.ckpt", weights_only=False).hparams["depth"] == 8


def test_the_images_of_a_part_are_in_proportion_and_the_same_each_time():
    both = [Synthetic(num_train=400, num_test=20, num_val=100, max_train=100, batch_size=20) for _ in range(2)]
    for data in both:
        data.load()
    assert torch.equal(both[0].train.images, both[1].train.images)
    whole = Synthetic(num_train=400, num_test=20, num_val=100, batch_size=20)
    whole.load()
    assert whole.split_hash == both[0].split_hash
    shares = np.bincount(whole.train.labels) / 300
    assert np.abs(np.bincount(both[0].train.labels) / 100 - shares).max() <= 0.01


# Without a command


def test_python_m_lists_the_commands():
    done = subprocess.run([sys.executable, "-m", "cifar_resnet"], capture_output=True, text=True)
    assert done.returncode == 0
    for command in cli.COMMANDS:
        assert f"cifar-{command.replace('_', '-')} " in done.stdout
    done = subprocess.run([sys.executable, "-m", "cifar_resnet", "model=resnet20"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "Got model=resnet20; call one of them" in done.stderr


def test_trust_is_a_list_of_modules(trained):
    with pytest.raises(TypeError, match=r"Got 'my_nets'; give \['my_nets'\]"):
        load(trained, trust="my_nets")


def test_types_are_for_others_as_well():
    assert (Path(cifar_resnet.__file__).parent / "py.typed").exists()


@pytest.mark.slow
def test_train_and_load_work_in_a_notebook(tmp_path):
    """A notebook's cells run in a thread of their own event loop, its output is no terminal."""
    cell = f"""
import asyncio
from cifar_resnet import load
from cifar_resnet.api import train

async def cell():
    record = train(overrides={list(TINY)!r})
    network = load(record["run_dir"])
    print(type(network).__name__, record["epochs"])

asyncio.run(cell())
"""
    done = subprocess.run([sys.executable, "-c", cell], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "ResNet 1"


class Endless(torch.utils.data.IterableDataset):
    """Of nobody knows how many images."""

    def __iter__(self):
        for label in range(8):
            yield torch.randn(3, 32, 32), label


@pytest.mark.parametrize("length", [{}, {"max_epochs": -1, "max_time": "00:00:00:01"}])
def test_a_training_whose_length_nobody_knows_has_no_schedule_that_comes_down(length):
    def begin(**options):
        network = ResNet(depth=8, widths=[4, 4, 4], optimizer=sgd, **options)
        loader = torch.utils.data.DataLoader(Endless(), batch_size=4)
        Trainer(**QUIET, **({"max_epochs": 1} | length), num_sanity_val_steps=0).fit(network, loader)
        return network.optimizers().param_groups[0]["lr"]

    assert begin() == 0.01
    with pytest.raises(UsageError, match="whose length nobody knows"):
        begin(scheduler=cosine)
    with pytest.raises(UsageError, match="DropBlock rises over the training"):
        begin(drop_block=0.1)


def test_another_data_module_is_seen_as_the_network_was_trained(trained, data):
    network = load(trained)
    (own,) = Trainer(**QUIET).test(network, datamodule=data, verbose=False)
    data.mean, data.std = [0.1] * 3, [0.9] * 3
    (other,) = Trainer(**QUIET).test(network, datamodule=data, verbose=False)
    assert own == other
    data.classes = data.classes[::-1]
    with pytest.raises(UsageError, match="the network was trained on classes"):
        Trainer(**QUIET).test(network, datamodule=data)
    assert len(Trainer(**QUIET).predict(network, datamodule=data)) == 3  # which takes no labels


class Own(LightningDataModule):
    state = "whatever"

    def __init__(self, data):
        super().__init__()
        self.data = data

    def setup(self, stage):
        self.data.setup(stage)

    def train_dataloader(self):
        return self.data.train_dataloader()

    def test_dataloader(self):
        return self.data.test_dataloader()


def test_a_data_module_of_ones_own_trains_tests_and_trains_again_with_frozen_parts(data):
    network = ResNet(depth=8, widths=[4, 4, 4], optimizer=sgd, freeze=["conv1"])
    before, own = network.conv1.weight.clone(), {"datamodule": Own(data)}
    for _ in range(2):
        fit(network, own)
        assert torch.equal(network.conv1.weight, before)
    Trainer(**QUIET).test(network, **own, verbose=False)


def test_what_pixels_meant_before_another_training_is_forgotten(data):
    network = ResNet(depth=8, widths=[4, 4, 4], optimizer=sgd)
    fit(network, {"datamodule": data})
    network.predict(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    fit(network, {"datamodule": Own(data)})
    with pytest.raises(UsageError, match="Got one that was trained last on a loader or a data module of one's own"):
        network.predict(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))


def test_a_schedule_of_unknown_length_has_no_picture(tmp_path):
    network = ResNet(depth=8, widths=[4, 4, 4], optimizer=sgd, scheduler=partial(StepLR, step_size=1))
    loader, path = torch.utils.data.DataLoader(Endless(), batch_size=4), tmp_path / "schedule.png"
    fit(network, {"train_dataloaders": loader}, callbacks=[ScheduleCurve(str(path))])
    assert not path.exists()


def test_where_images_live_is_checked_without_taking_memory_there(monkeypatch):
    monkeypatch.setattr(torch, "empty", lambda *size, device: 1 / 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    Synthetic(device="cuda")
    Synthetic(device="cuda:1")
    with pytest.raises(UsageError, match=r"Got cuda:2 \(there are 2\); give cpu, cuda"):
        Synthetic(device="cuda:2")


def test_a_network_keeps_no_images_of_its_training(data):
    network = ResNet(depth=8, widths=[4, 4, 4], optimizer=sgd)
    fit(network, {"datamodule": data})
    kept = [value for value in vars(network).values() if isinstance(value, LightningDataModule)]
    assert not kept
    weights, network.class_weights = [1.0] * 9 + [3.0], [1.0] * 9 + [3.0]
    fit(network, {"datamodule": data})  # prepared for it already
    assert network.loss_weights is None
    other = Synthetic(num_train=240, num_test=50, num_val=40, batch_size=40)
    fit(network, {"datamodule": other})
    assert network.loss_weights.tolist() == weights


def test_loaders_made_outside_a_trainer_of_several_processes_are_refused(data):
    data.prepare_data()
    data.setup("fit")
    network = ResNet(depth=8, widths=[4, 4, 4], optimizer=sgd)
    network._trainer = SimpleNamespace(
        estimated_stepping_batches=5, max_steps=-1, max_epochs=1, num_training_batches=5, callbacks=[], optimizers=[],
        world_size=2, train_dataloader=data.train_dataloader(),
    )  # fmt: skip
    with pytest.raises(UsageError, match=r"Got a loader of 1 for 2, made outside the trainer"):
        network.on_fit_start()


def test_lookahead_takes_any_module(data):
    class Own(LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3 * 32 * 32, 10)

        def training_step(self, batch, batch_idx):
            return torch.nn.functional.cross_entropy(self.layer(batch[0].flatten(1)), batch[1])

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1)

    fit(Own(), {"datamodule": data}, callbacks=[Lookahead(every=2, start=0.5)])


def test_one_training_at_a_time_in_a_process(monkeypatch):
    nested = []

    def train_run(cfg):
        with pytest.raises(UsageError, match="one network at a time"):
            api.train([*TINY, "seed=1"])
        nested.append(cfg.seed)
        return {}

    monkeypatch.setattr(api, "train_run", train_run)
    for _ in range(2):
        assert api.train([*TINY]) == {}
    assert nested == [0, 0]
