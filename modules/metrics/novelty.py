"""Novelty: how far a motion is from the nearest one of the training split.

Letters: M motions, K key poses, J joints (18).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from modules.pose.boxes import normalise
from modules.pose.scene import Scene

MAX_KEYS = 20


@dataclass
class Motions:
    """Motions of single persons as key poses in box coordinates, padded to one length."""

    poses: np.ndarray  # (M, K, J, 2) float32
    seen: np.ndarray  # (M, K, J) bool, False for padding


def gather_motions(scenes: Sequence[Scene], stride: int) -> Motions:
    """Every person of every scene. Dense scenes are thinned to keys first; at most 20 keys count.

    Args:
        scenes: dense scenes or scenes of key poses.
        stride: dense frames per key pose.
    """
    poses, seen = [], []
    for scene in scenes:
        dense = scene.num_frames > 1 and scene.times[1] < (stride - 0.5) / scene.fps
        keys = scene.keys(stride) if dense else scene
        count = min(keys.num_frames, MAX_KEYS)
        pad = ((0, MAX_KEYS - count), (0, 0))
        for person in keys.persons:
            coords = normalise(person.joints, person.box, person.visibility)[:count]
            poses.append(np.pad(coords.astype(np.float32), (*pad, (0, 0))))
            seen.append(np.pad(person.visibility[:count], pad))
    if not poses:
        raise ValueError("gather_motions: there is nobody in the scenes")
    return Motions(np.stack(poses), np.stack(seen))


def nearest_distances(queries: Motions, references: Motions) -> np.ndarray:
    """Distance of each query to its nearest reference: (M,), in units of half of the box's longer side.

    The distance of two motions is the mean over the joints and keys that both have; it is 0 for a copy, also for one
    that was cut short.
    """
    result = np.empty(len(queries.poses), np.float32)
    for i, (pose, seen) in enumerate(zip(queries.poses, queries.seen, strict=True)):
        both = references.seen & seen  # (M, K, J)
        offset = references.poses - pose  # (M, K, J, 2)
        distance = np.sqrt(np.einsum("mkjc,mkjc->mkj", offset, offset))
        count = both.sum((1, 2))
        mean = np.where(count > 0, (distance * both).sum((1, 2)) / np.maximum(count, 1), np.inf)
        result[i] = mean.min()
    return result
