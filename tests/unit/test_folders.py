"""What is a class and what is a file in a user's folders: against plain lists."""

import os
from pathlib import Path

import pytest

from cifar_resnet.folders import Listing, classes_in, files_called, files_in, natural


def put(*names: str) -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(b"x")


def names_in(folder: str) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in files_in(Path(folder)).files)


def test_names_sort_as_a_person_would_whatever_digits_they_hold():
    names = ["0", "1", "2", "10", "11", "a1²", "a2", "a10", "b", "b01", "b1", "b²"]
    names_backwards = names[::-1]
    assert sorted(names_backwards, key=natural) == names


def test_classes_sort_by_their_numbers():
    for name in range(12):
        Path("train", str(name)).mkdir(parents=True)
    assert list(classes_in(Path("train"))[0]) == [str(number) for number in range(12)]


SYSTEM = [
    ".DS_Store", "._1.png", ".hidden/1.png", ".ipynb_checkpoints/1-checkpoint.png", "__MACOSX/._1.png", "Thumbs.db",
    "desktop.ini", "@eaDir/1.png/SYNOFILE_THUMB.jpg", "$RECYCLE.BIN/1.png", "Icon\r",
]  # fmt: skip


def test_hidden_and_system_entries_are_passed_over_at_every_depth_and_counted():
    kept = ["cat/1.png", "cat/deep/er/2.png", "dog/3.png"]
    put(*(f"train/{name}" for name in kept))
    put(*(f"train/{place}{name}" for place in ("", "cat/", "cat/deep/er/") for name in SYSTEM))
    classes, beside = classes_in(Path("train"))
    assert list(classes) == ["cat", "dog"]
    assert beside.files == []
    assert beside.hidden == len(SYSTEM)
    assert names_in("train/cat") == ["1.png", "deep/er/2.png"]
    assert files_in(Path("train/cat")).hidden == 2 * len(SYSTEM)
    assert files_in(Path("train")).in_words() == f"hidden or system entries ({3 * len(SYSTEM)})"


def test_links_to_files_and_folders_are_followed():
    put("train/cat/1.png", "elsewhere/2.png", "elsewhere/deep/3.png", "elsewhere/.4.png")
    Path("train/cat/more").symlink_to(Path("elsewhere").resolve())
    Path("train/cat/5.png").symlink_to(Path("elsewhere/2.png").resolve())
    Path("train/dog").symlink_to("../elsewhere")
    assert list(classes_in(Path("train"))[0]) == ["cat", "dog"]
    assert names_in("train/cat") == ["1.png", "5.png", "more/2.png", "more/deep/3.png"]
    assert names_in("train/dog") == ["2.png", "deep/3.png"]
    assert files_in(Path("train/cat")).hidden == 1


def test_links_back_are_not_followed_and_are_named():
    put("train/cat/1.png", "train/dog/2.png", "train/cat/deep/3.png")
    Path("train/cat/all").symlink_to("..")  # or dogs would be cats
    Path("train/cat/deep/up").symlink_to("..")
    Path("train/self").symlink_to(".")
    assert names_in("train/cat") == ["1.png", "deep/3.png"]
    assert sorted(files_in(Path("train/cat")).circles) == [Path("train/cat/all"), Path("train/cat/deep/up")]
    classes, beside = classes_in(Path("train"))
    assert list(classes) == ["cat", "dog"]
    assert beside.in_words() == "links back to where they lie (train/self)"


def test_two_folders_that_link_to_each_other_end():
    put("train/cat/a/1.png", "train/cat/b/2.png")
    Path("train/cat/a/b").symlink_to("../b")
    Path("train/cat/b/a").symlink_to("../a")
    assert names_in("train/cat") == ["a/1.png", "a/b/2.png", "b/2.png", "b/a/1.png"]


def test_dead_links_are_left_for_whoever_reads_them():
    put("train/cat/1.png")
    Path("train/cat/dead.png").symlink_to("nowhere")
    Path("train/cat/loop.png").symlink_to("loop.png")
    assert names_in("train/cat") == ["1.png", "dead.png", "loop.png"]
    Path("train/dog").symlink_to("nowhere")
    with pytest.raises(ValueError, match=r"links that lead nowhere\. Got train/dog; mend them or take them away"):
        classes_in(Path("train"))


def test_a_folder_that_cannot_be_listed_is_left_for_whoever_reads_it(monkeypatch):
    put("train/cat/1.png", "train/cat/locked/2.png")
    iterdir = Path.iterdir

    def locked(self):
        if self.name == "locked":
            raise PermissionError(13, "Permission denied", str(self))
        return iterdir(self)

    monkeypatch.setattr(Path, "iterdir", locked)
    assert names_in("train/cat") == ["1.png", "locked"]


def test_pipes_are_not_waited_for():
    put("photos/1.png")
    os.mkfifo("photos/pipe.png")
    assert names_in("photos") == ["1.png"]
    assert files_in(Path("photos")).hidden == 1


def test_decimals_are_sorted_as_numbers_and_versions_as_versions():
    names = ["lr-0.05", "lr-0.1", "lr-0.2", "v1.9", "v1.10", "x0.9.2", "x0.10.2"]
    assert sorted({*names}, key=natural) == names


def test_files_of_a_name_are_found_once_through_links_and_under_their_own_place():
    put("runs/10/config.yaml", "runs/9/config.yaml", "runs/9/other.yaml", "elsewhere/1/config.yaml")
    Path("runs/best").symlink_to(Path("runs/9").resolve())
    Path("runs/8").symlink_to(Path("elsewhere").resolve())
    Path("runs/9/up").symlink_to("..")
    Path("elsewhere/2").symlink_to("2")  # to itself
    assert list(map(str, files_called("config.yaml", Path("runs"))[0])) == [
        "runs/8/1/config.yaml", "runs/9/config.yaml", "runs/10/config.yaml",
    ]  # fmt: skip
    assert files_called("config.yaml", Path("nowhere")) == ([], [])


def test_a_link_that_leads_nowhere_or_where_one_may_not_go_hides_none_of_its_neighbours(monkeypatch):
    put("runs/1/config.yaml", "runs/3/config.yaml", "elsewhere/config.yaml")
    Path("runs/2").symlink_to(Path("elsewhere").resolve())
    Path("runs/config.yaml").symlink_to("nowhere")
    is_dir = Path.is_dir

    def locked(path, **options):
        if path.name == "2":
            raise PermissionError(13, "Permission denied")  # root, as in a container, may go anywhere
        return is_dir(path, **options)

    monkeypatch.setattr(Path, "is_dir", locked)
    found, locked = files_called("config.yaml", Path("runs"))
    assert list(map(str, found)) == ["runs/1/config.yaml", "runs/3/config.yaml"]
    assert locked == [Path("runs/2")]


def test_links_out_of_a_run_lead_to_what_is_its_own():
    put("runs/1/config.yaml", "elsewhere/teacher/config.yaml")
    Path("runs/1/teacher").symlink_to(Path("elsewhere/teacher").resolve())
    assert list(map(str, files_called("config.yaml", Path("runs"))[0])) == ["runs/1/config.yaml"]


def test_a_link_to_what_a_folder_lies_in_is_not_followed():
    put("all/runs/1/config.yaml", "all/others/config.yaml")
    Path("all/runs/back").symlink_to("..")
    assert list(map(str, files_called("config.yaml", Path("all/runs"))[0])) == ["all/runs/1/config.yaml"]


def test_a_closed_folder_is_named(monkeypatch):
    put("runs/1/config.yaml", "runs/2/config.yaml")
    iterdir = Path.iterdir

    def closed(path):
        if path.name == "2":
            raise PermissionError(13, "Permission denied")  # root, as in a container, may look anywhere
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", closed)
    assert files_called("config.yaml", Path("runs")) == ([Path("runs/1/config.yaml")], [Path("runs/2")])


def test_what_was_passed_over_can_be_printed_whatever_bytes_its_name_is_of():
    name = Path(os.fsdecode(b"gr\xf6\xdfe.txt"))
    Listing(documents=[name], circles=[name]).in_words().encode()
