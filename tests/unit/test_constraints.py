"""What annotations admit, and how a refusal says what they would have admitted."""

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Literal

import numpy as np
import pytest
import torch
from annotated_types import Gt, Interval, Len
from lightning.pytorch import Trainer
from omegaconf import OmegaConf

from cifar_resnet.compose import Composer
from cifar_resnet.constraints import (
    FOREIGN,
    RESERVED,
    TTA,
    Count,
    CountOrZero,
    Fraction,
    FractionAboveZero,
    FractionBelowOne,
    ImageSize,
    NonNegative,
    Odd,
    PerStage,
    Positive,
    Seed,
    SmallOdd,
    WholeNumber,
    adapter_of,
    check,
    check_config,
    complaint_about,
    in_words,
    own_hints,
    plain,
)
from cifar_resnet.errors import UsageError

OddPerStage = Odd | Annotated[Sequence[Odd], Len(1)]
Colour = Annotated[Sequence[float], Len(3, 3)] | None
LrOrAuto = Positive | Literal["auto"] | None
NumVal = CountOrZero | Annotated[float, Interval(ge=0, lt=1)]

ADMITTED = [
    (int, [1, -3, 0]),
    (float, [1, 0.5, -2.0]),
    (bool, [True, False]),
    (str, ["", "x"]),
    (object, ["x", 1, None, [1]]),
    (int | None, [1, None]),
    (list[int], [[1, 2], []]),
    (int | list[int], [3, [3]]),
    (tuple[float, float], [(0.9, 0.5), [0.9, 1]]),  # a list too: YAML knows nothing else
    (Count, [1, 10**12]),
    (CountOrZero, [0, 1]),
    (Odd, [1, 3, 15]),
    (SmallOdd, [1, 15]),
    (Seed, [0, 2**32 - 1]),
    (Positive, [1e-9, 3]),
    (NonNegative, [0, 0.0, 3]),
    (Fraction, [0, 1, 0.5]),
    (FractionBelowOne, [0, 0.999]),
    (FractionAboveZero, [1e-9, 1]),
    (WholeNumber, [1, 5e6, 5.0]),
    (ImageSize, [8, 64]),
    (PerStage, [[1], [4, 8], (4, 8)]),
    (TTA, ["none", "flip", "flip_shift"]),
    (TTA | None, [None, "flip"]),
    (OddPerStage, [3, [3, 5]]),
    (Colour, [None, [0.5, 0, 1]]),
    (LrOrAuto, [0.1, "auto", None]),
    (NumVal, [0, 5000, 0.0, 0.1]),
    (str | Sequence[str], ["a", ["a", "b"]]),
    # of NumPy, as they come out of arrays
    (Count, [np.int64(3)]),
    (Fraction, [np.float32(0.5)]),
    (PerStage, [np.array([4, 8])]),
    # what only Python knows, and what will be an instance by then
    (Callable[..., int] | None, [3, None, len]),
    (Count, [{"_target_": "some.Class"}]),
]


@pytest.mark.parametrize(("hint", "value"), [(hint, value) for hint, values in ADMITTED for value in values])
def test_what_is_admitted(hint, value):
    assert complaint_about("key", value, hint) is None


IN_QUOTES = "; leave out the quotes, or from the environment take it as ${oc.decode:${oc.env:…}}"
REFUSED = [
    # strictness: true is not 1, 1 is not true, 2.0 is not 2, "1" is not 1, nothing is not a number
    (int, True, "key must be a whole number. Got true"),
    (int, 1.0, "key must be a whole number. Got 1.0"),
    (int, "1", f"key must be a whole number. Got '1'{IN_QUOTES}"),
    (int, None, "key must be a whole number. Got null"),
    (int, [1], "key must be a whole number. Got [1]"),
    (float, True, "key must be a number. Got true"),
    (float, "1", f"key must be a number. Got '1'{IN_QUOTES}"),
    (float, math.nan, "key must be a number. Got nan"),
    (float, math.inf, "key must be a number. Got inf"),
    (bool, 1, "key must be true or false. Got 1"),
    (bool, "yes", "key must be true or false. Got 'yes'"),
    (bool, None, "key must be true or false. Got null"),
    (str, 1, "key must be text. Got 1"),
    (dict, "x", "key must be settings. Got 'x'"),
    # ranges
    (Count, 0, "key must be a whole number, 1 or more. Got 0"),
    (Count, True, "key must be a whole number, 1 or more. Got true"),
    (Count, 2.0, "key must be a whole number, 1 or more. Got 2.0"),
    (Count, np.float64(2.0), "key must be a whole number, 1 or more. Got 2.0"),
    (CountOrZero, -1, "key must be a whole number, 0 or more. Got -1"),
    (Odd, 4, "key must be an odd number: 1, 3, 5 …. Got 4"),
    (Odd, -1, "key must be an odd number: 1, 3, 5 …. Got -1"),
    (SmallOdd, 17, "key must be an odd number from 1 to 15. Got 17"),
    (Seed, -1, "key must be a whole number from 0 to 4294967295. Got -1"),
    (Seed, 2**32, "key must be a whole number from 0 to 4294967295. Got 4294967296"),
    (Positive, 0, "key must be a number above 0. Got 0"),
    (Positive, math.nan, "key must be a number above 0. Got nan"),
    (NonNegative, -0.1, "key must be a number, 0 or more. Got -0.1"),
    (Fraction, 1.1, "key must be a number from 0 to 1. Got 1.1"),
    (FractionBelowOne, 1, "key must be a number from 0 to below 1. Got 1"),
    (FractionAboveZero, 0, "key must be a number above 0, up to 1. Got 0"),
    (WholeNumber, 2.5, "key must be a whole number, 1 or more. Got 2.5"),
    (WholeNumber, math.inf, "key must be a whole number, 1 or more. Got inf"),
    (ImageSize, 7, "key must be a whole number, 8 or more. Got 7"),
    (Annotated[Count, Interval(le=1000)], 2000, "key must be a whole number from 1 to 1000. Got 2000"),
    (Annotated[float, Gt(1)], 1, "key must be a number above 1. Got 1"),
    # choices
    (TTA, "twice", "key must be none, flip or flip_shift. Got 'twice'"),
    (TTA, True, "key must be none, flip or flip_shift. Got true"),
    (TTA | None, "twice", "key must be none, flip, flip_shift or null. Got 'twice'"),
    (Literal["max", "min"], "most", "key must be max or min. Got 'most'"),
    (Literal["min", "max"], "most", "key must be min or max. Got 'most'"),  # which is equal to the one before
    (LrOrAuto, "car", "key must be a number above 0, auto or null. Got 'car'"),
    (NumVal, 1.0, "key must be a whole number, 0 or more or a number from 0 to below 1. Got 1.0"),
    # lists, whose items are named
    (list[int], [1, "a"], "key[1] must be a whole number. Got 'a'"),
    (list[int], 3, "key must be a list, each item a whole number. Got 3"),
    (PerStage, [], "key must be a list of 1 or more, each item a whole number, 1 or more. Got []"),
    (PerStage, "48", "key must be a list of 1 or more, each item a whole number, 1 or more. Got '48'"),
    (PerStage, [4, 0], "key[1] must be a whole number, 1 or more. Got 0"),
    (PerStage, [4, 8.0], "key[1] must be a whole number, 1 or more. Got 8.0"),
    (PerStage, [True, 8], "key[0] must be a whole number, 1 or more. Got true"),
    (PerStage, [4, [8]], "key[1] must be a whole number, 1 or more. Got [8]"),
    (OddPerStage, [3, 4], "key[1] must be an odd number: 1, 3, 5 …. Got 4"),
    (Colour, [0.5, 0.5], "key must be a list of 3, each item a number or null. Got [0.5, 0.5]"),
    (Colour, [0.5, 0.5, math.nan], "key[2] must be a number. Got nan"),
    (Sequence[Literal["csv", "json"]], ["csv", "pdf"], "key[1] must be csv or json. Got 'pdf'"),
    (str | Sequence[str], 3, "key must be text or a list, each item text. Got 3"),
    (str | Sequence[str], ["a", 1], "key[1] must be text. Got 1"),
    (tuple[float, float], [0.9], "key must be a list of 2, each item a number. Got [0.9]"),
    (tuple[float, float], [0.9, "x"], "key[1] must be a number. Got 'x'"),
    (tuple[float, float], (0.9, 0.5, 0.1), "key must be a list of 2, each item a number. Got (0.9, 0.5, 0.1)"),
]


@pytest.mark.parametrize(("hint", "value", "complaint"), REFUSED)
def test_what_is_refused_and_in_which_words(hint, value, complaint):
    assert complaint_about("key", value, hint) == complaint


@pytest.mark.parametrize(
    ("hint", "words"),
    [
        (int, "a whole number"),
        (float, "a number"),
        (bool, "true or false"),
        (str, "text"),
        (Count, "a whole number, 1 or more"),
        (Seed, "a whole number from 0 to 4294967295"),
        (Fraction, "a number from 0 to 1"),
        (FractionBelowOne, "a number from 0 to below 1"),
        (FractionAboveZero, "a number above 0, up to 1"),
        (Literal["zero"], "zero"),
        (Literal["zero", "reflect"], "zero or reflect"),
        (Literal["a", "b", "c"], "a, b or c"),
        (Positive | None, "a number above 0 or null"),
        (int | Count, "a whole number or a whole number, 1 or more"),
        (list, "a list"),
        (Colour, "a list of 3, each item a number or null"),
    ],
)
def test_annotations_in_words(hint, words):
    assert in_words(adapter_of(hint).json_schema()) == words


class Base:
    def __init__(self, size: Count = 1):
        check(Base, locals())


class Derived(Base):
    def __init__(self, rate: Fraction = 0.5, kind: Literal["a", "b"] = "a", widths: PerStage = (1,), **base):
        super().__init__(**base)
        check(Derived, locals())


def scheduled(optimizer: object, factor: Fraction = 0.5) -> None:
    check(scheduled, locals())


@pytest.mark.parametrize(
    ("call", "complaint"),
    [
        (lambda: Derived(rate=2), "rate must be a number from 0 to 1. Got 2"),
        (lambda: Derived(kind="c"), "kind must be a or b. Got 'c'"),
        (lambda: Derived(widths=[0]), r"widths\[0\] must be a whole number, 1 or more. Got 0"),
        (lambda: Derived(rate=2, kind="c", widths=[]), "rate must be"),  # the first of them, always
        (lambda: Derived(size=0), "size must be a whole number, 1 or more. Got 0"),
        (lambda: scheduled("any", factor=2), "factor must be a number from 0 to 1. Got 2"),
    ],
)
def test_a_constructor_checks_its_own_arguments(call, complaint):
    with pytest.raises(UsageError, match=f"^{complaint}"):
        call()


def test_a_constructor_takes_what_its_annotations_admit():
    Derived(rate=1, kind="b", widths=[1, 2], size=3)
    scheduled(None)


# a whole configuration

DERIVED = {"_target_": f"{__name__}.Derived", "rate": 0.5, "size": 1}


@pytest.fixture
def importable(monkeypatch):
    """Has `_target_` find the classes of this file."""
    own = {f"{__name__}.{cls.__name__}": cls for cls in (Base, Derived)}
    monkeypatch.setattr("cifar_resnet.constraints.imported", lambda name: own[name])


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"rate": 2}, "part.inner.rate must be a number from 0 to 1. Got 2"),
        ({"size": 0}, "part.inner.size must be a whole number, 1 or more. Got 0"),  # of the base, through **base
        ({"rat": 0.1}, "unknown key part.inner.rat. Did you mean part.inner.rate?"),
        ({"rate": "???"}, "part.inner.rate has no default. Give it: part.inner.rate=…"),
        ({"rate": "${nowhere}"}, "part.inner.rate refers to what is not there. Got Interpolation key 'nowhere'"),
    ],
)
def test_a_configuration_is_checked_against_the_signatures_it_names(importable, settings, complaint):
    check_config(OmegaConf.create({"part": {"inner": DERIVED}}))
    with pytest.raises(UsageError) as error:
        check_config(OmegaConf.create({"part": {"inner": DERIVED | settings}}))
    assert str(error.value).startswith(complaint)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"seed": -1}, "seed must be a whole number from 0 to 4294967295. Got -1"),
        ({"seed": True}, "seed must be a whole number from 0 to 4294967295. Got true"),
        ({"ensemble": {"size": 0}}, "ensemble.size must be a whole number, 1 or more. Got 0"),
        ({"checkpoint": "???"}, "checkpoint has no default. Give it: checkpoint=…"),
        ({"formats": ["torch", "pdf"]}, "formats[1] must be safetensors, torch or onnx. Got 'pdf'"),
        ({"kernel_sizes": [3, 4]}, "kernel_sizes[1] must be an odd number from 1 to 15. Got 4"),
    ],
)
def test_keys_without_a_constructor_are_checked_by_their_table(settings, complaint):
    with pytest.raises(UsageError) as error:
        check_config(OmegaConf.create(settings))
    assert str(error.value) == complaint


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"_target_": "torch.optim.AdamW", "lr": -1}, "part.lr must be a number above 0. Got -1"),
        ({"_target_": "torch.optim.AdamW", "betas": [0.9]}, "part.betas must be a list of 2, each item .* Got"),
        ({"_target_": "torch.optim.AdamW", "betas": [0.9, 1.0]}, r"part.betas\[1\] must be .* below 1. Got 1.0"),
        ({"_target_": "torch.optim.AdamW", "beta": [0.9, 0.99]}, "unknown key part.beta. Did you mean part.betas?"),
        ({"_target_": "torch.optim.Rprop", "etas": [0.5, "x"]}, r"part.etas\[1\] must be a number. Got 'x'"),
        ({"_target_": "lightning.pytorch.Trainer", "max_epochs": 0}, "part.max_epochs must be .* 1 or more. Got 0"),
        ({"_target_": "lightning.pytorch.Trainer", "max_epoch": 1}, "unknown key part.max_epoch. Did you mean"),
        ({"_target_": "torch.optim.Nothing"}, "_target_ names a class or a function. Got torch.optim.Nothing"),
    ],
)
def test_what_is_not_ours_is_checked_by_its_signature_and_a_table(settings, complaint):
    with pytest.raises(UsageError, match=f"^{complaint}"):
        check_config(OmegaConf.create({"part": settings}))


def test_the_tables_name_only_arguments_that_there_are():
    assert (FOREIGN["lightning.pytorch.trainer"] | RESERVED).keys() <= own_hints(Trainer).keys()
    assert FOREIGN["torch.optim"].keys() <= (own_hints(torch.optim.SGD) | own_hints(torch.optim.AdamW)).keys()


@pytest.mark.parametrize(
    ("value", "is_advised"), [("0.2", True), ("3", True), ("x", False), ("[", False), (None, False)]
)
def test_a_number_that_is_a_text_is_told_how_to_be_one(value, is_advised):
    complaint = complaint_about("lr", value, NonNegative)
    assert complaint.startswith("lr must be a number, 0 or more. Got ")
    assert ("${oc.decode:${oc.env:" in complaint) == is_advised


def test_what_a_tracker_takes_from_the_environment_is_in_no_checkpoint(monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:secret@host/db")
    monkeypatch.setenv("CIFAR_RESNET_DATA", "/somewhere")
    (job,) = Composer("train").jobs(["logger=mlflow"])
    found = plain(job.cfg)
    assert "secret" not in str(found)
    assert found["logger"]["mlflow"]["tracking_uri"] == "${oc.env:MLFLOW_TRACKING_URI,null}"
    assert found["logger"]["mlflow"]["experiment_name"] == "train"
    OmegaConf.set_struct(job.cfg, False)
    job.cfg.where, job.cfg.logger.mlflow.tracking_uri = {"to": "${ oc.env:MLFLOW_TRACKING_URI}"}, "${where.to}"
    assert plain(job.cfg)["logger"]["mlflow"]["tracking_uri"] == "${where.to}"
    assert found["data"]["root"] == "/somewhere"
