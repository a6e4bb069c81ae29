"""The installed package, away from the clone."""

import subprocess
import sys
import zipfile
from pathlib import Path

from cifar_resnet import train

ROOT = Path(train.__file__).parents[1]


def test_the_wheel_carries_the_configuration(tmp_path):
    build = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path / "dist")]
    subprocess.run(build, cwd=ROOT, check=True, capture_output=True)
    (wheel,) = (tmp_path / "dist").glob("cifar_resnet-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
        entry_points = next(name for name in archive.namelist() if name.endswith("entry_points.txt"))
        commands = archive.read(entry_points).decode()
        assert "cifar-train = cifar_resnet.train:main" in commands
        for command in ("design", "find-lr", "search"):
            assert f"cifar-{command} = cifar_resnet.{command.replace('-', '_')}:main" in commands
    program = (
        "import sys; sys.path.insert(0, sys.argv.pop(1)); import cifar_resnet.train as train; "
        "assert 'site' in train.__file__, train.__file__; sys.exit(train.main())"
    )
    command = [sys.executable, "-c", program, str(tmp_path / "site"), "experiment=quickstart", "--cfg", "job"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "name: quickstart" in done.stdout
