"""cifar-find-lr: train for some batches at ever higher learning rates, and see which serve (Smith 2017, section 3.3).

    cifar-find-lr model=resnet20 optimizer=adam

Takes every override of cifar-train, and leaves a picture, a table and its suggestions in a folder.
"""

import json
import logging
import math
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from hydra.utils import instantiate
from omegaconf import DictConfig

from cifar_resnet import limits, runs
from cifar_resnet.command import Job, UsageError, usage_errors
from cifar_resnet.command import main as command_main

if TYPE_CHECKING:
    from torch.optim import Optimizer
    from torch.optim.lr_scheduler import LRScheduler

log = logging.getLogger("cifar_resnet")

SUGGESTIONS = {
    "probe": "the middle of those that do best in four short trainings",
    "steepest": "where the loss falls fastest",
    "valley": "two thirds down the longest fall",
    "minimum": "a tenth of where it is lowest",
}


def main(argv: Sequence[str] | None = None) -> int:
    return command_main("find_lr", run, argv, refuse)


def refuse(jobs: list[Job], is_sweep: bool) -> None:
    if is_sweep:
        raise UsageError("cifar-find-lr looks at one network at a time: leave out -m")
    cfg = jobs[0].cfg
    if cfg.dry_run or cfg.resume or cfg.run_dir:
        raise UsageError("dry_run, resume and run_dir are cifar-train's: leave them out")
    tested(cfg)


def tested(cfg: DictConfig) -> "RangeTest":
    """The range test that `cfg` describes."""
    if cfg.trainer.devices != 1:
        raise UsageError(f"a range test runs on one device. Got trainer.devices={cfg.trainer.devices}; give 1")
    if cfg.optimizer.get("lr") == 0:
        raise UsageError("a range test scales optimizer.lr. Got 0; give any other learning rate")
    with usage_errors():
        return instantiate(cfg.range_test)


def run(jobs: list[Job], is_sweep: bool) -> int:
    from cifar_resnet.terminal import set_up_logging

    set_up_logging()
    (job,) = jobs
    job.cfg.name = "find_lr" if job.cfg.name == "train" else job.cfg.name
    with usage_errors():
        folder = runs.create_run_dir(job.cfg)
    try:
        found = range_test(job.cfg)
    except BaseException:
        runs.discard(folder)
        raise
    with usage_errors():
        found.save(folder)
    for name, rate in found.suggestions.items():
        mark = "  <- suggested" if name == found.suggest else ""
        log.info(f"  {name:9} {rate:8.3g}   {SUGGESTIONS[name]}{mark}")
    log.info(f"\n  picture and table in {folder}; to train with it:\n")
    ours = ("optimizer.lr=", "range_test.", "scheduler.max_lr=")
    kept = [override for override in job.overrides if not override.startswith(ours)]
    log.info(shlex.join(["cifar-train", *job.arguments, *kept, f"optimizer.lr={found.suggestion:.3g}"]))
    return 0


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
        min_lr: float = 1e-5,
        max_lr: float = 100.0,
        steps: int = 200,
        smoothing: float = 0.9,
        divergence: float = 4.0,
        suggest: str = "probe",
        probe_steps: int = 200,
    ):
        limits.require(
            "range_test",
            min_lr=min_lr,
            max_lr=max_lr,
            steps=steps,
            smoothing=smoothing,
            divergence=divergence,
            suggest=suggest,
            probe_steps=probe_steps,
        )
        if not 1e-12 <= min_lr < max_lr <= 1e6:
            raise ValueError(
                f"range_test goes up from min_lr to max_lr. Got {min_lr} and {max_lr}; give rates from 1e-12 to 1e6"
            )
        self.min_lr, self.max_lr, self.steps = min_lr, max_lr, steps
        self.smoothing, self.divergence, self.suggest, self.probe_steps = smoothing, divergence, suggest, probe_steps
        self.rates: list[float] = []
        self.losses: list[float] = []
        self.smoothed: list[float] = []
        self.probed: dict[float, float] = {}  # by learning rate, the loss that a short training ended with

    def rate(self, step: int) -> float:
        return self.min_lr * (self.max_lr / self.min_lr) ** (step / (self.steps - 1))

    def rising(self, optimizer: "Optimizer", total_steps: int) -> "LRScheduler":
        from torch.optim.lr_scheduler import LambdaLR

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

    def check(self) -> None:
        """ValueError where the loss fell by no more than it wavers."""
        fell = False
        if len(self.smoothed) >= 5:
            noise = np.std(np.array(self.losses[: self.lowest + 1]) - self.smoothed[: self.lowest + 1])
            fell = self.lowest - self.settled >= 3 and self.smoothed[self.settled] - self.smoothed[self.lowest] > noise
        if not fell:
            raise ValueError(
                f"no learning rate between {self.min_lr:g} and {self.max_lr:g} brought the loss down. "
                f"Give range_test.min_lr a smaller value, or range_test.steps a larger one"
            )

    @property
    def edge(self) -> float:
        """The last rate at which not yet half of the fall has been lost again."""
        smoothed = np.array(self.smoothed)
        middle = (smoothed[self.settled] + smoothed[self.lowest]) / 2
        return self.rates[int(np.flatnonzero(smoothed <= middle)[-1])]

    @property
    def candidates(self) -> list[float]:
        return [float(f"{self.edge / 4 / 10 ** (half / 2):.3g}") for half in range(4)]

    @property
    def suggestions(self) -> dict[str, float]:
        """A learning rate by each rule."""
        settled, lowest = self.settled, self.lowest
        smoothed, logs = np.array(self.smoothed), np.log10(self.rates)
        slope = slopes(logs, smoothed)[settled:lowest]
        first, last = longest_fall(smoothed[settled : lowest + 1])
        valley = settled + first + (last - first) * 2 // 3
        steepest = settled + int(np.argmin(slope))
        probe = {"probe": middle_of_the_good(self.probed, smoothed[settled])} if self.probed else {}
        return probe | {
            "steepest": self.rates[steepest],
            "valley": self.rates[valley],
            "minimum": self.rates[lowest] / 10,
        }

    @property
    def suggestion(self) -> float:
        return float(f"{self.suggestions[self.suggest]:.3g}")

    def save(self, folder: Path) -> None:
        """lr_range_test.csv, .json and .png."""
        from cifar_resnet.plots import range_test_figure

        rows = zip(self.rates, self.losses, self.smoothed, strict=True)
        runs.write_table(folder / "lr_range_test.csv", [("lr", "loss", "smoothed_loss"), *rows])
        probes = {f"{rate:g}": loss for rate, loss in self.probed.items() if math.isfinite(loss)}
        text = json.dumps({"suggested": self.suggest, **self.suggestions, "probes": probes}, indent=2) + "\n"
        runs.write_atomically(folder / "lr_range_test.json", text)
        runs.save_figure(folder / "lr_range_test.png", range_test_figure(self))


def slopes(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """At each x the slope of a line fitted to a quarter of a decade either side: a single step's would be noise."""
    reach = max(0.25, 2.5 * (x[1] - x[0]))
    found = np.empty(len(x))
    for index, centre in enumerate(x):
        near = np.abs(x - centre) <= reach
        found[index] = np.polyfit(x[near], y[near], 1)[0]
    return found


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
        here = best
        for there in side:
            if values[there] > bound:
                share = (bound - values[here]) / (values[there] - values[here])
                return rates[here] + share * (rates[there] - rates[here])
            here = there
        return rates[here]

    return float(10 ** ((reach(range(best - 1, -1, -1)) + reach(range(best + 1, len(rates)))) / 2))


def longest_fall(values: np.ndarray) -> tuple[int, int]:
    """First and last index of the longest decreasing subsequence."""
    lengths, before = np.ones(len(values), int), np.arange(len(values))
    for index in range(1, len(values)):
        higher = np.flatnonzero(values[:index] > values[index])
        if len(higher):
            best = higher[np.argmax(lengths[higher])]
            lengths[index], before[index] = lengths[best] + 1, best
    last = first = int(np.argmax(lengths))
    while before[first] != first:
        first = int(before[first])
    return first, last


def range_test(cfg: DictConfig) -> RangeTest:
    """Test fresh copies of what `cfg` would train; nothing of them is kept but the losses."""
    from cifar_resnet.train import images_kept

    test = tested(cfg)
    log.info(f"  testing {test.steps} learning rates from {test.min_lr:g} to {test.max_lr:g}, a batch each\n")
    with images_kept():
        train_briefly(cfg, test.max_lr, test.steps, test.rising, test.add)
        with usage_errors():
            test.check()
        if test.suggest == "probe":
            probe(cfg, test)
    return test


def probe(cfg: DictConfig, test: RangeTest) -> None:
    """Train for a short while with each of the test's candidates."""
    from cifar_resnet.optim import one_cycle

    cfg = cfg.copy()
    cfg.scheduler = None  # it may want a higher peak, and has been built for the range test
    log.info(f"  then trainings of {test.probe_steps} batches up to {test.candidates} and down again\n")
    for rate in test.candidates:
        losses = train_briefly(cfg, rate, test.probe_steps, one_cycle, math.isfinite)
        last = float(np.mean(losses[-max(1, len(losses) // 10) :]))
        test.probed[rate] = last if math.isfinite(last) else math.inf
    if not min(test.probed.values()) < test.smoothed[test.settled]:
        raise UsageError(
            f"none of the short trainings brought the loss down. Got learning rates of {test.candidates}; "
            f"give range_test.probe_steps a larger value, or range_test.suggest=valley"
        )


def train_briefly(
    cfg: DictConfig,
    lr: float,
    steps: int,
    scheduler: "Callable[[Optimizer, int], LRScheduler]",
    go_on: Callable[[float], bool],
) -> list[float]:
    """Train a fresh copy of what `cfg` describes; the batches' losses, of which `go_on` is asked one by one."""
    from lightning.pytorch import Callback
    from lightning.pytorch.utilities.exceptions import MisconfigurationException

    from cifar_resnet.train import build

    losses: list[float] = []

    class Watch(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx: int) -> None:
            losses.append(outputs["loss"].item())
            if not go_on(losses[-1]):
                trainer.should_stop = True

    cfg = cfg.copy()
    cfg.optimizer.lr = lr
    if (cfg.get("scheduler") or {}).get("max_lr") == "auto":  # it is built, so that what is wrong with it is said
        cfg.scheduler.max_lr = lr
    data, model, precision = build(cfg)
    model.scheduler = lambda optimizer, total_steps: scheduler(optimizer, steps)
    options = {"max_epochs": -1, "max_steps": steps, "limit_val_batches": 0, "accumulate_grad_batches": 1}
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with usage_errors(MisconfigurationException):
        trainer = instantiate(cfg.trainer, precision=precision, callbacks=[Watch()], **options, **quiet)
        model.check(trainer)
    trainer.fit(model, data)
    return losses


if __name__ == "__main__":
    sys.exit(main())
