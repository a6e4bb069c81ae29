"""Mixed precision without a wait for the device."""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from lightning.pytorch import LightningModule
from lightning.pytorch.plugins import MixedPrecision
from torch.optim import Optimizer


class ScaledPrecision(MixedPrecision):
    """Lightning's, for optimizers that leave a step out themselves where the device finds that gradients overflowed.

    Such are torch's fused ones, for which Lightning's own cannot clip gradients, and those that say `skips_on_device`.
    For any other the host has to ask, and wait.
    """

    def optimizer_step(  # type: ignore[override]
        self, optimizer: Optimizer, model: LightningModule, closure: Callable[[], Any], **kwargs: Any
    ) -> Any:
        if model.trainer.fit_loop._skip_backward:  # an epoch of forward passes alone, for Lightning's averaged weights
            return closure()
        skips_on_device = getattr(optimizer, "skips_on_device", False)
        if self.scaler is None or not (skips_on_device or model.trainer.gradient_clip_val):
            return super().optimizer_step(optimizer, model, closure, **kwargs)
        if (result := closure()) is None:
            return result
        self.scaler.unscale_(optimizer)
        self._after_closure(model, optimizer)
        with as_fused(optimizer) if skips_on_device else contextlib.nullcontext():
            result = self.scaler.step(optimizer, **kwargs)
        self.scaler.update()
        return result

    def clip_gradients(self, optimizer: Optimizer, *args: Any, **kwargs: Any) -> None:
        super(MixedPrecision, self).clip_gradients(optimizer, *args, **kwargs)


@contextlib.contextmanager
def as_fused(optimizer: Optimizer) -> Iterator[None]:
    """Within this a scaler hands over what it found, as `optimizer.found_inf`, and takes no step back itself.

    Not always, for then Lightning's own plugin would refuse to clip.
    """
    optimizer._step_supports_amp_scaling = True  # type: ignore[attr-defined]
    try:
        yield
    finally:
        del optimizer._step_supports_amp_scaling  # type: ignore[attr-defined]
