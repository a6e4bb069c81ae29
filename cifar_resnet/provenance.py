"""What code made a result."""

import platform
import subprocess
from importlib.metadata import distributions
from pathlib import Path


def commit() -> str | None:
    """The commit of the clone this code runs from, "+" behind it where files differ; None outside a clone."""
    folder = Path(__file__).resolve().parents[1]
    command = ["git", f"--git-dir={folder}/.git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"]
    try:  # where it is installed, the repository around it, if any, is another project's
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def versions() -> dict[str, str]:
    found = {  # the first counts; ourselves, run from a clone, may be nowhere
        package: [distribution.version for distribution in distributions(name=package)]
        for package in ("cifar-resnet", "torch", "torchvision", "lightning", "torchmetrics", "hydra-core", "numpy")
    }
    return {"python": platform.python_version()} | {package: each[0] for package, each in found.items() if each}
