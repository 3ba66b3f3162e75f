"""Training items of the interpolator: one person's dense poses and the key poses taken from them.

T frames, K keys, J joints; both counts are padded to the longest of a batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.interp.config import InterpConfig
from modules.pose.augment import reshape
from modules.pose.boxes import normalise
from modules.pose.scene import Clip, Person


class Encode:
    """Clip -> one item for every person, in box coordinates.

    Keys are at frames 0, s, 2s, ... of the crop. In training the stride s is drawn from `strides` for each clip; else
    it is the first of them; and clips are turned and stretched by chance.
    """

    def __init__(self, config: InterpConfig) -> None:
        self.config = config

    def __call__(self, clip: Clip, rng: np.random.Generator, train: bool) -> list[dict[str, Any]]:
        config, scene, caption = self.config, clip.scene, clip.caption
        fps = config.network.fps
        if not train:
            return [person_item(person, config.strides[0], fps, caption) for person in scene.persons]
        stride = int(rng.choice(config.strides))
        items = [person_item(person, stride, fps, caption) for person in scene.persons]
        if config.rotate or config.stretch:
            for item in items:
                item["poses"] = reshape(item["poses"], item["visibility"], rng, config.rotate, config.stretch)
                item["keys"] = item["poses"][::stride]
        return items


def person_item(person: Person, stride: int, fps: float, caption: str) -> dict[str, Any]:
    """Dense poses (T, J, 2), their visibility, and the keys among them (K, J, 2) with their times in seconds."""
    poses = normalise(person.joints, person.box, person.visibility).astype(np.float32)
    at = np.arange(0, len(poses), stride)
    return {
        "poses": poses,
        "visibility": person.visibility,
        "frame_mask": np.ones(len(poses), bool),
        "keys": poses[at],
        "key_visibility": person.visibility[at],
        "key_mask": np.ones(len(at), bool),
        "key_times": at / fps,
        "caption": caption,
    }


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Items of any length, padded with zeros.

    Returns:
        poses (B, T, J, 2), visibility (B, T, J), frame_mask (B, T), keys (B, K, J, 2), key_visibility (B, K, J),
        key_mask (B, K), key_times (B, K) seconds, captions (a list of B).
    """
    batch: dict[str, Any] = {
        name: _stack([item[name] for item in items]) for name in items[0] if name != "caption"
    }
    return batch | {"captions": [item["caption"] for item in items]}


def _stack(arrays: Sequence[np.ndarray]) -> Tensor:
    result = np.zeros((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]), arrays[0].dtype)
    for row, array in zip(result, arrays, strict=True):
        row[: len(array)] = array
    return torch.from_numpy(result)
