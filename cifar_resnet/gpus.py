"""One GPU for each of the processes that share a machine with several."""

import getpass
import itertools
import os
import tempfile
from pathlib import Path

import torch
from filelock import FileLock, Timeout
from omegaconf import DictConfig

from cifar_resnet.terminal import log

VISIBLE = "CUDA_VISIBLE_DEVICES"

_claimed: list[FileLock] = []  # that of this process's GPU, as long as it lives


def claim_gpu(cfg: DictConfig) -> None:
    """Show this process one GPU of several, if it trains on one: one that none of our others has, if there is any.

    To be called before CUDA is initialised, which looks once at what is visible. cfg: of a job of a sweep or a search.
    """
    is_on_one = cfg.trainer.get("devices") in (1, "1") and cfg.trainer.get("accelerator") in ("auto", "gpu", "cuda")
    count = torch.cuda.device_count() if is_on_one and not _claimed and not torch.cuda.is_initialized() else 0
    if count < 2:
        return
    given = os.environ.get(VISIBLE)
    names = given.split(",")[:count] if given else list(map(str, range(count)))
    user = getattr(os, "getuid", getpass.getuser)()  # in a container it may have no name
    folder = Path(tempfile.gettempdir(), f"cifar-resnet-gpus-{user}")
    folder.mkdir(exist_ok=True)
    for turn, name in ((turn, name) for turn in itertools.count() for name in names):
        lock = FileLock(folder / f"{name.replace('/', '_')}.{turn}")
        try:
            lock.acquire(timeout=0)
        except Timeout:
            continue
        _claimed.append(lock)
        os.environ[VISIBLE] = name
        log.info(f"  GPU {name}, of {count}, is this process's")
        return
