"""What the processes that train together tell each other, beside their gradients: orders, and why one ends."""

import contextlib
import dataclasses
import itertools
import json
import os
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.distributed import PrefixStore, TCPStore

from cifar_resnet import ranks
from cifar_resnet.errors import Interrupted, RunError, one_line
from cifar_resnet.ranks import Place

PATIENCE = 5.0  # seconds for the others to end, or to say why they have
TO_COME = timedelta(minutes=5)  # for all to be there: one may import torch much later than another


_numbers = itertools.count()  # of the meetings of this process, as of each of the others


class Meeting:
    """What the processes of one command tell each other: texts under keys, which the first or torchrun serves."""

    def __init__(self, place: Place, serves: bool):
        """place: its port may be 0 where this process serves: then any free one, said by `place`."""
        store = TCPStore(
            place.address, place.port, is_master=serves, wait_for_workers=False, multi_tenant=True, timeout=TO_COME
        )
        self.place = dataclasses.replace(place, port=store.port)
        # torchrun serves the same to those it starts again, and to all trainings of a program
        life = os.environ["TORCHELASTIC_RESTART_COUNT"] if place.starter == ranks.TORCHRUN else "0"
        number = 0 if place.starter == ranks.OURSELVES else next(_numbers)
        self.store = PrefixStore(f"cifar_resnet/{life}/{number}", store)
        self.num_orders, self.is_over = 0, False

    def order(self, cfg: DictConfig) -> None:
        """Have the others train what this says."""
        self.store.set(f"order/{self.num_orders}", OmegaConf.to_yaml(cfg))
        self.num_orders += 1

    def orders(self) -> Iterator[DictConfig]:
        """What there is to train, until the first process ends."""
        while True:
            if self.store.check([f"order/{self.num_orders}"]):
                cfg: Any = OmegaConf.create(self.store.get(f"order/{self.num_orders}").decode())
                yield cfg
                self.num_orders += 1
            elif self.store.check(["end"]):
                return
            else:
                time.sleep(0.05)  # a wait within the store would be deaf to signals

    def dismiss(self, exit_code: int, answer: object = None) -> None:
        """answer: of plain values, for those who ask for it."""
        if not self.is_over:
            self.store.set("answer", json.dumps(answer))
            self.store.set("end", str(exit_code))
        self.is_over = True

    def exit_code(self, patience: float = PATIENCE) -> int | None:
        """The first process's, once it has ended; None where it has not within so many seconds, or is lost."""
        try:
            found = self.wait_for("end", patience)
        except torch.distributed.DistError:
            return None
        return None if found is None else int(found)

    def answer(self) -> Any:
        """The first process's, once it has ended."""
        return json.loads(self.store.get("answer"))

    def note(self, what: str) -> None:
        """Count one more process that is here, or has left."""
        with contextlib.suppress(torch.distributed.DistError):
            self.store.add(what, 1)

    def wait_until_all(self, what: str, patience: float) -> None:
        end = time.monotonic() + patience
        while self.store.add(what, 0) < self.place.world_size - 1 and time.monotonic() < end:
            time.sleep(0.05)

    def report(self, error: BaseException) -> None:
        """Tell the first process why this one ends."""
        number = error.exit_code - 128 if isinstance(error, Interrupted) else 0
        content = {"rank": self.place.rank, "signal": number, "text": one_line(error)}
        with contextlib.suppress(torch.distributed.DistError):
            self.store.set("failure", json.dumps(content))

    def failure(self, patience: float = 0.0) -> BaseException | None:
        """Why another process has ended, as far as it could say so."""
        if (found := self.wait_for("failure", patience)) is None:
            return None
        said = json.loads(found)
        if said["signal"]:
            return Interrupted(said["text"], said["signal"])
        return RunError(f"process {said['rank']} of this training failed: {said['text']}")

    def wait_for(self, key: str, patience: float) -> bytes | None:
        end = time.monotonic() + patience
        while not (is_there := self.store.check([key])) and time.monotonic() < end:
            time.sleep(0.05)
        return self.store.get(key) if is_there else None


def is_of_the_group(error: BaseException) -> bool:
    """Whether it came of talking to the other processes."""
    return isinstance(error, torch.distributed.DistError) or any(name in str(error) for name in ("gloo", "NCCL"))
