"""cifar-search: look for the best learning rate, or any other settings, on validation images.

    cifar-search model=resnet20
    cifar-search model=resnet20 search.method=tpe "augment=choice(none,standard,strong)"

Takes every override of cifar-train. Trials are kept by optuna in the search's folder: stopped, and started again with
the same command, a search goes on where it was.
"""

import itertools
import logging
import math
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if not __package__:  # run as a file
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from hydra.utils import instantiate
from omegaconf import DictConfig

from cifar_resnet import limits, runs
from cifar_resnet.command import (
    Choice,
    Composer,
    Diverged,
    Interval,
    UsageError,
    check_settings,
    interpret,
    usage_errors,
)

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

log = logging.getLogger("cifar_resnet")

DEFAULT_SPACE = {"optimizer.lr": Interval(1e-6, 1.0, log=True)}
ROUND, DIVERGED = "round", "diverged"  # attributes of a trial


def main(argv: Sequence[str] | None = None) -> int:
    return interpret("search", run, argv)


def run(composer: Composer, overrides: list[str], is_sweep: bool) -> int:
    if is_sweep:
        raise UsageError("cifar-search tries values by itself: leave out -m, and give intervals and choices")
    fixed, space = composer.space(overrides)
    if not space and any(override.startswith("optimizer.lr=") for override in fixed):
        raise UsageError("a search needs something to vary. Give an interval or a choice, or leave out optimizer.lr")
    space = space or DEFAULT_SPACE
    configurations = combinations(composer, fixed, space)
    cfg = configurations[0]
    refuse(cfg)
    with usage_errors():
        search = instantiate(cfg.search)
    for each in configurations:
        check_settings([each])

    from cifar_resnet.terminal import set_up_logging
    from cifar_resnet.train import build, images_kept, trainer_of

    set_up_logging()
    with images_kept():
        for each in configurations:  # what only data, network or trainer can tell, before there is a folder
            each.run_dir = str(runs.parent_dir(each))
            trainer_of(each, *build(each))
        with usage_errors():
            search.open(runs.parent_dir(cfg), composer, fixed, space)
        search.go_on()
    return search.report()


def combinations(composer: Composer, fixed: list[str], space: dict[str, Interval | Choice]) -> list[DictConfig]:
    """Every combination of choices and of the intervals' ends, up to a hundred of them."""
    examples = [
        [domain.low, domain.high] if isinstance(domain, Interval) else domain.values for domain in space.values()
    ]
    configurations = []
    for values in itertools.islice(itertools.product(*examples), 100):
        (job,) = composer.jobs([*fixed, *(f"{key}={value}" for key, value in zip(space, values, strict=True))])
        configurations.append(job.cfg)
    return configurations


def refuse(cfg: DictConfig) -> None:
    if cfg.resume or cfg.run_dir or cfg.dry_run:
        raise UsageError("a search names and resumes its runs itself: leave out run_dir, resume and dry_run")
    if cfg.ensemble.size != 1:
        raise UsageError(f"a search trains one network at a time. Got ensemble.size={cfg.ensemble.size}; leave it out")
    if cfg.trainer.devices != 1:
        raise UsageError(f"a search trains on one device at a time. Got trainer.devices={cfg.trainer.devices}; give 1")
    if cfg.data.get("num_val") == 0:
        raise UsageError("a search needs validation images. Got data.num_val=0; give some")


class Search:
    """Rounds of trials, each a training of its own.

    method: "random", uniformly in a range that each round narrows around the best so far, or "tpe", Parzen estimators
        that learn from all trials before (Bergstra et al. 2011), where a trial worse than the median ends early.
    rounds, trials: of random search, so many trials in each round; TPE has one round.
    narrow: a round's range / that of the round before.
    """

    def __init__(self, method: str = "random", rounds: int = 3, trials: int = 10, narrow: float = 0.4, seed: int = 0):
        limits.require("search", method=method, rounds=rounds, trials=trials, narrow=narrow, seed=seed)
        self.method, self.trials, self.narrow, self.seed = method, trials, narrow, seed
        self.rounds = rounds if method == "random" else 1

    def open(self, parent: Path, composer: Composer, fixed: list[str], space: dict[str, Interval | Choice]) -> None:
        """The search of this name, settings and space: a new one, or the one begun before."""
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.composer, self.fixed, self.space = composer, fixed, space
        # a search may go on with more rounds or trials, but not with another method: that would be another search
        lasting = [text for text in fixed if not text.startswith(("search.rounds=", "search.trials="))]
        described = [f"{key}={domain}" for key, domain in space.items()]
        digest = runs.digest([*composer.arguments, *lasting, *described])
        self.folder = parent / f"search-{runs.slug(list(space))}-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)
        pruner = optuna.pruners.MedianPruner(n_warmup_steps=1) if self.method == "tpe" else optuna.pruners.NopPruner()
        self.study = optuna.create_study(
            storage=f"sqlite:///{self.folder / 'study.db'}",
            study_name="search",
            direction="maximize",
            load_if_exists=True,
            pruner=pruner,
        )

    def go_on(self) -> None:
        """Finish the trial that was begun, then try out what is missing; what fails is tried again next time."""
        import optuna
        from optuna.trial import Trial, TrialState

        for frozen in self.study.get_trials(states=[TrialState.RUNNING]):
            if frozen.params.keys() == self.space.keys() and ROUND in frozen.user_attrs:
                self.try_out(Trial(self.study, frozen._trial_id))
            else:  # killed while it was drawn
                self.study.tell(frozen.number, state=TrialState.FAIL)
        samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
        for round_ in range(self.rounds):
            for _ in range(self.trials - sum(trial.user_attrs[ROUND] == round_ for trial in self.finished())):
                self.study.sampler = samplers[self.method](seed=seed(self.seed, len(self.study.get_trials())))
                trial = self.study.ask(self.distributions(round_))
                trial.set_user_attr(ROUND, round_)
                self.try_out(trial)

    def finished(self) -> list["FrozenTrial"]:
        from optuna.trial import TrialState

        return self.study.get_trials(states=[TrialState.COMPLETE, TrialState.PRUNED])

    def best(self, rounds: int | None = None) -> "FrozenTrial | None":
        """Of the first `rounds`, or of all."""
        from optuna.trial import TrialState

        complete = self.study.get_trials(states=[TrialState.COMPLETE])
        counted = [trial for trial in complete if rounds is None or trial.user_attrs[ROUND] < rounds]
        return max(counted, key=lambda trial: trial.value, default=None)

    def distributions(self, round_: int) -> dict[str, "BaseDistribution"]:
        """Where this round may look."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        best = self.best(round_)
        found = {}
        for key, domain in self.space.items():
            if isinstance(domain, Choice):
                found[key] = CategoricalDistribution(domain.values)
                continue
            low, high = domain.low, domain.high
            if best is not None:
                low, high = narrowed(domain, best.params[key], self.narrow**round_)
            if isinstance(domain.low, int):
                found[key] = IntDistribution(math.floor(low), math.ceil(high), log=domain.log)
            else:
                found[key] = FloatDistribution(low, high, log=domain.log)
        return found

    def try_out(self, trial: "Trial") -> None:
        """Train with the trial's values, from where that stopped if it was begun before, and note what came out."""
        from optuna.trial import TrialState

        from cifar_resnet.train import train_in

        varying = [f"{key}={shorten(value)}" for key, value in trial.params.items()]
        run_dir = self.folder / f"{trial.number:03d}-{runs.slug(varying)}"
        where = f"round {trial.user_attrs[ROUND] + 1} of {self.rounds}, " if self.rounds > 1 else ""
        log.info(f"\n{where}trial {len(self.finished()) + 1} of {self.rounds * self.trials}: {' '.join(varying)}")
        try:
            (job,) = self.composer.jobs([*self.fixed, *varying])
        except UsageError:
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        try:
            record = runs.read_record(run_dir) or train_in(run_dir, job.cfg, [pruning_callback(trial)])
        except Diverged:  # which says something about its values: there is nothing to try again
            trial.set_user_attr(DIVERGED, True)
            self.study.tell(trial, state=TrialState.PRUNED)
            return
        except Exception:
            self.study.tell(trial, state=TrialState.FAIL)
            return
        if self.method == "tpe" and record["epochs"] < job.cfg.trainer.max_epochs:
            self.study.tell(trial, state=TrialState.PRUNED)
        else:
            self.study.tell(trial, record["metrics"]["val/acc"])

    def report(self) -> int:
        """Print the trials, the best first, leave table and picture, and say how to train with the best."""
        from cifar_resnet.plots import search_figure
        from cifar_resnet.terminal import print_table, search_table

        trials = self.study.get_trials()
        best = self.best()
        if best is None:
            log.error(f"error: no trial was finished; see {self.folder}")
            return 1
        ranked = sorted(trials, key=lambda t: (t.state.name == "COMPLETE", t.value or 0.0), reverse=True)
        print_table(search_table(ranked, list(self.space), self.rounds > 1))
        rows = [["trial", "round", *self.space, "val/acc", "state"]]
        for trial in trials:
            values = [shorten(trial.params.get(key)) for key in self.space]
            rows.append([trial.number, trial.user_attrs.get(ROUND), *values, trial.value, trial.state.name])
        runs.write_table(self.folder / "trials.csv", rows)
        for key, domain in self.space.items():
            if isinstance(domain, Interval):
                picture = self.folder / f"{key}.png"
                runs.save_figure(picture, search_figure(self.finished(), best, key, domain.log))
                log.info(f"  picture     {picture}")
        log.info(f"  look next   tensorboard --logdir {self.folder}\n\nto train with the best:\n")
        ours = ("search.", "name=", "test=", "trainer.max_epochs=")
        kept = [override for override in self.fixed if not override.startswith(ours)]
        found = [f"{key}={shorten(best.params[key])}" for key in self.space]
        log.info(shlex.join(["cifar-train", *self.composer.arguments, *kept, *found]))
        return 0


def seed(*numbers: int) -> int:
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


def pruning_callback(trial: "Trial"):
    from lightning.pytorch import Callback

    class Pruning(Callback):
        """Ends a training that the pruner gives up."""

        def on_validation_end(self, trainer, pl_module) -> None:
            trial.report(trainer.callback_metrics["val/acc"].item(), trainer.current_epoch)
            if trial.should_prune():
                trainer.should_stop = True

    return Pruning()


if __name__ == "__main__":
    sys.exit(main())
