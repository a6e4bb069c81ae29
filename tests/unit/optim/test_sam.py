"""SAM against a hand-written loop: weights, BatchNorm's buffers, metrics and counts, in every precision."""

import copy
from functools import partial

import pytest
import torch
from helpers import TINY, last_of, record_of, rows_of
from lightning.pytorch import Callback, Trainer
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.functional import cross_entropy

from cifar_resnet.compose import Composer
from cifar_resnet.instantiation import instantiate
from cifar_resnet.models import Classifier
from cifar_resnet.optim import SAM
from cifar_resnet.optim import SGD as CarefulSGD
from cifar_resnet.precision import ScaledPrecision

RHO = {"sam": 0.05, "asam": 0.5}


@pytest.fixture(autouse=True)
def no_kinks(monkeypatch):
    """Where a ReLU's input is all but zero, rounding decides whether a gradient passes, and that is no small change."""
    monkeypatch.setattr(functional, "relu", lambda x, inplace=False: functional.softplus(x))


class Setting(Callback):
    """A training by `Classifier` and Lightning's Trainer, and what went into it."""

    def __init__(self, *overrides: str, precision: str = "32-true", clip: float | None = None, accumulate: int = 1):
        (job,) = Composer("train").jobs([*TINY, "augment=none", "optimizer.lr=0.05", *overrides])
        cfg = job.cfg
        torch.manual_seed(1)
        self.data = instantiate(cfg.data, augment=cfg.augment, _convert_="all")
        recipe = {"optimizer": cfg.optimizer, "scheduler": cfg.scheduler}
        self.model = instantiate(cfg.model, num_classes=10, **recipe, _convert_="all")
        self.start = copy.deepcopy(self.model)
        self.clip, self.accumulate, self.precision = clip, accumulate, precision
        self.batches: list[tuple[Tensor, Tensor]] = []
        plugins = []
        if precision == "16-mixed":
            plugins = [ScaledPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))]
        self.trainer = Trainer(
            max_epochs=1,
            accelerator="cpu",
            precision=None if plugins else precision,
            plugins=plugins,
            callbacks=[self],
            gradient_clip_val=clip,
            accumulate_grad_batches=accumulate,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            use_distributed_sampler=False,
        )

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        self.batches.append(batch)

    def fit(self) -> None:
        self.trainer.fit(self.model, self.data)


def by_hand(setting: Setting, kind: str) -> tuple[nn.Module, list[float]]:
    """SAM as its paper says it, in plain PyTorch; returns the network and the losses of the first passes."""
    model = setting.start.to(memory_format=torch.channels_last).train()
    parameters = list(model.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.05, momentum=0.9, nesterov=True, weight_decay=5e-4)
    groups = [
        setting.batches[at : at + setting.accumulate] for at in range(0, len(setting.batches), setting.accumulate)
    ]
    sizes = [len(group) for group in groups for _ in group]  # of the step that a batch belongs to
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, len(groups))
    half = setting.precision == "16-mixed"
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0, enabled=half)
    dtype = {"16-mixed": torch.float16, "bf16-mixed": torch.bfloat16}.get(setting.precision)
    losses = []

    def gradients(images: Tensor, labels: Tensor, size: int) -> tuple[list[Tensor], float]:
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            loss = cross_entropy(model(images), labels, label_smoothing=model.label_smoothing)
        scale = scaler.get_scale() if half else 1.0
        found = torch.autograd.grad(loss / size * scale, parameters)
        return [gradient / scale for gradient in found], loss.item()

    for index, (images, labels) in enumerate(setting.batches):
        first, loss = gradients(images, labels, sizes[index])
        losses.append(loss)
        buffers = {name: value.clone() for name, value in model.named_buffers()}
        with torch.no_grad():
            before = [parameter.clone() for parameter in parameters]
            if kind == "asam":
                scales = [parameter.abs() + 0.01 for parameter in parameters]
            else:
                scales = [torch.ones_like(parameter) for parameter in parameters]
            norm = sum((scale * g).square().sum() for scale, g in zip(scales, first, strict=True)).sqrt()
            for parameter, scale, g in zip(parameters, scales, first, strict=True):
                parameter += RHO[kind] * scale**2 * g / norm
        second, _ = gradients(images, labels, sizes[index])
        with torch.no_grad():
            for parameter, old in zip(parameters, before, strict=True):
                parameter.copy_(old)
            for name, value in model.named_buffers():
                value.copy_(buffers[name])
        for parameter, g in zip(parameters, second, strict=True):
            parameter.grad = g if parameter.grad is None else parameter.grad + g
        if (index + 1) % setting.accumulate == 0 or index + 1 == len(sizes):
            if setting.clip:
                torch.nn.utils.clip_grad_norm_(parameters, setting.clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return model, losses


def distance(a: nn.Module, b: nn.Module) -> float:
    """The largest difference of any weight or statistic."""
    other = b.state_dict()
    return max((value - other[name]).abs().max().item() for name, value in a.state_dict().items())


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    ("kind", "precision"),
    [
        ("sam", "32-true"),
        ("sam", "bf16-mixed"),
        ("sam", "16-mixed"),
        ("asam", "32-true"),
        pytest.param("asam", "bf16-mixed", marks=pytest.mark.slow),
        pytest.param("asam", "16-mixed", marks=pytest.mark.slow),
    ],
)
@pytest.mark.parametrize(
    ("clip", "accumulate", "more"),
    [
        (None, 1, ()),
        (0.5, 1, ("model.label_smoothing=0.1",)),
        (0.5, 2, ("augment.mixing=mixup",)),
        (None, 3, ()),  # and the last step of one batch
    ],
)
def test_sam_equals_a_loop_by_hand(kind, precision, clip, accumulate, more):
    options = {"precision": precision, "clip": clip, "accumulate": accumulate}
    setting = Setting(f"optimizer={kind}", "data.num_train=200", *more, **options)
    setting.fit()
    plain = Setting("optimizer=sgd", "optimizer.fused=false", "data.num_train=200", *more, **options)
    plain.fit()
    expected, losses = by_hand(setting, kind)
    assert len(setting.batches) == 4
    error = distance(setting.model, expected)
    assert error < (1e-6 if precision == "32-true" else 1e-3)  # 16 bits: a rounding may fall to the other side
    assert error < distance(setting.model, plain.model) / 8
    trackers = [value for name, value in setting.model.named_buffers() if name.endswith("num_batches_tracked")]
    assert all(tracker == 4 for tracker in trackers)
    assert setting.trainer.global_step == -(-4 // accumulate)
    logged = setting.trainer.callback_metrics
    assert logged["train/loss"].item() == pytest.approx(sum(losses) / 4, rel=1e-3)


@pytest.mark.quick_cases(2)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("which", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_that_is_not_finite_skips_the_step(precision, which, accumulate, monkeypatch):
    """The first pass of the second batch, or its second pass, returns a loss of nan."""
    calls = []
    loss_of = Classifier.loss
    weights = []

    def spoiled(self, images, labels):
        calls.append(1)
        loss, logits = loss_of(self, images, labels)
        return (loss * float("nan") if len(calls) == 2 + which else loss), logits

    monkeypatch.setattr(Classifier, "loss", spoiled)
    monkeypatch.setattr(
        Classifier,
        "on_train_batch_end",
        lambda self, *_: weights.append([parameter.detach().clone() for parameter in self.parameters()]),
    )
    setting = Setting("optimizer=sam", "data.num_train=200", precision=precision, accumulate=accumulate)
    setting.fit()
    step = 1 if accumulate == 1 else 0  # the step that the second batch belongs to
    last_batch = (step + 1) * accumulate - 1
    before = weights[last_batch - accumulate] if step else list(setting.start.parameters())
    assert all(torch.equal(a.cpu(), b.cpu()) for a, b in zip(before, weights[last_batch], strict=True))
    assert all(parameter.isfinite().all() for parameter in setting.model.parameters())
    assert not all(torch.equal(a, b) for a, b in zip(weights[last_batch], weights[-1], strict=True))


def test_both_passes_see_the_same_pixels_and_the_same_masks(monkeypatch):
    seen = []
    forward = Classifier.__call__

    def watched(self, images):
        logits = forward(self, images)
        seen.append((self.training, images, self.features_kept))
        return logits

    setting = Setting("optimizer=sam", "model.dropout=0.5", "augment=standard")
    setting.model.dropout.register_forward_hook(
        lambda module, inputs, output: setattr(setting.model, "features_kept", output != 0)
    )
    monkeypatch.setattr(Classifier, "__call__", watched)
    setting.fit()
    passes = [(images, kept) for training, images, kept in seen if training]
    assert len(passes) == 2 * 5
    for (images, kept), (again, kept_again) in zip(passes[::2], passes[1::2], strict=True):
        assert images is again
        assert (kept == kept_again).float().mean() > 0.95  # a ReLU may go dark at the other weights
    assert (passes[0][1] != passes[2][1]).any()


def test_the_direction_does_not_depend_on_the_scale_of_the_loss():
    moved = []
    for scale in (1.0, 65536.0):
        weight = nn.Parameter(torch.tensor([3.0, 4.0]))
        optimizer = SAM([weight], torch.optim.SGD, rho=0.1)
        weight.grad = torch.tensor([0.6, 0.8]) * scale
        optimizer.perturb()
        moved.append(weight.detach().clone())
        optimizer.restore()
        assert torch.equal(weight, torch.tensor([3.0, 4.0]))
    torch.testing.assert_close(moved[0], torch.tensor([3.06, 4.08]))
    torch.testing.assert_close(moved[0], moved[1])


@pytest.mark.parametrize("base", [torch.optim.Adam, CarefulSGD])
def test_a_fused_base_skips_on_the_device_what_is_not_finite(base):
    weight = nn.Parameter(torch.ones(3))
    twin = nn.Parameter(torch.ones(3))
    options = {"momentum": 0.9} if base is CarefulSGD else {}
    optimizer = SAM([weight], partial(base, fused=True, **options), lr=0.1, weight_decay=0.0)
    plain = base([twin], lr=0.1, fused=False, **options)
    for gradient in (float("nan"), 1.0, float("inf"), 2.0):
        weight.grad = torch.full((3,), gradient)
        optimizer.step()
        if torch.tensor(gradient).isfinite():
            twin.grad = torch.full((3,), gradient)
            plain.step()
        torch.testing.assert_close(weight, twin)


def test_zero_gradients_move_nothing():
    weight = nn.Parameter(torch.ones(2))
    optimizer = SAM([weight], torch.optim.SGD)
    weight.grad = torch.zeros(2)
    optimizer.perturb()
    assert torch.equal(weight, torch.ones(2))


def test_sam_wraps_any_optimizer_from_the_command_line(cifar_train, run_dirs):
    base = ["optimizer@optimizer.base=adamw", "optimizer.lr=1e-3"]
    assert cifar_train("optimizer=sam", *base) == 0
    assert cifar_train("optimizer=adamw", "optimizer.lr=1e-3") == 0
    sam, adamw = run_dirs()
    decays = [last_of(run)["optimizer_states"][0]["param_groups"][0]["weight_decay"] for run in (sam, adamw)]
    assert decays[0] == decays[1] == record_of(adamw)["config"]["optimizer"]["weight_decay"]
    assert record_of(sam)["steps"] == record_of(adamw)["steps"] == 5
    assert record_of(sam)["training_flops"] == 2 * record_of(adamw)["training_flops"]
    assert rows_of(sam)[0]["train/loss"] != rows_of(adamw)[0]["train/loss"]
    states = [last_of(run)["optimizer_states"][0]["state"][0].keys() for run in (sam, adamw)]
    assert states[0] == states[1] == {"step", "exp_avg", "exp_avg_sq"}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ([], 5e-4),
        (["optimizer@optimizer.base=adam"], 0.0),
        (["optimizer.weight_decay=0.1"], 0.1),
        (["optimizer.base.weight_decay=0.1"], 0.1),
    ],
)
def test_rate_and_weight_decay_are_the_bases_own_unless_they_are_given(given, expected):
    (job,) = Composer("train").jobs(["optimizer=sam", *given])
    optimizer = instantiate(job.cfg.optimizer)([nn.Parameter(torch.ones(1))])
    assert optimizer.param_groups[0]["weight_decay"] == expected
    base = given[0].partition("base=")[2] if given and "base=" in given[0] else "sgd"
    rate = Composer("train").jobs([f"optimizer={base}"])[0].cfg.optimizer.lr
    assert optimizer.param_groups[0]["lr"] == rate
    (job,) = Composer("train").jobs(["optimizer=sam", *given, "optimizer.lr=0.3"])
    assert instantiate(job.cfg.optimizer)([nn.Parameter(torch.ones(1))]).param_groups[0]["lr"] == 0.3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rho": 0.0}, "rho must be a number above 0. Got 0.0"),
        ({"eta": -1.0}, "eta must be a number, 0 or more. Got -1.0"),
    ],
)
def test_impossible_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        SAM([nn.Parameter(torch.ones(1))], torch.optim.SGD, **options)
