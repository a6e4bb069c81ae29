"""The data module, with a trainer and without: its split, and the batches that its loaders give."""

import copy
import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TINY, assert_equal
from lightning.pytorch import Callback

from cifar_resnet.compose import Composer
from cifar_resnet.data import Augment, Files, Synthetic
from cifar_resnet.data.datamodule import StackedData
from cifar_resnet.data.loaders import EvalLoader, TrainLoader
from cifar_resnet.data.samplers import stratified_split
from cifar_resnet.errors import UsageError
from cifar_resnet.images import Normalise
from cifar_resnet.instantiation import instantiate
from cifar_resnet.train import train_run


def tiny(**options) -> Synthetic:
    return Synthetic(**({"num_train": 300, "num_test": 70, "num_val": 100, "batch_size": 32} | options))


def ready(**options) -> Synthetic:
    data = tiny(**options)
    data.prepare_data()
    data.setup("fit")
    return data


def loader_of(epoch: int = 0, **options) -> TrainLoader:
    loader = ready(**options).train_dataloader()
    loader.sampler.set_epoch(epoch)
    return loader


def normalised(data: Synthetic, images: torch.Tensor) -> torch.Tensor:
    """As documented, without our own function."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (data.mean, data.std))
    return (images / 255 - mean) / std


def test_split_follows_split_seed_alone():
    def hash_of(**options):
        data = tiny(**options)
        data.load()
        return data.split_hash

    torch.manual_seed(5)
    first = hash_of(seed=1)
    torch.manual_seed(6)
    assert hash_of(seed=2, batch_size=16) == first
    assert hash_of(split_seed=1) != first


def test_images_and_labels_and_nothing_else_tell_training_sets_apart(tmp_path):
    images, labels = (each.numpy() for each in Synthetic(num_test=60).read(train=False))

    def hash_of(name: str, images=images, labels=labels, **options) -> str:
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
        np.savez(tmp_path / "test.npz", images=images[:5], labels=labels[:5])
        places = [str(tmp_path / f"{each}.npz") for each in ("test", name)]
        data = Files(*places, **({"num_val": 10, "batch_size": 8} | options))
        data.load()
        assert data.state()["train_hash"] == data.train_hash
        return data.train_hash

    first = hash_of("a")
    assert hash_of("b", seed=3, batch_size=4, num_val=20, split_seed=2) == first
    assert hash_of("c", images=np.where(np.arange(32) == 5, 255 - images, images)) != first
    assert hash_of("d", labels=np.roll(labels, 1)) != first
    assert hash_of("e", images=images.transpose(0, 2, 3, 1)) == first  # the same, written otherwise


# without a trainer


def test_alone_it_yields_normalised_batches_of_training_images():
    data = ready()
    images, labels = data.read(train=True)
    train, _ = stratified_split(labels, 100, seed=0)
    loader = data.train_dataloader()
    order = list(loader.sampler)
    loader.sampler.set_epoch(0)  # again
    batches = list(loader)
    assert len(loader) == len(batches) == len(order) == 200 // 32
    for indices, (pixels, found) in zip(order, batches, strict=True):
        torch.testing.assert_close(pixels, normalised(data, images[train][indices]))
        assert torch.equal(found, labels[train][indices])
        assert pixels.dtype == torch.float32
        assert pixels.is_contiguous(memory_format=torch.channels_last)


def test_alone_its_batches_are_augmented():
    data = ready(augment=Augment(crop_padding=0, flip="random", cutout_size=8, cutout_probability=1.0))
    loader = data.train_dataloader()
    plain = [normalised(data, data.train.images[indices]) for indices in loader.sampler]
    loader.sampler.set_epoch(0)  # again
    cut = mirrored = 0
    for (pixels, _), expected in zip(loader, plain, strict=True):
        for image, original in zip(pixels, expected, strict=True):
            kept = image.ne(0).any(0)
            cut += (~kept).sum().item()
            flip = original.flip(-1)
            is_mirrored = torch.allclose(image[:, kept], flip[:, kept], atol=1e-5)
            assert is_mirrored or torch.allclose(image[:, kept], original[:, kept], atol=1e-5)
            mirrored += is_mirrored
    assert 0.3 < mirrored / 192 < 0.7
    assert 16 <= cut / 192 <= 64  # squares of 8, some of them across the border


def test_a_mixed_batch_comes_with_probabilities():
    pixels, labels = next(iter(loader_of(augment=Augment(mixing="cutmix"))))
    assert pixels.shape == (32, 3, 32, 32)
    assert labels.shape == (32, 10)
    torch.testing.assert_close(labels.sum(1), torch.ones(32))


def test_training_batches_follow_seed_and_epoch():
    first, again = (list(loader_of(3, seed=0, augment=Augment())) for _ in range(2))
    assert_equal(first, again)
    for epoch, seed in ((4, 0), (3, 1)):
        images, labels = next(iter(loader_of(epoch, seed=seed, augment=Augment())))
        assert not torch.equal(first[0][1], labels)
        assert not torch.equal(first[0][0], images)


@pytest.mark.parametrize("options", [{}, {"policy": "randaugment", "mixing": "mixup"}])
def test_a_batch_of_indices_is_what_iteration_gives_for_the_same_draws(options):
    one, other = (loader_of(1, augment=Augment(**options)) for _ in range(2))
    for batch, indices in zip(one, other.sampler, strict=True):
        assert_equal(batch, other.batch(indices))


def test_batches_of_indices_can_be_asked_for_at_once_and_draw_as_the_epoch_does():
    one, other = (loader_of(2, augment=Augment(policy="randaugment", mixing="mixup")) for _ in range(2))
    assert_equal(one.batch(next(iter(one.sampler))), other.batch(next(iter(one.sampler))))
    other.sampler.set_epoch(2)  # which begins the draws anew
    assert_equal(next(iter(one)), other.batch(next(iter(one.sampler))))


def test_alternating_flips_mirror_each_image_in_every_other_epoch():
    loader = loader_of(augment=Augment(crop_padding=0, flip="alternating", cutout_size=0))
    indices = torch.arange(200)
    epochs = []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        epochs.append(loader.batch(indices)[0])
    assert torch.equal(epochs[0], epochs[1].flip(-1))
    assert torch.equal(epochs[0], epochs[2])
    plain = loader_of().batch(indices)[0]
    mirrored = (epochs[0] == plain.flip(-1)).flatten(1).all(1)
    assert 0.35 < mirrored.float().mean() < 0.65
    assert torch.equal(epochs[0][~mirrored], plain[~mirrored])


class Recorder(Callback):
    """Keeps what each training step gets."""

    def __init__(self):
        self.batches: list[list[tuple]] = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.batches.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches[-1].append(tuple(part.clone() for part in batch))


@pytest.mark.parametrize(
    "overrides",
    [
        ["seed=3"],
        ["augment=cutmix", "augment.policy=trivialaugment", "augment.mixing_probability=0.5", "augment.cutout_size=8"],
    ],
)
def test_alone_it_yields_what_a_training_sees_to_the_bit(overrides):
    (job,) = Composer("train").jobs([*TINY, "trainer.max_epochs=3", "test=false", *overrides])
    recorder = Recorder()
    train_run(job.cfg, [recorder])
    data = instantiate(job.cfg.data, augment=job.cfg.augment, _convert_="all")
    data.prepare_data()
    data.setup("fit")
    loader = data.train_dataloader()
    assert len(recorder.batches) == 3
    for epoch, seen in enumerate(recorder.batches):
        loader.sampler.set_epoch(epoch)
        assert_equal(list(loader), seen, f"epoch {epoch}")


@pytest.mark.parametrize(("device", "expected"), [(None, "meta"), ("cpu", "cpu")])
def test_images_live_on_the_trainers_device_or_the_one_that_is_given(device, expected):
    data = tiny(device=device)
    data.trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("meta")))
    data.setup("fit")
    assert (data.train.device.type, data.val.device.type) == (expected, expected)


def test_without_a_trainer_or_a_device_images_stay_on_the_cpu():
    assert ready().train.device.type == "cpu"


# validation and test


def test_validation_and_test_images_come_unaugmented_and_complete_in_the_order_that_the_loader_says():
    data = ready(augment=Augment(), eval_batch_size=32)
    data.setup("test")
    images, labels = data.read(train=True)
    test_images, test_labels = data.read(train=False)
    _, val = stratified_split(labels, 100, seed=0)
    stats = torch.tensor(data.mean), torch.tensor(data.std)
    for loader, expected_images, expected_labels in (
        (data.val_dataloader(), images[val], labels[val]),
        (data.test_dataloader(), test_images, test_labels),
    ):
        found = list(loader)
        assert len(found) == len(loader)
        assert loader.order.sort().values.tolist() == list(range(len(expected_labels)))
        assert torch.equal(torch.cat([batch[1] for batch in found]), expected_labels[loader.order])
        pixels = Normalise(*stats)(expected_images[loader.order])
        assert torch.equal(torch.cat([batch[0] for batch in found]), pixels)
        assert found[0][0].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("split", ["val", "test"])
def test_every_part_of_the_evaluation_batches_shows_the_classes_in_proportion(split):
    data = ready(num_train=600, num_test=200, num_val=200, eval_batch_size=20)
    data.setup("test")
    held = getattr(data, split)
    by_class = held.labels.sort(stable=True).indices  # as a folder of classes is read
    held.images, held.labels = held.images[by_class], held.labels[by_class]
    shares = torch.bincount(held.labels, minlength=10) / 200
    for _, labels in getattr(data, f"{split}_dataloader")():
        assert (torch.bincount(labels, minlength=10) - 20 * shares).abs().max() < 1.5


def test_the_order_of_evaluation_is_always_the_same():
    first, again = (ready(seed=seed, batch_size=size).val_dataloader().order for seed, size in ((0, 32), (5, 16)))
    assert torch.equal(first, again)


@pytest.mark.parametrize("world_size", [2, 3, 5])
@pytest.mark.parametrize(("limit", "seen"), [(None, 4), (1.0, 4), (3, 3), (0.5, 2), (1, 1), (9, 4)])
def test_several_ranks_share_the_batches_that_one_would_see(world_size, limit, seen):
    data = ready(eval_batch_size=32)  # of 100 images: the last batch has four
    given = (data.val, 32, data.normalise, limit)
    alone = list(EvalLoader(*given))
    assert len(alone) == seen
    loaders = [EvalLoader(*given, rank, world_size) for rank in range(world_size)]
    assert {len(loader) for loader in loaders} == {4}
    shares = [list(loader) for loader in loaders]
    assert [len(share) for share in shares] == [len(range(rank, seen, world_size)) for rank in range(world_size)]
    dealt = [batch for turn in itertools.zip_longest(*shares) for batch in turn if batch is not None]
    for (images, labels), (expected_images, expected_labels) in zip(dealt, alone, strict=True):
        assert torch.equal(images, expected_images)
        assert torch.equal(labels, expected_labels)


def test_without_validation_images_there_is_no_batch_of_them():
    assert list(ready(num_val=0).val_dataloader()) == []


def test_training_never_sees_a_validation_image():
    data = ready()
    val, seen = (
        [image.numpy().tobytes() for images, _ in loader for image in images]
        for loader in (data.val_dataloader(), data.train_dataloader())
    )
    assert len(set(val)) == 100
    assert len(set(seen)) == 192  # six whole batches of the 200, no image twice
    assert not set(val) & set(seen)


def test_num_val_zero_trains_on_everything():
    data = ready(num_val=0)
    assert len(data.train) == 300
    assert not data.has_val


def test_mean_and_std_are_those_of_the_training_images():
    data = tiny()
    data.load()
    pixels = data.train.images.double() / 255
    torch.testing.assert_close(torch.tensor(data.mean).double(), pixels.mean((0, 2, 3)), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.tensor(data.std).double(), pixels.std((0, 2, 3), correction=0), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size must be a whole number, 1 or more. Got 0"),
        ({"num_val": -1}, "num_val must be .* Got -1"),
        ({"num_val": 1.5}, "num_val must be .*from 0 to below 1 or null. Got 1.5"),
        ({"split_seed": -1}, "split_seed must be a whole number from 0 to 4294967295. Got -1"),
        ({"std": [0.0, 1.0, 1.0]}, r"std\[0\] must be a number above 0, up to 1. Got 0.0"),
        ({"num_train": 3}, "num_train must be a whole number, 10 or more. Got 3"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        tiny(**options)


def test_too_few_images_for_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"Got 200, without those held out for validation, and data.batch_size=512"):
        tiny(batch_size=512).load()


@pytest.mark.parametrize("split", ["train", "val", "test"])
def test_a_loader_asked_for_before_setup_says_what_to_call(split):
    with pytest.raises(UsageError, match=r"Call prepare_data\(\) and setup"):
        getattr(Synthetic(num_train=40, num_test=10, batch_size=4), f"{split}_dataloader")()


def test_a_sample_of_images_that_lie_class_by_class_has_all_classes(tmp_path):
    shades = np.repeat(np.arange(10, dtype=np.uint8), 30)  # as bright as their label
    images = np.broadcast_to(shades[:, None, None, None], (300, 32, 32, 3))
    np.savez(tmp_path / "ordered.npz", images=images, labels=shades.astype(np.int64))
    np.savez(tmp_path / "test.npz", images=images[::30], labels=shades[::30].astype(np.int64))
    data = Files(train=str(tmp_path / "ordered.npz"), test=str(tmp_path / "test.npz"), num_val=50, batch_size=10)
    data.prepare_data()
    data.setup("fit")
    assert len(data.sample(40).unique()) == 10
    assert len(data.sample(1000)) == 250
    for count in (130, 200, 249):  # more than half
        assert len(data.sample(count)) == count
        assert len(data.sample(count).unique()) == 10


def test_classes_that_max_train_leaves_no_image_of_are_named(caplog):
    data = Synthetic(num_train=240, num_val=40, num_test=10, max_train=8, batch_size=4)
    data.load()
    present = data.train.labels.unique().tolist()
    lost = [name for label, name in enumerate(data.classes) if label not in present]
    assert f"data.max_train=8 takes no image of {', '.join(lost)}" in caplog.text


def test_a_network_without_whitening_is_given_no_sample(cifar_train, monkeypatch):
    monkeypatch.setattr(Synthetic, "sample", lambda self: 1 / 0)
    assert cifar_train() == 0


def test_another_augmentation_takes_effect_with_the_next_batch():
    data = ready(augment=Augment(crop_padding=0, flip="none", cutout_size=40))
    plain = {image.numpy().tobytes() for image in data.normalise(data.train.images)}
    batches = iter(data.train_dataloader())
    before, _ = next(batches)
    data.augment = Augment(crop_padding=0, flip="none", cutout_size=0)
    after, _ = next(batches)
    assert not all(image.numpy().tobytes() in plain for image in before)
    assert all(image.numpy().tobytes() in plain for image in after)


def test_another_augmentation_is_that_of_all_networks_side_by_side():
    members = [ready(), ready(seed=1)]
    data, augment = StackedData(members), Augment()
    loaders = [member.train_dataloader() for member in members]
    data.augment = augment
    assert [loader.augment for loader in loaders] == [augment, augment]
    assert data.augment is augment
    assert not hasattr(copy.deepcopy(members[0]), "_train_loaders")
