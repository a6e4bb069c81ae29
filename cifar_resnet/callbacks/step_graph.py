"""The training step as one CUDA graph: recorded once, then launched as a whole."""

import contextlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LambdaCallback
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor
from torch.optim import Optimizer
from torchmetrics import Metric

from cifar_resnet.callbacks.averaging import EMA
from cifar_resnet.constraints import check
from cifar_resnet.data.samplers import ShuffledBatchSampler
from cifar_resnet.errors import first_sentence
from cifar_resnet.models import Classifier, StackedEnsemble
from cifar_resnet.optim import SAM
from cifar_resnet.terminal import log

REPLACED = ("on_train_batch_start", "training_step", "backward", "optimizer_zero_grad", "optimizer_step")
WITHIN_A_STEP = ("on_before_zero_grad", "on_before_backward", "on_after_backward", "on_before_optimizer_step")
STEP_HOOKS = ("on_train_batch_start", "on_train_batch_end")
# modules whose Python does the same in each step
OURS = ("cifar_resnet.", "torch.nn.", "torch.optim.", "torchvision.ops.")
BATCH_HOOKS = ("on_before_batch_transfer", "transfer_batch_to_device", "on_after_batch_transfer")
# which change with each step, or are looked at by themselves
KEPT_BY_OPTIMIZERS = ("state", "defaults", "param_groups")
REGISTRIES = ("_parameters", "_buffers", "_modules")  # where a torch.nn.Module keeps what it has


class StepGraph(Callback):
    """Has a GPU repeat the whole step by itself: augmentation, both passes, optimizer, averages, metrics.

    A small network's step is hundreds of kernels, each of which takes the host longer to launch than the GPU to run; a
    graph is launched at once. What differs between steps lies in tensors that are filled before: the images' indices,
    learning rates, the share of an average; random numbers go on as they would.

    The first step of each size is Lightning's own. The next are taken as a function, on a stream of their own; then one
    is recorded and from there on replayed. A batch is made within the step, in the place of the one before. What cannot
    be recorded is trained as usual; so are, unless asked for, networks of others, whose Python a replay would not run.

    On a CPU there is nothing to record: there the step stays a function, which only serves to test all this.

    graph: True for wherever it can be, and a line where it cannot; "auto" for CUDA, without a line; False for nowhere.
    """

    WARM_UP = 3  # steps of each size, in which memory is laid out and cuDNN chooses its algorithms

    def __init__(self, graph: Literal["auto"] | bool = "auto"):
        check(StepGraph, locals())
        self.graph = graph
        self.is_on = False

    def on_train_start(self, trainer: Trainer, pl_module: Classifier) -> None:  # type: ignore[override]
        if reason := self.obstacle(trainer, pl_module):
            if self.graph is True:
                log.warning(f"warning: graph=true has no effect: {reason}\n")
            return
        self.trainer, self.module, self.loader = trainer, pl_module, trainer.train_dataloader
        self.optimizer = trainer.optimizers[0]
        self.averaging = next((callback for callback in trainer.callbacks if isinstance(callback, EMA)), None)  # type: ignore[attr-defined]
        device = pl_module.device
        self.modules, self.parameters = list(pl_module.modules()), list(pl_module.parameters())
        # whoever is called at each step may change something then; all others before and after an epoch or a validation
        self.changes_any_time = is_overridden("on_train_batch_end", pl_module, LightningModule) or any(
            is_called_each_step(callback)
            for callback in trainer.callbacks  # type: ignore[attr-defined]
        )
        self.must_look = True
        self.rates, self.fixed = self.new_rates(), self.fixed_settings()
        self.stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        # by the number of images, their side in pixels, and whether their labels are shares of classes
        self.sizes: dict[tuple[int, int, bool], Recorded] = {}
        self.current: Recorded | None = None  # for None, a step is Lightning's own
        self.is_listening, self.logs_within, self.has_told = False, False, False  # to what a step logs, by Python
        self.own = {name: getattr(pl_module, name) for name in (*REPLACED, "log")}
        for name in self.own:
            object.__setattr__(pl_module, name, getattr(self, f"instead_of_{name}"))
        self.loader.deliver = self.deliver
        self.is_on = True

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.must_look = True

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.must_look = True

    def obstacle(self, trainer: Trainer, module: LightningModule) -> str | None:
        """Why this training's steps cannot be one graph; None where they can."""
        optimizer, loader = trainer.optimizers[0], trainer.train_dataloader
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        policy = getattr(getattr(loader, "augment", None), "policy", None)
        is_ours = getattr(loader, "deliver", None) is not None
        watchers = [
            type(each).__name__
            for each in (module, *trainer.callbacks)  # type: ignore[attr-defined]
            for name in WITHIN_A_STEP
            if is_overridden(name, each, LightningModule if each is module else Callback)
        ]
        keepers = [type(each).__name__ for each in trainer.callbacks if may_keep_a_batch(each)]  # type: ignore[attr-defined]
        parts = whose_python_runs(module, optimizer, loader)
        strange = (type(part) for part in parts if not type(part).__module__.startswith(OURS))
        foreign = next((kind.__name__ for kind in strange), None)
        replaced = [name for name in REPLACED if is_overridden(name, module, Classifier)]
        replaced += [name for name in BATCH_HOOKS if is_overridden(name, module, LightningModule)]
        is_recordable = getattr(optimizer, "is_recordable", False)
        obstacles = {
            "graph=false": self.graph is False,
            "this is a CPU, which launches nothing": module.device.type == "cpu" and self.graph == "auto",
            "its device is neither a GPU by CUDA nor a CPU": module.device.type not in ("cuda", "cpu"),
            "networks side by side take their batches together": isinstance(module, StackedEnsemble),
            f"{foreign} is not ours; graph=true says that its Python is the same in each step": (
                self.graph == "auto" and foreign is not None
            ),
            "several devices exchange their gradients": trainer.world_size > 1,
            "a strategy wraps the network": trainer.model is not module,
            "gradients of several batches are added up": trainer.accumulate_grad_batches > 1,
            "gradients are clipped under a loss scale": scaler is not None and bool(trainer.gradient_clip_val),
            "its batches come from elsewhere": not is_ours,
            "trainer.reload_dataloaders_every_n_epochs makes others": trainer.reload_dataloaders_every_n_epochs > 0,  # type: ignore[attr-defined]
            "its images lie on another device": is_ours and loader.data.device.type != module.device.type,
            "augment.policy is drawn on the host": policy is not None,
            "SAM takes two passes": isinstance(optimizer, SAM),
            "a proxy selects the images, and takes steps of its own": bool(getattr(module, "selection", None)),
            f"{type(optimizer).__name__} is not fused": not is_recordable
            and not all(group.get("fused") for group in optimizer.param_groups),
            f"{watchers and watchers[0]} looks into the step": bool(watchers),
            f"{keepers and keepers[0]} may look at a batch before it is made, or keep it; if it does not, give it the "
            "attribute needs_no_batch = True": bool(keepers),
            f"{type(module).__name__} has a {replaced and replaced[0]} of its own": bool(replaced),
        }
        return next((text for text, holds in obstacles.items() if holds), None)

    def new_rates(self) -> list[Tensor]:
        dtype = torch.float32 if self.module.device.type == "cuda" else torch.float64  # as fused optimizers read them
        return [torch.zeros((), device=self.module.device, dtype=dtype) for _ in self.optimizer.param_groups]

    def fixed_settings(self) -> list:
        """What a recorded step goes on with: of the optimizer all but the learning rates; what is trained, and how; and
        what its Python would find in the attributes of all that take part."""
        if self.must_look:
            parts = whose_python_runs(self.module, self.optimizer, self.loader.augment)
            self.attributes = [(type(part), attributes_of(part)) for part in parts if not isinstance(part, Metric)]
            self.must_look = self.changes_any_time
        groups = [
            {key: value for key, value in group.items() if key not in ("params", "lr")}
            for group in self.optimizer.param_groups
        ]
        trained = [parameter.requires_grad for parameter in self.parameters]
        clipping = [self.trainer.gradient_clip_val, self.trainer.gradient_clip_algorithm]
        return [groups, trained, [module.training for module in self.modules], clipping, self.attributes]

    def deliver(self, indices: Tensor) -> tuple[Tensor, Tensor]:
        """The place where the batch of these images will be; of the first batch of its size the batch itself."""
        # a callback may have gradients added up from some epoch on, or images augmented otherwise
        augment = self.loader.augment
        mixing = getattr(augment, "mixing", None)
        is_known = self.graph is True or all(
            type(each).__module__.startswith(OURS) for each in (augment, mixing) if each
        )
        is_on_device = is_known and getattr(augment, "policy", None) is None
        is_possible = self.trainer.accumulate_grad_batches == 1 and is_on_device and not self.logs_within
        size = len(indices), self.loader.image_size, mixing is not None
        self.current = self.sizes.get(size) if is_possible else None
        if self.averaging:
            self.averaging.moves_within_step = self.current is not None
        if self.current is None:
            batch = self.loader.batch(indices)
            if size not in self.sizes:
                places, sampler = tuple(part.clone() for part in batch), self.loader.sampler
                self.sizes[size] = Recorded(self.step, indices.clone(), places, sampler, self.stream)
            return batch
        self.current.indices.copy_(indices)
        return self.current.batch

    def step(self, indices: Tensor, batch: tuple[Tensor, Tensor]) -> Tensor:
        """All of it, as a function; returns the loss. batch: where to put the batch of these images."""
        module, plugin = self.module, self.trainer.precision_plugin
        losses = []

        def closure() -> Tensor:
            for place, part in zip(batch, self.loader.batch(indices), strict=True):
                place.copy_(part)
            self.optimizer.zero_grad()
            with plugin.train_step_context():
                loss = self.own["training_step"](batch, 0)
            losses.append(loss.detach())
            self.own["backward"](plugin.pre_backward(loss, module))
            return loss

        with self.rates_in_tensors():
            plugin.optimizer_step(self.optimizer, module, closure)
        if self.averaging:
            self.averaging.move(module)
        return losses[0]

    @contextlib.contextmanager
    def rates_in_tensors(self) -> Iterator[None]:
        """Within this the optimizer reads its learning rates from tensors."""
        groups = self.optimizer.param_groups
        before: list[dict[str, Any]] = [
            {key: group[key] for key in ("lr", "capturable") if key in group} for group in groups
        ]
        for group, rate in zip(groups, self.rates, strict=True):
            group["lr"] = rate
            if "capturable" in group:
                # torch's Adam warns where it is said too early, and refuses where it is not said
                group["capturable"] = rate.is_cuda and torch.cuda.is_current_stream_capturing()
        try:
            yield
        finally:
            for group, own in zip(groups, before, strict=True):
                group.update(own)

    # What Lightning calls of the network meanwhile. The whole step is taken as soon as its batch is announced

    def instead_of_on_train_batch_start(self, batch: object, batch_idx: int) -> int | None:
        self.module.log_once()  # here, whoever takes the step
        found = self.own["on_train_batch_start"](batch, batch_idx)
        if self.current is None or found == -1:  # Lightning's word for an epoch that ends here
            return found
        if (settings := self.fixed_settings()) != self.fixed:  # such as a momentum that a schedule moves
            self.rates = self.new_rates()
            for size in self.sizes.values():
                size.forget()
        self.fixed = settings  # equal ones too: what is the same object is soon compared
        for group, rate in zip(self.optimizer.param_groups, self.rates, strict=True):
            rate.fill_(group["lr"])
        if self.averaging:
            self.averaging.weigh()
        runs_python = self.current.graph is None
        self.current.go()
        if runs_python and self.current.is_recordable:  # which may have put new tensors into attributes
            self.must_look = True
            self.fixed = self.fixed_settings()
        for metric in self.module.metrics("train").values():
            metric._update_count = 1  # or it would warn that it has seen nothing
        return found

    def instead_of_training_step(self, batch: object, batch_idx: int) -> Tensor:
        if self.current:
            return self.current.loss
        self.is_listening = True
        loss = self.own["training_step"](batch, batch_idx)
        self.is_listening = False
        if self.logs_within and self.graph is True and not self.has_told:
            self.has_told = True
            log.warning(f"warning: graph=true has no effect: {type(self.module).__name__} logs within the step\n")
        return loss

    def instead_of_log(self, *args: object, **kwargs: object) -> None:
        self.logs_within |= self.is_listening
        self.own["log"](*args, **kwargs)

    def instead_of_backward(self, loss: Tensor, *args: object, **kwargs: object) -> None:
        if not self.current:
            self.own["backward"](loss, *args, **kwargs)

    def instead_of_optimizer_zero_grad(self, *args: object) -> None:
        if not self.current:
            self.own["optimizer_zero_grad"](*args)

    def instead_of_optimizer_step(self, epoch: int, batch_idx: int, optimizer: Optimizer, closure: Callable) -> None:
        if self.current:
            closure()  # of which nothing is left but what Lightning counts
        else:
            self.own["optimizer_step"](epoch, batch_idx, optimizer, closure)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.stand_back(pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.stand_back(pl_module)

    def stand_back(self, pl_module: LightningModule) -> None:
        if self.is_on:
            for name in self.own:
                object.__delattr__(pl_module, name)
            del self.loader.deliver
            if self.averaging:
                self.averaging.moves_within_step = False
            self.sizes, self.current, self.is_on = {}, None, False


def whose_python_runs(module: LightningModule, *others: object) -> Iterator[object]:
    """All whose Python runs in a step: its layers, what it is taught by, and others, such as optimizer and loader, with
    the augmentation that one of these has."""
    augments = [each.augment for each in others if hasattr(each, "augment")]
    yield from (*others, *augments)
    yield from (each.mixing for each in (*others, *augments) if getattr(each, "mixing", None))
    yield from module.modules()
    if distillation := getattr(module, "distillation", None):
        yield distillation
        for teacher in getattr(distillation, "networks", ()):
            yield from teacher.modules()


def attributes_of(part: object) -> list:
    """Of this object, to be compared with a later time: its plain values; which tensors, hooks and others it has."""
    # what else begins with an underscore is Lightning's and torch's own, and changes with each step
    return [
        (key, compared(value))
        for key, value in getattr(part, "__dict__", {}).items()
        if (not key.startswith("_") or key in REGISTRIES or key.endswith("_hooks")) and key not in KEPT_BY_OPTIMIZERS
    ]


def compared(value: Any) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Mapping):
        return [(key, compared(each)) for key, each in value.items()]
    if isinstance(value, (list, tuple)):
        return [compared(each) for each in value]
    return (id(value), value.data_ptr()) if isinstance(value, Tensor) else id(value)


def is_called_each_step(callback: Callback) -> bool:
    """Whether it is a user's, with a hook that is given batches."""
    package = type(callback).__module__.partition(".")[0]
    is_of_a_user = package not in ("cifar_resnet", "lightning") or isinstance(callback, LambdaCallback)
    return is_of_a_user and any(is_overridden(name, callback, Callback) for name in STEP_HOOKS)


def may_keep_a_batch(callback: Callback) -> bool:
    """`needs_no_batch`, an attribute, says that it has such a hook for another reason."""
    return is_called_each_step(callback) and not getattr(callback, "needs_no_batch", False)


class Recorded:
    """Steps on batches of one size.

    step: of indices and batch; returns the loss. indices: of the images that come next, to be filled before `go`.
    batch: where they come to lie. sampler: whose generator they are augmented by. stream: None on a CPU.
    """

    def __init__(
        self,
        step: Callable[[Tensor, tuple[Tensor, Tensor]], Tensor],
        indices: Tensor,
        batch: tuple[Tensor, Tensor],
        sampler: ShuffledBatchSampler,
        stream: torch.cuda.Stream | None,
    ):
        self.step, self.indices, self.batch, self.sampler, self.stream = step, indices, batch, sampler, stream
        self.loss: Tensor | None = None
        self.graph: torch.cuda.CUDAGraph | None = None
        self.is_recordable = True
        self.forget()

    def forget(self) -> None:
        self.count, self.graph = 0, None

    def go(self) -> None:
        if self.stream and self.graph is None and self.count >= StepGraph.WARM_UP and self.is_recordable:
            self.record()
        if self.graph:
            self.graph.replay()
        elif self.stream is None:
            self.loss = self.step(self.indices, self.batch)
        else:
            self.stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self.stream):
                self.loss = self.step(self.indices, self.batch)
            torch.cuda.current_stream().wait_stream(self.stream)
        self.count += 1

    def record(self) -> None:
        graph = torch.cuda.CUDAGraph()
        try:
            graph.register_generator_state(self.sampler.generator)
            with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
                self.loss = self.step(self.indices, self.batch)
        except RuntimeError as error:  # nothing has been computed: the step is still to come
            self.is_recordable = False
            log.warning(f"warning: this step is not replayed as one graph: {first_sentence(error)}\n")
        else:
            self.graph = graph
