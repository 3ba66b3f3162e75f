"""Keeps bad batches out of the weights: what is not finite, and by option what is far from the steps before."""

from __future__ import annotations

import logging
import math
from collections import deque
from typing import Any

import lightning as L
import torch
from torch import Tensor

from modules.errors import UserError

KEYS = "sample_keys"  # of a batch
_WINDOW = 128  # steps that a spike is measured against
_SHOWN = 16  # keys that a message names

log = logging.getLogger(__name__)


class BadStepsError(UserError):
    """Too many steps in a row had a loss or gradients that are not finite, or are spikes."""


class Guard(L.Callback):
    """Skips the update of a step whose loss or gradient is not finite; with `spike_sigma`, of spikes as well.

    A skipped step counts as a step: the learning rate and the data go on, weights and optimiser state stay. All ranks
    agree. DeepSpeed keeps its gradients to itself and skips what is not finite there; for it a loss that is not finite
    ends the run.

    Args:
        max_in_a_row: so many skipped steps one after another end the run.
        spike_sigma: a loss or gradient norm more than so many standard deviations above the mean of the last 128 good
            steps is a spike; 0 for none.
    """

    def __init__(self, max_in_a_row: int = 10, spike_sigma: float = 0.0):
        self.max_in_a_row = max_in_a_row
        self.spike_sigma = spike_sigma
        self.skipped = 0
        self.in_a_row = 0
        self._losses: deque[float] = deque(maxlen=_WINDOW)
        self._norms: deque[float] = deque(maxlen=_WINDOW)
        self._step_losses: list[Tensor] = []
        self._keys: list[str] = []
        self._bad_keys: list[str] = []

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._keys += batch.get(KEYS, []) if isinstance(batch, dict) else []

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._step_losses.append(loss.detach().mean())
        if trainer.strategy.handles_gradient_accumulation:  # DeepSpeed
            finite = bool(loss.isfinite().all())
            if not trainer.strategy.reduce_boolean_decision(finite, all=True):
                self._end(trainer, "the loss is not finite")
            self._step_losses, self._keys = [], []

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Lightning calls it between the gradients and their clipping; without gradients an optimiser does nothing."""
        if trainer.strategy.handles_gradient_accumulation:
            return
        params = [param for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
        norm = torch.nn.utils.get_total_norm([param.grad for param in params if param.grad is not None]).float()
        loss = torch.stack(self._step_losses).sum().to(norm)
        if trainer.world_size > 1:  # gradients are the same on all ranks already, unless they are sharded
            loss, norm = trainer.strategy.reduce(torch.stack([loss, norm]), reduce_op="mean").unbind()
        values = torch.stack([loss, norm]).tolist()
        problem = self._problem(*values)
        keys, self._keys, self._step_losses = self._keys, [], []
        if problem is None:
            self.in_a_row, self._bad_keys = 0, []
            self._losses.append(values[0])
            self._norms.append(values[1])
            return
        for param in params:
            param.grad = None
        self.skipped += 1
        self.in_a_row += 1
        self._bad_keys += keys
        step = trainer.global_step + 1
        if trainer.is_global_zero:
            log.warning("step %d is skipped: %s; samples: %s", step, problem, shorten(keys))
        if self.in_a_row >= self.max_in_a_row:
            self._end(trainer, problem)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.skipped:
            pl_module.log("guard/skipped_steps", float(self.skipped), rank_zero_only=True)

    def _problem(self, loss: float, norm: float) -> str | None:
        for name, value, before in (("loss", loss, self._losses), ("gradient norm", norm, self._norms)):
            if not math.isfinite(value):
                return f"the {name} is {value}"
            if self.spike_sigma and len(before) == _WINDOW:
                mean = sum(before) / _WINDOW
                sigma = math.sqrt(sum((entry - mean) ** 2 for entry in before) / _WINDOW)
                if value > mean + self.spike_sigma * sigma:
                    return f"the {name} is {value:.4g}, the last {_WINDOW} were {mean:.4g} +- {sigma:.2g}"
        return None

    def _end(self, trainer: L.Trainer, problem: str) -> None:
        keys = shorten(self._bad_keys or self._keys)
        count = f"{self.in_a_row} steps in a row were skipped, " if self.in_a_row > 1 else ""
        raise BadStepsError(
            f"{count}{problem} at step {trainer.global_step + 1}; the weights were not updated and the checkpoints are "
            f"good; samples: {keys}; look at these, try a lower model.optim.lr, or trainer.precision=32-true"
        )

    def state_dict(self) -> dict[str, Any]:
        return {
            "skipped": self.skipped,
            "in_a_row": self.in_a_row,
            "losses": list(self._losses),
            "norms": list(self._norms),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.skipped, self.in_a_row = state_dict["skipped"], state_dict["in_a_row"]
        self._losses.extend(state_dict["losses"])
        self._norms.extend(state_dict["norms"])


def shorten(keys: list[str]) -> str:
    """The first keys, each once."""
    once = list(dict.fromkeys(keys))
    more = f" and {len(once) - _SHOWN} more" if len(once) > _SHOWN else ""
    return ", ".join(once[:_SHOWN]) + more if once else "unknown"
