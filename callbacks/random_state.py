"""Random numbers go on after a resume where they stopped, on every rank."""

from __future__ import annotations

import logging
import random
from typing import Any

import lightning as L
import numpy as np
import torch

KEY = "random_states"

log = logging.getLogger(__name__)


class RandomState(L.Callback):
    """Stores the states of the global random number generators of every rank in checkpoints, as numbers and tensors."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None
        self._before_validation: dict[str, Any] | None = None
        self._resumed_in_validation = False

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Every rank takes part. A validation that is interrupted begins again, with the numbers it began with."""
        own = self._before_validation or current_state()
        states: list[Any] = [own]
        if trainer.world_size > 1:
            states = [None] * trainer.world_size
            torch.distributed.all_gather_object(states, own)
        checkpoint[KEY] = states

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        states = checkpoint[KEY]
        if len(states) == trainer.world_size:
            self._loaded = states[trainer.global_rank]
        else:
            ranks = trainer.world_size
            log.warning("the checkpoint is of %d ranks, there are %d: random numbers start anew", len(states), ranks)

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restores as late as possible: what is set up before may draw numbers, too, which an unbroken run does not."""
        self._restore()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._resumed_in_validation = self._restore()
        self._before_validation = current_state()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._before_validation = None
        if self._resumed_in_validation:  # the training is still to be set up
            self._loaded, self._resumed_in_validation = current_state(), False

    def _restore(self) -> bool:
        if self._loaded is None:
            return False
        version, numbers, gauss = self._loaded["python"]
        random.setstate((version, tuple(numbers), gauss))
        kind, keys, *rest = self._loaded["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(self._loaded["torch"].cpu())
        if torch.cuda.is_available() and self._loaded["cuda"] is not None:
            torch.cuda.set_rng_state(self._loaded["cuda"].cpu())
        self._loaded = None
        return True


def current_state() -> dict[str, Any]:
    """The global generators of this process."""
    kind, keys, *rest = np.random.get_state()
    return {
        "python": random.getstate(),
        "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }
