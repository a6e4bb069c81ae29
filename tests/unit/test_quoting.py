"""Paths on a command line are plain text: they come out of Hydra's grammar as they were typed."""

import os
import random
import shlex
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from cifar_resnet import quoting
from cifar_resnet.compose import Composer
from cifar_resnet.errors import UsageError
from cifar_resnet.quoting import command_line, with_plain_paths


def taken(text: str, key: str = "input", swept: bool = False) -> object:
    """What Hydra takes the path to be, or a list of what a sweep tries."""
    (override,) = with_plain_paths([f"{key}={text}"], swept)
    parsed = OverridesParser.create().parse_override(override)
    assert with_plain_paths([override], swept) == [override]  # as it is when a search or an evaluation composes anew
    if parsed.is_sweep_override():
        tried = [f"{key}={value}" for value in parsed.sweep_string_iterator()]
        return [OverridesParser.create().parse_override(value).value() for value in tried]
    return parsed.value()


ODD = [
    "größe", "写真/1.png", "a (1)", "a&b", "it's", "a;b", "a#b", 'say "x"', "50%", "a=b", "[a]b", "{a}", "{a:1}", "$a",
    "a$b", "a,", "(", "a'b'c", "two  blanks", "2024", "1e3", "0x10", "1_000", "true", "inf", "~a", "a~b", "str(5)",
    "choice(a)", "range(3)", "a\\b", "a\\", "'", '"', "''x", "a!b", "`a`", "*?", "-x", "null/x", "nullx", "a:b", "@",
]  # fmt: skip


@pytest.mark.parametrize("path", ODD)
@pytest.mark.parametrize(
    "key", ["input", "checkpoint", "data.root", "++data.test", "distill.teacher", "callbacks.x.path"]
)
def test_a_path_is_the_text_that_was_typed(path, key):
    expected = str(Path.cwd() / path) if path.startswith("~") else path  # or it would be somebody's home folder
    assert taken(path, key) == expected


@pytest.mark.parametrize("path", [*ODD, "[a,b]", "a,b", " a ", "'a'", "${a}", "a\\,b", "[]"])
def test_what_exists_under_exactly_this_name_is_this_file(path):
    Path(path).parent.mkdir(exist_ok=True)
    Path(path).touch()
    found = taken(path, "data.root", swept=True)
    assert found.replace("\\${", "${") == (str(Path.cwd() / path) if path.startswith("~") else path)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[a,b]", ["a", "b"]), ("[größe (1).png, it's]", ["größe (1).png", "it's"]), ("['a,b',c]", ["a,b", "c"]),
        ("[1,2]", ["1", "2"]), ("[]", []), ("null", None), ("'a b'", "a b"), ("'null'", "null"), ('"a=b"', "a=b"),
        ("a\\,b", "a,b"), ("${oc.env:HOME}/x", "${oc.env:HOME}/x"), ("ü/${oc.env:HOME}", "ü/${oc.env:HOME}"),
    ],
)  # fmt: skip
def test_lists_null_quotes_and_references_mean_what_they_mean_in_hydra(text, expected):
    assert taken(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.npz,b.npz", ["a.npz", "b.npz"]), ("größe,it's,'c,d'", ["größe", "it's", "c,d"]),
        ("choice(a,b)", ["a", "b"]), ("[a,b],[ü,d]", [["a", "b"], ["ü", "d"]]), ("größe", "größe"),
    ],
)  # fmt: skip
def test_a_sweep_tries_several_paths(text, expected):
    assert taken(text, "data.train", swept=True) == expected
    assert taken("a,b", "output_dir", swept=True) == "a,b"  # which holds the sweep itself


def test_the_home_folder_is_where_a_shell_would_have_put_it(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert taken("~/photos") == "/home/somebody/photos"
    assert taken("[~/photos,b]") == ["/home/somebody/photos", "b"]


def test_a_thousand_random_paths_survive_the_grammar():
    dice = random.Random(0)
    letters = "ab 1.,=[](){}'\"\\$&;#~%:|<>?*é写!@^`-+"
    for _ in range(1000):
        text = "x" + "".join(dice.choices(letters, k=dice.randrange(1, 12)))
        (override,) = with_plain_paths([f"input={text}"], swept=False)
        read = OverridesParser.create().parse_override(override).value()
        value = OmegaConf.create({"path": read}).path
        # what Hydra itself reads as text stays so: blanks at the end and its escapes
        assert value == text or quoting.read(text) == read, (text, override)


@pytest.mark.parametrize("word", [*ODD, "a b", "", "x\ny"])
def test_a_printed_command_is_read_by_a_shell_as_it_was_meant(word):
    line = command_line("cifar-train", f"resume={word}", word)
    assert shlex.split(line) == ["cifar-train", f"resume={word}", word]
    assert os.popen(f"printf %s {command_line(word)}").read() == word


def test_the_advice_for_a_value_that_cannot_be_read_works():
    for text in ("it's", "a'b\"c", "'half", "x=y(", "$a'b"):
        with pytest.raises(UsageError) as refused:
            Composer().jobs([f"model.block={text}"])
        advice = str(refused.value).partition("within quotes: ")[2]
        (override,) = shlex.split(advice)
        assert OverridesParser.create().parse_override(override).value() == text.removeprefix("'")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("cifar-train data.root=größe model=res", "cifar-train model=res"),
        ("cifar-train 'resume=a b (1)' seed=1 ", "cifar-train seed=1 "),
        ("cifar-predict input=a\\ b\\(1\\) checkpoint=./ü", "cifar-predict checkpoint=./ü"),
        ("cifar-train ", "cifar-train "),
    ],
)
def test_tab_completion_sees_no_paths_but_the_word_that_is_typed(line, expected):
    assert quoting.without_paths(line) == expected
