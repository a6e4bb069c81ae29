"""Distillation: its loss against a closed form, and a teacher that stays out of the student."""

from pathlib import Path

import pytest
import torch
from helpers import TINY, last_of, record_of
from torch.nn.functional import cross_entropy

from cifar_resnet import checkpoints, cli
from cifar_resnet.data import Synthetic
from cifar_resnet.errors import UsageError
from cifar_resnet.models import Distillation, ResNet
from cifar_resnet.models.distillation import check_teacher


@pytest.fixture(scope="module")
def teachers(tmp_path_factory) -> list[str]:
    """Two run folders of networks larger than the student."""
    outputs = tmp_path_factory.mktemp("outputs")
    assert cli.train(["-m", *TINY, "model.widths=[8,8,16]", "seed=0,1", f"output_dir={outputs}"]) == 0
    return [str(path.parent) for path in sorted(outputs.rglob("result.json"))]


def test_the_loss_is_hintons(teachers):
    distillation = Distillation([checkpoints.load(path) for path in teachers], temperature=3.0, weight=0.7)
    data = checkpoints.read(teachers[0])["data"]
    distillation.setup(torch.device("cpu"), data)
    images, labels = torch.randn(6, 3, 32, 32), torch.randint(10, (6,))
    logits = torch.randn(6, 10, requires_grad=True)
    loss = distillation(images, logits, cross_entropy(logits, labels))
    with torch.no_grad():
        taught = sum((checkpoints.load(path)(images) / 3).softmax(1) for path in teachers) / 2
    student = (logits / 3).softmax(1)
    divergence = (taught * (taught / student).log()).sum(1).mean()
    torch.testing.assert_close(loss, 0.3 * cross_entropy(logits, labels) + 0.7 * 9 * divergence)


def test_a_teacher_teaches_in_eval_mode_whichever_it_comes_in():
    teacher = ResNet(depth=8, widths=[4, 8, 8], dropout=0.5)
    statistics = {name: value.clone() for name, value in teacher.named_buffers()}
    distillation = Distillation([teacher.train()])
    distillation.rescale = [(1, 0)]
    images = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(distillation.probabilities(images), distillation.probabilities(images))
    assert all(torch.equal(value, statistics[name]) for name, value in teacher.named_buffers())


def test_a_loss_of_ones_own_takes_the_place_of_that_on_labels_alone(teachers):
    class Own(ResNet):
        def loss_of(self, images, logits, labels):
            return logits.sum() * 0 + 7

    student = Own(depth=8, widths=[4, 8, 8], distillation=lambda images, logits, loss: 0.25 * loss + 1)
    loss, _ = student.loss(torch.randn(4, 3, 32, 32), torch.arange(4))
    assert loss == 0.25 * 7 + 1


def test_a_teacher_sees_images_normalised_as_it_learned_them(teachers):
    distillation = Distillation([checkpoints.load(teachers[0])])
    data = checkpoints.read(teachers[0])["data"]
    pixels = torch.rand(4, 3, 32, 32)

    def normalised(mean, std):
        return (pixels - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    distillation.setup(torch.device("cpu"), data)
    expected = distillation.probabilities(normalised(data["mean"], data["std"]))
    other = data | {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.4, 0.3]}
    distillation.setup(torch.device("cpu"), other)
    torch.testing.assert_close(distillation.probabilities(normalised(other["mean"], other["std"])), expected)


def test_a_student_is_trained_and_its_teachers_are_not(cifar_train, run_dirs, teachers, monkeypatch):
    before = [checkpoints.read(path)["state_dict"] for path in teachers]
    made = []
    __init__ = Distillation.__init__
    monkeypatch.setattr(
        Distillation, "__init__", lambda self, *args, **kw: (made.append(self), __init__(self, *args, **kw))[1]
    )
    assert cifar_train() == 0
    assert cifar_train(f"distill.teacher=[{','.join(teachers)}]", "distill.weight=0.5") == 0
    plain, student = run_dirs()
    assert record_of(plain)["parameters"] == record_of(student)["parameters"]
    teaching = sum(2 * record_of(Path(path))["macs"] * record_of(student)["images"] for path in teachers)
    assert record_of(student)["training_flops"] == record_of(plain)["training_flops"] + teaching
    assert last_of(plain)["state_dict"].keys() == last_of(student)["state_dict"].keys()
    assert not torch.equal(last_of(plain)["state_dict"]["fc.weight"], last_of(student)["state_dict"]["fc.weight"])
    for network, state in zip(made[-1].networks, before, strict=True):
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        assert not any(parameter.requires_grad for parameter in network.parameters())


def test_a_teacher_stays_in_eval_mode_while_its_student_trains(cifar_train, teachers, monkeypatch):
    modes = []
    probabilities = Distillation.probabilities

    def watched(self, images):
        result = probabilities(self, images)
        modes.append([network.training for network in self.networks])
        assert not result.requires_grad
        return result

    monkeypatch.setattr(Distillation, "probabilities", watched)
    assert cifar_train(f"distill.teacher={teachers[0]}") == 0
    assert modes == [[False]] * 5


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("distill.teacher=nowhere", "no checkpoint. Got nowhere"),
        ("distill.temperature=0", "distill.temperature must be a number above 0. Got 0"),
        ("distill.weight=2", "distill.weight must be a number from 0 to 1. Got 2"),
    ],
)
def test_mistakes_get_one_line(cifar_train, teachers, capsys, setting, message):
    settings = [setting] if "teacher" in setting else [f"distill.teacher={teachers[0]}", setting]
    assert cifar_train(*settings) == 2
    assert message in capsys.readouterr().err


def test_a_teacher_of_other_pixels_is_refused(teachers):
    teacher, classes = checkpoints.load(teachers[0]), list(Synthetic.classes)
    check_teacher(teachers[0], teacher, [32], classes)
    with pytest.raises(ValueError, match="trained on 32 pixels, and images of 64"):
        check_teacher(teachers[0], teacher, [64], classes)


def test_a_teacher_that_cannot_see_smaller_images_is_refused_before_training(teachers, monkeypatch):
    teacher, classes = checkpoints.load(teachers[0]), list(Synthetic.classes)
    whole = type(teacher).forward

    def of_32_pixels(self, images):
        assert images.shape[-1] == 32, "Wrong image height!"
        return whole(self, images)

    monkeypatch.setattr(type(teacher), "forward", of_32_pixels)
    check_teacher(teachers[0], teacher, [32], classes)
    with pytest.raises(UsageError, match=r"24 pixels among them. Got .*: ResNet cannot take images of 24 pixels"):
        check_teacher(teachers[0], teacher, [32, 24], classes)


def test_a_teacher_of_other_classes_is_refused(cifar_train, run_dirs, teachers, monkeypatch, capsys):
    monkeypatch.setattr(Synthetic, "classes", [name.upper() for name in Synthetic.classes])
    assert cifar_train(f"distill.teacher={teachers[0]}") == 2
    assert "must know the student's classes" in capsys.readouterr().err
    assert not run_dirs()
