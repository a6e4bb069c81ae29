"""cifar-search: look for the best learning rate, or any other settings, on validation images.

    cifar-search model=resnet20
    cifar-search model=resnet20 search.method=tpe "augment=choice(none,standard,strong)"

Takes every override of cifar-train. Trials are kept by optuna in the search's folder: stopped, and started again with
the same command, a search goes on where it was.
"""

import functools
import itertools
import math
import random
import time
from collections.abc import Callable, Iterable
from datetime import datetime
from pathlib import Path
from typing import Literal

import optuna
from omegaconf import DictConfig, OmegaConf
from optuna.distributions import BaseDistribution
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.trial import FrozenTrial, Trial, TrialState

from cifar_resnet import claims, objective, resume, runs, seeds, train
from cifar_resnet.budget import Budget, time_budget
from cifar_resnet.build import build_data_and_model, build_trainer, keep_images, kept_images, sketch
from cifar_resnet.compose import Job
from cifar_resnet.constraints import Count, Duration, FractionAboveZero, Positive, Seed, check, plain
from cifar_resnet.engine import BASIC
from cifar_resnet.errors import Diverged, UsageError, as_usage_error, refuse_if
from cifar_resnet.gpus import claim_gpu
from cifar_resnet.instantiation import instantiate
from cifar_resnet.launch import launch
from cifar_resnet.objective import COURSE, FLOPS, HOPELESS, REACHED, UNREACHED, BestAccuracy, CheapestTo, Objective
from cifar_resnet.overrides import Interval
from cifar_resnet.quoting import command_line
from cifar_resnet.recipe import differences
from cifar_resnet.results import plots
from cifar_resnet.search_space import distribution, shorten
from cifar_resnet.sweep import SECONDS_BETWEEN_LOOKS, run_in
from cifar_resnet.terminal import arithmetic, flops_unit, log, look_next, part, print_table

SAMPLERS: dict[str, Callable[..., optuna.samplers.BaseSampler]] = {
    "random": optuna.samplers.RandomSampler,
    # which takes the trials that other processes are at for bad ones, so as not to try the same
    "tpe": functools.partial(optuna.samplers.TPESampler, constant_liar=True),
}
PRUNERS = {"random": optuna.pruners.NopPruner(), "tpe": optuna.pruners.MedianPruner(n_warmup_steps=1)}
FINISHED = [TrialState.COMPLETE, TrialState.PRUNED]
JOURNAL = "trials.log"
MANY = 10_000  # combinations of choices; of more than these hardly one is drawn twice
RECIPE = "recipe"  # attributes of a study: this with the number of a corner
# attributes of a trial
ROUND, DIVERGED, PART, SECONDS, ACC = "round", "diverged", "part", "seconds", "acc"
BEGAN_AS, FLOPS_BEFORE = "began_as", "flops_before"  # of one that goes on with another's training
KNOWN_SO_FAR = (FLOPS, COURSE, REACHED, HOPELESS)
IN_WORDS = {"COMPLETE": "", "PRUNED": "ended early", "FAIL": "failed", "RUNNING": "not finished"}
# left out of the line that is printed
NOT_FOR_TRAINING = (
    "search.", "name=", "test=", "trainer.max_epochs=", "trainer.limit_train_batches=", "trainer.limit_val_batches=",
)  # fmt: skip


def run(jobs: list[Job]) -> int:
    """jobs: of what is searched through every combination of choices and of intervals' ends."""
    if jobs[0].engine.launcher == BASIC:  # else the workers would have this process's one
        claim_gpu(jobs[0].cfg)
    for job in jobs:
        refuse(job.cfg)
        sketch(job.cfg)
    with kept_images():
        for job in jobs:  # what only data, network or trainer can tell, before there is a folder
            job.cfg.run_dir = str(runs.parent_dir(job.cfg))
            finds_peak = OmegaConf.select(job.cfg, "scheduler.max_lr") == resume.AUTO  # each trial its own
            if finds_peak:
                job.cfg.scheduler.max_lr = job.cfg.optimizer.lr
            build_trainer(job.cfg, *build_data_and_model(job.cfg))
            if finds_peak:
                job.cfg.scheduler.max_lr = resume.AUTO
        with as_usage_error():
            search = instantiate(jobs[0].cfg.search)
            search.open(jobs)
        if jobs[0].engine.launcher == BASIC:
            search.go_on()
        else:
            search.launch()
    return search.report()


def refuse(cfg: DictConfig) -> None:
    refuse_if(
        cfg.resume or cfg.run_dir or cfg.dry_run,
        "a search names and resumes its runs itself: leave out run_dir, resume and dry_run",
    )
    refuse_if(
        cfg.ensemble.size != 1,
        f"a search trains one network at a time. Got ensemble.size={cfg.ensemble.size}; leave it out",
    )
    refuse_if(
        cfg.search.max_flops and OmegaConf.select(cfg, "scheduler.max_lr") == resume.AUTO,
        "search.max_flops knows nothing of the range tests of scheduler.max_lr=auto. Got both; give search.max_time, "
        'or search that rate: "scheduler.max_lr=interval(0.01,1)"',
    )
    refuse_if(cfg.data.get("num_val") == 0, "a search needs validation images. Got data.num_val=0; give some")
    monitor, every = OmegaConf.select(cfg, "callbacks.best.monitor"), cfg.trainer.get("check_val_every_n_epoch")
    refuse_if(
        str(monitor).startswith("train/") and every not in (1, None),
        f"a search compares val/acc of the epochs that are kept. Got callbacks.best.monitor={monitor}, which may keep "
        f"one that is not validated, and trainer.check_val_every_n_epoch={every}; leave one of them out",
    )
    refuse_if(
        cfg.trainer.get("limit_val_batches") == 0,
        "a search goes by validation images. Got trainer.limit_val_batches=0; give more, or null for all",
    )


def without_secret(overrides: Iterable[str]) -> list[str]:
    """Without the database's URL, which may hold a password, and says nothing about a trial."""
    return [text for text in overrides if not text.startswith("search.storage=")]


def without_storage(recipe: dict) -> dict:
    return recipe | {"search": None, "overrides": without_secret(recipe["overrides"])}


class Search:
    """Rounds of trials, each a training of its own.

    method: "random", uniformly in a range that each round narrows around the best so far, or "tpe", Parzen estimators
        that learn from all trials before (Bergstra et al. 2011), where a trial worse than the median ends early.
    rounds, trials: of random search, so many trials in each round; TPE has one round. Of choices alone no combination
        is tried twice, for it would be the same training; there are no more trials than combinations.
    narrow: a round's range / that of the round before.
    target: a validation accuracy. Then what is looked for is the training that comes to it with the least arithmetic,
        which ends as soon as it is there, or has become dearer than another that was; None for the best accuracy.
    max_time: no trial is begun that would not end within it, as "DD:HH:MM:SS"; None for no limit. It begins with the
        command.
    max_flops: of all trials together, those that ended early included; no trial is begun for which too few are left,
        if it takes as many as the dearest before. None for no limit. Before one has ended nothing tells what they take,
        so that of several processes each begins one.
    storage: the URL of a database for the trials; None keeps them in the search's folder.

    The same command in another process, here or on another host that sees the folder, takes its share of the trials.
    """

    def __init__(
        self,
        method: Literal["random", "tpe"] = "random",
        rounds: Count = 3,
        trials: Count = 10,
        narrow: FractionAboveZero = 0.4,
        seed: Seed = 0,
        target: FractionAboveZero | None = None,
        max_time: Duration | None = None,
        max_flops: Positive | None = None,
        storage: str | None = None,
    ):
        check(Search, locals())
        self.method, self.trials, self.narrow, self.seed, self.storage = method, trials, narrow, seed, storage
        self.target, self.max_time, self.max_flops = target, max_time, max_flops
        self.rounds = rounds if method == "random" else 1

    def open(self, jobs: list[Job]) -> None:
        """The search of this name, settings and space: a new one, or the one begun before. jobs: of its corners."""
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        job = self.job = jobs[0]
        self.space = job.space
        # a search may go on with more rounds or trials, but not with another method: that would be another search
        may_change = ("search.rounds=", "search.trials=", "search.max_time=", "search.max_flops=")
        lasting = [text for text in job.overrides if not text.startswith(may_change)]
        searched = [f"{key}={domain}" for key, domain in self.space.items()]
        digest = runs.digest([*job.composer.arguments, *lasting, *searched])
        self.folder = runs.parent_dir(job.cfg) / f"search-{runs.slug(list(self.space))}-{digest}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with claims.held(self.folder, wait=True):
            if self.storage is None:
                mend_journal(self.folder / JOURNAL)
            self.connect()
            self.check_recipe([job.cfg for job in jobs])
        self.began = datetime.now()
        clock = functools.partial(runs.time_in, self.folder)
        self.time = time_budget("search.max_time", self.max_time, clock(), clock)

    def connect(self) -> None:
        journal = JournalFileBackend(str(Path(self.folder / JOURNAL).absolute()))  # its lock is a link to it
        self.claimed: dict[int, claims.Claim] = {}  # by a trial's number: to watch those of others, and for our own
        self.study = optuna.create_study(
            storage=self.storage or JournalStorage(journal),
            study_name=self.folder.name,
            direction=self.objective.direction,
            load_if_exists=True,
            pruner=PRUNERS[self.method],
        )

    def __getstate__(self) -> dict:
        """For a launcher's workers, which connect on their own."""
        return {key: value for key, value in vars(self).items() if key not in ("study", "claimed")}

    def check_recipe(self, corners: list[DictConfig]) -> None:
        """UsageError where the trials so far are of another recipe; these are noted for the next time."""
        where = "search.storage, under this name" if self.storage else str(self.folder)
        remedy = "give another name=…" if self.storage else "take that folder away, or give another name=…"
        for number, cfg in enumerate(corners):  # each by itself: a database has room for some 60 kB
            key = f"{RECIPE} {number}"
            before = self.study.user_attrs.get(key)
            refuse_if(
                changed := differences(before, cfg, resume.SET_BY_US, raw=cfg) if before else [],
                f"its recipe has changed since this search was begun. Got another {resume.listed(changed)} than in "
                f"{where}; {remedy}",
            )
            if not before:
                self.study.set_user_attr(key, without_storage(plain(cfg)))

    def go_on(self) -> None:
        """Finish what was begun, then try out what is missing, round by round; what fails is tried again next time."""
        for round_ in range(self.rounds):
            is_told = False
            while (trial := self.next_trial(round_)) is not None:
                if isinstance(trial, Trial):
                    self.try_out(trial)
                    continue
                if not is_told:
                    log.info(f"\n  {trial} of its trials are other processes': waiting for them")
                is_told = True
                time.sleep(SECONDS_BETWEEN_LOOKS)

    def launch(self) -> None:
        """The same by the workers of a launcher, one trial each."""
        for round_ in range(self.rounds):
            combinations = self.num_combinations - len(self.finished())
            missing = int(min(self.trials - len(self.of_round(round_, *FINISHED)), combinations))
            if missing > 0 and not self.lack():
                launch(self.job, self.folder, missing, functools.partial(one_trial, self, round_))

    def next_trial(self, round_: int) -> Trial | int | None:
        """One of this round that is now ours; or how many are still other processes'; or None, where all are done."""
        with claims.held(self.folder, wait=True):  # so that no two count, and draw, at once
            lack, num_left, stopped = self.lack(), 0, self.stopped_by_failure(round_)
            for frozen in self.study.get_trials(states=[TrialState.RUNNING]):
                if frozen.params.keys() != self.space.keys() or ROUND not in frozen.user_attrs:
                    self.study.tell(frozen.number, state=TrialState.FAIL)  # killed while it was drawn
                elif frozen.user_attrs[ROUND] == round_ and self.claim_of(frozen).take():
                    if not self.lack(frozen):
                        return Trial(self.study, frozen._trial_id)
                    self.claim_of(frozen).release()
                    num_left += 1
            num_running = len(self.of_round(round_, TrialState.RUNNING)) - num_left  # by others
            failed = list(filter(self.has_failed_now, self.of_round(round_, TrialState.FAIL)))
            untried = self.untried()
            is_over = len(self.of_round(round_, *FINISHED)) + num_running + len(failed) >= self.trials
            if stopped and not is_over and not self.lack(stopped[0]) and self.claim_of(stopped[0]).take():
                return self.gone_on_with(stopped[0], round_)
            if lack or is_over or untried == []:
                return num_running or None
            seed = seeds.seed_for("search", self.seed, len(self.study.get_trials())) % 2**32
            self.study.sampler = SAMPLERS[self.method](seed=seed)
            trial = self.study.ask(self.distributions(round_))
            if untried and trial.params not in untried:  # it would be the same training once more
                self.study.tell(trial, state=TrialState.FAIL)
                self.study.enqueue_trial(random.Random(seed).choice(untried))
                trial = self.study.ask(self.distributions(round_))
            return self.taken(trial, round_)

    def taken(self, trial: Trial, round_: int) -> Trial:
        trial.set_user_attr(ROUND, round_)
        self.claim_of(trial).take()
        return trial

    def gone_on_with(self, failed: FrozenTrial, round_: int) -> Trial:
        """Another trial, whose training is that of one that failed, in its folder, which is ours: optuna leaves that
        one as it is."""
        known = {name: value for name, value in failed.user_attrs.items() if name in KNOWN_SO_FAR}
        attributes = known | {BEGAN_AS: began_as(failed), FLOPS_BEFORE: failed.user_attrs.get(FLOPS)}
        if began_as(failed) not in map(began_as, self.study.get_trials(states=[TrialState.WAITING])):  # killed here
            waiting = optuna.trial.create_trial(
                state=TrialState.WAITING,
                system_attrs={"fixed_params": failed.params},  # as enqueue_trial has it, which takes no values so far
                user_attrs=attributes,
                intermediate_values=failed.intermediate_values,
            )
            self.study.add_trial(waiting)
        trial = self.study.ask(self.distributions(round_))
        trial.set_user_attr(ROUND, round_)
        self.claimed[trial.number] = self.claim_of(failed)
        return trial

    def stopped_by_failure(self, round_: int) -> list[FrozenTrial]:
        """Of this round those that failed another time, and that somebody has finished since, or that left a checkpoint
        from which they have come further since they last went on, if they did."""
        failed = [
            trial
            for trial in self.drawn()
            if trial.user_attrs[ROUND] == round_ and trial.state == TrialState.FAIL and not self.has_failed_now(trial)
        ]
        return [trial for trial in failed if runs.readable_record(self.claim_of(trial).folder) or self.may_go_on(trial)]

    def may_go_on(self, trial: FrozenTrial) -> bool:
        has_come_further = trial.user_attrs.get(FLOPS_BEFORE) != trial.user_attrs.get(FLOPS)
        return (BEGAN_AS not in trial.user_attrs or has_come_further) and runs.can_go_on(self.claim_of(trial).folder)

    def drawn(self) -> list[FrozenTrial]:
        """All trials with their values, but those whose training another has gone on with."""
        found = [trial for trial in self.study.get_trials() if ROUND in trial.user_attrs]
        return list({began_as(trial): trial for trial in found}.values())  # they come in their order

    def untried(self) -> list[dict[str, str]] | None:
        """Of a space of choices alone the combinations that are left; None where there is an interval, or too many."""
        if self.num_combinations > MANY:
            return None
        trials = [trial for trial in self.study.get_trials() if ROUND in trial.user_attrs]
        tried = [trial.params for trial in trials if trial.state != TrialState.FAIL or self.has_failed_now(trial)]
        every = itertools.product(*(domain for domain in self.space.values() if isinstance(domain, list)))
        return [found for values in every if (found := dict(zip(self.space, values, strict=True))) not in tried]

    @property
    def num_combinations(self) -> float:
        return math.prod(
            math.inf if isinstance(domain, Interval) else len(set(domain)) for domain in self.space.values()
        )

    @property
    def num_planned(self) -> int:
        """Trials of all rounds; of few choices no more than these have combinations."""
        return int(min(self.rounds * self.trials, self.num_combinations))

    def has_failed_now(self, trial: FrozenTrial) -> bool:
        """Whether it failed while this process was at the search: then it is not tried again by it."""
        return trial.state == TrialState.FAIL and trial.datetime_complete >= self.began

    def lack(self, begun: FrozenTrial | None = None) -> str | None:
        """Why another trial would be too long or too dear; None where there is enough for it. begun: that would go on,
        of which a part is done."""
        before = of(self.finished(), FLOPS)
        # those that run now may become as dear
        promised = sum(
            max(0.0, max(before, default=0.0) - trial.user_attrs.get(FLOPS, 0.0))
            for trial in self.study.get_trials(states=[TrialState.RUNNING])
            if begun is None or trial.number != begun.number
        )
        own = begun.user_attrs.get(FLOPS, 0.0) if begun else 0.0
        limit = self.max_flops or math.inf
        budget = Budget("search.max_flops", limit, lambda: self.flops() - own + promised, arithmetic)
        return self.lacks_time() or budget.lack(before)

    def lacks_time(self) -> str | None:
        return self.time.lack(of(self.finished(), SECONDS))

    def flops(self) -> float:
        """Of all trials so far, however they ended. One that goes on with another's training counts that as well."""
        most: dict[int, float] = {}
        for trial in self.study.get_trials():
            most[began_as(trial)] = max(most.get(began_as(trial), 0.0), trial.user_attrs.get(FLOPS, 0.0))
        return sum(most.values())

    def claim_of(self, trial: Trial | FrozenTrial) -> claims.Claim:
        run_dir = self.folder / f"{began_as(trial):03d}-{runs.slug(self.varying(trial))}"
        return self.claimed.setdefault(trial.number, claims.Claim(run_dir))

    def varying(self, trial: Trial | FrozenTrial) -> list[str]:
        return [f"{key}={shorten(value, self.space[key])}" for key, value in trial.params.items()]

    def of_round(self, round_: int, *states: TrialState) -> list[FrozenTrial]:
        return [trial for trial in self.study.get_trials(states=states) if trial.user_attrs.get(ROUND) == round_]

    def finished(self) -> list[FrozenTrial]:
        return self.study.get_trials(states=FINISHED)

    def best(self, rounds: float = math.inf) -> FrozenTrial | None:
        """Of the first `rounds`."""
        complete = self.study.get_trials(states=[TrialState.COMPLETE])
        return min((trial for trial in complete if trial.user_attrs[ROUND] < rounds), key=self.rank, default=None)

    def rank(self, trial: FrozenTrial) -> float:
        """The less the better."""
        return trial.value if self.objective.direction == "minimize" else -trial.value

    @property
    def objective(self) -> Objective:
        return BestAccuracy() if self.target is None else CheapestTo(self.target, self.cheapest)

    def cheapest(self) -> float:
        """FLOPs of the cheapest trial so far that came to the target; math.inf where none did."""
        return min(of(self.study.get_trials(states=[TrialState.COMPLETE]), REACHED), default=math.inf)

    def distributions(self, round_: int) -> dict[str, BaseDistribution]:
        """Where this round may look."""
        params = best.params if (best := self.best(round_)) else {}
        return {key: distribution(domain, params.get(key), self.narrow**round_) for key, domain in self.space.items()}

    def try_out(self, trial: Trial) -> None:
        """Train with the values of a trial that is ours, from where that stopped if it was begun before, and note what
        came out."""
        varying, claim = self.varying(trial), self.claim_of(trial)
        where = f"round {trial.user_attrs[ROUND] + 1} of {self.rounds}, " if self.rounds > 1 else ""
        begun = len(self.study.get_trials(states=[*FINISHED, TrialState.RUNNING]))
        log.info(f"\n{where}trial {begun} of {self.num_planned}: {' '.join(varying)}")
        try:
            self.train(trial, varying, claim.folder)
        finally:
            claim.release()

    def train(self, trial: Trial, varying: list[str], run_dir: Path) -> None:
        try:
            (job,) = self.job.composer.jobs([*without_secret(self.job.overrides), *varying])
        except UsageError:
            self.study.tell(trial, state=TrialState.FAIL)
            raise
        run = functools.partial(train.train_run, extra_callbacks=[objective.Watch(trial, self.objective)])
        try:
            record = runs.read_record(run_dir) or run_in(run_dir, job.cfg, run)
        except Diverged:  # which says something about its values: there is nothing to try again
            trial.set_user_attr(DIVERGED, True)
            self.study.tell(trial, state=TrialState.PRUNED)
        except claims.Lost as error:  # who has taken it over says what came out
            log.warning(f"warning: {error}")
        except Exception:
            self.study.tell(trial, state=TrialState.FAIL)
        else:
            acc = record["metrics"]["val/acc"]
            found = {PART: part(record, "val"), SECONDS: record["seconds"], FLOPS: record["training_flops"], ACC: acc}
            if self.target is not None and acc >= self.target and REACHED not in trial.user_attrs:
                found[REACHED] = record["training_flops"]  # it was finished by hand, unwatched
            for name, value in found.items():
                trial.set_user_attr(name, value)
            ended_early = record["epochs"] < job.cfg.trainer.max_epochs
            if HOPELESS in trial.user_attrs and REACHED not in trial.user_attrs and ended_early:
                self.study.tell(trial, state=TrialState.PRUNED)
            else:
                self.study.tell(trial, self.objective.value(acc, trial.user_attrs))

    def report(self) -> int:
        """Print the trials, the best first, leave table and pictures, and say how to train with the best."""
        trials, best = self.drawn(), self.best()
        if best is None:
            log.error(f"error: no trial was finished; see {self.folder}")
            return 1
        print_table(self.table(trials))
        missing = self.num_planned - len(self.finished())
        if missing > 0:
            lack = self.lack()
            anew = "and has as much time anew" if self.lacks_time() else "if given more"
            log.warning(
                f"  {missing} of {self.num_planned} trials were not {'begun' if lack else 'finished'}"
                f"{f': {lack}' if lack else ''}; the same command again goes on with them{f', {anew}' if lack else ''}"
            )
        if self.num_planned < self.rounds * self.trials and missing <= 0:
            log.info(f"  trials      there are no more combinations of these choices than {self.num_planned}")
        if seen := sorted({trial.user_attrs[PART] for trial in trials if trial.user_attrs.get(PART)}):
            log.info(f"  validation  on {' or '.join(seen)}")
        log.info(f"  cost        {arithmetic(self.flops())}, all trials together")
        with claims.held(self.folder, wait=True):
            self.save(trials, best)
        if command := look_next(self.folder, self.folder):
            log.info(f"  look next   {command}")
        if self.rank(best) >= UNREACHED:
            log.error(
                f"error: no trial came to a validation accuracy of search.target={self.target}. The best came to "
                f"{best.user_attrs[ACC]:.2%}; search through longer trainings, or give a lower target"
            )
            return 1
        log.info(f"\nto train with the best{', to the end of its schedule' * (self.target is not None)}:\n")
        kept = [override for override in self.job.overrides if not override.startswith(NOT_FOR_TRAINING)]
        found = [f"{key}={value}" for key, value in zip(self.space, self.values(best), strict=True)]
        if self.target is not None and "trainer.max_epochs" not in self.space:
            found.append(f"trainer.max_epochs={self.job.cfg.trainer.max_epochs}")
        log.info(command_line("cifar-train", *self.job.composer.arguments, *kept, *found))
        return 0

    def save(self, trials: list[FrozenTrial], best: FrozenTrial) -> None:
        """The table, a picture of what it cost, and one for each interval."""
        attributes = [trial.user_attrs for trial in trials]
        columns = {
            "trial": [began_as(trial) for trial in trials],
            "round": [each.get(ROUND) for each in attributes],
            **{key: [self.values(trial)[place] for trial in trials] for place, key in enumerate(self.space)},
            "val/acc": [each.get(ACC) for each in attributes],
            "training_flops": [each.get(FLOPS) for each in attributes],
            **({} if self.target is None else {"flops_to_target": [each.get(REACHED) for each in attributes]}),
            "state": [trial.state.name for trial in trials],
        }
        runs.write_table(self.folder / "trials.csv", [list(columns), *zip(*columns.values(), strict=True)])
        pictures = {"cost": plots.search_cost_figure(self.costs(trials), began_as(best), self.target)}
        y = {trial.number: trial.user_attrs.get(ACC if self.target is None else REACHED) for trial in trials}
        scored = [trial for trial in self.finished() if y[trial.number] is not None]
        for key, domain in self.space.items():
            if isinstance(domain, Interval) and best in scored:
                points = [(trial.user_attrs[ROUND], trial.params[key], y[trial.number]) for trial in scored]
                around = best.params[key], y[best.number]
                pictures[key] = plots.search_figure(points, around, key, domain.log, is_cost=self.target is not None)
        for name, figure in pictures.items():
            picture = self.folder / f"{name}.png"
            plots.save_figure(picture, figure)
            log.info(f"  picture     {picture}")

    def costs(self, trials: list[FrozenTrial]) -> list[plots.TrialCost]:
        """What each has spent, in their order, and what came of it."""
        return [
            plots.TrialCost(
                began_as(trial),
                trial.user_attrs.get(COURSE, []),
                trial.user_attrs.get(FLOPS, 0.0),
                trial.user_attrs.get(ACC if self.target is None else REACHED)
                if trial.state == TrialState.COMPLETE
                else None,
            )
            for trial in trials
        ]

    def values(self, trial: FrozenTrial) -> list[object]:
        """Of what is searched, in its order. None for what was not drawn."""
        return [shorten(trial.params.get(key), domain) for key, domain in self.space.items()]

    def table(self, trials: list[FrozenTrial]) -> list[list[str]]:
        """A head, and a row for each trial, the best first; numbers from 1."""
        has_rounds = self.rounds > 1
        unit, scale = flops_unit(max(of(trials, FLOPS), default=0))
        rows = [["trial", *["round"] * has_rounds, *self.space, "validation", unit, ""]]
        for trial in sorted(trials, key=self.order):
            attributes = trial.user_attrs
            round_ = str(attributes[ROUND] + 1) if ROUND in attributes else ""
            accuracy = f"{attributes[ACC]:.2%}" if ACC in attributes else ""
            flops = attributes.get(REACHED, attributes.get(FLOPS))
            cost = "" if flops is None else f"{scale * flops:.3g}"
            is_complete = trial.state == TrialState.COMPLETE
            state = (
                "diverged" if DIVERGED in attributes
                else "not reached" if is_complete and self.rank(trial) >= UNREACHED
                else IN_WORDS[trial.state.name]
            )  # fmt: skip
            values = map(str, self.values(trial))
            rows.append([str(began_as(trial) + 1), *[round_] * has_rounds, *values, accuracy, cost, state])
        return rows

    def order(self, trial: FrozenTrial) -> tuple[bool, float]:
        """Of the rows: those that ended by themselves, the best first, then the others by their accuracy."""
        is_complete = trial.state == TrialState.COMPLETE
        return not is_complete, self.rank(trial) if is_complete else -trial.user_attrs.get(ACC, 0.0)


def mend_journal(path: Path) -> None:
    """Take away a last line that a full disk has cut short: the next would be glued to it, and none be readable."""
    lock = JournalFileSymlinkLock(str(path.absolute()))  # optuna's own, by which other processes write
    lock.acquire()
    try:
        content = path.read_bytes() if path.exists() else b""
        if content and not content.endswith(b"\n"):
            with path.open("r+b") as file:
                file.truncate(content.rfind(b"\n") + 1)
    finally:
        lock.release()


def one_trial(search: Search, round_: int, _: int) -> None:
    """What a launcher's worker does."""
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    claim_gpu(search.job.cfg)
    keep_images()
    search.connect()
    while isinstance(trial := search.next_trial(round_), int):  # what those cost decides whether there is another
        time.sleep(SECONDS_BETWEEN_LOOKS)
    if trial:
        print(f"  trial {began_as(trial) + 1} begins: {' '.join(search.varying(trial))}", flush=True)
        search.try_out(trial)
        print(f"  trial {began_as(trial) + 1} has ended", flush=True)


def began_as(trial: Trial | FrozenTrial) -> int:
    """The number of the trial that began its training, which is mostly its own."""
    return trial.user_attrs.get(BEGAN_AS, trial.number)


def of(trials: Iterable[FrozenTrial], attribute: str) -> list[float]:
    """Of those that have it."""
    return [trial.user_attrs[attribute] for trial in trials if attribute in trial.user_attrs]
