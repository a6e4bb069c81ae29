"""python -m cifar_resnet: which commands there are, each by the first line of its help."""

from omegaconf import OmegaConf

from cifar_resnet.cli import COMMANDS
from cifar_resnet.compose import CONF


def main() -> None:
    for command in COMMANDS:
        name, _, about = OmegaConf.load(CONF / f"{command}.yaml").hydra.help.template.partition("\n")[0].partition(": ")
        print(f"  {name:16}{about}")
    print("\nEach says with --help what it takes.")


if __name__ == "__main__":
    main()
