"""Training from Python, in a notebook or another program."""

import functools
import sys
import threading
from collections.abc import Sequence
from pathlib import Path

from cifar_resnet import preflight, processes, ranks, resume, runs, terminal
from cifar_resnet.compose import Composer, Job
from cifar_resnet.errors import refuse_if
from cifar_resnet.quoting import with_plain_paths
from cifar_resnet.terminal import set_up_logging
from cifar_resnet.train import train_along, train_run

_training = threading.Lock()


def train(overrides: Sequence[str] = (), config_dir: str | None = None) -> dict:
    """What `cifar-train` does with these overrides, from Python; returns the run's record.

    overrides: such as ["model=resnet20", "trainer.max_epochs=15"]. config_dir: a folder of one's own choices.
    Raises UsageError, with one line that says what is wrong with them. One at a time: all that is drawn comes from the
    process's own random numbers.
    """
    refuse_if(
        not _training.acquire(blocking=False),
        "a process trains one network at a time, for random numbers are drawn for all of it. Got another training that "
        "goes on; wait for it, or use processes",
    )
    try:
        return train_now(overrides, config_dir)
    finally:
        _training.release()


def train_now(overrides: Sequence[str], config_dir: str | None) -> dict:
    refuse_if(
        isinstance(overrides, str) or not all(isinstance(text, str) for text in overrides),
        f"overrides are a list of texts. Got {overrides!r}; give such as ['model=resnet20']",
    )
    jobs = (job,) = Composer("train", config_dir).jobs(with_plain_paths(list(overrides), swept=False))
    refuse_if(
        (job.cfg.ensemble.size or 1) > 1,
        "train() answers with the record of one run: leave out ensemble.size, or use cifar-train",
    )
    refuse_if(job.cfg.dry_run, "train() trains. Got dry_run=true; leave it out, or use cifar-train")
    set_up_logging()
    for note in job.notes:
        terminal.log.warning(f"warning: {note}\n")
    place = ranks.given()
    if place and processes.is_rank(place, [resume.as_it_will_be(job)], may_share=False):
        return train_together(place, jobs)
    return train_it(jobs)


def train_it(jobs: list[Job]) -> dict:
    preflight.check_files("train", jobs)
    return train_run(resume.chosen_run(jobs[0]))


def train_together(place: ranks.Place, jobs: list[Job]) -> dict:
    """The record of the run, in each of the processes that somebody has started for it."""
    if not place.rank:
        return processes.lead(place, functools.partial(train_it, jobs), goes_on=True)
    found: list[str] = []
    terminal.be_silent()
    if code := processes.follow(place, train_along, found.append):
        sys.exit(code)
    return runs.read_record(Path(found[0]))
