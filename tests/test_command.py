"""Command lines: what is understood, and what is answered with one clear line."""

import subprocess
import sys
from pathlib import Path

import pytest
from conftest import record_of

from cifar_resnet import runs, train
from cifar_resnet.command import Composer, fits

SMALL = ("data=synthetic", "data.num_train=240", "data.num_val=40", "data.batch_size=40", "model=resnet_cifar")
SMALL = (*SMALL, "trainer.accelerator=cpu")
MISTAKES = {
    # unknown keys
    "trainer.max_epoch=5": "unknown key trainer.max_epoch. Did you mean trainer.max_epochs",
    "max_epochs=5": "unknown key max_epochs. Did you mean trainer.max_epochs",
    "optimiser=sgd": "unknown key optimiser. Did you mean optimizer",
    "optimizer.learning_rate=1": "unknown key optimizer.learning_rate",
    "model.net.width=3": "unknown key model.net.width",
    # unknown choices
    "model=resnet19": "unknown model 'resnet19'. Did you mean resnet1",
    "optimizer=sdg": "unknown optimizer 'sdg'. Did you mean sgd?",
    "experiment=quickstrat": "Did you mean quickstart?",
    # behind +
    "+trainer.max_epoch=5": "unknown key trainer.max_epoch. Did you mean trainer.max_epochs",
    "+model.droput=0.5": "unknown key model.droput. Did you mean model.dropout",
    "+optimizer.nesterof=true": "unknown key optimizer.nesterof. Did you mean optimizer.nesterov",
    "+augment.cutot_size=8": "Did you mean augment.cutout_size",
    "+sed=3": "unknown key sed. Did you mean",
    "+trainr.max_epochs=5": "unknown key trainr.max_epochs. Did you mean trainer.max_epochs",
    # options
    "--multi": "unknown option --multi",
    "--run": "unknown option --run",
    # wrong types
    "trainer.max_epochs=many": "trainer.max_epochs must be a number, such as 200. Got trainer.max_epochs=many",
    "optimizer.lr=fast": "optimizer.lr must be a number",
    "data.batch_size=[1,2]": "data.batch_size must be a number",
    "optimizer.nesterov=3": "optimizer.nesterov must be true or false",
    "trainer.max_epochs=2.5": "trainer.max_epochs must be a whole number. Got 2.5",
    "model.widths=[a,b,c]": "model.widths[0] must be a number. Got 'a'",
    "seed=x": "seed must be a number",
    # values that cannot be
    "trainer.max_epochs=-1": "trainer.max_epochs counts epochs. Got -1",
    "data.batch_size=0": "data.batch_size counts images. Got 0",
    "optimizer.lr=-0.1": "optimizer.lr must not be negative. Got -0.1",
    "model.depth=9": "model.depth must be 6n + 2 here. Got 9; the nearest is 8",
    "precision=16-mixed": "precision=16-mixed needs a GPU",
    "scheduler.end_factor=2": "scheduler.end_factor is a fraction. Got 2",
    "callbacks.augmented_batch.num_images=0": "callbacks.augmented_batch.num_images counts images. Got 0",
    "trainer.accelerator=abacus": "abacus",
    "trainer.limit_val_batches=0": "no epoch would be validated",
    "trainer.check_val_every_n_epoch=500": "no epoch would be validated",
    "model.blocks=[1,1,1]": "model.blocks and model.depth exclude each other",
    # grammar
    "optimizer.lr=0.1,0.2": "put -m in front, or give a list: optimizer.lr=[0.1,0.2]",
    "optimizer.lr": "optimizer.lr",
    "optimizer.lr=[0.1": "put it in quotes within quotes: \"optimizer.lr='[0.1'\"",
    "=3": "a setting is key=value. Got =3",
    "model=18": "model is chosen by name. Got model=18. Choices: custom_resnet",
    "scheduler=null": "no scheduler at all is ~scheduler",
    "~optimizer": "~ takes away scheduler, averaging, a callback or a logger. Got ~optimizer",
    "~trainer.max_epochs": "Got ~trainer.max_epochs",
    "callbacks=[]": "nothing works without callbacks",
    "callbacks.best=null": "~callbacks.best takes it away",
    "ensemble=null": "ensemble must be settings",
    "output_dir=null": "output_dir must be text, such as outputs",
    "optimizer.lr=nan": "optimizer.lr must be a finite number",
    "model.block=null": "model.block is null. Give basic, bottleneck",
    "ensemble.size=null": "ensemble.size is null. Give 1 or more",
    "augment.crop_padding=null": "augment.crop_padding is null. Give 0 or more",
    "optimizer=adam optimizer.betas=[0.9]": "optimizer.betas are two numbers. Got [0.9]",
    "trainer.max_epochs=???": "trainer.max_epochs",
    "name=../x": "name is that of a folder in output_dir. Got '../x'",
    "hydra.run.dir=/tmp": "run folders and sweeps are not Hydra's here",
}


@pytest.mark.parametrize(("mistake", "answer"), MISTAKES.items())
def test_a_mistake_gets_one_clear_line_exit_code_2_and_no_folder(capsys, mistake, answer):
    assert train.main([*SMALL, *mistake.split()]) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    assert answer in captured.err
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize(
    "what", ["~scheduler", "~callbacks.best", "~callbacks.last", "~callbacks.metrics", "~logger.tensorboard"]
)
def test_what_a_training_can_do_without_may_be_taken_away(cifar_train, run_dirs, what):
    assert cifar_train(what) == 0
    (run_dir,) = run_dirs()
    assert record_of(run_dir)["epochs"] == 1


@pytest.mark.parametrize(
    "overrides",
    [
        ["++trainer.max_epochs=1", "++model.dropout=0.1"],
        ["model.kernel_sizes=[3,1,3]"],
        ["data.num_val=0.2", "optimizer.momentum=0.5", "augment.policy=null", "trainer.gradient_clip_val=null"],
    ],
)
def test_what_is_unusual_but_right_trains(cifar_train, overrides):
    assert cifar_train(*overrides) == 0


def test_a_sweep_over_nothing_is_refused(cifar_train, capsys):
    assert cifar_train("-m", "seed=range(0,0)") == 2
    assert "nothing to try. Got" in capsys.readouterr().err


def test_the_jobs_of_a_sweep_are_checked_before_the_first_starts(cifar_train, capsys):
    assert cifar_train("-m", "optimizer.lr=0.1,fast") == 2
    assert "optimizer.lr must be a number" in capsys.readouterr().err
    assert list(Path.cwd().iterdir()) == []


def test_an_image_folder_without_images_is_refused(capsys):
    assert train.main(["data=image_folder", "data.root=nowhere"]) == 2
    assert "data.root must hold train/<class>/" in capsys.readouterr().err


def test_resume_needs_a_run_folder(capsys):
    assert train.main(["resume=nowhere"]) == 2
    assert "resume needs a run folder. Got nowhere" in capsys.readouterr().err


def test_resume_refuses_other_settings(cifar_train, run_dirs, capsys):
    cifar_train()
    assert train.main([f"resume={run_dirs()[0]}", "optimizer.lr=1"]) == 2
    assert "Got optimizer.lr as well" in capsys.readouterr().err


def test_a_run_does_not_write_into_a_folder_in_use(cifar_train, capsys):
    assert cifar_train("run_dir=mine") == 0
    before = sorted(Path("mine").rglob("*"))
    assert cifar_train("run_dir=mine") == 2
    assert "to continue it, resume=mine" in capsys.readouterr().err
    assert sorted(Path("mine").rglob("*")) == before


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["model=resnet50", "--cfg", "job"]])
def test_helping_and_composing_import_no_torch(arguments):
    program = f"""
import sys
from cifar_resnet.train import main
try:
    main({arguments})
except SystemExit:  # Hydra's way of ending --help
    pass
assert 'torch' not in sys.modules
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "resnet50" in done.stdout or "resnet18" in done.stdout or "widths" in done.stdout


def test_tab_completion_imports_no_torch():
    program = (
        "import sys\nfrom cifar_resnet.train import main\nmain(['-sc', 'query=bash'])\n"
        "assert 'torch' not in sys.modules"
    )
    line = "cifar-train model=resnet1"
    environment = {"COMP_LINE": line, "COMP_POINT": str(len(line)), "PATH": "/usr/bin:/bin"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment)
    assert "model=resnet18" in done.stdout, done.stderr
    assert "model=resnet152" in done.stdout


def test_help_shows_groups_choices_and_examples(capsys):
    with pytest.raises(SystemExit) as ended:
        train.main(["--help"])
    assert ended.value.code == 0
    text = capsys.readouterr().out
    for expected in (
        "optimizer: adam, adamw, asam, muon, sam, sgd",
        "resnet152",
        "16-mixed",
        "cifar-train -m model=",
        "resume=",
    ):
        assert expected in text


def test_help_into_a_pipe_that_closes_early_says_nothing():
    program = "from cifar_resnet.train import main; main(['--help'])"
    done = subprocess.run(f'"{sys.executable}" -c "{program}" | head -1', shell=True, capture_output=True, text=True)
    assert done.stdout.startswith("cifar-train:")
    assert done.stderr == ""


def test_the_same_command_in_three_forms(tmp_path):
    root = Path(train.__file__).parents[1]
    forms = [[sys.executable, "-m", "cifar_resnet.train"], [sys.executable, str(root / "cifar_resnet" / "train.py")]]
    script = Path(sys.executable).with_name("cifar-train")
    forms += [[str(script)]] if script.exists() else []
    outputs = [
        subprocess.run([*form, "model=resnet56", "--cfg", "job"], capture_output=True, text=True).stdout
        for form in forms
    ]
    assert "depth: 56" in outputs[0]
    assert len(set(outputs)) == 1


def test_a_folder_of_ones_own_adds_choices(tmp_path):
    folder = tmp_path / "mine" / "optimizer"
    folder.mkdir(parents=True)
    (folder / "rmsprop.yaml").write_text("_target_: torch.optim.RMSprop\n_partial_: true\nlr: 0.01\n")
    (job,) = Composer("train", str(tmp_path / "mine")).jobs(["optimizer=rmsprop", "optimizer.lr=0.02"])
    assert job.cfg.optimizer == {"_target_": "torch.optim.RMSprop", "_partial_": True, "lr": 0.02}


def test_an_optimizer_is_one_yaml_file_away(cifar_train, run_dirs, tmp_path):
    folder = tmp_path / "mine" / "optimizer"
    folder.mkdir(parents=True)
    (folder / "rmsprop.yaml").write_text("_target_: torch.optim.RMSprop\n_partial_: true\nlr: 0.01\n")
    assert cifar_train("--config-dir", str(tmp_path / "mine"), "optimizer=rmsprop", "optimizer.lr=0.02") == 0
    assert len(run_dirs()) == 1


def test_a_choice_of_ones_own_that_refers_to_nothing_gets_one_line(cifar_train, tmp_path, capsys):
    (tmp_path / "mine" / "optimizer").mkdir(parents=True)
    (tmp_path / "mine" / "optimizer" / "mine.yaml").write_text(
        "_target_: torch.optim.SGD\n_partial_: true\nlr: ${trainer.rate}\n"
    )
    assert cifar_train("--config-dir", str(tmp_path / "mine"), "optimizer=mine") == 2
    captured = capsys.readouterr()
    assert "optimizer.lr refers to what is not there. Got Interpolation key 'trainer.rate' not found" in captured.err
    assert captured.err.count("\n") == 1


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["model=resnet20", "trainer.max_epochs=15"], "model-resnet20_max_epochs-15"),
        (["model.widths=[4,8,8]"], "widths-4-8-8"),
        (["optimizer.lr=1e-3", "~logger.tensorboard"], "lr-1e-3_tensorboard"),
        (["data.root=/a/b c/$d"], "root-a-b-c-d"),
    ],
)
def test_folder_names_say_what_differs(overrides, expected):
    assert runs.slug(overrides) == expected


def test_jobs_whose_names_would_be_alike_are_told_apart():
    assert len(set(runs.distinct_slugs([["name=a/b"], ["name=a-b"], ["name=c"]]))) == 3
    assert runs.distinct_slugs([["optimizer.lr=0.1"], ["optimizer.lr=0.1"]]) == ["lr-0.1", "lr-0.1"]


def test_a_sweep_over_several_devices_is_refused(cifar_train, capsys):
    assert cifar_train("-m", "optimizer.lr=0.1,0.2", "trainer.devices=2") == 2
    assert "a sweep trains on one device at a time" in capsys.readouterr().err


def test_long_folder_names_are_cut_and_stay_distinct():
    names = {runs.slug([f"model.widths=[{','.join(['128'] * 40)},{last}]"]) for last in range(5)}
    assert len(names) == 5
    assert max(map(len, names)) <= 80


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True), (1.0, int, False), (True, int, False), (1, float, True), ("1", float, False),
        (None, int | None, True), ([1, 2], list[int], True), ([1, "a"], list[int], False), (3, int | list[int], True),
        ("x", object, True),
    ],
)  # fmt: skip
def test_which_values_fit_which_types(value, hint, expected):
    assert fits(value, hint) is expected
