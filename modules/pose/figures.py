"""Solid figures from 2D joints: capsules for the limbs, a body, a head, in the colours of clothes.

The same shapes give the picture (`draw_figures`) and the mask (`figure_mask`), so that a video can be held against the
poses that it should show. A part whose joints are not seen is not drawn. Letters: P persons, J = 18 joints.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np

from modules.pose.appearance import PARTS, FigureColours, draw_background
from modules.pose.skeleton import JOINT_NAMES

_JOINT = {name: index for index, name in enumerate(JOINT_NAMES)}
_SHIFT = 4  # fractional bits of OpenCV's coordinates

# Bones of the body and their length in units of the standing height. Arms count less: they come closest to the camera.
_BONES = (
    ("neck", "r_hip", 0.296), ("neck", "l_hip", 0.296), ("r_shoulder", "l_shoulder", 0.230),
    ("r_hip", "r_knee", 0.245), ("l_hip", "l_knee", 0.245), ("r_knee", "r_ankle", 0.245), ("l_knee", "l_ankle", 0.245),
    ("r_shoulder", "r_elbow", 0.187), ("l_shoulder", "l_elbow", 0.187),
    ("r_elbow", "r_wrist", 0.163), ("l_elbow", "l_wrist", 0.163),
)  # fmt: skip
_BONE_ENDS = np.array([(_JOINT[a], _JOINT[b]) for a, b, _ in _BONES])
_BONE_LENGTHS = np.array([length for *_, length in _BONES])

# Thickness in units of the standing height.
_THICKNESS = {
    "thigh": 0.085, "shin": 0.068, "upper_arm": 0.066, "forearm": 0.054, "neck": 0.062,
    "trunk": 0.135, "pelvis": 0.11, "rim": 0.055,
}  # fmt: skip
_MIN_THICKNESS = 1.5  # px: thinner parts do not survive on a small canvas
_HEAD, _FACE, _HAND, _SHOE = 0.068, 0.057, 0.034, 0.043  # radii
_LIMB_SHADE, _FAR_SHADE = 0.88, 0.74  # limbs stand out from the body; those behind it are darker


Point = tuple[float, float]


class _Shape(NamedTuple):
    """A line with round ends (2 points), a disc (1 point) or a polygon with a rim, in pixels of the canvas."""

    points: tuple[Point, ...]
    thickness: float  # of the line or the rim; diameter of a disc
    part: str
    depth: float
    shade: float = 1.0


def figure_height(joints: np.ndarray, visibility: np.ndarray) -> np.ndarray:
    """Standing height in px that fits the bones as they are seen: (..., 18, 2), (..., 18) -> (...).

    The largest estimate of all bones counts, because a bone that points at the camera looks short. 0 where no bone is
    seen.
    """
    ends = joints[..., _BONE_ENDS, :]  # (..., bones, 2 ends, 2)
    lengths = np.linalg.norm(ends[..., 0, :] - ends[..., 1, :], axis=-1) / _BONE_LENGTHS
    seen = visibility[..., _BONE_ENDS].all(-1)
    return np.where(seen, lengths, 0.0).max(-1)


def figure_mask(joints: np.ndarray, visibility: np.ndarray, height: int, width: int) -> np.ndarray:
    """Coverage of the canvas by all figures.

    Args:
        joints: (P, 18, 2) px.
        visibility: (P, 18) bool.
        height, width: canvas in px.

    Returns:
        (height, width) float32 in 0..1; the figure is where it is above 0.5.
    """
    factor = _oversampling(height)
    canvas = np.zeros((height * factor, width * factor), np.uint8)
    for person_joints, person_visibility in zip(joints, visibility, strict=True):
        for shape in _shapes(person_joints, person_visibility, None):
            _paint(canvas, shape, (255, 255, 255), factor)
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA).astype(np.float32) / 255.0


def draw_figures(
    joints: np.ndarray,
    visibility: np.ndarray,
    colours: Sequence[FigureColours],
    height: int,
    width: int,
    depths: np.ndarray | None = None,
    background: str | np.ndarray = "white wall",
) -> np.ndarray:
    """Draws people as solid figures, the far ones first.

    Args:
        joints: (P, 18, 2) px.
        visibility: (P, 18) bool.
        colours: one per person.
        height, width: canvas in px.
        depths: (P, 18) distance of each joint from the camera, in any unit; None: people with lower feet are nearer,
            and arms are in front of the body.
        background: name of a background, or a picture (height, width, 3) uint8.

    Returns:
        (height, width, 3) uint8 RGB.
    """
    factor = _oversampling(height)
    if isinstance(background, str):
        canvas = _large_background(background, height, width).copy()
    else:
        canvas = cv2.resize(background, (width * factor, height * factor), interpolation=cv2.INTER_NEAREST)
    for person in _far_to_near(joints, visibility, depths):
        own_depths = None if depths is None else depths[person]
        palette = {part: colours[person].rgb(part) for part in PARTS}
        for shape in _shapes(joints[person], visibility[person], own_depths):
            red, green, blue = palette[shape.part]
            _paint(canvas, shape, (shape.shade * red, shape.shade * green, shape.shade * blue), factor)
    return cv2.resize(canvas, (width, height), interpolation=cv2.INTER_AREA)


def _oversampling(height: int) -> int:
    return 4 if height <= 128 else 2


@functools.lru_cache(maxsize=16)
def _large_background(name: str, height: int, width: int) -> np.ndarray:
    factor = _oversampling(height)
    picture = draw_background(name, height, width)
    return cv2.resize(picture, (width * factor, height * factor), interpolation=cv2.INTER_NEAREST)


def _far_to_near(joints: np.ndarray, visibility: np.ndarray, depths: np.ndarray | None) -> list[int]:
    persons = range(len(joints))
    if depths is not None:
        return sorted(persons, key=lambda p: -float(np.mean(depths[p])))
    return sorted(persons, key=lambda p: float(np.max(joints[p, :, 1], where=visibility[p], initial=0.0)))


def _paint(canvas: np.ndarray, shape: _Shape, colour: tuple[float, ...], factor: int) -> None:
    scale, half = factor * (1 << _SHIFT), 0.5 * (1 << _SHIFT)
    # the centre of the first small pixel is at 0.5 / factor
    points = [(round(x * scale - half), round(y * scale - half)) for x, y in shape.points]
    thickness = max(1, round(shape.thickness * factor))
    if len(points) == 1:
        radius = max(1, round(0.5 * shape.thickness * scale))
        cv2.circle(canvas, points[0], radius, colour, -1, cv2.LINE_8, _SHIFT)
    elif len(points) == 2:
        cv2.line(canvas, points[0], points[1], colour, thickness, cv2.LINE_8, _SHIFT)
    else:
        outline = np.array(points, np.int32)
        cv2.fillConvexPoly(canvas, cv2.convexHull(outline), colour, cv2.LINE_8, _SHIFT)
        cv2.polylines(canvas, [outline], True, colour, thickness, cv2.LINE_8, _SHIFT)


def _mix(a: Point, b: Point, share: float) -> Point:
    """The point at `share` of the way from a to b (beyond them below 0 and above 1)."""
    return a[0] + share * (b[0] - a[0]), a[1] + share * (b[1] - a[1])


def _mean(points: Sequence[Point]) -> Point:
    return sum(p[0] for p in points) / len(points), sum(p[1] for p in points) / len(points)


class _Builder:
    """Collects the shapes of one person. Plain numbers: arrays of two are slow, and there are many shapes."""

    def __init__(self, joints: np.ndarray, visibility: np.ndarray, depths: np.ndarray | None) -> None:
        self.points: dict[str, Point] = {
            name: point
            for name, point, seen in zip(JOINT_NAMES, joints.tolist(), visibility.tolist(), strict=True)
            if seen
        }
        self.depths: dict[str, float] | None = (
            None if depths is None else dict(zip(JOINT_NAMES, depths.tolist(), strict=True))
        )
        self.height = self._height()
        self.shapes: list[_Shape] = []
        self.trunk_depth = self.depth("neck", "r_hip", "l_hip") or 0.0

    def _height(self) -> float:
        """`figure_height` of this person."""
        height, points = 0.0, self.points
        for first, second, length in _BONES:
            a, b = points.get(first), points.get(second)
            if a and b:
                height = max(height, math.hypot(a[0] - b[0], a[1] - b[1]) / length)
        return height

    def get(self, *names: str) -> list[Point] | None:
        """The points of these joints if all are seen."""
        if all(name in self.points for name in names):
            return [self.points[name] for name in names]
        return None

    def depth(self, *names: str) -> float | None:
        if self.depths is None:
            return None
        return sum(self.depths[name] for name in names) / len(names)

    def add(self, points: Sequence[Point], thickness: float, part: str, depth: float, shade: float = 1.0) -> None:
        width = max(thickness * self.height, _MIN_THICKNESS)
        self.shapes.append(_Shape(tuple(points), width, part, depth, shade))

    def limb(self, first: str, second: str, thickness: float, part: str, layer: float) -> tuple[float, float]:
        """A line between two joints; returns its depth and shade, for what is drawn at its end."""
        depth, shade = self.depth(first, second), _LIMB_SHADE
        if depth is None:
            depth = -layer
        elif depth > 1.01 * self.trunk_depth:
            shade = _FAR_SHADE
        ends = self.get(first, second)
        if ends:
            self.add(ends, thickness, part, depth, shade)
        return depth, shade


def _shapes(joints: np.ndarray, visibility: np.ndarray, depths: np.ndarray | None) -> list[_Shape]:
    """All shapes of one person, far ones first."""
    build = _Builder(joints, visibility, depths)
    if build.height <= 0.0:
        return []
    _trunk(build)
    for side in ("r", "l"):
        _leg(build, side)
        _arm(build, side)
    _head(build)
    return sorted(build.shapes, key=lambda shape: -shape.depth)


def _trunk(build: _Builder) -> None:
    depth = build.trunk_depth
    hips = build.get("r_hip", "l_hip")
    if hips:
        build.add(hips, _THICKNESS["pelvis"], "trousers", depth + 1e-3)
    top = [build.points[n] for n in ("r_shoulder", "l_shoulder") if n in build.points]
    low = [build.points[n] for n in ("l_hip", "r_hip") if n in build.points]
    if len(top) + len(low) >= 3:
        # the shirt ends a little above the hips
        up, down = _mean(top), _mean(low)
        hem = [(x + 0.10 * (up[0] - down[0]), y + 0.10 * (up[1] - down[1])) for x, y in low]
        build.add([*top, *hem], _THICKNESS["rim"], "shirt", depth)
    neck = build.get("neck")
    if neck and hips:
        middle = _mean(hips)
        build.add([_mix(neck[0], middle, 0.16), _mix(neck[0], middle, 0.80)], _THICKNESS["trunk"], "shirt", depth)


def _leg(build: _Builder, side: str) -> None:
    hip, knee, ankle = (f"{side}_{name}" for name in ("hip", "knee", "ankle"))
    build.limb(hip, knee, _THICKNESS["thigh"], "trousers", -2.0)
    depth, shade = build.limb(knee, ankle, _THICKNESS["shin"], "trousers", -3.0)
    if ankle in build.points:
        build.add([build.points[ankle]], 2 * _SHOE, "shoes", depth - 1e-3, shade)


def _arm(build: _Builder, side: str) -> None:
    shoulder, elbow, wrist = (f"{side}_{name}" for name in ("shoulder", "elbow", "wrist"))
    build.limb(shoulder, elbow, _THICKNESS["upper_arm"], "shirt", 3.0)
    depth, shade = build.limb(elbow, wrist, _THICKNESS["forearm"], "skin", 4.0)
    if wrist in build.points:
        forearm = build.get(elbow, wrist)
        hand = _mix(forearm[0], forearm[1], 1.18) if forearm else build.points[wrist]
        build.add([hand], 2 * _HAND, "skin", depth - 1e-3, shade)


def _head(build: _Builder) -> None:
    ears = [build.points[n] for n in ("r_ear", "l_ear") if n in build.points]
    face = [build.points[n] for n in ("nose", "r_eye", "l_eye") if n in build.points]
    if not ears and not face:
        return
    x, y = centre = _mean(ears or face)
    depth = build.depth("neck", "nose", "r_ear", "l_ear")
    depth = -1.0 if depth is None else depth
    up = (0.0, -1.0)
    if "neck" in build.points:
        neck = build.points["neck"]
        build.add([neck, centre], _THICKNESS["neck"], "skin", depth + 1e-3, _LIMB_SHADE)
        # a neck that points at the camera has no direction
        stretch = max(math.hypot(x - neck[0], y - neck[1]), 0.05 * build.height)
        up = ((x - neck[0]) / stretch, (y - neck[1]) / stretch)
    # the ears sit below the middle of the head
    raised = 0.012 * build.height
    build.add([(x + raised * up[0], y + raised * up[1])], 2 * _HEAD, "hair", depth)
    if "nose" in build.points:
        nose_x, nose_y = build.points["nose"]
        lowered = -0.008 * build.height
        front = (x + 0.42 * (nose_x - x) + lowered * up[0], y + 0.42 * (nose_y - y) + lowered * up[1])
        build.add([front], 2 * _FACE, "skin", depth - 1e-3)
