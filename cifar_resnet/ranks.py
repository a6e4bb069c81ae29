"""Which of several processes this is, where somebody else has started them: torchrun, srun, or our own first one.

Nothing here imports torch, so that a mistake in the command is told at once.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from cifar_resnet.errors import refuse_if


@dataclass(frozen=True)
class Place:
    """One process among those that train one network together.

    rank: of all; local_rank: of those on its host, which decides its device.
    address, port: where the processes meet. starter: who started them, in a person's words.
    most_on_a_host: how many it has started on one, or on that with the most; 0 where it does not say.
    """

    rank: int
    world_size: int
    local_rank: int
    address: str
    port: int
    starter: str
    most_on_a_host: int = 0


PARENT = "CIFAR_RESNET_PARENT"  # names the process that has started this one to train along
OURSELVES, TORCHRUN, SRUN, SOMEBODY = "cifar-train", "torchrun", "srun", "somebody, by RANK and WORLD_SIZE,"
ALONE = Place(0, 1, 0, "127.0.0.1", 0, "nobody")
OF_TORCH = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # as torch.distributed's env:// has them


def given(environment: Mapping[str, str] = os.environ) -> Place | None:
    """The place of one of several processes that others have started; None for one that was started alone."""
    if all(name in environment for name in OF_TORCH):  # first: torchrun may run under srun
        place = by_torch(environment)
    elif "SLURM_STEP_NUM_TASKS" in environment:  # not SLURM_NTASKS, which a script has that has called no srun
        place = by_srun(environment)
    else:
        return None
    return place if place.world_size > 1 else None


def by_torch(environment: Mapping[str, str]) -> Place:
    rank, world_size = number(environment, "RANK"), number(environment, "WORLD_SIZE")
    starter = TORCHRUN if "TORCHELASTIC_RUN_ID" in environment else OURSELVES if PARENT in environment else SOMEBODY
    return Place(
        rank=rank,
        world_size=world_size,
        local_rank=number(environment, "LOCAL_RANK") if "LOCAL_RANK" in environment else 0,
        address=environment["MASTER_ADDR"],
        port=number(environment, "MASTER_PORT"),
        starter=starter,
        most_on_a_host=number(environment, "LOCAL_WORLD_SIZE") if "LOCAL_WORLD_SIZE" in environment else 0,
    )


def by_srun(environment: Mapping[str, str]) -> Place:
    # every task must come to the same port, and steps that run side by side to another
    job, step = (number(environment, name) for name in ("SLURM_JOB_ID", "SLURM_STEP_ID"))
    port = number(environment, "MASTER_PORT") if "MASTER_PORT" in environment else 15000 + (job * 10 + step) % 10000
    is_one_host = environment.get("SLURM_STEP_NUM_NODES", "1") == "1"
    hosts = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_NODELIST", "")
    each_host = environment.get("SLURM_STEP_TASKS_PER_NODE", "")  # such as 4(x2),3
    return Place(
        rank=number(environment, "SLURM_PROCID"),
        world_size=number(environment, "SLURM_STEP_NUM_TASKS"),
        local_rank=number(environment, "SLURM_LOCALID"),
        address=environment.get("MASTER_ADDR") or ("127.0.0.1" if is_one_host else first_host(hosts)),
        port=port,
        starter=SRUN,
        most_on_a_host=max(map(int, re.findall(r"\b\d+", each_host)), default=0),
    )


def first_host(hosts: str) -> str:
    """Of a list as SLURM writes it: node[03-05,9],other begins with node03."""
    return re.sub(r"\[(\w+).*?\]", r"\1", hosts).partition(",")[0]


def number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name, "")
    refuse_if(
        not value.isdigit(),
        f"{name} must say a number where several processes train together. Got {value!r}; set it, or unset the others",
    )
    return int(value)
