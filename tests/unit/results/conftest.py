"""Predictions that several tests look at."""

import numpy as np
import pytest
import torch


@pytest.fixture
def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    """Too confident predictions for 2,000 images of ten classes, some two thirds of them right."""
    random = np.random.default_rng(0)
    labels = random.integers(10, size=2000)
    logits = random.normal(size=(2000, 10)) * 3
    logits[np.arange(2000), labels] += 5
    return torch.from_numpy(logits).float().log_softmax(1), torch.from_numpy(labels)
