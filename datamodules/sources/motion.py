"""Motion in time: other frame rates, bridged gaps.

Letters: T frames, J joints (18). Poses are (T, J, 3): x px, y px, confidence; an unseen joint is (0, 0, 0).
"""

from __future__ import annotations

import numpy as np
from scipy.interpolate import PchipInterpolator

from datamodules.sample import FPS

_EPSILON = 1e-6


def resample(
    poses: np.ndarray, times: np.ndarray, threshold: float, max_gap: float, fps: float = FPS
) -> tuple[int, np.ndarray]:
    """Poses at whole multiples of 1 / `fps`, by monotone cubic interpolation of each joint.

    Args:
        poses: (T, J, 3) at `times`.
        times: (T,) seconds, rising.
        threshold: a joint is seen above this confidence.
        max_gap: longest time in seconds between two sightings of a joint that is bridged; in a longer one it is unseen.
        fps: rate wanted.

    Returns:
        The number of the first frame, and (T', J, 3) float32 poses; T' is 0 where no multiple falls into the times.
    """
    first, last = int(np.ceil(times[0] * fps - _EPSILON)), int(np.floor(times[-1] * fps + _EPSILON))
    wanted = np.arange(first, last + 1) / fps
    result = np.zeros((len(wanted), poses.shape[1], 3), np.float32)
    for joint in range(poses.shape[1]):
        seen = poses[:, joint, 2] > threshold
        if not seen.any() or not len(wanted):
            continue
        known, values = times[seen], poses[seen, joint]
        before = np.clip(np.searchsorted(known, wanted + _EPSILON, side="right") - 1, 0, None)
        after = np.clip(before + 1, None, len(known) - 1)
        exact = np.abs(known[before] - wanted) < _EPSILON
        between = (known[before] <= wanted) & (known[after] >= wanted) & (known[after] - known[before] <= max_gap)
        valid = exact | between
        if len(known) == 1:
            result[valid, joint] = values[0]
            continue
        points = PchipInterpolator(known, values[:, :2], axis=0)(wanted)
        # A bridged joint is no surer than the less sure of its neighbours.
        sure = np.where(exact, values[before, 2], np.minimum(values[before, 2], values[after, 2]))
        result[valid, joint] = np.concatenate([points, sure[:, None]], -1)[valid]
    return first, result
