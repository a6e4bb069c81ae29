"""What a search looks for: the best validation accuracy, or the cheapest training that comes to one."""

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Literal, Protocol

from lightning.pytorch import Callback, Trainer
from optuna.trial import Trial

from cifar_resnet.callbacks import Throughput, of
from cifar_resnet.models import Classifier
from cifar_resnet.results.record import macs_by_size, training_flops

# attributes of a trial. COURSE: [FLOPs, accuracy] of each validation; REACHED: FLOPs at which it came to the target
FLOPS, COURSE, REACHED, HOPELESS = "flops", "course", "reached", "hopeless"
UNREACHED = 1e30  # FLOPs, more than any training's
ROUNDING = 1e-6  # of an accuracy: 4,500 of 5,000 are 0.89999998 in 32 bits


class Objective(Protocol):
    """direction: in which `value` gets better, as optuna has it."""

    direction: Literal["minimize", "maximize"]

    def judge(self, trial: Trial, acc: float, flops: float, epoch: int) -> bool:
        """Whether a training should end, after a validation."""

    def value(self, acc: float, attributes: Mapping[str, Any]) -> float:
        """Of a trial that has ended by itself."""


class BestAccuracy:
    direction: Literal["minimize", "maximize"] = "maximize"

    def judge(self, trial: Trial, acc: float, flops: float, epoch: int) -> bool:
        """Where the pruner gives it up."""
        trial.report(acc, epoch)
        if trial.should_prune():
            trial.set_user_attr(HOPELESS, True)  # it may be asked to end for another reason, and is none the worse then
        return HOPELESS in trial.user_attrs

    def value(self, acc: float, attributes: Mapping[str, Any]) -> float:
        return acc


class CheapestTo:
    """target: the validation accuracy. cheapest: FLOPs of the cheapest so far that came to it, math.inf for none."""

    direction: Literal["minimize", "maximize"] = "minimize"

    def __init__(self, target: float, cheapest: Callable[[], float]):
        self.target, self.cheapest = target, cheapest

    def judge(self, trial: Trial, acc: float, flops: float, epoch: int) -> bool:
        """Where it is there, or has become dearer than another that was."""
        if REACHED in trial.user_attrs:  # min_epochs has it go on, or it was killed before its end
            return True
        if acc >= self.target - ROUNDING:
            trial.set_user_attr(REACHED, flops)
        elif flops >= self.cheapest():
            trial.set_user_attr(HOPELESS, True)
        return not trial.user_attrs.keys().isdisjoint({REACHED, HOPELESS})

    def value(self, acc: float, attributes: Mapping[str, Any]) -> float:
        """FLOPs; where it never came there the more the less accurate, which tells a search where to look."""
        return attributes.get(REACHED, UNREACHED * (2 - acc))


class Watch(Callback):
    """Notes in a trial what its training costs and how good it is, and ends it where the objective says so."""

    def __init__(self, trial: Trial, objective: Objective):
        self.trial, self.objective = trial, objective
        self.macs: dict[int, tuple[float, float]] = {}

    def setup(self, trainer: Trainer, pl_module: Classifier, stage: str) -> None:  # type: ignore[override]
        """Count before the network is shared out to devices, for only the first process has this callback."""
        if stage == "fit":
            self.macs = macs_by_size(pl_module, trainer.datamodule)  # type: ignore[attr-defined]

    def on_validation_end(self, trainer: Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        if trainer.sanity_checking:
            return
        acc, flops = trainer.callback_metrics["val/acc"].item(), self.note_flops(trainer, pl_module)
        before = [each for each in self.trial.user_attrs.get(COURSE, []) if each[0] < flops]  # of a life cut short
        self.trial.set_user_attr(COURSE, [*before, [flops, acc]])
        trainer.should_stop |= self.objective.judge(self.trial, acc, flops, trainer.current_epoch)

    def on_exception(self, trainer: Trainer, pl_module: Classifier, exception: BaseException) -> None:  # type: ignore[override]
        """What diverged has cost something, too."""
        with contextlib.suppress(Exception):  # the first one counts
            self.note_flops(trainer, pl_module)

    def note_flops(self, trainer: Trainer, pl_module: Classifier) -> int:
        counted = of(trainer, Throughput)
        begun = {} if counted.latest is not None else counted.epoch_images
        images = counted.images_by_size + Counter(begun)
        if images.keys() - self.macs.keys():
            self.macs = macs_by_size(pl_module, trainer.datamodule, images)  # type: ignore[attr-defined]
        flops = training_flops(pl_module, self.macs, images)
        if flops > self.trial.user_attrs.get(FLOPS, 0):  # of a life that ended before it had gone on there are none
            self.trial.set_user_attr(FLOPS, flops)
        return flops
