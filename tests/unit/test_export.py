"""cifar-export: each format predicts as the network does, without this package."""

import json
import os
import re
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import record_of
from safetensors import safe_open
from safetensors.torch import load_file

from cifar_resnet import cli, export, load
from cifar_resnet.data import Synthetic
from cifar_resnet.errors import UsageError
from cifar_resnet.models import ResNet
from cifar_resnet.results import card, inference


def exported(trained: Path, *arguments: str) -> int:
    return cli.export([f"checkpoint={trained}", "output=exported", *arguments])


def expected(trained: Path) -> tuple[torch.Tensor, torch.Tensor]:
    images, _ = Synthetic(num_test=10).read(train=False)
    return images.contiguous() / 255, load(trained).predict(images).clone()


def test_safetensors_hold_weights_and_what_rebuilds_them(trained):
    assert exported(trained, "formats=[safetensors]") == 0
    network = load(trained)
    with safe_open("exported/model.safetensors", "pt") as file:
        names = file.keys()
        assert set(names) == set(network.state_dict())
        assert all(torch.equal(file.get_tensor(name), network.state_dict()[name]) for name in names)
        about = {key: json.loads(value) for key, value in file.metadata().items()}
    assert about["hyper_parameters"]["depth"] == 8
    assert about["data"]["classes"] == Synthetic.classes
    assert about["config"]["choices"]["model"] == "resnet_cifar"


@pytest.mark.slow
def test_torch_export_needs_nothing_of_this_package(trained):
    assert exported(trained, "formats=[torch]") == 0
    images, probabilities = expected(trained)
    torch.save(images, "images.pt")
    code = """
import sys, torch
program = torch.export.load("exported/model.pt2").module()
torch.save(program(torch.load("images.pt")).softmax(1), "predictions.pt")
assert "cifar_resnet" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert torch.allclose(torch.load("predictions.pt"), probabilities, atol=1e-4)


@pytest.mark.slow
def test_onnx_runs_in_its_own_runtime(trained):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert exported(trained, "formats=[onnx]") == 0
    images, probabilities = expected(trained)
    session = onnxruntime.InferenceSession("exported/model.onnx")
    for count in (1, 10):
        (logits,) = session.run(None, {"images": images[:count].numpy()})
        assert np.allclose(torch.from_numpy(logits).softmax(1), probabilities[:count], atol=1e-4)


@pytest.mark.slow
def test_onnx_tells_its_classes_and_its_normalisation(trained):
    onnxruntime = pytest.importorskip("onnxruntime")
    assert exported(trained, "formats=[onnx]") == 0
    about = onnxruntime.InferenceSession("exported/model.onnx").get_modelmeta().custom_metadata_map
    data = load(trained).data_state
    assert {key: json.loads(about[key]) for key in ("classes", "mean", "std", "image_size")} == {
        key: data[key] for key in ("classes", "mean", "std", "image_size")
    }
    assert "not normalised" in about["input"]
    assert "logits" in about["output"]


@pytest.mark.slow
@pytest.mark.parametrize(("opset", "ir_version"), [(None, 8), (13, 7), (21, 10)])
def test_onnx_is_written_for_the_runtime_that_is_there(trained, opset, ir_version):
    onnx = pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    assert exported(trained, "formats=[onnx]", *[f"opset={opset}"] * bool(opset)) == 0
    model = onnx.load("exported/model.onnx")
    assert [(each.domain, each.version) for each in model.opset_import] == [("", opset or 18)]
    assert model.ir_version == ir_version  # from onnx's own table of versions
    assert b"cifar_resnet/" not in Path("exported/model.onnx").read_bytes()  # nor where it was written
    images, probabilities = expected(trained)
    (logits,) = onnxruntime.InferenceSession("exported/model.onnx").run(None, {"images": images[:3].numpy()})
    assert np.allclose(torch.from_numpy(logits).softmax(1), probabilities[:3], atol=1e-4)


def test_a_network_that_an_older_opset_cannot_tell_gets_one_line(capfd, tmp_path):
    pytest.importorskip("onnxruntime")

    class Pooled(ResNet):
        def forward(self, images):
            return super().forward(torch.nn.functional.adaptive_avg_pool2d(images, 7))

    network = Pooled(widths=[4, 8, 16], depth=8, shortcut="pad").eval()
    network.data_state = {"mean": [0.5] * 3, "std": [0.2] * 3}
    with pytest.raises(UsageError, match=r"Got opset=11 \(.*adaptive_avg_pool2d.*; give opset=18"):
        export.write_onnx(inference.portable([network]), torch.rand(2, 3, 32, 32), tmp_path / "model.onnx", opset=11)
    assert capfd.readouterr().out == ""


@pytest.mark.slow
def test_an_exported_program_asks_for_no_gradient(trained):
    assert exported(trained, "formats=[torch]") == 0
    images, probabilities = expected(trained)
    logits = torch.export.load("exported/model.pt2").module()(images).numpy()
    assert np.allclose(torch.from_numpy(logits).softmax(1), probabilities, atol=1e-4)


def test_the_model_card_of_weights_alone_can_be_followed(trained):
    assert exported(trained, "formats=[safetensors]") == 0
    card = Path("exported/README.md").read_text()
    (line,) = [line for line in card.splitlines() if "`model.safetensors`" in line]
    assert "weights alone" in line
    assert "(images - mean) / std" in line
    assert "itself" not in card
    found = re.search(r"Normalisation\*\*: mean (\[.*?\]), std (\[.*?\])", card)
    mean, std = (torch.tensor(json.loads(values))[:, None, None] for values in found.groups())
    with safe_open("exported/model.safetensors", "pt") as file:
        arguments = json.loads(file.metadata()["hyper_parameters"])
    network = ResNet(**arguments).eval()
    network.load_state_dict(load_file("exported/model.safetensors"))
    images, probabilities = expected(trained)
    with torch.no_grad():
        assert torch.allclose(network((images - mean) / std).softmax(1), probabilities, atol=1e-4)


@pytest.mark.slow
def test_everything_that_is_left_has_the_mode_that_the_umask_gives(trained, tmp_path):
    run_dir = shutil.copytree(trained, "own")
    before = os.umask(0o027)
    try:
        pytest.importorskip("onnxruntime")
        assert cli.export([f"checkpoint={run_dir}", "formats=[safetensors,torch,onnx]", "output=exported"]) == 0
        assert cli.evaluate([f"checkpoint={run_dir}", "output_dir=evaluated"]) == 0
        assert cli.report([str(run_dir), "output=reported"]) == 0
    finally:
        os.umask(before)
    files = [path for folder in ("exported", "evaluated", "reported") for path in Path(folder).iterdir()]
    assert len(files) == 4 + 3 + 5
    assert {stat.S_IMODE(path.stat().st_mode) for path in files} == {0o640}


def test_an_ensembles_onnx_tells_the_same_and_can_be_written_for_an_older_runtime(sweep_dir):
    onnx = pytest.importorskip("onnx")
    assert exported(sweep_dir, "formats=[onnx]", "opset=13") == 0
    model = onnx.load("exported/model.onnx")
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 13)]
    about, data = {each.key: each.value for each in model.metadata_props}, load(sweep_dir / "seed-0").data_state
    assert json.loads(about["classes"]) == data["classes"]
    assert "log_probabilities" in about["output"]


@pytest.mark.quick_cases(1)
@pytest.mark.parametrize("name", ["safetensors", "torch", "onnx"])
def test_an_ensemble_is_exported_as_one(sweep_dir, name):
    runtime = pytest.importorskip("onnxruntime") if name == "onnx" else None
    assert exported(sweep_dir, f"formats=[{name}]") == 0
    images, _ = expected(sweep_dir / "seed-0")
    each = [expected(sweep_dir / f"seed-{seed}")[1].double().numpy() for seed in (0, 1)]
    if name == "torch":
        found = torch.export.load("exported/model.pt2").module()(images).numpy()
    elif name == "onnx":
        (found,) = runtime.InferenceSession("exported/model.onnx").run(
            ["log_probabilities"], {"images": images.numpy()}
        )
    else:
        tensors, networks = load_file("exported/model.safetensors"), []
        with safe_open("exported/model.safetensors", "pt") as file:
            about = json.loads(file.metadata()["members"])
        for place, member in enumerate(about):
            own = {
                key.removeprefix(f"members.{place}."): each
                for key, each in tensors.items()
                if f"s.{place}." in key[:10]
            }
            network = ResNet(**member["hyper_parameters"]).eval()
            network.load_state_dict(own)
            mean, std = (torch.tensor(member["data"][key])[:, None, None] for key in ("mean", "std"))
            networks.append(network((images - mean) / std).softmax(1).detach().numpy())
        found = np.log(np.mean(networks, axis=0))
    assert np.allclose(np.exp(found), np.mean(each, axis=0), atol=1e-5)
    card = Path("exported/README.md").read_text()
    assert card.startswith("# 2 networks as one")
    assert "log-probabilities: the logarithm of the members' mean probability" in card
    for place, seed in enumerate((0, 1)):
        accuracy = record_of(sweep_dir / f"seed-{seed}")["metrics"]["test/acc"]
        assert f"| member {place}, alone | {accuracy:.2%} |" in card


@pytest.mark.slow
def test_the_card_of_an_ensemble_has_the_scores_of_its_own_evaluation(sweep_dir):
    own = shutil.copytree(sweep_dir, "sweep")
    assert cli.evaluate([f"checkpoint={own}"]) == 0
    assert cli.export([f"checkpoint={own}", "formats=[safetensors]"]) == 0
    scores = json.loads(Path("sweep/evaluation.json").read_text())["scores"]
    card = Path("sweep/export/README.md").read_text()
    assert f"| all together | {scores['acc']:.2%} | {scores['loss']:.4f} |" in card
    member = Path("sweep/seed-0/checkpoints/best.ckpt")
    before, other = member.read_bytes(), torch.load(member, weights_only=True)
    other["state_dict"]["fc.bias"] += 1  # as if it had been trained on
    torch.save(other, member)
    assert cli.export([f"checkpoint={own}", "formats=[safetensors]", "output=later"]) == 0
    assert "all together" not in Path("later/README.md").read_text()
    member.write_bytes(before)
    assert cli.evaluate([f"checkpoint={own}", "tta=flip", "output_dir=sweep"]) == 0
    assert cli.export([f"checkpoint={own}", "formats=[safetensors]"]) == 0
    assert "all together" not in Path("sweep/export/README.md").read_text()  # that takes one view


def test_another_checkpoints_export_has_a_folder_of_its_own(trained):
    own = Path(shutil.copytree(trained, "own"))
    for checkpoint in ("own", "own/checkpoints/best.ckpt", "own/checkpoints/last.ckpt"):
        assert cli.export([f"checkpoint={checkpoint}", "formats=[safetensors]"]) == 0
    assert sorted(path.name for path in own.glob("export*")) == ["export", "export-last"]
    assert "last.ckpt" not in (own / "export" / "README.md").read_text()


@pytest.mark.slow
def test_a_folder_never_holds_two_networks(sweep_dir, capsys):
    assert exported(sweep_dir / "seed-0", "formats=[safetensors]") == 0
    assert exported(sweep_dir / "seed-0", "formats=[torch]") == 0
    card = Path("exported/README.md").read_text()
    assert "`model.safetensors`" in card  # of the same weights
    assert "`model.pt2`" in card
    before = {path.name: path.read_bytes() for path in Path("exported").iterdir()}
    assert exported(sweep_dir / "seed-1", "formats=[safetensors]") == 2
    assert "output holds another network. Got exported with model.pt2;" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in Path("exported").iterdir()} == before
    assert exported(sweep_dir / "seed-1", "formats=[safetensors,torch]") == 0


def test_somebodys_file_is_not_written_over(trained, capsys):
    Path("exported").mkdir()
    Path("exported/model.safetensors").write_bytes(b"mine")
    assert exported(trained, "formats=[safetensors]") == 2
    assert "output holds another network. Got exported with model.safetensors;" in capsys.readouterr().err
    assert Path("exported/model.safetensors").read_bytes() == b"mine"


def test_the_card_of_an_ensemble_says_which_scores_are_with_more_views():
    records = [{"metrics": {"test/acc": 0.9, "test/loss": 0.3}}] * 2
    lines = card.ensemble_scores(records, ["none", "flip"], None, [], "")
    assert lines[-2:] == [
        "| member 0, alone | 90.00% | 0.3000 |",
        "| member 1, alone, with test-time augmentation (flip) | 90.00% | 0.3000 |",
    ]


def test_the_model_card_gives_the_scores_of_the_record(trained):
    assert exported(trained, "formats=[safetensors]") == 0
    card = Path("exported/README.md").read_text()
    metrics = record_of(trained)["metrics"]
    assert f"| test | {metrics['test/acc']:.2%} | {metrics['test/loss']:.4f} |" in card
    assert "disk, ring, square" in card


def test_the_model_card_says_where_the_test_was_of_a_part(cifar_train, run_dirs):
    part = ["data.eval_batch_size=20", "trainer.limit_test_batches=1", "trainer.limit_val_batches=1"]
    assert cifar_train("-m", "seed=0,1", *part) == 0
    first, second = run_dirs()
    for name, given in (("one", first), ("two", f"[{first},{second}]")):
        assert cli.export([f"checkpoint={given}", f"output={name}", "formats=[safetensors]"]) == 0
    card = Path("one/README.md").read_text()
    assert "| 20 of 40 validation images |" in card
    assert "| 20 of 50 test images |" in card
    assert "| member 1, alone, on 20 of 50 test images |" in Path("two/README.md").read_text()


def test_the_model_card_of_another_epoch_has_no_scores(trained):
    own = Path(shutil.copytree(trained, "own"))
    for name in ("best", "last"):
        path = own / "checkpoints" / f"{name}.ckpt"
        torch.save(torch.load(path, weights_only=True) | {"epoch": 7}, path)
        assert cli.export([f"checkpoint={path}", "formats=[safetensors]", "output=other"]) == 0
        assert "| test |" not in Path("other/README.md").read_text()


def test_what_predicts_differently_is_not_left(trained, capsys, monkeypatch):
    write = export.write_safetensors

    def wrong(portable, images, path):
        exported = write(portable, images, path)
        return lambda batch: exported(batch) + 0.1

    monkeypatch.setattr(export, "write_safetensors", wrong)
    assert cli.export([f"checkpoint={trained}", "output=exported/to/here", "formats=[torch,safetensors]"]) == 2
    assert "predicts differently. Got answers 0.1 apart" in capsys.readouterr().err
    assert not Path("exported").exists()
    assert exported(trained, "formats=[safetensors]", "tolerance=1") == 0


def test_a_card_says_how_many_images_an_epoch_saw(cifar_train, run_dirs):
    assert cifar_train("trainer.limit_train_batches=2") == 0
    assert cli.export([f"checkpoint={run_dirs()[0]}", "output=exported", "formats=[safetensors]"]) == 0
    assert (
        "trained by cifar_resnet on 200 images, in each epoch 80 of them; 40 more"
        in Path("exported/README.md").read_text()
    )
