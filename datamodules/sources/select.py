"""From tracks to clips: which people and which stretches of time become samples, and why others do not.

Letters: P persons, T frames at 30 fps, J joints (18).
"""

from __future__ import annotations

import itertools
from collections import Counter
from dataclasses import dataclass

import numpy as np

from datamodules.sample import FPS
from datamodules.sources.tracking import body_size

_BODY = slice(1, 14)  # neck to ankles


@dataclass
class SelectConfig:
    """What is kept."""

    people: str = "all"  # all: clips with everyone of a stretch; each: a clip of its own for every person
    max_people: int = 4
    min_seconds: float = 1.0
    max_frames: int = 240  # longer stretches are split
    min_size: float = 0.1  # of a person, median of the box's longer side, as a share of the canvas's shorter side
    min_mean_confidence: float = 0.4  # of a person's visible joints
    min_visible: float = 0.5  # share of the body's joints that are visible, mean over the frames


@dataclass(frozen=True, eq=False)
class Person:
    """A track at 30 fps."""

    start: int  # first frame
    poses: np.ndarray  # (T, J, 3)

    @property
    def stop(self) -> int:
        return self.start + len(self.poses)


@dataclass(frozen=True, eq=False)
class Stretch:
    """A clip to be: the same people in all its frames."""

    start: int
    poses: np.ndarray  # (P, T, J, 3) float32


def reject_person(
    person: Person, size: tuple[int, int], threshold: float, config: SelectConfig
) -> str | None:
    """Why a track is no good, or None."""
    poses = person.poses
    if len(poses) < config.min_seconds * FPS:
        return "track shorter than min_seconds"
    sizes = body_size(poses, threshold)
    if not sizes.any() or np.median(sizes[sizes > 0]) < config.min_size * min(size):
        return "person smaller than min_size"
    seen = poses[..., 2] > threshold
    if poses[..., 2][seen].mean() < config.min_mean_confidence:
        return "confidence below min_mean_confidence"
    if seen[:, _BODY].mean() < config.min_visible:
        return "fewer joints than min_visible"
    return None


def make_clips(persons: list[Person], config: SelectConfig, rejected: Counter[str]) -> list[Stretch]:
    """Stretches with the same people throughout, none longer than `max_frames`; counts what is left out."""
    if config.people == "each":
        groups = [(p.start, p.stop, [p]) for p in persons]
    else:
        edges = sorted({edge for p in persons for edge in (p.start, p.stop)})
        groups = [
            (start, stop, [p for p in persons if p.start <= start and p.stop >= stop])
            for start, stop in itertools.pairwise(edges)
        ]
    stretches = []
    for start, stop, people in groups:
        if not people:
            continue
        if len(people) > config.max_people:
            rejected["more people than max_people"] += 1
        elif stop - start < config.min_seconds * FPS:
            rejected["stretch shorter than min_seconds"] += 1
        else:
            stretches += _split(start, stop, people, config.max_frames)
    return stretches


def _split(start: int, stop: int, people: list[Person], max_frames: int) -> list[Stretch]:
    """Equal parts of at most `max_frames` frames."""
    parts = -(-(stop - start) // max_frames)
    edges = np.linspace(start, stop, parts + 1).round().astype(int).tolist()
    return [
        Stretch(first, np.stack([p.poses[first - p.start : last - p.start] for p in people]).astype(np.float32))
        for first, last in itertools.pairwise(edges)
    ]
