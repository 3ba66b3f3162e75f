"""The order of training: which sample is at which place of an endless stream, the same on every rank and worker.

A pass visits each sample of a data set once: shards in random order, then each sample moved by up to `window` places,
so that reading stays local. Any place is found without reading what comes before it.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

_PERIOD = 1024  # places in which each set of a mixture has its exact share


@dataclass(frozen=True)
class Place:
    """A sample of the stream."""

    set_: int  # data set
    pass_: int  # how often this set was gone through before
    number: int  # of the sample in its set


class Order:
    """Which sample is at a place.

    A pass over a single data set is a whole number of batches: what is left over at its end is dropped, other samples
    in every pass. A set that is smaller than a batch, and the sets of a mixture, go on with their next pass at once.

    Args:
        sizes: samples in each shard, of each data set.
        weights: share of each data set.
        window: places by which a sample is moved.
        seed: of the run.
        batch: places of a batch, over all ranks.
    """

    def __init__(
        self, sizes: Sequence[Sequence[int]], weights: Sequence[float], window: int, seed: int, batch: int
    ) -> None:
        self._sizes = [np.asarray(shards) for shards in sizes]
        self._window, self._seed = window, seed
        self.lengths = [int(shards.sum()) for shards in self._sizes]
        if len(sizes) == 1 and self.lengths[0] >= batch:
            self.lengths[0] -= self.lengths[0] % batch
        self._pattern, self._before = _mix(weights, seed)
        self._passes = functools.lru_cache(maxsize=2 * len(sizes))(self._pass)

    def at(self, place: int) -> Place:
        """The sample at a place, from 0."""
        block, offset = divmod(place, len(self._pattern))
        set_ = int(self._pattern[offset])
        index = block * int(self._before[-1, set_]) + int(self._before[offset, set_])
        pass_, index = divmod(index, self.lengths[set_])
        return Place(set_, pass_, int(self._passes(set_, pass_)[index]))

    def _pass(self, set_: int, pass_: int) -> np.ndarray:
        sizes = self._sizes[set_]
        rng = np.random.default_rng([self._seed, pass_, set_])
        starts = (np.cumsum(sizes) - sizes).tolist()
        shards = rng.permutation(len(sizes)).tolist()
        order = np.concatenate([np.arange(starts[s], starts[s] + int(sizes[s])) for s in shards])
        moved = np.arange(len(order)) + rng.uniform(0, self._window, len(order))
        return order[np.argsort(moved, kind="stable")]

    def __getstate__(self) -> dict[str, object]:
        return {key: value for key, value in self.__dict__.items() if key != "_passes"}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self._passes = functools.lru_cache(maxsize=2 * len(self._sizes))(self._pass)


def _mix(weights: Sequence[float], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Which set comes at each place of a period, and how many places each set had before it: (N,), (N + 1, sets)."""
    if len(weights) == 1:
        return np.zeros(1, int), np.array([[0], [1]])
    shares = np.asarray(weights) / np.sum(weights) * _PERIOD
    counts = np.maximum(np.floor(shares).astype(int), 1)
    for set_ in np.argsort(np.floor(shares) - shares)[: max(_PERIOD - counts.sum(), 0)]:
        counts[set_] += 1
    pattern = np.random.default_rng([seed, len(counts)]).permutation(np.repeat(np.arange(len(counts)), counts))
    before = np.cumsum(pattern[:, None] == np.arange(len(counts)), axis=0)
    return pattern, np.concatenate([np.zeros((1, len(counts)), int), before])
