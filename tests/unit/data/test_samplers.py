"""The split, and the order in which its training images come."""

import hashlib

import pytest
import torch

from cifar_resnet.data.samplers import ShuffledBatchSampler, spread_order, stratified_split


def test_split_is_disjoint_complete_and_stratified():
    labels = torch.arange(50_000) % 10
    labels = labels[torch.randperm(50_000, generator=torch.Generator().manual_seed(0))]
    train, val = stratified_split(labels, 5_000, seed=0)
    assert torch.equal(torch.cat([train, val]).sort().values, torch.arange(50_000))
    assert labels[val].bincount().tolist() == [500] * 10


def test_split_of_uneven_classes_is_in_proportion():
    labels = torch.tensor([0] * 70 + [1] * 20 + [2] * 10)
    for num_val in (0, 1, 7, 33, 99, 100):
        _, val = stratified_split(labels, num_val, seed=3)
        assert len(val) == num_val
        counts = labels[val].bincount(minlength=3).float()
        assert (counts - num_val * torch.tensor([0.7, 0.2, 0.1])).abs().max() < 1


def test_split_is_the_same_in_every_release():
    """Somebody's validation images must not become training images by an update."""
    _, val = stratified_split(torch.arange(1000) % 10, 100, seed=0)
    assert hashlib.sha256(val.numpy().tobytes()).hexdigest()[:16] == "55479a2a2d999980"


def test_every_beginning_of_the_order_of_evaluation_has_each_class_in_proportion():
    labels = torch.tensor([0] * 700 + [1] * 200 + [2] * 100)
    order = spread_order(labels)
    assert torch.equal(order.sort().values, torch.arange(1000))
    for count in range(1, 1001):
        seen = labels[order[:count]].bincount(minlength=3).float()
        assert (seen - count * torch.tensor([0.7, 0.2, 0.1])).abs().max() < 2
    within = order[labels[order] == 0]
    assert not torch.equal(within, within.sort().values)  # nor do the files' neighbours come together


def test_the_order_of_evaluation_is_the_same_in_every_release():
    """Or scores of a part would not be those of the same part."""
    order = spread_order(torch.arange(1000) % 10)
    assert hashlib.sha256(order.numpy().tobytes()).hexdigest()[:16] == "210c69a12734dda2"


def test_without_a_trainer_each_pass_is_the_next_epoch():
    cpu = torch.device("cpu")
    passed, told = (ShuffledBatchSampler(100, 10, seed=0, rank=0, world_size=1, device=cpu) for _ in range(2))
    for epoch in range(3):
        told.set_epoch(epoch)
        assert torch.equal(torch.cat(list(passed)), torch.cat(list(told)))
    begun = next(iter(passed))
    assert torch.equal(begun, next(iter(passed)))  # one that was broken off


def test_ranks_share_out_one_order_and_augment_differently():
    cpu = torch.device("cpu")
    ranks = [ShuffledBatchSampler(103, 10, seed=0, rank=rank, world_size=3, device=cpu) for rank in range(3)]
    dealt = [torch.cat(list(rank)) for rank in ranks]
    assert [len(indices) for indices in dealt] == [30, 30, 30]
    assert len(torch.cat(dealt).unique()) == 90
    ranks[0].set_epoch(1)
    ranks.append(ShuffledBatchSampler(103, 10, seed=0, rank=0, world_size=3, device=cpu))  # in epoch 0
    assert len({rank.generator.initial_seed() for rank in ranks}) == 4
    assert len({rank.numpy_rng.random() for rank in ranks}) == 4


def test_an_epoch_begun_on_another_kind_of_device_goes_on():
    """The images still come once each; what is drawn for the rest of the epoch is drawn anew."""
    begun, other = (ShuffledBatchSampler(100, 10, 0, 0, 1, torch.device("cpu")) for _ in range(2))
    batches = iter(begun)
    first = [next(batches) for _ in range(4)]
    state = begun.state_dict() | {"generator": torch.zeros(16, dtype=torch.uint8)}  # as CUDA's is
    fresh = other.generator.get_state()
    other.load_state_dict(state)
    assert len(torch.cat([*first, *other]).unique()) == 100
    assert not torch.equal(other.generator.get_state(), fresh)


@pytest.mark.parametrize("world_size", [1, 3])
def test_another_number_of_ranks_goes_on_with_the_images_that_were_to_come(world_size):
    """In its middle an epoch in batches of 2 x 6 goes on in as many batches of `world_size` x 12 / world_size."""
    cpu = torch.device("cpu")

    def batches(rank: int, world_size: int, num_given: int) -> list[torch.Tensor]:
        sampler = ShuffledBatchSampler(103, 12 // world_size, seed=0, rank=rank, world_size=world_size, device=cpu)
        sampler.load_state_dict({"num_given": num_given})
        return list(sampler)

    before = [torch.cat(step) for step in zip(*(batches(rank, 2, 0) for rank in range(2)), strict=True)]
    after = [
        torch.cat(step) for step in zip(*(batches(rank, world_size, 5) for rank in range(world_size)), strict=True)
    ]
    assert [step.tolist() for step in before[5:]] == [step.tolist() for step in after]
