"""What settings may be: asked of a command line before torch is imported, and by every constructor of its arguments.

It takes no torch to import this.
"""

import contextlib
import functools
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import inf
from numbers import Integral, Real

from omegaconf import DictConfig, OmegaConf

from cifar_resnet import runs
from cifar_resnet.command import NOT_FOR_USERS, select
from cifar_resnet.files import PUBLISHED, Halves, folders_of


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, without these two themselves if `above` or `below`.

    meaning: what such a number is or does. whole: no fractions. word: what may be said instead.
    """

    meaning: str
    low: float = -inf
    high: float = inf
    above: bool = False
    below: bool = False
    whole: bool = False
    word: str | None = None

    def complaint(self, key: str, value: object) -> str | None:
        if self.word is not None and value == self.word:
            return None
        if not isinstance(value, Integral if self.whole else Real) or isinstance(value, bool):
            return f"{key} must be a {'whole ' if self.whole else ''}number. Got {value!r}; give {self}"
        above = self.low < value if self.above else self.low <= value
        below = value < self.high if self.below else value <= self.high
        return None if above and below else f"{key} {self.meaning}. Got {value}; give {self}"

    def __str__(self) -> str:
        if self.high == inf:
            numbers = f"more than {self.low:g}" if self.above else f"{self.low:g} or more"
        elif self.above:
            numbers = f"more than {self.low:g}, up to {self.high:g}"
        else:
            numbers = f"{self.low:g} {'up to' if self.below else 'to'} {self.high:.10g}"
        return f"{numbers}, or {self.word}" if self.word else numbers


@dataclass(frozen=True)
class OneOf:
    names: Sequence[str]

    def complaint(self, key: str, value: object) -> str | None:
        return None if value in self.names else f"unknown {key}. Got {value!r}; give {self}"

    def __str__(self) -> str:
        *others, last = self.names
        return f"{', '.join(others)} or {last}"


def counts(what: str, least: int = 1) -> Range:
    return Range(f"counts {what}", least)


def share(below: bool = False) -> Range:
    return Range("is a share", 0, 1, below=below)


SEED = Range("is a seed", 0, 2**32 - 1)
PROBABILITY = Range("is a probability", 0, 1)
BELOW_ONE = Range("is a probability", 0, 1, below=True)
FRACTION = Range("is a fraction", 0, 1)
NOT_NEGATIVE = Range("must not be negative", 0)
TTA = OneOf(("none", "flip", "flip_shift"))
BLOCKS = {"basic": 2, "bottleneck": 3, "preact_basic": 2, "preact_bottleneck": 3}  # convolutions of each

# of a list each item is looked at
LIMITS: dict[str, Range | OneOf] = {
    "seed": SEED,
    "tta": TTA,
    "batch_size": counts("images"),
    "formats": OneOf(("safetensors", "torch", "onnx")),
    "ensemble.size": Range("counts networks", 1, whole=True),
    "data.batch_size": counts("images"),
    "data.eval_batch_size": counts("images"),
    "data.split_seed": SEED,
    "data.seed": SEED,
    "data.std": Range("divides the pixels", 0, above=True),
    "data.image_size": Range("is a side in pixels", 8),
    "data.num_train": counts("images", least=10),
    "data.num_test": counts("images", least=10),
    "augment.crop_padding": counts("pixels", least=0),
    "augment.padding_mode": OneOf(("zero", "reflect")),
    "augment.flip": OneOf(("random", "alternating", "none")),
    "augment.policy": OneOf(("autoaugment", "randaugment", "trivialaugment")),
    "augment.num_ops": counts("operations"),
    "augment.magnitude": Range("is one of 31 steps", 0, 30),
    "augment.cutout_size": counts("pixels", least=0),
    "augment.cutout_probability": PROBABILITY,
    "augment.mixing": OneOf(("mixup", "cutmix", "ricap")),
    "augment.mixing_alpha": Range("shapes a Beta distribution", 0, above=True),
    "augment.mixing_probability": PROBABILITY,
    "model.num_classes": counts("the classes", least=2),
    "model.label_smoothing": Range("is a share of the target", 0, 1, below=True),
    "model.bias_lr_factor": Range("scales learning rates", 0, above=True),
    "model.tta": TTA,
    "model.max_params": counts("parameters"),
    "model.block": OneOf(tuple(BLOCKS)),
    "model.shortcut": OneOf(("conv", "pad")),
    "model.stem": OneOf(("conv", "whitening")),
    "model.widths": counts("channels"),
    "model.stem_width": counts("channels"),
    "model.widen_factor": Range("multiplies widths", 1),
    "model.expansion": Range("multiplies widths", 1),
    "model.blocks": counts("residual blocks"),
    "model.strides": counts("pixels"),
    "model.stem_stride": counts("pixels"),
    "model.pool_size": Range("is the side of a map", 1),
    "model.drop_block_size": Range("is the side of a square", 1),
    "model.squeeze_excitation": Range("is a reduction, and 0 for none", 0),
    **{
        f"model.{name}": BELOW_ONE
        for name in ("dropout", "block_dropout", "feature_dropout", "drop_block", "stochastic_depth", "shake_drop")
    },
    "model.alpha": counts("channels", least=0),
    "model.num_convs": counts("convolutions"),
    "model.whitening_size": Range("is a side in pixels", 1),
    "model.activation": OneOf(("gelu", "relu", "silu")),
    "model.norm_momentum": Range("is a share", 0, 1, above=True),
    "optimizer.lr": NOT_NEGATIVE,
    "optimizer.weight_decay": NOT_NEGATIVE,
    "optimizer.momentum": share(below=True),
    "optimizer.betas": share(below=True),
    "optimizer.eps": NOT_NEGATIVE,
    "optimizer.ns_steps": counts("iterations"),
    "optimizer.other_lr_factor": NOT_NEGATIVE,
    "optimizer.other_momentum": share(below=True),
    "optimizer.other_weight_decay": NOT_NEGATIVE,
    "optimizer.rho": Range("is a distance", 0, above=True),
    "optimizer.eta": NOT_NEGATIVE,
    "scheduler.warmup_fraction": FRACTION,
    "scheduler.peak_fraction": FRACTION,
    "scheduler.start_factor": FRACTION,
    "scheduler.end_factor": FRACTION,
    "scheduler.milestones": FRACTION,
    "scheduler.max_lr": Range("is a learning rate", 0, above=True, word="auto"),
    "scheduler.shape": OneOf(("cosine", "linear")),
    "averaging.decay": share(below=True),
    "distill.temperature": Range("divides logits", 0, above=True),
    "distill.weight": share(),
    "callbacks.finite_loss.every_n_steps": counts("steps"),
    "callbacks.augmented_batch.num_images": counts("images"),
    "range_test.min_lr": Range("is a learning rate", 0, above=True),
    "range_test.max_lr": Range("is a learning rate", 0, above=True),
    "range_test.steps": counts("batches", least=20),
    "range_test.probe_steps": counts("batches", least=20),
    "range_test.smoothing": share(below=True),
    "range_test.divergence": Range("is a multiple of the lowest loss", 1, above=True),
    "range_test.suggest": OneOf(("probe", "steepest", "valley", "minimum")),
    "search.method": OneOf(("random", "tpe")),
    "search.rounds": counts("rounds"),
    "search.trials": counts("trials"),
    "search.narrow": Range("is a share", 0, 1, above=True),
    "search.seed": SEED,
    "precision.precision": OneOf(("auto", "16-mixed", "bf16-mixed", "32-true")),
    "precision.float32_matmul": OneOf(("highest", "high", "medium")),
    "trainer.max_epochs": Range("counts epochs", 1, whole=True),
    "trainer.gradient_clip_algorithm": OneOf(("norm", "value")),
    "trainer.gradient_clip_val": NOT_NEGATIVE,
    "trainer.accumulate_grad_batches": counts("batches"),
    "trainer.check_val_every_n_epoch": counts("epochs"),
}


MAY_BE_NULL = {
    "tta", "data.std", "augment.policy", "augment.mixing", "augment.mixing_alpha", "model.max_params",
    "model.widen_factor", "model.blocks", "model.expansion", "model.strides", "model.stem_width",
    "optimizer.other_momentum", "scheduler.max_lr", "trainer.gradient_clip_val", "trainer.gradient_clip_algorithm",
    "trainer.check_val_every_n_epoch",
}  # fmt: skip


def complaint_about(key: str, value: object) -> str | None:
    limit = LIMITS[key]
    if value is None:
        return None if key in MAY_BE_NULL else f"{key} is null. Give {limit}"
    value = value.tolist() if hasattr(value, "tolist") else value  # of NumPy
    if isinstance(value, str) or not isinstance(value, Sequence):
        return limit.complaint(key, value)
    if not value and key.startswith("model."):
        return f"{key} is empty. Got []; give a number or more"
    if key == "optimizer.betas" and len(value) != 2:
        return f"{key} are two numbers. Got {list(value)}; give two"
    complaints = (limit.complaint(f"{key}[{index}]", item) for index, item in enumerate(value))
    return next(filter(None, complaints), None)


def require(owner: str, **values: object) -> None:
    """ValueError for the first of these arguments that is not within what LIMITS says of `owner`.<name>."""
    for name, value in values.items():
        if complaint := complaint_about(f"{owner}.{name}".lstrip("."), value):
            raise ValueError(complaint)


# Settings that bear on each other


def stages(
    block: str,
    widths: Sequence[int],
    widen_factor: int | None,
    blocks: Sequence[int] | None,
    depth: int | None,
    strides: Sequence[int] | None,
    kernel_sizes: int | Sequence[int],
    shortcut_kernel_sizes: int | Sequence[int],
    stem_kernel_size: int,
    zero_init_last_norm: bool,
) -> dict[str, Sequence[int]]:
    """Of a ResNet's stages, one by one: widths, blocks, strides, kernel_sizes and shortcut_kernel_sizes."""
    num_stages = len(widths)
    if blocks is not None and depth is not None:
        raise ValueError(f"model.blocks and model.depth exclude each other. Got {blocks} and {depth}; make one null")
    if zero_init_last_norm and block.startswith("preact"):
        raise ValueError(
            f"model.zero_init_last_norm needs a norm at the branch's end. Got model.block={block}; give false"
        )
    if num_stages and blocks is None:
        other_layers = 2 if widen_factor is None else 1 + num_stages
        blocks = blocks_of_depth(depth, num_stages, BLOCKS[block], other_layers)
    per_stage = {
        "widths": [width * (1 if widen_factor is None else widen_factor) for width in widths],
        "blocks": blocks,
        "strides": strides if strides is not None else [1] + [2] * (num_stages - 1),
        "kernel_sizes": each(kernel_sizes, num_stages),
        "shortcut_kernel_sizes": each(shortcut_kernel_sizes, num_stages),
    }
    for name, values in per_stage.items():
        if not num_stages or len(values) != num_stages:
            raise ValueError(
                f"model.{name} and model.widths must be equally long. Got {list(values or [])} for {num_stages} stages"
            )
    for name in ("kernel_sizes", "shortcut_kernel_sizes"):
        check_odd(name, per_stage[name])
    check_odd("stem_kernel_size", [stem_kernel_size])
    return per_stage


def each(value: int | Sequence[int], num_stages: int) -> Sequence[int]:
    return [value] * num_stages if isinstance(value, int) else value


def blocks_of_depth(depth: int | None, num_stages: int, num_convs: int, other_layers: int) -> list[int]:
    """Blocks per stage of a network of `depth` weighted layers, of which `other_layers` are not the blocks' own."""
    if depth is None:
        raise ValueError("a ResNet needs model.blocks, such as [2, 2, 2, 2], or model.depth. Got neither; give one")
    step = num_stages * num_convs
    count, rest = divmod(depth - other_layers, step)
    if rest or count < 1:
        nearest = max(1, round((depth - other_layers) / step)) * step + other_layers
        raise ValueError(f"model.depth must be {step}n + {other_layers} here. Got {depth}; the nearest is {nearest}")
    return [count] * num_stages


def check_odd(name: str, values: Sequence[int]) -> None:
    if any(value < 1 or value % 2 == 0 for value in values):
        raise ValueError(f"model.{name} must be odd, to keep the map's size. Got {list(values)}; give 1, 3, 5 …")


def pyramid_blocks(depth: int, bottleneck: bool) -> list[int]:
    """Blocks of each of a PyramidNet's three stages."""
    if depth is None:
        raise ValueError("model.depth is null. Give the number of weighted layers, such as 110")
    return blocks_of_depth(depth, num_stages=3, num_convs=3 if bottleneck else 2, other_layers=2)


def check_layers(widths: Sequence[int], residual: Sequence[bool]) -> None:
    if len(residual) != len(widths) or not widths:
        raise ValueError(
            f"model.residual and model.widths must be equally long. Got {list(residual)} for {list(widths)}"
        )


def check_pixels(num_val: float, mean: Sequence[float] | None, std: Sequence[float] | None) -> None:
    """What every data set has."""
    if num_val < 0 or (isinstance(num_val, float) and num_val >= 1):
        raise ValueError(
            f"data.num_val is a number of images, or a share below 1. Got {num_val}; give 0 to train on everything"
        )
    for name, values in {"mean": mean, "std": std}.items():
        if values is not None and len(values) != 3:
            raise ValueError(f"data.{name} has a number for red, green and blue. Got {list(values)}; give 3, or null")


def check_size(crop_padding: int, cutout_size: int, image_size: int) -> None:
    """Refuse an augmentation that images of this side cannot have."""
    if crop_padding >= image_size:
        raise ValueError(
            f"augment.crop_padding must be smaller than the images, or nothing of them may be left. "
            f"Got {crop_padding} for {image_size} pixels; give less"
        )
    if cutout_size > 2 * image_size:
        raise ValueError(f"augment.cutout_size would cover every image of {image_size} pixels. Got {cutout_size}")


def check_pooling(whitening_size: int, widths: Sequence[int], image_size: int) -> None:
    """Refuse a SpeedNet that would pool images of this side to nothing."""
    side = image_size - whitening_size + 1
    if side >> len(widths) < 1:
        raise ValueError(
            f"model.whitening_size leaves {max(side, 0)} pixels of {image_size}, which each of model.widths halves. "
            f"Got {whitening_size} and {len(widths)} widths; give less"
        )


def check_stem(stem: str, stem_kernel_size: int, image_size: int) -> None:
    """Refuse a whitening stem whose patches are larger than the images."""
    if stem == "whitening" and stem_kernel_size > image_size:
        raise ValueError(
            f"model.stem=whitening looks at patches of the images, of {image_size} pixels. "
            f"Got model.stem_kernel_size={stem_kernel_size}; give less"
        )


@functools.lru_cache
def check_halves(test: str, train: str | None, image_size: int) -> None:
    Halves(test, train, image_size)


def check_folders(root: str, image_size: int) -> None:
    check_halves(**folders_of(root), image_size=image_size)


RELATIONS: dict[str, tuple[Callable, ...]] = {
    "cifar_resnet.models.ResNet": (stages, check_stem),
    "cifar_resnet.models.SpeedNet": (check_pooling,),
    "cifar_resnet.models.PyramidNet": (pyramid_blocks,),
    "cifar_resnet.models.CustomResNet": (check_layers,),
    "cifar_resnet.data.CIFAR10": (check_pixels,),
    "cifar_resnet.data.CIFAR100": (check_pixels,),
    "cifar_resnet.data.Synthetic": (check_pixels,),
    "cifar_resnet.data.Files": (check_pixels,),
    "cifar_resnet.data.ImageFolder": (check_pixels,),
}
FILES: dict[str, tuple[Callable, ...]] = {
    "cifar_resnet.data.CIFAR10": (PUBLISHED["CIFAR10"].check,),
    "cifar_resnet.data.CIFAR100": (PUBLISHED["CIFAR100"].check,),
    "cifar_resnet.data.Files": (check_halves,),
    "cifar_resnet.data.ImageFolder": (check_folders,),
}
ALL_ARE = 32  # the side in pixels of the images of every data set that does not say


def check(cfg: DictConfig, files: bool) -> None:
    """Raise for what nothing could be built or trained from; whatever is not ours is left to its own constructor.

    files: look at those that it names as well. ValueError, OSError, or from `runs` UsageError.
    """
    for key in LIMITS:
        owner, _, name = key.rpartition(".")
        node = OmegaConf.select(cfg, owner) if owner else cfg
        if is_ours(node) and is_given(node, name):
            require(owner, **{name: select(cfg, key)})
    size = select(cfg, "data.image_size") if "image_size" in (cfg.get("data") or {}) else ALL_ARE
    for group in ("data", "model"):
        node = cfg.get(group) or {}
        target = node.get("_target_")
        for relation in (*RELATIONS.get(target, ()), *(FILES.get(target, ()) if files else ())):
            names = inspect.signature(relation).parameters
            given = {name: select(cfg, f"{group}.{name}") for name in names if is_given(node, name)}
            if group == "model" and is_ours(cfg.get("data")):
                given.setdefault("image_size", size)
            if given.keys() >= set(names):
                # what is wrong with their types is told later, and better
                with contextlib.suppress(TypeError, KeyError, AttributeError):
                    relation(**{name: given[name] for name in names})
    if is_ours(cfg.get("augment")) and is_ours(cfg.get("data")):
        with contextlib.suppress(TypeError):
            check_size(select(cfg, "augment.crop_padding"), select(cfg, "augment.cutout_size"), size)
    if "trainer" in cfg:
        check_run(cfg)
        teacher = select(cfg, "distill.teacher")
        if teacher == []:
            raise ValueError("distill.teacher names nobody. Give a checkpoint, a run folder, or a list of them")
        if files and isinstance(teacher, (str, list)):
            for path in [teacher] if isinstance(teacher, str) else teacher:
                check_teacher(path)


def is_given(node: DictConfig, name: str) -> bool:
    return name in node and not OmegaConf.is_missing(node, name)


OURS = ("cifar_resnet.", "lightning.pytorch.Trainer", "torch.optim.")


def is_ours(node: DictConfig | None) -> bool:
    return isinstance(node, DictConfig) and str(node.get("_target_", OURS[0])).startswith(OURS)


def check_run(cfg: DictConfig) -> None:
    """What bears on a training as a whole."""
    runs.parent_dir(cfg)
    trainer = cfg.trainer
    for name in NOT_FOR_USERS.keys() & trainer.keys():
        raise ValueError(f"trainer.{name} is not for cifar-train: {NOT_FOR_USERS[name]}. Got {trainer[name]}")
    if trainer.get("limit_train_batches") == 0:
        raise ValueError("nothing would be trained. Got trainer.limit_train_batches=0; give a number, or null for all")
    if trainer.get("limit_test_batches") == 0:
        raise ValueError("nothing would be tested. Got trainer.limit_test_batches=0; to leave the test out: test=false")
    if "num_classes" in cfg.model:
        raise ValueError(f"the data says how many classes there are. Got model.num_classes={cfg.model.num_classes}")
    if select(cfg, "optimizer._target_") == "cifar_resnet.optim.SAM" and isinstance(trainer.get("devices"), int):
        check_sam(trainer.devices)
    if cfg.data.get("num_val") and "best" in cfg.callbacks:
        check_validation(trainer)
    if cfg.precision.get("precision") == "16-mixed":
        from cifar_resnet.precision import resolve  # takes torch to tell, but not Lightning

        resolve("16-mixed", accelerator=trainer.accelerator)


def check_sam(num_devices: int) -> None:
    if num_devices > 1:
        raise ValueError(
            f"SAM trains on one device: each would look for a worst point of its own. "
            f"Got {num_devices} devices; give trainer.devices=1, or another optimizer"
        )


def check_validation(trainer: DictConfig) -> None:
    every = trainer.get("check_val_every_n_epoch") or 1
    if trainer.get("limit_val_batches") == 0 or every > trainer.max_epochs:
        raise ValueError(
            f"no epoch would be validated, so none could be chosen. Got "
            f"trainer.limit_val_batches={trainer.get('limit_val_batches')}, "
            f"trainer.check_val_every_n_epoch={every} for {trainer.max_epochs} epochs; "
            f"to train on every image and keep the last epoch, give data.num_val=0"
        )


@functools.lru_cache
def check_teacher(path: str) -> None:
    from cifar_resnet import checkpoints  # which imports torch, as only some need

    checkpoints.read(path)
