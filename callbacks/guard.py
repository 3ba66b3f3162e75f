"""Keeps bad batches out of the weights: what is not finite, and by option what is far from the steps before."""

from __future__ import annotations

import itertools
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
    agree. A strategy that keeps gradients to itself (DeepSpeed) skips what is not finite, and says so afterwards as
    `step_was_skipped`.

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
        self._batches: list[tuple[list[str], Tensor]] = []  # of the step that is under way: sample keys, loss
        self._keys: list[str] = []  # of the last batch
        self._bad_keys: list[str] = []
        self._last_step = 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._keys = batch.get(KEYS, []) if isinstance(batch, dict) else []

    def on_before_backward(self, trainer: L.Trainer, pl_module: L.LightningModule, loss: Tensor) -> None:
        self._batches.append((self._keys, loss.detach().mean()))

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        """Lightning calls it between the gradients and their clipping; without gradients an optimiser does nothing."""
        if hasattr(trainer.strategy, "step_was_skipped"):
            return
        params = [param for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
        norm = torch.nn.utils.get_total_norm([param.grad for param in params if param.grad is not None]).float()
        loss = torch.stack([loss for _, loss in self._batches]).sum().to(norm)
        if trainer.world_size > 1:  # gradients are the same on all ranks already, unless they are sharded
            loss, norm = trainer.strategy.reduce(torch.stack([loss, norm]), reduce_op="mean").unbind()
        values = torch.stack([loss, norm]).tolist()
        problem = self._problem(*values)
        if problem is None:
            self._losses.append(values[0])
            self._norms.append(values[1])
        else:
            for param in params:
                param.grad = None
        self._note(trainer, problem, trainer.global_step + 1)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, before = trainer.global_step, self._last_step
        self._last_step = step
        skipped: bool | None = getattr(trainer.strategy, "step_was_skipped", None)
        if step != before and skipped is not None:
            self._note(trainer, "the loss or its gradient is not finite" if skipped else None, step)
        if self.skipped:
            pl_module.log("guard/skipped_steps", float(self.skipped), rank_zero_only=True)

    def _note(self, trainer: L.Trainer, problem: str | None, step: int) -> None:
        """Counts what was decided of a step; all ranks come to the same."""
        batches, self._batches = self._batches, []
        if problem is None:
            self.in_a_row, self._bad_keys = 0, []
            return
        self.skipped += 1
        self.in_a_row += 1
        keys = culprits(batches, trainer.world_size)
        self._bad_keys += keys
        if trainer.is_global_zero:
            log.warning("step %d is skipped: %s; samples: %s", step, problem, shorten(keys))
        if self.in_a_row >= self.max_in_a_row:
            count = f"{self.in_a_row} steps in a row were skipped, " if self.in_a_row > 1 else ""
            raise BadStepsError(
                f"{count}{problem} at step {step}; the weights were not updated and the checkpoints are good; samples: "
                f"{shorten(self._bad_keys)}; look at these, try a lower model.optim.lr, or trainer.precision=32-true"
            )

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


def culprits(batches: list[tuple[list[str], Tensor]], world_size: int) -> list[str]:
    """Sample keys of the batches of all ranks whose loss is not finite; of all batches where there is no such."""
    own = [(keys, math.isfinite(loss.item())) for keys, loss in batches]
    ranks: list[Any] = [own]
    if world_size > 1:
        ranks = [None] * world_size
        torch.distributed.all_gather_object(ranks, own)
    found = list(itertools.chain.from_iterable(ranks))
    bad = [key for keys, finite in found if not finite for key in keys]
    return bad or [key for keys, _ in found for key in keys]


def shorten(keys: list[str]) -> str:
    """The first keys, each once."""
    once = list(dict.fromkeys(keys))
    more = f" and {len(once) - _SHOWN} more" if len(once) > _SHOWN else ""
    return ", ".join(once[:_SHOWN]) + more if once else "unknown"
