"""What a video shows, read from its pixels alone: where the figures are, and in which colours.

The segmenter knows neither the prompt nor the poses, nor the palette, and is not trained: it takes the background of
each row from the video itself. On real test clips it agrees with the figures drawn from the poses at an IoU of 0.97.

Letters: F frames, P persons, J = 18 joints, H x W pixels.
"""

from __future__ import annotations

import cv2
import numpy as np

from modules.pose.appearance import BACKGROUNDS, CLOTHES, FLOOR_ROW, RGB
from modules.pose.skeleton import JOINT_NAMES

_MIN_CONTRAST = 16.0  # CIELAB units: less is noise of the background
_SAME_COLOUR = 20.0  # CIELAB units
# A pixel is figure where it is at least so much of its neighbourhood's full contrast away from the background. Less
# than a half, because thin limbs never reach their full contrast.
_SHARE = 0.45
# The same between two pixels of the figure: colours that mix where two parts meet may come close to the background.
_SEAM_SHARE = 0.3
_SHADES = (1.0, 0.87, 0.74)  # limbs are drawn darker than the body, those behind it more so
_SPINE, _THIGH = (0.25, 0.35, 0.45, 0.55, 0.65), (0.35, 0.5, 0.65, 0.8)  # where to look, from 0 to 1 along the part
_JOINT = {name: index for index, name in enumerate(JOINT_NAMES)}


def to_lab(frames: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 RGB -> (..., 3) float32 CIELAB, where distances are like those that people see."""
    flat = np.ascontiguousarray(frames).reshape(-1, 1, 3).astype(np.float32) / 255.0
    return cv2.cvtColor(flat, cv2.COLOR_RGB2Lab).reshape(frames.shape)


def _background(lab: np.ndarray) -> np.ndarray:
    """Background colour of each row: (F, H, W, 3) -> (F, H, 1, 3).

    People move or leave gaps, and the background stays: the most common colour of a row over the clip, found by mean
    shift from the median of the pixels at the borders.
    """
    frames, height, width, _ = lab.shape
    rows = lab.transpose(1, 0, 2, 3).reshape(height, -1, 3)  # (H, F*W, 3)
    border = np.concatenate([lab[:, :, :3], lab[:, :, -3:]], axis=2).transpose(1, 0, 2, 3).reshape(height, -1, 3)
    centre = np.median(border, axis=1, keepdims=True)  # (H, 1, 3)
    for _ in range(4):
        near = np.linalg.norm(rows - centre, axis=-1) < _SAME_COLOUR
        weight = near.sum(1, keepdims=True)[..., None]
        moved = (rows * near[..., None]).sum(1, keepdims=True) / np.maximum(weight, 1)
        centre = np.where(weight > 0, moved, centre)
    return np.broadcast_to(centre.transpose(1, 0, 2)[:, :, None], (frames, height, 1, 3))


def segment(frames: np.ndarray) -> np.ndarray:
    """Which pixels show a figure.

    Args:
        frames: (F, H, W, 3) uint8 RGB, frames of one video with a still background.

    Returns:
        (F, H, W) bool.
    """
    lab = to_lab(frames)
    distance = np.linalg.norm(lab - _background(lab), axis=-1)
    masks = np.empty(distance.shape, bool)
    kernel = np.ones((3, 3), np.uint8)
    for mask, contrast in zip(masks, distance, strict=True):
        # the full contrast of the figure here: it is another one for a pale shirt than for black trousers
        full = cv2.dilate(contrast, kernel)
        inside = (contrast > _MIN_CONTRAST) & (contrast > _SHARE * full)
        around = np.pad(inside, 1)
        seam = (around[:-2, 1:-1] & around[2:, 1:-1]) | (around[1:-1, :-2] & around[1:-1, 2:])
        mask[:] = inside | (seam & (contrast > _SEAM_SHARE * full))
    return masks


def background_flicker(frames: np.ndarray, masks: np.ndarray) -> float | None:
    """Temporal consistency of what stands still: mean change from frame to frame of pixels that show no figure.

    Args:
        frames: (F, H, W, 3) uint8.
        masks: (F, H, W) bool, the figures; their surroundings are left out, too.

    Returns:
        Of 255; None for a single frame, or where figures are everywhere.
    """
    if len(frames) < 2:
        return None
    kernel = np.ones((5, 5), np.uint8)
    free = np.stack([cv2.dilate(mask.astype(np.uint8), kernel) == 0 for mask in masks])
    both = free[1:] & free[:-1]
    change = np.abs(frames[1:].astype(np.int16) - frames[:-1]).mean(-1)
    return float(change[both].mean()) if both.any() else None


def figure_iou(masks: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Intersection over union of each frame: (F, H, W) bool twice -> (F,). Two empty masks agree: 1."""
    intersection = (masks & others).sum((-2, -1))
    union = (masks | others).sum((-2, -1))
    return np.where(union > 0, intersection / np.maximum(union, 1), 1.0)


def read_colours(
    frames: np.ndarray, masks: np.ndarray, joints: np.ndarray, visibility: np.ndarray
) -> tuple[str, list[tuple[str, str]]]:
    """Names of the colours of the background and of each person's shirt and trousers.

    The colour is the median of the pixels of the figure along the spine (shirt) and the thighs (trousers) over all
    frames, and its name that of the nearest colour of the palette. The poses only say where to look.

    Args:
        frames: (F, H, W, 3) uint8 RGB.
        masks: (F, H, W) bool, from `segment`.
        joints: (F, P, 18, 2) px of the frames.
        visibility: (F, P, 18) bool.

    Returns:
        Name of the background, and (shirt, trousers) of each person; "" where the part cannot be seen.
    """
    # away from the edges of figures, where colours mix, and above the floor, which is darker
    kernel = np.ones((5, 5), np.uint8)
    free = np.stack([cv2.dilate(mask.astype(np.uint8), kernel) == 0 for mask in masks])
    free[:, round(0.94 * FLOOR_ROW * frames.shape[1]) :] = False
    pixels = frames[free] if free.any() else frames.reshape(-1, 3)
    background = _nearest(np.median(pixels, axis=0), BACKGROUNDS, (1.0,))
    clothes = []
    for person in range(joints.shape[1]):
        spine, thighs = _places(joints[:, person], visibility[:, person])
        clothes.append((_read(frames, masks, spine), _read(frames, masks, thighs)))
    return background, clothes


def clothes_over_time(
    frames: np.ndarray, masks: np.ndarray, joints: np.ndarray, visibility: np.ndarray
) -> np.ndarray:
    """CIELAB colour of each person's shirt and trousers in each frame, the median of the places of `read_colours`.

    Returns:
        (F, P, 2, 3), NaN where the part cannot be seen.
    """
    lab, found = to_lab(frames), np.full((*joints.shape[:2], 2, 3), np.nan)
    for person in range(joints.shape[1]):
        for part, places in enumerate(_places(joints[:, person], visibility[:, person])):
            at = [_inside(masks, points, seen) for points, seen in places]
            for frame in range(len(frames)):
                colours = [lab[frame, y[frame], x[frame]] for x, y, seen in at if seen[frame]]
                if colours:
                    found[frame, person, part] = np.median(colours, axis=0)
    return found


Places = list[tuple[np.ndarray, np.ndarray]]  # points (F, 2), and in which frames (F,) they are seen


def _places(points: np.ndarray, seen: np.ndarray) -> tuple[Places, Places]:
    """Where the shirt and the trousers of a person are, (F, 18, 2) px and (F, 18)."""
    hips, hips_seen = _between(points, seen, "r_hip", "l_hip", (0.5,))[0]
    neck, spine_seen = points[:, _JOINT["neck"]], seen[:, _JOINT["neck"]] & hips_seen
    spine = [(_mix(neck, hips, share), spine_seen) for share in _SPINE]
    thighs = [found for s in "rl" for found in _between(points, seen, f"{s}_hip", f"{s}_knee", _THIGH)]
    return spine, thighs


def _inside(masks: np.ndarray, points: np.ndarray, seen: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Columns and rows (F,) of points, and in which frames they are seen and within the figure."""
    height, width = masks.shape[1:]
    x = np.clip(np.floor(points[:, 0]).astype(int), 0, width - 1)
    y = np.clip(np.floor(points[:, 1]).astype(int), 0, height - 1)
    return x, y, seen & masks[np.arange(len(points)), y, x]


def _mix(a: np.ndarray, b: np.ndarray, share: float) -> np.ndarray:
    return a + share * (b - a)


def _between(
    points: np.ndarray, seen: np.ndarray, first: str, second: str, shares: tuple[float, ...]
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Points (F, 2) between two joints, and in which frames (F,) both are seen."""
    a, b = _JOINT[first], _JOINT[second]
    return [(_mix(points[:, a], points[:, b], share), seen[:, a] & seen[:, b]) for share in shares]


def _read(frames: np.ndarray, masks: np.ndarray, places: Places) -> str:
    """Name of the colour of clothes at these points of the figure, "" where there is no figure."""
    colours = []
    for points, seen in places:
        x, y, shown = _inside(masks, points, seen)
        colours.append(frames[np.arange(len(points)), y, x][shown])
    found = np.concatenate(colours)
    return _nearest(np.median(found, axis=0), CLOTHES, _SHADES) if len(found) else ""


def _nearest(colour: np.ndarray, palette: dict[str, RGB], shades: tuple[float, ...]) -> str:
    """Name of the palette's colour that is nearest in CIELAB, in any of its shades."""
    names = [name for name in palette for _ in shades]
    known = np.array([[shade * c for c in palette[name]] for name in palette for shade in shades])
    lab = to_lab(np.concatenate([known, colour[None]]).round().astype(np.uint8))
    return names[int(np.linalg.norm(lab[:-1] - lab[-1], axis=-1).argmin())]
