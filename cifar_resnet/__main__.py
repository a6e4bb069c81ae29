"""python -m cifar_resnet: which commands there are, each by the first line of its help."""

import sys

from omegaconf import OmegaConf

from cifar_resnet.cli import COMMANDS
from cifar_resnet.compose import CONF


def main() -> None:
    if sys.argv[1:]:
        print(f"error: python -m cifar_resnet lists the commands. Got {sys.argv[1]}; call one of them", file=sys.stderr)
        sys.exit(2)
    for command in COMMANDS:
        name, _, about = OmegaConf.load(CONF / f"{command}.yaml").hydra.help.template.partition("\n")[0].partition(": ")
        print(f"  {name:16}{about}")
    print("\nEach says with --help what it takes.")


if __name__ == "__main__":
    main()
