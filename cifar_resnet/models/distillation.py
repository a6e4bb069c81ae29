"""Learning from trained networks as well as from labels (Hinton et al. 2015, arXiv 1503.02531)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cifar_resnet.constraints import Fraction, Positive, check
from cifar_resnet.errors import UsageError, refuse_if


class Distillation:
    """The teachers and what they add to the loss; not a module, so that no student counts, trains or saves them.

    teacher: trained networks, whose mean probabilities are then the teacher; on the command line a checkpoint or run
        folder, or a list of them. They are put into eval mode, and get no gradients.
    temperature: divides both sides' logits before they are compared (section 2).
    weight: of the teacher in the loss; the labels have the rest.
    """

    def __init__(self, teacher: Sequence[nn.Module], temperature: Positive = 4.0, weight: Fraction = 0.9):
        check(Distillation, locals())
        self.networks: list[Any] = [network.requires_grad_(False).eval() for network in teacher]
        self.temperature, self.weight = temperature, weight

    def setup(self, device: torch.device, data: dict) -> None:
        """Onto the device; `data` says what the student's images mean (`DataModule.state`)."""
        student = [torch.tensor(data[key], device=device)[:, None, None] for key in ("mean", "std")]
        self.rescale = []
        for network in self.networks:
            network.to(device, memory_format=torch.channels_last)
            mean, std = (values[:, None, None] for values in network.pixel_stats(device))
            self.rescale.append((student[1] / std, (student[0] - mean) / std))

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """The teachers' mean, softened by the temperature: (N, num_classes). images: as normalised for the student."""
        logits = [
            network(images * scale + shift) for network, (scale, shift) in zip(self.networks, self.rescale, strict=True)
        ]
        return (torch.stack(logits).float() / self.temperature).softmax(2).mean(0)

    def __call__(self, images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """The whole loss, from the student's logits and its loss on the labels."""
        log_student = (logits.float() / self.temperature).log_softmax(1)
        divergence = nn.functional.kl_div(log_student, self.probabilities(images), reduction="batchmean")
        # its gradient shrinks with the square of the temperature, so it is scaled back (section 2.1)
        return (1 - self.weight) * loss + self.weight * (divergence * self.temperature**2)


def check_teacher(path: str, teacher: Any, image_sizes: Sequence[int], classes: list[str]) -> None:
    """UsageError where it was trained on other images than its student will be, or cannot look at all that will see.

    path: where it comes from. image_sizes: in pixels, the first that of the data.
    """
    own, image_size = teacher.data_state, image_sizes[0]
    refuse_if(
        own["image_size"] != image_size,
        f"a teacher must look at images of the student's size. Got {path}, trained on {own['image_size']} pixels, "
        f"and images of {image_size}; give another distill.teacher",
    )
    refuse_if(
        own["classes"] != classes,
        f"a teacher must know the student's classes. Got {path}, trained on {', '.join(own['classes'])}; give "
        f"another distill.teacher",
    )
    for size in image_sizes:
        try:
            teacher.check_image_size(size)
        except ValueError as error:
            raise UsageError(
                f"a teacher looks at the student's images, {size} pixels among them. Got {path}: {error}; or leave out "
                f"resize"
            ) from error
