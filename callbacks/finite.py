"""Stops a run whose loss is no longer a number."""

from __future__ import annotations

import lightning as L
from torch import Tensor

from modules.errors import UserError


class NonFiniteLossError(UserError):
    """The loss is NaN or infinite."""


class StopAtNonFiniteLoss(L.Callback):
    """Raises before the gradients of a NaN or infinite loss are computed, so that no weight is spoiled by it."""

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        if not bool(loss.isfinite().all()):
            raise NonFiniteLossError(
                f"the loss is {loss.item()} at step {trainer.global_step + 1}; the weights were not updated and the "
                f"last checkpoint, if there is one, is good; try a lower model.optim.lr, or trainer.precision=32-true"
            )
