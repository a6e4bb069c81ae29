"""What every network here shares: loss, steps, metrics and optimizer. Layers are in the modules beside this one."""

import inspect
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateMonitor
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import LRSchedulerConfigType, OptimizerLRScheduler
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import Metric
from torchmetrics.utilities.prints import rank_zero_only

from cifar_resnet.archives import as_planes, batches_of, to_size
from cifar_resnet.constraints import (
    TTA,
    FractionAboveZero,
    FractionBelowOne,
    NonNegative,
    Positive,
    WholeNumber,
    check,
)
from cifar_resnet.errors import UsageError, one_line, refuse_if
from cifar_resnet.images import Normalise
from cifar_resnet.models.distillation import Distillation
from cifar_resnet.models.metrics import Mean
from cifar_resnet.models.parallel import exchanged, keep_gradients, share_statistics
from cifar_resnet.models.regularisers import DropBlock
from cifar_resnet.models.selection import Selection
from cifar_resnet.models.summary import in_eval_mode, num_macs, num_parameters, parts_of, run_in_training, run_once
from cifar_resnet.models.tta import log_probabilities
from cifar_resnet.models.whitening import Whitening
from cifar_resnet.monitored import Monitor
from cifar_resnet.optim import SAM, RngState, Schedule, frozen_statistics, two_passes
from cifar_resnet.seeds import seed_all, seed_for

OF_A_RUN = (
    "seed", "monitor", "config", "data_state", "optimizer", "scheduler", "distillation", "selection", "loss_weights",
    "sam",
)  # fmt: skip


class Classifier(LightningModule):
    """Base of the networks: derive, build layers in `__init__`, return logits from `forward`.

    num_classes: length of a logits vector.
    label_smoothing: share of the training target spread over all classes (Szegedy et al. 2016, section 7).
    class_weights: of each class in the training loss, by label; "balanced": N / (num_classes * its images), as
        scikit-learn has it, so that each class weighs as much.
    decay_norm_and_bias: False spares normalisation layers and biases from weight decay (Goyal et al. 2017, 5.3).
    bias_lr_factor: of the biases' and norm layers' learning rate, by which their weight decay is divided: a step decays
        them no more than it would without (Page 2019, "How to train your ResNet" 8).
    tta: which views of each image validation and test average: "none", "flip" or "flip_shift" (see models/tta.py).
    tta_below: only images whose likeliest class has less than this probability get other views than themselves; 1.0 for
        every image.
    max_params: `check_budget` refuses a network of more trainable parameters; None for no limit.
    freeze: parts that are not trained, by name, such as "conv1" and "stages.0"; their norm layers' statistics stay too.
    lr_factors: of the learning rate of parts, by name; of the names that fit, the longest holds.
    optimizer: called with the parameters (or groups of them); only training needs it.
    scheduler: called with the optimizer and total_steps, stepped after each batch, or where it takes no total_steps
        called with the optimizer, stepped after each epoch; or a `Schedule`; None keeps the learning rate.
    distillation: teachers whose predictions the training loss follows as well.
    selection: of each batch the part to be trained on; None for all of it.
    """

    loss_weights: Tensor | None
    no_hyperparameters: tuple[str, ...] = ("optimizer", "scheduler", "distillation", "selection")

    def __init__(
        self,
        num_classes: Annotated[int, Ge(2)] = 10,
        label_smoothing: FractionBelowOne = 0.0,
        class_weights: Literal["balanced"] | Sequence[NonNegative] | None = None,
        decay_norm_and_bias: bool = True,
        bias_lr_factor: Positive = 1.0,
        tta: TTA = "none",
        tta_below: FractionAboveZero = 1.0,
        max_params: WholeNumber | None = None,
        freeze: Sequence[str] = (),
        lr_factors: Mapping[str, Positive] | None = None,
        optimizer: Callable[[Iterable], Optimizer] | None = None,
        scheduler: Schedule | Callable[..., LRScheduler] | None = None,
        distillation: Distillation | None = None,
        selection: Selection | None = None,
    ):
        super().__init__()
        check(Classifier, locals())
        refuse_if(
            tta == "none" and tta_below < 1,
            f"model.tta_below says which images get other views. Got {tta_below} with model.tta=none; give flip or "
            f"flip_shift",
        )
        self.save_hyperparameters(ignore=self.no_hyperparameters, logger=False)
        self.class_weights = class_weights
        # (num_classes,); known once the data is, but there for who copies all buffers before
        weights = None if class_weights is None else torch.ones(num_classes)
        self.register_buffer("loss_weights", weights, persistent=False)
        self.label_smoothing, self.max_params = label_smoothing, max_params
        self.freeze_parts, self.lr_factors = tuple(freeze), dict(lr_factors or {})
        self.held_parts: set[str] = set()  # names of parameters that would be trained, if they were not frozen
        self.tta, self.tta_below = tta, tta_below
        self.decay_norm_and_bias, self.bias_lr_factor = decay_norm_and_bias, bias_lr_factor
        self.optimizer, self.scheduler = optimizer, scheduler
        self.distillation, self.selection = distillation, selection
        self.train_loss, self.val_loss, self.test_loss = (Mean() for _ in range(3))
        self.train_acc, self.val_acc, self.test_acc = (Mean() for _ in range(3))
        self.seed: int | None = None  # of dropout and its like
        self.is_on_others_data = False  # that of a loader or a data module that says nothing of its pixels
        self.is_prepared, self.prepared_for = False, None  # by cifar-train; else for which data module
        self.sam: SAM | None = None  # while it is trained with one
        self.monitor: Monitor = "val/loss"  # of schedules that go by a metric
        self.config: dict | None = None  # of the run, kept in its checkpoints
        self.data_state: dict | None = None  # what its images and classes are (`DataModule.state`), kept likewise

    def prepare(self, data: Any) -> None:
        """Take what the training images decide: whitening filters where there are none yet, class weights, what the
        pixels mean. ValueError where they cannot be known.

        data: a data module of this package, set up; of others and of loaders nothing is known.
        """
        own_classes, is_known = self.hparams["num_classes"], hasattr(data, "class_counts")
        classes = data.num_classes if is_known else own_classes
        self.check_parts()
        self.check_own_names()
        refuse_if(
            classes != own_classes,
            f"the network tells {own_classes} classes apart. Got data of {classes}; give num_classes={classes}",
        )
        needs = {
            "model.class_weights=balanced counts them; or give a list": any(
                network.class_weights == "balanced" for network in self.all_networks()
            ),
            "distillation asks the teachers with their own normalisation": self.distillation,
        }
        lacking = next((text for text, is_needed in needs.items() if is_needed and not is_known), None)
        refuse_if(lacking, f"the training images must come from a data module of cifar_resnet. Got another: {lacking}")
        if is_known and self.has_unfitted():
            self.init_whitening(data.sample())
        for network in self.all_networks():
            network.weigh_classes(data.class_counts if is_known else torch.ones(classes))
        self.data_state = data.state() if is_known else None  # what pixels meant before, they mean no more
        self.is_on_others_data = not is_known
        self.prepared_for = getattr(data, "identity", None)  # not the data: a copy of the network would copy the images

    def check_budget(self) -> None:
        count = num_parameters(self)
        if self.max_params is not None and count > self.max_params:
            raise UsageError(
                f"the network is too large for model.max_params={self.max_params:,.0f}. Got {count:,} parameters, "
                f"{count - self.max_params:,.0f} too many; give it fewer or narrower blocks, or see cifar-design"
            )

    def weigh_classes(self, counts: Tensor) -> None:
        """Have the loss weigh classes as `class_weights` says. counts: training images of each, (num_classes,)."""
        if self.class_weights is None:
            return
        if self.class_weights == "balanced":
            refuse_if(
                not counts.all(),
                f"model.class_weights=balanced needs images of each class. Got none of class "
                f"{counts.argmin().item()}; give a list",
            )
            weights = counts.sum() / (len(counts) * counts)
        else:
            weights = torch.tensor(self.class_weights, dtype=torch.float64)
            refuse_if(
                len(weights) != len(counts) or not weights.any(),
                f"model.class_weights are of each of the {len(counts)} classes, not all 0. Got "
                f"{list(self.class_weights)}; give as many, or balanced",
            )
        self.loss_weights = weights.float()

    def all_networks(self) -> "list[Classifier]":
        """All that are trained: this one, and what selects its images."""
        return [self, *([self.selection.proxy] if self.selection else [])]

    def check_parts(self) -> None:
        """ValueError for names, in freeze and lr_factors, of no part that is trained."""
        trained = {
            name
            for names, parameter in self.all_names()
            if parameter.requires_grad or self.held_parts.intersection(names)
            for name in names
        }
        for key, names in (("freeze", self.freeze_parts), ("lr_factors", self.lr_factors)):
            strange = next((part for part in names if not any(self.is_within(name, part) for name in trained)), None)
            parts = dict.fromkeys(name for name, _ in parts_of(self))
            refuse_if(
                strange is not None,
                f"model.{key} names parts of the network. Got {strange!r}; the parts are {', '.join(parts)}, and those "
                f"within them, such as {next(iter(trained), '').rpartition('.')[0]}",
            )
        refuse_if(
            self.freeze_parts and all(self.is_frozen(*names) for names, each in self.all_names() if each.requires_grad),
            f"nothing would be trained. Got model.freeze={list(self.freeze_parts)}; leave one part out",
        )

    def all_names(self) -> list[tuple[list[str], torch.nn.Parameter]]:
        """Each parameter once, with all its names: parts may share it."""
        names: dict[torch.nn.Parameter, list[str]] = {}
        for name, parameter in self.named_parameters(remove_duplicate=False):
            names.setdefault(parameter, []).append(name)
        return [(found, parameter) for parameter, found in names.items()]

    def is_frozen(self, *names: str) -> bool:
        """names: a module's, or all those of a parameter."""
        return any(self.is_within(name, part) for part in self.freeze_parts for name in names)

    def is_within(self, name: str, part: str) -> bool:
        """Whether a module or a parameter is, or belongs to, the part of this name."""
        return f"{name}.".startswith(f"{part}.")

    def lr_factor_of(self, *names: str) -> float:
        """names: all those of a parameter."""
        fitting = [part for part in self.lr_factors if any(self.is_within(name, part) for name in names)]
        return self.lr_factors[max(fitting, key=len)] if fitting else 1.0

    def check_image_size(self, image_size: int) -> None:
        """ValueError where the network cannot take images of this side, in pixels, or gives no logits for them."""
        name, num_classes = type(self).__name__, self.hparams["num_classes"]
        self.check_own_names()
        refuse_if(not any(True for _ in self.parameters()), f"{name} has no parameters, and nothing to learn")
        try:
            logits = run_once(self, (3, image_size, image_size))
        except Exception as error:  # a network of one's own may raise anything
            remedy = "give fewer strides, or larger images" if isinstance(error, RuntimeError) else "mend its forward"
            raise ValueError(
                f"{name} cannot take images of {image_size} pixels. Got: {one_line(error)[:300].rstrip('.')}; {remedy}"
            ) from error
        shape = getattr(logits, "shape", None)
        refuse_if(
            shape != (1, num_classes),
            f"{name} must return logits, {(1, num_classes)} for one image of {num_classes} classes. "
            f"Got {type(logits).__name__ if shape is None else tuple(shape)}; mend its forward",
        )

    def check_own_names(self) -> None:
        """ValueError for layers that what every network has would hide."""
        name = type(self).__name__
        theirs = [f"{split}_{what}" for split in ("train", "val", "test") for what in ("loss", "acc")]
        replaced = [each for each in theirs if not isinstance(getattr(self, each), Mean)]
        taken = [layer for layer in self._modules if hasattr(Classifier, layer) or layer in OF_A_RUN]
        hidden = next(iter((*taken, *replaced)), None)
        refuse_if(hidden, f"{name} has a layer called {hidden!r}, as something of every Classifier is; rename it")

    def check_unset(self) -> None:
        """ValueError for attributes of a new network's own that hide methods, or that its training would overwrite."""
        name = type(self).__name__
        hidden = next((key for key in vars(self) if inspect.isfunction(getattr(Classifier, key, None))), None)
        refuse_if(hidden, f"{name} has an attribute called {hidden!r}, as a method of every Classifier is; rename it")
        taken = next((key for key in ("config", "seed", "data_state", "sam") if getattr(self, key) is not None), None)
        refuse_if(taken, f"{name} has an attribute called {taken!r}, which a training sets for its own use; rename it")

    def check_training_output(self, image_size: int) -> None:
        """ValueError where the network gives more than logits while it is trained, or less."""
        found, expected = run_in_training(self, (3, image_size, image_size)), (2, self.hparams["num_classes"])
        shape = getattr(found, "shape", None)
        refuse_if(
            found is not None and shape != expected,
            f"{type(self).__name__} must return logits in training too, {expected} for two images. "
            f"Got {type(found).__name__ if shape is None else tuple(shape)}; have it made without heads for training "
            f"alone (torchvision's aux_logits=false), or mend its forward",
        )

    def takes_one_image(self, image_size: int) -> bool:
        """False where one alone gives an error in training, which two don't: batch norm over maps of one pixel."""
        shape = (3, image_size, image_size)
        return run_in_training(self, shape) is None or run_in_training(self, shape, num_images=1) is not None

    def init_whitening(self, images: Tensor) -> None:
        """Set the layers that training images determine before any training. images: (N, C, H, W), normalised."""
        for layer in (each for network in self.all_networks() for each in network.whitening_layers()):
            layer.init_whitening(images)

    def has_unfitted(self) -> bool:
        return any(layer.is_unfitted for network in self.all_networks() for layer in network.whitening_layers())

    def whitening_layers(self) -> list[Whitening]:
        return [module for module in self.modules() if isinstance(module, Whitening)]

    def pixel_stats(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the training images' pixels, (C,) each."""
        refuse_if(
            self.data_state is None,
            "a network must know what its images mean. Got one that was trained last on a loader or a data module of "
            "one's own, or not at all; use load, fit it on a data module of cifar_resnet, or set its data_state to the "
            "state() of one",
        )
        mean, std = (torch.tensor(self.data_state[key], device=device) for key in ("mean", "std"))
        return mean, std

    @torch.inference_mode()
    def predict(self, images: Tensor | np.ndarray, batch_size: int = 500) -> Tensor:
        """Probabilities: (N, num_classes) float32, by its test-time augmentation where it was trained for one.

        Of a network that came from `cifar_resnet.load` or `load_from_checkpoint`, or has been trained; in eval mode,
        whichever it is in.
        images: uint8 of (N, 3, H, W), (N, H, W, 3) or, grey, (N, H, W) or (N, H, W, 1), of any size; one picture is
            images[None]. ValueError for other numbers, and where one picture might be several grey ones.
        batch_size: how many at a time.
        """
        normalise, size = Normalise(*self.pixel_stats(self.device)), self.data_state["image_size"]
        planes = as_planes(np.asarray(images.cpu() if isinstance(images, Tensor) else images), "predict(images)")
        each = []
        with in_eval_mode(self):  # in which Lightning leaves none, neither after a training nor as it loads it
            for batch in batches_of(planes, batch_size):
                pixels = torch.from_numpy(to_size(batch, size)).to(self.device)
                pixels = pixels.contiguous(memory_format=torch.channels_last)
                each.append(log_probabilities(self, normalise(pixels), self.tta, self.tta_below).exp())
        return torch.cat(each)

    # Training

    def setup(self, stage: str) -> None:
        self.test_log_probs: list[Tensor] = []  # batch by batch, of this rank
        # torchmetrics warns on the first, if it knows which that is
        rank_zero_only.rank = self.global_rank  # type: ignore[attr-defined]
        self.to(memory_format=torch.channels_last)
        if stage == "fit":
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            identity = getattr(data, "identity", None)
            if not self.is_prepared and (identity is None or identity != self.prepared_for):
                self.prepare(data)
            self.hold_frozen_parts()
        elif self.data_state and hasattr(self.trainer.datamodule, "identity"):  # type: ignore[attr-defined]
            self.see_as_trained(self.trainer.datamodule, has_labels=stage != "predict")  # type: ignore[attr-defined]
        if self.distillation and stage == "fit":
            self.distillation.setup(self.trainer.strategy.root_device, self.data_state)

    def see_as_trained(self, data: Any, has_labels: bool) -> None:
        """Have the pixels of a data module, set up, mean what they meant in the training; UsageError for labels of
        other classes than the network's."""
        refuse_if(
            has_labels and data.class_names != self.data_state["classes"],
            f"the network was trained on classes {self.data_state['classes']}. Got data of {data.class_names}; "
            f"cifar-evaluate finds classes by their names",
        )
        data.normalise = Normalise(*self.pixel_stats(data.normalise.mean.device))

    def hold_frozen_parts(self) -> None:
        """Have no gradients computed for them, and their statistics stay."""
        for names, parameter in self.all_names() if self.freeze_parts else ():
            if parameter.requires_grad and self.is_frozen(*names):
                parameter.requires_grad = False
                self.held_parts |= {*names}
        self.rest_frozen_parts()

    def on_fit_start(self) -> None:
        refuse_if(
            self.has_unfitted(),  # nor has a checkpoint brought them
            "the filters of whitening layers are fitted to training images. Got no data module of cifar_resnet; give "
            "one, or call init_whitening(images) first",
        )
        self.total_steps = planned_steps(self.trainer)
        self.is_unlogged = True  # an epoch that goes on in its middle has no start
        modules = [module for network in self.all_networks() for module in network.modules()]
        self.with_progress = [module for module in modules if isinstance(module, DropBlock)]
        refuse_if(
            self.with_progress and self.total_steps == math.inf,
            "DropBlock rises over the training. Got one whose length nobody knows; give max_steps, or drop_block=0",
        )
        sampler = getattr(self.trainer.train_dataloader, "sampler", None)
        refuse_if(
            getattr(sampler, "world_size", self.trainer.world_size) != self.trainer.world_size,
            f"each process trains on its own batches. Got a loader of {getattr(sampler, 'world_size', None)} for "
            f"{self.trainer.world_size}, made outside the trainer; give the data module: fit(network, datamodule=…)",
        )
        self.sam = next((optimizer for optimizer in self.trainer.optimizers if isinstance(optimizer, SAM)), None)
        if self.seed is None:
            self.seed = torch.initial_seed()
        if self.selection:
            self.selection.begin(self, self.total_steps, planned_epochs(self.trainer))

    def train(self, mode: bool = True) -> "Classifier":
        """As of any module; norm layers of frozen parts stay in eval mode."""
        super().train(mode)
        if mode:
            self.rest_frozen_parts()
        return self

    def rest_frozen_parts(self) -> None:
        for name, module in self.named_modules() if self.freeze_parts else ():
            if self.is_frozen(name):
                module.eval()

    def on_train_epoch_start(self) -> None:
        self.is_unlogged = True
        self.trainer.callback_metrics.clear()  # an epoch that is not validated has no scores of an earlier one
        if self.trainer.fit_loop._skip_backward:  # for its StochasticWeightAveraging Lightning steps all the same
            self.zero_grad()
        # dropout and its like draw from here, so that a resumed run repeats what an uninterrupted one would draw
        seed_all(seed_for("network", self.seed, self.current_epoch, self.global_rank))

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        for module in self.with_progress:
            module.progress.fill_(self.trainer.global_step / self.total_steps)

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch  # mixed images come with probabilities, (N, num_classes), for labels
        if self.selection:
            images, labels = self.selection(images, labels)
        if self.sam:
            self.first_pass = (images, labels), RngState(images.device), keep_gradients(self)
        loss, logits = self.loss(images, labels)
        # a mixed image counts as the class that it shows most of: so a perfect network still scores 100%
        self.update_metrics("train", loss, logits, labels if labels.ndim == 1 else labels.argmax(1))
        self.log_once()
        return loss

    def log_once(self) -> None:
        """In an epoch: which is enough for its means, while each time keeps the host."""
        if self.is_unlogged:
            self.log_metrics("train")
            self.is_unlogged = False

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What training minimises, and the logits."""
        logits = self(images)
        return self.whole_loss(images, logits, labels), logits

    def whole_loss(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """That on the labels, and what teachers add to it."""
        loss = self.loss_of(images, logits, labels)
        return self.distillation(images, logits, loss) if self.distillation else loss

    def loss_of(self, images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
        """What training minimises of these logits, (N, num_classes), and labels: the place for a loss of one's own.

        labels: (N,) int64; of mixed images their shares of each class, (N, num_classes). Validation and test report the
        negative log-likelihood, whatever training minimises.
        """
        smoothing, weights = self.label_smoothing, self.loss_weights
        if weights is None:
            loss = F.cross_entropy(logits, labels, label_smoothing=smoothing)
        else:  # torch's mean is nan where all weigh nothing, and of mixed images no weighted one
            losses = F.cross_entropy(logits, labels, weights, reduction="none", label_smoothing=smoothing)
            weight = weights[labels].sum() if labels.ndim == 1 else (labels @ weights).sum()
            loss = losses.sum() / weight.clamp(min=torch.finfo(weight.dtype).tiny)
        return loss

    @property
    def batches_in_step(self) -> int:
        """How many batches' gradients the coming step adds up: at an epoch's end they may be fewer than usual."""
        usual, index = self.trainer.accumulate_grad_batches, self.trainer.fit_loop.batch_idx
        return int(min(usual, self.trainer.num_training_batches - index // usual * usual))

    def backward(self, loss: Tensor) -> None:
        """loss: of a batch, divided by trainer.accumulate_grad_batches, and scaled where the precision wants it."""
        if (missing := self.trainer.accumulate_grad_batches / self.batches_in_step) != 1:
            loss = loss * missing
        if self.sam:
            two_passes(self.sam, loss, self.loss_again)
        else:
            loss.backward()

    def loss_again(self) -> Tensor:
        """SAM's second pass: the same pixels and dropout masks, and BatchNorm's statistics stay."""
        batch, rng_state, exchange = self.first_pass
        plugin = self.trainer.precision_plugin
        with rng_state.repeated(), frozen_statistics(self), plugin.train_step_context():
            loss = exchanged(self, "loss", *batch, exchange=exchange)[0] / self.batches_in_step
        scaler = getattr(plugin, "scaler", None)
        return scaler.scale(loss) if scaler else loss

    @property
    def passes(self) -> int:
        """Forward and backward through the network for each batch; known from the beginning of a training on."""
        return 2 if self.sam else 1

    def training_macs(self, image_shape: tuple[int, int, int], batch_size: int) -> tuple[float, float]:
        """Multiply-adds for one image of shape (C, H, W), the backward pass taken for two forward ones: of each of the
        network's `passes`, and of what selects its images.

        Teachers are only asked. Parts that are frozen count like all others. Where a part of a batch is trained on, its
        images share that.
        """
        teachers = self.distillation.networks if self.distillation else ()
        macs = 3 * num_macs(self, image_shape) + sum(num_macs(teacher, image_shape) for teacher in teachers)
        if not self.selection:
            return macs, 0
        return macs * self.selection.count(batch_size) / batch_size, self.selection.macs(image_shape)

    @property
    def schedule(self) -> Schedule | None:
        if self.scheduler is not None and not isinstance(self.scheduler, Schedule):
            self.scheduler = Schedule(self.scheduler)  # which learns from what it makes
        return self.scheduler

    def new_optimizer(self) -> Optimizer:
        refuse_if(
            self.optimizer is None,
            f"a network without an optimizer cannot be trained. Got {type(self).__name__} with optimizer=None; give "
            f"what makes one of parameters, such as {type(self).__name__}(optimizer=torch.optim.SGD)",
        )
        optimizer = self.optimizer(self.parameter_groups())
        refuse_if(
            not isinstance(optimizer, Optimizer),
            f"optimizer must make a torch.optim.Optimizer of parameters. Got {type(optimizer).__name__} from "
            f"{getattr(self.optimizer, 'func', self.optimizer)}; in its YAML, give _partial_: true and such a class",
        )
        for group in optimizer.param_groups:
            group["lr"] *= group.pop("lr_factor", 1)
            if factor := group.pop("bias_lr_factor", None):
                group["lr"] *= factor
                if "weight_decay" in group:
                    group["weight_decay"] /= factor
        return optimizer

    def build_optimizer(self, total_steps: float, epochs: float = 1) -> tuple[Optimizer, LRScheduler | None]:
        """total_steps, epochs: of the whole training, math.inf where nobody knows."""
        optimizer = self.new_optimizer()
        return optimizer, self.schedule.build(optimizer, total_steps, epochs, self.monitor) if self.schedule else None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        self.total_steps = planned_steps(self.trainer)
        self.monitor = "val/loss" if self.trainer.enable_validation else "train/loss"
        optimizer, scheduler = self.build_optimizer(self.total_steps, planned_epochs(self.trainer))
        if scheduler is None:
            return {"optimizer": optimizer}
        when: LRSchedulerConfigType = {
            "scheduler": scheduler, "name": "lr", "interval": self.schedule.interval, "reduce_on_plateau": False,
        }  # fmt: skip
        return {"optimizer": optimizer, "lr_scheduler": when}

    def lr_scheduler_step(self, scheduler: LRScheduler, metric: float | None) -> None:
        if self.schedule is None:  # but that of a configure_optimizers of its own
            super().lr_scheduler_step(scheduler, metric)
        elif self.schedule.interval == "step":
            for each in self.all_schedulers():
                each.step()

    def all_schedulers(self) -> list[Any]:
        """This network's own, and that of what selects its images."""
        of_proxy = self.selection.scheduler if self.selection else None
        return [self.lr_schedulers(), *([of_proxy] if of_proxy else [])]

    def on_train_epoch_end(self) -> None:
        """Move the schedules that move by the epoch: Lightning would do so only once the epoch's checkpoint is written.

        A training that goes on from there would lack the move.
        """
        # an epoch that ran out of time may go on
        if not self.schedule or self.schedule.interval == "step" or not self.trainer.is_last_batch:
            return
        monitor, measured = self.schedule.monitor or self.monitor, self.trainer.callback_metrics
        for scheduler in self.all_schedulers():
            if not self.schedule.goes_by_metric:
                scheduler.step()
            elif monitor in measured:  # an epoch that is not validated is no bad one
                scheduler.step(measured[monitor])

    def parameter_groups(self) -> list[torch.nn.Parameter] | list[dict[str, Any]]:
        """All parameters that are trained, or where some are treated otherwise, those as groups of their own."""
        parameters = [
            (names, parameter)
            for names, parameter in self.all_names()
            if parameter.requires_grad and not self.is_frozen(*names)
        ]
        otherwise: dict[str, Any] = {} if self.decay_norm_and_bias else {"weight_decay": 0.0}
        otherwise |= {} if self.bias_lr_factor == 1 else {"bias_lr_factor": self.bias_lr_factor}
        if not otherwise and not self.lr_factors:
            return [parameter for _, parameter in parameters]
        groups: dict[tuple[float, bool], list[torch.nn.Parameter]] = {}
        for names, parameter in parameters:
            is_apart = bool(otherwise) and parameter.ndim <= 1
            groups.setdefault((self.lr_factor_of(*names), is_apart), []).append(parameter)
        return [
            {"params": group} | ({"lr_factor": factor} if factor != 1 else {}) | (otherwise if is_apart else {})
            for (factor, is_apart), group in sorted(groups.items(), key=lambda item: (item[0][0] != 1, item[0]))
        ]

    # Validation and test

    def on_validation_epoch_start(self) -> None:
        share_statistics(self)

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluation_step("val", batch)

    def on_validation_epoch_end(self) -> None:
        self.log_metrics("val")

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.test_log_probs.append(self.evaluation_step("test", batch))

    def on_test_epoch_end(self) -> None:
        self.log_metrics("test")

    def predict_step(self, batch: Tensor | tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        """Probabilities, (N, num_classes) float32. batch: normalised images, or these with labels, which go unused."""
        images = batch if isinstance(batch, Tensor) else batch[0]
        return log_probabilities(self, images, self.tta, self.tta_below).exp()

    def evaluation_step(self, split: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        log_probs = log_probabilities(self, images, self.tta, self.tta_below)
        self.update_metrics(split, F.nll_loss(log_probs, labels), log_probs, labels)
        return log_probs

    def metrics(self, split: str) -> dict[str, Metric]:
        return {f"{split}/{name}": getattr(self, f"{split}_{name}") for name in ("loss", "acc")}

    def update_metrics(self, split: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Means over the epoch, kept on the device: nothing here waits for the GPU."""
        count = len(labels)
        getattr(self, f"{split}_loss").update(loss.detach() * count, count)
        getattr(self, f"{split}_acc").update((logits.argmax(1) == labels).sum(), count)

    def log_metrics(self, split: str) -> None:
        """Of all ranks, which do so together: after validation and test, in which some may have had no batch."""
        self.log_dict(self.metrics(split), on_step=False, on_epoch=True)

    # Checkpoints: what makes one of use on its own, in another process or another year, as plain values

    @classmethod
    def architecture(cls) -> str:
        """The name under which checkpoints know this class."""
        return f"{cls.__module__}.{cls.__qualname__}"

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        checkpoint["architecture"] = self.architecture()
        checkpoint["config"], checkpoint["data"] = self.config, self.data_state
        checkpoint["metrics"] = metrics_of(self.trainer)
        if self.selection:
            checkpoint["selection"] = self.selection.state_dict()

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        # a run that goes on knows both by now, and may be on another machine
        self.config = self.config or checkpoint["config"]
        if not self.is_on_others_data:
            self.data_state = self.data_state or checkpoint["data"]
        trains = self._trainer is not None and self._trainer.state.fn == TrainerFn.FITTING
        if self.selection and trains and "selection" in checkpoint:
            self.selection.load_state_dict(checkpoint["selection"])


def planned_epochs(trainer: Trainer) -> float:
    return math.inf if trainer.max_epochs == -1 else trainer.max_epochs


def planned_steps(trainer: Trainer) -> float:
    """The optimizer's steps in the whole training; math.inf where nobody knows, as with a loader without a length.

    Lightning's own count knows one number of batches to a step.
    """
    steps, limit = trainer.estimated_stepping_batches, trainer.max_steps
    if steps in (-1, math.inf):
        return math.inf
    accumulating = (each for each in trainer.callbacks if isinstance(each, GradientAccumulationScheduler))  # type: ignore[attr-defined]
    is_endless = trainer.max_epochs == -1 or math.isinf(trainer.num_training_batches)
    if is_endless or (scheduling := next(accumulating, None)) is None:
        return int(steps)
    counts = (scheduling.get_accumulate_grad_batches(epoch) for epoch in range(trainer.max_epochs))
    steps = sum(math.ceil(trainer.num_training_batches / count) for count in counts)
    return steps if limit == -1 else min(steps, limit)


def metrics_of(trainer: Trainer) -> dict[str, float]:
    """What has been logged last of each metric, without the entries of Lightning's learning-rate monitor.

    Those, such as lr and lr/pg1, are the rates of whichever step was logged last.
    """
    monitors = [each for each in trainer.callbacks if isinstance(each, LearningRateMonitor)]  # type: ignore[attr-defined]
    rates = {
        name for each in monitors for name in (*each.lrs, *each.last_momentum_values, *each.last_weight_decay_values)
    }
    return {name: value.item() for name, value in sorted(trainer.callback_metrics.items()) if name not in rates}
