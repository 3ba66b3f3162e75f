"""Figures over clips with 95 % intervals, the same on any number of processes.

A `ClipTable` has a row for every clip of the split. Each process fills the rows of the clips that it has; torchmetrics
adds the tables up (all other rows are zero), so that nothing depends on the order or on how the clips were shared out.
Intervals come from a bootstrap over trials: a trial is the independent unit, and all its windows and views go together.

Letters: N clips, F figures, S resamples.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from modules.pose.scene import Clip

RESAMPLES = 1000
_FEWEST_TRIALS = 3  # with fewer, a resample says nothing of other trials
_SEED = 20


class Estimate(NamedTuple):
    """A figure and its 95 % interval; None where there are too few trials for one."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Units:
    """What is independent of what among the clips of a split; equal entries belong together."""

    trials: tuple[Hashable, ...]  # (N,) recordings: what an interval is drawn over
    windows: tuple[Hashable, ...]  # (N,) pieces of time: several virtual cameras may see the same one

    @classmethod
    def of(cls, clips: Sequence[Clip]) -> Units:
        """From the metadata: `source` names the recording, `window` (or the start) the piece of it."""
        trials = [clip.meta.get("source", clip.key) for clip in clips]
        names = ("window", "start_frame", "start_seconds")
        pieces = [next((clip.meta[n] for n in names if n in clip.meta), clip.key) for clip in clips]
        return cls(tuple(trials), tuple(zip(trials, pieces, strict=True)))

    @property
    def num_trials(self) -> int:
        return len(set(self.trials))

    @property
    def num_windows(self) -> int:
        return len(set(self.windows))

    def __str__(self) -> str:
        return f"{len(self.trials)} clips of {self.num_windows} windows in {self.num_trials} trials"


def trial_numbers(trials: Sequence[Hashable]) -> np.ndarray:
    """(N,) int: the number of each clip's trial, in the order of their first appearance."""
    numbers = {name: number for number, name in enumerate(dict.fromkeys(trials))}
    return np.array([numbers[name] for name in trials], np.int64)


def resample(trials: Sequence[Hashable], samples: int = RESAMPLES, seed: int = _SEED) -> np.ndarray:
    """How often each clip is in each bootstrap sample, (S, N): trials are drawn with replacement."""
    numbers = trial_numbers(trials)
    count = int(numbers.max()) + 1
    drawn = np.random.default_rng(seed).integers(0, count, (samples, count))
    times = np.stack([np.bincount(row, minlength=count) for row in drawn])  # (S, trials)
    return times[:, numbers].astype(np.float64)


def interval(value: float, resampled: np.ndarray, centred: bool = False) -> Estimate:
    """A figure with the 2.5 and 97.5 % quantiles of its resamples (S,); those that are not finite do not count.

    Args:
        centred: move them so that their mean is the figure: for figures that duplicates in a resample shift.
    """
    value, finite = float(value), resampled[np.isfinite(resampled)]
    if not len(finite) or len(finite) < len(resampled) / 2:
        return Estimate(value)
    shift = value - float(finite.mean()) if centred else 0.0
    low, high = (float(quantile) + shift for quantile in np.quantile(finite, [0.025, 0.975]))
    return Estimate(value, low, high)


class ClipTable(Metric):
    """Rows of numbers, one a clip. `compute()` of the base class gives the whole tables.

    Args:
        trials: (N,) the trial of every clip of the split.
        widths: name of a column -> how many numbers it holds.

    Raises:
        ValueError: in `compute`, where a clip was filled twice: two processes had it.
    """

    full_state_update = False
    filled: Tensor  # (N,) int64

    def __init__(self, trials: Sequence[Hashable], **widths: int) -> None:
        super().__init__()
        self.trials, self.names = tuple(trials), tuple(widths)
        for name, width in widths.items():
            self.add_state(name, torch.zeros(len(self.trials), width, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("filled", torch.zeros(len(self.trials), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, rows: Sequence[int], **values: Any) -> None:
        """Fill rows of the split: each value (len(rows), width)."""
        if set(values) != set(self.names):
            raise ValueError(f"update takes {', '.join(self.names)}; got {', '.join(values)}")
        where = torch.as_tensor(list(rows), dtype=torch.int64)
        for name, value in values.items():
            getattr(self, name)[where] += torch.as_tensor(value).to(torch.float64).cpu()
        self.filled[where] += 1

    def table(self) -> dict[str, np.ndarray]:
        """Name -> (N, width) float64, after the processes are added up."""
        if (self.filled > 1).any():
            raise ValueError(f"clip {int(self.filled.argmax())} was counted {int(self.filled.max())} times")
        return {name: getattr(self, name).numpy() for name in self.names}

    def compute(self) -> Any:
        return self.table()


class ClipAverages(ClipTable):
    """Averages of any figures over people, joints or frames, as sums and counts of each clip.

    Args:
        names: of the figures.
    """

    def __init__(self, trials: Sequence[Hashable], names: Sequence[str]) -> None:
        super().__init__(trials, totals=len(names), counts=len(names))
        self.figures = tuple(names)

    def add(self, row: int, sums: dict[str, tuple[float, float]]) -> None:
        """Figures of one clip: name -> (sum, count); those that are left out count nothing."""
        if unknown := set(sums) - set(self.figures):
            raise ValueError(f"unknown figures: {', '.join(sorted(unknown))}; known: {', '.join(self.figures)}")
        values = np.array([sums.get(name, (0.0, 0.0)) for name in self.figures], np.float64)  # (F, 2)
        self.update([row], totals=values[None, :, 0], counts=values[None, :, 1])

    def compute(self) -> dict[str, Estimate | None]:
        """Name -> sum over all clips / count, with its interval; None where nothing was counted."""
        table = self.table()
        totals, counts = table["totals"], table["counts"]
        weights = resample(self.trials)
        with np.errstate(divide="ignore", invalid="ignore"):
            resampled = (weights @ totals) / (weights @ counts)  # (S, F)
        numbers, found = trial_numbers(self.trials), dict[str, Estimate | None]()
        for i, name in enumerate(self.figures):
            total, count = float(totals[:, i].sum()), float(counts[:, i].sum())
            found[name] = None if count <= 0 else Estimate(total / count)
            if len(np.unique(numbers[counts[:, i] > 0])) >= _FEWEST_TRIALS:
                found[name] = interval(total / count, resampled[:, i])
        return found
