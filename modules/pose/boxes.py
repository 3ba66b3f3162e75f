"""Boxes on the token grid, and the coordinates that they define.

Every function takes numpy arrays or torch tensors and gives back the same kind. A box is xyxy in pixels.
Letters: N frames, J joints (18); "..." are any leading axes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

# Each axis of the canvas has this many edges: token i is the edge i / (BOX_BINS - 1) * side.
BOX_BINS = 256


def _namespace(array: Any) -> Any:
    return torch if isinstance(array, torch.Tensor) else np


def extent(joints: Any, visibility: Any) -> Any:
    """Smallest box around the visible joints of all frames, without a margin.

    Args:
        joints: (..., N, J, 2) px.
        visibility: (..., N, J) bool.

    Returns:
        (..., 4) px, xyxy.

    Raises:
        ValueError: where no joint is visible in any frame, there is no box.
    """
    xp = _namespace(joints)
    # One coordinate at a time: reductions over contiguous axes are several times faster in numpy.
    axes = (joints[..., 0], joints[..., 1])
    low = [xp.amin(xp.where(visibility, axis, float("inf")), (-2, -1)) for axis in axes]
    high = [xp.amax(xp.where(visibility, axis, float("-inf")), (-2, -1)) for axis in axes]
    if not bool((low[0] <= high[0]).all()):
        raise ValueError("extent: a person without any visible joint has no box; drop that person first")
    return xp.stack((*low, *high), -1)


def box_to_tokens(box: Any, width: float, height: float) -> Any:
    """Nearest grid edges of a box: (..., 4) px -> (..., 4) int64 in 0..255, always x1 > x0 and y1 > y0."""
    xp = _namespace(box)
    last = BOX_BINS - 1
    scale = [last / width, last / height, last / width, last / height]
    scale = box.new_tensor(scale) if xp is torch else np.asarray(scale)
    edges = (box * scale).round().clip(0, last)
    edges = edges.long() if xp is torch else edges.astype(np.int64)
    low = edges[..., :2].clip(None, last - 1)
    high = xp.maximum(edges[..., 2:], low + 1)
    return xp.concatenate((low, high), -1)


def tokens_to_box(tokens: Any, width: float, height: float) -> Any:
    """Inverse of `box_to_tokens`: (..., 4) int -> (..., 4) float32 px."""
    sides = [width / (BOX_BINS - 1), height / (BOX_BINS - 1)] * 2
    if isinstance(tokens, torch.Tensor):
        return (tokens.double() * torch.tensor(sides, dtype=torch.float64, device=tokens.device)).float()
    return (np.asarray(tokens) * np.asarray(sides)).astype(np.float32)


def round_box(box: Any, width: float, height: float) -> Any:
    """The box moved to the nearest edges of the token grid: (..., 4) px -> (..., 4) px."""
    return tokens_to_box(box_to_tokens(box, width, height), width, height)


def _frame(box: Any, ndim: int) -> tuple[Any, Any]:
    """Centre (..., 2) and half of the longer side (..., 1), with axes added to broadcast over `ndim` axes."""
    xp = _namespace(box)
    box = box.reshape(*box.shape[:-1], *(1,) * (ndim - box.ndim), 4)
    centre = (box[..., :2] + box[..., 2:]) / 2
    half = xp.amax(box[..., 2:] - box[..., :2], -1)[..., None] / 2
    return centre, half


def normalise(joints: Any, box: Any, visibility: Any = None) -> Any:
    """Pixels to box coordinates: the centre of the rounded box is 0, half of its longer side is 1.

    Args:
        joints: (*lead, ..., 2) px, for example (N, J, 2) or (B, N, J, 2).
        box: (*lead, 4) px, the rounded box.
        visibility: (*lead, ...) bool; where given, unseen joints become (0, 0).

    Returns:
        The shape of `joints`.
    """
    centre, half = _frame(box, joints.ndim)
    coords = (joints - centre) / half
    return coords if visibility is None else coords * visibility[..., None]


def denormalise(coords: Any, box: Any, visibility: Any = None) -> Any:
    """Inverse of `normalise`: box coordinates to pixels; with `visibility`, unseen joints become (0, 0)."""
    centre, half = _frame(box, coords.ndim)
    joints = coords * half + centre
    return joints if visibility is None else joints * visibility[..., None]
