"""Paths as they are typed, in Hydra's grammar, and commands as a shell reads them."""

import os
import re
import shlex
from collections.abc import Mapping
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

OF_IMAGES = (
    "data.root", "data.test", "data.train", "data.val", "data.test_labels", "data.train_labels", "data.val_labels",
)  # fmt: skip
PATHS = (
    *OF_IMAGES, "checkpoint", "distill.teacher", "init", "input", "name", "ood", "output", "output_dir", "resume",
    "run_dir", "runs", "trainer.default_root_dir",
)  # fmt: skip
OF_A_PART = re.compile(r"(callbacks|logger)\.\w+\.(dirpath|filename|path|save_dir)")
SWEPT = (*OF_IMAGES, "distill.teacher", "init", "name")  # of which -m and a search try several
FUNCTION = re.compile(r"(choice|glob|range|shuffle|sort|tag|interval|bool|float|int|json_str|str)\(").match
UNREADABLE = object()
# one item of several: in quotes, a list, or whatever comes before the next comma
ITEM = re.compile(r"""\s*(?:'(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*"|\[[^\]]*\])\s*(?=,|$)|[^,]+""")


def with_plain_paths(overrides: list[str], swept: bool) -> list[str]:
    """These overrides, those of `PATHS` so that Hydra takes a path as the text that was given.

    What exists under exactly the given name is that file or folder. Else [a,b] is a list of paths, null is null, and
    what Hydra's grammar takes for text, such as a path in quotes or with ${…} in it, is that text.

    swept: whether a,b and choice(a,b) stand for several values to try.
    """
    return [plain_path(*text.split("=", 1), swept=swept) if "=" in text else text for text in overrides]


def plain_path(key: str, value: str, *, swept: bool) -> str:
    name = key.lstrip("+")
    tries = swept and name in SWEPT
    is_path = name in PATHS or OF_A_PART.fullmatch(name)
    if not is_path or value.lower() in ("", "null"):
        return f"{key}={value}"
    if name != "name" and os.path.lexists(expanded(value)):
        return f"{key}={literal(value, whole=True)}"
    if tries and FUNCTION(value):
        return f"{key}={value}"
    items = items_of(value)
    means_several = tries or all(map(os.path.lexists, items))  # Hydra says what to do without -m
    return f"{key}={','.join(map(element, items)) if means_several else element(value)}"


def without_paths(line: str) -> str:
    """A command line that is being typed, without the paths before its last word: they bear on no completion."""
    *words, last = re.findall(r"""(?:\\.|'[^']*'|"(?:\\.|[^"\\])*"|\S)+""", line) or [""]
    if line[-1:].isspace():
        words, last = [*words, last], ""
    keys = {word: word.lstrip("'\"+").partition("=")[0] for word in words}
    return " ".join([*(word for word in words if keys[word] not in PATHS), last])


def items_of(text: str) -> list[str]:
    """What commas separate; the whole text where they separate nothing from something."""
    return [text] if re.search(r"(^|,)\s*(,|$)", text) else [item.strip() for item in ITEM.findall(text)]


def element(text: str) -> str:
    """A path, a list of paths or null in Hydra's grammar."""
    if text.startswith("[") and text.endswith("]"):
        inner = text[1:-1].strip()
        return f"[{','.join(map(element, items_of(inner)))}]" if inner else "[]"
    is_in_grammar = isinstance(read(text), (str, type(None))) and not FUNCTION(text)
    return text if is_in_grammar else literal(text)


def read(text: str) -> object:
    """What Hydra's grammar takes it for; UNREADABLE where it is none of that."""
    try:
        return OverridesParser.create().parse_override(f"path={text}").value()
    except HydraException:
        return UNREADABLE


def literal(text: str, whole: bool = False) -> str:
    """Hydra's way to write just this text. whole: with ${…} as text, and no reference."""
    path = re.sub(r"(\\*)\$\{" if whole else r"(\\*)\$\{(?![^}]*\})", r"\1\1\\${", expanded(text))
    return path if read(path) == path else in_quotes(path)


def written(value: object) -> str:
    """A setting's value as an override gives it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return f"{{{','.join(f'{key}:{written(each)}' for key, each in value.items())}}}"
    if isinstance(value, list):
        return f"[{','.join(map(written, value))}]"
    return literal(value, whole=True) if isinstance(value, str) else str(value)


def expanded(path: str) -> str:
    """With the home folder in place of ~, as a shell puts it there only at the beginning of a word."""
    if not path.startswith("~"):
        return path
    try:
        return str(Path(path).expanduser())
    except RuntimeError:  # no such user: it is a file's name
        return str(Path(path).absolute())


def in_quotes(text: str) -> str:
    """Quoted for Hydra's grammar."""
    return QuotedString(text, Quote.double if "'" in text and '"' not in text else Quote.single).with_quotes()


def command_line(*words: object) -> str:
    """These words as they can be pasted into a shell."""
    return " ".join(map(in_shell, map(str, words)))


def in_shell(word: str) -> str:
    is_clear_in_double_quotes = shlex.quote(word) != word and not re.search(r'["$`\\!\n]', word)
    return f'"{word}"' if is_clear_in_double_quotes else shlex.quote(word)
