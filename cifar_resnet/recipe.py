"""Which settings differ between two configurations, of all that bear on a run's result."""

import inspect
from collections.abc import Iterable, Iterator, Mapping

from omegaconf import DictConfig

from cifar_resnet.constraints import imported, plain, values_in
from cifar_resnet.errors import UsageError
from cifar_resnet.quoting import OF_IMAGES

AUTO = "auto"  # of resume: begin, or go on where the same command was stopped; of scheduler.max_lr: find it
# where it is computed, and what only shows how it goes: none of these changes what comes out but by rounding
OF_THE_MACHINE = (
    "data.device", "graph", "trainer.accelerator", "trainer.strategy", "trainer.num_nodes", "trainer.log_every_n_steps",
    "trainer.enable_model_summary", "trainer.enable_progress_bar", "trainer.profiler", "trainer.detect_anomaly",
    "trainer.inference_mode",
)  # fmt: skip
# beside names and places
NO_PART_OF_IT = (
    *OF_THE_MACHINE, "name", "output_dir", "run_dir", "resume", "trust", "overrides", "choices", "dry_run", "page",
    "logger", "search", "sweep", "callbacks.finite_loss.every_n_steps",
)  # fmt: skip
SHOW_ONLY = {
    *(f"cifar_resnet.callbacks.{name}" for name in ("AugmentedBatch", "MetricsCSV", "Progress", "ScheduleCurve")),
    *(f"lightning.pytorch.callbacks.{name}" for name in ("DeviceStatsMonitor", "LearningRateMonitor", "ModelSummary")),
}
PLACES = (*OF_IMAGES, "distill.teacher", "init")
BY_CHECKSUM = ("cifar_resnet.data.CIFAR10", "cifar_resnet.data.CIFAR100")  # the same images wherever they lie
ABSENT = object()

Settings = dict[str, object]  # by dotted key


def differences(before: Mapping, now: DictConfig, ignored: Iterable[str], raw: DictConfig | None) -> list[str]:
    """Settings that bear on the result and are not the same, a part that was exchanged, added or removed by its name.

    One that only one side has counts as the default of the argument that takes it. Another value of a path that both
    take from the environment is no difference: the same files may lie elsewhere.

    before: with its interpolations resolved then. raw: the same with them, as far as that is known.
    ignored: keys, or parts.
    """
    old, new = settings_in(before), settings_in(plain(now))
    passed = [*NO_PART_OF_IT, *ignored, *irrelevant(new, old), *elsewhere(now, new, raw)]
    found: list[str] = []
    # what a part is comes before its settings
    for key in sorted(old.keys() | new.keys(), key=lambda key: (not key.endswith("_target_"), key.count("."), key)):
        is_passed = any(f"{key}.".startswith(f"{part}.") for part in (*passed, *found))
        if not is_passed and value_of(key, old, new) != value_of(key, new, old):
            found.append(key.removesuffix("._target_"))
    return found


def settings_in(config: Mapping) -> Settings:
    """Every value, lists whole, but of what shows only; places in the run folder relative to it, for it may move."""
    folder = str(config.get("run_dir"))

    def walk(node: Mapping, prefix: str) -> Iterator[tuple[str, object]]:
        if str(node.get("_target_")) in SHOW_ONLY:
            return
        for name, value in node.items():
            if isinstance(value, Mapping) and value:
                yield from walk(value, f"{prefix}{name}.")
            elif isinstance(value, str) and value.startswith(f"{folder}/"):
                yield f"{prefix}{name}", f"${{run_dir}}{value.removeprefix(folder)}"
            else:
                yield f"{prefix}{name}", list(value) if isinstance(value, tuple) else value

    return dict(walk(config, ""))


def irrelevant(new: Settings, old: Settings) -> list[str]:
    """What nothing comes of, given other settings."""
    return [
        *(["range_test"] if new.get("scheduler.max_lr") != AUTO else []),
        *(["distill"] if not new.get("distill.teacher") and not old.get("distill.teacher") else []),
        *(["trainer.limit_val_batches", "callbacks.best"] if new.get("data.num_val") == 0 else []),
        *(["data.root"] if new.get("data._target_") in BY_CHECKSUM else []),
    ]


def elsewhere(now: DictConfig, new: Settings, raw: DictConfig | None) -> list[str]:
    """The paths that both configurations take from the environment, by the same words."""
    words, theirs = (dict(settings_in(values_in(each))) if each else {} for each in (now, raw))
    return [
        key
        for key, text in words.items()
        if "${oc.env:" in str(text) and theirs.get(key) == text and (key in PLACES or "/" in str(new.get(key)))
    ]


def value_of(key: str, side: Settings, other: Settings) -> object:
    """A setting's value; where this side lacks it, the default of what takes it; ABSENT where there is none."""
    if key in side:
        return side[key]
    parent, _, name = key.rpartition(".")
    if name == "_target_":
        return ABSENT
    if f"{parent}._target_" in side:
        return default_of(str(side[f"{parent}._target_"]), name)
    parts = key.split(".")
    is_of_a_part = any(f"{'.'.join(parts[:count])}._target_" in other for count in range(1, len(parts)))
    return ABSENT if is_of_a_part else other[key]  # of another version of this project


def default_of(target: str, name: str) -> object:
    try:
        function = imported(target)
    except UsageError:
        return ABSENT
    owners = [owner.__init__ for owner in inspect.getmro(function)] if inspect.isclass(function) else [function]  # type: ignore[misc]
    for owner in owners:
        parameter = inspect.signature(owner).parameters.get(name)
        if parameter and parameter.default is not parameter.empty:
            return list(parameter.default) if isinstance(parameter.default, tuple) else parameter.default
    return ABSENT
