"""What is in a user's folders: files at any depth, and classes. Links are followed."""

import os
import re
import stat
import unicodedata
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path

from cifar_resnet.errors import refuse_if

# what operating systems, network drives and notebooks leave in folders, beside all that begins with a dot
SYSTEM_ENTRIES = {
    "__macosx", "icon\r", "thumbs.db", "ehthumbs.db", "ehthumbs_vista.db", "desktop.ini", "$recycle.bin", "#recycle",
    "system volume information", "lost+found", "@eadir", "__pycache__",
}  # fmt: skip
# of files that nobody takes for pictures
DOCUMENTS = {
    ".avi", ".csv", ".doc", ".docx", ".gz", ".htm", ".html", ".ini", ".ipynb", ".json", ".log", ".m4v", ".mat", ".md",
    ".mkv", ".mov", ".mp3", ".mp4", ".mpeg", ".mpg", ".ods", ".odt", ".parquet", ".pdf", ".py", ".rtf", ".sh", ".tar",
    ".tsv", ".txt", ".url", ".webm", ".wmv", ".xls", ".xlsx", ".xml", ".yaml", ".yml", ".zip",
}  # fmt: skip
Chain = frozenset[tuple[int, int]]  # device and inode of a folder, and of all that it lies in


@dataclass
class Listing:
    """What was found in a folder.

    files: also links that lead nowhere, and folders that cannot be listed: whoever reads them will say so.
    hidden: how many hidden and system entries were passed over, at any depth; whatever is in them is not counted.
    circles: links to a folder that they lie in themselves, which were passed over too.
    documents: files that were passed over for what their names end in.
    """

    files: list[Path] = field(default_factory=list)
    hidden: int = 0
    circles: list[Path] = field(default_factory=list)
    documents: list[Path] = field(default_factory=list)

    def in_words(self) -> str:
        """What was passed over; empty where nothing was."""
        hidden = f"hidden or system entries ({self.hidden:,})" if self.hidden else ""
        circles = f"links back to where they lie ({named(map(as_text, self.circles))})" if self.circles else ""
        documents = f"files that are no pictures ({named(map(as_text, self.documents))})" if self.documents else ""
        return ", ".join(filter(None, [hidden, circles, documents]))

    def without_documents(self) -> "Listing":
        """The same, with what is no picture by its name passed over."""
        known = {path: path.suffix.lower() in DOCUMENTS and not path.is_dir() for path in self.files}
        pictures = [path for path, is_document in known.items() if not is_document]
        documents = [path for path, is_document in known.items() if is_document]
        return replace(self, files=pictures, documents=[*self.documents, *documents])


def natural(name: object) -> tuple[list, str]:
    """Sorts names, or paths, as a person would: 10 after 9, and 0.2 after 0.05."""
    text = str(name)
    # numbers at odd places, so that like is compared with like
    parts = re.split(r"((?<!\d)(?<!\.)0\.\d+(?!\.?\d)|\d+)", text)
    return [(float if "." in part else int)(part) if place % 2 else part for place, part in enumerate(parts)], text


def named(things: Iterable[object], most: int = 8) -> str:
    """The first of them, and how many more there are."""
    texts = list(map(str, things))
    return ", ".join(texts[:most]) + (f" and {len(texts) - most:,} more" if len(texts) > most else "")


def whereabouts(path: Path) -> str:
    """Of a path that is not there, that it is not; empty for others."""
    return "" if path.exists() else ", which is not there" + f", seen from {Path.cwd()}" * (not path.is_absolute())


def files_in(folder: Path) -> Listing:
    """Every file in a folder, at any depth and in no order."""
    found, waiting = Listing(), [(folder, chain_of(folder))]
    while waiting:
        place, chain = waiting.pop()
        try:
            waiting += look_into(place, chain, found)
        except OSError:
            found.files.append(place)
    return found


def files_called(name: str, folder: Path) -> tuple[list[Path], list[Path]]:
    """Every file of this name in a folder, at any depth, 10 after 9, of one that links lead to as well its own path;
    and the folders that nobody here may look into.

    Links out of a folder that has such a file lead to what belongs to that one, and are not followed, nor are those to
    a folder that they lie in themselves.
    """
    found: list[Path] = []
    locked: list[Path] = []
    real = Path(os.path.realpath(folder))
    seen: set[tuple[int, int]] = set()
    own: list[Path] = [folder]
    linked: list[Path] = []
    while own or linked:
        place = own.pop() if own else linked.pop(0)
        try:
            status = place.stat()
            if (identity := (status.st_dev, status.st_ino)) in seen:
                continue
            seen.add(identity)
            entries = sorted(place.iterdir(), key=natural)
        except PermissionError:
            if place.name.casefold() not in SYSTEM_ENTRIES:
                locked.append(place)
            continue
        except OSError:  # just taken away
            continue
        at = os.path.realpath(place)
        here = [path for path in entries if path.name == name and may_be(Path.is_file, path, locked)]
        found += here
        for path in (path for path in entries if may_be(Path.is_dir, path, locked)):
            if not path.is_symlink():
                own.append(path)
            elif not here and not any(Path(each).is_relative_to(os.path.realpath(path)) for each in (real, at)):
                linked.append(path)
    return sorted(found, key=natural), sorted(locked, key=natural)


def may_be(kind: Callable[[Path], bool], path: Path, locked: list[Path]) -> bool:
    """Whether it is of this kind. locked: takes what nobody here may ask this of, such as a link into such a folder."""
    try:
        return kind(path)
    except PermissionError:
        locked.append(path)
    except OSError:
        pass
    return False


def class_name(name: str) -> str:
    """In one form, for file systems and archives write an accent as a letter of its own or not (Unicode's NFC)."""
    return unicodedata.normalize("NFC", name)


def classes_in(root: Path) -> tuple[dict[str, str], Listing]:
    """The classes that have a folder in this one, 10 after 9, each with its folder's name; what else lies beside."""
    beside = Listing()
    names = [place.name for place, _ in look_into(root, chain_of(root), beside)]
    dead = [path for path in beside.files if not path.exists()]
    refuse_if(dead, f"links that lead nowhere. Got {named(sorted(dead))}; mend them or take them away")
    folders = {class_name(name): name for name in sorted(names, key=natural)}
    refuse_if(len(folders) < len(names), f"two classes of one name. Got {named(map(repr, sorted(names)))} in {root}")
    return folders, beside


def look_into(folder: Path, chain: Chain, found: Listing) -> list[tuple[Path, Chain]]:
    """The folders directly in one, each with its chain; whatever else is there goes into `found`."""
    folders = []
    for path in folder.iterdir():
        if path.name.startswith(".") or path.name.casefold() in SYSTEM_ENTRIES:
            found.hidden += 1
            continue
        try:
            status = path.stat()
        except OSError:
            found.files.append(path)
            continue
        if stat.S_ISREG(status.st_mode):
            found.files.append(path)
        elif not stat.S_ISDIR(status.st_mode):  # a pipe or a device, which nobody could read to its end
            found.hidden += 1
        elif (identity := (status.st_dev, status.st_ino)) in chain:
            found.circles.append(path)
        else:
            folders.append((path, chain | {identity}))
    return folders


def chain_of(folder: Path) -> Chain:
    real = Path(os.path.realpath(folder))
    return frozenset((status.st_dev, status.st_ino) for each in (real, *real.parents) for status in [each.stat()])


def as_text(path: Path) -> str:
    """A file's name as text that can be written: it may be any bytes."""
    return os.fsencode(path).decode(errors="replace")
