"""What a run leaves: its test, its record, and everything that shows how it went."""

import math
import time
from collections.abc import Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from omegaconf import DictConfig, OmegaConf
from torchmetrics.utilities.distributed import gather_all_tensors

from cifar_resnet import checkpoints, hardware, provenance, runs, sweep, trackers
from cifar_resnet.data import DataModule
from cifar_resnet.errors import CALMER, Diverged
from cifar_resnet.images import content_hash
from cifar_resnet.models import Classifier
from cifar_resnet.models.summary import num_macs, num_parameters
from cifar_resnet.quoting import command_line
from cifar_resnet.results import evaluation, inference, metrics, page
from cifar_resnet.results.plots import quiet_about_glyphs
from cifar_resnet.results.predictions import FILE, Predictions
from cifar_resnet.terminal import log, summary_facts
from cifar_resnet.trust import targets_in


def begin_record(cfg: DictConfig, data: DataModule, model: LightningModule, trainer: Trainer) -> dict[str, Any]:
    """What a run's record says before there is anything to say about its training."""
    return {
        "name": cfg.name,
        "run_dir": cfg.run_dir,
        "network": cfg.choices.model,
        "data": cfg.choices.data,
        "parameters": num_parameters(model),
        "macs": num_macs(model, data.image_shape),
        **data.state(),
        **({"num_test": data.kept_for_test} if data.kept_for_test else {}),
        "resize": str(data.resize or ""),
        "selection": selection.describe(data.batch_size) if (selection := getattr(model, "selection", None)) else "",
        "num_trained": data.num_trained(trainer.limit_train_batches, trainer.world_size),  # in each epoch
        "num_validated": data.num_evaluated(len(data.val), trainer.limit_val_batches),
        **hardware.machine(trainer.strategy.root_device, str(trainer.precision), trainer.world_size),
    }


def test_and_record(
    cfg: DictConfig, record: dict[str, Any], trainer: Trainer, model: Classifier, data: DataModule
) -> None:
    """Test the network that validation chose, or else the last, complete its record, and leave what shows how it went.

    record: its "seconds" are those of the whole command, in all its lives, up to here.
    """
    start = time.perf_counter()
    run_dir = Path(record["run_dir"])
    chosen = runs.find_checkpoint(run_dir)
    checkpoint = checkpoints.contents(chosen)
    by_training = str(OmegaConf.select(cfg, "callbacks.best.monitor")).startswith("train/")
    refuse_not_finite(checkpoint["metrics"], "val/loss", chosen)  # before the test images are looked at
    trainer.strategy.checkpoint_io.for_test = True  # type: ignore[attr-defined]
    test = trainer.test(model, data, ckpt_path=chosen, verbose=False)[0] if cfg.test else {}
    refuse_not_finite(test, "test/loss", chosen)
    record |= {
        "selected": "last" if chosen.stem != "best" else f"best {'in training' if by_training else 'on validation'}",
        "epoch": min(epochs_in(checkpoint, trainer), record["epochs"]),
        "step": checkpoint["global_step"],
        "training_flops": training_flops(
            model, macs_by_size(model, data, record["images_by_size"]), record["images_by_size"]
        ),
        "seconds": record["seconds"] + time.perf_counter() - start,
        "metrics": checkpoint["metrics"] | test,
        "commit": provenance.commit(),
        "versions": provenance.versions(),
        "finished": datetime.now().astimezone().isoformat(timespec="seconds"),
        "config": model.config,
    }
    predictions = predictions_of(model, data) if cfg.test else None
    if not trainer.is_global_zero:
        return
    if predictions:
        predictions.save(run_dir / FILE)
        record |= {"num_test": predictions.num_images, "num_tested": len(predictions.labels)}
        uneven = metrics.of_uneven_classes(predictions.log_probs, predictions.labels)
        record["metrics"] |= {f"test/{name}": value for name, value in uneven.items()}
        record["test_hash"] = content_hash(data.test.in_parts(predictions.indices), predictions.labels)
    runs.write_json(run_dir / runs.RECORD, record)
    trackers.log_result(trainer.loggers, record, chosen)
    if cfg.page:
        try:
            show(run_dir, record, data, chosen, trainer, predictions)
        except Exception as error:  # everything that counts is there by now
            reason = sweep.reason_of(error)
            command = command_line("cifar-evaluate", f"checkpoint={run_dir}")
            log.warning(f"warning: no page was made ({reason}); {command} makes one")


def refuse_not_finite(metrics: Mapping[str, float], name: str, checkpoint: Path) -> None:
    """Raise Diverged where a loss is no number. The training's own may be one: it is of the weights before a step."""
    if not math.isfinite(loss := metrics.get(name, 0.0)):
        raise Diverged(f"{name} is no longer finite. Got {loss} with {checkpoint}; give {CALMER}")


def epochs_in(checkpoint: dict, trainer: Trainer) -> float:
    """After how many epochs it was written: a whole number, unless within one that ran out of time."""
    whole = checkpoint["epoch"] + 1
    loops = checkpoint.get("loops")  # those of networks side by side have none of their own
    if not loops or not math.isfinite(trainer.num_training_batches):
        return whole
    batches = loops["fit_loop"]["epoch_loop.batch_progress"]
    part = batches["current"]["ready"] / trainer.num_training_batches
    return whole if batches["is_last_batch"] else round(checkpoint["epoch"] + part, 3)


def macs_by_size(model: Classifier, data: DataModule, seen: Iterable[Any] = ()) -> dict[int, tuple[float, float]]:
    """`Classifier.training_macs` for each side that images of the training have, in pixels.

    seen: sides of such as somebody's own hooks have made.
    """
    channels, sizes = data.image_shape[0], dict.fromkeys([*data.image_sizes, *map(int, seen)])
    return {size: model.training_macs((channels, size, size), data.batch_size) for size in sizes}


def training_flops(
    model: Classifier, macs: Mapping[int, tuple[float, float]], images_by_size: Mapping[Any, int]
) -> int:
    """Of so many images of each side: two for each multiply-add. macs: for one image."""
    each = {size: model.passes * network + proxy for size, (network, proxy) in macs.items()}
    return round(2 * sum(each[int(size)] * count for size, count in images_by_size.items()))


def predictions_of(model: Classifier, data: DataModule) -> Predictions:
    """What the test found, on all ranks together: each of them has to ask."""
    loader = data.test_dataloader()
    # where the test ran: the network has left that since, and images may lie elsewhere
    none = torch.empty(0, model.hparams["num_classes"], device=model.trainer.strategy.root_device)
    log_probs = torch.cat([none, *model.test_log_probs])
    if loader.world_size > 1:
        log_probs = torch.cat(gather_all_tensors(log_probs))
    order = torch.cat([batch for rank in range(loader.world_size) for batch in loader.batches_of(rank)])
    return Predictions.of(data.test, log_probs, data.test.labels, order, data.test_files)


def show(
    run_dir: Path, record: dict, data: DataModule, chosen: Path, trainer: Trainer, predictions: Predictions | None
) -> None:
    """Draw what came out: a page in the run folder, and the same figures in TensorBoard."""
    shown, headline = page.curves(run_dir), None
    if predictions:
        val = None
        if data.has_val:
            device = trainer.strategy.root_device
            named = [name for _, name in targets_in(record["config"])]  # this training has called them
            ensemble = inference.Ensemble(
                [chosen], None, device.type, record["precision"], named, 1 if device.index is None else [device.index]
            )
            val = torch.cat(list(map(ensemble.log_probs, data.val.in_parts())), dim=1), data.val.labels
        result = evaluation.evaluate_predictions(predictions.log_probs[None], predictions.labels, val)
        shown += evaluation.sections(result, predictions, data.test, data.class_names)
        headline = page.headline_of(result | {"num_images": len(predictions.labels)})
    shown += page.augmented(run_dir)
    told = {name: text for name, text in summary_facts(record).items() if name != "look next"}
    facts = page.about(record) | told
    page.write(run_dir / "page.html", run_dir.name, facts, shown, record["config"], headline)
    for section in [section for section in shown if section.figure]:
        # as its curves, a training counts steps from 0
        step = record["steps" if section.name == "curves" else "step"] - 1
        with quiet_about_glyphs():
            trackers.show(trainer.loggers, section.name, section.figure, step)
    for logger in trainer.loggers:
        logger.save()  # or the command could end before the last of them is written
