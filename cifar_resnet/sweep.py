"""cifar-train -m: one job after the other, each in its own folder, and a table of all at the end."""

import shutil
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from omegaconf import DictConfig

from cifar_resnet import resume, runs
from cifar_resnet.compose import Job
from cifar_resnet.errors import RunError, UsageError, as_usage_error, refuse_if
from cifar_resnet.terminal import duration, log, look_next, part, print_table


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
    """Run what has not finished before; the exit code: 0, or 1 where a job failed.

    run: trains one job and returns its record.
    """
    varying = list(dict.fromkeys(override for job in jobs for override in job.varying))
    folder = runs.sweep_dir(runs.parent_dir(jobs[0].cfg), [*jobs[0].composer.arguments, *jobs[0].overrides], varying)
    with as_usage_error():
        folder.mkdir(parents=True, exist_ok=True)
    records, reasons = [], []
    for number, (job, name) in enumerate(zip(jobs, runs.distinct_slugs([job.varying for job in jobs]), strict=True), 1):
        log.info(f"\njob {number} of {len(jobs)}: {' '.join(job.varying)}")
        try:
            records.append((job.varying, run_unless_finished(folder / name, job.cfg, run)))
        except Exception as error:
            records.append((job.varying, None))
            reasons.append(f"    {' '.join(job.varying)}: {reason_of(error)}\n")
    print_table(table_of(records))
    if reasons:
        log.error(
            f"  {len(reasons)} of {len(jobs)} jobs failed; the same command again trains only those\n\n"
            f"{''.join(reasons)}"
        )
    if command := look_next(folder, folder):
        log.info(f"  compare them: {command}")
    return 1 if reasons else 0


def run_unless_finished(run_dir: Path, cfg: DictConfig, run: Callable[[DictConfig], dict]) -> dict:
    record = runs.read_record(run_dir)
    if record or runs.can_go_on(run_dir):
        resume.check_same_job(cfg, run_dir)
    if record:
        log.info("finished before")
        (run_dir / runs.FAILURE).unlink(missing_ok=True)  # of what came after its record
    return record or run_in(run_dir, cfg, run)


def run_in(run_dir: Path, cfg: DictConfig, run: Callable[[DictConfig], dict]) -> dict:
    """Run in this folder, from where it stopped if it was begun before; the record. A failure leaves its reason."""
    failure = run_dir / runs.FAILURE
    failure.unlink(missing_ok=True)
    try:
        goes_on = runs.can_go_on(run_dir)
        if (run_dir / runs.CONFIG).is_file() and not goes_on:  # it may have been mended since
            shutil.rmtree(run_dir)
        cfg = resume.load_begun(run_dir, cfg) if goes_on else cfg
        cfg.run_dir, cfg.resume = str(run_dir), str(run_dir) if goes_on else None
        return run(cfg)
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


def table_of(records: Sequence[tuple[list[str], dict | None]]) -> list[list[str]]:
    """A head, and a row for each job: what it varied, how well it did."""
    values = [dict(override.split("=", 1) for override in varying) for varying, _ in records]
    results = [results_of(record) if record else ["failed", "", "", "", ""] for _, record in records]
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
