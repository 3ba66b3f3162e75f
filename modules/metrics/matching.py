"""How well motions fit their captions, and how near they are to real ones, in the space of the evaluator.

Letters: N clips, D dimensions, M captions with several motions, R motions of each.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from modules.metrics.embedding import (
    POOL,
    REPEATS,
    Moments,
    diversity,
    frechet,
    kernel,
    kernel_distance,
    multimodality,
    r_precision,
)
from modules.metrics.intervals import ClipTable, Estimate, Units, interval, resample, trial_numbers

WINDOWS_A_DIMENSION = 10  # fewer, and the estimate of a covariance says more of the sample than of the motion
_FID_RESAMPLES = 200
_DIVERSITY_RESAMPLES = 200

FIGURES = ("FID", "KID", "R@1", "R@2", "R@3", "MM-Dist", "Diversity", "Multimodality")


class MatchingScores(ClipTable):
    """FID, unbiased KID, R-precision@1-3, MM-Dist, Diversity and Multimodality of one row of a table.

    `compute()` gives name -> `Estimate`, None where a figure cannot be had; for FID, `reason` says why after it.
    Intervals are over trials. Real motion itself: FID is 0, and KID is that between random halves, the noise floor.

    Args:
        units: of the clips of the split.
        own: (N,) index of each clip's caption among `captions`.
        captions: (C, D) embeddings of the distinct captions of the split.
        others: (C', D) of further captions, for pools that the split cannot fill.
        repeats: R; motions of one caption for Multimodality. 0: none.
    """

    def __init__(
        self,
        units: Units,
        own: np.ndarray,
        captions: np.ndarray,
        others: np.ndarray | None = None,
        *,
        repeats: int = 0,
        pool: int = POOL,
    ) -> None:
        dimensions = captions.shape[1]
        super().__init__(units.trials, motion=dimensions, real=dimensions, again=max(repeats, 1) * dimensions)
        self.units, self.own, self.captions, self.others = units, own, captions, others
        self.repeats, self.pool = repeats, pool
        self.reason: str | None = None  # why there is no FID

    def update(self, rows: Sequence[int], motion: Any, real: Any, again: Any = None) -> None:
        """Embeddings of clips.

        Args:
            rows: their places in the split.
            motion, real: (B, D) of the motion that is scored and of the real one.
            again: (B, R, D) further motions of the same captions; NaN in rows without any.
        """
        empty = np.full((len(rows), self.again.shape[1]), np.nan)  # type: ignore[union-attr]
        again = empty if again is None else np.asarray(again).reshape(len(rows), -1)
        super().update(rows, motion=motion, real=real, again=again)

    def _why_no_fid(self) -> str | None:
        needed = WINDOWS_A_DIMENSION * self.captions.shape[1]
        found = len({w for w, there in zip(self.units.windows, self.filled.tolist(), strict=True) if there})
        if found >= needed:
            return None
        return (
            f"No FID: {found} independent windows, and {self.captions.shape[1]} dimensions need {needed} "
            f"({WINDOWS_A_DIMENSION} each). KID has no such bias."
        )

    def compute(self) -> dict[str, Estimate | None]:
        table, there = self.table(), self.filled.numpy() > 0
        motion, real = table["motion"][there], table["real"][there]
        trials = trial_numbers(self.trials)[there]
        weights = resample(trials.tolist())
        is_real = bool((motion == real).all())
        found: dict[str, Estimate | None] = dict.fromkeys(FIGURES)
        self.reason = self._why_no_fid()
        if self.reason is None:
            found["FID"] = Estimate(0.0) if is_real else self._fid(motion, real, weights[:_FID_RESAMPLES])
        if len(np.unique(trials)) >= 4:
            found["KID"] = halves(real, trials) if is_real else interval(
                float(kernel_distance(motion, real, trials)[0]), kernel_distance(motion, real, trials, weights)
            )
        retrieval = r_precision(motion, self.own[there], self.captions, self.others, pool=self.pool)
        distance = np.linalg.norm(motion - self.captions[self.own[there]], axis=-1)
        clips = {f"R@{k}": retrieval.hits[:, k - 1] for k in (1, 2, 3)} | {"MM-Dist": distance}
        for name, values in clips.items():
            found[name] = interval(float(values.mean()), (weights @ values) / weights.sum(1))
        if len(np.unique(trials)) >= 2:
            value = float(diversity(motion, trials, np.ones((1, len(motion))), repeats=REPEATS)[0])
            found["Diversity"] = interval(value, diversity(motion, trials, weights[:_DIVERSITY_RESAMPLES], seed=1))
        if self.repeats > 1:
            found["Multimodality"] = self._multimodality(table["again"][there], trials)
        return found

    def _fid(self, motion: np.ndarray, real: np.ndarray, weights: np.ndarray) -> Estimate:
        value = frechet(Moments.of(motion), Moments.of(real))
        resampled = [frechet(Moments.of(motion, w), Moments.of(real, w)) for w in weights]
        return interval(value, np.array(resampled), centred=True)

    def _multimodality(self, again: np.ndarray, trials: np.ndarray) -> Estimate | None:
        chosen = np.isfinite(again).all(1)
        if not chosen.any():
            return None
        spread = multimodality(again[chosen].reshape(int(chosen.sum()), self.repeats, -1))
        weights = resample(trials[chosen].tolist())
        return interval(float(spread.mean()), (weights @ spread) / weights.sum(1))


def halves(real: np.ndarray, trials: np.ndarray, repeats: int = REPEATS, seed: int = 0) -> Estimate:
    """KID between random halves of the trials, mean and spread over the repeats: what is noise alone."""
    rng, names, values = np.random.default_rng(seed), np.unique(trials), []
    for _ in range(repeats):
        first = np.isin(trials, rng.permutation(names)[: len(names) // 2])
        a, b = real[first], real[~first]
        values.append(_between(a, trials[first], b, trials[~first]))
    return Estimate(float(np.mean(values)), *(float(q) for q in np.quantile(values, [0.025, 0.975])))


def _between(a: np.ndarray, a_trials: np.ndarray, b: np.ndarray, b_trials: np.ndarray) -> float:
    """Unbiased squared MMD of two sets without a common trial; pairs within a trial do not count."""
    inside = 0.0
    for x, trials in ((a, a_trials), (b, b_trials)):
        apart = trials[:, None] != trials
        inside += float((kernel(x, x) * apart).sum() / apart.sum())
    return inside - 2 * float(kernel(a, b).mean())
