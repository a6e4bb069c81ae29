"""Ensembles against plain loops."""

import numpy as np
import pytest
import torch

from cifar_resnet import load
from cifar_resnet.data import Synthetic
from cifar_resnet.results.inference import Ensemble, mean_probability
from cifar_resnet.runs import find_checkpoints


def test_mean_probability_is_finite_where_probabilities_underflow():
    each = torch.tensor([[[0.0, -500.0]], [[0.0, -400.0]]])
    assert mean_probability(each)[0, 1] == pytest.approx(-400 - np.log(2), rel=1e-6)


def test_an_ensembles_member_predicts_as_in_its_own_test(sweep_dir, test_images):
    paths = find_checkpoints(sweep_dir)
    assert [path.parent.parent.name for path in paths] == ["seed-0", "seed-1"]
    ensemble = Ensemble(paths)
    images, _ = Synthetic(num_train=240, num_test=50).read(train=False)
    each = ensemble.log_probs(images, batch_size=7)
    for path, found in zip(paths, each, strict=True):
        network = load(path)
        with torch.no_grad():
            expected = network(test_images(path.parent.parent)[0]).softmax(1)
        assert torch.allclose(found.exp(), expected, atol=1e-5)
