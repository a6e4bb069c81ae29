"""Who is at work on a folder: a run, a sweep's job and a search's trial belong to the process that holds their claim.

A claim is a file in the folder that names a host and a process. It ends with that process: of one on this host at once,
of one on another, which a cluster's file system need not tell about, when its heartbeat has stopped for `EXPIRES`
seconds.
"""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from filelock import LeaseCompromise, LeaseSettingsMismatch, SoftFileLease, Timeout

from cifar_resnet.errors import RunError, UsageError
from cifar_resnet.terminal import log

CLAIM = ".claim"
SECONDS_BETWEEN_LOOKS = 1.0
EXPIRES = 120.0  # seconds: a network's file system may show a heartbeat a minute late

_held: dict[Path, "Claim"] = {}  # by folder
_loose: set[Path] = set()  # of these folders those whose file went, or could not be refreshed
_lost: set[Path] = set()  # and those that others have taken over
_asked = _looked = 0.0  # when somebody asked last whether a claim is kept, and when its file was looked at for that


class Busy(UsageError):
    """Another process is at work on the folder."""


class Lost(RunError):
    """Another process has taken the folder over, and goes on there."""


class Claim:
    """This process's claim on a folder, once `take` has said so. The same object has to be asked again, until then: it
    watches the heartbeat of whoever holds it."""

    def __init__(self, folder: Path):
        self.folder, self.token, self.thread = folder, "", 0
        self.lease = self.new_lease()

    def new_lease(self) -> SoftFileLease:
        return SoftFileLease(
            self.folder / CLAIM, lease_duration=EXPIRES, thread_local=False, on_compromise=self.note_loss
        )

    def note_loss(self, compromise: LeaseCompromise) -> None:
        """From the heartbeat's thread."""
        if compromise.reason in ("marker-missing", "refresh-failed"):
            _loose.add(self.folder.resolve())
        else:
            _lost.add(self.folder.resolve())

    def look(self) -> None:
        """Between two beats of the heart, for somebody may have taken the file away, and begun there."""
        with contextlib.suppress(OSError):
            owner = self.lease.owner
            if owner is None:
                _loose.add(self.folder.resolve())
            elif self.token and owner.token != self.token:
                _lost.add(self.folder.resolve())

    def take_again(self, stood_still: bool) -> None:
        """Once its file has gone, or could not be refreshed; lost where another has it, or may have had it since."""
        with contextlib.suppress(OSError):  # a drive that comes and goes
            if (owner := self.lease.owner) and owner.token == self.token:
                (self.folder / CLAIM).unlink(missing_ok=True)  # or this process would wait for itself
            self.lease = self.new_lease()
            if stood_still or not self.take():
                _lost.add(self.folder.resolve())
            _loose.discard(self.folder.resolve())

    def take(self) -> bool:
        """Claim the folder, which is made where there is none; False where another process holds it."""
        global _asked
        before, _asked = self.lease.owner, time.time()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self.lease.acquire(timeout=0)
        except (Timeout, LeaseSettingsMismatch):
            return False
        _lost.discard(self.folder.resolve())
        _held[self.folder.resolve()], self.thread = self, threading.get_ident()
        self.token = owner.token if (owner := self.lease.owner) else ""
        if before and not is_here(before.hostname):
            log.warning(
                f"warning: {self.folder} is taken over from process {before.pid} on {before.hostname}, whose heartbeat "
                f"has stopped"
            )
        return True

    def release(self) -> None:
        _held.pop(self.folder.resolve(), None)
        _loose.discard(self.folder.resolve())
        _lost.discard(self.folder.resolve())
        self.lease.release()

    def last_beat(self) -> float:
        """When its holder was last heard of, by the file system's clock."""
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / CLAIM).stat().st_mtime
        return 0.0

    def busy(self) -> Busy:
        owner = self.lease.owner
        who = f"process {owner.pid} on {owner.hostname}" if owner else "another process"
        return Busy(f"another process is at work there. Got {self.folder}, which {who} has claimed; wait for its end")


def is_here(hostname: str) -> bool:
    """Whether a claim's host is this one, so that its processes can be looked for."""
    with contextlib.suppress(OSError):  # a container's name says which processes are its own
        if hostname.endswith(f"?pidns-{Path('/proc/self/ns/pid').stat().st_ino:x}"):
            return True
    return hostname == socket.gethostname()


@contextlib.contextmanager
def held(folder: Path, wait: bool = False) -> Iterator[None]:
    """Within this the folder is ours; Busy where it is another process's. May be nested.

    A claim from another host is waited for until its heartbeat tells whether that process lives; with `wait`, any is.
    """
    if (mine := _held.get(folder.resolve())) and mine.thread == threading.get_ident():
        yield
        return
    claim = Claim(folder)
    is_taken = claim.take()
    owner = claim.lease.owner
    while wait and not is_taken:
        time.sleep(0.05)
        is_taken = claim.take()
    if not is_taken and owner and not is_here(owner.hostname):
        log.info(f"  process {owner.pid} on {owner.hostname} has claimed {folder}: waiting for its heartbeat")
        beat = claim.last_beat()
        while not is_taken and claim.last_beat() == beat:
            time.sleep(EXPIRES / 100)
            is_taken = claim.take()
    if not is_taken:
        raise claim.busy()
    try:
        yield
    finally:
        claim.release()


def check_free(folder: Path) -> None:
    """Busy where another process is at work there."""
    if (folder / CLAIM).exists():
        with held(folder):
            pass


def check_kept(folder: Path) -> None:
    """Lost where another process has taken the folder over: this one must have stood still for long."""
    global _asked, _looked
    before, _asked = _asked, time.time()
    if not (_loose or _lost) and 0 <= _asked - _looked < SECONDS_BETWEEN_LOOKS:
        return  # asked in each step: mostly there is nothing to resolve
    _looked, place = _asked, folder.resolve()
    if claim := _held.get(place):
        claim.look()
        if place in _loose:
            claim.take_again(stood_still=_asked - before > EXPIRES / 2)
    if place in _lost:
        raise Lost(f"another process has taken this run over while this one stood still. Got {folder}; it goes on")
