"""Random numbers go on after a resume where they stopped."""

from __future__ import annotations

import random
from typing import Any

import lightning as L
import numpy as np
import torch


class RandomState(L.Callback):
    """Stores the states of the global random number generators in checkpoints, as plain numbers and tensors."""

    def __init__(self) -> None:
        self._loaded: dict[str, Any] | None = None

    def state_dict(self) -> dict[str, Any]:
        kind, keys, *rest = np.random.get_state()
        return {
            "python": random.getstate(),
            "numpy": (kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), *rest),
            "torch": torch.get_rng_state(),
            "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._loaded = state_dict

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restores as late as possible: starting the loaders draws numbers, too, which an unbroken run does not."""
        if self._loaded is None:
            return
        version, numbers, gauss = self._loaded["python"]
        random.setstate((version, tuple(numbers), gauss))
        kind, keys, *rest = self._loaded["numpy"]
        np.random.set_state((kind, keys.numpy().astype(np.uint32), *rest))
        torch.set_rng_state(self._loaded["torch"].cpu())
        if torch.cuda.is_available() and self._loaded["cuda"] is not None:
            torch.cuda.set_rng_state(self._loaded["cuda"].cpu())
        self._loaded = None
