"""What a training says of itself, from its beginning to its end or to what ends it early."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from cifar_resnet import callbacks, claims, runs
from cifar_resnet.errors import Diverged, RunError, UsageError, gpu_trouble, of_a_file
from cifar_resnet.terminal import announcement, log, log_to

# what settings are of, so that without it they change nothing: key and value, None for any that is not null or 0
OF = {
    "augment.num_ops": ("augment.policy", "randaugment"),
    "augment.magnitude": ("augment.policy", "randaugment"),
    "augment.cutout_probability": ("augment.cutout_size", None),
    "augment.mixing_alpha": ("augment.mixing", None),
    "augment.mixing_probability": ("augment.mixing", None),
    "augment.padding_mode": ("augment.crop_padding", None),
    "model.drop_block_size": ("model.drop_block", None),
    "optimizer.eta": ("optimizer.adaptive", None),
    "trainer.gradient_clip_algorithm": ("trainer.gradient_clip_val", None),
    "distill.temperature": ("distill.teacher", None),
    "distill.weight": ("distill.teacher", None),
}
UNKNOWN = "unknown"


def idle(cfg: DictConfig) -> list[str]:
    """Those of the settings that somebody gave which change nothing, and why."""
    found = []
    for given in cfg.get("overrides") or ():
        key = given.lstrip("+").partition("=")[0]
        if key in OF:
            of, value = OF[key]
            there = OmegaConf.select(cfg, of, default=UNKNOWN)  # which a network or an optimizer of one's own may lack
            if there != UNKNOWN and (there != value if value else not there):
                found.append(f"{given} changes nothing: {of} is {'null' if there is None else there}")
    return found


@contextlib.contextmanager
def narrated(cfg: DictConfig, record: dict, folder: Path, how_to_go_on: str) -> Iterator[None]:
    """Around a training and its test: what begins is told, and what ends them early, in the folder's log as well."""
    with log_to(folder / runs.LOG):
        try:
            log.info(announcement(record))
            for text in idle(cfg):
                log.warning(f"warning: {text}\n")
            enders = {
                "early stopping": callbacks.have_early_stopping(cfg.callbacks),
                "max_time": cfg.trainer.get("max_time"),
            }
            may_end = f"warning: {' or '.join(name for name in enders if enders[name])} may end the training before"
            if any(enders.values()) and cfg.choices.get("scheduler") not in ("constant", None):
                log.warning(
                    f"{may_end} scheduler={cfg.choices.scheduler} has brought the learning rate down, which is where "
                    f"most of the accuracy comes from\n"
                )
            if any(enders.values()) and cfg.get("resize"):
                log.warning(f"{may_end} it has seen images of the size that it is tested on\n")
            with callbacks.as_interrupted():
                yield
            for path in sorted(folder.glob("*-profile*.txt")):
                log.info(f"  profile     {path}")
        except UsageError:  # nothing that could go on has begun
            raise
        except BaseException as error:
            goes_on = not isinstance(error, (Diverged, claims.Lost))
            log.info(f"\nstopped before its end{f'; {how_to_go_on}' * goes_on}")
            if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
                raise RunError(of_a_file(error)) from error
            of_a_step = cfg.data.get("batch_size") or 1, cfg.trainer.get("accumulate_grad_batches") or 1
            if trouble := gpu_trouble(error, True, *of_a_step):
                raise RunError(trouble) from error
            raise
