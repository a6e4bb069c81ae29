"""A sweep's jobs and a search's trials through Hydra's launchers: joblib, submitit on SLURM, Ray."""

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import hydra
from hydra._internal.callbacks import Callbacks
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.plugins import Plugins
from hydra.types import HydraContext
from omegaconf import DictConfig

from cifar_resnet import runs, terminal
from cifar_resnet.compose import Job, hydra_for_us
from cifar_resnet.constraints import values_in
from cifar_resnet.engine import flat
from cifar_resnet.errors import Interrupted, as_usage_error, first_sentence, refuse_if
from cifar_resnet.quoting import in_quotes
from cifar_resnet.terminal import log


class Work:
    """What a launcher's worker calls, wherever that is: one of several pieces of work, by its number.

    do: what does it; as everything here, it is pickled.
    """

    def __init__(self, do: Callable[[int], object]):
        self.do, self.folder = do, Path.cwd()

    def __call__(self, _: object) -> None:
        number = HydraConfig.get().job.num
        HydraConfig.instance().cfg = None  # with it, Lightning would tell the processes that it starts where to write
        os.chdir(self.folder)
        terminal.set_up_logging(only_warnings=True)
        try:
            self.do(number)
        # out of a worker, such an end would take with it what all others have done
        except KeyboardInterrupt:
            log.warning("warning: interrupted")
        except Interrupted as stopped:
            log.warning(f"warning: {stopped}")
            if stopped.exit_code != 128 + signal.SIGINT:  # which is a person's, not SLURM's
                requeue()


def requeue() -> None:
    """Have SLURM start this job of submitit's again, unless it was cancelled."""
    signalled = signal.getsignal(signal.SIGUSR2)
    if "SUBMITIT_EXECUTOR" in os.environ and callable(signalled) and is_to_run_on():
        signal.raise_signal(signal.SIGUSR2)  # by which submitit does it, and ends the process


def is_to_run_on() -> bool:
    """Whether SLURM still takes the job for a running one, as before a pre-emption or a time limit; cancelled, it does
    not."""
    number = os.environ.get("SLURM_JOB_ID")
    if number is None:
        return True
    command = ["squeue", "--noheader", "--jobs", number, "--format", "%T"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip() == "RUNNING"


def launch(job: Job, folder: Path, count: int, do: Callable[[int], object]) -> None:
    """Have `do(0)` to `do(count - 1)` done by the workers of the job's launcher, and wait for them.

    What comes of it is not returned but left in files, for a worker may be lost. folder: for what the launcher writes.
    """
    engine = job.engine
    log.info(f"\n  {count} pieces of work through hydra/launcher={engine.launcher}")
    ours = [
        "hydra/job_logging=none", "hydra/hydra_logging=none", "hydra.sweep.subdir=.",
        f"hydra.sweep.dir={in_quotes(str(folder.absolute()))}", f"hydra/launcher={engine.launcher}",
    ]  # fmt: skip
    with hydra_for_us(), as_usage_error():
        name, search = job.composer.config_name, job.composer.searchpath
        usual = hydra.compose(name, [*search, *ours], return_hydra_config=True).hydra
        # in words, for a worker composes them once more
        chosen = [*settings_of("hydra.launcher", engine.hydra.launcher, usual.launcher)]
        ours += [f"hydra.job.name={in_quotes(engine.hydra.job.name)}"]
        cfg = hydra.compose(name, [*search, *ours, *chosen], return_hydra_config=True)
        context = HydraContext(config_loader=GlobalHydra.instance().config_loader(), callbacks=Callbacks())
        launcher = Plugins.instance().instantiate_launcher(hydra_context=context, task_function=Work(do), config=cfg)
        start = runs.time_in(folder)
        try:
            launcher.launch([[] for _ in range(count)], initial_job_idx=0)
        except Exception as error:
            said = first_sentence(error)
            refuse_if(
                not is_touched(folder, start),
                f"hydra/launcher={engine.launcher} could begin nothing: {said}. Got "
                f"{' '.join(chosen) or 'its defaults'}; see its settings, hydra.launcher.*",
            )
            # of a lost worker, say: what the others have done is in their folders
            log.warning(f"warning: hydra/launcher={engine.launcher} ended early: {said}")


def is_touched(folder: Path, since: float) -> bool:
    """Whether any run folder in there has been changed."""
    return any(path.stat().st_mtime >= since for path in folder.iterdir() if path.is_dir() and path.name[0] != ".")


def settings_of(key: str, settings: DictConfig, usual: DictConfig) -> Iterator[str]:
    """Overrides that make of the usual settings these."""
    before = dict(flat(values_in(usual), key))
    for name, value in flat(values_in(settings), key):
        if name not in before or before[name] != value:
            yield f"++{name}={in_grammar(value)}"


def in_grammar(value: object) -> str:
    """A plain value as an override has it."""
    if isinstance(value, str):
        return in_quotes(value)
    if isinstance(value, list):
        return f"[{','.join(map(in_grammar, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{in_grammar(each)}" for key, each in value.items()) + "}"
    return "null" if value is None else str(value).lower()
