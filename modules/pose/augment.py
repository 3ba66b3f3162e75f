"""Other views of the same motion, for training on little data.

Letters: K poses in time, J joints (18).
"""

from __future__ import annotations

import numpy as np


def reshape(
    poses: np.ndarray, visibility: np.ndarray, rng: np.random.Generator, rotate: float, stretch: float
) -> np.ndarray:
    """Poses (K, J, 2) in box coordinates, turned and stretched as one picture, in the coordinates of their new box.

    Args:
        visibility: (K, J) bool.
        rotate: standard deviation of the turn, degrees.
        stretch: standard deviation of the logarithm of height over width.
    """
    angle, taller = np.deg2rad(rng.normal(0, rotate)), rng.normal(0, stretch) / 2
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    poses = poses @ (turn * np.exp([-taller, taller]))
    if not visibility.any():
        return poses.astype(np.float32)
    low, high = poses[visibility].min(0), poses[visibility].max(0)
    half = max(float((high - low).max()) / 2, 1e-6)
    return ((poses - (low + high) / 2) / half * visibility[..., None]).astype(np.float32)
