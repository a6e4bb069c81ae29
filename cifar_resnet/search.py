"""cifar-search: look for the best learning rate, or any other settings, on validation images.

    cifar-search model=resnet20
    cifar-search model=resnet20 search.method=tpe "augment=choice(none,standard,strong)"

Takes every override of cifar-train. Trials are kept by optuna in the search's folder: stopped, and started again with
the same command, a search goes on where it was.
"""

import csv
import logging
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from cifar_resnet import runs
from cifar_resnet.command import Choice, Composer, Interval, UsageError, check_arguments, interpret, usage_errors

if TYPE_CHECKING:
    import optuna

log = logging.getLogger("cifar_resnet")

DEFAULT_SPACE = {"optimizer.lr": Interval(1e-6, 1.0, log=True)}
METHODS = ("random", "tpe")


def main(argv: Sequence[str] | None = None) -> int:
    return interpret("search", run, argv)


def run(composer: Composer, overrides: list[str], is_sweep: bool) -> int:
    if is_sweep:
        raise UsageError("cifar-search tries values by itself: leave out -m, and give intervals and choices")
    fixed, space = composer.space(overrides)
    space = space or DEFAULT_SPACE
    (job,) = composer.jobs([*fixed, *(f"{key}={example(domain)}" for key, domain in space.items())])
    check_arguments(job.cfg)
    cfg = job.cfg
    if cfg.resume or cfg.run_dir:
        raise UsageError("a search names and resumes its runs itself: leave out run_dir and resume")
    if cfg.data.get("num_val") == 0:
        raise UsageError("a search needs validation images. Got data.num_val=0; give some")

    from hydra.utils import instantiate

    from cifar_resnet.terminal import set_up_logging

    set_up_logging()
    with usage_errors():
        search = instantiate(cfg.search)
        search.open(Path(cfg.output_dir) / cfg.name, fixed, space)
    search.go_on(composer)
    return search.report()


def example(domain: Interval | Choice) -> object:
    """A value to check the configuration with."""
    return domain.low if isinstance(domain, Interval) else domain.values[0]


class Search:
    """Rounds of trials, each a training of its own.

    method: "random", uniformly in a range that each round narrows around the best so far, or "tpe", Parzen estimators
        that learn from all trials before (Bergstra et al. 2011), where a trial worse than the median ends early.
    rounds, trials: so many trials in each round; TPE takes all rounds for one.
    narrow: a round's range / that of the round before.
    """

    def __init__(self, method: str = "random", rounds: int = 3, trials: int = 10, narrow: float = 0.4, seed: int = 0):
        if method not in METHODS:
            raise ValueError(f"unknown search.method. Got {method!r}; give {' or '.join(METHODS)}")
        for name, count in {"rounds": rounds, "trials": trials}.items():
            if count < 1:
                raise ValueError(f"search.{name} must be positive. Got {count}; give 1 or more")
        if not 0 < narrow <= 1:
            raise ValueError(f"search.narrow is a share. Got {narrow}; give more than 0, up to 1")
        self.method, self.rounds, self.trials, self.narrow, self.seed = method, rounds, trials, narrow, seed

    def open(self, parent: Path, fixed: list[str], space: dict[str, Interval | Choice]) -> None:
        """The search of this name, settings and space: a new one, or the one begun before."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.fixed, self.space = fixed, space
        # a search may go on with more rounds or trials, but not with another method: that would be another search
        lasting = [text for text in fixed if not text.startswith(("search.rounds=", "search.trials="))]
        described = [f"{key}={domain}" for key, domain in space.items()]
        self.folder = parent / f"search-{runs.slug(list(space))}-{runs.digest([*lasting, *described])}"
        self.folder.mkdir(parents=True, exist_ok=True)
        pruner = optuna.pruners.MedianPruner(n_warmup_steps=1) if self.method == "tpe" else optuna.pruners.NopPruner()
        self.study = optuna.create_study(
            storage=f"sqlite:///{self.folder / 'study.db'}",
            study_name="search",
            direction="maximize",
            load_if_exists=True,
            pruner=pruner,
        )

    def go_on(self, composer: Composer) -> None:
        """Finish what was begun, and then what is missing."""
        import optuna
        from optuna.trial import Trial, TrialState

        total = self.rounds * self.trials
        for frozen in self.study.get_trials(states=[TrialState.RUNNING]):
            self.try_out(composer, Trial(self.study, frozen._trial_id), total)
        while (number := len(self.study.get_trials())) < total:
            seed = runs_seed(self.seed, number)
            samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
            self.study.sampler = samplers[self.method](seed=seed)
            self.try_out(composer, self.study.ask(self.distributions(number)), total)

    def distributions(self, number: int) -> dict[str, "optuna.distributions.BaseDistribution"]:
        """Where trial `number` may look."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        round_ = number // self.trials if self.method == "random" else 0
        best = self.best_before(round_ * self.trials)
        found = {}
        for key, domain in self.space.items():
            if isinstance(domain, Choice):
                found[key] = CategoricalDistribution(domain.values)
                continue
            whole = isinstance(domain.low, int) and isinstance(domain.high, int)
            low, high = domain.low, domain.high
            if best is not None and round_:
                low, high = narrowed(domain, best.params[key], self.narrow**round_)
            if whole:
                found[key] = IntDistribution(math.floor(low), math.ceil(high), log=domain.log)
            else:
                found[key] = FloatDistribution(low, high, log=domain.log)
        return found

    def best_before(self, number: int) -> "optuna.trial.FrozenTrial | None":
        done = [trial for trial in self.study.get_trials() if trial.number < number and trial.value is not None]
        return max(done, key=lambda trial: trial.value, default=None)

    def try_out(self, composer: Composer, trial: "optuna.trial.Trial", total: int) -> None:
        """Train with the trial's values, from where that stopped if it was begun before, and note what came out."""
        from optuna.trial import TrialState

        from cifar_resnet.train import train_in

        varying = [f"{key}={shorten(value)}" for key, value in trial.params.items()]
        run_dir = self.folder / f"{trial.number:03d}-{runs.slug(varying)}"
        done = runs.read_record(run_dir)
        where = f"round {trial.number // self.trials + 1} of {self.rounds}, " if self.method == "random" else ""
        log.info(f"\n{where}trial {trial.number + 1} of {total}: {' '.join(varying)}")
        (job,) = composer.jobs([*self.fixed, *varying])
        pruning = pruning_callback(trial)
        record = done or train_in(run_dir, job.cfg, [pruning])
        if record is None:
            self.study.tell(trial, state=TrialState.FAIL)
        elif pruning.pruned:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, record["metrics"]["val/acc"])

    def report(self) -> int:
        """Print the trials, the best first, leave table and picture, and say how to train with the best."""
        from optuna.trial import TrialState

        from cifar_resnet.plots import search_figure
        from cifar_resnet.terminal import print_table, search_table

        trials = self.study.get_trials()
        ranked = sorted(trials, key=lambda trial: -math.inf if trial.value is None else trial.value, reverse=True)
        print_table(search_table(ranked, list(self.space), self.trials if self.method == "random" else None))
        with (self.folder / "trials.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["trial", "round", *self.space, "val/acc", "state"])
            for trial in trials:
                values = [shorten(trial.params[key]) for key in self.space]
                writer.writerow([trial.number, trial.number // self.trials, *values, trial.value, trial.state.name])
        best = ranked[0]
        if best.state != TrialState.COMPLETE:
            log.error("no trial was finished")
            return 1
        for key, domain in self.space.items():
            if isinstance(domain, Interval):
                picture = self.folder / f"{key}.png"
                search_figure(trials, key, domain.log, self.trials).savefig(picture)
                log.info(f"  picture     {picture}")
        log.info(f"  look next   tensorboard --logdir {self.folder}\n\nto train with the best:\n")
        ours = ("search.", "name=", "test=", "trainer.max_epochs=")
        kept = [override for override in self.fixed if not override.startswith(ours)]
        log.info(" ".join(["cifar-train", *kept, *(f"{key}={shorten(best.params[key])}" for key in self.space)]))
        return 0


def runs_seed(*numbers: int) -> int:
    from cifar_resnet.data.datamodule import seed_for

    return seed_for("search", *numbers) % 2**32


def shorten(value: object) -> object:
    """Four digits are enough of a searched number."""
    return float(f"{value:.4g}") if isinstance(value, float) else value


def narrowed(domain: Interval, best: float, share: float) -> tuple[float, float]:
    """A range of that share of the domain's width around the best value, moved where it would leave the domain."""
    forth, back = (math.log, math.exp) if domain.log else (float, float)
    low, high = forth(domain.low), forth(domain.high)
    width = (high - low) * share
    start = min(max(forth(best) - width / 2, low), high - width)
    # rounding must leave neither the best nor the domain outside
    return max(domain.low, min(best, back(start))), min(domain.high, max(best, back(start + width)))


def pruning_callback(trial: "optuna.trial.Trial"):
    from lightning.pytorch import Callback

    class Pruning(Callback):
        """Ends a training that the pruner gives up."""

        pruned = False

        def on_validation_end(self, trainer, pl_module) -> None:
            trial.report(trainer.callback_metrics["val/acc"].item(), trainer.current_epoch)
            if trial.should_prune():
                self.pruned = trainer.should_stop = True

    return Pruning()


if __name__ == "__main__":
    sys.exit(main())
