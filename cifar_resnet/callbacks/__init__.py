import inspect
from collections.abc import Mapping
from typing import Any, TypeVar

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping as LightningEarlyStopping

from cifar_resnet.callbacks.averaging import EMA, Lookahead
from cifar_resnet.callbacks.early_stopping import EarlyStopping
from cifar_resnet.callbacks.ending import Ending, TimeLimit, epochs_trained
from cifar_resnet.callbacks.finite import FiniteLoss
from cifar_resnet.callbacks.interruption import Interruption, as_interrupted
from cifar_resnet.callbacks.machine import Machine
from cifar_resnet.callbacks.metrics import MemberMetricsCSV, MetricsCSV, Throughput
from cifar_resnet.callbacks.mid_epoch import MidEpochState
from cifar_resnet.callbacks.model_checkpoint import Checkpoint, MemberCheckpoints
from cifar_resnet.callbacks.pictures import AugmentedBatch, ScheduleCurve
from cifar_resnet.callbacks.progress import Progress
from cifar_resnet.callbacks.step_graph import StepGraph
from cifar_resnet.constraints import imported

__all__ = [
    "EMA",
    "AugmentedBatch",
    "Checkpoint",
    "EarlyStopping",
    "Ending",
    "FiniteLoss",
    "Interruption",
    "Lookahead",
    "Machine",
    "MemberCheckpoints",
    "MemberMetricsCSV",
    "MetricsCSV",
    "MidEpochState",
    "Progress",
    "ScheduleCurve",
    "StepGraph",
    "Throughput",
    "TimeLimit",
    "as_interrupted",
    "epochs_trained",
    "have_early_stopping",
    "of",
]


def have_early_stopping(callbacks: Mapping[str, Any]) -> bool:
    """Whether one of these, each by its settings, is early stopping, under whatever name."""
    targets = [each["_target_"] for each in callbacks.values() if each and "_target_" in each]
    return any(inspect.isclass(kind) and issubclass(kind, LightningEarlyStopping) for kind in map(imported, targets))


Kind = TypeVar("Kind", bound=Callback)


def of(trainer: Trainer, kind: type[Kind]) -> Kind:
    """The trainer's callback of this class; it has one."""
    return next(callback for callback in trainer.callbacks if isinstance(callback, kind))  # type: ignore[attr-defined]
