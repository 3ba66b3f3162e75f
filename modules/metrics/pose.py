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

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchmetrics import Metric

from modules.pose.skeleton import JOINT_NAMES, LIMBS, NUM_JOINTS

ANKLES = [JOINT_NAMES.index("r_ankle"), JOINT_NAMES.index("l_ankle")]
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


def mean_jerk(poses: Tensor, visibility: Tensor) -> Average:
    """Mean length of the third difference along time, per step^3."""
    value, seen = difference(poses, visibility, 3)
    return masked_average(value.norm(dim=-1), seen)


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


def detected_keypoints(found: np.ndarray, target: Tensor, visibility: Tensor, threshold: float = 0.2) -> Average:
    """PCK of what a pose estimator finds in pictures: a visible joint that it does not find is a wrong one.

    In each frame detections and people are paired so that most joints are right; people beyond these do not count.

    Args:
        found: (F, P', 18, 3) px and confidence; below 0.3 a joint counts as not found.
        target: (P, F, 18, 2) px.
        visibility: (P, F, 18) bool.
    """
    torso, known = torso_length(target, visibility)  # (P,)
    counted = visibility & known[:, None, None]
    poses, seen = torch.as_tensor(found[..., :2]), torch.as_tensor(found[..., 2] >= _FOUND)
    right = 0
    for frame in range(len(found)):
        distance = (poses[frame, :, None] - target[None, :, frame]).norm(dim=-1)  # (P', P, 18)
        close = (distance <= threshold * torso[:, None]) & seen[frame, :, None] & counted[None, :, frame]
        hits = close.sum(-1).numpy()
        right += int(hits[linear_sum_assignment(hits, maximize=True)].sum())
    return Average(torch.tensor(right, dtype=torch.float64), counted.sum().double())


# COCO's per-keypoint constants k = 2 sigma, in the order of COCO-18; the neck, which COCO lacks, has the shoulders'.
OKS_CONSTANTS = 2 * torch.tensor(
    [0.026, 0.079, 0.079, 0.072, 0.062, 0.079, 0.072, 0.062, 0.107, 0.087, 0.089, 0.107, 0.087, 0.089]
    + [0.025, 0.025, 0.035, 0.035]
)
_FOUND = 0.3  # confidence from which a joint of an estimator counts
_BODY_SHARE = 0.53  # of the box is figure, as COCO's own evaluation takes it where there is no mask


def keypoint_similarity(poses: Tensor, target: Tensor, visibility: Tensor) -> tuple[Tensor, Tensor]:
    """OKS of every pose: exp(-d^2 / (2 s^2 k^2)), averaged over the visible joints; s^2 is the area of the figure.

    The area is that of the box of the pose's visible joints, times 0.53. Arguments as `position_error`.

    Returns:
        (..., N) similarity, and (..., N) bool: False where fewer than two joints are seen.
    """
    area = _extent(target, visibility).prod(-1) * _BODY_SHARE  # (..., N)
    square = (poses - target).square().sum(-1)
    near = torch.exp(-square / (2 * area.clamp_min(1e-9)[..., None] * OKS_CONSTANTS.to(square) ** 2))
    count = visibility.sum(-1)
    return torch.where(visibility, near, 0).sum(-1) / count.clamp_min(1), (count > 1) & (area > 1e-9)


def _extent(poses: Tensor, visibility: Tensor) -> Tensor:
    """Width and height of the visible joints of each pose, (..., N, 2); 0 where none is seen."""
    seen = visibility[..., None]
    low = torch.where(seen, poses, torch.inf).amin(-2)
    high = torch.where(seen, poses, -torch.inf).amax(-2)
    return torch.where(visibility.any(-1, keepdim=True), high - low, 0)


def bone_drift(poses: Tensor, visibility: Tensor) -> Average:
    """Bone-length consistency: mean change of a limb's length from one frame to the next, as a share of its own mean.

    In a picture, limbs that turn towards the camera get shorter too: compare with real motion.
    """
    length, seen = bone_lengths(poses, visibility)  # (..., N, 17)
    typical = torch.where(seen, length, 0).sum(-2) / seen.sum(-2).clamp_min(1)
    change = (length[..., 1:, :] - length[..., :-1, :]).abs() / typical.clamp_min(1e-3)[..., None, :]
    return masked_average(change, seen[..., 1:, :] & seen[..., :-1, :])


def foot_skate(poses: Tensor, visibility: Tensor) -> Average:
    """2D proxy of foot skate: sideways speed of the lower ankle while it stays at its height, torso lengths a step.

    Without depth and floor, contact is a guess: the ankle that is lower in the picture, in steps in which its height
    changes by less than 2 % of the torso. Compare with real motion.
    """
    torso, known = torso_length(poses, visibility)  # (...)
    ankles, seen = poses[..., ANKLES, :], visibility[..., ANKLES]  # (..., N, 2, 2), (..., N, 2)
    step = (ankles[..., 1:, :, :] - ankles[..., :-1, :, :]) / torso.clamp_min(1e-6)[..., None, None, None]
    both = seen[..., 1:, :] & seen[..., :-1, :]
    height = torch.where(seen, ankles[..., 1], -torch.inf)[..., :-1, :]  # down is up in pictures
    lower = height >= height.amax(-1, keepdim=True)
    still = step[..., 1].abs() < 0.02
    return masked_average(step[..., 0].abs(), both & lower & still & known[..., None, None])


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


def pose_sums(
    poses: Tensor,
    target: Tensor,
    visibility: Tensor,
    boxes: Tensor | None = None,
    joints: Sequence[int] | None = None,
) -> dict[str, Average]:
    """The figures of `PoseError`, by name, over the poses given. Arguments as `PoseError.update`."""
    poses, target = poses.float(), target.float()
    torso, known = torso_length(target, visibility)
    chosen = joint_mask(visibility, joints)
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
        "oks": masked_average(*keypoint_similarity(poses, target, chosen)),
        "jerk": mean_jerk(poses, chosen),
        "true_jerk": mean_jerk(target, chosen),
        "bone_drift": bone_drift(poses, chosen),
        "foot_skate": foot_skate(poses, chosen),
    }
    if boxes is not None:
        pixels, diagonals = box_scales(boxes.float())
        found["mpjpe_px"] = masked_average(distance * pixels, chosen)
        found["mpjpe_diagonal"] = masked_average(100 * distance * diagonals, chosen)
    return found


class PoseError(Metric):
    """Errors of poses in box coordinates, averaged over everything seen since the last reset.

    `compute()` gives a dict:
        mpjpe: in box coordinates; mpjpe_px: in pixels; mpjpe_diagonal: in per cent of the diagonal of the person's box;
        mpjpe_torso: in torso lengths; pck: share of the joints within 0.2 torso lengths;
        bone_error: mean difference of the limbs' lengths in the picture, in box coordinates;
        oks: object keypoint similarity, mean over poses;
        velocity_error, acceleration_error, acceleration, true_acceleration: in box coordinates per step and per step^2;
        jerk, true_jerk: per step^3; bone_drift, foot_skate: see the functions, of the poses alone.
    The pixel and diagonal figures need boxes; they are left out where `update` was never given any.

    Args:
        joints: only these count, for example `BODY_JOINTS`; None for all.
        prefix: of every name.
    """

    full_state_update = False
    NAMES = (
        "mpjpe", "mpjpe_px", "mpjpe_diagonal", "mpjpe_torso", "pck", "bone_error",
        "velocity_error", "acceleration_error", "acceleration", "true_acceleration",
        "oks", "jerk", "true_jerk", "bone_drift", "foot_skate",
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
        found = pose_sums(poses, target, visibility, boxes, self.joints)
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
