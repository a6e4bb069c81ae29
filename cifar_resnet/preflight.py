"""Files that a command names and that are not there, or not what they are taken for: told before torch is imported."""

import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, cast

from annotated_types import Len
from omegaconf import DictConfig, OmegaConf

from cifar_resnet import constraints, runs
from cifar_resnet.archives import SPLITS, is_archive
from cifar_resnet.compose import Job
from cifar_resnet.errors import as_usage_error, refuse_if
from cifar_resnet.files import PUBLISHED, UNPACKED, Splits, splits_in
from cifar_resnet.folders import Listing, as_text, files_in, named, natural

FORMAT_OF = {".csv": "csv", ".json": "json"}
CHECKS: dict[str, Callable[[DictConfig], object]] = {
    "cifar_resnet.data.CIFAR10": lambda data: PUBLISHED["CIFAR10"].check(data.root),
    "cifar_resnet.data.CIFAR100": lambda data: PUBLISHED["CIFAR100"].check(data.root),
    "cifar_resnet.data.Corrupted": lambda data: PUBLISHED["CIFAR10"].check(data.root),
    "cifar_resnet.data.CIFAR10C": lambda data: check_unpacked("CIFAR10C", data),
    "cifar_resnet.data.CIFAR101": lambda data: check_unpacked("CIFAR101", data),
    "cifar_resnet.data.CIFAR10H": lambda data: check_unpacked("CIFAR10H", data),
    "cifar_resnet.data.Files": lambda data: Splits(
        **places_in(data),
        image_size=data.image_size,
        labels={split: path for split in SPLITS if (path := data.get(f"{split}_labels"))},
        memory_map=data.get("memory_map", False),
    ),
    "cifar_resnet.data.ImageFolder": lambda data: splits_in(data.root, data.image_size),
}


def check_unpacked(name: str, data: DictConfig) -> None:
    UNPACKED[name].place_in(Path(data.root).expanduser(), UNPACKED[name].files(data))


def places_in(data: DictConfig) -> dict[str, Any]:
    """Where each split of `data=files` is, None for none."""
    return {split: data.get(split) and plain(data[split]) for split in ("test", "train", "val")}


@as_usage_error()
def check_files(command: str, jobs: Sequence[Job]) -> None:
    """UsageError for what the only job names in vain.

    The jobs of a sweep and a run that goes on may have finished, and then need no files.
    """
    cfg = jobs[0].cfg
    refuse_if(  # a recipe may have it for its sweep
        not jobs[0].in_sweep and any(text.startswith("sweep.") for text in jobs[0].overrides),
        f"sweep.max_time is the limit of a sweep. Got it without -m; give "
        f"{'search.max_time' if command == 'search' else 'trainer.max_time for a single training'}",
    )
    if command in ("evaluate", "predict", "export"):
        constraints.check_value(cfg, "checkpoint", constraints.TOP_LEVEL["checkpoint"])
        found = runs.find_checkpoints(plain(cfg.checkpoint), quietly=True)
    if command == "evaluate":
        check_others(others(cfg), jobs[0].composer.choices_of("data"))
    if command == "predict":
        constraints.check_value(cfg, "input", constraints.TOP_LEVEL["input"])
        files = input_files(plain(cfg.input)).files
        check_ids(cfg, check_output(cfg), files)
        check_replaces(cfg.output, [*files, *found])
    is_new = len(jobs) == 1 and not cfg.get("resume") and not cfg.get("dry_run")
    if is_new and command not in ("design", "predict", "report"):
        num_val = next((text for text in cfg.overrides if text.startswith("data.num_val=")), "data.num_val=0")
        refuse_if(
            command == "train"
            and (cfg.get("data") or {}).get("val") is not None
            and num_val not in ("data.num_val=0", "data.num_val=null"),
            f"data.val is what is held out; data.num_val=0 would train on it as well. Got {num_val}; leave it out",
        )
        splits = check_data(cfg.get("data"))
        if isinstance(splits, Splits) and command != "evaluate":
            splits.refuse_what_is_in_two()
        for teacher in teachers_of(cfg):
            runs.find_checkpoint(teacher)
        if cfg.get("init") and (OmegaConf.select(cfg, "ensemble.size") or 1) == 1:  # an ensemble may go on
            check_init(cfg)


def others(cfg: DictConfig) -> list[str]:
    """What `ood` names."""
    constraints.check_value(cfg, "ood", constraints.TOP_LEVEL["ood"])
    return [cfg.ood] if isinstance(cfg.ood, str) else list(cfg.ood or ())


def check_others(names: Sequence[str], choices: Sequence[str]) -> None:
    for name in names:
        if name not in choices and not Path(name).exists():
            raise FileNotFoundError(
                f"ood names choices of data, or places with images. Got {name}, which is no choice, nor is it there; "
                f"the choices are {', '.join(choices)}"
            )


def check_data(data: DictConfig | None) -> object:
    """What was found of its files, if that is anything."""
    check_files_of = CHECKS.get(data.get("_target_")) if data else None
    if check_files_of and not any(OmegaConf.is_missing(data, key) for key in data):
        paths = dict.fromkeys(("train", "val"), constraints.Paths | None)
        labels = {f"{split}_labels": str | None for split in SPLITS}
        corruptions = {"corruptions": Annotated[list[constraints.Corruption], Len(1)] | None}
        hints = corruptions | {"image_size": constraints.ImageSize, "test": constraints.Paths, **paths, **labels}
        for key in [key for key in hints if key in data]:
            constraints.check_value(OmegaConf.create({"data": data}), f"data.{key}", hints[key])
        return check_files_of(data)
    return None


def check_init(cfg: DictConfig) -> None:
    constraints.check_value(cfg, "init", constraints.TOP_LEVEL["init"])
    place = Path(cfg.init)
    refuse_if(
        place.is_file() and place.suffix not in (".ckpt", ".safetensors"),
        f"init is a run folder, a checkpoint of cifar-train or a .safetensors file. Got {cfg.init}; write another "
        f"program's weights by safetensors.torch.save_file",
    )
    if place.suffix != ".safetensors":
        runs.find_checkpoint(cfg.init)
    elif not place.is_file():
        raise FileNotFoundError(f"no such file. Got init={cfg.init}; give a checkpoint, a run folder or a .safetensors")


def teachers_of(cfg: DictConfig) -> list[str]:
    """The paths that `distill.teacher` names; none where there is no teacher."""
    teacher = OmegaConf.select(cfg, "distill.teacher")
    refuse_if(teacher == [], "distill.teacher names nobody. Give a checkpoint, a run folder, or a list of them")
    teachers = [teacher] if isinstance(teacher, str) else list(teacher or ())
    strange = next((each for each in teachers if not isinstance(each, str)), None)
    refuse_if(strange is not None, f"distill.teacher is a path, or a list of them. Got {strange}; give a run folder")
    return teachers


def plain(paths: Any) -> str | list[str]:
    """The value of a setting that takes one path or a list of them."""
    return cast(list[str], OmegaConf.to_container(paths)) if OmegaConf.is_config(paths) else str(paths)


def input_files(inputs: str | Sequence[str], setting: str = "input") -> Listing:
    """Every file that is meant, those of a folder in the order of their names, 10 after 9; in a folder no documents.

    What is not there, or a folder without files, stands for itself: reading it will say so.
    """
    found = Listing()
    for path in map(Path, [inputs] if isinstance(inputs, str) else inputs):
        inside = files_in(path).without_documents() if path.is_dir() else Listing()
        found.files += sorted(inside.files, key=natural) or [path]
        found.hidden += inside.hidden
        found.circles += inside.circles
        found.documents += inside.documents
    refuse_if(
        not any(path.exists() and not path.is_dir() for path in found.files),
        f"{setting} must be pictures, folders of them, .npz archives or pickles. Got {named(found.files)}, where there "
        f"is none",
    )
    return found


def check_ids(cfg: DictConfig, form: str, files: Sequence[Path]) -> None:
    """UsageError for settings of format=ids that would change nothing, and for two pictures of one id."""
    for key in ("ids.header", "ids.labels", "ids.first"):
        constraints.check_value(cfg, key, constraints.TOP_LEVEL[key])
    given = [text for text in cfg.overrides if text.startswith("ids.")]
    refuse_if(given and form != "ids", f"ids are for format=ids. Got {', '.join(given)} and {form}; leave that out")
    if form == "ids":
        pictures = [path for path in files if not is_archive(path)]
        refuse_if(
            cfg.ids.first and len(pictures) == len(files),
            f"ids.first is for archives without ids; a picture's id is its file's name. Got ids.first={cfg.ids.first}; "
            f"leave that out",
        )
        check_distinct((as_text(Path(path.stem)), as_text(path)) for path in pictures)


def check_distinct(ids: Iterable[tuple[str, str]]) -> None:
    """UsageError where two images have one id. ids: of each image, with its name."""
    before: dict[str, str] = {}
    for id_, name in ids:
        refuse_if(
            id_ in before,
            f"two images of one id. Got {before.get(id_)} and {name}, both {id_}; leave one out, or give format=csv",
        )
        before[id_] = name


def check_output(cfg: DictConfig) -> str:
    """The format that predictions are to be written in, once it is clear that they can be."""
    output = Path(cfg.output or "predictions.csv")
    refuse_if(
        not cfg.format and output.suffix.lower() not in FORMAT_OF,
        f"output is a .csv or .json file. Got {cfg.output}; name it so, or give format=csv, json or ids",
    )
    if cfg.output:
        refuse_if(output.is_dir(), f"output must be a file. Got the folder {cfg.output}")
        folder = output.resolve().parent  # where a link leads to, for the file is replaced there
        refuse_if(
            not output.parent.is_dir() or not (runs.is_special(output) or folder.is_dir()),
            f"output must lie in a folder that exists. Got {cfg.output}",
        )
        refuse_if(
            output.exists() and not os.access(output, os.W_OK),
            f"nothing can be written there. Got {cfg.output}; give another place",
        )
        if not runs.is_special(output):
            runs.check_writable(folder)
    return cfg.format or FORMAT_OF[output.suffix.lower()]


def check_replaces(output: str | None, used: Sequence[Path]) -> None:
    """UsageError where predictions would take the place of what they are made from, or of a run's own file."""
    if output and (path := Path(output)).exists():
        is_runs_own = path.name in runs.OWN_FILES and (path.parent / runs.CONFIG).is_file()
        refuse_if(
            is_runs_own or any(path.samefile(each) for each in used if each.exists()),
            f"output would take the place of a file that is needed. Got {output}; give another name",
        )
