"""The count of steps that 16-bit loss scaling skipped."""

import torch

from cifar_resnet.callbacks import FiniteLoss


def test_skipped_steps_are_counted_by_the_scale_that_they_halve():
    callback = FiniteLoss()
    scales = iter([64.0, 64.0, 32.0, 16.0, 16.0, 32.0])

    class Stand:
        device = torch.device("cpu")
        is_last_batch = False
        precision_plugin = None
        scaler = None

        def _get_scale_async(self):
            return torch.tensor(next(scales))

        def log(self, name, value):
            self.logged = {name: value.item()}

    stand = Stand()
    stand.precision_plugin = stand
    stand.scaler = stand
    callback.on_train_start(stand, stand)
    for step in range(6):
        callback.on_train_batch_end(stand, stand, {"loss": torch.tensor(1.0)}, None, step)
    callback.on_train_epoch_end(stand, stand)
    assert stand.logged == {"train/skipped_steps": 2}
