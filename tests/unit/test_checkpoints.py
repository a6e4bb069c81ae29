"""The format of checkpoints: written whole or not at all, and read only where it is what it should be."""

import os
import signal
from collections import OrderedDict
from io import BytesIO

import numpy as np
import pytest
import torch
from helpers import last_of, record_of, write_files

from cifar_resnet import checkpoints, cli
from cifar_resnet.checkpoints import FORMAT, AtomicCheckpointIO
from cifar_resnet.errors import RunError, UsageError

# writing


def test_a_full_disk_leaves_the_last_checkpoint_whole(cifar_train, run_dirs, monkeypatch, capsys):
    save, saved = torch.save, []

    def fill_up(checkpoint, file):
        if isinstance(file, BytesIO):  # a schedule is tried out in memory, and what is not a tensor
            return save(checkpoint, file)
        saved.append(1)
        if len(saved) <= 2:  # best and last of the first epoch
            return save(checkpoint, file)
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", fill_up)
    assert cifar_train("trainer.max_epochs=3") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "a checkpoint could not be written ([Errno 28] No space left on device)" in line
    (run_dir,) = run_dirs()
    assert last_of(run_dir)["epoch"] == 0
    assert not list(run_dir.rglob("*.part"))
    monkeypatch.setattr(torch, "save", save)
    assert cli.train([f"resume={run_dir}"]) == 0
    assert record_of(run_dir)["epochs"] == 3


def test_a_process_killed_while_it_writes_leaves_the_last_checkpoint_whole(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    io = AtomicCheckpointIO()
    io.save_checkpoint({"epoch": 0, "weights": torch.arange(1000)}, path)

    save = torch.save

    def die(checkpoint, file):
        if hasattr(file, "getvalue"):  # what it would hold is looked at in memory
            save(checkpoint, file)
        else:
            file.write(b"half")
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

    if child := os.fork():
        _, status = os.waitpid(child, 0)
        assert os.WTERMSIG(status) == signal.SIGKILL
    else:
        try:
            monkeypatch.setattr(torch, "save", die)
            io.save_checkpoint({"epoch": 1, "weights": torch.zeros(1000)}, path)
        finally:
            os._exit(0)  # never on with the tests of the parent
    assert (tmp_path / "last.ckpt.part").exists()
    assert torch.load(path, weights_only=True)["epoch"] == 0
    io.save_checkpoint({"epoch": 2}, path)
    assert torch.load(path, weights_only=True)["epoch"] == 2


def test_the_first_checkpoint_that_fails_says_that_there_is_none(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="there is none yet"):
        AtomicCheckpointIO().save_checkpoint({"epoch": 0}, tmp_path / "file" / "last.ckpt")


# reading


def saved(checkpoint: dict, path):
    torch.save(checkpoint, path)
    return path


def test_the_version_of_the_format_is_in_the_file(trained):
    assert last_of(trained)["format"] == FORMAT
    assert checkpoints.read(trained)["format"] == FORMAT


@pytest.mark.parametrize(("found", "in_words"), [(FORMAT + 1, f"format {FORMAT + 1}"), (1, "format 1"), (None, "none")])
def test_another_format_is_refused_in_one_line_that_names_both(trained, tmp_path, found, in_words):
    checkpoint = last_of(trained)
    checkpoint["format"] = found
    if found is None:
        del checkpoint["format"]
    path = saved(checkpoint, tmp_path / "other.ckpt")
    for use in (checkpoints.read, checkpoints.load):
        with pytest.raises(UsageError) as error:
            use(path)
        assert f"whose format is {FORMAT}. Got {path} with {in_words}; train anew" in str(error.value)
        assert "\n" not in str(error.value)


def test_another_format_is_refused_on_the_command_line(trained, tmp_path, capsys):
    path = saved(last_of(trained) | {"format": 1}, tmp_path / "old.ckpt")
    assert cli.evaluate([f"checkpoint={path}"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"whose format is {FORMAT}. Got {path} with format 1" in line


def test_a_checkpoint_with_another_byte_is_refused_where_torch_would_not_notice(trained, tmp_path):
    """Such as a letter in a name that the file holds: as a pickle it is still good."""
    content = (trained / "checkpoints" / "best.ckpt").read_bytes()
    assert content.count(b"resnet_cifar") >= 1
    (tmp_path / "changed.ckpt").write_bytes(content.replace(b"resnet_cifar", b"resnet_cigar"))
    torch.load(tmp_path / "changed.ckpt", weights_only=True)
    with pytest.raises(ValueError, match=r"not a readable checkpoint.*is not what its checksum says"):
        checkpoints.read(tmp_path / "changed.ckpt")


def test_the_end_of_an_epoch_of_few_batches_is_within_none(cifar_train, run_dirs):
    assert cifar_train("trainer.limit_train_batches=2") == 0
    (run_dir,) = run_dirs()
    assert checkpoints.batches_before(run_dir) == (1, 40, 1, False)


def test_a_folder_whose_name_begins_like_an_address_is_one(cifar_train, monkeypatch, send):
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *args, **named: 1 / 0)
    send(3)
    assert cifar_train("run_dir=https-run") == 143
    send(None)
    assert cli.train(["resume=https-run"]) == 0


KEEPS = """
import numpy as np
from lightning.pytorch import Callback

class Keeps(Callback):
    def state_dict(self): return {"best": np.float64(0.9)}
"""


def test_what_nobody_could_read_again_is_told_at_the_first_checkpoint(cifar_train, tmp_path, monkeypatch, capsys):
    write_files(tmp_path, {"keeps.py": KEEPS})
    monkeypatch.syspath_prepend(tmp_path)
    assert cifar_train("+callbacks.x._target_=keeps.Keeps", "trust=[keeps]", "trainer.max_epochs=3") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "Got others in callbacks.Keeps; have its state_dict give numbers" in line
    assert not list(tmp_path.rglob("*.ckpt"))
    of_a_layer = {"state_dict": OrderedDict(weight=torch.ones(2), _extra_state=np.float64(0.9)), "epoch": 1}
    with pytest.raises(RunError, match=r"Got others in state_dict\._extra_state;"):
        checkpoints.refuse_unreadable(of_a_layer)
