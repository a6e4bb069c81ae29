"""cifar-find-lr: train for some batches at ever higher learning rates, and see which serve (Smith 2017, section 3.3).

    cifar-find-lr model=resnet20 optimizer=adam

Takes every override of cifar-train, and leaves a picture, a table and its suggestions in a folder.
"""

from omegaconf import OmegaConf

from cifar_resnet import runs
from cifar_resnet.compose import Job
from cifar_resnet.errors import as_usage_error, refuse_if
from cifar_resnet.quoting import command_line
from cifar_resnet.range_test import plan, run_range_test
from cifar_resnet.terminal import log

MEANINGS = {
    "probe": "the middle of those that do best in four short trainings",
    "steepest": "where the loss falls fastest",
    "valley": "two thirds down the longest fall",
    "minimum": "a tenth of where it is lowest",
}
NOT_FOR_TRAINING = ("optimizer.lr=", "range_test.", "scheduler.max_lr=")  # left out of the line that is printed


def run(jobs: list[Job]) -> int:
    (job,) = jobs
    cfg = job.cfg
    refuse_if(cfg.dry_run or cfg.resume or cfg.run_dir, "dry_run, resume and run_dir are cifar-train's: leave them out")
    refuse_if(
        cfg.trainer.profiler, f"a range test is not profiled. Got trainer.profiler={cfg.trainer.profiler}; leave it out"
    )
    cfg.name = "find_lr" if cfg.name == "train" else cfg.name
    plan(cfg)  # or there would have been a folder for nothing
    with as_usage_error():
        folder = runs.create_run_dir(cfg)
    try:
        found = run_range_test(cfg)
    except BaseException:
        runs.discard(folder)
        raise
    with as_usage_error():
        found.save(folder)
    for name, rate in found.suggestions.items():
        log.info(f"  {name:9} {rate:8.3g}   {MEANINGS[name]}{'  <- suggested' if name == found.suggest else ''}")
    log.info(f"\n  picture and table in {folder}; to train with it:\n")
    kept = [override for override in job.overrides if not override.startswith(NOT_FOR_TRAINING)]
    if OmegaConf.select(cfg, "scheduler.max_lr") is not None:  # a recipe's, which would hold in place of this
        kept.append("scheduler.max_lr=null")
    log.info(command_line("cifar-train", *job.composer.arguments, *kept, f"optimizer.lr={found.suggestion:.3g}"))
    return 0
