"""Finished runs: those in some folders, and which of them are of one recipe, on one data set, or the same run again."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cifar_resnet import constraints, runs
from cifar_resnet.constraints import CountOrZero, Fraction
from cifar_resnet.errors import UsageError, refuse_if
from cifar_resnet.folders import whereabouts
from cifar_resnet.quoting import OF_IMAGES
from cifar_resnet.recipe import AUTO, NO_PART_OF_IT
from cifar_resnet.results.restored import places_of_images
from cifar_resnet.terminal import part

IN_A_RECORD: dict[str, object] = {
    "parameters": CountOrZero,
    **dict.fromkeys(("network", "data", "selected", "device"), str),
    **dict.fromkeys(("epoch", "epochs", "train_seconds"), float),  # an epoch may have been cut short
    **dict.fromkeys(("num_train", "num_val"), CountOrZero),
    "num_tested": CountOrZero | None,
    "classes": list[str] | None,
    **dict.fromkeys(("split_hash", "train_hash", "test_hash"), str | None),
    "config.overrides": list[str],
    "config.choices": dict,
    "config.data": dict | None,
    "config.trainer.max_epochs": float | None,
}
# settings that leave what comes out as it is, but for the seed's chance, or say no more than where something lies
NOT_A_DIFFERENCE = (
    *NO_PART_OF_IT, "seed", "data.fold", "test", "range_test", "ensemble", "data._target_", *OF_IMAGES,
    "data.seed", "data.eval_batch_size", "optimizer.fused", "trainer.benchmark", "trainer.default_root_dir",
    "trainer.num_sanity_val_steps", "callbacks.augmented_batch", "callbacks.learning_rate", "callbacks.metrics",
    "callbacks.progress", "callbacks.schedule",
)  # fmt: skip


@dataclass
class Run:
    """data: what its data set is called among those of the runs found with it.

    repeats: a run found with it, of the same settings, seed and data, which stands for both; None for most.
    """

    folder: Path
    record: dict
    data: str = ""
    repeats: "Run | None" = None

    def setting(self, key: str) -> str:
        """Its value of a setting, such as optimizer.lr, or of a group, such as model; empty where it has none."""
        config = self.record["config"]
        value = self.data if key == "data" else config["choices"].get(key, constraints.value_at(config, key))
        if key == "scheduler.max_lr" and (self.folder / f"{runs.RANGE_TEST}.json").is_file():
            value = AUTO  # each seed has found a rate of its own
        own_files = f"{self.record['run_dir']}/"  # which are the same for all runs
        return "" if value is None else str(in_one_form(value)).removeprefix(own_files)

    def recipe(self) -> dict[str, str]:
        """Every setting that bears on what comes out, but for the seed."""
        found = {key: self.setting(key) for key in leaves(self.record["config"]) if bears_on_results(key)}
        return {key: value for key, value in found.items() if value}

    def origin(self) -> list[object]:
        """What tells its data set from others: its classes and what was held out, all images to train on, those of the
        test, and whether it is divided into folds. None for what its record, perhaps of an older version, does not
        say."""
        record, data = self.record, self.record["config"].get("data") or {}
        unhashed = places_of_images(data) if "image_size" in data else None  # CIFAR is the same wherever it lies
        found = {key: record.get(key) for key in ("classes", "split_hash", "train_hash", "test_hash")}
        if part(record, "test"):
            found["test_hash"] = None  # of the part
        if is_fold := data.get("fold") is not None:
            found["split_hash"] = None  # the folds are one data set
        return [*(found | {"train_hash": found["train_hash"] or unhashed}).values(), is_fold]


def in_one_form(value: object) -> object:
    """A whole number as such, for 0 and 0.0 are one setting."""
    if isinstance(value, list):
        return [in_one_form(each) for each in value]
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < 1e15 else value


Groups = dict[tuple[str, ...], list[Run]]  # by the values of the settings that tell them apart


def find(folders: Sequence[Path]) -> tuple[list[Run], list[str]]:
    """Every finished run in these folders, by name; and for each record that is none, why."""
    for folder in folders:
        refuse_if(
            not folder.is_dir(),
            f"runs are looked for in folders. Got {folder}{whereabouts(folder) or ', which is none'}",
        )
    found, skipped = [], []
    for path in files_in(folders, runs.RECORD):
        try:
            found.append(Run(path.parent, read(path)))
        except UsageError as error:
            skipped.append(str(error))
    refuse_if(not found, next(iter(skipped), "") or runs.no_finished_run(folders, "train one with cifar-train"))
    name_data_sets(found)
    note_repeats(found)
    return found, skipped


def files_in(folders: Sequence[Path], name: str) -> list[Path]:
    """Every file of this name, each once, folder by folder in the order of their names."""
    found = [path for folder in folders for path in runs.files_below(folder, name)]
    return list({path.parent.resolve(): path for path in found}.values())


def read(path: Path) -> dict:
    """A run's record, whose values are of the kinds that the tables rely on."""
    record = runs.read_record(path.parent)
    hints = IN_A_RECORD | {f"metrics.{name}": Fraction for name in record["metrics"] if name.endswith("/acc")}
    for key, hint in hints.items():
        refuse_if(
            complaint := constraints.complaint_about(key, constraints.value_at(record, key), hint),
            f"not the record of a run. Got {path}, in which {complaint}",
        )
    return record


def name_data_sets(found: Sequence[Run]) -> None:
    """Name each run's data set as its choice, such as cifar10; where several would be called so, add whichever of these
    tells them apart: how many images were trained on and held out, their files' name, a hash."""
    sets: list[tuple[list[object], list[Run]]] = []
    for member in sorted(found, key=lambda member: member.origin().count(None)):  # what is known best comes first
        origin = member.origin()
        same = [members for known, members in sets if all(map(agree, known, origin))]
        if len(same) == 1:
            same[0].append(member)
        else:
            sets.append((origin, [member]))
    names = [members[0].record["data"] for _, members in sets]
    for add in (sizes_of, files_of, hash_of):
        longer = [f"{name} {add(*each)}".rstrip() for name, each in zip(names, sets, strict=True)]
        told = {name: len({more for more, was in zip(longer, names, strict=True) if was == name}) > 1 for name in names}
        names = [more if told[name] else name for name, more in zip(names, longer, strict=True)]
    for name, (_, members) in zip(names, sets, strict=True):
        for member in members:
            member.data = name


def agree(one: object, other: object) -> bool:
    return one == other or one is None or other is None


TOLD_BY_SIZES = ("data.num_train", "data.num_val")


def sizes_of(origin: list[object], members: Sequence[Run]) -> str:
    """Of the run that was given most of it: others may have had data.max_train."""
    record = max((member.record for member in members), key=lambda record: record["num_train"])
    return f"{record['num_train']:,}+{record['num_val']:,}"


def files_of(origin: list[object], members: Sequence[Run]) -> str:
    return ", ".join(Path(place).name for place in places_of_images(members[0].record["config"].get("data") or {}))


def hash_of(origin: list[object], members: Sequence[Run]) -> str:
    return runs.digest([json.dumps(origin)])


def note_repeats(found: Sequence[Run]) -> None:
    """Of runs of the same recipe and seed on the same data, the first that was tested stands for all; rather one that
    was trained to its end than one that a search has ended."""
    first: dict[tuple, Run] = {}

    def place(member: Run) -> tuple[bool, bool]:
        record = member.record
        planned = constraints.value_at(record["config"], "trainer.max_epochs") or record["epochs"]
        return "test/acc" not in record["metrics"], record["epochs"] < planned

    for member in sorted(found, key=place):
        seeds = [constraints.value_at(member.record["config"], key) for key in ("seed", "data.seed", "data.fold")]
        original = first.setdefault((member.data, *seeds, *sorted(member.recipe().items())), member)
        member.repeats = None if original is member else original


def differences(found: Sequence[Run]) -> list[str]:
    """Settings that tell these runs apart.

    First the data set, and what commands gave, whichever differ, but for the sizes that its name has; then,
    where these leave a difference, whatever else differs, such as a default that is another since, leaving out
    what those before already tell.
    """
    asked = [text.lstrip("+~").partition("=")[0] for run in found for text in run.record["config"]["overrides"]]
    given = [key for key in asked if key != "data" and bears_on_results(key)]
    recipes = [member.recipe() for member in found]
    other = [key for key in dict.fromkeys(key for each in recipes for key in each)
             if len({each.get(key) for each in recipes}) > 1]  # fmt: skip
    choices = ["data"] if len({member.data for member in found}) > 1 else []
    keys: list[str] = []
    for key in dict.fromkeys([*choices, "model", *given, "data", *other]):
        tells = len(group(found, [*keys, key])) > len(group(found, keys))
        is_told = key in TOLD_BY_SIZES and all("+" in member.data for member in found if member.setting(key))
        if tells or (key in given and not is_told and len(group(found, [key])) > 1):
            keys.append(key)
    return keys


def group(found: Sequence[Run], keys: Sequence[str]) -> Groups:
    """Runs that differ in nothing but what does not count, such as the seed; numbers in their order."""
    groups: Groups = {}
    for member in found:
        groups.setdefault(tuple(member.setting(key) for key in keys), []).append(member)
    return dict(sorted(groups.items(), key=lambda item: [in_order(value) for value in item[0]]))


def in_order(value: str) -> tuple[float, str]:
    try:
        return float(value), ""
    except ValueError:
        return math.inf, value


def on_one_data_set(found: Sequence[Run], keys: Sequence[str]) -> list[str]:
    """These keys, and the data set before them where they would put several into one group."""
    mixed = any(len({member.data for member in members}) > 1 for members in group(found, keys).values())
    return ["data", *keys] if mixed else list(keys)


def bears_on_results(key: str) -> bool:
    return not any(key == each or key.startswith(f"{each}.") for each in NOT_A_DIFFERENCE)


def leaves(node: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    """Every dotted key that has a value of its own."""
    for key, value in node.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"
