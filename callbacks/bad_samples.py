"""Damaged samples that the data module left out, in TensorBoard."""

from __future__ import annotations

from typing import Any

import lightning as L


class BadSamples(L.Callback):
    """Logs `data/bad_samples`, how many were left out so far in this process, once there are any."""

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        count = getattr(trainer.datamodule, "bad_samples", 0)  # type: ignore[attr-defined]  # Lightning sets it in fit
        if count:
            pl_module.log("data/bad_samples", float(count), rank_zero_only=True)
