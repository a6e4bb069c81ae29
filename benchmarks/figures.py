"""What the benchmarks share: how they are called, on what their figures are taken, and the record of these."""

import argparse
import re
import shlex
import sys
from datetime import date
from pathlib import Path
from typing import NamedTuple

import torch

from cifar_resnet import provenance, runs
from cifar_resnet.errors import UsageError
from cifar_resnet.hardware import device_name, keep_freed_memory
from cifar_resnet.terminal import set_up_logging


def parser_of(doc: str | None) -> argparse.ArgumentParser:
    """A benchmark's, with its module's docstring for help."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="also write the figures here")
    return parser


def positive(text: str) -> int:
    """An option's whole number, of which less than one makes no sense."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"a whole number, 1 or more. Got {text}")
    return int(text)


class NetworkAt(NamedTuple):
    """A choice of the group model, and the images of a step: network@batch_size."""

    network: str
    batch_size: int

    def __str__(self) -> str:
        return "@".join(map(str, self))

    @classmethod
    def read(cls, text: str) -> "NetworkAt":
        network, _, batch_size = text.partition("@")
        if not network or not batch_size.isdecimal() or int(batch_size) < 1:
            raise argparse.ArgumentTypeError(f"a network and its batch size, such as resnet20@512. Got {text}")
        return cls(network, int(batch_size))


def in_one_line(kind: type[BaseException], error: BaseException, trace: object) -> None:
    if isinstance(error, UsageError):
        print(f"error: {error}", file=sys.stderr)
    else:
        sys.__excepthook__(kind, error, trace)


def begin() -> dict:
    """Set this process up as cifar-train would, and say on what the figures are taken."""
    set_up_logging()
    sys.excepthook = in_one_line
    keep_freed_memory()  # it serves the bare loop as well
    device = device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    print(f"{device}; torch {torch.__version__}; commit {provenance.commit()}; {date.today()}\n")
    script, *arguments = sys.argv
    # where somebody's files lie says nothing to others
    arguments = [re.sub(r"^(--?\w[\w-]*=|[\w.]+=)?/.*/", r"\1…/", text) for text in arguments]
    return {
        "command": shlex.join(["python", f"benchmarks/{Path(script).name}", *arguments]),
        "device": device,
        "threads": torch.get_num_threads(),
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "date": str(date.today()),
    }


def save(path: Path | None, about: dict, **found: object) -> None:
    """Write a record, where there is to be one. about: as `begin` has it."""
    if path:
        runs.write_json(path, about | found)
