"""Reading actions and sides from silhouettes: what a video shows, without poses, colours or caption.

Maps of where the figure is, and where it moves, about its own middle and in its own size, are told apart by a linear
classifier that is fitted to silhouettes of the training motion, in closed form. It is no part of any model.

Letters: F frames, H x W pixels, N videos, C classes, D features.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

_GRID = 16  # cells of a map, on each side
_REACH = 0.8  # of the figure's height, from its middle to the edge of a map
_LAGS = (1, 2, 4)  # frames
_RIDGE = 3.0


def describe(masks: np.ndarray) -> np.ndarray:
    """Features (D,) of the silhouettes of one figure, (F, H, W) bool; zeros where there is none.

    The mean and the spread of the figure's place over time, the mean change over 1, 2 and 4 frames, and its path.
    """
    shown = masks.reshape(len(masks), -1).any(1)
    maps, path = np.zeros((2 + len(_LAGS), _GRID, _GRID), np.float32), np.zeros(6, np.float32)
    if not shown.any():
        return np.concatenate([maps.ravel(), path])
    extents = np.array([_extent(mask) for mask in masks[shown]])  # x, y of the middle, width, height
    height = float(np.median(extents[:, 3]))
    cells = np.stack([_cells(mask, extent, height) for mask, extent in zip(masks[shown], extents, strict=True)])
    maps[0], maps[1] = cells.mean(0), cells.std(0)
    for number, lag in enumerate(_LAGS):
        if len(cells) > lag:
            maps[2 + number] = np.abs(cells[lag:] - cells[:-lag]).mean(0)
    first, last = extents[: max(len(extents) // 4, 1)].mean(0), extents[-max(len(extents) // 4, 1) :].mean(0)
    path[:2] = (last - first)[:2] / height
    path[2] = np.log(last[3] / first[3])
    path[3:] = extents[:, 1].std() / height, extents[:, 3].std() / height, (extents[:, 2] / extents[:, 3]).mean()
    return np.concatenate([maps.ravel(), 4 * path])


def _extent(mask: np.ndarray) -> np.ndarray:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    low, high = np.array([columns[0], rows[0]]), np.array([columns[-1] + 1, rows[-1] + 1])
    return np.array([*(low + high) / 2, *(high - low)], np.float64)


def _cells(mask: np.ndarray, extent: np.ndarray, height: float) -> np.ndarray:
    """Share of the figure in each cell of a square about its middle."""
    scale = _GRID / (2 * _REACH * height)
    shift = _GRID / 2 - scale * extent[:2]
    matrix = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]])
    # Blurred by the size of a cell first: a cell is the mean of its pixels.
    soft = cv2.blur(mask.astype(np.float32), (max(round(1 / scale), 1),) * 2)
    return cv2.warpAffine(soft, matrix, (_GRID, _GRID), flags=cv2.INTER_LINEAR)


@dataclass
class SilhouetteReader:
    """A linear classifier of silhouettes."""

    names: list[str]
    weights: np.ndarray  # (D + 1, C)
    mean: np.ndarray  # (D,)
    scale: np.ndarray  # (D,)

    @classmethod
    def fit(cls, features: np.ndarray, labels: Sequence[str]) -> SilhouetteReader:
        """Ridge regression of (N, D) on the classes."""
        names = sorted(set(labels))
        mean, scale = features.mean(0), features.std(0) + 0.05
        x = np.concatenate([(features - mean) / scale, np.ones((len(features), 1))], 1).astype(np.float64)
        y = np.array([[label == name for name in names] for label in labels], np.float64)
        penalty = _RIDGE * np.sqrt(len(x)) * np.eye(x.shape[1])
        penalty[-1, -1] = 0
        return cls(names, np.linalg.solve(x.T @ x + penalty, x.T @ y), mean, scale)

    def read(self, features: np.ndarray, among: Sequence[str] | None = None) -> list[str]:
        """The likeliest class of each of (N, D); `among`: of these alone."""
        x = np.concatenate([(features - self.mean) / self.scale, np.ones((len(features), 1))], 1)
        allowed = [i for i, name in enumerate(self.names) if among is None or name in among]
        return [self.names[allowed[i]] for i in (x @ self.weights)[:, allowed].argmax(1)]
