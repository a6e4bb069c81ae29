"""200 bad inputs to cifar-evaluate: checkpoints of others, of nobody and damaged, and test sets that are none.

Those of cifar-predict, which goes on with the good files beside them, are in test_predict.py.
"""

import copy
import io
import os
import pickle
import random
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from cifar_resnet import checkpoints

COUNT, PARTS = 200, 10
EXECUTED = "executed"  # the folder that code in a file would make


class Trap:
    """Runs code where it is unpickled."""

    def __reduce__(self):
        return os.mkdir, (EXECUTED,)


def in_memory(save: Callable, *content: object, **named: object) -> bytes:
    buffer = io.BytesIO()
    save(*([buffer, *content] if save is not torch.save else [*content, buffer]), **named)
    return buffer.getvalue()


def cut(content: bytes, dice: random.Random) -> bytes:
    return content[: dice.randrange(len(content) * 9 // 10)]


def fuzzed(archive: bytes, dice: random.Random) -> bytes:
    """Some bytes of what is stored are others, and so are no longer those of their checksum."""
    content = bytearray(archive)
    with zipfile.ZipFile(io.BytesIO(archive)) as members:
        (member, *_) = sorted(members.infolist(), key=lambda info: -info.compress_size)
    start = member.header_offset + 30 + len(member.filename) + 100
    for _ in range(dice.randrange(1, 20)):
        content[dice.randrange(start, start + member.compress_size - 200)] ^= dice.randrange(1, 256)
    return bytes(content)


def foreign_checkpoints(good: bytes) -> Iterator[bytes]:
    """Of other programs, of other versions of this one, and of nobody."""
    whole = torch.load(io.BytesIO(good), weights_only=True)
    for content in (
        [1, 2, 3], torch.zeros(3), {}, {"state_dict": whole["state_dict"]}, whole["state_dict"], {"model": {"w": 1}},
        {"epoch": 3, "state_dict": {}, "optimizer_states": [], "pytorch-lightning_version": "1.0.0"}, Trap(),
        {**whole, "state_dict": Trap()}, {**whole, "config": {**whole["config"], "data": Trap()}},
        {**whole, "format": whole["format"] - 1}, {**whole, "format": whole["format"] + 1}, {**whole, "format": None},
    ):  # fmt: skip
        yield in_memory(torch.save, content)
    yield in_memory(torch.save, Trap(), _use_new_zipfile_serialization=False)
    yield from (b"", b"PK\x03\x04", b"\x89PNG\r\n\x1a\n", b'{"state_dict": {}}', b"\x80\x02}q\x00.", b"\0" * 5000)
    yield pickle.dumps(Trap())
    yield in_memory(np.savez, weights=np.zeros(3))
    for key in checkpoints.CONTENT:
        *parents, name = key.split(".")
        for wrong in ("missing", None, {}, [], "text", 0.5, True, -1):
            other = copy.deepcopy(whole)
            owner = other
            for parent in parents:
                owner = owner[parent]
            if type(wrong) is type(owner[name]) and wrong != -1:
                continue  # text for text may do no harm
            if wrong == "missing":
                del owner[name]
            else:
                owner[name] = wrong
            if wrong != -1 or name in ("num_classes", "image_size"):
                yield in_memory(torch.save, other)
    for change in (
        {"architecture": "os.mkdir"}, {"architecture": "cifar_resnet.models.nothing.Net"}, {"state_dict": {}},
        {"state_dict": {**whole["state_dict"], "fc.weight": torch.zeros(3, 3)}},
        {"state_dict": {**whole["state_dict"], "more": torch.zeros(3)}},
        {"hyper_parameters": {**whole["hyper_parameters"], "wings": 2}},
        {"hyper_parameters": {**whole["hyper_parameters"], "depth": "deep"}},
        {"hyper_parameters": {**whole["hyper_parameters"], "widths": None}},
        {"hyper_parameters": {**whole["hyper_parameters"], "num_classes": 3}},
        {"data": {**whole["data"], "std": [0.2, 0.0, 0.2]}}, {"data": {**whole["data"], "mean": [0.5]}},
        {"data": {**whole["data"], "mean": ["a", "b", "c"]}}, {"data": {**whole["data"], "classes": [1] * 10}},
        {"data": {**whole["data"], "image_size": 10**9}},
        {"config": {**whole["config"], "data": {"root": "${oc.env:HOME}"}}},
        {"config": {**whole["config"], "choices": {"data": "../../data", "model": "resnet18"}}},
        {"config": {**whole["config"], "choices": {"data": "cifar10,synthetic", "model": "resnet18"}}},
        {"config": {**whole["config"], "choices": {"data": "mine", "model": "resnet18"}}},
    ):  # fmt: skip
        yield in_memory(torch.save, {**whole, **change})


def bad_checkpoints(good: bytes, count: int) -> list[bytes]:
    dice = random.Random(0)
    foreign = dice.sample(list(foreign_checkpoints(good)), count * 3 // 4)
    return [*foreign, *(dice.choice([cut, fuzzed])(good, dice) for _ in range(count - len(foreign)))]


def bad_archives(count: int) -> list[tuple[str, bytes]]:
    """Test sets as one file each: its suffix, and what is in it."""
    dice = random.Random(1)
    images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), np.uint8)
    labels = np.arange(12) % 10
    wrong: list[dict[str, object]] = [
        {"images": images}, {"labels": labels}, {"pictures": images, "labels": labels},
        {"images": images / 100, "labels": labels}, {"images": images.astype(np.int64), "labels": labels},
        {"images": images[:5], "labels": labels}, {"images": images[:0], "labels": labels[:0]},
        {"images": images[..., :2], "labels": labels}, {"images": images[0, 0], "labels": labels[:32]},
        {"images": images[None], "labels": labels[:1]}, {"images": images, "labels": labels - 3},
        {"images": images, "labels": labels / 2}, {"images": images, "labels": np.stack([labels, labels], 1)},
        {"images": images, "labels": labels.astype(str)}, {"images": images, "labels": labels + 90},
        {"images": images, "labels": labels, "classes": ["disk", "ring"]},
        {"images": images, "labels": labels, "classes": [f"bird {number}" for number in range(10)]},
        {"images": images, "labels": labels, "classes": 3},
        {"images": images, "labels": labels, "ids": [1, 2]}, {"images": np.array(7, np.uint8), "labels": labels},
        {"images": images[:, :0], "labels": labels}, {"images": "all of them", "labels": labels},
        {"images": images, "labels": 5}, {"images": images, "labels": "5"}, {"images": None, "labels": None},
    ]  # fmt: skip
    found = [("npz", in_memory(np.savez, **content)) for content in wrong]
    found += [("pkl", pickle.dumps(content)) for content in wrong]
    found += [("pkl", pickle.dumps(content)) for content in ([1, 2], 7, Trap(), {"images": Trap(), "labels": labels})]
    found += [(suffix, b"") for suffix in ("npz", "pkl", "p")] + [("npz", b"no archive"), ("pkl", b"no pickle")]
    found += [("p", pickle.dumps(Trap(), protocol=0)), ("csv", b"1,2,3"), ("png", b"\x89PNG"), ("zip", b"PK")]
    found += [("npz", in_memory(np.savez, images=np.array([{}, Trap()]), labels=labels[:2]))]
    sources = {
        "npz": in_memory(np.savez, images=images, labels=labels),
        "pkl": pickle.dumps({"data": images.reshape(12, -1), "labels": labels.tolist()}),
    }
    while len(found) < count:
        suffix = dice.choice(list(sources))
        found.append((suffix, (fuzzed if suffix == "npz" and dice.random() < 0.5 else cut)(sources[suffix], dice)))
    return found[:count]


def bad_folders(folder: Path) -> Iterator[str]:
    """Test sets in class folders, by what is wrong with them."""
    for name in ("empty", "one class", "no images", "damaged", "foreign", "loose"):
        (folder / name).mkdir()
    (folder / "one class" / "disk").mkdir()
    for name in ("disk", "ring"):
        (folder / "no images" / name).mkdir()
        for case, content in {"damaged": b"no picture", "foreign": None}.items():
            place = folder / case / (name if case == "damaged" else f"my {name}")
            place.mkdir()
            picture = in_memory(lambda file: Image.new("RGB", (32, 32)).save(file, "png"))
            (place / "1.png").write_bytes(content or picture)
    (folder / "loose" / "1.png").write_bytes(b"no picture")
    yield from (str(folder / name) for name in ("empty", "one class", "no images", "damaged", "foreign", "loose"))


def bad_inputs(folder: Path, good: Path) -> list[list[str]]:
    """The arguments of each call, after writing what they name."""
    paths = [
        ["checkpoint=nowhere"], ["checkpoint=nowhere.ckpt"], [f"checkpoint={folder}"], ["checkpoint=[]"],
        [f"checkpoint=[{good},nowhere]"], [f"checkpoint={good}", "data=files", "data.test=nowhere"],
        [f"checkpoint={good}", "data=image_folder", f"data.root={folder}/loose"], [f"checkpoint={good}", "data=files"],
        [f"checkpoint={good}", "tta=spin"], [f"checkpoint={good}", "batch_size=0"], [f"checkpoint={good}", "data=mine"],
        [f"checkpoint={good}", f"data.root={folder}"], ["checkpoint=/dev/null"],
    ]  # fmt: skip
    data = [[f"checkpoint={good}", "data=files", f"data.test='{place}'"] for place in bad_folders(folder)]
    for number, (suffix, content) in enumerate(bad_archives(80)):
        place = folder / f"{number}.{suffix}"
        place.write_bytes(content)
        data.append([f"checkpoint={good}", "data=files", f"data.test={place}"])
    calls = paths + data
    for number, content in enumerate(bad_checkpoints(good.read_bytes(), COUNT - len(calls))):
        place = folder / f"{number}.ckpt"
        place.write_bytes(content)
        calls.append([f"checkpoint={place}"])
    return calls
