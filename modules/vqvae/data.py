"""What the pose tokenizer reads of a clip: the key poses of one person.

Letters: K key poses, J joints (18).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.pose.augment import reshape
from modules.pose.boxes import normalise
from modules.pose.scene import Clip
from modules.pose.skeleton import NUM_JOINTS
from modules.vqvae.config import VQVAEConfig


class Encode:
    """Clip -> one item a person: poses (K, J, 2) in box coordinates, visibility (K, J), box (4,) px.

    K is at most `num_keys`; a longer clip gives a random stretch in training, the first otherwise. In training the
    first key is at a random frame of the first stride, and items are mirrored, turned, stretched, played faster or
    slower, or hidden in part, by chance.
    """

    def __init__(self, config: VQVAEConfig) -> None:
        self.config = config

    def __call__(self, clip: Clip, rng: np.random.Generator, train: bool) -> list[dict[str, Any]]:
        config, scene = self.config, clip.scene
        frames = scene.num_frames
        longest = config.stride * config.num_keys
        # Later by up to a stride, so that any frame can be a key; short clips keep a key or more.
        latest = max(frames - longest, min(config.stride, frames) - 1)
        first = int(rng.integers(latest + 1)) if train else 0
        if frames > longest:
            scene, first = scene.crop(first, min(frames, first + longest)), 0
        # A start within the first stride leaves the box as it is: it is that of the clip, but for a few frames.
        pace = 1 + config.tempo * rng.uniform(-1, 1) if train else 1.0
        at = np.arange(first, scene.num_frames, config.stride * pace).round().astype(int)
        keys = scene.at(at[at < scene.num_frames][: config.num_keys])
        if train and rng.random() < config.mirror_share:
            keys = keys.mirrored()
        items = []
        for person in keys.persons:
            poses = normalise(person.joints, person.box, person.visibility).astype(np.float32)
            if train and (config.rotate or config.stretch):
                poses = reshape(poses, person.visibility, rng, config.rotate, config.stretch)
            item = {"poses": poses, "visibility": person.visibility, "box": person.box}
            if train and rng.random() < config.hide_share:
                item["visibility"] = hide(person.visibility, rng)
            items.append(item)
        return items


def hide(visibility: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Visibility (K, J) with some joints, or the whole person, unseen for a stretch of the keys."""
    start, stop = np.sort(rng.integers(0, len(visibility) + 1, 2))
    hidden = np.ones(NUM_JOINTS, bool) if rng.random() < 0.5 else rng.random(NUM_JOINTS) < rng.uniform(0.1, 0.6)
    visibility = visibility.copy()
    visibility[start:stop] &= ~hidden
    return visibility


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Items -> poses (B, K, J, 2), visibility (B, K, J), key_mask (B, K), boxes (B, 4), padded to the longest item."""
    longest = max(len(item["poses"]) for item in items)
    poses = torch.zeros(len(items), longest, NUM_JOINTS, 2)
    visibility = torch.zeros(len(items), longest, NUM_JOINTS, dtype=torch.bool)
    key_mask = torch.zeros(len(items), longest, dtype=torch.bool)
    for i, item in enumerate(items):
        length = len(item["poses"])
        poses[i, :length] = torch.from_numpy(item["poses"])
        visibility[i, :length] = torch.from_numpy(item["visibility"])
        key_mask[i, :length] = True
    boxes = torch.from_numpy(np.stack([item["box"] for item in items]))
    return {"poses": poses, "visibility": visibility, "key_mask": key_mask, "boxes": boxes}
