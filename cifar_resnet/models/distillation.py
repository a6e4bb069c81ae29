"""Learning from trained networks as well as from labels (Hinton et al. 2015, arXiv 1503.02531)."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from cifar_resnet import limits


class Distillation:
    """The teachers and what they add to the loss; not a module, so that no student counts, trains or saves them.

    teacher: a checkpoint or run folder, or several, whose mean probabilities are then the teacher.
    temperature: divides both sides' logits before they are compared (section 2).
    weight: of the teacher in the loss; the labels have the rest.
    """

    def __init__(self, teacher: str | Sequence[str] | None, temperature: float = 4.0, weight: float = 0.9):
        from cifar_resnet import checkpoints  # which knows the networks, and so this module

        limits.require("distill", temperature=temperature, weight=weight)
        paths = [teacher] if isinstance(teacher, str) else list(teacher or [])
        if not paths:
            raise ValueError("distill.teacher names nobody. Give a checkpoint, a run folder, or a list of them")
        self.networks = [checkpoints.load(path).requires_grad_(False) for path in paths]
        self.data = [checkpoints.read(path)["data"] for path in paths]
        self.paths = paths
        self.temperature, self.weight = temperature, weight

    def check(self, classes: Sequence[str], image_size: int) -> None:
        for path, own in zip(self.paths, self.data, strict=True):
            if own["image_size"] != image_size:
                raise ValueError(
                    f"a teacher must look at images of the student's size. Got {path}, trained on {own['image_size']} "
                    f"pixels, and images of {image_size}"
                )
            if own["classes"] != list(classes):
                raise ValueError(
                    f"a teacher must know the student's classes. Got {path}, trained on {', '.join(own['classes'])}"
                )

    def setup(self, device: torch.device, data: dict) -> None:
        """Onto the device; `data` says what the student's images mean (`DataModule.state`)."""
        self.rescale = []
        for network, own in zip(self.networks, self.data, strict=True):
            network.to(device, memory_format=torch.channels_last)
            mean, std, own_mean, own_std = (
                torch.tensor(values, device=device)[:, None, None]
                for values in (data["mean"], data["std"], own["mean"], own["std"])
            )
            self.rescale.append((std / own_std, (mean - own_mean) / own_std))

    @torch.no_grad()
    def probabilities(self, images: Tensor) -> Tensor:
        """The teachers' mean, softened by the temperature: (N, num_classes). images: as normalised for the student."""
        each = [
            (network(images * scale + shift).float() / self.temperature).softmax(1)
            for network, (scale, shift) in zip(self.networks, self.rescale, strict=True)
        ]
        return torch.stack(each).mean(0)

    def __call__(self, images: Tensor, logits: Tensor, loss: Tensor) -> Tensor:
        """The whole loss, from the student's logits and its loss on the labels."""
        log_student = (logits.float() / self.temperature).log_softmax(1)
        # its gradient shrinks with the square of the temperature, so it is scaled back (section 2.1)
        divergence = F.kl_div(log_student, self.probabilities(images), reduction="batchmean") * self.temperature**2
        return (1 - self.weight) * loss + self.weight * divergence
