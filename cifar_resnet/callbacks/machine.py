"""What a training was computed on, over all its lives."""

from lightning.pytorch import Callback, LightningModule, Trainer

from cifar_resnet import hardware
from cifar_resnet.terminal import log


class Machine(Callback):
    """Keeps in each checkpoint what the training has been computed on, and says so where it goes on with another.

    The same numbers to the last bit come from the same devices, precision and, on a CPU, number of threads alone.
    """

    def __init__(self) -> None:
        self.machines: list[dict[str, str | int]] = []  # one after the other, as `hardware.machine` describes each

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        now = hardware.machine(trainer.strategy.root_device, str(trainer.precision), trainer.world_size)
        before = self.machines[-1] if self.machines else now
        if said(before) != said(now):
            log.warning(
                f"warning: goes on with {said(now)}, where it was {said(before)}: it will not end with the same "
                f"weights, bit for bit, as if it had never stopped\n"
            )
        if said(before) != said(now) or not self.machines:
            self.machines = [*self.machines, now]

    def state_dict(self) -> dict:
        return {"machines": self.machines}

    def load_state_dict(self, state_dict: dict) -> None:
        self.machines = state_dict["machines"]


def said(machine: dict[str, str | int]) -> str:
    """What bears on the numbers: of a CPU the device's name holds the threads, which do not matter to a GPU."""
    return f"{machine['device']}, {machine['precision']}"
