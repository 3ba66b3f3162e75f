"""Checkpoints of a run that are complete or not there: `step-00000300.ckpt`, a file or, of DeepSpeed, a folder.

A checkpoint is written beside its place, flushed to disk, and renamed. What is read again is checked first: a file by
the checksums that the format (a zip archive) holds, a folder by its `checksums.json`.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_only

from modules.errors import UserError
from modules.files import remove

CHECKSUMS = "checksums.json"
_PATTERN = "step-*.ckpt"
_CHUNK = 2**22

log = logging.getLogger(__name__)


class CheckpointError(UserError):
    """A checkpoint cannot be written, or none of those that are there can be read."""


class Checkpoints(Checkpoint):
    """Saves after every validation, and every `save_every` steps; keeps the newest `keep` and the best.

    Args:
        folder: where they are.
        monitor: name of the validation score that decides which is best, and "min" or "max".
        keep: how many of the newest are kept.
        save_every: optimiser steps between two checkpoints, besides those of validations; 0 for none.
    """

    def __init__(self, folder: Path, monitor: tuple[str, str], keep: int = 2, save_every: int = 0):
        self.folder = folder
        self.monitor, self.mode = monitor
        self.keep = keep
        self.save_every = save_every
        self.best_score: float | None = None
        self.best_step: int | None = None
        self._best_at: dict[int, int] = {}  # step of a checkpoint -> step of the best one when it was saved
        self._last_step = -1
        self._in_validation = False
        self._pending: Path | None = None  # being written

    def path(self, step: int) -> Path:
        """Place of the checkpoint of a step."""
        return self.folder / f"step-{step:08d}.ckpt"

    @property
    def best(self) -> Path | None:
        """The best checkpoint by the monitored score; None before the first validation."""
        return None if self.best_step is None else self.path(self.best_step)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step = trainer.global_step
        due = self.save_every and step != self._last_step and step % self.save_every == 0
        if due and not validation_follows(trainer):
            self.save(trainer)
        self._last_step = step

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and self._better(score := float(value)):
            self.best_score, self.best_step = score, trainer.global_step
        self.save(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.wait(trainer)
        if not self.path(trainer.global_step).exists():  # no validation at the last step
            self.save(trainer)
            self.wait(trainer)

    def _better(self, score: float) -> bool:
        if self.best_score is None:
            return score == score
        return score < self.best_score if self.mode == "min" else score > self.best_score

    def save(self, trainer: L.Trainer, *, in_validation: bool = False) -> Path:
        """Write a checkpoint of this step, after the one before is written; all ranks call it together.

        It is there when this returns, unless the trainer writes in the background: then after `wait`.

        Args:
            in_validation: the validation of this step is not over; a run that goes on from here begins with it.

        Raises:
            CheckpointError: it could not be written; the older ones are as they were.
        """
        self.wait(trainer)
        final = self._pending = self.path(trainer.global_step)
        new = _beside(final)
        if trainer.is_global_zero:
            for left in [*self.folder.glob(".new-*"), *self.folder.glob(".old-*")]:  # by a run that was killed
                remove(left)
        if self.best_step is not None:
            self._best_at[trainer.global_step] = self.best_step
        self._in_validation = in_validation
        try:
            with self._explained(final):
                trainer.save_checkpoint(new)
                if trainer.is_global_zero:
                    trainer.strategy.checkpoint_io.then(functools.partial(commit, new, final))  # type: ignore[attr-defined]
        finally:
            self._in_validation = False
        if not trainer.strategy.checkpoint_io.background:  # type: ignore[attr-defined]
            self.wait(trainer)
        return final

    def wait(self, trainer: L.Trainer) -> None:
        """Until the checkpoint that is being written in the background is there, and older ones are gone.

        Raises:
            CheckpointError: it could not be written.
        """
        final, self._pending = self._pending, None
        if final is None:
            return
        with self._explained(final):
            trainer.strategy.checkpoint_io.wait()  # type: ignore[attr-defined]
        self._prune(trainer.is_global_zero)
        trainer.strategy.barrier("checkpoint")

    @contextmanager
    def _explained(self, final: Path) -> Iterator[None]:
        try:
            yield
        except (OSError, RuntimeError) as error:
            cause = system_error(error)
            if cause is None:
                raise
            remove(_beside(final))
            raise CheckpointError(
                f"{final} could not be written ({cause.strerror}); the checkpoints before it are intact. Make room in "
                f"{self.folder} and start the same command again: it goes on from the newest of them"
            ) from None

    def _prune(self, delete: bool) -> None:
        newest = [step_of(path) for path in find_checkpoints(self.folder)][: self.keep]
        # A run that has to go back to an older checkpoint needs the one that was best then.
        self._best_at = {step: best for step, best in self._best_at.items() if step in newest}
        wanted = {*newest, *self._best_at.values()}
        for path in find_checkpoints(self.folder) if delete else []:
            if step_of(path) not in wanted:
                remove(path)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lightning goes on with an unfinished validation where one batch of it was begun and not completed."""
        if self._in_validation:
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.val_loop.batch_progress"]
            progress["total"] = {"ready": 1, "started": 1, "processed": 0, "completed": 0}
            progress["current"] = dict.fromkeys(progress["total"], 0)

    def state_dict(self) -> dict[str, Any]:
        return {"best_score": self.best_score, "best_step": self.best_step, "best_at": dict(self._best_at)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_score, self.best_step = state_dict["best_score"], state_dict["best_step"]
        self._best_at = dict(state_dict["best_at"])


def _beside(final: Path) -> Path:
    """Where it is written before it takes its place."""
    return final.with_name(f".new-{final.name}")


def validation_follows(trainer: L.Trainer) -> bool:
    """Does a validation come after the training batch that is about to end?"""
    every = trainer.val_check_batch
    return bool(every) and (trainer.fit_loop.total_batch_idx + 1) % every == 0


def find_checkpoints(folder: Path) -> list[Path]:
    """All of a folder, the newest first."""
    return sorted(folder.glob(_PATTERN), key=step_of, reverse=True)


def step_of(path: Path) -> int:
    """Step of a checkpoint, by its name."""
    return int(path.stem.partition("-")[2])


def newest_readable(folder: Path) -> Path | None:
    """The newest checkpoint that is complete; None where there is none at all.

    Damaged ones that are newer are named in a warning and put aside as `damaged-...`.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged.
    """
    found = find_checkpoints(folder)
    for path in found:
        problem = check(path)
        if problem is None:
            return path
        log.warning("%s is damaged (%s); trying the checkpoint before it", path, problem)
        _put_aside(path)
    if found:
        raise CheckpointError(f"none of the checkpoints in {folder} can be read; start over with fresh=true")
    return None


@rank_zero_only
def _put_aside(path: Path) -> None:
    aside = path.with_name(f"damaged-{path.name}")
    remove(aside)
    path.rename(aside)


def check(path: Path) -> str | None:
    """What is wrong with a checkpoint; None where nothing is. Reads all of it."""
    try:
        if not path.is_dir():
            with zipfile.ZipFile(path) as archive:
                bad = archive.testzip()
            return f"wrong checksum of {bad}" if bad else None
        for name, (size, checksum) in json.loads((path / CHECKSUMS).read_text()).items():
            if (path / name).stat().st_size != size:
                return f"{name} has {(path / name).stat().st_size} bytes instead of {size}"
            if crc32(path / name) != checksum:
                return f"wrong checksum of {name}"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError, zlib.error) as error:
        return str(error) or type(error).__name__
    return None


def commit(new: Path, final: Path) -> None:
    """Put what is complete at `new`, a file or a folder, durably in its place."""
    if new.is_dir():
        files = [path for path in sorted(new.rglob("*")) if path.is_file()]
        sums = {path.relative_to(new).as_posix(): [path.stat().st_size, crc32(path)] for path in files}
        (new / CHECKSUMS).write_text(json.dumps(sums))
        for path in [*files, new / CHECKSUMS, new]:
            flush(path)
        old = final.with_name(f".old-{final.name}")
        remove(old)
        if final.exists():
            final.rename(old)
        new.rename(final)
        remove(old)
    else:
        flush(new)
        os.replace(new, final)
    flush(final.parent)


def flush(path: Path) -> None:
    """Wait until a file, or the entries of a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def crc32(path: Path) -> int:
    """CRC-32 of a file."""
    value = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            value = zlib.crc32(chunk, value)
    return value


def system_error(error: BaseException | None) -> OSError | None:
    """What the system said: torch raises an error of its own after it."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error
