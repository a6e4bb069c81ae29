"""How many kernels a training step launches on a GPU: at small batches that is what it waits for.

    python benchmarks/launches.py
    python benchmarks/launches.py --json benchmarks/results/launches.json model=resnet20 "model=resnet20 optimizer=sam"

Each argument is a command's overrides. Nothing here needs a GPU: operations on a CUDA device that is not there are
counted (tests/fake_cuda.py), views and allocations left out. `bare` is the same network, optimizer and precision in a
loop of five lines on one fixed batch, as in benchmarks/throughput.py.
"""

import importlib
import os
import shlex
import sys
from pathlib import Path

from figures import begin, parser_of, save
from throughput import Bare

from cifar_resnet.build import QUIET, build_data_and_model, new_trainer
from cifar_resnet.callbacks import FiniteLoss
from cifar_resnet.compose import Composer
from cifar_resnet.instantiation import instantiate

os.environ["CUDA_VISIBLE_DEVICES"] = ""  # a real one would be asked
sys.path.append(str(Path(__file__).parents[1] / "tests"))
fake = importlib.import_module("fake_cuda")

DEFAULT = [
    "model=resnet18", "model=resnet20", "model=resnet20 optimizer=adam", "model=resnet20 optimizer=muon",
    "model=resnet20 optimizer=sam", "model=resnet20 averaging=ema augment=cutmix", "experiment=speed94",
]  # fmt: skip
DATA = ["data=synthetic", "data.num_train=640", "data.num_val=0", "data.num_test=10", "data.batch_size=128"]
LENGTH = ["trainer.max_epochs=1", "trainer.limit_val_batches=0", "run_dir=unused"]


def launches(overrides: list[str]) -> tuple[int, int]:
    """A step's, in our loop and in the bare one."""
    cfg = Composer("train").jobs([*overrides, *DATA, *LENGTH])[0].cfg
    with fake.fake_cuda() as watch:
        data, model = fake.on_the_host(build_data_and_model)(cfg)
        ours = [FiniteLoss(), *([instantiate(cfg.averaging)] if "averaging" in cfg else [])]
        trainer = fake.on_the_host(new_trainer)(cfg, model, callbacks=ours, **QUIET)
        trainer.fit(model, data)
        count = watch.launches[2].total()  # of a step that is neither the first nor the last of its epoch
        bare = Bare(fake.on_the_host(build_data_and_model)(cfg)[1], str(trainer.precision), cfg.data.batch_size)
        bare.go_on(2)
        with watch.step():
            bare.go_on(1)
        return count, watch.launches[-1].total()


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument(
        "commands", nargs="*", default=DEFAULT, help="overrides, such as 'model=resnet20 optimizer=sam'"
    )
    options = parser.parse_args()
    about = begin()
    print(f"{'launches a step':50}{'ours':>6}{'bare':>6}")
    results = []
    for command in options.commands:
        ours, bare = launches(shlex.split(command))
        print(f"{command:50}{ours:6}{bare:6}", flush=True)
        results.append({"command": command, "ours": ours, "bare": bare})
    save(options.json, about, results=results)


if __name__ == "__main__":
    main()
