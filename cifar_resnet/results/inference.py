"""What trained networks predict for images, outside of any training."""

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric import Fabric
from torch import Tensor, nn

from cifar_resnet import checkpoints
from cifar_resnet.constraints import TTA, check
from cifar_resnet.errors import refuse_if
from cifar_resnet.hardware import keep_freed_memory
from cifar_resnet.images import Normalise
from cifar_resnet.initialisation import head_of
from cifar_resnet.models import Classifier
from cifar_resnet.models.tta import log_probabilities
from cifar_resnet.results.ood import nearest_similarity

ROUNDING = 0.02  # of logits in 16 bits, by their norms; what is another layer's lies far above


def mean_probability(each: Tensor) -> Tensor:
    """An ensemble's log-probabilities from those of its members. each: (members, N, num_classes)."""
    return each.logsumexp(0) - math.log(len(each))


def has_same_weights(network: nn.Module, other: nn.Module) -> bool:
    """Whether one is a copy of the other."""
    own, others = network.state_dict(), other.state_dict()
    return own.keys() == others.keys() and all(torch.equal(own[name], others[name]) for name in own)


class Ensemble:
    """One or several trained networks on a device, and what they predict for images as they come from a file.

    paths: .ckpt files or run folders. tta: see `models.tta`, for every image; None for each network's own.
    accelerator, precision: as Lightning names them.
    trusted: modules whose networks may be imported, beside those of this package; see trust.py.
    devices: 1 for the first, or a list with the number of another.
    """

    def __init__(
        self,
        paths: Sequence[str | Path],
        tta: TTA | None = None,
        accelerator: str = "auto",
        precision: str = "32-true",
        trusted: Sequence[str] = (),
        devices: int | list[int] = 1,
    ):
        check(Ensemble, locals())
        keep_freed_memory()
        self.tta, self.precision = tta, precision
        try:
            self.fabric = Fabric(accelerator=accelerator, devices=devices, precision=precision)  # type: ignore[arg-type]
        except (RuntimeError, ImportError) as error:  # where there is none
            raise ValueError(f"no such accelerator here. Got {accelerator}; give auto, or cpu ({error})") from error
        self.device = self.fabric.device
        self.networks = [checkpoints.load(path, trusted) for path in paths]
        first = self.networks[0].data_state
        self.classes, self.image_size = first["classes"], first["image_size"]
        for path, network in zip(paths, self.networks, strict=True):
            for key in ("classes", "image_size"):
                refuse_if(
                    network.data_state[key] != first[key],
                    f"an ensemble's networks share classes and image size. Got {path} with {key} "
                    f"{network.data_state[key]}, and {paths[0]} with {first[key]}",
                )
        for (path, network), (other, twin) in itertools.combinations(zip(paths, self.networks, strict=True), 2):
            refuse_if(
                has_same_weights(network, twin),
                f"a network counts once in an ensemble. Got {other} with the weights of {path}; leave one of them out",
            )
        for network in self.networks:
            network.to(self.device, memory_format=torch.channels_last)
        self.normalise = [Normalise(*network.pixel_stats(self.device)) for network in self.networks]

    @property
    def against_nan(self) -> str:
        """What may help where the networks give nan."""
        return "train anew" if self.precision == "32-true" else "try precision=32-true, or train anew"

    @torch.inference_mode()
    def log_probs(self, images: Tensor, batch_size: int = 500) -> Tensor:
        """Each member's log-probabilities: (members, N, num_classes) float32, on the CPU.

        images: (N, 3, image_size, image_size) uint8, any number of them; batch_size: how many at a time.
        """
        batches = []
        for batch in images.split(batch_size):
            batch = batch.to(self.device).contiguous(memory_format=torch.channels_last)
            with self.fabric.autocast():
                each = [
                    log_probabilities(net, normalise(batch), self.tta or net.tta, 1.0 if self.tta else net.tta_below)
                    for net, normalise in zip(self.networks, self.normalise, strict=True)
                ]
            batches.append(torch.stack(each).cpu())
        return torch.cat(batches, dim=1)

    @torch.inference_mode()
    def evidence(self, batches: Iterable[Tensor]) -> "Evidence":
        """What the networks say of each image as it is, without other views of it.

        batches: of images as `log_probs` takes them.
        """
        heads = [head_module(network) for network in self.networks]
        found: list[tuple[Tensor, Tensor]] = []
        features: list[list[Tensor]] = [[] for _ in self.networks]
        for batch in batches:
            batch = batch.to(self.device).contiguous(memory_format=torch.channels_last)
            logits = []
            for network, normalise, head, own in zip(self.networks, self.normalise, heads, features, strict=True):
                with self.fabric.autocast(), watching(head) as calls:
                    logits.append(network(normalise(batch)).float())
                own += calls.features_of(logits[-1])
            each = torch.stack(logits)
            found.append((mean_probability(each.log_softmax(2)).amax(1).exp().cpu(), each.logsumexp(2).mean(0).cpu()))
        sure, energy = (torch.cat(parts) for parts in zip(*found, strict=True))
        is_whole = all(sum(map(len, own)) == len(sure) for own in features)
        return Evidence(sure, energy, [torch.cat(own) for own in features] if is_whole else [])


class Calls:
    """What a layer was given, and what it gave, when it was last called."""

    def __init__(self) -> None:
        self.given: Tensor | None = None
        self.gave: Tensor | None = None

    def note(self, module: nn.Module, args: tuple, kwargs: dict[str, Any], output: Any) -> None:
        tensors = [each for each in (*args, *kwargs.values()) if isinstance(each, Tensor)]
        self.given, self.gave = (tensors[0], output) if tensors and isinstance(output, Tensor) else (None, None)

    def features_of(self, logits: Tensor) -> list[Tensor]:
        """(N, D) float32, on the CPU: what it was given, if what it gave is the logits, but perhaps for a positive
        factor or what else keeps their order; of positions the mean."""
        if self.gave is None or self.gave.shape[:2] != logits.shape:
            return []
        gave = self.gave.float().flatten(2).mean(2) if self.gave.ndim > 2 else self.gave.float()
        factor = (gave * logits).sum() / gave.square().sum().clamp(min=torch.finfo(torch.float32).tiny)
        # in 16 bits rounding makes ties, and with them other largest ones
        is_multiple = factor > 0 and (gave * factor - logits).norm() <= ROUNDING * logits.norm()
        if not is_multiple and not torch.equal(gave.argmax(1), logits.argmax(1)):
            return []
        return [(self.given.flatten(2).mean(2) if self.given.ndim > 2 else self.given).float().cpu()]


@contextlib.contextmanager
def watching(module: nn.Module | None) -> Iterator[Calls]:
    calls = Calls()
    hook = module.register_forward_hook(calls.note, with_kwargs=True) if module else None
    try:
        yield calls
    finally:
        if hook:
            hook.remove()


@dataclass
class Evidence:
    """How familiar images look to an ensemble's members, N images each.

    probability: the largest of the mean probabilities (Hendrycks & Gimpel 2017, arXiv 1610.02136). energy: the
    logarithm of the sum of all exponentials of the logits, the members' mean (Liu et al. 2020, arXiv 2010.03759, with
    the sign turned, at temperature 1). features: (N, D) of each member, what its last layer is given; empty where a
    member has no such layer.
    """

    probability: Tensor
    energy: Tensor
    features: list[Tensor]

    def scores(self, known: "Evidence | None", neighbours: int) -> dict[str, Tensor]:
        """By the names in `ood.SCORES`, higher for what is familiar. known: of training images, or None."""
        found = {"probability": self.probability, "energy": self.energy}
        if known and known.features:
            each = [
                nearest_similarity(own, others, neighbours)
                for own, others in zip(self.features, known.features, strict=True)
            ]
            found["neighbours"] = torch.stack(each).mean(0)
        return found


def head_module(network: Classifier) -> nn.Module | None:
    """The last layer, which has an output for each class; None where there is no such."""
    names = head_of(network.state_dict(), network.hparams["num_classes"])
    part = names[0].rpartition(".")[0].partition(".parametrizations")[0] if names else ""
    return network.get_submodule(part) if part else None


class Portable(nn.Module):
    """The layers with the normalisation in front: images of (N, 3, H, W), float32 in [0, 1], to logits."""

    mean: Tensor
    std: Tensor

    def __init__(self, network: Classifier):
        super().__init__()
        mean, std = network.pixel_stats(torch.device("cpu"))
        self.register_buffer("mean", mean[:, None, None])
        self.register_buffer("std", std[:, None, None])
        self.network = network
        self.train(network.training)

    def forward(self, images: Tensor) -> Tensor:
        return self.network((images - self.mean) / self.std)


class PortableEnsemble(nn.Module):
    """Several of them as one: the same images to log-probabilities, the logarithm of the members' mean probability."""

    def __init__(self, members: Sequence[Portable]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.train(members[0].training)

    def forward(self, images: Tensor) -> Tensor:
        return mean_probability(torch.stack([member(images).log_softmax(1) for member in self.members]))


def portable(networks: Sequence[Classifier]) -> Portable | PortableEnsemble:
    """One network, or several as an ensemble, for use without anything else; nothing in it asks for a gradient."""
    members = list(map(Portable, networks))
    return (members[0] if len(members) == 1 else PortableEnsemble(members)).requires_grad_(False)


def members_of(module: Portable | PortableEnsemble) -> list[Portable]:
    return list(module.members) if isinstance(module, PortableEnsemble) else [module]  # type: ignore[arg-type]
