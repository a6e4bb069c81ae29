"""The commands on a CUDA device that is not there: see fake_cuda.py."""

import importlib
import json
from pathlib import Path

import pytest
import torch
from fake_cuda import FakeGraph, Watch
from helpers import TINY, record_of
from PIL import Image

from cifar_resnet import cli
from cifar_resnet.callbacks import step_graph

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a real one")
BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
AT_WORK = ("trainer.max_epochs=2", "trainer.limit_train_batches=4", "precision=auto", "test=false", "graph=false")


def steady(watch: Watch) -> set[str]:
    """Who waits within a step: not in the first, which draws a picture, nor in an epoch's last, which is looked at."""
    assert not watch.mistakes
    inner = [step for index, step in enumerate(watch.waits) if index % 4 not in (0, 3)]
    assert len(inner) == 4
    return {wait for step in inner for wait in step}


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("optimizer=adamw", "averaging=ema", "model.tta=flip_shift"),
        ("optimizer=sam", "precision=bf16-mixed", "model.dropout=0.1"),
        ("optimizer=muon", "precision=bf16-mixed", "augment.padding_mode=zero", "augment.flip=random"),
        ("augment=randaugment", "augment.mixing=cutmix", "augment.mixing_probability=0.5"),
        ("augment=mixup", "model.drop_block=0.1", "model.drop_block_size=3", "model.squeeze_excitation=4"),
        ("augment=autoaugment",),
        ("resize=progressive", "resize.sizes=[24]", "resize.until=[0.5]", "averaging=lookahead", "averaging.every=2"),
        ("augment=ricap", "model.stem=whitening", "model.stochastic_depth=0.1", "model.shake_drop=0.1"),
        ("trainer.accumulate_grad_batches=2", "data.num_val=0", "data.num_train=200"),
    ],
    ids=lambda options: " ".join(options) or "default",
)
def test_a_training_step_waits_for_nothing(cifar_train, watch, options):
    assert cifar_train(*AT_WORK, *options) == 0
    assert steady(watch) == set()


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "network",
    [
        "speednet", "custom_resnet", "resnet20", "wide_resnet", "resnet18", "rescaled_resnet18", "preact_resnet18",
        "slim_resnet26", "slim_resnet34", "slim_resnet50", "resnet50",
        "preact_resnet_cifar model.depth=29", "pyramidnet model.depth=20",  # of 164 and 110 layers, which are all alike
    ],
)  # fmt: skip
def test_every_network_trains_without_a_wait(watch, network):  # at its size, for nothing is computed
    tiny = [text for text in TINY if not text.startswith("model")]
    assert cli.train([*tiny, *AT_WORK, *f"model={network}".split(), "trainer.limit_val_batches=1"]) == 0
    assert steady(watch) == set()


@pytest.mark.slow
def test_from_a_training_that_was_stopped_to_its_page_an_evaluation_and_predictions(
    cifar_train, watch, run_dirs, tmp_path, send, capsys
):
    options = ("trainer.max_epochs=2", "precision=auto", "page=true", "optimizer=adamw", "averaging=ema")
    send(3)
    assert cifar_train(*options) == 143
    send(None)
    (run_dir,) = run_dirs()
    assert cli.train([f"resume={run_dir}"]) == 0
    assert (run_dir / "page.html").exists()
    assert cli.evaluate([f"checkpoint={run_dir}", f"output_dir={tmp_path / 'evaluated'}"]) == 0
    Image.new("RGB", (32, 32)).save("picture.png")
    assert cli.predict([f"checkpoint={run_dir}", "input=picture.png"]) == 0
    assert "warning" not in capsys.readouterr().err
    assert not watch.mistakes


@pytest.mark.slow
def test_a_student_and_its_teacher(cifar_train, watch, run_dirs):
    assert cifar_train(*AT_WORK) == 0
    watch.waits.clear()
    assert cifar_train(*AT_WORK, f"distill.teacher={run_dirs()[0]}", "model.depth=14") == 0
    assert steady(watch) == set()


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed"])
def test_a_proxy_that_selects_images(cifar_train, watch, precision):
    assert cifar_train(*AT_WORK, f"precision={precision}", "selection=proxy") == 0
    assert steady(watch) == set()


@pytest.mark.slow
@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("precision", ["auto", "32-true"])
def test_networks_side_by_side(cifar_train, watch, precision, capsys):
    assert cifar_train(*AT_WORK, f"precision={precision}", "ensemble.size=2") == 0
    assert steady(watch) == set()
    told = "a step whose gradients overflow in one network is left out by all of them" in capsys.readouterr().out
    assert told == (precision == "auto")  # 16-mixed


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize(
    "options",
    [
        (),
        ("optimizer=adam", "averaging=ema"),
        ("optimizer=muon", "augment=ricap", "model.drop_block=0.1"),
        ("optimizer=adamw", "augment=cutmix", "model.dropout=0.1"),
        ("precision=32-true", "trainer.gradient_clip_val=1"),
    ],
    ids=lambda options: " ".join(options) or "default",
)
def test_the_step_is_recorded_once_and_then_replayed(cifar_train, watch, monkeypatch, options):
    seen = []
    go = step_graph.Recorded.go

    def watched(self):
        go(self)
        seen.append((self.graph is not None, self.indices, self.batch, self.loss))

    monkeypatch.setattr(step_graph.Recorded, "go", watched)
    assert cifar_train("trainer.max_epochs=3", "precision=auto", "test=false", *options) == 0
    (graph,) = FakeGraph.made
    assert [recorded for recorded, *_ in seen] == [False] * 3 + [True] * 11  # the first is Lightning's own
    assert graph.replays == 11
    assert len(graph.generators) == 1
    for _, indices, batch, loss in seen[3:]:  # the same tensors each time
        assert indices is seen[0][1]
        assert batch is seen[0][2]
        assert loss is seen[3][3]
    inner = [step for index, step in enumerate(watch.waits) if index % 5 not in (0, 4)]
    assert not any(inner)
    assert not watch.mistakes
    assert max(step.total() for step in watch.launches[6:9]) < 20  # beside the graph


@pytest.mark.slow
def test_each_size_of_images_is_recorded_once(cifar_train, watch):
    """Of ten steps at each size the first is Lightning's own, and three warm up."""
    shrunk = ("resize=progressive", "resize.sizes=[24]", "resize.until=[0.5]", "averaging=lookahead")
    assert cifar_train("trainer.max_epochs=4", "precision=auto", "test=false", *shrunk) == 0
    assert [graph.replays for graph in FakeGraph.made] == [6, 6]
    assert not watch.mistakes


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "bf16", "expected"),
    [
        (("optimizer=muon",), True, "bf16-mixed"),
        (("optimizer=muon",), False, "16-mixed"),
        (("optimizer=sam",), True, "bf16-mixed"),
        (("optimizer=adam",), True, "16-mixed"),
        (("optimizer=sam", "precision=16-mixed"), True, "16-mixed"),
    ],
    ids=str,
)
def test_optimizers_that_a_loss_scale_slows_are_spared_it_where_the_chip_has_bf16(
    cifar_train, watch, run_dirs, monkeypatch, options, bf16, expected
):
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: bf16)
    assert cifar_train("precision=auto", "trainer.limit_train_batches=3", "graph=false", "test=false", *options) == 0
    assert record_of(run_dirs()[0])["precision"] == expected
    assert not any(watch.waits[1])


@pytest.mark.slow
@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("command", ["model=resnet20", "model=resnet20 optimizer=muon", "model=resnet20 optimizer=sam"])
def test_a_step_launches_no_more_kernels_than_the_record_says(command):
    record = json.loads((BENCHMARKS / "results" / "launches.json").read_text())
    if torch.__version__.partition("+")[0] != record["versions"]["torch"]:
        pytest.skip(f"the record is of torch {record['versions']['torch']}")
    launches = importlib.import_module("launches").launches  # only now, for it hides real devices
    (ours, bare), known = launches(command.split()), {each["command"]: each for each in record["results"]}[command]
    assert ours <= known["ours"]
    assert bare == known["bare"]


@pytest.mark.slow
def test_images_on_the_cpu_are_no_part_of_a_graph(cifar_train, watch):
    assert cifar_train("precision=auto", "data.device=cpu") == 0
    assert not FakeGraph.made
    assert not watch.mistakes


@pytest.mark.slow
def test_what_cannot_be_recorded_after_all_is_trained_and_said(cifar_train, watch, monkeypatch, capsys):
    def fail(*args, **options):
        raise RuntimeError("operation not permitted when stream is capturing. More of it")

    monkeypatch.setattr(torch.cuda, "graph", fail)
    assert cifar_train("precision=auto", "test=false", "trainer.max_epochs=2") == 0
    assert capsys.readouterr().out.count("this step is not replayed as one graph: operation not permitted") == 1
    assert len(watch.waits) == 10
