"""The camera: perspective projection, fit into the frame, and which joints are seen.

World axes: x to the viewer's right, y up, z towards the camera; metres. A person with heading 0 faces the camera.
Letters: P persons, T frames, J = 18 joints.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datamodules.synthetic.skeleton3d import JOINT

SIZE = 64  # px, the side of the square canvas
_MARGIN_X, _MARGIN_Y = 0.02, 0.015  # of the frame, kept free where possible
_ABOVE, _BELOW, _ASIDE = 0.085, 0.045, 0.035  # of the height: hair, shoes and hands reach further than the joints


@dataclass(frozen=True)
class View:
    """Where joints fall in the frame."""

    pixels: np.ndarray  # (P, T, 18, 2)
    depths: np.ndarray  # (P, T, 18) metres from the camera
    heights: np.ndarray  # (P, T) standing height in units of the frame
    size: float  # standing height of all over the clip, in units of the frame


def project(
    joints: np.ndarray,
    heights: np.ndarray,
    distance: float,
    eye: float,
    size: float,
    centre: float,
    ground: float,
    canvas: tuple[int, int] = (SIZE, SIZE),
) -> View:
    """Projects people and fits them into the frame.

    Args:
        joints: (P, T, 18, 3) metres.
        heights: (P,) standing heights in metres.
        distance: of the camera from the origin, metres.
        eye: height of the camera, metres.
        size: standing height wanted, in units of the frame; less where the motion would leave the frame.
        centre: place of the middle of all people wanted, in units of the frame; moved where they would leave it.
        ground: row of the lowest point wanted, in units of the frame.
        canvas: width and height in px. The unit of the frame is its height.
    """
    aspect = canvas[0] / canvas[1]
    depths = distance - joints[..., 2]
    flat = np.stack([joints[..., 0] / depths, (eye - joints[..., 1]) / depths], axis=-1)  # (P, T, 18, 2), y down
    tall = heights[:, None] / depths[..., JOINT["neck"]]  # (P, T)
    low = (flat - np.array([_ASIDE, _ABOVE]) * tall[..., None, None]).min((0, 1, 2))
    high = (flat + np.array([_ASIDE, _BELOW]) * tall[..., None, None]).max((0, 1, 2))
    extent = high - low
    focal = size / float(tall.mean())
    focal = min(focal, (aspect - 2 * _MARGIN_X) / extent[0], (1 - 2 * _MARGIN_Y) / extent[1])
    half = 0.5 * focal * extent[0]
    centre = float(np.clip(centre, _MARGIN_X + half, aspect - _MARGIN_X - half))
    ground = float(np.clip(ground, _MARGIN_Y + focal * extent[1], 1 - _MARGIN_Y))
    shift = np.array([centre - 0.5 * focal * (low + high)[0], ground - focal * high[1]])
    return View(canvas[1] * (focal * flat + shift), depths, focal * tall, focal * float(tall.mean()))


def seen(
    view: View,
    facing: np.ndarray,
    joints: np.ndarray,
    distance: float,
    eye: float,
    canvas: tuple[int, int] = (SIZE, SIZE),
) -> np.ndarray:
    """Which joints a detector would find: in the frame, on the near side of the head, not behind the body.

    Args:
        view: the projection.
        facing: (P, T, 3) direction in which the head looks.
        joints: (P, T, 18, 3) metres.
        distance, eye: of the camera, metres.
        canvas: width and height in px.

    Returns:
        (P, T, 18) bool.
    """
    visible = np.asarray(((view.pixels >= 0) & (view.pixels < canvas)).all(-1))
    head = 0.5 * (joints[:, :, JOINT["l_ear"]] + joints[:, :, JOINT["r_ear"]])
    to_camera = np.array([0.0, eye, distance]) - head
    to_camera /= np.linalg.norm(to_camera, axis=-1, keepdims=True)
    left = joints[:, :, JOINT["l_ear"]] - joints[:, :, JOINT["r_ear"]]
    left /= np.linalg.norm(left, axis=-1, keepdims=True)
    ahead, aside = (facing * to_camera).sum(-1), (left * to_camera).sum(-1)
    # outward direction of each part of the face against the direction of the camera
    visible[:, :, JOINT["nose"]] &= ahead > -0.25
    visible[:, :, JOINT["l_eye"]] &= 0.86 * ahead + 0.5 * aside > -0.05
    visible[:, :, JOINT["r_eye"]] &= 0.86 * ahead - 0.5 * aside > -0.05
    visible[:, :, JOINT["l_ear"]] &= aside > -0.42
    visible[:, :, JOINT["r_ear"]] &= aside < 0.42
    corners = [JOINT[name] for name in ("r_shoulder", "l_shoulder", "l_hip", "r_hip")]
    body_depth = view.depths[:, :, corners].mean(-1)
    for name in ("l_wrist", "r_wrist"):
        behind = view.depths[:, :, JOINT[name]] > body_depth + 0.12
        visible[:, :, JOINT[name]] &= ~(behind & _inside(view.pixels[:, :, JOINT[name]], view.pixels[:, :, corners]))
    return visible


def _inside(points: np.ndarray, corners: np.ndarray) -> np.ndarray:
    """Whether points (..., 2) lie in the middle of convex quadrilaterals (..., 4, 2)."""
    corners = corners + 0.2 * (corners.mean(-2, keepdims=True) - corners)
    edges = np.roll(corners, -1, axis=-2) - corners
    to_point = points[..., None, :] - corners
    cross = edges[..., 0] * to_point[..., 1] - edges[..., 1] * to_point[..., 0]
    return np.all(cross > 0, axis=-1) | np.all(cross < 0, axis=-1)
