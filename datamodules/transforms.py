"""From a sample to a clip: crop, visibility, boxes."""

from __future__ import annotations

import numpy as np

from datamodules.sample import FPS, Sample
from modules.pose.scene import Clip, Scene, make_person


def crop_start(length: int, num_frames: int, rng: np.random.Generator | None) -> int:
    """First frame of a crop of at most `num_frames` frames: random, or 0 without a generator."""
    room = max(length - num_frames, 0)
    return int(rng.integers(room + 1)) if rng is not None and room else 0


def to_clip(
    sample: Sample, *, num_frames: int, min_confidence: float, rng: np.random.Generator | None = None
) -> Clip | None:
    """A crop of at most `num_frames` frames of a sample, with boxes over the crop.

    A joint is visible where its confidence is above `min_confidence`. People without a visible joint in the crop are
    left out, also from `meta["actors"]`.

    Args:
        sample: see `datamodules.sample`.
        num_frames: longest crop in dense frames.
        min_confidence: 0..1.
        rng: chooses the crop and the caption; None: from frame 0, the first caption.

    Returns:
        None where nobody is visible in the crop.
    """
    meta = sample.meta
    start = crop_start(sample.poses.shape[1], num_frames, rng)
    poses = sample.poses[:, start : start + num_frames]  # (P, N, J, 3)
    visibility = poses[..., 2] > min_confidence
    seen: list[bool] = [bool(visible.any()) for visible in visibility]
    if not any(seen):
        return None
    width, height = meta["width"], meta["height"]
    persons = [
        make_person(pose[..., :2], visible, width, height)
        for pose, visible, keep in zip(poses, visibility, seen, strict=True)
        if keep
    ]
    actors = meta.get("actors")
    if not all(seen) and isinstance(actors, list) and len(actors) == len(seen):
        meta = {**meta, "actors": [actor for actor, keep in zip(actors, seen, strict=True) if keep]}
    choice = int(rng.integers(len(sample.captions))) if rng is not None and len(sample.captions) > 1 else 0
    caption = sample.captions[choice]
    scene = Scene(width, height, float(FPS), np.arange(poses.shape[1]) / FPS, persons, caption)
    text = None if sample.text is None else sample.text[choice]
    return Clip(
        sample.key, scene, caption, str(meta.get("label", "")), meta, sample.video, start, sample.latents, text
    )
