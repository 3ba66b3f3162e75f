"""Changes of training samples by chance: what cameras, detectors and people do.

Letters: P persons, T frames, J joints (18). Poses are (P, T, J, 3): x px, y px, confidence; unseen joints (0, 0, 0).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from datamodules.sample import Sample
from modules.pose.actors import swap_sides
from modules.pose.skeleton import MIRROR


@dataclass
class Augment:
    """How often, or how much. All 0: samples stay as they are."""

    mirror: float = 0.0  # share of the samples with left and right exchanged, in the captions, too
    jitter: float = 0.0  # noise of the joints as a detector has it: standard deviation in body sizes (0.01 is usual)
    joint_loss: float = 0.0  # share of joints that are unseen for a stretch of time
    side_swap: float = 0.0  # share of frames in which a person's left and right joints are exchanged
    time_warp: float = 0.0  # largest change of speed: 0.2 is from 0.8 to 1.2 times
    camera: float = 0.0  # largest zoom and shift of the picture: 0.1 is 10 % of the canvas

    @property
    def active(self) -> bool:
        """Anything is changed at all."""
        return any(dataclasses.astuple(self))

    @property
    def moves(self) -> bool:
        """The picture or its time changes: a video would not go with the poses any more."""
        return any((self.mirror, self.time_warp, self.camera))

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample:
        """The sample changed. The same generator gives the same changes."""
        poses, meta, captions = sample.poses, sample.meta, sample.captions
        width, height = meta["width"], meta["height"]
        if rng.random() < self.mirror:
            poses, meta, captions = mirror_poses(poses, width), mirror_meta(meta), [swap_sides(c) for c in captions]
        poses = time_warp(poses, self.time_warp, rng) if self.time_warp else poses
        poses = move_camera(poses, (width, height), self.camera, rng) if self.camera else poses
        poses = jitter(poses, self.jitter, rng) if self.jitter else poses
        poses = swap_frames(poses, self.side_swap, rng) if self.side_swap else poses
        poses = lose_joints(poses, self.joint_loss, rng) if self.joint_loss else poses
        return dataclasses.replace(sample, poses=poses, meta=meta, captions=captions)


def mirror_poses(poses: np.ndarray, width: int) -> np.ndarray:
    """Left and right exchanged, on the canvas and in the names of the joints."""
    poses = poses[..., list(MIRROR), :]
    return np.where(poses[..., 2:] > 0, poses * [-1, 1, 1] + [width, 0, 0], 0).astype(np.float32)


def mirror_meta(meta: dict[str, Any]) -> dict[str, Any]:
    """The metadata of a mirrored sample: sides and directions of the people, captions and label."""
    meta = {**meta}
    for name in ("caption", "label"):
        if isinstance(meta.get(name), str):
            meta[name] = swap_sides(meta[name])
    if isinstance(meta.get("captions"), list):
        meta["captions"] = [swap_sides(text) for text in meta["captions"]]
    if isinstance(meta.get("actors"), list):
        meta["actors"] = [
            {key: swap_sides(value) if isinstance(value, str) else value for key, value in actor.items()}
            if isinstance(actor, dict)
            else actor
            for actor in meta["actors"]
        ]
    return meta


def time_warp(poses: np.ndarray, most: float, rng: np.random.Generator) -> np.ndarray:
    """Another speed: 1 - most to 1 + most times. A joint is seen where both neighbouring frames show it."""
    frames = poses.shape[1]
    length = max(round(frames / (1 + rng.uniform(-most, most))), 1)
    places = np.linspace(0, frames - 1, length)
    low = np.floor(places).astype(int)
    high = np.minimum(low + 1, frames - 1)
    share = (places - low)[None, :, None, None]
    first, second = poses[:, low], poses[:, high]
    mixed = first * (1 - share) + second * share
    both = (first[..., 2:] > 0) & (second[..., 2:] > 0) | (share == 0)
    return np.where(both, mixed, 0).astype(np.float32)


def move_camera(poses: np.ndarray, size: tuple[int, int], most: float, rng: np.random.Generator) -> np.ndarray:
    """A zoom about the centre and a shift; what leaves the canvas is unseen."""
    zoom = 1 + rng.uniform(-most, most)
    centre = np.array(size) / 2
    points = (poses[..., :2] - centre) * zoom + centre + rng.uniform(-most, most, 2) * size
    inside = ((points >= 0) & (points <= size)).all(-1, keepdims=True) & (poses[..., 2:] > 0)
    return np.where(inside, np.concatenate([points, poses[..., 2:]], -1), 0).astype(np.float32)


def jitter(poses: np.ndarray, size: float, rng: np.random.Generator) -> np.ndarray:
    """Noise of each joint in each frame, in units of the longer side of the person's box."""
    seen = poses[..., 2:] > 0
    low = np.where(seen, poses[..., :2], np.inf).min((1, 2))
    high = np.where(seen, poses[..., :2], -np.inf).max((1, 2))
    body = np.where(seen.any((1, 2, 3)), (high - low).max(-1), 0)[:, None, None, None]
    noise = rng.normal(0, size, (*poses.shape[:-1], 2)) * body
    return np.where(seen, poses + np.pad(noise, [(0, 0)] * 3 + [(0, 1)]), 0).astype(np.float32)


def swap_frames(poses: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Left and right joints exchanged in single frames of a person, as detectors do for people seen from behind."""
    chosen = rng.random(poses.shape[:2]) < share
    return np.where(chosen[..., None, None], poses[..., list(MIRROR), :], poses)


def lose_joints(poses: np.ndarray, share: float, rng: np.random.Generator) -> np.ndarray:
    """Joints unseen for a stretch of up to half of the frames."""
    persons, frames, joints, _ = poses.shape
    # Stretches are a quarter of the frames on average: four times as many joints have one.
    chosen = rng.random((persons, joints)) < min(4 * share, 1)
    start = rng.integers(0, frames, (persons, joints))
    length = rng.integers(1, max(frames // 2, 1) + 1, (persons, joints))
    time = np.arange(frames)[None, :, None]
    lost = chosen[:, None] & (time >= start[:, None]) & (time < (start + length)[:, None])
    return np.where(lost[..., None], 0, poses).astype(np.float32)
