"""Trainings by two processes on this CPU, and the same by one. Run as a script, it trains the cases on both ranks:

python tests/two_ranks.py <folder> <case> …      # leaves <case>-<rank>.pt there
"""

import copy
import signal
import socket
import sys
from functools import partial
from pathlib import Path

import torch
from helpers import TINY
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import Tensor, nn
from torch.multiprocessing import start_processes
from torch.utils.data import DataLoader

from cifar_resnet import callbacks, processes, ranks
from cifar_resnet.build import QUIET, build_data_and_model, new_trainer
from cifar_resnet.compose import Composer
from cifar_resnet.errors import Diverged
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models import Distillation, ResNet
from cifar_resnet.optim import Schedule
from cifar_resnet.results.record import predictions_of
from cifar_resnet.terminal import be_silent, set_up_logging

RANKS = 2
Batches = list[tuple[Tensor, Tensor]]
# ten steps of 2 x 20 images; 40 for validation, in batches of 15, 15 and 10
PLAIN = (
    "augment=none", "data.num_train=440", "data.batch_size=20", "data.eval_batch_size=15", "optimizer.lr=0.02",
    "trainer.accelerator=cpu",
)  # fmt: skip
CLIPPED = ("trainer.gradient_clip_val=0.5", "optimizer.fused=false")
ACCUMULATED = ("trainer.accumulate_grad_batches=4",)  # of ten: the last step has two
SAM = ("optimizer=sam", "optimizer.rho=0.3")
# with BatchNorm's statistics as they are: or each rank would normalise by its own part of a batch
FROZEN = {
    "sgd": (),
    "adam": ("optimizer=adam", "optimizer.lr=1e-3", "optimizer.eps=1e-3"),
    "muon": ("optimizer=muon", "optimizer.lr=1e-3"),
    "ema": ("averaging=ema", "averaging.decay=0.5"),
    "distillation": (),
    "mixup": ("augment=mixup",),
    "cutmix": ("augment=cutmix",),
    "clipping": CLIPPED,
    "accumulation": ACCUMULATED,
    "clipping and accumulation": (*CLIPPED, *ACCUMULATED),
    "smoothing": ("model.label_smoothing=0.2",),
    "sam": SAM,
    "asam": ("optimizer=asam", "optimizer.rho=1"),
    "sam, clipping": (*SAM, "trainer.gradient_clip_val=0.5", "optimizer.base.fused=false"),
    "sam, accumulation": (*SAM, *ACCUMULATED),
}
USUAL = {
    "one validation batch": ("data.eval_batch_size=40", "trainer.max_epochs=2", "trainer.limit_test_batches=1"),
    "an average, and one validation batch": ("data.eval_batch_size=40", "averaging=ema", "trainer.max_epochs=2"),
    "two of three validation batches": ("trainer.limit_val_batches=2", "trainer.limit_test_batches=3"),
    "half of four validation batches": ("trainer.limit_val_batches=0.5", "data.eval_batch_size=10"),
    "a plateau": ("trainer.max_epochs=4", "data.eval_batch_size=25"),
    "early stopping": (
        "callbacks=early_stopping", "callbacks.early_stopping.min_delta=9", "callbacks.early_stopping.patience=1",
        "trainer.max_epochs=9",
    ),
    "a loss of nan on the second rank": (),
    "sam, as usual": SAM,
    "a proxy": (
        "selection=proxy", "model@selection.proxy=resnet_cifar", "selection.proxy.depth=8",
        "selection.proxy.widths=[4,4,4]",
    ),
    "sam in 16 bits, gradients of nan on the second rank": (*SAM, "optimizer.base.fused=false"),
}  # fmt: skip
CASES = FROZEN | USUAL


class Watch(Callback):
    """Keeps the batches; where `freeze`, BatchNorm normalises by its statistics and leaves them."""

    def __init__(self, freeze: bool):
        self.freeze, self.batches = freeze, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batches.append(tuple(each.clone() for each in batch))
        for module in pl_module.modules():
            if self.freeze and isinstance(module, nn.BatchNorm2d):
                module.eval()


class NanLoss(Callback):
    """The second rank's third loss; not its gradients, by which the other would hear of it."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx) -> None:
        if trainer.global_rank == 1 and batch_idx == 2:
            outputs["loss"] = outputs["loss"] * torch.nan


class Training:
    """Of a tiny network, by Classifier and Lightning's trainer as cifar-train builds them."""

    def __init__(self, case: str, *more: str):
        self.case = case
        self.cfg = Composer("train").jobs([*TINY, *PLAIN, *CASES[case], *more])[0].cfg
        self.data, self.model = build_data_and_model(self.cfg)
        if case == "distillation":
            torch.manual_seed(2)
            teacher = ResNet(depth=8, widths=[4, 4, 4]).eval()
            teacher.data_state = self.data.state()
            self.model.distillation = Distillation([teacher])
        if case == "a plateau":
            self.model.scheduler = Schedule(
                partial(torch.optim.lr_scheduler.ReduceLROnPlateau, threshold=9, patience=0)
            )
        if "gradients of nan" in case:
            self.spoil_gradients()
        self.watch = Watch(freeze=case in FROZEN)

    def spoil_gradients(self) -> None:
        """Of the second rank, in SAM's first pass of the third batch; the loss stays."""
        loss_of, calls = self.model.loss_of, iter(range(100))

        def spoiled(images: Tensor, logits: Tensor, labels: Tensor) -> Tensor:
            if next(calls) == 4 and self.model.global_rank == 1:
                logits.register_hook(lambda gradient: gradient * torch.nan)
            return loss_of(images, logits, labels)

        self.model.loss_of = spoiled

    def callbacks(self) -> list[Callback]:
        ours: list[Callback] = [callbacks.Throughput(), self.watch]
        if self.case == "a loss of nan on the second rank":
            ours.append(NanLoss())
        if "averaging" in self.cfg:
            ours.append(instantiate(self.cfg.averaging))
        if "early_stopping" in self.cfg.callbacks:
            ours.append(instantiate(self.cfg.callbacks.early_stopping))
        return [*ours, callbacks.FiniteLoss()]

    def trainer(self, ours: list[Callback]) -> Trainer:
        if "16 bits" not in self.case:
            return new_trainer(self.cfg, self.model, callbacks=ours, **QUIET)
        half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))
        return instantiate(self.cfg.trainer, plugins=[half, processes.environment()], callbacks=ours, **QUIET)

    def fit(self, batches: Batches | None = None) -> dict[str, object]:
        """What came of it. batches: to train on in the place of the data's."""
        trainer, start = self.trainer(self.callbacks()), copy.deepcopy(self.model.state_dict())
        proxy = self.model.selection.proxy if self.model.selection else None
        proxy_start = proxy and copy.deepcopy(proxy.state_dict())
        if batches:
            self.data.train_dataloader = lambda: DataLoader(batches, batch_size=None)
        try:
            trainer.fit(self.model, self.data)
        except Diverged as error:
            return {"ended": str(error)}
        found = {
            "start": start,
            "weights": copy.deepcopy(self.model.state_dict()),
            "proxy": proxy and (proxy_start, proxy.state_dict()),
            "metrics": {name: value.item() for name, value in trainer.callback_metrics.items()},
            "batches": self.watch.batches,
            "steps": trainer.global_step,
            "epochs": trainer.current_epoch,
            "lr": trainer.optimizers[0].param_groups[0]["lr"],
        }
        return found | self.test(trainer)

    def test(self, trainer: Trainer) -> dict[str, object]:
        (metrics,) = trainer.test(self.model, self.data, verbose=False)
        return {"tested": metrics, "predictions": vars(predictions_of(self.model, self.data))}


def train_all(rank: int, folder: str, port: int, cases: list[str]) -> None:
    processes.take_place(ranks.Place(rank, RANKS, rank, "127.0.0.1", port, "a test"))
    signal.alarm(300)  # ranks that wait for each other for good end all the same
    set_up_logging()
    if rank:
        be_silent()
    torch.set_num_threads(1)
    for case in cases:
        found = Training(case, f"trainer.devices={RANKS}", "trainer.strategy=ddp").fit()
        torch.save(found, Path(folder, f"{case}-{rank}.pt"))


def main(folder: str, *cases: str) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # forked, so that torch is imported once; where one of them fails the other is ended
    start_processes(train_all, (folder, port, cases or CASES), nprocs=RANKS, start_method="fork")


if __name__ == "__main__":
    main(*sys.argv[1:])
