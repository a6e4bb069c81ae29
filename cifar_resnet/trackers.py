"""Where curves and scores are sent: TensorBoard, tables, Weights & Biases, MLflow; each an entry of the group `logger`.

A run that goes on does so in the same run of a tracker, whose id is kept in the run folder.
"""

import contextlib
import json
import secrets
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_only
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf

from cifar_resnet import runs
from cifar_resnet.errors import UsageError, refuse_if
from cifar_resnet.instantiation import instantiate

FILE = "trackers.json"  # in the run folder: by entry, the id of the tracker's run
MENDING = "restore it, or remove it to go on in new runs of the trackers"
OF_AN_ID = {"WandbLogger": "id", "MLFlowLogger": "run_id"}
NEEDS = {"WandbLogger": "wandb", "MLFlowLogger": "mlflow"}  # a module, by our extra of the same name
NAMES = {"WandbLogger": "name", "MLFlowLogger": "run_name"}
# what people vary, beside what the command gives: all that TensorBoard's table of hyper-parameters has
SHOWN = (
    "optimizer.lr", "optimizer.weight_decay", "optimizer.momentum", "data.batch_size", "data.num_val", "seed",
    "trainer.max_epochs", "model.label_smoothing", "precision.precision",
)  # fmt: skip
CHOICES = ("model", "data", "optimizer", "scheduler", "augment", "averaging", "resize", "selection")


def build(cfg: DictConfig, step: int | None) -> list[Logger]:
    """The trackers of `cfg.logger`. step: from which a run goes on; None for a new one.

    UsageError where a package that one needs is not installed.
    """
    known, found = known_ids(cfg), []
    for name, settings in (cfg.get("logger") or {}).items():
        kind = settings._target_.rpartition(".")[2]
        if kind in NEEDS:
            extra = NEEDS[kind]
            refuse_if(
                find_spec(extra) is None,
                f"logger={extra} needs {extra}. Give, in the clone: pip install -e '.[{extra}]'",
            )
        options: dict[str, object] = {}
        if kind == "TensorBoardLogger" and step is not None:
            options["purge_step"] = step  # a training that goes on forgets the curves that had been drawn from there on
        if kind in NAMES and settings.get(NAMES[kind]) is None:
            options[NAMES[kind]] = Path(cfg.run_dir).name
        if kind in OF_AN_ID:
            own = settings.get(OF_AN_ID[kind]) or known.get(name)
            options[OF_AN_ID[kind]] = own or (secrets.token_hex(4) if kind == "WandbLogger" else None)
        if kind == "MLFlowLogger" and settings.get("tracking_uri") is None:
            folder = Path(settings.get("save_dir") or "mlruns").absolute()
            folder.mkdir(parents=True, exist_ok=True)
            # MLflow keeps no more runs in plain files
            options |= {"tracking_uri": f"sqlite:///{folder / 'mlflow.db'}", "artifact_location": folder.as_uri()}
        found.append(instantiate(settings, **options))
    return found


def known_ids(cfg: DictConfig) -> dict[str, str]:
    """By the entries of `cfg.logger`, the runs that this one goes on in; UsageError where that cannot be read."""
    path = Path(cfg.run_dir) / FILE
    try:
        found = json.loads(path.read_text()) if cfg.resume and path.is_file() else {}
    except (OSError, ValueError) as error:
        raise UsageError(f"the trackers' ids cannot be read. Got {path} ({error}); {MENDING}") from error
    is_right = isinstance(found, dict) and all(isinstance(value, str) for value in found.values())
    refuse_if(not is_right, f"not the trackers' ids. Got {path} with {found!r}; {MENDING}")
    return found


def log_result(loggers: list[Logger], record: dict, chosen: Path) -> None:
    """The settings, the scores of the tested epoch, which need not be the last, and where its checkpoint lies."""
    # not under the curves' own names, in which a second point at an earlier step hides all others
    scores = {f"tested_epoch/{name}": value for name, value in record["metrics"].items()}
    step = record["step"] - 1
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.log_hyperparams(hyper_parameters(record["config"]), metrics=scores, step=step)
        else:
            config = record["config"]
            logger.log_hyperparams({group: config[group] for group in config["choices"] if group in config})
            if not isinstance(logger, CSVLogger):
                logger.log_metrics(scores)
        place = str(chosen.absolute())
        if isinstance(logger, WandbLogger):
            logger.experiment.summary["checkpoint"] = place
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.set_tag(logger.run_id, "checkpoint", place)
        logger.save()


def hyper_parameters(config: Mapping) -> dict[str, object]:
    """The dozen that people vary, and what the command has given."""
    cfg = OmegaConf.create(dict(config))
    given = [text.lstrip("+~").partition("=")[0] for text in config["overrides"]]
    keys = dict.fromkeys([*SHOWN, *(key for key in given if "." in key)])
    found = {group: config["choices"].get(group) for group in CHOICES if config["choices"].get(group)}
    values = {key: OmegaConf.select(cfg, key) for key in keys}
    return found | {
        key: value if isinstance(value, (int, float, str, bool)) else str(value)
        for key, value in values.items()
        if value is not None
    }


def show(loggers: list[Logger], name: str, figure: Figure, step: int) -> None:
    """A figure, in each that shows some."""
    for logger in loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_figure(name, figure, step, close=False)
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [figure])
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_figure(logger.run_id, figure, f"{name}.png")


@contextlib.contextmanager
def opened(cfg: DictConfig, loggers: list[Logger]) -> Iterator[None]:
    """Begin, or go on with, their runs, and close them in the end, for the next run of this process gets others.

    loggers: of `build`, once nothing can be refused any more.
    """
    if rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        named = zip(cfg.get("logger") or (), loggers, strict=True)
        ids = {
            name: logger.run_id if isinstance(logger, MLFlowLogger) else logger.version
            for name, logger in named
            if isinstance(logger, (WandbLogger, MLFlowLogger))
        }
        if ids:
            runs.write_json(Path(cfg.run_dir) / FILE, ids)
    try:
        yield
    except BaseException:
        close(loggers, 1)
        raise
    close(loggers, 0)


def close(loggers: list[Logger], exit_code: int) -> None:
    if any(isinstance(logger, WandbLogger) for logger in loggers) and rank_zero_only.rank == 0:  # type: ignore[attr-defined]
        import wandb  # of an extra

        wandb.finish(exit_code)
