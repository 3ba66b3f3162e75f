"""The scene: people as 2D joints on a canvas over time, and one sample of the data set.

Letters: P persons, N points in time (dense frames or key poses), J joints (18).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from modules.pose.boxes import BOX_BINS, box_to_tokens, extent, round_box, tokens_to_box
from modules.pose.skeleton import MIRROR, NUM_JOINTS


@dataclass(eq=False)
class Person:
    """One person over the times of a scene."""

    joints: np.ndarray  # (N, J, 2) float32 px, (0, 0) where unseen
    visibility: np.ndarray  # (N, J) bool
    box: np.ndarray  # (4,) float32 px xyxy, on the box-token grid


def make_person(joints: np.ndarray, visibility: np.ndarray, width: int, height: int) -> Person:
    """A person with the rounded box of the visible joints; unseen joints become (0, 0).

    Args:
        joints: (N, J, 2) px.
        visibility: (N, J) bool.
        width, height: canvas in px.

    Raises:
        ValueError: no joint is visible in any frame (such a person is not part of a scene).
    """
    visibility = np.ascontiguousarray(visibility, dtype=bool)
    joints = np.where(visibility[..., None], joints, 0).astype(np.float32)
    return Person(joints, visibility, round_box(extent(joints, visibility), width, height))


@dataclass(eq=False)
class Scene:
    """People on a canvas. Dense poses and key poses are the same type at different times."""

    width: int  # px
    height: int  # px
    fps: float  # rate of the dense frames, also for key poses
    times: np.ndarray  # (N,) float64 seconds; dense: i / fps; keys: k * stride / fps
    persons: list[Person]
    prompt: str = ""
    later: tuple[tuple[float, str], ...] = ()  # (seconds, prompt), ascending: another prompt from that time on

    def prompt_at(self, time: float) -> str:
        """The prompt that holds at a time in seconds."""
        past = [prompt for start, prompt in self.later if start <= time + 1e-6]
        return past[-1] if past else self.prompt

    @property
    def num_frames(self) -> int:
        """N: the number of points in time."""
        return len(self.times)

    @property
    def joints(self) -> np.ndarray:
        """(P, N, J, 2) float32 px."""
        empty = np.zeros((0, self.num_frames, NUM_JOINTS, 2), np.float32)
        return np.stack([person.joints for person in self.persons]) if self.persons else empty

    @property
    def visibility(self) -> np.ndarray:
        """(P, N, J) bool."""
        empty = np.zeros((0, self.num_frames, NUM_JOINTS), bool)
        return np.stack([person.visibility for person in self.persons]) if self.persons else empty

    @property
    def boxes(self) -> np.ndarray:
        """(P, 4) float32 px."""
        empty = np.zeros((0, 4), np.float32)
        return np.stack([person.box for person in self.persons]) if self.persons else empty

    def at(self, indices: Sequence[int] | np.ndarray) -> Scene:
        """The scene at some of its points in time. Boxes stay those of the whole scene."""
        indices = np.asarray(indices, dtype=np.int64)
        persons = [Person(p.joints[indices], p.visibility[indices], p.box) for p in self.persons]
        return dataclasses.replace(self, times=self.times[indices], persons=persons)

    def keys(self, stride: int) -> Scene:
        """Key poses at frames 0, s, 2s, ... of a dense scene: K = ceil(N / s) of them."""
        return self.at(np.arange(0, self.num_frames, stride))

    def crop(self, start: int, stop: int) -> Scene:
        """Frames start..stop-1, with time from 0, boxes over the crop, without people never seen in it."""
        if not 0 <= start < stop <= self.num_frames:
            raise ValueError(f"crop {start}..{stop} is not within the {self.num_frames} frames of the scene")
        persons = [
            make_person(p.joints[start:stop], p.visibility[start:stop], self.width, self.height)
            for p in self.persons
            if p.visibility[start:stop].any()
        ]
        # Frame i of any dense crop is at the same time i / fps, bit for bit; a difference would round.
        times = self.times[: stop - start] - self.times[0]
        first = float(self.times[start])
        later = tuple((time - first, prompt) for time, prompt in self.later if time > first)
        return dataclasses.replace(
            self, times=times, persons=persons, prompt=self.prompt_at(first) if self.later else self.prompt, later=later
        )

    def mirrored(self) -> Scene:
        """Left and right exchanged, on the canvas and in the names of the joints.

        The order of the persons and the prompt stay as they are: `ordered()` sorts again.
        """
        mirror = list(MIRROR)
        flip, shift = np.array([-1, 1], np.float32), np.array([self.width, 0], np.float32)
        persons = []
        for p in self.persons:
            visibility = p.visibility[:, mirror]
            joints = p.joints[:, mirror] * flip + shift
            x0, y0, x1, y1 = box_to_tokens(p.box, self.width, self.height)
            last = BOX_BINS - 1
            box = tokens_to_box(np.array([last - x1, y0, last - x0, y1]), self.width, self.height)
            persons.append(Person(joints * visibility[..., None], visibility, box))
        return dataclasses.replace(self, persons=persons)

    def ordered(self) -> Scene:
        """The same scene with the people in the order of the grammar: by the left edge of the box."""
        return dataclasses.replace(self, persons=sorted(self.persons, key=lambda p: tuple(p.box.tolist())))


@dataclass(eq=False)
class Clip:
    """One sample of the data set, as the DataModule hands it to a stage's encode function."""

    key: str
    scene: Scene  # dense, at most `num_frames` frames, boxes over the crop
    caption: str
    label: str = ""
    meta: dict[str, Any] = field(default_factory=dict)  # the whole json of the sample
    video: bytes | None = None  # encoded video, where it was asked for
    start: int = 0  # first frame of the crop in the sample and in its video
    latents: np.ndarray | None = None  # (N, C, h, w) of every n-th frame of the sample, see `datamodules/sample.py`
    text: np.ndarray | None = None  # (L, D) states of the caption
