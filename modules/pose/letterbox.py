"""One transform from a canvas to a picture of another size, for video frames and joints alike."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import cv2
import numpy as np

from modules.pose.boxes import round_box
from modules.pose.scene import Person, Scene


@dataclass(frozen=True)
class Letterbox:
    """Fits a source canvas into a destination without distortion, centred, with black bars.

    Coordinates are continuous: a canvas spans 0..width, and pixel i covers i..i+1.
    """

    src: tuple[int, int]  # (width, height) px
    dst: tuple[int, int]  # (width, height) px

    def __post_init__(self) -> None:
        if min(*self.src, *self.dst) <= 0:
            raise ValueError(f"Letterbox: sizes must be positive, got {self.src} to {self.dst}")

    @property
    def inner(self) -> tuple[int, int, int, int]:
        """x, y, width, height of the picture inside the destination, whole px."""
        scale = min(self.dst[0] / self.src[0], self.dst[1] / self.src[1])
        width = min(self.dst[0], max(1, round(self.src[0] * scale)))
        height = min(self.dst[1], max(1, round(self.src[1] * scale)))
        return (self.dst[0] - width) // 2, (self.dst[1] - height) // 2, width, height

    @property
    def scale(self) -> tuple[float, float]:
        """Destination px per source px on x and y (they differ by the rounding to whole px only)."""
        _, _, width, height = self.inner
        return width / self.src[0], height / self.src[1]

    def points(self, points: np.ndarray) -> np.ndarray:
        """(..., 2) source px -> (..., 2) destination px."""
        return (points * self.scale + self.inner[:2]).astype(points.dtype)

    def points_back(self, points: np.ndarray) -> np.ndarray:
        """Inverse of `points`."""
        return ((points - self.inner[:2]) / self.scale).astype(points.dtype)

    def frames(self, frames: np.ndarray) -> np.ndarray:
        """(F, H, W, 3) uint8 of the source size -> (F, H', W', 3) uint8 of the destination size."""
        if frames.shape[1:3] != (self.src[1], self.src[0]):
            raise ValueError(
                f"Letterbox: frames are {frames.shape[2]}x{frames.shape[1]}, the canvas is "
                f"{self.src[0]}x{self.src[1]}: a video must have the canvas of its poses"
            )
        if self.src == self.dst:
            return frames
        x, y, width, height = self.inner
        # Area averaging for smaller pictures: the other filters alias.
        smaller = width < self.src[0] or height < self.src[1]
        filter_ = cv2.INTER_AREA if smaller else cv2.INTER_LINEAR
        out = np.zeros((len(frames), self.dst[1], self.dst[0], 3), np.uint8)
        for target, frame in zip(out, frames, strict=True):
            target[y : y + height, x : x + width] = cv2.resize(frame, (width, height), interpolation=filter_)
        return out

    def scene(self, scene: Scene) -> Scene:
        """The scene on the destination canvas. Unseen joints stay (0, 0); boxes are rounded to its grid."""
        width, height = self.dst
        persons = []
        for person in scene.persons:
            joints = self.points(person.joints) * person.visibility[..., None]
            box = self.points(person.box.reshape(2, 2)).reshape(4)  # two corners
            persons.append(Person(joints, person.visibility, round_box(box, width, height)))
        return dataclasses.replace(scene, width=width, height=height, persons=persons)
