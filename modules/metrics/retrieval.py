"""Caption retrieval: the baseline that answers a prompt with the motion of the nearest training caption."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Sequence

# Words and numbers; "4.5" is one word.
_WORD = re.compile(r"[a-z]+|\d+(?:\.\d+)?")


def _terms(caption: str) -> list[str]:
    """Words and pairs of neighbouring words: pairs keep what is said of whom."""
    words = _WORD.findall(caption.lower())
    return words + [f"{a} {b}" for a, b in itertools.pairwise(words)]


class CaptionRetrieval:
    """Nearest caption by the cosine of TF-IDF vectors over words and word pairs; of equals the first wins."""

    def __init__(self, captions: Sequence[str]) -> None:
        if not captions:
            raise ValueError("CaptionRetrieval: at least one caption is needed")
        counts = [Counter(_terms(caption)) for caption in captions]
        documents = Counter(term for count in counts for term in count)
        self._idf = {term: math.log((1 + len(captions)) / (1 + n)) + 1 for term, n in documents.items()}
        self._postings: dict[str, list[tuple[int, float]]] = {}
        self._size = len(captions)
        for index, count in enumerate(counts):
            for term, weight in self._weights(count).items():
                self._postings.setdefault(term, []).append((index, weight))

    def _weights(self, count: Counter[str]) -> dict[str, float]:
        weights = {term: n * self._idf[term] for term, n in count.items() if term in self._idf}
        norm = math.sqrt(sum(weight**2 for weight in weights.values())) or 1.0
        return {term: weight / norm for term, weight in weights.items()}

    def nearest(self, caption: str) -> int:
        """Index of the training caption that is nearest to `caption`."""
        scores = [0.0] * self._size
        for term, weight in self._weights(Counter(_terms(caption))).items():
            for index, other in self._postings[term]:
                scores[index] += weight * other
        return max(range(self._size), key=lambda index: (scores[index], -index))
