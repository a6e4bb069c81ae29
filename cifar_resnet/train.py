"""cifar-train: fit, test the checkpoint that validation chose, and leave a run folder.

    cifar-train model=resnet50 trainer.max_epochs=300
    cifar-train -m model=resnet20,resnet56 optimizer.lr=0.05,0.1
    cifar-train resume=outputs/train/<run folder>
    cifar-train model=resnet50 resume=auto        # begins, or goes on where the same command was stopped

The same as `python -m cifar_resnet.train` and `python cifar_resnet/train.py`.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # here, before torch is imported: help and mistakes are quick
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from cifar_resnet import cli

    sys.exit(cli.train())

import functools
import time
from collections.abc import Sequence

from lightning.pytorch import Callback
from omegaconf import DictConfig

from cifar_resnet import checkpoints, constraints, preflight, processes, ranks, resume, runs, sweep, terminal, training
from cifar_resnet.build import build_data_and_model, kept_images, sketch
from cifar_resnet.compose import Composer, Job
from cifar_resnet.errors import refuse_if
from cifar_resnet.models.summary import size_rows, summarize
from cifar_resnet.quoting import with_plain_paths
from cifar_resnet.range_test import resolve_max_lr
from cifar_resnet.terminal import log, print_table, set_up_logging, summary


def run(jobs: list[Job]) -> int:
    """Train each job; the exit code: 0, or 1 where a job of a sweep failed."""
    if jobs[0].in_sweep:
        sweep.refuse(jobs)
        constraints.check_jobs([job.cfg for job in jobs], sketch)
    if jobs[0].cfg.dry_run:
        for job in jobs:
            describe(job)
    elif jobs[0].in_sweep:
        with kept_images():
            return sweep.sweep(jobs, train_run)
    else:
        train_run(resume.chosen_run(jobs[0]))  # jobs[0].cfg, but for resume=…
    return 0


def train_run(cfg: DictConfig, extra_callbacks: Sequence[Callback] = ()) -> dict:
    """Train the run that `cfg` describes, from where it stopped if it was begun before; its record.

    extra_callbacks: beside those of the configuration.
    """
    if record := runs.finished(cfg):
        log.info(f"this run has finished before\n\n{summary(record)}")
        return record
    start = time.perf_counter()
    if cfg.resume:
        resume.keep_global_batch(cfg, checkpoints.batches_before(Path(cfg.run_dir)), processes.num_processes(cfg))
    range_test = resolve_max_lr(cfg)  # None but for scheduler.max_lr=auto
    data, model = build_data_and_model(cfg)
    with runs.open_folder(cfg), processes.together(cfg):  # made only now; goes again if nothing comes of it
        return training.train_and_test(cfg, data, model, extra_callbacks, range_test, start)


def describe(job: Job) -> None:
    """Print the network, stage by stage; nothing is read, allocated or written."""
    data, model = sketch(resume.chosen_run(job), check_budget=False)
    log.info(" ".join([job.cfg.choices.model, *job.varying]))
    print_table(*size_rows(summarize(model, data.image_shape)))
    model.check_budget()


def train(overrides: Sequence[str] = (), config_dir: str | None = None) -> dict:
    """What `cifar-train` does with these overrides, from Python; returns the run's record.

    overrides: such as ["model=resnet20", "trainer.max_epochs=15"]. config_dir: a folder of one's own choices.
    Raises UsageError, with one line that says what is wrong with them.
    """
    refuse_if(
        isinstance(overrides, str) or not all(isinstance(text, str) for text in overrides),
        f"overrides are a list of texts. Got {overrides!r}; give such as ['model=resnet20']",
    )
    jobs = (job,) = Composer("train", config_dir).jobs(with_plain_paths(list(overrides), swept=False))
    refuse_if(
        job.cfg.ensemble.size > 1,
        "train() answers with the record of one run: leave out ensemble.size, or use cifar-train",
    )
    refuse_if(job.cfg.dry_run, "train() trains. Got dry_run=true; leave it out, or use cifar-train")
    set_up_logging()
    place = ranks.given()
    if place and processes.is_rank(place, [job.cfg], may_share=False):
        return train_together(place, jobs)
    return train_job(jobs)


def train_job(jobs: list[Job]) -> dict:
    preflight.check_files("train", jobs)
    return train_run(resume.chosen_run(jobs[0]))


def train_together(place: ranks.Place, jobs: list[Job]) -> dict:
    """The record of the run, in each of the processes that somebody has started for it."""
    if not place.rank:
        return processes.lead(place, functools.partial(train_job, jobs))
    found: dict = {}
    terminal.be_silent()
    if code := processes.follow(place, lambda cfg: found.update(run_dir=training.train_along(cfg)["run_dir"])):
        sys.exit(code)
    return runs.read_record(Path(found["run_dir"]))
