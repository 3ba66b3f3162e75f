"""Progress in the terminal: a bar where there is one, lines where the output goes to a file."""

from __future__ import annotations

import logging
import sys
import warnings
from typing import Any

import lightning as L
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from tqdm import tqdm

from callbacks.throughput import Throughput


class Console(L.Callback):
    """A bar over all steps of the run, with loss and throughput; without a terminal a line every `log_every` steps."""

    def __init__(self, throughput: Throughput, monitor: str, log_every: int):
        self.throughput = throughput
        self.monitor = monitor
        self.log_every = log_every
        self._bar: tqdm | None = None
        self._last_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step
        if trainer.is_global_zero and sys.stderr.isatty():
            self._bar = tqdm(total=trainer.max_steps, initial=trainer.global_step, unit="step", dynamic_ncols=True)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        if step == self._last_step or not trainer.is_global_zero:
            return
        if self._bar is not None:
            self._bar.update(step - self._last_step)
        self._last_step = step
        if step % self.log_every and step != trainer.max_steps:
            return
        logged = trainer.callback_metrics.get("train/loss")  # over all ranks, where the stage logs it so
        loss = _loss(outputs, trainer.accumulate_grad_batches) if logged is None else logged.item()
        speed = f"{self.throughput.samples_per_second:.1f}"
        if self._bar is not None:
            self._bar.set_postfix({"loss": f"{loss:.4g}", "samples/s": speed})
            return
        left = self.throughput.seconds_per_step * (trainer.max_steps - step)
        print(
            f"step {step}/{trainer.max_steps}  loss {loss:.4g}  {self.throughput.seconds_per_step:.3f} s/step  "
            f"{speed} samples/s  {_clock(left)} left",
            flush=True,
        )

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not trainer.is_global_zero:
            return
        values = {name: value.item() for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        first = {self.monitor: values.pop(self.monitor)} if self.monitor in values else {}
        text = "  ".join(f"{name} {value:.4g}" for name, value in {**first, **values}.items())
        tqdm.write(f"step {trainer.global_step}/{trainer.max_steps}  {text}")
        sys.stdout.flush()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._close()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._close()

    def _close(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None


def _loss(outputs: Any, accumulate: int) -> float:
    """Lightning hands out the loss divided by the number of accumulated batches."""
    loss = outputs["loss"] if isinstance(outputs, dict) else outputs
    return loss.item() * accumulate if isinstance(loss, Tensor) else float("nan")


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes}:{seconds:02d}"


@rank_zero_only
def say(text: str) -> None:
    """Print on one rank alone."""
    print(text, flush=True)


def quiet() -> None:
    """Leave the terminal to the run's own lines: no notes on hardware, no advice on workers."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*smaller than the logging interval.*")
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    # The metrics of the stages have reduced themselves over the ranks when they are logged.
    warnings.filterwarnings("ignore", message=".*It is recommended to use .*sync_dist=True.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    # DeepSpeed calls what newer torch names otherwise.
    warnings.filterwarnings("ignore", message=r".torch\.distributed\.\w+. is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message=".*Checkpoint directory .* exists and is not empty.*")
