"""Cross-validation and balanced sampling."""

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TINY, record_of

from cifar_resnet import cli
from cifar_resnet.data import Synthetic
from cifar_resnet.data.samplers import ShuffledBatchSampler, fold_split

UNEVEN = torch.tensor([0] * 7 + [1] * 40 + [2] * 13 + [3])
SWEEP = ("-m", *TINY, "data.fold=0,1,2", "data.num_folds=3")


@pytest.mark.parametrize("num_folds", [2, 5, 7])
def test_each_image_is_held_out_once_and_each_class_in_proportion(num_folds):
    splits = [fold_split(UNEVEN, fold, num_folds, seed=3) for fold in range(num_folds)]
    held_out = torch.cat([val for _, val in splits])
    assert held_out.sort().values.tolist() == list(range(len(UNEVEN)))
    for train, val in splits:
        assert sorted(train.tolist() + val.tolist()) == list(range(len(UNEVEN)))
        assert val.tolist() == sorted(val.tolist())
    for counts in (torch.stack([torch.bincount(UNEVEN[val], minlength=4) for _, val in splits]),
                   torch.tensor([[len(val)] for _, val in splits])):  # fmt: skip
        assert (counts.amax(0) - counts.amin(0)).max() <= 1


def test_the_seed_alone_decides():
    same, other = (fold_split(UNEVEN, 0, 5, seed)[1].tolist() for seed in (3, 4))
    assert same == fold_split(UNEVEN, 0, 5, 3)[1].tolist() != other


@pytest.mark.slow
def test_a_sweep_over_the_folds_is_one_group_of_the_report(capsys, run_dirs):
    assert cli.train([*SWEEP]) == 0
    records = [record_of(run_dir) for run_dir in run_dirs()]
    assert [record["num_val"] for record in records] == [80, 80, 80]
    assert len({record["split_hash"] for record in records}) == 3
    capsys.readouterr()
    assert cli.report(["outputs/train", "output=report"]) == 0
    groups = Path("report/groups.csv").read_text().splitlines()
    row = dict(zip(groups[0].split(","), groups[1].split(","), strict=True))
    assert len(groups) == 2
    assert row["n"] == "3"
    mean = sum(record["metrics"]["val/acc"] for record in records) / 3
    assert float(row["val_acc_mean"]) == pytest.approx(mean)


def test_folds_hold_out_others_of_the_same_images():
    first = Synthetic(num_train=60, num_test=10, batch_size=10, fold=0, num_folds=3)
    first.load()
    second = Synthetic(num_train=60, num_test=10, batch_size=10, fold=1, num_folds=3)
    second.load()
    assert first.split_hash != second.split_hash
    assert first.train_hash == second.train_hash


@pytest.mark.parametrize(
    ("overrides", "text"),
    [
        (["data.fold=5"], "data.fold counts data.num_folds from 0. Got 5 of 5"),
        (["data.fold=0", "data.num_val=0"], "data.fold says what is held out"),
        (["data.fold=-1"], "data.fold must be a whole number, 0 or more"),
        (["data.num_folds=1"], "data.num_folds must be a whole number, 2 or more"),
        (["data.balanced_sampling=yes please"], "data.balanced_sampling must be true or false"),
    ],
)
def test_what_cannot_be_is_refused(overrides, text, capsys):
    given = {each.partition("=")[0] for each in overrides}
    assert cli.train([*(each for each in TINY if each.partition("=")[0] not in given), *overrides]) == 2
    assert text in capsys.readouterr().err


def test_balanced_sampling_shows_each_class_as_often():
    weights = (1 / torch.bincount(UNEVEN).double())[UNEVEN]
    sampler = ShuffledBatchSampler(len(UNEVEN), 10, 0, 0, 1, torch.device("cpu"), weights)
    drawn = []
    for epoch in range(300):
        sampler.set_epoch(epoch)
        drawn += torch.cat(list(sampler)).tolist()
    shares = np.bincount(UNEVEN[drawn], minlength=4) / len(drawn)
    assert len(drawn) == 300 * 60
    # six standard deviations of a share of 18,000
    assert np.abs(shares - 0.25).max() < 6 * np.sqrt(0.25 * 0.75 / len(drawn))


def test_it_repeats_goes_on_within_an_epoch_and_differs_between_epochs():
    weights = (1 / torch.bincount(UNEVEN).double())[UNEVEN]
    sampler = ShuffledBatchSampler(len(UNEVEN), 10, 0, 0, 1, torch.device("cpu"), weights)
    whole = torch.stack(list(sampler))
    sampler.set_epoch(0)
    assert torch.equal(torch.stack(list(sampler)), whole)
    sampler.set_epoch(0)
    iterator = iter(sampler)
    for _ in range(2):
        next(iterator)
    other = ShuffledBatchSampler(len(UNEVEN), 10, 0, 0, 1, torch.device("cpu"), weights)
    other.load_state_dict(sampler.state_dict())
    assert torch.equal(torch.stack(list(other)), whole[2:])
    sampler.set_epoch(1)
    assert not torch.equal(torch.stack(list(sampler)), whole)


@pytest.mark.slow
def test_a_run_draws_so(cifar_train, run_dirs):
    """A network that sees a rare class as often as the others answers with it more often."""
    images, labels = Synthetic(num_train=400, num_test=100).read(True)
    kept = (labels < 2) & ((labels == 0) | (torch.arange(len(labels)) % 8 == 0))
    np.savez("uneven.npz", images=images[kept].numpy(), labels=labels[kept].numpy())
    test_images, test_labels = Synthetic(num_test=400).read(False)
    few = test_labels < 2
    np.savez("test.npz", images=test_images[few].numpy(), labels=test_labels[few].numpy())
    found = []
    others = [text for text in TINY if not text.startswith(("data", "trainer.max_epochs"))]
    for balanced in ("false", "true"):
        assert cli.train([*others, "data=files", "data.train=uneven.npz", "data.test=test.npz", "data.batch_size=10",
                          "trainer.max_epochs=4", "augment=none",
                          f"data.balanced_sampling={balanced}"]) == 0  # fmt: skip
        evaluation = np.load(run_dirs()[-1] / "predictions.npz")
        found.append((evaluation["log_probs"].argmax(1) == 1).mean())
    assert found[1] > found[0]


def test_more_folds_than_images_are_refused():
    data = Synthetic(num_train=10, num_test=10, batch_size=2, fold=8, num_folds=11)
    with pytest.raises(ValueError, match=r"Got data\.num_folds=11 of 10 images; give fewer"):
        data.load()
