"""The processes that train one network together: who starts them, what they tell each other, how they end.

Only the first composes, checks and writes. The others get the finished configuration from it, train along in silence,
and end when it does. Where nobody has started them, the first one does so for each training, and not as Lightning
would, by its own command again: that may be a sweep, a test, or somebody else's program.
"""

import atexit
import contextlib
import dataclasses
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import TypeVar
from unittest import mock

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from omegaconf import DictConfig, OmegaConf

from cifar_resnet import ranks
from cifar_resnet.constraints import values_in
from cifar_resnet.errors import Diverged, Interrupted, RunError, UsageError, first_sentence, refuse_if
from cifar_resnet.meeting import PATIENCE, Meeting, is_of_the_group
from cifar_resnet.ranks import ALONE, Place
from cifar_resnet.signals import SIGNALS, ended_by_signals

CHILD = "import sys; from cifar_resnet.train import follow; sys.exit(follow())"

Answer = TypeVar("Answer")

_here = ALONE  # the place of this process in the training at hand
_others: Meeting | None = None  # who wait for trainings, where they were not started for one alone


class Environment(LightningEnvironment):
    """What Lightning asks about the processes that train together: all are there by the time it does."""

    creates_processes_externally = True

    def __init__(self, place: Place):
        super().__init__()
        self.place = place

    @property
    def main_address(self) -> str:
        return self.place.address

    @property
    def main_port(self) -> int:
        return self.place.port or super().main_port

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return 0  # it serves Lightning to compute a rank, which is known here

    def set_global_rank(self, rank: int) -> None:
        super().set_global_rank(self.place.rank)


def refuse_own_starters(cfg: DictConfig) -> None:
    strategy = str(cfg.trainer.get("strategy"))
    refuse_if(
        any(name in strategy for name in ("spawn", "fork", "notebook")),
        f"cifar-train starts the processes itself. Got trainer.strategy={strategy}; give ddp",
    )


def environment() -> Environment:
    """Of the training at hand. A process that trains alone is no part of a cluster, though it may run on one."""
    rank_zero_only.rank = _here.rank  # type: ignore[attr-defined]  # by which loggers write; Lightning asked a launcher
    return Environment(_here)


def take_place(place: Place) -> None:
    """Be this one of the processes that train together, in a program that starts them itself."""
    global _here
    _here = place


def num_processes(cfg: DictConfig) -> int:
    """How many processes Lightning makes of trainer.devices and its like."""
    return shape_of(cfg)[0]


def shape_of(cfg: DictConfig) -> tuple[int, int]:
    """How many processes Lightning makes of trainer.devices and its like: all of them, and on each host."""
    names = ("accelerator", "devices", "strategy", "num_nodes")
    given = {name: value for name in names if (value := cfg.trainer.get(name)) is not None}
    settings = values_in(OmegaConf.create(given))
    if settings.get("devices") == 1 and settings.get("num_nodes", 1) == 1:
        return 1, 1
    try:
        trainer = Trainer(**settings, plugins=[Environment(ALONE)], logger=False, enable_checkpointing=False)
        return trainer.world_size, trainer.num_devices
    except Exception as error:  # Lightning's own kinds, and those of what it asks
        raise UsageError(
            f"trainer.devices is nothing that Lightning can take here: {first_sentence(error)}. "
            f"Got {settings.get('devices')} for accelerator={settings.get('accelerator')}; give a number, or auto"
        ) from error


def on_one_device(cfg: DictConfig) -> DictConfig:
    """The same training on its first device alone, in batches of what all devices together see in a step."""
    if (count := num_processes(cfg)) == 1:
        return cfg
    cfg, devices = cfg.copy(), cfg.trainer.devices
    if isinstance(devices, str) and "," in devices:
        devices = [int(index) for index in devices.split(",") if index]
    cfg.trainer.devices = 1 if isinstance(devices, (int, str)) else [devices[0]]
    cfg.trainer.strategy, cfg.trainer.num_nodes, cfg.trainer.sync_batchnorm = "auto", 1, False
    cfg.data.batch_size *= count
    return cfg


def is_rank(place: Place | None, configurations: list[DictConfig], may_share: bool) -> bool:
    """Whether this process, so started, trains together with the others, and not on its own.

    may_share: whether n processes with a device each may as well work through these trainings side by side.
    UsageError where there are more or fewer processes than a training is of.
    """
    if place is None:
        return False
    shapes = [shape_of(cfg) for cfg in configurations]
    counts, on_a_host = {count for count, _ in shapes}, min(num_devices for _, num_devices in shapes)
    if may_share and counts == {1}:
        return False
    refuse_if(
        counts != {place.world_size},
        f"{place.starter} has started {place.world_size} processes for trainings of "
        f"{' and '.join(map(str, sorted(counts)))}. Got trainer.devices={configurations[0].trainer.devices}; "
        f"give trainer.devices and trainer.num_nodes whose product is {place.world_size}, or start as many as they say",
    )
    refuse_if(  # by all alike, or the first would wait for the others
        place.most_on_a_host > on_a_host,
        f"trainer.devices says how many processes each host has. Got {configurations[0].trainer.devices}, where "
        f"{place.starter} has started {place.most_on_a_host} on one; give as many, and a trainer.num_nodes of the "
        f"hosts. By srun each must see all GPUs of its host: --gpus-per-node, not --gpus-per-task",
    )
    return True


@contextlib.contextmanager
def together(cfg: DictConfig) -> Iterator[None]:
    """Around a training of the first process: the others begin it too, and none of them is left when it ends.

    RunError where one of them is lost.
    """
    if _here.rank:  # one of the others
        yield
        return
    count, threads = num_processes(cfg), torch.get_num_threads()
    with ended_by_signals(SIGNALS if count > 1 else SIGNALS[2:]), mock.patch.dict(os.environ):
        try:
            if count == 1:
                yield
            elif _others:
                with listening(_others), led(_others, cfg):
                    yield
            else:
                with started(count, cfg) as meeting, led(meeting, cfg):
                    yield
        finally:
            torch.set_num_threads(threads)  # by DDP, Lightning takes each process's share of the cores
    if not _others:
        leave_group()


@contextlib.contextmanager
def led(meeting: Meeting, cfg: DictConfig) -> Iterator[None]:
    """Of this meeting's processes the first, as long as this training takes."""
    global _here
    if error := meeting.failure():
        raise error
    if meeting.is_over:
        raise RunError("the other processes ended with the training before; the same command again goes on")
    meeting.order(cfg)
    _here = meeting.place
    try:
        yield
    except (UsageError, Diverged, Interrupted):  # which all of them have met alike
        raise
    except BaseException as error:
        meeting.dismiss(getattr(error, "exit_code", 1))
        leave_group()  # or the others would wait for this one
        if not isinstance(error, RuntimeError):
            raise
        if reason := meeting.failure(2.0 if is_of_the_group(error) else 0.0):
            raise reason from error
        if is_of_the_group(error):
            raise RunError(f"another process of this training was lost ({first_sentence(error)})") from error
        raise
    finally:
        _here = ALONE


@contextlib.contextmanager
def listening(meeting: Meeting) -> Iterator[None]:
    """Within this another process's failure ends this one where it does not notice by itself: waiting for the other to
    join, it would sit for half an hour in C++, deaf to signals, under a starter that leaves it there, as srun does."""
    is_over = threading.Event()

    def listen() -> None:
        reason = None
        with contextlib.suppress(torch.distributed.DistError):  # whoever served it has gone: so will this one
            while not (reason or is_over.wait(0.5)):
                reason = meeting.failure()
        patience = (12 if isinstance(reason, Interrupted) else 2) * PATIENCE
        if reason and not is_over.wait(patience):
            print(f"error: {reason}; what had been saved is whole", file=sys.stderr)
            os._exit(getattr(reason, "exit_code", 1))

    threading.Thread(target=listen, daemon=True).start()
    try:
        yield
    finally:
        is_over.set()


@contextlib.contextmanager
def started(count: int, cfg: DictConfig) -> Iterator[Meeting]:
    """The other processes of a training on this host, from its beginning to its end."""
    refuse_if(
        cfg.trainer.get("num_nodes", 1) > 1,
        f"on several hosts others start the processes: torchrun, or srun. Got trainer.num_nodes={cfg.trainer.num_nodes}"
        f" and nobody has; see the docs",
    )
    meeting = Meeting(dataclasses.replace(ALONE, world_size=count, starter=ranks.OURSELVES), serves=True)
    children, is_over, code = [child(meeting.place, rank, cfg) for rank in range(1, count)], threading.Event(), 1
    threading.Thread(target=watch, args=(children, is_over), daemon=True).start()
    try:
        yield meeting
        code = 0
    except RunError as error:
        fates = [(rank, fate) for rank, each in enumerate(children, 1) if (fate := fate_of(each))]
        if fates and "lost" in str(error):  # gloo has noticed it, and this is what became of it
            raise RunError("a process of this training was lost: process {}, {}".format(*fates[0])) from error
        raise
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        raise
    finally:
        is_over.set()
        leave_group()
        meeting.dismiss(code)
        end(children)


def child(place: Place, rank: int, cfg: DictConfig) -> subprocess.Popen:
    variables = {
        "RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": place.world_size,
        "MASTER_ADDR": place.address, "MASTER_PORT": place.port,
        "PYTHONPATH": os.pathsep.join(sys.path),  # a network of one's own may lie beside the program
        ranks.PARENT: os.getpid(),
        "TORCH_CPP_LOG_LEVEL": "FATAL",  # or a process that is left alone would print pages
    }  # fmt: skip
    others = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    command = [sys.executable, "-P", "-c", CHILD, cfg.run_dir]  # the folder, for those who look at a list of processes
    environment = others | {name: str(value) for name, value in variables.items()}
    # a session of its own: of a terminal's Ctrl-C it hears from the first process, which may still be alone in knowing
    # what to do with it
    return subprocess.Popen(command, env=environment, start_new_session=True)


def watch(children: list[subprocess.Popen], is_over: threading.Event) -> None:
    """End this process where another is lost and it does not notice by itself, as when it waits for a GPU."""
    while not is_over.wait(0.5):
        if codes := {each.poll() for each in children} - {None, 0}:
            in_order = codes <= {128 + number for number in SIGNALS}  # asked to stop, as this process is
            if is_over.wait((12 if in_order else 2) * PATIENCE):
                return
            print("error: a process of this training was lost; what had been saved is whole", file=sys.stderr)
            end(children, patience=0.0)
            os._exit(1)


def fate_of(process: subprocess.Popen) -> str | None:
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(1.0)
    if not (code := process.returncode):
        return None
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"which ended with exit code {code}"


def end(processes: list[subprocess.Popen], patience: float = PATIENCE) -> None:
    last = time.monotonic() + patience
    for each in processes:
        try:
            each.wait(max(0.0, last - time.monotonic()))
        except subprocess.TimeoutExpired:
            each.kill()
            each.wait()


def spare_lightnings_signals(trainer: Trainer) -> None:
    """Leave signals to us: Lightning's handler begins a collective wherever the process is, which hangs all of them.

    What it asks before each step, it asks of the first process alone, and has a GPU waited for.
    """
    trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def leave_group(at_exit: bool = False) -> None:
    """Destroy the process group. at_exit: only when the program ends, for under torchrun a process can make but one."""
    if at_exit:
        atexit.register(leave_group)
    elif torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def lead(place: Place, run: Callable[[], Answer], goes_on: bool = False) -> Answer:
    """Run as the first of processes that others have started: the rest train what it trains, and end with it.

    run: its answer, where it is a number, is the exit code. goes_on: whether a program does, perhaps to train again.
    """
    global _others
    _others = Meeting(place, serves=place.starter != ranks.TORCHRUN)
    code, said = 1, None
    try:
        answer = run()
        code = answer if isinstance(answer, int) else 0
        said = answer["run_dir"] if isinstance(answer, dict) else None
        return answer
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        raise
    finally:
        meeting, _others = _others, None
        meeting.dismiss(code, said)
        leave_group(at_exit=goes_on and not code)
        if meeting.place.starter != ranks.TORCHRUN:
            # what it serves must be there until all have read that it is over
            meeting.wait_until_all("here", 60.0)
            meeting.wait_until_all("left", PATIENCE)


def follow(place: Place, train: Callable[[DictConfig], object], hear: Callable[[str], object] | None = None) -> int:
    """Train what the first process trains, until it ends; its exit code.

    hear: of a program that goes on afterwards; is called with the folder of the run that the first one has trained, or
        found finished.
    """
    global _here
    _here, goes_on = place, False
    if parent := os.environ.get(ranks.PARENT):
        threading.Thread(target=end_with, args=(int(parent), place), daemon=True).start()
    try:
        meeting = Meeting(place, serves=False)
        meeting.note("here")
        # of which Lightning takes away what the next training of this program goes by
        with ended_by_signals(SIGNALS), mock.patch.dict(os.environ):
            code = train_along(meeting, train)
            if hear and not code:
                hear(meeting.answer())
                goes_on = True
        meeting.note("left")
        return code
    except torch.distributed.DistError:  # nobody to hear from
        say_lost(place)
        return 1
    finally:
        _here = ALONE
        leave_group(at_exit=goes_on)


def train_along(meeting: Meeting, train: Callable[[DictConfig], object]) -> int:
    try:
        for cfg in meeting.orders():
            with contextlib.suppress(UsageError, Diverged):  # the first process says so
                train(cfg)
    except BaseException as error:
        if not is_of_the_group(error):
            meeting.report(error)
            return getattr(error, "exit_code", 1)
        leave_group()
        code = meeting.exit_code(2 * PATIENCE)
        if code is None and not meeting.failure():
            say_lost(meeting.place)
        return code or 1
    return meeting.exit_code() or 0


@contextlib.contextmanager
def after_the_first() -> Iterator[None]:
    """Within this a UsageError of one of the others is its own, and ends it: the first has come through."""
    try:
        yield
    except UsageError as error:
        print(f"error: process {_here.rank}: {error}", file=sys.stderr)
        raise RunError(str(error)) from error


def say_lost(place: Place) -> None:
    if place.rank == 1:  # one line is enough
        print("error: the first process of this training was lost; resume=<run folder> goes on", file=sys.stderr)


def end_with(parent: int, place: Place) -> None:
    """End this process soon after the one that started it."""
    while os.getppid() == parent:
        time.sleep(0.5)
    time.sleep(PATIENCE)
    say_lost(place)
    os._exit(1)
