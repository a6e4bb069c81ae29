"""On a real GPU, by `make test-gpu`: the same numbers as on the CPU, and every part of the product. Else skipped."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TINY, assert_equal, last_of, record_of

from cifar_resnet import cli
from cifar_resnet.compose import Composer
from cifar_resnet.data import Augment, Synthetic
from cifar_resnet.instantiation import instantiate
from cifar_resnet.results.predictions import Predictions

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU, and make test-gpu")
DEVICE = "cuda"
HALF = ("precision=auto", "page=true", "trainer.max_epochs=2")


def network(*overrides: str) -> torch.nn.Module:
    torch.manual_seed(0)
    cfg = Composer("train").jobs(["run_dir=unused", *overrides])[0].cfg
    return instantiate(cfg.model, num_classes=10, optimizer=cfg.optimizer, scheduler=cfg.scheduler, _convert_="all")


@pytest.fixture
def exact(monkeypatch):
    """No TF32 anywhere."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    yield
    torch.set_float32_matmul_precision(before)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    return ((a - b).norm() / b.norm()).item()


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=resnet18",),
        ("model=resnet50",),
        ("model=resnet20",),
        ("model=resnet20", "model.squeeze_excitation=4", "model.stem=whitening"),
        ("model=preact_resnet18",),
        ("model=wide_resnet",),
        ("model=pyramidnet", "model.depth=20"),
        ("model=custom_resnet",),
        ("model=speednet",),
    ],
    ids=" ".join,
)
def test_logits_are_those_of_the_cpu(exact, overrides):
    model = network(*overrides).eval()
    images = torch.randn(16, 3, 32, 32)
    with torch.no_grad():
        on_cpu = model(images)
        on_gpu = model.to(DEVICE, memory_format=torch.channels_last)(images.to(DEVICE))
    assert distance(on_gpu, on_cpu) < 1e-4


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw", "muon", "sam", "asam"])
def test_steps_of_each_optimizer_are_those_of_the_cpu(exact, optimizer):
    """Two steps, the second with momentum: how far the weights moved, in the same direction."""
    on_cpu = network("model=resnet20", "model.depth=8", f"optimizer={optimizer}").train()
    on_gpu = copy.deepcopy(on_cpu).to(DEVICE, memory_format=torch.channels_last)
    before = torch.cat([weight.detach().flatten() for weight in on_cpu.parameters()])
    images, labels = torch.randn(32, 3, 32, 32), torch.randint(10, (32,))
    moved = []
    for model, device in ((on_cpu, "cpu"), (on_gpu, DEVICE)):
        step, _ = model.build_optimizer(total_steps=10)

        def closure(model=model, step=step, device=device):
            step.zero_grad()
            loss = F.cross_entropy(model(images.to(device)), labels.to(device))
            loss.backward()
            return loss

        for _ in range(2):
            step.step(closure)
        moved.append(torch.cat([weight.detach().cpu().flatten() for weight in model.parameters()]) - before)
    # Adam goes by the signs of gradients near zero, Muon orthogonalises in bfloat16
    assert distance(moved[1], moved[0]) < (0.06 if optimizer in ("adam", "adamw", "muon") else 0.01)


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("optimizer=adam", "scheduler=one_cycle", "scheduler.max_lr=0.01"),
        ("optimizer=adamw", "averaging=ema", "model.tta=flip_shift"),
        ("optimizer=sam", "model.dropout=0.1"),
        ("optimizer=asam", "precision=bf16-mixed"),
        ("optimizer=muon", "augment.padding_mode=zero", "augment.flip=random"),
        ("optimizer=muon", "precision=bf16-mixed", "trainer.gradient_clip_val=1"),
        ("augment=autoaugment",),
        ("augment=randaugment", "augment.mixing=cutmix", "augment.mixing_probability=0.5"),
        ("augment=mixup", "model.drop_block=0.1", "model.drop_block_size=3", "model.squeeze_excitation=4"),
        ("augment=ricap", "model.stem=whitening", "model.stochastic_depth=0.1", "model.shake_drop=0.1"),
        ("trainer.accumulate_grad_batches=2", "trainer.gradient_clip_val=1"),
        ("trainer.deterministic=true", "precision=32-true", "model.pool_size=2"),
        ("callbacks=early_stopping", "trainer.check_val_every_n_epoch=2"),
        ("ensemble.size=2",),
        ("ensemble.size=2", "precision=32-true"),
        ("scheduler=multistep",),
        ("data.device=cpu",),
        ("resize=progressive", "averaging=lookahead"),
    ],
    ids=lambda options: " ".join(options) or "default",
)
def test_a_training_with_its_record_and_page(cifar_train, run_dirs, capsys, options):
    assert cifar_train(*HALF, *options) == 0
    assert "warning" not in capsys.readouterr().err.lower()
    for run_dir in run_dirs():
        record = record_of(run_dir)
        assert torch.cuda.get_device_name() in record["device"]
        assert 0 <= record["metrics"]["test/acc"] <= 1
        assert (run_dir / "page.html").exists()


def test_images_are_augmented_where_they_lie():
    data = Synthetic(num_train=240, num_val=40, batch_size=40, device=DEVICE, augment=Augment(policy="randaugment"))
    data.prepare_data()
    data.setup("fit")
    assert [part.device.type for part in next(iter(data.train_dataloader()))] == [DEVICE, DEVICE]


def test_compiled(cifar_train, run_dirs):
    assert cifar_train(*HALF, "compile=true") == 0
    assert (run_dirs()[0] / "page.html").exists()


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("optimizer=adam", "augment=cutmix", "model.dropout=0.1"),
        ("optimizer=adamw", "averaging=ema", "scheduler=one_cycle", "scheduler.max_lr=0.01"),
        ("optimizer=muon", "precision=bf16-mixed"),
        ("optimizer=muon", "precision=16-mixed"),
        ("precision=32-true", "trainer.gradient_clip_val=1", "model.drop_block=0.1", "model.drop_block_size=3"),
        ("model.label_smoothing=0.1", "augment=ricap", "scheduler=multistep"),
        ("resize=progressive", "resize.sizes=[24]", "resize.until=[0.5]", "averaging=lookahead"),
    ],
    ids=" ".join,
)
def test_a_step_as_one_graph_trains_as_steps_of_many_kernels_do(cifar_train, run_dirs, capsys, options):
    """From epoch to epoch, with another learning rate, other images and other noise in each step."""
    given = ("precision=auto", "trainer.max_epochs=3", "trainer.deterministic=true", *options)
    assert cifar_train(*given, "graph=false") == 0
    assert cifar_train(*given, "graph=true") == 0
    assert "warning" not in "".join(capsys.readouterr()).lower()
    plain, graphed = (last_of(run_dir) for run_dir in run_dirs())
    for key, weights in plain["state_dict"].items():
        torch.testing.assert_close(graphed["state_dict"][key], weights, rtol=1e-3, atol=1e-4, msg=key)
    one, other = (record_of(run_dir)["metrics"] for run_dir in run_dirs())
    assert one["train/loss"] == pytest.approx(other["train/loss"], rel=1e-3)


@pytest.mark.parametrize("augment", ["standard", "randaugment"])  # the second is drawn on the host: no graph
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "sam", "muon"])
def test_stopped_within_an_epoch_and_resumed_equals_never_stopped(cifar_train, run_dirs, send, optimizer, augment):
    options = (f"optimizer={optimizer}", "precision=auto", "trainer.max_epochs=3", "trainer.deterministic=true")
    options += (f"augment={augment}", "augment.mixing=cutmix")
    assert cifar_train(*options) == 0
    send(8)
    assert cifar_train(*options) == 128 + 15
    send(None)
    whole, stopped = run_dirs()
    assert cli.train([f"resume={stopped}"]) == 0
    for key in ("state_dict", "optimizer_states"):
        assert_equal(last_of(whole)[key], last_of(stopped)[key], key)


def test_a_run_stopped_on_the_gpu_goes_on_on_a_cpu(cifar_train, run_dirs, send):
    options = ("precision=32-true", "trainer.max_epochs=3")
    send(8)
    assert cifar_train(*options) == 128 + 15
    send(None)
    (stopped,) = run_dirs()
    assert cli.train([f"resume={stopped}", "trainer.accelerator=cpu"]) == 0
    assert record_of(stopped)["epochs"] == 3


def test_what_was_trained_here_is_evaluated_predicted_and_exported(cifar_train, run_dirs, tmp_path, exact, capsys):
    assert cifar_train(*HALF) == 0
    (run_dir,) = run_dirs()
    on = {}
    for accelerator in ("cpu", "gpu"):
        output = tmp_path / accelerator
        assert cli.evaluate([f"checkpoint={run_dir}", f"accelerator={accelerator}", "precision=32-true",
                             f"output_dir={output}"]) == 0  # fmt: skip
        on[accelerator] = Predictions.load(next(output.rglob("predictions.npz"))).log_probs
    np.testing.assert_allclose(on["gpu"], on["cpu"], atol=1e-3)
    assert cli.export([f"checkpoint={run_dir}"]) == 0


def test_learning_rates_are_searched():
    assert cli.find_lr([*TINY, "precision=auto", "range_test.steps=20", "range_test.probe_steps=20"]) == 0
    options = ["search.trials=2", "optimizer.lr=interval(0.01,0.1)"]
    assert cli.search([*TINY, "precision=auto", *options]) == 0


def test_a_sweep_is_reported(tmp_path):
    assert cli.train(["-m", *TINY, "precision=auto", "seed=0,1", "output_dir=outputs"]) == 0
    assert cli.report(["outputs", f"output={tmp_path / 'report'}"]) == 0
