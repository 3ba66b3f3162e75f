"""A run that is told to stop saves, asks SLURM to be run again, and stops; the same command goes on from there.

Lightning's own requeueing saves inside the signal handler, where ranks that are out of step wait for each other for
ever, and its handlers run in data loader workers, too. Here a handler only notes the signal.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
from typing import Any

import lightning as L

from callbacks.checkpoints import Checkpoints, validation_follows
from modules.errors import UserError

SIGNALS = (signal.SIGUSR1, signal.SIGTERM)
EXIT_STATUS = 75  # EX_TEMPFAIL: try again

log = logging.getLogger(__name__)


class RunStopped(UserError):
    """The run was told to stop, and has saved what it has done."""

    exit_status = EXIT_STATUS


class Requeue(L.Callback):
    """Stops a run at the end of a batch after SIGUSR1 or SIGTERM to any rank.

    All ranks agree on it, so that all save the same step. A validation that is interrupted begins again in the next
    run; the one after the last step is finished first.
    """

    def __init__(self, checkpoints: Checkpoints):
        self.checkpoints = checkpoints
        self.received: str | None = None
        self._process = os.getpid()
        self._last_step = 0
        self._before: dict[int, Any] = {}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Listens from here on; signals that came earlier and were held back (`env --block-signal`) arrive now."""
        # Lightning's own handler waits for the other ranks, wherever they are.
        trainer._signal_connector.register_signal_handlers = lambda: None
        self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._last_step = trainer.global_step
        if self._agreed(trainer):
            self._stop(trainer)  # there is nothing new to save

    def _note(self, number: int, frame: Any) -> None:
        # Data loader workers inherit the handler and have nothing to say. Of several signals the first is the reason.
        if os.getpid() == self._process and self.received is None:
            self.received = signal.Signals(number).name

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._last_step:  # gradients are still being accumulated
            return
        self._last_step = trainer.global_step
        if not validation_follows(trainer) and self._agreed(trainer):
            self.checkpoints.save(trainer)
            self._stop(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._stop_validation(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *arguments: Any, **more: Any) -> None:
        self._stop_validation(trainer)

    def _stop_validation(self, trainer: L.Trainer) -> None:
        last = trainer.global_step >= trainer.max_steps
        if not trainer.sanity_checking and not last and self._agreed(trainer):
            self.checkpoints.save(trainer, in_validation=True)
            self._stop(trainer, "in the validation after")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._restore()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        # SLURM sends SIGTERM to a job that it requeues: it shall not end the run while that closes its files.
        if job_id() is None or not isinstance(exception, RunStopped):
            self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _agreed(self, trainer: L.Trainer) -> bool:
        return trainer.strategy.reduce_boolean_decision(self.received is not None, all=False)

    def _stop(self, trainer: L.Trainer, where: str = "at") -> None:
        self.checkpoints.wait(trainer)
        outcome = requeue() if trainer.is_global_zero else None
        outcome = trainer.strategy.broadcast(outcome)  # no rank ends before SLURM was asked
        why = f"stopped by {self.received}" if self.received else "stopped by a signal to another rank"
        said = f"{why} {where} step {trainer.global_step} of {trainer.max_steps}; {outcome}"
        raise RunStopped(said if trainer.is_global_zero else "")


def job_id() -> str | None:
    """What scontrol calls this job; None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def requeue() -> str:
    """Ask SLURM to run this job again, unless SLURM itself is ending it; says what came of it."""
    job = job_id()
    if job is None or shutil.which("scontrol") is None:
        return "the same command goes on from there"
    # scontrol is a process of the job, to which SLURM sends SIGTERM as soon as it has understood: it inherits the mask.
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    shown = subprocess.run(["scontrol", "show", "job", job], capture_output=True, text=True)
    state = re.search(r"JobState=(\w+)", shown.stdout)
    if state is not None and state[1] != "RUNNING":
        return f"SLURM is ending job {job} ({state[1].lower()})"
    asked = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True)
    if asked.returncode == 0:
        return f"job {job} is in the queue again"
    return f"job {job} could not be requeued ({asked.stderr.strip()}); the same command goes on from there"
