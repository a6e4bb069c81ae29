"""What a setting may be: annotations for the arguments that take settings, and the one walk that checks them.

    class DropBlock:
        def __init__(self, probability: Probability, size: Count = 5):
            check(DropBlock, locals())

`check_config` compares each `_target_` of a configuration with the signature that it names, before anything is built.
"""

import contextlib
import difflib
import functools
import inspect
import logging
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, cast, get_type_hints

from annotated_types import Ge, Gt, Interval, Len, MultipleOf, Predicate
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import ConfigDict, Field, PydanticUserError, TypeAdapter, ValidationError

from cifar_resnet.errors import UsageError, one_line, refuse_if

Count = Annotated[int, Ge(1)]
CountOrZero = Annotated[int, Ge(0)]
IS_ODD = Predicate(lambda value: value % 2 == 1)
Odd = Annotated[int, Ge(1), IS_ODD, Field(description="an odd number: 1, 3, 5 …")]
SmallOdd = Annotated[int, Interval(ge=1, le=15), IS_ODD, Field(description="an odd number from 1 to 15")]
Seed = Annotated[int, Interval(ge=0, le=2**32 - 1)]
Positive = Annotated[float, Gt(0)]
NonNegative = Annotated[float, Ge(0)]
Fraction = Annotated[float, Interval(ge=0, le=1)]
Probability = Fraction
FractionBelowOne = Annotated[float, Interval(ge=0, lt=1)]
ProbabilityBelowOne = FractionBelowOne
FractionAboveZero = Annotated[float, Interval(gt=0, le=1)]
WholeNumber = Annotated[float, Ge(1), MultipleOf(1)]  # also as 5e6
PerStage = Annotated[Sequence[Count], Len(1)]
BENCHMARK = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
MORE_CORRUPTIONS = ("speckle_noise", "gaussian_blur", "spatter", "saturate")  # which the benchmark keeps to tune on
CORRUPTIONS = (*BENCHMARK, *MORE_CORRUPTIONS)
Corruption = Annotated[
    str, Predicate(lambda name: name in CORRUPTIONS), Field(description=f"one of {', '.join(CORRUPTIONS)}")
]
Severity = Annotated[int, Interval(ge=1, le=5)]
ImageSize = Annotated[int, Ge(8)]
Paths = str | Annotated[Sequence[str], Len(1)]
TTA = Literal["none", "flip", "flip_shift"]
A_DURATION = Field(description='a duration such as "00:00:10:00" (days:hours:minutes:seconds)')
IS_SOME_TIME = Predicate(lambda text: bool(re.fullmatch(r"\d+:\d\d:\d\d:\d\d", text) and re.search("[1-9]", text)))
Units = Literal["weeks", "days", "hours", "minutes", "seconds"]
Duration = Annotated[str, IS_SOME_TIME, A_DURATION] | Annotated[dict[Units, Positive], Len(1), A_DURATION]
ACCELERATOR = Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"]

# settings at the top of a command's configuration, which no constructor takes
TOP_LEVEL: dict[str, object] = {
    "seed": Seed,
    "name": str,
    "trust": Sequence[str],
    "init": str | None,
    "ensemble.size": Count,
    "search.seed": Seed,
    "sweep.max_time": Duration | None,
    "checkpoint": str | Sequence[str],
    "input": str | Sequence[str],
    "tta": TTA | None,
    "accelerator": ACCELERATOR,
    "batch_size": Count,
    "top_k": Count,
    "format": Literal["csv", "json", "ids"] | None,
    "ids.header": Annotated[Sequence[str], Len(2, 2)],
    "ids.labels": Literal["numbers", "names"],
    "ids.first": CountOrZero,
    "max_megapixels": Count,
    "formats": Sequence[Literal["safetensors", "torch", "onnx"]],
    "tolerance": Positive,
    "opset": Annotated[int, Interval(ge=11, le=23)],
    "resamples": Count,
    "ood": str | Sequence[str] | None,
    "neighbours": Count,
    "by": Sequence[str] | None,
    "pivot": Sequence[str] | None,
    "max_params": Annotated[WholeNumber, Interval(le=1e12)],
    "max_macs": Annotated[WholeNumber, Interval(le=1e15)] | None,
    "image_size": Annotated[ImageSize, Interval(le=1024)],
    "num_classes": Annotated[int, Ge(2)],
    "num_designs": Annotated[Count, Interval(le=1000)],
    "width_multiple": Annotated[Count, Interval(le=1024)],
    "blocks": Annotated[Sequence[Literal["basic", "bottleneck", "preact_basic", "preact_bottleneck"]], Len(1)],
    "stages": Annotated[Sequence[Annotated[Count, Interval(le=8)]], Len(1)],
    "blocks_per_stage": Annotated[Sequence[Annotated[Count, Interval(le=64)]], Len(1)],
    "kernel_sizes": Annotated[Sequence[SmallOdd], Len(1)],
    "shortcut_kernel_sizes": Annotated[Sequence[SmallOdd], Len(1)],
    "stem_strides": Annotated[Sequence[Annotated[Count, Interval(le=16)]], Len(1)],
}
# of classes that are not ours, by the module that defines them: narrower than their own annotations
FOREIGN: dict[str, dict[str, object]] = {
    "torch.optim": {
        "lr": Positive,
        "weight_decay": NonNegative,
        "momentum": FractionBelowOne,
        "betas": Annotated[Sequence[FractionBelowOne], Len(2, 2)],
        "eps": NonNegative,
    },
    "lightning.pytorch.trainer": {
        **dict.fromkeys(("max_epochs", "accumulate_grad_batches", "check_val_every_n_epoch", "num_nodes"), Count),
        "gradient_clip_val": NonNegative | None,
        "gradient_clip_algorithm": Literal["norm", "value"] | None,
        "min_epochs": CountOrZero | None,
        "accelerator": ACCELERATOR,
        "devices": Annotated[
            Count
            | Literal[-1, "auto"]
            | Annotated[Sequence[CountOrZero], Len(1)]
            | Annotated[str, Field(pattern="^[0-9,]+$")],
            Field(description="a whole number, 1 or more; auto or -1 for all there are; or a list, such as [0,1]"),
        ],
        "max_time": Duration | None,
        "profiler": Literal["simple", "advanced", "pytorch"] | None,
        **dict.fromkeys(
            ("limit_train_batches", "limit_val_batches", "limit_test_batches"), CountOrZero | Fraction | None
        ),
    },
}
# arguments of Lightning's Trainer from which a run's length, folder and record are made, and what to use instead
RESERVED = {
    **dict.fromkeys(("max_steps", "min_steps"), "trainer.max_epochs says how long it takes"),
    "fast_dev_run": "debug=fast is a quick look",
    "overfit_batches": "debug=overfit is a few images to learn by heart",
    "val_check_interval": "trainer.check_val_every_n_epoch says when it is validated",
    **dict.fromkeys(("callbacks", "logger", "precision"), "that is a group of its own, see cifar-train --help"),
    **dict.fromkeys(("enable_checkpointing", "barebones"), "a run keeps checkpoints, to go on from"),
    "plugins": "precision, strategy and processes have settings of their own",
}
# settings that have another name here, which the text begins with
RENAMED = {
    **dict.fromkeys(("epochs", "num_epochs"), "trainer.max_epochs says how long it takes"),
    "learning_rate": "optimizer.lr is the learning rate",
}
# names of settings elsewhere, and what to use here
INSTEAD = (
    RESERVED
    | RENAMED
    | {
        **dict.fromkeys(
            ("num_workers", "pin_memory", "persistent_workers", "prefetch_factor"),
            "images lie on the device and are augmented there, without workers",
        ),
        "num_classes": "the data says how many classes there are",
        **dict.fromkeys(("gpus", "num_gpus"), "trainer.accelerator=gpu trainer.devices=… says what it trains on"),
    }
)
# who gets a target's **kwargs
RECEIVERS = {"lightning.pytorch.loggers.TensorBoardLogger": "torch.utils.tensorboard.SummaryWriter"}
BESIDE = {"scheduler": "cifar_resnet.optim.Schedule"}  # who takes a group's settings as well as its target
HYDRA_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")


def check(target: Callable, arguments: Mapping[str, object]) -> None:
    """UsageError for the first of `target`'s own arguments whose value its annotation does not admit."""
    for name, hint in own_hints(target).items():
        if name in arguments:
            refuse_if(complaint := complaint_about(name, arguments[name], hint), complaint)


def check_config(cfg: DictConfig) -> None:
    """UsageError for the first setting that is unknown to what takes it, missing, or not what that admits.

    Imports every `_target_`. This catches a misspelt key behind `+`, which Hydra adds without a word.
    """
    for key in leaves(cfg):  # first of all, for this needs no import
        if key in TOP_LEVEL:
            check_value(cfg, key, TOP_LEVEL[key])
    for key in leaves(cfg):
        refuse_if_missing(cfg, key)
        if isinstance(node := OmegaConf.select(cfg, key), DictConfig) and "_target_" in node:
            check_node(cfg, key, node)


def check_jobs(configurations: Sequence[DictConfig], check_one: Callable[[DictConfig], Any]) -> None:
    """UsageError where `check_one` admits none of these; otherwise those that it refuses will say so in their turn."""
    for cfg in configurations:
        with contextlib.suppress(UsageError):
            return check_one(cfg)
    return check_one(configurations[0]) if configurations else None  # says why


def check_node(cfg: DictConfig, key: str, node: DictConfig) -> None:
    hints = hints_of(node["_target_"])
    if key in BESIDE and hints is not None:
        hints = {name: hint for name, hint in hints_of(BESIDE[key]).items() if name != "make"} | hints
    name: Any  # a text, or in a user's file a number
    unknown = []
    for name in node:
        place = f"{key}.{name}"
        if place.startswith("trainer.") and name in RESERVED:
            raise UsageError(f"there is no {place} here: {RESERVED[name]}. Got {node[name]}; leave it out")
        if name in (hints or {}):
            check_value(cfg, place, hints[name])
        elif name not in HYDRA_KEYS and (hints is not None or str(name).startswith("_")):
            unknown.append(place)
    if unknown:
        close = did_you_mean(unknown[0], [f"{key}.{other}" for other in (*(hints or {}), *HYDRA_KEYS)])
        raise UsageError(
            of_a_recipe(cfg, key, unknown, close)
            or f"unknown key {unknown[0]}.{close} {node['_target_']} takes no such argument"
        )


def of_a_recipe(cfg: DictConfig, key: str, unknown: Sequence[str], close: str) -> str | None:
    """What to do where an experiment sets what the choice that was made in place of its own does not take; None where
    neither can be."""
    given = {text.lstrip("+~").partition("=")[0] for text in cfg.get("overrides") or ()}
    recipe, choice = (OmegaConf.select(cfg, f"choices.{group}") for group in ("experiment", key))
    if recipe is None or key not in given or not given.isdisjoint(unknown):
        return None
    return (
        f"experiment={recipe} sets {', '.join(unknown)}, which {key}={choice} does not take.{close} "
        f"To leave {'it' if len(unknown) == 1 else 'them'} out, give {' '.join(f'~{name}' for name in unknown)}"
    )


def takes_whole_numbers(cfg: DictConfig, key: str) -> bool | None:
    """Whether an argument takes whole numbers alone; None where nothing says so, or the default is a fraction."""
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent) if parent else None
    is_argument = isinstance(node, DictConfig) and "_target_" in node and name in node
    if not is_argument or isinstance(select(cfg, key), float):
        return None
    hints = (hints_of(BESIDE[parent]) if parent in BESIDE else {}) | (hints_of(node["_target_"]) or {})
    if (hint := hints.get(name, Any)) is Any:
        return None
    whole, fraction, share = (not problems_with(number, hint) for number in (2, 2.5, 0.5))
    return None if whole and share and not fraction else whole and not fraction  # None: a number or a share


def check_value(cfg: DictConfig, key: str, hint: object) -> None:
    refuse_if_missing(cfg, key)
    parent, _, name = key.rpartition(".")
    node = OmegaConf.select(cfg, parent)
    value = select(cfg, key)
    if value is not None or not OmegaConf.is_interpolation(node, name):  # the run folder is not known yet
        refuse_if(complaint := complaint_about(key, value, hint), complaint)


def refuse_if_missing(cfg: DictConfig, key: str) -> None:
    parent, _, name = key.rpartition(".")
    refuse_if(OmegaConf.is_missing(OmegaConf.select(cfg, parent), name), f"{key} has no default. Give it: {key}=…")


def complaint_about(key: str, value: Any, hint: object) -> str | None:
    """What is wrong with a value; None also for kinds that only Python knows, such as a callable."""
    value = value.tolist() if hasattr(value, "tolist") else value  # of NumPy
    problems = problems_with(value, hint)
    if isinstance(value, list) and any(problem["type"] == "tuple_type" for problem in problems):
        problems = problems_with(tuple(value), hint)  # YAML knows lists only
    if not problems or (isinstance(value, dict) and "_target_" in value):  # it will be an instance by then
        return None
    try:
        schema = adapter_of(hint).json_schema()
    except PydanticUserError:
        return None
    for place in [part for problem in problems for part in problem["loc"] if isinstance(part, int)]:
        items = [item for one in (schema, *schema.get("anyOf", ())) if (item := item_of(one, place))]
        if items and place < len(value):
            return f"{key}[{place}] must be {in_words(items[0])}. Got {as_yaml(value[place])}"
    if isinstance(value, dict):
        for place in [part for problem in problems for part in problem["loc"][-1:] if part in value]:
            items = [item for one in (schema, *schema.get("anyOf", ())) if (item := one.get("additionalProperties"))]
            if items and isinstance(items[0], dict):
                return f"{key}.{place} must be {in_words(items[0])}. Got {as_yaml(value[place])}"
    advice = "; leave out the quotes, or from the environment take it as ${oc.decode:${oc.env:…}}"
    return f"{key} must be {in_words(schema)}. Got {as_yaml(value)}{advice * is_number_in_quotes(value, hint)}"


def is_number_in_quotes(value: object, hint: object) -> bool:
    """Whether a text would be right as the number that it shows."""
    try:
        return isinstance(value, str) and not problems_with(float(value) if "." in value else int(value), hint)
    except ValueError:
        return False


def problems_with(value: object, hint: object) -> Sequence[Mapping[str, Any]]:
    try:
        adapter_of(hint).validate_python(value)
    except ValidationError as error:
        return error.errors()
    return []


def adapter_of(hint: Any) -> TypeAdapter[Any]:
    return _adapter_of(hint, repr(hint))  # for Literals of another order are equal


@functools.cache
def _adapter_of(hint: Any, in_its_order: str) -> TypeAdapter[Any]:
    return TypeAdapter(hint, config=ConfigDict(strict=True, allow_inf_nan=False, arbitrary_types_allowed=True))


def in_words(schema: dict[str, Any]) -> str:
    """What a JSON schema admits: "a whole number, 1 or more"; "cosine or linear"."""
    kinds = {
        "integer": "a whole number", "boolean": "true or false", "string": "text", "number": "a number",
        "object": "settings", "array": "a list",
    }  # fmt: skip
    kind = kinds["integer"] if schema.get("multipleOf") == 1 else kinds.get(schema.get("type"), schema.get("type", "…"))
    match schema:
        case {"description": text} | {"const": text}:
            return str(text)
        case {"anyOf": options}:
            words = [word for one in options for word in (one.get("enum") or [in_words(one)])]
            *others, last = dict.fromkeys(words)
            is_list = not any(sign in word for word in words for sign in (", ", " or "))
            return f"{', '.join(others)} or {last}" if is_list and others else " or ".join([*others, last])
        case {"enum": [*names, last]}:
            return f"{', '.join(names)} or {last}"
        case {"type": "array", **rest}:
            count = f" of {rest['minItems']}" + " or more" * ("maxItems" not in rest) if "minItems" in rest else ""
            item = item_of(schema, 0)
            return f"a list{count}, each item {in_words(item)}" if item else f"a list{count}"
        case {"minimum": low, "maximum": high}:
            return f"{kind} from {low:g} to {high:.10g}"
        case {"minimum": low, "exclusiveMaximum": below}:
            return f"{kind} from {low:g} to below {below:g}"
        case {"minimum": low}:
            return f"{kind}, {low:g} or more"
        case {"exclusiveMinimum": above, "maximum": high}:
            return f"{kind} above {above:g}, up to {high:.10g}"
        case {"exclusiveMinimum": above, "exclusiveMaximum": below}:
            return f"{kind} above {above:g} and below {below:g}"
        case {"exclusiveMinimum": above}:
            return f"{kind} above {above:g}"
    return kind


def item_of(schema: dict[str, Any], place: int) -> dict[str, Any] | None:
    """What a list's item at this place is, where the schema of a list or a tuple says so."""
    return schema["prefixItems"][place] if "prefixItems" in schema else schema.get("items")


def as_yaml(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)


def hints_of(target: str) -> dict[str, object] | None:
    """Name and type of each argument; where a class takes **kwargs, its bases' too. None: it takes any."""
    function = imported(target)
    found: dict[str, object] = {}
    if inspect.isclass(function) and (function.__init__, function.__new__) == (object.__init__, object.__new__):
        return {}  # though the signature of `object` says *args, **kwargs
    for each in [owner.__init__ for owner in inspect.getmro(function)] if inspect.isclass(function) else [function]:  # type: ignore[misc]
        found = own_hints(each) | found
        if not any(given.kind is given.VAR_KEYWORD for given in inspect.signature(each).parameters.values()):
            return found
    return found | hints_of(RECEIVERS[target]) if target in RECEIVERS else None


def imported(target: str) -> Callable:
    wanted = "_target_ names a class or a function"
    try:
        logging.disable()  # Hydra says it as well, in three lines
        found = get_object(str(target))
    except Exception as error:  # whatever an import may raise
        reason = one_line(error.__cause__ or error)
        raise UsageError(f"{wanted}. Got {target}, which is none ({reason})") from error
    finally:
        logging.disable(logging.NOTSET)
    refuse_if(not callable(found), f"{wanted}. Got {target}, which is of type {type(found).__name__}")
    return found


@functools.cache
def own_hints(owner: Callable) -> dict[str, object]:
    """Name and type of each argument that a function, or a class's own `__init__`, spells out."""
    function = owner.__init__ if inspect.isclass(owner) else owner
    try:
        hints = get_type_hints(function, include_extras=True)
    except (NameError, TypeError):  # names that exist for type checkers only
        hints = {}
    module = getattr(function, "__module__", None) or ""  # that of a base where the class has no `__init__` of its own
    narrower = next((table for name, table in FOREIGN.items() if module.startswith(name)), {})
    return {
        name: narrower.get(name, hints.get(name, Any))
        for name, parameter in inspect.signature(function).parameters.items()
        if name != "self" and parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    }


def select(cfg: DictConfig, key: str) -> Any:
    """The plain value of a dotted key; UsageError where it refers to a key that does not exist."""
    try:
        value = OmegaConf.select(cfg, key)
        return OmegaConf.to_container(value, resolve=True) if OmegaConf.is_config(value) else value
    except OmegaConfBaseException as error:
        raise UsageError(f"{key} refers to what is not there. Got {str(error).splitlines()[0]}") from error


def values_in(node: DictConfig, resolve: bool = False) -> dict[str, Any]:
    """Plain values, as OmegaConf has them."""
    return cast(dict[str, Any], OmegaConf.to_container(node, resolve=resolve))  # its own type is that of any node's


def plain(cfg: DictConfig) -> dict[str, Any]:
    """The whole configuration in plain values; UsageError where one refers to what does not exist.

    What trackers take from the environment stays the variable's name: an address may hold a password, and this goes
    into files that are shared.
    """
    try:
        found = values_in(cfg, resolve=True)
    except OmegaConfBaseException as error:
        raise UsageError(f"a setting refers to what is not there. Got {one_line(error)}") from error
    if isinstance(cfg.get("logger"), DictConfig):
        found["logger"] = without_secrets(values_in(cfg.logger), found["logger"], values_in(cfg))
    return found


def without_secrets(raw: Any, resolved: Any, everything: dict[str, Any]) -> Any:
    if isinstance(raw, dict):
        return {key: without_secrets(raw[key], resolved[key], everything) for key in raw}
    return raw if is_of_the_environment(raw, everything) else resolved


def is_of_the_environment(raw: object, everything: dict[str, Any]) -> bool:
    """Whether a value, before it is resolved, comes from there, be it by way of others; none refers to itself."""
    if re.search(r"\$\{\s*oc\.env\s*:", text := str(raw)):
        return True
    keys = re.findall(r"\$\{\s*(\w[\w.]*)\s*\}", text)
    return any(is_of_the_environment(value_at(everything, key), everything) for key in keys)


def value_at(node: Any, key: str, default: Any = None) -> Any:
    """The value of a dotted key in nested dictionaries."""
    for name in key.split("."):
        node = node.get(name, default) if isinstance(node, dict) else default
    return node


def leaves(node: DictConfig, prefix: str = "") -> Iterator[str]:
    """Every dotted key, no value resolved; a name that has a dot itself is part of the value around it."""
    key: Any
    for key in (key for key in node if "." not in str(key)):
        yield f"{prefix}{key}"
        if not OmegaConf.is_interpolation(node, key) and OmegaConf.is_dict(node.get(key)):
            yield from leaves(node[key], f"{prefix}{key}.")


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """' Did you mean …?' with the closest of `known`, first by last names; empty where nothing is close."""
    last_names = {name: name.rpartition(".")[2] for name in known if name != word}
    close = difflib.get_close_matches(word.rpartition(".")[2], dict.fromkeys(last_names.values()), n=3, cutoff=0.66)
    found = [name for last_name in close for name in last_names if last_names[name] == last_name]
    found = sorted(found, key=lambda name: name.count(".") != word.count("."))[:3]  # model for modle, not best.mode
    return f" Did you mean {' or '.join(found)}?" if found else ""
