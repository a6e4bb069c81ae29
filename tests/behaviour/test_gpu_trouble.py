"""What a GPU may answer in place of a training: one line each, and what had been trained goes on."""

import pytest
import torch
from helpers import assert_equal, last_of

from cifar_resnet import cli
from cifar_resnet.errors import gpu_trouble
from cifar_resnet.models import Classifier
from cifar_resnet.results import inference

OUT_OF_MEMORY = torch.OutOfMemoryError(
    "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 7.92 GiB of which 1.10 GiB is free."
)
ERRORS = {
    "out of memory": (
        OUT_OF_MEMORY,
        "error: out of memory on the GPU. Got: Tried to allocate 2.00 GiB; with data.batch_size=40; data.batch_size=20 "
        "trainer.accumulate_grad_batches=2 takes as many images a step with half of the memory",
    ),
    "too old a chip": (
        RuntimeError(
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors might be "
            "asynchronously reported at some other API call"
        ),
        "error: CUDA error: no kernel image is available for execution on the device",
    ),
    "a busy chip": (
        RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable\nFor debugging consider passing"),
        "another process has the GPU for itself: wait for it",
    ),
}


@pytest.fixture
def fail(monkeypatch):
    """Have a training's step, counted from 1, raise an error, until called with None."""
    training_step = Classifier.training_step

    def at(step, error=None):
        def failing(self, batch, batch_idx):
            if self.trainer.global_step + 1 == step:
                raise error
            return training_step(self, batch, batch_idx)

        monkeypatch.setattr(Classifier, "training_step", failing if step else training_step)

    return at


@pytest.mark.slow
@pytest.mark.parametrize("case", ERRORS)
def test_a_training_says_so_in_one_line_and_goes_on_later(cifar_train, tmp_path, fail, capsys, case):
    error, expected = ERRORS[case]
    settings = ("trainer.max_epochs=2", "run_dir=run")
    fail(8, error)  # in the second epoch
    assert cifar_train(*settings) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert expected in line
    fail(None)
    assert cli.train(["resume=run"]) == 0
    assert cifar_train(*settings[:1], "run_dir=whole") == 0
    assert_equal(last_of(tmp_path / "run")["state_dict"], last_of(tmp_path / "whole")["state_dict"])


def test_a_first_step_that_has_no_room_is_begun_again(cifar_train, fail, capsys):
    fail(1, OUT_OF_MEMORY)
    assert cifar_train("run_dir=run") == 1
    assert "out of memory on the GPU" in capsys.readouterr().err
    fail(None)
    assert cli.train(["resume=run"]) == 0


def test_other_commands_say_so_as_well(trained, tmp_path, monkeypatch, capsys):
    def fail(*args, **kwargs):
        raise OUT_OF_MEMORY

    monkeypatch.setattr(inference, "log_probabilities", fail)
    assert cli.evaluate([f"checkpoint={trained}", f"output_dir={tmp_path}"]) == 1
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith(
        "error: out of memory on the GPU. Got: Tried to allocate 2.00 GiB; give a smaller batch_size;"
    )


@pytest.mark.parametrize(
    "text", ["mat1 and mat2 shapes cannot be multiplied", "CUDA error: device-side assert triggered"]
)
def test_a_mistake_of_ours_keeps_its_traceback(cifar_train, fail, text):
    fail(1, RuntimeError(text))
    with pytest.raises(RuntimeError, match=text):
        cifar_train()
    assert gpu_trouble(ValueError("CUDA-capable device(s) is/are busy or unavailable")) is None


def test_the_remedy_is_of_the_command_and_of_its_settings():
    (busy, _) = ERRORS["a busy chip"]
    assert gpu_trouble(busy).endswith("give trainer.accelerator=cpu")
    assert gpu_trouble(busy, trains=False).endswith("give accelerator=cpu")
    text = gpu_trouble(OUT_OF_MEMORY, True, 64, 3)
    assert "data.batch_size=32 trainer.accumulate_grad_batches=6 takes as many images" in text
    text = gpu_trouble(OUT_OF_MEMORY, True, 125, 1)
    assert "data.batch_size=25 trainer.accumulate_grad_batches=5 takes as many images a step with a fifth of" in text
    text = gpu_trouble(OUT_OF_MEMORY, True, 127, 1)
    assert "data.batch_size=63 trainer.accumulate_grad_batches=2 takes about as many images" in text
    assert "give a smaller data.batch_size;" in gpu_trouble(OUT_OF_MEMORY, True, 1, 1)
