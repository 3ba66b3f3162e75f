"""Pictures of skeletons in OpenPose's standard colours: hints for the renderer, strips and videos for people.

Pictures are uint8 RGB, (H, W, 3). Letters: P persons, J joints (18), T frames.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np

from modules.pose.letterbox import Letterbox
from modules.pose.scene import Scene
from modules.pose.skeleton import JOINT_COLORS, LIMB_COLORS, LIMBS

# OpenPose as ControlNet draws it: 4 px on a canvas of 512 px, limbs at 0.6 of the colour of the joints.
_RADIUS = 4 / 512
_LIMB_BRIGHTNESS = 0.6
_MIN_RADIUS = 0.75  # px; thinner limbs break up into single pixels

_SHIFT = 4  # cv2 takes whole numbers: sixteenths of a pixel
_FAR = 1e5  # px; keeps those numbers within 32 bits
_ELLIPSE = np.stack([f(np.linspace(0, 2 * np.pi, 24, endpoint=False)) for f in (np.cos, np.sin)], -1)

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_TEXT_COLOR = (200, 200, 200)
BOX_COLORS = ((255, 255, 255), (255, 220, 90), (120, 220, 255), (255, 150, 200))  # one a person


def _fixed(points: np.ndarray) -> np.ndarray:
    """Continuous px (pixel i covers i..i+1) to cv2's fixed-point numbers (pixel i is at i)."""
    return np.round((np.clip(np.nan_to_num(points), -_FAR, _FAR) - 0.5) * 2**_SHIFT).astype(np.int32)


def draw_pose(joints: np.ndarray, visibility: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Skeletons on black.

    Args:
        joints: (P, J, 2) px of the picture.
        visibility: (P, J) bool; an unseen joint is not drawn, nor is a limb that ends in it.
        size: height and width in px.

    Returns:
        (H, W, 3) uint8 RGB, antialiased.
    """
    picture = np.zeros((*size, 3), np.uint8)
    radius = max(min(size) * _RADIUS, _MIN_RADIUS)
    # A diverged network may give coordinates that are not numbers: such a joint cannot be drawn.
    visibility = visibility.astype(bool) & np.isfinite(joints).all(-1)
    for pose, seen in zip(joints, visibility, strict=True):
        for (a, b), color in zip(LIMBS, LIMB_COLORS, strict=True):
            if seen[a] and seen[b]:
                along = (pose[b] - pose[a]).astype(np.float64) / 2
                length = max(float(np.hypot(*along)), 1e-6)
                across = np.array([-along[1], along[0]]) / length * radius
                outline = (pose[a] + pose[b]) / 2 + _ELLIPSE @ np.stack([along, across])  # (24, 2)
                dim = tuple(int(channel * _LIMB_BRIGHTNESS) for channel in color)
                cv2.fillConvexPoly(picture, _fixed(outline), dim, cv2.LINE_AA, _SHIFT)
    for pose, seen in zip(joints, visibility, strict=True):
        for point, color, shown in zip(_fixed(pose), JOINT_COLORS, seen, strict=True):
            if shown:
                x, y = point.tolist()
                cv2.circle(picture, (x, y), round(radius * 2**_SHIFT), color, -1, cv2.LINE_AA, _SHIFT)
    return picture


def draw_skeleton(scene: Scene, index: int, size: tuple[int, int] | None = None) -> np.ndarray:
    """All people of a scene at one of its times.

    Args:
        scene: dense or key poses.
        index: which of the scene's times.
        size: height and width of the picture in px, default: the canvas. Another size is letterboxed.

    Returns:
        (H, W, 3) uint8 RGB.
    """
    height, width = size or (scene.height, scene.width)
    fit = Letterbox((scene.width, scene.height), (width, height))
    return draw_pose(fit.points(scene.joints[:, index]), scene.visibility[:, index], (height, width))


def poses_video(scene: Scene, size: tuple[int, int] | None = None) -> np.ndarray:
    """Every time of a scene: (T, H, W, 3) uint8 RGB."""
    return np.stack([draw_skeleton(scene, index, size) for index in range(scene.num_frames)])


def draw_boxes(picture: np.ndarray, scene: Scene) -> np.ndarray:
    """A copy of a (letterboxed) picture of the scene with the people's boxes, one colour a person."""
    picture = np.ascontiguousarray(picture).copy()
    height, width = picture.shape[:2]
    fit = Letterbox((scene.width, scene.height), (width, height))
    for number, box in enumerate(scene.boxes):
        corners = fit.points(box.reshape(2, 2))
        # Half a pixel inwards: an edge at the border of the canvas stays in the picture.
        low, high = _fixed(corners[0] + 0.5).tolist(), _fixed(corners[1] - 0.5).tolist()
        color = BOX_COLORS[number % len(BOX_COLORS)]
        cv2.rectangle(picture, low, high, color, 1, cv2.LINE_AA, _SHIFT)
    return picture


def with_label(picture: np.ndarray, text: str) -> np.ndarray:
    """The picture with a line of text below it, at a size that fits the width."""
    band = max(12, picture.shape[1] // 12)
    scale = 0.75 * band / cv2.getTextSize("0g", _FONT, 1.0, 1)[0][1] / 1.4
    (width, _), _ = cv2.getTextSize(text, _FONT, scale, 1)
    scale *= min(1.0, (picture.shape[1] - 4) / max(width, 1))
    (width, height), _ = cv2.getTextSize(text, _FONT, scale, 1)
    line = np.zeros((band, picture.shape[1], 3), np.uint8)
    origin = ((picture.shape[1] - width) // 2, (band + height) // 2)
    cv2.putText(line, text, origin, _FONT, scale, _TEXT_COLOR, 1, cv2.LINE_AA)
    return np.concatenate([picture, line])


def pose_strip(
    scene: Scene, count: int = 8, size: tuple[int, int] | None = None, boxes: bool = True
) -> np.ndarray:
    """Poses at evenly spread times side by side, each with its time in seconds below it.

    Args:
        scene: dense or key poses.
        count: number of pictures; fewer where the scene has fewer times.
        size: height and width of each picture in px, default: 160 px high in the shape of the canvas.
        boxes: draw the people's boxes.
    """
    size = size or (160, max(1, round(160 * scene.width / scene.height)))
    indices = np.unique(np.linspace(0, scene.num_frames - 1, count).round().astype(int))
    panels = []
    for index in indices.tolist():
        picture = draw_skeleton(scene, index, size)
        picture = draw_boxes(picture, scene) if boxes else picture
        panels.append(with_label(picture, f"{scene.times[index]:.2f} s"))
    return side_by_side(panels)


def side_by_side(images: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """Pictures (H, W, 3), or videos (T, H, W, 3), in a row with a grey line between them.

    Smaller ones are padded with black at the bottom; a shorter video holds its last frame.
    """
    height = max(image.shape[-3] for image in images)
    frames = max(len(image) for image in images) if images[0].ndim == 4 else 0
    row = []
    for number, image in enumerate(images):
        if frames > len(image):
            image = np.concatenate([image, np.repeat(image[-1:], frames - len(image), axis=0)])
        pad = [(0, 0)] * (image.ndim - 3) + [(0, height - image.shape[-3]), (0, 0), (0, 0)]
        if number:
            row.append(np.full((*image.shape[:-3], height, gap, 3), 64, np.uint8))
        row.append(np.pad(image, pad))
    return np.concatenate(row, axis=-2)
