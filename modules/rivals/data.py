"""Training items of the rivals: the dense poses of a whole scene on its canvas.

Letters: B scenes, T dense frames, P places for people, J joints (18).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from modules.pose.scene import Clip
from modules.pose.skeleton import NUM_JOINTS
from modules.rivals.config import RivalNetworkConfig


class Encode:
    """Clip -> one item: people from left to right, in units of half of the canvas's longer side about its middle.

    Frames fill whole keys; the last one is held for that. Scenes with more people than it has places are left out.
    """

    def __init__(self, config: RivalNetworkConfig) -> None:
        self.config = config

    def __call__(self, clip: Clip, rng: np.random.Generator, train: bool) -> list[dict[str, Any]]:
        scene, config = clip.scene.ordered(), self.config
        count = len(scene.persons)
        if not 1 <= count <= config.max_people:
            return []
        keys = min(-(-scene.num_frames // config.stride), config.max_keys)
        frames = np.minimum(np.arange(keys * config.stride), scene.num_frames - 1)
        poses = np.zeros((len(frames), config.max_people, NUM_JOINTS, 2), np.float32)
        seen = np.zeros(poses.shape[:-1], bool)
        middle, unit = np.array([scene.width, scene.height]) / 2, max(scene.width, scene.height) / 2
        for place, person in enumerate(scene.persons):
            seen[:, place] = person.visibility[frames]
            poses[:, place] = (person.joints[frames] - middle) / unit * seen[:, place, :, None]
        return [{"poses": poses, "seen": seen, "people": count, "keys": keys, "caption": clip.caption}]


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Items -> poses (B, T, P, J, 2), seen (B, T, P, J), people (B,), keys (B,), captions (a list of B)."""
    longest = max(len(item["poses"]) for item in items)
    batch: dict[str, Any] = {}
    for name in ("poses", "seen"):
        arrays = [item[name] for item in items]
        stacked = np.zeros((len(items), longest, *arrays[0].shape[1:]), arrays[0].dtype)
        for row, array in zip(stacked, arrays, strict=True):
            row[: len(array)] = array
        batch[name] = torch.from_numpy(stacked)
    for name in ("people", "keys"):
        batch[name] = torch.tensor([item[name] for item in items])
    return batch | {"captions": [item["caption"] for item in items]}
