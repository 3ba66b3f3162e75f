"""A bigram of scene tokens that knows what is due at each place: the bar for a director's loss.

It is told the structure: at a place for depth 3 all its probability is on codes of depth 3. Smoothed after Witten and
Bell (1991): p(w | h) = (c(h, w) + T(h) p(w)) / (c(h) + T(h)), T(h) the number of different tokens seen after h, down to
the frequency at such a place and to equal shares.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from modules.llm.tokens import BOX, DEPTH, DURATION, MARK, SceneVocabulary
from modules.pose.boxes import BOX_BINS

CONTEXTS = ("token before", "same depth, key before", "nothing")


@dataclass(frozen=True)
class Place:
    """A token of a scene, and what a bigram may know of it."""

    token: int
    kind: int
    due: Hashable  # which tokens are due here
    size: int  # how many
    before: int  # the token before
    above: int  # of a pose token: that of the same person and depth in the key before, -1 where there is none


def places(scene: Sequence[int], vocabulary: SceneVocabulary) -> Iterator[Place]:
    """The tokens after <scene>."""
    people = list(scene).count(vocabulary.person)
    back = people * vocabulary.codes.num_quantizers
    first = 2 + 5 * people
    before = vocabulary.scene
    for number, token in enumerate(scene):
        kind = int(vocabulary.kind_table[token])
        due, size, above = kind, 2, -1
        if kind == DURATION:
            size = vocabulary.codes.max_keys
        elif kind == BOX:
            due, size = (kind, (number - 2) % 5), BOX_BINS
        elif kind >= DEPTH:
            size = vocabulary.codes.codebook_size
            above = scene[number - back] if number - back >= first else -1
        else:
            assert kind == MARK
            due, size = (kind, token == vocabulary.end), 1 if token == vocabulary.end else 2
        yield Place(token, kind, due, size, before, above)
        before = token


class Bigram:
    """Counts of training scenes.

    Args:
        context: one of `CONTEXTS`; where there is none, the token before counts for boxes and marks.
    """

    def __init__(self, vocabulary: SceneVocabulary, context: str) -> None:
        self.vocabulary, self.context = vocabulary, context
        self._pairs: dict[Hashable, Counter[int]] = defaultdict(Counter)
        self._singles: dict[Hashable, Counter[int]] = defaultdict(Counter)

    def _history(self, place: Place) -> Hashable:
        if self.context == "nothing":
            return place.due
        if self.context == "same depth, key before" and place.kind >= DEPTH:
            return place.due, place.above
        return place.due, place.before

    def fit(self, scenes: Iterable[Sequence[int]]) -> Bigram:
        for scene in scenes:
            for place in places(scene, self.vocabulary):
                self._pairs[self._history(place)][place.token] += 1
                self._singles[place.due][place.token] += 1
        return self

    def losses(self, scene: Sequence[int]) -> list[float]:
        """Nats of every token after <scene>."""
        return [-math.log(self.probability(place)) for place in places(scene, self.vocabulary)]

    def probability(self, place: Place) -> float:
        """Of the token at a place, given what is due there and the history."""
        single = _witten_bell(self._singles.get(place.due), place.token, 1 / place.size)
        return _witten_bell(self._pairs.get(self._history(place)), place.token, single)


def _witten_bell(counts: Counter[int] | None, token: int, lower: float) -> float:
    if not counts:
        return lower
    return (counts[token] + len(counts) * lower) / (counts.total() + len(counts))
