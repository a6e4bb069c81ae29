"""Claims on a folder: of this process, of others on this host, and forged ones of another host."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import LeaseCompromise

from cifar_resnet import claims

HOLD = """
import sys, time
from pathlib import Path
from cifar_resnet import claims
claims.EXPIRES = float(sys.argv[2])
assert claims.Claim(Path(sys.argv[1])).take()
print("held", flush=True)
time.sleep(60)
"""


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "run"


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(claims, "EXPIRES", 1.0)


@pytest.fixture
def other_process(folder):
    """A process that holds the folder."""
    process = subprocess.Popen([sys.executable, "-c", HOLD, folder, "1.0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def forge(folder: Path, host: str = "node7") -> Path:
    """A claim as filelock writes it, of a process that nobody here can look for."""
    folder.mkdir(exist_ok=True)
    (folder / claims.CLAIM).write_text(f"filelock/2\npid=77\nhost={host}\nmode=lease\ntoken=abc\nduration=1.0\n")
    return folder / claims.CLAIM


def test_a_claim_is_left_with_nothing_behind(folder):
    with claims.held(folder):
        assert (folder / claims.CLAIM).exists()
    assert list(folder.iterdir()) == []
    with claims.held(folder):
        pass


def test_within_a_claim_the_same_one_may_be_asked_for_again(folder):
    with claims.held(folder), claims.held(folder):
        pass
    assert list(folder.iterdir()) == []


def test_what_a_living_process_holds_is_refused_at_once_and_it_is_named(folder, other_process):
    start = time.monotonic()
    with pytest.raises(claims.Busy) as error, claims.held(folder):
        pytest.fail("two hold it")
    assert time.monotonic() - start < 0.5
    assert f"which process {other_process.pid} on {socket.gethostname()}" in str(error.value)


@pytest.mark.slow
def test_a_claim_outlives_its_time_as_long_as_its_heart_beats(folder, other_process):
    claim, end = claims.Claim(folder), time.monotonic() + 2.5
    while time.monotonic() < end:
        assert not claim.take()
        time.sleep(0.1)


def test_a_claim_dies_with_its_process(folder, other_process):
    other_process.send_signal(signal.SIGKILL)
    other_process.wait()
    with claims.held(folder):
        pass


def test_another_hosts_claim_is_taken_over_once_its_heartbeat_has_stopped(folder, caplog):
    forge(folder)
    claims.log.addHandler(caplog.handler)
    start = time.monotonic()
    with claims.held(folder):
        assert time.monotonic() - start > 0.9
        assert claims.Claim(folder).lease.owner.pid == os.getpid()
    claims.log.removeHandler(caplog.handler)
    assert f"{folder} is taken over from process 77 on node7, whose heartbeat has stopped" in caplog.text


def test_another_hosts_claim_whose_heart_beats_is_refused(folder, monkeypatch):
    forged = forge(folder)
    monkeypatch.setattr(claims.time, "sleep", lambda seconds: os.utime(forged))
    with pytest.raises(claims.Busy, match="process 77 on node7"), claims.held(folder):
        pytest.fail("two hold it")


def test_who_was_taken_over_is_told_so(folder):
    claim = claims.Claim(folder)
    assert claim.take()
    claims.check_kept(folder)
    (folder / claims.CLAIM).unlink()
    forge(folder)  # another process's
    end = time.monotonic() + 5
    while not claims._lost and time.monotonic() < end:
        time.sleep(0.05)
    with pytest.raises(claims.Lost, match="has taken this run over"):
        claims.check_kept(folder)
    claim.release()
    claims.check_kept(folder)
    assert (folder / claims.CLAIM).exists()  # it is not ours to take away


@pytest.mark.parametrize("reason", ["marker-missing", "refresh-failed"])
def test_a_claim_that_nobody_else_has_is_taken_again(folder, reason):
    claim = claims.Claim(folder)
    assert claim.take()
    claims.check_kept(folder)
    token = claim.lease.owner.token
    if reason == "marker-missing":
        (folder / claims.CLAIM).unlink()
    claim.note_loss(LeaseCompromise(str(folder / claims.CLAIM), token, reason))
    claims.check_kept(folder)
    assert (folder / claims.CLAIM).exists()
    claims.check_kept(folder)
    claim.release()


@pytest.mark.parametrize("stood_still", [False, True])
def test_one_that_another_has_or_may_have_had_is_not(folder, monkeypatch, stood_still):
    claim = claims.Claim(folder)
    assert claim.take()
    claims.check_kept(folder)
    claim.lease.release()
    if stood_still:
        monkeypatch.setattr(claims, "_asked", claims.time.time() - claims.EXPIRES)
    else:
        forge(folder)
    claim.note_loss(LeaseCompromise(str(folder / claims.CLAIM), "", "marker-missing"))
    with pytest.raises(claims.Lost):
        claims.check_kept(folder)
    claim.release()


def test_a_file_that_was_taken_away_is_there_again_before_anybody_else_can_begin(folder, monkeypatch):
    monkeypatch.setattr(claims, "SECONDS_BETWEEN_LOOKS", 0.0)
    claim = claims.Claim(folder)
    assert claim.take()
    (folder / claims.CLAIM).unlink()
    claims.check_kept(folder)
    assert not claims.Claim(folder).take()
    (folder / claims.CLAIM).unlink()
    forge(folder)
    with pytest.raises(claims.Lost):
        claims.check_kept(folder)
    claim.release()
