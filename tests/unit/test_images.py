"""Normalisation against torchvision's."""

import torch
from torchvision.transforms.v2 import functional as reference

from cifar_resnet.images import Normalise


def test_normalise_equals_torchvision():
    images = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8).contiguous(memory_format=torch.channels_last)
    mean, std = torch.tensor([0.49, 0.48, 0.45]), torch.tensor([0.25, 0.24, 0.26])
    expected = reference.normalize(images.float() / 255, mean.tolist(), std.tolist())
    found = Normalise(mean, std)(images)
    torch.testing.assert_close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last)
