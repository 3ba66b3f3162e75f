"""What the evaluator reads of a clip: its people, at the network's own rate, and its caption.

Letters: B scenes, N people of all scenes, P people of one, T poses in time, J joints (18).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from modules.evaluator.config import EvaluatorConfig
from modules.pose.actors import clip_actors
from modules.pose.boxes import normalise
from modules.pose.scene import Clip, Scene
from modules.pose.skeleton import NUM_JOINTS

NUM_PLACES = 5  # numbers that say where a person is, and for how long


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


def scene_item(scene: Scene, rate: float) -> dict[str, Any]:
    """A scene as the network reads it, people in the order in which captions name them (by the left edge of the box).

    Returns:
        people: a list of {poses (T, J, 2) in box coordinates, visibility (T, J)}; places (P, 5): centre and size of
        each box as shares of the canvas, and the logarithm of the seconds; order (P,): the scene's own index of each.
    """
    order = sorted(range(len(scene.persons)), key=lambda index: tuple(scene.persons[index].box.tolist()))
    canvas = np.array([scene.width, scene.height] * 2, np.float32)
    spacing = (scene.times[-1] - scene.times[0]) / (scene.num_frames - 1) if scene.num_frames > 1 else 1 / scene.fps
    seconds = np.log(scene.num_frames * spacing)
    people, places = [], np.zeros((len(order), NUM_PLACES), np.float32)
    for place, index in zip(places, order, strict=True):
        person = scene.persons[index]
        joints, visibility = resample(person.joints, person.visibility, scene.times, rate)
        poses = normalise(joints, person.box, visibility).astype(np.float32)
        people.append({"poses": poses, "visibility": visibility})
        box = person.box / canvas
        place[:] = [*(box[:2] + box[2:]) - 1, *np.log(np.maximum(box[2:] - box[:2], 1e-3)), seconds]
    return {"people": people, "places": places, "order": order}


class Encode:
    """Clip -> one item, the scene with its caption; in training thinned to key poses, jittered or hidden by chance."""

    def __init__(self, config: EvaluatorConfig) -> None:
        self.config = config

    def __call__(self, clip: Clip, rng: np.random.Generator, train: bool) -> list[dict[str, Any]]:
        scene, config = clip.scene, self.config
        if not scene.persons:
            return []
        labels = {name: i for i, name in enumerate(config.network.labels)}
        if train and rng.random() < config.sparse_share and scene.num_frames > config.key_stride:
            scene = scene.keys(config.key_stride)
        item, actors = scene_item(scene, config.network.rate), clip_actors(clip)
        # An action that the training split does not have counts as a miss: no logit has the index -1.
        item["labels"] = [labels.get(actors[index].action, -1) for index in item.pop("order")]
        if train:
            item["people"] = [self._augment(person, rng) for person in item["people"]]
        return [item | {"caption": clip.caption}]

    def _augment(self, person: dict[str, Any], rng: np.random.Generator) -> dict[str, Any]:
        poses, visibility = person["poses"], person["visibility"]
        if rng.random() < self.config.hide_share:
            visibility = visibility & (rng.random(NUM_JOINTS) > 0.2)
        noise = rng.normal(0, self.config.jitter, poses.shape).astype(np.float32)
        return {"poses": (poses + noise) * visibility[..., None], "visibility": visibility}


def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Scenes of any length -> all their people side by side.

    Returns:
        poses (N, T, J, 2), visibility (N, T, J), frame_mask (N, T), place (N, 5), scene (N,): index of each person's
        scene, slot (N,): place from the left within it; where given, label (N,) and captions, a list of B.
    """
    people = [person for item in items for person in item["people"]]
    longest = max((len(person["poses"]) for person in people), default=1)
    poses = torch.zeros(len(people), longest, NUM_JOINTS, 2)
    visibility = torch.zeros(len(people), longest, NUM_JOINTS, dtype=torch.bool)
    frame_mask = torch.zeros(len(people), longest, dtype=torch.bool)
    for i, person in enumerate(people):
        length = len(person["poses"])
        poses[i, :length] = torch.from_numpy(person["poses"])
        visibility[i, :length] = torch.from_numpy(person["visibility"])
        frame_mask[i, :length] = True
    counts = [len(item["people"]) for item in items]
    batch: dict[str, Any] = {
        "poses": poses,
        "visibility": visibility,
        "frame_mask": frame_mask,
        "place": torch.from_numpy(np.concatenate([item["places"] for item in items])),
        "scene": torch.repeat_interleave(torch.arange(len(items)), torch.tensor(counts)),
        "slot": torch.cat([torch.arange(count) for count in counts]),
    }
    if "labels" in items[0]:
        batch["label"] = torch.tensor([label for item in items for label in item["labels"]], dtype=torch.int64)
    if "caption" in items[0]:
        batch["captions"] = [item["caption"] for item in items]
    return batch
