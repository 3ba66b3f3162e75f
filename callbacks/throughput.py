"""Speed, time and memory of a run."""

from __future__ import annotations

import resource
import sys
import time
from typing import Any

import lightning as L
import torch
from torch import Tensor


class Throughput(L.Callback):
    """Measures training time (without validation) and logs `perf/seconds_per_step` and `perf/samples_per_second`.

    Times go on over a resume: they are stored in checkpoints.
    """

    def __init__(self, log_every: int):
        self.log_every = log_every
        self.train_seconds = 0.0  # in training batches
        self.total_seconds = 0.0  # the whole fit
        self.samples_per_second = 0.0
        self.seconds_per_step = 0.0
        self._mark = self._start = 0.0
        self._window_seconds, self._window_samples, self._window_step = 0.0, 0, 0

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = self._mark = time.perf_counter()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._window_step = trainer.global_step

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.train_seconds += now - self._mark
        self._window_seconds += now - self._mark
        self._window_samples += batch_size(batch) * trainer.world_size
        self.total_seconds += now - self._start
        self._mark = self._start = now
        steps = trainer.global_step - self._window_step
        # At the console's own steps, also after a resume that lies between two of them.
        if not steps or trainer.global_step % self.log_every and trainer.global_step < trainer.max_steps:
            return
        self.samples_per_second = self._window_samples / self._window_seconds
        self.seconds_per_step = self._window_seconds / steps
        self._window_seconds, self._window_samples, self._window_step = 0.0, 0, trainer.global_step
        pl_module.log("perf/samples_per_second", self.samples_per_second, rank_zero_only=True)
        pl_module.log("perf/seconds_per_step", self.seconds_per_step, rank_zero_only=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._mark = time.perf_counter()
        self.total_seconds += self._mark - self._start
        self._start = self._mark

    def state_dict(self) -> dict[str, Any]:
        return {"train_seconds": self.train_seconds, "total_seconds": self.total_seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.train_seconds = state_dict["train_seconds"]
        self.total_seconds = state_dict["total_seconds"]


def batch_size(batch: Any) -> int:
    """Length of the first tensor or list of a batch."""
    values = batch.values() if isinstance(batch, dict) else [batch]
    return next((len(value) for value in values if isinstance(value, Tensor | list) and not _scalar(value)), 1)


def _scalar(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 0


def peak_memory_mb() -> dict[str, float]:
    """Largest resident memory of this process (workers not counted) and, on a GPU, of its allocator, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in bytes there, in KiB on Linux
    result = {"peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    if torch.cuda.is_available():
        result["peak_gpu_memory_mb"] = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    return result
