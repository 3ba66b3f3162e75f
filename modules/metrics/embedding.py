"""Distances of sets of embeddings: Frechet (FID), kernel (KID), R-precision, diversity, multimodality.

All in float64 and without randomness of their own beyond a seed. Embeddings are taken as they come; whether they are of
length 1 is for the caller to say.

Letters: N clips, C distinct captions, D dimensions, S resamples, R motions of one caption.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

POOL = 32  # captions of which one is the clip's own
REPEATS = 20
PAIRS = 300


@dataclass
class Moments:
    """Mean (D,) and covariance (D, D) of a set of embeddings."""

    mean: np.ndarray
    covariance: np.ndarray

    @classmethod
    def of(cls, embeddings: np.ndarray, weights: np.ndarray | None = None) -> Moments:
        """Of (N, D); `weights` (N,) say how often each row is there."""
        weights = np.ones(len(embeddings)) if weights is None else weights
        total = weights.sum()
        mean = weights @ embeddings / total
        offset = embeddings - mean
        return cls(mean, (offset * weights[:, None]).T @ offset / (total - 1))


def frechet(a: Moments, b: Moments) -> float:
    """Squared Frechet distance of two normal distributions (Heusel et al. 2017, eq. 6)."""
    # The trace of the root of A B is that of the root of the symmetric A^1/2 B A^1/2.
    values, vectors = np.linalg.eigh(a.covariance)
    root = (vectors * np.sqrt(np.maximum(values, 0))) @ vectors.T
    cross = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ b.covariance @ root), 0)).sum()
    trace = np.trace(a.covariance) + np.trace(b.covariance)
    return float(((a.mean - b.mean) ** 2).sum() + trace - 2 * cross)


class FrechetDistance(Metric):
    """Frechet distance of features that come in batches: sums in float64, added up over processes."""

    full_state_update = False
    counts: Tensor  # (2,) found, real
    sums: Tensor  # (2, D)
    products: Tensor  # (2, D, D)

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        for name, shape in (("counts", (2,)), ("sums", (2, dimensions)), ("products", (2, dimensions, dimensions))):
            self.add_state(name, torch.zeros(shape, dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, features: Tensor, real: bool) -> None:
        """Add features (B, D)."""
        features = features.to(torch.float64)
        self.counts[int(real)] += len(features)
        self.sums[int(real)] += features.sum(0)
        self.products[int(real)] += features.T @ features

    def compute(self) -> float | None:
        """None below two samples on either side."""
        if self.counts.min() < 2:
            return None
        moments = []
        for count, total, product in zip(self.counts, self.sums, self.products, strict=True):
            mean = total / count
            covariance = (product - count * torch.outer(mean, mean)) / (count - 1)
            moments.append(Moments(mean.numpy(), covariance.numpy()))
        return frechet(*moments)


def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(x y' + 1)^3 of embeddings of length 1: (N, D), (M, D) -> (N, M). KID's kernel, for vectors of length root D."""
    return (x @ y.T + 1) ** 3


def kernel_distance(
    found: np.ndarray,
    real: np.ndarray,
    trials: np.ndarray | None = None,
    weights: np.ndarray | None = None,
) -> np.ndarray:
    """Unbiased squared maximum mean discrepancy (KID, Binkowski et al. 2018), for each row of weights: (S,).

    Args:
        found, real: (N, D) of length 1, row by row of the same clips where `trials` is given.
        trials: (N,) pairs within a trial never count, neither on one side nor across. So a set has the distance 0 from
            itself, and duplicates in a bootstrap sample do not bias it. None: all pairs but each row with itself.
        weights: (S, N) how often each row is there; None: once.
    """
    weights = np.ones((1, len(found))) if weights is None else weights
    if trials is None:
        assert (weights == 1).all()
        n, m = len(found), len(real)
        k_found, k_real = kernel(found, found), kernel(real, real)
        inside = (k_found.sum() - np.trace(k_found)) / (n * (n - 1)) + (k_real.sum() - np.trace(k_real)) / (m * (m - 1))
        return np.array([inside - 2 * kernel(found, real).mean()])
    apart = (trials[:, None] != trials).astype(np.float64)  # (N, N)
    gram = (kernel(found, found) + kernel(real, real) - kernel(found, real) - kernel(real, found)) * apart
    with np.errstate(divide="ignore", invalid="ignore"):
        return ((weights @ gram) * weights).sum(1) / ((weights @ apart) * weights).sum(1)


@dataclass
class Retrieval:
    """R-precision of each clip: the share of its pools in which its own caption is among the k nearest."""

    hits: np.ndarray  # (N, 3) for k = 1, 2, 3
    pool: int  # captions in a pool

    def chance(self, k: int) -> float:
        """R-precision of guessing."""
        return min(k / self.pool, 1.0)


def r_precision(
    motion: np.ndarray,
    own: np.ndarray,
    captions: np.ndarray,
    others: np.ndarray | None = None,
    *,
    pool: int = POOL,
    repeats: int = REPEATS,
    seed: int = 0,
) -> Retrieval:
    """Euclidean ranking of captions by motion, in pools of distinct captions: a caption is never its own negative.

    Args:
        motion: (N, D).
        own: (N,) index of each clip's caption among `captions`.
        captions: (C, D) of the distinct captions of the split: negatives are drawn from them.
        others: (C', D) further captions, drawn where the split has fewer than a pool needs.
        repeats: pools drawn for every clip.
    """
    count, few = len(captions), max(pool - len(captions), 0)
    others = np.zeros((0, motion.shape[1])) if others is None else others
    few = min(few, len(others))
    every = np.concatenate([captions, others])
    distance = np.linalg.norm(motion[:, None] - every, axis=-1)  # (N, C + C')
    mine = distance[np.arange(len(motion)), own]
    # A motion that is as far from another caption as from its own has not found it.
    ahead = distance <= mine[:, None]
    ahead[np.arange(len(motion)), own] = False
    negatives = min(pool, count) - 1
    rng, hits = np.random.default_rng(seed), np.zeros((len(motion), 3))
    for _ in range(repeats):
        order = rng.random((len(motion), count))
        order[np.arange(len(motion)), own] = 2.0  # last
        chosen = np.argsort(order, axis=1)[:, :negatives]
        rank = np.take_along_axis(ahead, chosen, 1).sum(1)
        if few:
            extra = count + np.argpartition(rng.random((len(motion), len(others))), few - 1, axis=1)[:, :few]
            rank = rank + np.take_along_axis(ahead, extra, 1).sum(1)
        hits += rank[:, None] < np.arange(1, 4)
    return Retrieval(hits / repeats, negatives + 1 + few)


def diversity(
    embeddings: np.ndarray,
    trials: np.ndarray,
    weights: np.ndarray,
    *,
    pairs: int = PAIRS,
    repeats: int = 1,
    seed: int = 0,
) -> np.ndarray:
    """Mean distance of random pairs of clips of different trials, for each row of weights (S, N): (S,)."""
    rng, result = np.random.default_rng(seed), np.full(len(weights), np.nan)
    for sample, weight in enumerate(weights):
        if len(np.unique(trials[weight > 0])) < 2:
            continue
        share, drawn = weight / weight.sum(), []
        while sum(map(len, drawn)) < pairs * repeats:
            pair = rng.choice(len(embeddings), (2 * pairs * repeats, 2), p=share)
            drawn.append(pair[trials[pair[:, 0]] != trials[pair[:, 1]]])
        chosen = np.concatenate(drawn)[: pairs * repeats]
        result[sample] = np.linalg.norm(embeddings[chosen[:, 0]] - embeddings[chosen[:, 1]], axis=-1).mean()
    return result


def multimodality(embeddings: np.ndarray) -> np.ndarray:
    """Mean distance of all pairs of motions of one caption: (M, R, D) -> (M,), one figure a caption."""
    first, second = np.triu_indices(embeddings.shape[1], k=1)
    return np.linalg.norm(embeddings[:, first] - embeddings[:, second], axis=-1).mean(1)


def distinct(captions: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """The distinct captions in order, and (N,) which of them each clip has."""
    names = list(dict.fromkeys(captions))
    number = {name: index for index, name in enumerate(names)}
    return names, np.array([number[name] for name in captions], np.int64)
