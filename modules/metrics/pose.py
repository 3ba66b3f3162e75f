"""How far predicted poses are from true ones, over the joints that were seen.

Every function takes poses (..., N, J, 2) and visibility (..., N, J) at N equally spaced times, and gives sums, so
that averages over batches and devices are right: `Average.value` divides at the end. `PoseError` is the torchmetrics
form of them all.
Units: those of the poses (pixels, or box coordinates: half of the longer side of the person's box = 1).
Letters: N times (key poses or dense frames), J joints.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric

from modules.pose.skeleton import JOINT_NAMES, LIMBS, NUM_JOINTS

NECK, R_HIP, L_HIP = (JOINT_NAMES.index(name) for name in ("neck", "r_hip", "l_hip"))


@dataclass
class Average:
    """A weighted sum and its weight."""

    total: Tensor  # () float64
    count: Tensor  # () float64

    @property
    def value(self) -> Tensor:
        """() the average; NaN where there was nothing to average."""
        return (self.total / self.count).float()


def masked_average(values: Tensor, mask: Tensor) -> Average:
    """Average of `values` where `mask` is True, both of any one shape; the other values may be anything."""
    return Average(torch.where(mask, values, 0).double().sum(), mask.sum().double())


def joint_mask(visibility: Tensor, joints: Sequence[int] | None) -> Tensor:
    """Visibility (..., J) restricted to some joints: False for all others."""
    if joints is None:
        return visibility
    chosen = torch.zeros(visibility.shape[-1], dtype=torch.bool, device=visibility.device)
    chosen[list(joints)] = True
    return visibility & chosen


def position_error(poses: Tensor, target: Tensor, visibility: Tensor, scale: Tensor | float = 1.0) -> Average:
    """MPJPE: mean Euclidean distance over the visible joints.

    Args:
        poses, target: (..., N, J, 2).
        visibility: (..., N, J) bool.
        scale: factor on the distances, broadcast over (..., N, J): another unit.
    """
    return masked_average((poses - target).norm(dim=-1) * scale, visibility)


def difference(poses: Tensor, visibility: Tensor, order: int) -> tuple[Tensor, Tensor]:
    """n-th difference along time, and where all poses that it is made of are visible.

    Args:
        poses: (..., N, J, 2).
        visibility: (..., N, J) bool.

    Returns:
        (..., N - order, J, 2) per step^order, and (..., N - order, J) bool. A still pose gives zeros.
    """
    for _ in range(order):
        poses = poses[..., 1:, :, :] - poses[..., :-1, :, :]
        visibility = visibility[..., 1:, :] & visibility[..., :-1, :]
    return poses, visibility


def difference_error(
    poses: Tensor, target: Tensor, visibility: Tensor, order: int, scale: Tensor | float = 1.0
) -> Average:
    """Mean distance between n-th differences along time: velocity error (order 1), acceleration error (order 2).

    Per step of the given times: for dense frames per frame and per frame^2. Arguments as `position_error`.
    """
    error, seen = difference(poses - target, visibility, order)
    return masked_average(error.norm(dim=-1) * scale, seen)


def mean_acceleration(poses: Tensor, visibility: Tensor, scale: Tensor | float = 1.0) -> Average:
    """Mean length of the second difference along time, per step^2: tells smoothed motion from real motion."""
    value, seen = difference(poses, visibility, 2)
    return masked_average(value.norm(dim=-1) * scale, seen)


def bone_lengths(poses: Tensor, visibility: Tensor) -> tuple[Tensor, Tensor]:
    """Lengths of the 17 limbs in the picture, and where both ends are seen: (..., J, 2), (..., J) -> (..., 17) twice.

    The gradient is finite where both ends coincide.
    """
    start, end = (list(ends) for ends in zip(*LIMBS, strict=True))
    bone = poses[..., end, :] - poses[..., start, :]
    return (bone.square().sum(-1) + 1e-8).sqrt(), visibility[..., start] & visibility[..., end]


def torso_length(target: Tensor, visibility: Tensor) -> tuple[Tensor, Tensor]:
    """Length of the torso of each person: the mean over time from the neck to the middle of the hips.

    Args:
        target: (..., N, J, 2).
        visibility: (..., N, J) bool.

    Returns:
        (...) length, and (...) bool: False where neck and both hips are never seen together.
    """
    middle = (target[..., R_HIP, :] + target[..., L_HIP, :]) / 2
    length = (target[..., NECK, :] - middle).norm(dim=-1)  # (..., N)
    seen = visibility[..., [NECK, R_HIP, L_HIP]].all(-1)  # (..., N)
    mean = torch.where(seen, length, 0).sum(-1) / seen.sum(-1).clamp(min=1)
    return mean, seen.any(-1) & (mean > 0)


def correct_keypoints(poses: Tensor, target: Tensor, visibility: Tensor, threshold: float = 0.2) -> Average:
    """PCK: share of the visible joints within `threshold` of the person's own torso length.

    People whose torso is never seen are left out. Arguments as `position_error`.
    """
    torso, known = torso_length(target, visibility)
    close = (poses - target).norm(dim=-1) <= threshold * torso[..., None, None]
    return masked_average(close.to(poses.dtype), visibility & known[..., None, None])


def box_scales(box: Tensor) -> tuple[Tensor, Tensor]:
    """Factors from box coordinates to other units.

    Args:
        box: (..., 4) px xyxy.

    Returns:
        (..., 1, 1) pixels, and (..., 1, 1) shares of the box's diagonal, in one unit of box coordinates.
    """
    size = box[..., 2:] - box[..., :2]
    pixels = size.amax(-1)[..., None, None] / 2
    return pixels, pixels / size.norm(dim=-1)[..., None, None]


def unit_scale(box: Tensor, other: Tensor) -> Tensor:
    """Factor from the box coordinates of one box to those of another: (..., 4), (..., 4) px -> (..., 1, 1).

    With the box of a person over the whole clip as `other`, errors over a crop are in a unit that does not depend on
    the crop.
    """
    return box_scales(box)[0] / box_scales(other)[0]


class PoseError(Metric):
    """Errors of poses in box coordinates, averaged over everything seen since the last reset.

    `compute()` gives a dict:
        mpjpe: in box coordinates; mpjpe_px: in pixels; mpjpe_diagonal: in per cent of the diagonal of the person's box;
        mpjpe_torso: in torso lengths; pck: share of the joints within 0.2 torso lengths;
        bone_error: mean difference of the limbs' lengths in the picture, in box coordinates;
        velocity_error, acceleration_error, acceleration, true_acceleration: in box coordinates per step and per step^2.
    The pixel and diagonal figures need boxes; they are left out where `update` was never given any.

    Args:
        joints: only these count, for example `BODY_JOINTS`; None for all.
        prefix: of every name.
    """

    full_state_update = False
    NAMES = (
        "mpjpe", "mpjpe_px", "mpjpe_diagonal", "mpjpe_torso", "pck", "bone_error",
        "velocity_error", "acceleration_error", "acceleration", "true_acceleration",
    )  # fmt: skip
    totals: Tensor  # (names,) float64
    counts: Tensor  # (names,) float64

    def __init__(self, joints: Sequence[int] | None = None, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        if joints is not None and not set(joints) <= set(range(NUM_JOINTS)):
            raise ValueError(f"joints are {list(joints)}; each must be from 0 to {NUM_JOINTS - 1}")
        self.joints = None if joints is None else tuple(joints)
        self.prefix = prefix
        for name in ("totals", "counts"):
            state = torch.zeros(len(self.NAMES), dtype=torch.float64)
            self.add_state(name, state, dist_reduce_fx="sum")

    def update(self, poses: Tensor, target: Tensor, visibility: Tensor, boxes: Tensor | None = None) -> None:
        """
        Args:
            poses, target: (B, N, J, 2) box coordinates.
            visibility: (B, N, J) bool, the true one, False in padding.
            boxes: (B, 4) px.
        """
        poses, target = poses.float(), target.float()
        torso, known = torso_length(target, visibility)
        chosen = joint_mask(visibility, self.joints)
        with_torso = chosen & known[:, None, None]
        per_torso = 1 / torso.clamp(min=1e-6)[:, None, None]
        distance = (poses - target).norm(dim=-1)  # (B, N, J)
        (length, both), (true_length, _) = bone_lengths(poses, chosen), bone_lengths(target, chosen)
        found = {
            "mpjpe": masked_average(distance, chosen),
            "mpjpe_torso": masked_average(distance * per_torso, with_torso),
            "pck": masked_average((distance * per_torso <= 0.2).double(), with_torso),
            "bone_error": masked_average((length - true_length).abs(), both),
            "velocity_error": difference_error(poses, target, chosen, order=1),
            "acceleration_error": difference_error(poses, target, chosen, order=2),
            "acceleration": mean_acceleration(poses, chosen),
            "true_acceleration": mean_acceleration(target, chosen),
        }
        if boxes is not None:
            pixels, diagonals = box_scales(boxes.float())
            found["mpjpe_px"] = masked_average(distance * pixels, chosen)
            found["mpjpe_diagonal"] = masked_average(100 * distance * diagonals, chosen)
        for name, average in found.items():
            self.totals[self.NAMES.index(name)] += average.total
            self.counts[self.NAMES.index(name)] += average.count

    def compute(self) -> dict[str, Tensor]:
        """Names of figures -> () float32; figures without a single joint are left out."""
        return {
            f"{self.prefix}{name}": (total / count).float()
            for name, total, count in zip(self.NAMES, self.totals, self.counts, strict=True)
            if count > 0
        }
