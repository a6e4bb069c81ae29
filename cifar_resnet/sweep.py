"""cifar-train -m: one job after the other, each in its own folder, and a table of all at the end.

The same command in another process, here or on another host that sees the folder, takes its share of the jobs.
"""

import contextlib
import functools
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from cifar_resnet import claims, resume, runs
from cifar_resnet.budget import Budget, time_budget
from cifar_resnet.compose import Job
from cifar_resnet.constraints import plain
from cifar_resnet.engine import BASIC
from cifar_resnet.errors import RunError, UsageError, as_usage_error, refuse_if
from cifar_resnet.launch import launch
from cifar_resnet.quoting import command_line
from cifar_resnet.terminal import duration, listed, log, look_next, part, print_table

SECONDS_BETWEEN_LOOKS = 0.5  # at jobs that other processes are at


class Left(str):
    """Why a job was not begun: no failure, but the sweep's time is over."""


Outcome = dict | Left | str  # a record, or why there is none


def refuse(jobs: Sequence[Job]) -> None:
    """UsageError for what the jobs of a sweep cannot be asked for."""
    refuse_if(
        any(job.cfg.resume or job.cfg.run_dir for job in jobs),
        "a sweep names and resumes its runs itself: leave out run_dir and resume",
    )
    refuse_if(
        any(job.cfg.ensemble.size != 1 for job in jobs),
        "a sweep trains one network after the other: leave out ensemble.size, or -m",
    )


def sweep(jobs: Sequence[Job], run: Callable[[DictConfig], dict]) -> int:
    """Run what has not finished before, here or by a launcher; the exit code: 0, or 1 where a job failed.

    run: trains one job and returns its record; a function of a module, for a launcher's workers import it.
    """
    folders, run_dirs = folders_of(jobs)
    folder = folders[0]
    with as_usage_error():
        folder.mkdir(parents=True, exist_ok=True)
        began = runs.time_in(folder)
    budget = time_budget(
        "sweep.max_time", plain(jobs[0].cfg.sweep)["max_time"], began, functools.partial(runs.time_in, folder)
    )
    tasks = [
        Task(f"job {number} of {len(jobs)}: {' '.join(job.varying)}", job.cfg, run_dir, run_dirs, budget)
        for number, (job, run_dir) in enumerate(zip(jobs, run_dirs, strict=True), 1)
    ]
    if jobs[0].engine.launcher != BASIC:
        waiting = [task for task in tasks if not runs.is_finished(task.run_dir)]
        if waiting:
            launch(jobs[0], folder, len(waiting), functools.partial(attempt_by_number, waiting, run, began))
        run = None
    outcomes = share(tasks, run, began)
    print_table(table_of([(job.varying, outcome) for job, outcome in zip(jobs, outcomes, strict=True)]))
    reasons = [
        f"    {' '.join(job.varying)}: {outcome}\n"
        for job, outcome in zip(jobs, outcomes, strict=True)
        if isinstance(outcome, str) and not isinstance(outcome, Left)
    ]
    if left := [outcome for outcome in outcomes if isinstance(outcome, Left)]:
        log.warning(
            f"  {len(left)} of {len(jobs)} jobs were not begun: {left[0]}; the same command again trains them, and has "
            f"as much time anew\n"
        )
    if reasons:
        log.error(
            f"  {len(reasons)} of {len(jobs)} jobs failed; the same command again trains only those\n\n"
            f"{''.join(reasons)}"
        )
    commands = {"curves": look_next(folder, folder) if len(folders) == 1 else ""}
    if sum(isinstance(outcome, dict) for outcome in outcomes) > 1:
        commands["compare"] = command_line("cifar-report", *folders)
        varying = [text for job in jobs for text in job.varying]
        if len(folders) == 1 and jobs[0].cfg.test and not any(text.startswith(("data", "test=")) for text in varying):
            commands["as an ensemble"] = command_line("cifar-evaluate", f"checkpoint={folder}")
    if shown := {name: command for name, command in commands.items() if command}:
        log.info(listed(shown))
    return 1 if reasons else 0


def folders_of(jobs: Sequence[Job]) -> tuple[list[Path], list[Path]]:
    """Those of the sweep, mostly one, and that of each job: as Hydra's settings name them, or else by what varies."""
    job, varying = jobs[0], list(dict.fromkeys(override for job in jobs for override in job.varying))
    lasting = [text for text in job.overrides if not text.startswith("sweep.")]  # another limit is no other sweep
    usual = runs.sweep_dir(runs.parent_dir(job.cfg), [*job.composer.arguments, *lasting], varying)
    folders = [Path(each.engine.sweep_dir) if each.engine.sweep_dir else usual for each in jobs]
    names = [job.engine.subdir for job in jobs]
    if names[0] is None:
        each = [" ".join(job.varying) for job in jobs]
        again = next((text for place, text in enumerate(each) if text in each[:place]), None)
        refuse_if(again, f"a sweep trains each job once. Got {again} twice; name it once")
        # where there is one job, nothing varies
        names = [name or "run" for name in runs.distinct_slugs([job.varying for job in jobs])]
    found = [folder / name for folder, name in zip(folders, names, strict=True)]
    twice = next((path.name for place, path in enumerate(found) if path in found[:place]), None)
    refuse_if(
        twice, f"each job needs a folder of its own. Got hydra.sweep.subdir={twice} twice; put ${{hydra.job.num}} in it"
    )
    return list(dict.fromkeys(folders)), found


def unfinished(jobs: Sequence[Job]) -> list[DictConfig]:
    """The configurations of those that have left no record yet."""
    return [job.cfg for job, run_dir in zip(jobs, folders_of(jobs)[1], strict=True) if not runs.is_finished(run_dir)]


class Task:
    """A job of a sweep, in its folder.

    title: such as "job 2 of 3: seed=1". run_dirs: of all jobs. budget: of all of them together.
    """

    def __init__(self, title: str, cfg: DictConfig, run_dir: Path, run_dirs: Sequence[Path], budget: Budget):
        self.title, self.cfg, self.run_dir, self.run_dirs, self.budget = title, cfg, run_dir, run_dirs, budget

    @functools.cached_property
    def claim(self) -> claims.Claim:
        return claims.Claim(self.run_dir)

    def __getstate__(self) -> dict:
        """For a launcher's workers, and for submitit once more when a job is queued again: each has its own claim."""
        return {name: value for name, value in vars(self).items() if name != "claim"}

    def was_trained(self, since: float) -> bool:
        """Whether a training has been at it."""
        told = self.run_dir / runs.LOG
        return told.exists() and told.stat().st_mtime >= since

    def attempt(self, run: Callable[[DictConfig], dict] | None, began: float) -> Outcome | None:
        """Run it, unless that has been done; None while another process is at it.

        What failed stays claimed, so that no other process that shares the sweep tries it as well. run: None where
        others should have. began: when this process did; what has failed since then is not tried again.
        """
        try:
            if record := self.record():
                if run:
                    log.info(f"\n{self.title}\nfinished before")
                (self.run_dir / runs.FAILURE).unlink(missing_ok=True)  # of what came after its record
                return record
            if run is None and not self.run_dir.exists():
                lost = "it was not begun, for its launcher ended before; the same command again trains it"
                return self.left() or lost
            if (reason := self.failure(since=began)) or not self.claim.take():
                return reason or self.failure()
            # or others would take it for ours
            (self.run_dir / runs.FAILURE).unlink(missing_ok=True)
            record = self.record()  # another process may have just ended
            left = None if record else self.left()
            if run is None and record is None and (left is None or self.was_trained(since=began)):
                return "it was not finished, for its worker was stopped or lost; the same command again goes on with it"
            if left is not None:
                self.claim.release()
                with contextlib.suppress(OSError):  # it may have been begun before
                    self.run_dir.rmdir()
                return left
            if record is None:
                log.info(f"\n{self.title}")
                record = run_in(self.run_dir, self.cfg, run)
        except claims.Lost as error:
            log.warning(f"warning: {error}")
            self.claim.release()
            return None
        except Exception as error:
            return reason_of(error)
        except BaseException:
            self.claim.release()
            raise
        self.claim.release()
        return record

    def record(self) -> dict | None:
        record = runs.read_record(self.run_dir)
        if record or runs.can_go_on(self.run_dir):
            resume.check_same_job(self.cfg, self.run_dir)
        elif (self.run_dir / runs.CONFIG).is_file():
            runs.load_config(self.run_dir)  # of a run, or it is somebody else's folder
        return record

    def left(self) -> Left | None:
        """Why there is no time to begin it; None where there is."""
        taken = (record["seconds"] for record in map(runs.readable_record, self.run_dirs) if record)
        return Left(lack) if (lack := self.budget.lack(taken)) else None

    def failure(self, since: float = 0.0) -> str | None:
        """What was left as the reason, the last line of it, if anything was since that time."""
        file = self.run_dir / runs.FAILURE
        with contextlib.suppress(FileNotFoundError):
            return file.read_text().splitlines()[-1] if file.stat().st_mtime >= since else None
        return None


def attempt_by_number(tasks: Sequence[Task], run: Callable[[DictConfig], dict], began: float, number: int) -> None:
    """What a launcher's worker does."""
    task = tasks[number]
    print(f"  {task.title} begins", flush=True)
    outcome = task.attempt(run, began)
    ended = {type(None): "is another process's", Left: "was left", str: "has failed"}.get(type(outcome), "is done")
    print(f"  {task.title} {ended}", flush=True)


def share(tasks: Sequence[Task], run: Callable[[DictConfig], dict] | None, began: float) -> list[Outcome]:
    """The outcome of each, whichever process ran it: those that others are at are waited for."""
    outcomes: dict[Task, Outcome] = {}
    while len(outcomes) < len(tasks):
        before = len(outcomes)
        for task in tasks:
            if task not in outcomes and (outcome := task.attempt(run, began)) is not None:
                outcomes[task] = outcome
        if not before and len(outcomes) < len(tasks):
            log.info(f"\n  {len(tasks) - len(outcomes)} of {len(tasks)} jobs are other processes': waiting for them")
        if len(outcomes) == before:
            time.sleep(SECONDS_BETWEEN_LOOKS)
    for task in tasks:
        task.claim.release()
    return [outcomes[task] for task in tasks]


def run_in(run_dir: Path, cfg: DictConfig, run: Callable[[DictConfig], dict]) -> dict:
    """Run in this folder, from where it stopped if it was begun before; the record. A failure leaves its reason."""
    failure = run_dir / runs.FAILURE
    failure.unlink(missing_ok=True)
    try:
        keeps_last = "last" in cfg.callbacks or runs.last_checkpoint(run_dir).exists()
        goes_on = runs.can_go_on(run_dir) and keeps_last
        if (run_dir / runs.CONFIG).is_file() and not goes_on:  # it may have been mended since
            runs.clear(run_dir)
        cfg = resume.load_begun(run_dir, cfg) if goes_on else cfg
        cfg.run_dir, cfg.resume = str(run_dir), str(run_dir) if goes_on else None
        return run(cfg)
    except claims.Lost:  # it is no failure of the job, which another process is at
        raise
    except Exception as error:
        text = reason_of(error, whole=True)
        log.error(f"error: {text}")
        run_dir.mkdir(parents=True, exist_ok=True)
        runs.write_atomically(failure, f"{text}\n")
        raise


def reason_of(error: Exception, whole: bool = False) -> str:
    """What it says, if it was made to be read; of any other its last line, or with `whole` the traceback."""
    if isinstance(error, (UsageError, RunError)):
        return str(error)
    return "".join(traceback.format_exception(error) if whole else traceback.format_exception_only(error)[-1:]).strip()


def table_of(outcomes: Sequence[tuple[list[str], Outcome]]) -> list[list[str]]:
    """A head, and a row for each job: what it varied, how well it did."""
    values = [dict(override.split("=", 1) for override in varying) for varying, _ in outcomes]
    results = [
        results_of(outcome)
        if isinstance(outcome, dict)
        else ["left" if isinstance(outcome, Left) else "failed", "", "", "", ""]
        for _, outcome in outcomes
    ]
    return [
        [*values[0], "validation", "test", "parameters", "time", "folder"],
        *([*each.values(), *result] for each, result in zip(values, results, strict=True)),
    ]


def results_of(record: dict) -> list[str]:
    metrics = record["metrics"]
    accuracies = [
        f"{metrics[f'{split}/acc']:.2%}" + (f" ({seen})" if (seen := part(record, split)) else "")
        if f"{split}/acc" in metrics
        else ""
        for split in ("val", "test")
    ]
    return [*accuracies, f"{record['parameters']:,}", duration(record["train_seconds"]), Path(record["run_dir"]).name]
