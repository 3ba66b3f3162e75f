"""What train, val and test may contain, so that no held-out clip is a variation of a training clip.

Three things are held out: bands of the motions' amplitude and style, combinations of action, side, direction and
colours, and one phrasing of each action (the last one, for the test split). A motion belongs to one clip of one split,
with its one view; since the bands are disjoint, no other view or mirror image of it can be in another split.
"""

from __future__ import annotations

import zlib

import numpy as np

# bands of [0, 1): inside, so that held-out motions lie between those of the training
_TEST_BANDS = ((0.22, 0.30), (0.62, 0.70))
_VAL_BANDS = ((0.42, 0.50), (0.80, 0.86))
_TRAIN_BANDS = ((0.0, 0.22), (0.30, 0.42), (0.50, 0.62), (0.70, 0.80), (0.86, 1.0))
BANDS = {"train": _TRAIN_BANDS, "val": _VAL_BANDS, "test": _TEST_BANDS}
_TEST_SHARE, _VAL_SHARE = 16, 8  # per cent of the combinations


def draw_parameter(rng: np.random.Generator, split: str) -> float:
    """A parameter in the bands of the split."""
    bands = np.array(BANDS[split])
    lengths = bands[:, 1] - bands[:, 0]
    position = rng.uniform(0.0, lengths.sum())
    band = int(np.searchsorted(np.cumsum(lengths), position, side="right"))
    return float(bands[band, 0] + position - np.concatenate([[0.0], np.cumsum(lengths)])[band])


def combination(action: str, side: str, direction: str, shirt: str, trousers: str) -> str:
    """Name of a combination."""
    return "/".join((action, side, direction, shirt, trousers))


def split_of(name: str) -> str:
    """The split in which a combination may occur."""
    share = zlib.crc32(name.encode()) % 100
    if share < _TEST_SHARE:
        return "test"
    return "val" if share < _TEST_SHARE + _VAL_SHARE else "train"


def draw_colours(
    rng: np.random.Generator, split: str, action: str, side: str, direction: str, names: tuple[str, ...]
) -> tuple[str, str]:
    """Colours of shirt and trousers, unequal, such that the combination belongs to the split."""
    pairs = [(shirt, trousers) for shirt in names for trousers in names if shirt != trousers]
    allowed = [pair for pair in pairs if split_of(combination(action, side, direction, *pair)) == split]
    return (allowed or pairs)[int(rng.integers(len(allowed or pairs)))]
