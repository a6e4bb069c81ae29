"""What every network here shares: loss, steps, metrics and optimizer. Layers are in the modules beside this one."""

import contextlib
from collections.abc import Callable, Iterable, Iterator

import numpy as np
import torch
import torch.nn.functional as F
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler
from torchmetrics import MeanMetric, Metric
from torchmetrics.classification import MulticlassAccuracy

from cifar_resnet import limits
from cifar_resnet.data.augment import normalise
from cifar_resnet.data.datamodule import seed_for
from cifar_resnet.files import as_images
from cifar_resnet.models.distillation import Distillation
from cifar_resnet.models.size import num_parameters
from cifar_resnet.models.tta import log_probabilities
from cifar_resnet.models.whitening import Whitening
from cifar_resnet.optim import SAM


class Noise:
    """The random state of a moment, to come back to: `with` repeats what was drawn from then on."""

    @classmethod
    def of(cls, device: torch.device) -> "Noise":
        noise = cls()
        noise.device, noise.cpu = device, torch.get_rng_state()
        noise.cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        return noise

    def __enter__(self) -> None:
        self.fork = torch.random.fork_rng([self.device] if self.cuda is not None else [])
        self.fork.__enter__()
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, self.device)

    def __exit__(self, *exception) -> None:
        self.fork.__exit__(*exception)


@contextlib.contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """BatchNorm still normalises by the batch, but its running statistics stay."""
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    norms = [norm for norm in norms if norm.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True


class Classifier(LightningModule):
    """Base of the networks: derive, build layers in `__init__`, return logits from `forward`.

    num_classes: length of a logits vector.
    label_smoothing: share of the training target spread over all classes (Szegedy et al. 2016, section 7).
    decay_norm_and_bias: False spares normalisation layers and biases from weight decay (Goyal et al. 2017, 5.3).
    bias_lr_factor: of the biases' and norm layers' learning rate, by which their weight decay is divided: a step decays
        them no more than it would without (Page 2019, "How to train your ResNet" 8).
    tta: what validation and test ask about each image: "none", "flip" or "flip_shift" (see models/tta.py).
    max_params: `check_budget` refuses a network of more trainable parameters; None for no limit.
    optimizer: called with the parameters (or groups of them); only training needs it.
    scheduler: called with the optimizer and total_steps, stepped after each batch; None keeps the learning rate.
    distillation: teachers whose answers the training loss follows as well.
    """

    def __init__(
        self,
        num_classes: int = 10,
        label_smoothing: float = 0.0,
        decay_norm_and_bias: bool = True,
        bias_lr_factor: float = 1.0,
        tta: str = "none",
        max_params: int | float | None = None,
        optimizer: Callable[[Iterable], Optimizer] | None = None,
        scheduler: Callable[..., LRScheduler] | None = None,
        distillation: Distillation | None = None,
    ):
        super().__init__()
        limits.require(
            "model",
            num_classes=num_classes,
            label_smoothing=label_smoothing,
            bias_lr_factor=bias_lr_factor,
            tta=tta,
            max_params=max_params,
        )
        self.save_hyperparameters(ignore=["optimizer", "scheduler", "distillation", "members"], logger=False)
        self.label_smoothing = label_smoothing
        self.decay_norm_and_bias, self.bias_lr_factor = decay_norm_and_bias, bias_lr_factor
        self.tta = tta
        self.max_params = max_params
        self.optimizer, self.scheduler, self.distillation = optimizer, scheduler, distillation
        self.train_acc, self.val_acc, self.test_acc = (
            MulticlassAccuracy(num_classes, average="micro", validate_args=False) for _ in range(3)
        )
        self.train_loss, self.val_loss, self.test_loss = (MeanMetric(nan_strategy="disable") for _ in range(3))
        self.moment: dict | None = None  # of the middle of an epoch, from which to go on
        self.config: dict | None = None  # of the run, kept in its checkpoints
        self.data_state: dict | None = None  # what its images and answers mean, once loaded from a checkpoint
        self.test_log_probs: list[Tensor] = []  # of the last test, batch by batch

    def check_budget(self) -> None:
        count = num_parameters(self)
        if self.max_params is not None and count > self.max_params:
            raise ValueError(
                f"the network is too large for model.max_params={self.max_params:,.0f}. Got {count:,} parameters, "
                f"{count - self.max_params:,.0f} too many; give it fewer or narrower blocks, or see cifar-design"
            )

    monitored = ("val/acc", "val/loss", "train/acc", "train/loss")  # what callbacks may go by

    def check(self, trainer: Trainer) -> None:
        """Refuse what the optimizer, or a callback, cannot do in this training."""
        for callback in trainer.callbacks:
            monitor = getattr(callback, "monitor", None)
            if monitor not in (None, *self.monitored):
                raise ValueError(
                    f"{type(callback).__name__} has nothing to go by. Got monitor={monitor}; "
                    f"give {', '.join(self.monitored[:-1])} or {self.monitored[-1]}"
                )
        optimizer, _ = self.build_optimizer(total_steps=1)
        if isinstance(optimizer, SAM):
            limits.check_sam(trainer.world_size)

    def fit_to(self, images: Tensor) -> None:
        """Set the layers that training images determine before any training. images: (N, C, H, W), normalised."""
        for module in self.modules():
            if isinstance(module, Whitening):
                module.fit_to(images)

    def constants(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the training images' pixels, (C,) each."""
        if self.data_state is None:
            raise ValueError("a network must know what its images mean. Got one not loaded from a checkpoint; use load")
        return tuple(torch.tensor(self.data_state[key], device=device) for key in ("mean", "std"))

    @torch.inference_mode()
    def predict(self, images: Tensor | np.ndarray) -> Tensor:
        """Probabilities: (N, num_classes) float32, by its test-time augmentation where it was trained for one.

        Of a network that came from `cifar_resnet.load`.
        images: uint8 of (N, 3, H, W), (N, H, W, 3) or, grey, (N, H, W), of any size.
        """
        mean, std = self.constants(self.device)
        pixels, _ = as_images(np.asarray(images), self.data_state["image_size"], "predict(images)")
        pixels = torch.from_numpy(pixels).to(self.device).contiguous(memory_format=torch.channels_last)
        return log_probabilities(self, normalise(pixels, mean, std), self.tta).exp()

    def setup(self, stage: str) -> None:
        self.to(memory_format=torch.channels_last)
        if self.distillation and stage == "fit":
            self.distillation.setup(self.trainer.strategy.root_device, self.trainer.datamodule.state())

    def on_fit_start(self) -> None:
        self.with_progress = [module for module in self.modules() if hasattr(module, "progress")]

    def on_train_batch_start(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        for module in self.with_progress:
            module.progress.fill_(self.trainer.global_step / self.total_steps)

    def on_train_epoch_start(self) -> None:
        # dropout and its like draw from here, so that a resumed run repeats what an uninterrupted one would draw
        torch.manual_seed(seed_for("network", self.trainer.datamodule.seed, self.current_epoch, self.global_rank))

    def training_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> Tensor:
        images, labels = batch  # mixed images come with probabilities, (N, num_classes), for labels
        if self.is_sharpness_aware:
            self.first_pass = batch, Noise.of(images.device)
        loss, logits = self.loss(images, labels)
        # a mixed image counts as the class that it shows most of: so a perfect network still scores 100%
        self.log_metrics("train", loss, logits, labels if labels.ndim == 1 else labels.argmax(1))
        return loss

    def loss(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """What training minimises, and the logits."""
        logits = self(images)
        loss = F.cross_entropy(logits, labels, label_smoothing=self.label_smoothing)
        return self.distillation(images, logits, loss) if self.distillation else loss, logits

    @property
    def is_sharpness_aware(self) -> bool:
        return isinstance(self.optimizers(use_pl_optimizer=False), SAM)

    def backward(self, loss: Tensor) -> None:
        if self.is_sharpness_aware:
            self.sharpness_aware_backward(loss)
        else:
            loss.backward()

    def sharpness_aware_backward(self, loss: Tensor) -> None:
        """Leave the gradients of SAM: those at the worst point near the weights, for the same batch.

        Here, and not in the optimizer's step, because clipping, loss scaling, accumulation and the count of steps then
        see one backward pass. Both passes see the same pixels and the same noise (dropout's masks), and only the first
        moves BatchNorm's statistics. With accumulation each batch looks for its own worst point (m-sharpness, section
        4.1 of the paper).
        """
        optimizer, plugin = self.optimizers(use_pl_optimizer=False), self.trainer.precision_plugin
        parameters = optimizer.parameters()
        accumulated = [parameter.grad for parameter in parameters]
        for parameter in parameters:
            parameter.grad = None
        loss.backward()
        norm = optimizer.perturb()
        for parameter in parameters:
            parameter.grad = None
        (images, labels), noise = self.first_pass
        try:
            with noise, frozen_statistics(self), plugin.train_step_context():
                loss, _ = self.loss(images, labels)
            loss = loss / self.trainer.accumulate_grad_batches
            scaler = getattr(plugin, "scaler", None)
            (scaler.scale(loss) if scaler else loss).backward()
        finally:
            optimizer.restore()
        # a step that began with gradients that were not finite must not pass for a good one: 0 keeps, nan spoils
        verdict = (norm - norm).detach()
        for parameter, before in zip(parameters, accumulated, strict=True):
            if parameter.grad is not None:
                parameter.grad += verdict
                if before is not None:
                    parameter.grad += before
            else:
                parameter.grad = before

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.evaluation_step("val", batch)

    def on_test_start(self) -> None:
        self.test_log_probs = []

    def test_step(self, batch: tuple[Tensor, Tensor], batch_idx: int) -> None:
        self.test_log_probs.append(self.evaluation_step("test", batch))

    def evaluation_step(self, split: str, batch: tuple[Tensor, Tensor]) -> Tensor:
        images, labels = batch
        log_probs = log_probabilities(self, images, self.tta)
        self.log_metrics(split, F.nll_loss(log_probs, labels), log_probs, labels)
        return log_probs

    def log_metrics(self, split: str, loss: Tensor, logits: Tensor, labels: Tensor) -> None:
        """Means over the epoch, kept on the device: nothing here waits for the GPU."""
        mean, accuracy = getattr(self, f"{split}_loss"), getattr(self, f"{split}_acc")
        mean.update(loss.detach(), torch.full_like(loss, len(labels)))
        accuracy.update(logits, labels)
        self.log_dict({f"{split}/loss": mean, f"{split}/acc": accuracy}, on_step=False, on_epoch=True)

    def build_optimizer(self, total_steps: int) -> tuple[Optimizer, LRScheduler | None]:
        optimizer = self.optimizer(self.parameter_groups())
        for group in optimizer.param_groups:
            if factor := group.pop("lr_factor", None):
                group["lr"] *= factor
                if "weight_decay" in group:
                    group["weight_decay"] /= factor
        return optimizer, self.scheduler and self.scheduler(optimizer, total_steps=total_steps)

    def configure_optimizers(self) -> dict:
        self.total_steps = int(self.trainer.estimated_stepping_batches)
        optimizer, scheduler = self.build_optimizer(self.total_steps)
        if scheduler is None:
            return {"optimizer": optimizer}
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step", "name": "lr"},
        }

    def parameter_groups(self) -> list[Tensor] | list[dict]:
        """All parameters, or where norm layers and biases are treated otherwise, those as a group of their own."""
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        if self.decay_norm_and_bias and self.bias_lr_factor == 1:
            return parameters
        others: dict = {"params": [parameter for parameter in parameters if parameter.ndim <= 1]}
        if not self.decay_norm_and_bias:
            others["weight_decay"] = 0.0
        if self.bias_lr_factor != 1:
            others["lr_factor"] = self.bias_lr_factor
        return [{"params": [parameter for parameter in parameters if parameter.ndim > 1]}, others]

    def on_train_start(self) -> None:
        if self.moment and self.trainer.fit_loop.restarted_mid_epoch:
            # not by Lightning's own way for loaders: that comes too early, before what it should load into is there
            self.trainer.datamodule.batches.load_state_dict(self.moment["batches"])
            torch.set_rng_state(self.moment["cpu"])
            if self.moment["cuda"] is not None:
                torch.cuda.set_rng_state(self.moment["cuda"], self.device)
            for name, states in self.moment["metrics"].items():
                metric = self.get_submodule(name)
                for state, value in states.items():
                    setattr(metric, state, value.to(self.device))
                metric._update_count = 1  # or it would warn that it has seen nothing
        self.moment = None

    def on_load_checkpoint(self, checkpoint: dict) -> None:
        self.moment = checkpoint.get("moment")

    def on_save_checkpoint(self, checkpoint: dict) -> None:
        """Add, as plain values, what makes a checkpoint of use on its own, in another process or another year."""
        checkpoint["moment"] = {
            "batches": self.trainer.datamodule.batches.state_dict(),
            "cpu": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state(self.device) if self.device.type == "cuda" else None,
            "metrics": {
                name: dict(metric.metric_state)
                for name, metric in self.named_modules()
                if isinstance(metric, Metric) and name.rpartition(".")[2].startswith("train_")
            },
        }
        checkpoint["architecture"] = f"{type(self).__module__}.{type(self).__qualname__}"
        checkpoint["config"] = self.config
        checkpoint["data"] = self.trainer.datamodule.state()
        checkpoint["metrics"] = {name: value.item() for name, value in self.trainer.callback_metrics.items()}
