"""What is kept of predictions."""

import torch

from cifar_resnet.images import content_hash
from cifar_resnet.results.predictions import Predictions


class InAFile(torch.Tensor):
    """Images that are more than memory holds."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        assert func is not torch.Tensor.__getitem__ or not isinstance(args[1], torch.Tensor), "copied whole"
        return super().__torch_function__(func, types, args, kwargs or {})


def test_of_a_whole_set_images_are_hashed_where_they_lie():
    images = torch.randint(256, (20, 3, 8, 8), dtype=torch.uint8)
    labels, log_probs = torch.arange(20) % 10, torch.randn(20, 10).log_softmax(1)
    found = Predictions.of(images.as_subclass(InAFile), log_probs, labels)
    assert found.images_hash == content_hash(images)
    assert found.indices.tolist() == list(range(20))
    part = Predictions.of(images, log_probs[:2], labels, order=torch.tensor([7, 3]))
    assert part.images_hash == content_hash(images[[3, 7]])
    assert torch.equal(part.log_probs, log_probs[[1, 0]])
