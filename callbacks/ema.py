"""Exponential moving average of the trained weights."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from torch import Tensor, nn


class EMA(L.Callback):
    """Keeps an average of the trainable parameters, validates with it and stores it in every checkpoint.

    The average moves once an optimiser step, whatever the number of accumulated batches. It starts quickly, with decay
    (1 + n) / (10 + n) at update n, so that a short run is not dominated by its random start.
    """

    def __init__(self, decay: float):
        self.decay = decay
        self.updates = 0
        self.average: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}
        self._last_step = 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        params = trainable(pl_module)
        if not self.average:
            self.average = {name: param.detach().float().clone() for name, param in params.items()}
        elif self.average.keys() != params.keys():
            raise ValueError("the checkpoint's averaged weights are not those of this network")
        self.average = {name: value.to(params[name].device) for name, value in self.average.items()}

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:  # gradients are still being accumulated
            return
        self._last_step = trainer.global_step
        self.updates += 1
        weight = 1 - min(self.decay, (1 + self.updates) / (10 + self.updates))
        for name, param in trainable(pl_module).items():
            self.average[name].lerp_(param.float(), weight)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self.average:
            return
        self._trained = {name: param.detach().clone() for name, param in trainable(pl_module).items()}
        load(pl_module, self.average)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Runs before the checkpoint callback, which Lightning keeps last: checkpoints hold the trained weights."""
        self._restore(pl_module)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """A run that is stopped in a validation saves there; the checkpoint refers to the module's weights."""
        self._restore(pl_module)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._restore(pl_module)

    def _restore(self, pl_module: L.LightningModule) -> None:
        load(pl_module, self._trained)
        self._trained = {}

    def state_dict(self) -> dict[str, Any]:
        return {"updates": self.updates, "average": dict(self.average)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.updates = state_dict["updates"]
        self.average = dict(state_dict["average"])


def trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """Parameters that are trained, by name."""
    return {name: param for name, param in module.named_parameters() if param.requires_grad}


@torch.no_grad()
def load(module: nn.Module, values: dict[str, Tensor]) -> None:
    """Copy `values` into the parameters of the same names."""
    params = trainable(module)
    for name, value in values.items():
        params[name].copy_(value)
