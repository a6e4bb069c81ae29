"""python -m cifar_resnet: which commands there are."""

from cifar_resnet.cli import COMMANDS
from cifar_resnet.overrides import program


def main() -> None:
    for command, about in COMMANDS.items():
        print(f"  {program(command):16}{about}")
    print("\nEach says with --help what it takes.")


if __name__ == "__main__":
    main()
