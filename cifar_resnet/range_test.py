"""The learning-rate range test (Smith 2017, section 3.3): batches at ever higher rates, and which of those serve."""

import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import torch
from annotated_types import Ge, Gt
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from omegaconf import DictConfig, OmegaConf
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from cifar_resnet import callbacks, optim, processes, resume, runs
from cifar_resnet.build import QUIET, build_data_and_model, kept_images, new_trainer, sketch
from cifar_resnet.constraints import FractionBelowOne, Positive, check
from cifar_resnet.errors import as_usage_error, refuse_if
from cifar_resnet.instantiation import instantiate
from cifar_resnet.results import plots
from cifar_resnet.terminal import log

Batches = Annotated[int, Ge(20)]


class RangeTest:
    """Losses at rising learning rates, and what they suggest.

    min_lr, max_lr: of the first and the last of `steps` batches, evenly spaced on a log axis.
    smoothing: share of the past in the smoothed loss, corrected for its start.
    divergence: the test stops where the smoothed loss is this many times its minimum.
    suggest: "minimum", a tenth of where the smoothed loss is lowest; "steepest", where it falls fastest, learning rates
        on a log axis; "valley", two thirds down its longest fall (fastai's rule); or "probe". The noise of a high rate
        hides what the network learns at it until the rate comes down again, so that the other rules say little about
        one-cycle: "probe" trains with four rates, half a decade apart, for `probe_steps` batches each, up to the rate
        and down to zero, and takes the middle of those that do about as well as the best, by the loss of the last
        tenth. The highest of the four is a quarter of the last rate at which the smoothed loss is below the middle of
        its fall.
    """

    def __init__(
        self,
        min_lr: Positive = 1e-5,
        max_lr: Positive = 100.0,
        steps: Batches = 200,
        smoothing: FractionBelowOne = 0.9,
        divergence: Annotated[float, Gt(1)] = 4.0,
        suggest: Literal["probe", "steepest", "valley", "minimum"] = "probe",
        probe_steps: Batches = 200,
    ):
        check(RangeTest, locals())
        refuse_if(
            not 1e-12 <= min_lr < max_lr <= 1e6,
            f"range_test goes up from min_lr to max_lr. Got {min_lr} and {max_lr}; give rates from 1e-12 to 1e6",
        )
        self.min_lr, self.max_lr, self.steps = min_lr, max_lr, steps
        self.smoothing, self.divergence, self.suggest, self.probe_steps = smoothing, divergence, suggest, probe_steps
        self.rates: list[float] = []  # a number for each batch so far
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.probed: dict[float, float] = {}  # by learning rate, the loss that a short training ended with

    def rate(self, step: int) -> float:
        return self.min_lr * (self.max_lr / self.min_lr) ** (step / (self.steps - 1))

    def rising(self, optimizer: Optimizer, total_steps: int) -> LRScheduler:
        """The test's schedule, of an optimizer whose learning rate is max_lr."""
        return LambdaLR(optimizer, lambda step: self.rate(step) / self.max_lr)

    def add(self, loss: float) -> bool:
        """Note the loss of one more batch; whether to go on."""
        if not math.isfinite(loss):
            return False
        self.rates.append(self.rate(len(self.losses)))
        self.losses.append(loss)
        weights = self.smoothing ** np.arange(len(self.losses))[::-1]
        self.smoothed.append(float(weights @ self.losses / weights.sum()))
        return self.smoothed[-1] <= self.divergence * min(self.smoothed)

    @property
    def settled(self) -> int:
        """From where on the smoothed loss is more than the mean of a few batches."""
        return len(self.smoothed) // 10

    @property
    def lowest(self) -> int:
        return self.settled + int(np.argmin(self.smoothed[self.settled :]))

    def check_fall(self) -> None:
        """UsageError where the loss fell by no more than it wavers."""
        refuse_if(
            len(self.smoothed) < 5
            or self.lowest - self.settled < 3
            or self.smoothed[self.settled] - self.smoothed[self.lowest]
            <= np.std(np.subtract(self.losses, self.smoothed)[: self.lowest + 1]),
            f"no learning rate between {self.min_lr:g} and {self.max_lr:g} brought the loss down. "
            f"Give range_test.min_lr a smaller value, or range_test.steps a larger one",
        )

    @property
    def edge(self) -> float:
        """The last rate at which not yet half of the fall has been lost again."""
        middle = (self.smoothed[self.settled] + self.smoothed[self.lowest]) / 2
        return self.rates[int(np.flatnonzero(np.array(self.smoothed) <= middle)[-1])]

    @property
    def candidates(self) -> list[float]:
        return [float(f"{self.edge / 4 / 10 ** (half / 2):.3g}") for half in range(4)]

    @property
    def suggestions(self) -> dict[str, float]:
        """A learning rate by each rule."""
        settled, lowest, smoothed = self.settled, self.lowest, np.array(self.smoothed)
        steepest = settled + int(np.argmin(slopes(np.log10(self.rates), smoothed)[settled:lowest]))
        first, last = longest_fall(smoothed[settled : lowest + 1])
        probe = {"probe": middle_of_the_good(self.probed, smoothed[settled])} if self.probed else {}
        return probe | {
            "steepest": self.rates[steepest],
            "valley": self.rates[settled + first + (last - first) * 2 // 3],
            "minimum": self.rates[lowest] / 10,
        }

    @property
    def suggestion(self) -> float:
        return float(f"{self.suggestions[self.suggest]:.3g}")

    def save(self, folder: Path) -> None:
        """lr_range_test.csv, .json and .png."""
        rows = zip(self.rates, self.losses, self.smoothed, strict=True)
        runs.write_table(folder / f"{runs.RANGE_TEST}.csv", [("lr", "loss", "smoothed_loss"), *rows])
        probes = {f"{rate:g}": loss for rate, loss in self.probed.items() if math.isfinite(loss)}
        content = {"suggested": self.suggest, **self.suggestions, "probes": probes}
        runs.write_json(folder / f"{runs.RANGE_TEST}.json", content)
        plots.save_figure(folder / f"{runs.RANGE_TEST}.png", plots.range_test_figure(self))


def slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """At each x the slope of a line fitted to a quarter of a decade either side: a single step's would be noise."""
    reach = max(0.25, 2.5 * (x[1] - x[0]))
    close = np.abs(x - x[:, None]) <= reach
    return np.array([np.polyfit(x[row], y[row], 1)[0] for row in close])


def middle_of_the_good(losses: dict[float, float], start: float) -> float:
    """The middle of the rates around the best whose loss is within 2% of the whole fall of it, on a log axis.

    losses: by learning rate; between them lie straight lines. start: the loss before the first step.
    """
    rates = np.log10(sorted(losses))
    values = np.array([losses[rate] for rate in sorted(losses)])
    best = int(np.argmin(values))
    bound = values[best] + 0.02 * (start - values[best])

    def reach(side: range) -> float:
        """How far to one side the loss is that good."""
        for here, there in itertools.pairwise([best, *side]):
            if values[there] > bound:
                return np.interp(bound, values[[here, there]], rates[[here, there]])
        return rates[side[-1] if side else best]

    return float(10 ** ((reach(range(best - 1, -1, -1)) + reach(range(best + 1, len(rates)))) / 2))


def longest_fall(values: np.ndarray) -> tuple[int, int]:
    """First and last index of the longest decreasing subsequence."""
    lengths, firsts = np.ones(len(values), int), np.arange(len(values))  # of the longest that ends at each index
    for index in range(1, len(values)):
        higher = np.flatnonzero(values[:index] > values[index])
        if len(higher):
            before = higher[np.argmax(lengths[higher])]
            lengths[index], firsts[index] = lengths[before] + 1, firsts[before]
    last = int(np.argmax(lengths))
    return int(firsts[last]), last


@as_usage_error()
def plan(cfg: DictConfig) -> RangeTest:
    """The test that `cfg` describes, not begun; UsageError for what could not be tested."""
    sketch(cfg)
    return instantiate(cfg.range_test)


def run_range_test(cfg: DictConfig) -> RangeTest:
    """Test fresh copies of what `cfg` would train; nothing of them is kept but the losses."""
    test, cfg = plan(cfg), processes.on_one_device(cfg)
    log.info(f"  testing {test.steps} learning rates from {test.min_lr:g} to {test.max_lr:g}, a step each\n")
    with kept_images(), callbacks.as_interrupted():
        train_briefly(cfg, test.max_lr, test.steps, test.rising, test.add)
        test.check_fall()
        if test.suggest == "probe":
            probe(cfg, test)
    return test


def resolve_max_lr(cfg: DictConfig) -> RangeTest | None:
    """Replace scheduler.max_lr=auto by what a range test suggests; None where it is anything else."""
    if OmegaConf.select(cfg, "scheduler.max_lr") != resume.AUTO:
        return None
    found = run_range_test(cfg)
    cfg.scheduler.max_lr = found.suggestion
    log.info(f"  learning rate {found.suggestion:.3g} at the peak, found by a range test\n")
    return found


def probe(cfg: DictConfig, test: RangeTest) -> None:
    """Train for a short while with each of the test's candidates."""
    cfg = cfg.copy()
    # the schedule may want a higher peak, and has been built for the range test
    OmegaConf.update(cfg, "scheduler", None, force_add=True)
    log.info(f"  then trainings of {test.probe_steps} batches up to {test.candidates} and down again\n")
    for rate in test.candidates:
        losses = train_briefly(cfg, rate, test.probe_steps, optim.one_cycle, math.isfinite)
        last = float(np.mean(losses[-max(1, len(losses) // 10) :]))
        test.probed[rate] = last if math.isfinite(last) else math.inf
    refuse_if(
        not min(test.probed.values()) < test.smoothed[test.settled],
        f"none of the short trainings brought the loss down. Got learning rates of {test.candidates}; "
        f"give range_test.probe_steps a larger value, or range_test.suggest=valley",
    )


def train_briefly(
    cfg: DictConfig,
    lr: float,
    steps: int,
    scheduler: Callable[[Optimizer, int], LRScheduler],
    goes_on: Callable[[float], bool],
) -> list[float]:
    """Train a fresh copy of what `cfg` describes up to this rate; the losses of its steps, as long as `goes_on`."""
    losses: list[float] = []
    done = 0  # steps
    pending: list[Tensor] = []  # a GPU is asked for several at a time, for it has to be waited for

    def note(trainer: Trainer, model: LightningModule, outputs: Any, batch: Any, index: int) -> None:
        nonlocal done
        if trainer.global_step == done:  # gradients are being added up
            return
        done = trainer.global_step
        # Lightning has divided it for the sum of several batches
        pending.append(outputs["loss"].detach() * trainer.accumulate_grad_batches)
        if trainer.global_step == steps or len(pending) == (1 if model.device.type == "cpu" else 10):
            for loss in torch.stack(pending).tolist():
                if not trainer.should_stop:
                    losses.append(loss)
                    trainer.should_stop |= not goes_on(loss)
            pending.clear()

    cfg = cfg.copy()
    cfg.optimizer.lr = lr
    if OmegaConf.select(cfg, "scheduler.max_lr") == resume.AUTO:  # it is built, so that what is wrong with it is said
        cfg.scheduler.max_lr = lr
    data, model = build_data_and_model(cfg)
    data.resize = None  # a step to another size would show in the losses as one to another rate
    model.selection = None  # what a proxy finds hard changes as it learns, and with it the loss
    model.scheduler = lambda optimizer, total_steps: scheduler(optimizer, steps)
    length = {"max_epochs": -1, "min_epochs": None, "max_steps": steps, "max_time": None}
    length |= {"limit_val_batches": 0}
    noting = [LambdaCallback(on_train_batch_end=note)]
    new_trainer(cfg, model, callbacks=noting, **length, **QUIET).fit(model, data)
    return losses
