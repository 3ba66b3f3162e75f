"""What the evaluator reads of a clip: one item a person, at the network's own rate.

Letters: T poses in time, J joints (18).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from modules.evaluator.config import EvaluatorConfig
from modules.pose.actors import clip_actors
from modules.pose.boxes import normalise
from modules.pose.scene import Clip, Person
from modules.pose.skeleton import NUM_JOINTS


def resample(
    joints: np.ndarray, visibility: np.ndarray, times: np.ndarray, rate: float
) -> tuple[np.ndarray, np.ndarray]:
    """Poses at another rate by linear interpolation, from the first to the last time.

    Args:
        joints: (N, J, 2); visibility: (N, J) bool; times: (N,) seconds.
        rate: poses per second.

    Returns:
        (T, J, 2) and (T, J): a joint is visible where it is at both neighbours.
    """
    grid = np.arange(times[0], times[-1] + 1e-6, 1 / rate)
    if len(times) < 2:
        return joints[[0] * len(grid)], visibility[[0] * len(grid)]
    left = np.clip(np.searchsorted(times, grid + 1e-9, side="right") - 1, 0, len(times) - 2)
    weight = ((grid - times[left]) / (times[left + 1] - times[left])).astype(np.float32)
    # A time of the source itself has one neighbour: the other one may be unseen.
    on_left, on_right = weight < 1e-4, weight > 1 - 1e-4
    seen = (visibility[left] | on_right[:, None]) & (visibility[left + 1] | on_left[:, None])
    blend = weight[:, None, None]
    return (joints[left] * (1 - blend) + joints[left + 1] * blend) * seen[..., None], seen


def person_item(person: Person, times: np.ndarray, rate: float) -> dict[str, Any]:
    """A person as the network reads it: poses (T, J, 2) in box coordinates and visibility (T, J)."""
    joints, visibility = resample(person.joints, person.visibility, times, rate)
    return {"poses": normalise(joints, person.box, visibility).astype(np.float32), "visibility": visibility}


class Encode:
    """Clip -> one item a person; in training mirrored, thinned to key poses, jittered or partly hidden by chance."""

    def __init__(self, config: EvaluatorConfig) -> None:
        self.config = config

    def __call__(self, clip: Clip, rng: np.random.Generator, train: bool) -> list[dict[str, Any]]:
        scene, actors, config = clip.scene, clip_actors(clip), self.config
        labels = {name: i for i, name in enumerate(config.network.labels)}
        if train and rng.random() < 0.5:
            scene = scene.mirrored()
        if train and rng.random() < config.sparse_share and scene.num_frames > config.key_stride:
            scene = scene.keys(config.key_stride)
        items = []
        for person, actor in zip(scene.persons, actors, strict=True):
            # An action that the training split does not have counts as a miss: no logit has the index -1.
            item = person_item(person, scene.times, config.network.rate) | {"label": labels.get(actor.action, -1)}
            if train:
                item = self._augment(item, rng)
            items.append(item)
        return items

    def _augment(self, item: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        poses, visibility = item["poses"], item["visibility"]
        if rng.random() < self.config.hide_share:
            visibility = visibility & (rng.random(NUM_JOINTS) > 0.2)
        noise = rng.normal(0, self.config.jitter, poses.shape).astype(np.float32)
        return item | {"poses": (poses + noise) * visibility[..., None], "visibility": visibility}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Tensor]:
    """Items of any length -> poses (B, T, J, 2), visibility (B, T, J), frame_mask (B, T), label (B,) where given."""
    longest = max(len(item["poses"]) for item in items)
    poses = torch.zeros(len(items), longest, NUM_JOINTS, 2)
    visibility = torch.zeros(len(items), longest, NUM_JOINTS, dtype=torch.bool)
    frame_mask = torch.zeros(len(items), longest, dtype=torch.bool)
    for i, item in enumerate(items):
        length = len(item["poses"])
        poses[i, :length] = torch.from_numpy(item["poses"])
        visibility[i, :length] = torch.from_numpy(item["visibility"])
        frame_mask[i, :length] = True
    batch = {"poses": poses, "visibility": visibility, "frame_mask": frame_mask}
    if "label" in items[0]:
        batch["label"] = torch.tensor([item["label"] for item in items])
    return batch
