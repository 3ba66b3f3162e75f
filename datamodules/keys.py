"""Batches that know which samples they are made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.streams import Collate, Encode
from modules.pose.scene import Clip


@dataclass
class KeyedEncode:
    """Items of a stage's `encode`, each with the key of its clip."""

    encode: Encode

    def __call__(self, clip: Clip, rng: np.random.Generator, train: bool) -> list[tuple[str, Any]]:
        return [(clip.key, item) for item in self.encode(clip, rng, train)]


@dataclass
class KeyedCollate:
    """A batch of a stage's `collate`, with `sample_keys`, the list of its items' keys."""

    collate: Collate

    def __call__(self, items: list[tuple[str, Any]]) -> dict[str, Any]:
        return {**self.collate([item for _, item in items]), "sample_keys": [key for key, _ in items]}
