"""cifar-predict's speed on a folder of PNGs, as a ratio to the bare loop: decode, batch, forward.

    python benchmarks/predict.py
    python benchmarks/predict.py --images 2000 --network resnet56

ours  everything that `cifar-predict input=<folder>` does once its network is loaded: names in order, damaged files told
      apart, any size and mode, top classes, progress bar
bare  Pillow, NumPy and the network, one batch after the other

Both look at the same files of 32x32 with the same network and precision, in turns; the first turn is for warming up.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from figures import begin, parser_of, positive, save
from PIL import Image

from cifar_resnet.compose import Composer
from cifar_resnet.data import Synthetic
from cifar_resnet.hardware import resolve_precision
from cifar_resnet.images import Normalise
from cifar_resnet.predict import predict
from cifar_resnet.preflight import input_files
from cifar_resnet.results.inference import Ensemble
from cifar_resnet.train import train_run


def trained(network: str, folder: Path) -> Path:
    """A run folder; what its network has learned does not matter here."""
    overrides = [f"model={network}", "data=synthetic", "data.num_train=1000", "data.num_val=0", "data.num_test=10"]
    (job,) = Composer("train").jobs([*overrides, "trainer.max_epochs=1", "page=false", f"run_dir={folder}/run"])
    train_run(job.cfg)
    return folder / "run"


def bare(ensemble: Ensemble, paths: list[Path], batch_size: int) -> list[int]:
    network, answers = ensemble.networks[0], []
    normalise = Normalise(*network.pixel_stats(ensemble.device))
    with torch.inference_mode(), ensemble.fabric.autocast():
        for start in range(0, len(paths), batch_size):
            arrays = [np.asarray(Image.open(path).convert("RGB")) for path in paths[start : start + batch_size]]
            images = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).to(ensemble.device)
            answers += network(normalise(images)).argmax(1).tolist()
    return answers


def main() -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--images", type=positive, default=10_000)
    parser.add_argument("--network", default="resnet20")
    parser.add_argument("--batch-size", type=positive, default=500)
    parser.add_argument("--rounds", type=positive, default=3)
    options = parser.parse_args()
    os.environ["FORCE_COLOR"] = "1"  # the bar is drawn even where its lines go to a file
    about = begin()
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        images, _ = Synthetic(num_test=options.images).read(train=False)
        for index, image in enumerate(images.permute(0, 2, 3, 1).numpy()):
            Image.fromarray(image).save(pictures / f"{index}.png")
        ensemble = Ensemble([trained(options.network, Path(folder))], precision=resolve_precision())
        contestants = {
            "ours": lambda: predict(ensemble, input_files(str(pictures)).files, options.batch_size, 3),
            "bare": lambda: bare(ensemble, input_files(str(pictures)).files, options.batch_size),
        }
        speeds = []
        for _ in range(1 + options.rounds):
            speed = {}
            for name, run in contestants.items():
                start = time.perf_counter()
                run()
                speed[name] = options.images / (time.perf_counter() - start)
            speeds.append(speed)
    speeds = speeds[1:]
    medians = {name: statistics.median(speed[name] for speed in speeds) for name in contestants}
    ratio = statistics.median(speed["ours"] / speed["bare"] for speed in speeds)
    print(
        f"{options.images:,} PNGs, {options.network}: images/s ours {medians['ours']:,.0f}, bare {medians['bare']:,.0f}"
    )
    print(f"ours / bare {ratio:.3f}")
    found = {"images": options.images, "network": options.network, "images_per_second": medians, "ours / bare": ratio}
    save(options.json, about, **found)


if __name__ == "__main__":
    main()
