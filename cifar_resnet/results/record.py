"""What a run leaves: its test, its record, and everything that shows how it went."""

import time
from datetime import datetime
from pathlib import Path

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from omegaconf import DictConfig

from cifar_resnet import checkpoints, hardware, runs, sweep
from cifar_resnet.data import DataModule
from cifar_resnet.models.summary import num_macs, num_parameters
from cifar_resnet.quoting import command_line
from cifar_resnet.results import evaluation, inference, page
from cifar_resnet.results.predictions import FILE, Predictions
from cifar_resnet.terminal import log, summary_facts


def begin_record(cfg: DictConfig, data: DataModule, model: LightningModule, trainer: Trainer) -> dict[str, object]:
    """What a run's record says before there is anything to say about its training."""
    return {
        "name": cfg.name,
        "run_dir": cfg.run_dir,
        "network": cfg.choices.model,
        "data": cfg.choices.data,
        "parameters": num_parameters(model),
        "macs": num_macs(model, data.image_shape),
        **data.state(),
        "device": hardware.device_name(trainer.strategy.root_device),
        "precision": str(trainer.precision),
    }


def test_and_record(
    cfg: DictConfig, record: dict, trainer: Trainer, model: LightningModule, data: DataModule, start: float
) -> None:
    """Test the network that validation chose, or else the last, complete its record, and leave what shows how it went.

    start: of the whole command, by time.perf_counter.
    """
    run_dir = Path(record["run_dir"])
    chosen = runs.find_checkpoint(run_dir)
    test = trainer.test(model, data, ckpt_path=chosen, verbose=False)[0] if cfg.test else {}
    checkpoint = checkpoints.contents(chosen)
    record |= {
        "selected": "best on validation" if chosen.stem == "best" else "last",
        "epoch": checkpoint["epoch"] + 1,
        "training_flops": 6 * record["macs"] * record["images"],  # the backward pass taken for two forward ones
        "seconds": time.perf_counter() - start,
        "metrics": checkpoint["metrics"] | test,
        "commit": runs.commit(),
        "versions": runs.versions(),
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "config": model.config,
    }
    if not trainer.is_global_zero:
        return
    predictions = None
    if cfg.test:
        log_probs = torch.cat(model.test_log_probs)
        count = len(log_probs)
        predictions = Predictions.of(data.test.images[:count], log_probs, data.test.labels[:count])
        predictions.save(run_dir / FILE)
    runs.write_json(run_dir / runs.RECORD, record)
    log_final_scores(cfg, record, trainer)
    if cfg.page:
        try:
            show(run_dir, record, data, chosen, trainer, predictions)
        except Exception as error:  # everything that counts is there by now
            reason = sweep.reason_of(error)
            command = command_line("cifar-evaluate", f"checkpoint={run_dir}")
            log.warning(f"warning: no page was made ({reason}); {command} makes one")


def log_final_scores(cfg: DictConfig, record: dict, trainer: Trainer) -> None:
    groups = {group: record["config"][group] for group in cfg.choices if group in record["config"]}
    # under names of their own, and at the end: in a curve of theirs, a point at an earlier step hides all others
    scores = {f"final/{name}": value for name, value in record["metrics"].items()}
    for logger in trainer.loggers:
        shown = {"metrics": scores, "step": record["steps"]} if isinstance(logger, TensorBoardLogger) else {}
        logger.log_hyperparams(groups, **shown)
        logger.save()


def show(
    run_dir: Path, record: dict, data: DataModule, chosen: Path, trainer: Trainer, predictions: Predictions | None
) -> None:
    """Draw what came out: a page in the run folder, and the same figures in TensorBoard."""
    shown = page.curves(run_dir)
    if predictions:
        val = None
        if data.has_val:
            ensemble = inference.Ensemble([chosen], accelerator=data.train.device.type, precision=record["precision"])
            val = ensemble.log_probs(data.val.images), data.val.labels
        result = evaluation.evaluate_predictions(predictions.log_probs[None], predictions.labels, val)
        shown += evaluation.sections(result, predictions, data.test.images, data.classes)
    facts = {name: text for name, text in summary_facts(record).items() if name != "look next"}
    page.write(run_dir / "page.html", run_dir.name, facts, shown, record["config"])
    for logger in [logger for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]:
        for section in [section for section in shown if section.figure]:
            logger.experiment.add_figure(section.name, section.figure, record["steps"])
        logger.save()  # or the command could end before the last of them is written
