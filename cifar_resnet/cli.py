"""The commands: what a command line means, which module answers it, and with which exit code it ends.

0 where all went well; 1 for a failed run; 2 for a user's mistake, told in one line; 128 + n for the signal n.
"""

import argparse
import contextlib
import functools
import importlib
import io
import itertools
import os
import sys
import time
from unittest import mock

import hydra
from omegaconf.errors import OmegaConfBaseException

from cifar_resnet import constraints, preflight, ranks, resume, terminal
from cifar_resnet.compose import CONF, HYDRA_VERSION, Composer, Job
from cifar_resnet.errors import (
    Interrupted,
    RunError,
    UsageError,
    as_usage_error,
    disk_trouble,
    gpu_trouble,
    one_line,
    refuse_if,
)
from cifar_resnet.overrides import program
from cifar_resnet.quoting import in_shell, with_plain_paths, without_paths

COMMANDS = ("train", "find_lr", "search", "design", "evaluate", "predict", "report", "export")
HYDRA_FLAGS = {
    "-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "-sc", "--shell-completion", "--version",
}  # fmt: skip
HYDRA_FLAGS_WITH_VALUE = {"-c", "--cfg", "-i", "--info", "-p", "--package", "-cd", "--config-dir"}
TRAINS = ("train", "find_lr", "search")
# why a command takes no -m
NO_SWEEPS = {
    "find_lr": "cifar-find-lr looks at one network at a time: leave out -m",
    "search": "cifar-search tries values by itself: leave out -m, and give intervals and choices",
    "design": "cifar-design tries combinations by itself: leave out -m, and give lists such as stages=[3,4]",
    "evaluate": "cifar-evaluate has no sweeps: leave out -m. Several checkpoints are one ensemble",
    "predict": "cifar-predict has no sweeps: leave out -m. Several inputs are a list: input=[a,b]",
    "report": "cifar-report has no sweeps: leave out -m. It takes several folders, one after the other",
    "export": "cifar-export has no sweeps: leave out -m",
}


def main(command: str, argv: list[str] | None = None) -> int:
    """Run a command, such as "train", and return its exit code. argv: the arguments; None for those of the process."""
    try:
        return run(command, sys.argv[1:] if argv is None else argv)
    except (UsageError, RunError, OmegaConfBaseException) as error:  # the last, where a key has no value and should
        complain(f"error: {one_line(error)}")
        return getattr(error, "exit_code", UsageError.exit_code)
    except (Interrupted, KeyboardInterrupt) as interrupted:
        complain(str(interrupted) or "interrupted")
        return getattr(interrupted, "exit_code", 130)
    except RuntimeError as error:
        if trouble := gpu_trouble(error, trains=command in TRAINS):
            complain(f"error: {trouble}")
            return RunError.exit_code
        raise
    except BrokenPipeError:  # whoever read our output, such as head, has had enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if (trouble := disk_trouble(error)) and os.environ.get("HYDRA_FULL_ERROR") != "1":
            complain(f"error: {trouble}")
            return RunError.exit_code
        raise


def complain(text: str) -> None:
    if terminal.is_silent():
        time.sleep(2)  # torchrun ends all of them once one has ended, and the first is still to say why
    else:
        print(text, file=sys.stderr)


def run(command: str, argv: list[str]) -> int:
    """Compose the jobs that the arguments mean, and hand them to the `run` of the command's module."""
    place = ranks.given() if command in TRAINS else None
    if place and place.rank:
        terminal.be_silent()  # whatever is wrong, the first says it
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    parser.add_argument("-m", "--multirun", action="store_true")
    parser.add_argument("-cd", "--config-dir", action="append")
    parser.add_argument("--cfg", "-c")  # Hydra's, declared or it would pass for the beginning of -cd
    try:
        options, overrides = parser.parse_known_args(argv)
    except argparse.ArgumentError as error:
        raise UsageError(f"{error}. See {program(command)} --help") from error
    folders = options.config_dir or []
    named = " ".join(map(in_shell, folders))
    refuse_if(len(folders) > 1, f"--config-dir is one folder. Got {named}; put their choices into one")
    options.config_dir = folders[0] if folders else None
    if HYDRA_FLAGS.intersection(overrides) or options.cfg:
        _, given = apart(argv)
        if (given or options.config_dir) and {"-sc", "--shell-completion"}.isdisjoint(argv):
            # refused as without the flag: Hydra knows less of what is wrong
            jobs = Composer(command, options.config_dir).jobs(
                with_plain_paths(given, options.multirun), options.multirun
            )
            begun = jobs[0].cfg.get("resume") if options.cfg else None
            refuse_if(
                begun not in (None, resume.AUTO),
                f"--cfg prints what a command is composed of, and resume goes on with what a run began with. Got "
                f"resume={begun}; look into {begun}/config.yaml",
            )
        return delegate_to_hydra(command, argv)
    refuse_if(
        unknown := next((argument for argument in overrides if argument.startswith("-")), None),
        f"unknown option {unknown}. See {program(command)} --help",
    )
    refuse_if(options.multirun and command in NO_SWEEPS, NO_SWEEPS.get(command))
    overrides = with_plain_paths(overrides, swept=options.multirun or command == "search")
    composer = Composer(command, options.config_dir)
    jobs = composer.examples(overrides) if command == "search" else composer.jobs(overrides, options.multirun)
    if place:
        terminal.set_up_logging()
        processes = importlib.import_module("cifar_resnet.processes")
        may_share = jobs[0].in_sweep or command == "search"
        trained = [resume.as_it_will_be(job) if command == "train" else job.cfg for job in jobs]
        if processes.is_rank(place, trained, may_share):
            if place.rank:
                return importlib.import_module("cifar_resnet.train").follow()
            return processes.lead(place, functools.partial(answer, command, jobs))
        terminal.speak()
    return answer(command, jobs)


def answer(command: str, jobs: list[Job]) -> int:
    """Hand the jobs to the command's module, once what they name is there."""
    preflight.check_files(command, jobs)
    terminal.set_up_logging()
    for note in dict.fromkeys(note for job in jobs for note in job.notes):
        terminal.log.warning(f"warning: {note}\n")
    is_ensemble = command == "train" and not jobs[0].in_sweep and (jobs[0].cfg.ensemble.size or 1) > 1
    if command != "train" or is_ensemble:  # of a sweep's jobs `train.run` leaves bad ones to fail beside good ones
        for job in jobs:
            constraints.check_config(job.cfg)
    module = importlib.import_module(f"cifar_resnet.{'ensemble' if is_ensemble else command}")
    # a ValueError out of a training may be a mistake of ours: then its traceback is wanted
    with contextlib.nullcontext() if command in TRAINS else as_usage_error():
        return module.run(jobs)


def delegate_to_hydra(command: str, argv: list[str]) -> int:
    """Help, printing of the configuration and tab completion."""
    swept = command == "search" or not {"-m", "--multirun"}.isdisjoint(argv)
    options, overrides = apart(with_plain_paths(argv, swept))
    line = {"COMP_LINE": without_paths(os.environ["COMP_LINE"])} if "COMP_LINE" in os.environ else {}
    with (
        # raises what Hydra would otherwise print, and exit
        mock.patch.dict(os.environ, HYDRA_FULL_ERROR="1", **line),
        mock.patch.object(sys, "argv", [program(command), *options, "--", *overrides]),
    ):
        complaints = io.StringIO()
        try:
            with contextlib.redirect_stderr(complaints):
                hydra.main(config_path=str(CONF), config_name=command, **HYDRA_VERSION)(lambda cfg: None)()
        except SystemExit as ended:
            complaint = complaints.getvalue().strip().rpartition("error: ")[2]
            refuse_if(ended.code, f"{complaint}. See {program(command)} --help")
        except (hydra.errors.HydraException, OmegaConfBaseException, ValueError) as error:
            raise UsageError(Composer(command).explain(error, overrides)) from error
    return 0


def apart(argv: list[str]) -> tuple[list[str], list[str]]:
    """Options and overrides: Hydra's parser takes no option after an override."""
    options: list[str] = []
    overrides: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        (options if argument.startswith("-") else overrides).append(argument)
        if argument in HYDRA_FLAGS_WITH_VALUE:
            options += itertools.islice(arguments, 1)
    return options, overrides


train, find_lr, search, design, evaluate, predict, report, export = (functools.partial(main, name) for name in COMMANDS)
