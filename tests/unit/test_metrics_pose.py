"""Pose errors: known values, masking, units, and sums that do not depend on how the data were split."""

from __future__ import annotations

import pytest
import torch

from modules.metrics import pose as metrics
from modules.metrics.pose import PoseError
from modules.pose.skeleton import BODY_JOINTS, JOINT_NAMES, NUM_JOINTS

BOX = torch.tensor([10.0, 20.0, 40.0, 60.0])  # 30 x 40 px: half of the longer side is 20 px, the diagonal 50 px


def example(batch: int = 3, frames: int = 6, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    target = torch.randn(batch, frames, NUM_JOINTS, 2, generator=generator)
    poses = target + 0.1 * torch.randn(target.shape, generator=generator)
    visibility = torch.rand(batch, frames, NUM_JOINTS, generator=generator) < 0.8
    return poses, target, visibility


def standing(frames: int = 4) -> tuple[torch.Tensor, torch.Tensor]:
    """Somebody whose torso is one unit long, and full visibility."""
    target = torch.zeros(1, frames, NUM_JOINTS, 2)
    target[..., [metrics.R_HIP, metrics.L_HIP], :] = torch.tensor([[0.2, 1.0], [-0.2, 1.0]])
    return target, torch.ones(1, frames, NUM_JOINTS, dtype=torch.bool)


def figures_of(metric: PoseError) -> dict[str, float]:
    return {name: value.item() for name, value in metric.compute().items()}


def test_a_shift_is_its_length_in_every_unit() -> None:
    target, visibility = standing()
    metric = PoseError()
    metric.update(target + torch.tensor([0.03, 0.04]), target, visibility, BOX[None])
    figures = metric.compute()
    assert figures["mpjpe"] == pytest.approx(0.05, abs=1e-6)
    assert figures["mpjpe_px"] == pytest.approx(0.05 * 20, abs=1e-5)
    assert figures["mpjpe_diagonal"] == pytest.approx(100 * 0.05 * 20 / 50, abs=1e-4)
    assert figures["mpjpe_torso"] == pytest.approx(0.05, abs=1e-6)
    # A constant shift changes neither velocity nor acceleration.
    assert figures["velocity_error"] == pytest.approx(0, abs=1e-6)
    assert figures["acceleration_error"] == pytest.approx(0, abs=1e-6)


def test_a_still_pose_does_not_move() -> None:
    target, visibility = standing()
    assert metrics.difference(target, visibility, 1)[0].abs().max() == 0
    assert metrics.mean_acceleration(target, visibility).value == 0
    # What stands on other joints or people is no velocity: only time is differenced.
    target[:, :, 3] = 7
    assert metrics.mean_acceleration(target, visibility).value == 0


def test_acceleration_is_per_step_squared() -> None:
    time = torch.arange(5.0)
    target = torch.zeros(1, 5, NUM_JOINTS, 2)
    target[..., 0] = (0.5 * 0.3 * time**2)[:, None]
    visibility = torch.ones(1, 5, NUM_JOINTS, dtype=torch.bool)
    assert metrics.mean_acceleration(target, visibility).value == pytest.approx(0.3, abs=1e-6)
    still = torch.zeros_like(target)
    assert metrics.difference_error(still, target, visibility, order=2).value == pytest.approx(0.3, abs=1e-6)
    assert metrics.difference_error(still, target, visibility, order=1).value == pytest.approx(0.6, abs=1e-6)


def test_pck_counts_joints_within_a_fifth_of_the_torso() -> None:
    target, visibility = standing()
    poses = target.clone()
    poses[..., :9, 0] += 0.19
    poses[..., 9:, 0] += 0.21
    assert metrics.correct_keypoints(poses, target, visibility).value == pytest.approx(0.5)
    assert metrics.correct_keypoints(10 * poses, 10 * target, visibility).value == pytest.approx(0.5)
    # Somebody whose hips are never seen has no torso, and is left out.
    visibility[..., JOINT_NAMES.index("r_hip")] = False
    assert metrics.correct_keypoints(poses, target, visibility).count == 0


@pytest.mark.parametrize("value", [100.0, float("nan"), float("inf")])
def test_what_stands_at_unseen_joints_does_not_matter(value: float) -> None:
    poses, target, visibility = example()
    expected, found = PoseError(), PoseError()
    expected.update(poses, target, visibility, BOX.expand(3, 4))
    hole = ~visibility[..., None]
    found.update(poses.masked_fill(hole, value), target.masked_fill(hole, -value), visibility, BOX.expand(3, 4))
    assert figures_of(found) == pytest.approx(figures_of(expected))


def test_a_joint_subset_counts_only_these() -> None:
    poses, target, visibility = example()
    metric = PoseError(joints=BODY_JOINTS)
    metric.update(poses, target, visibility)
    face = [j for j in range(NUM_JOINTS) if j not in BODY_JOINTS]
    only_body = visibility.clone()
    only_body[..., face] = False
    assert figures_of(metric)["mpjpe"] == pytest.approx(metrics.position_error(poses, target, only_body).value)
    assert "mpjpe_px" not in metric.compute()  # no boxes were given
    with pytest.raises(ValueError, match="from 0 to 17"):
        PoseError(joints=[18])


def test_the_split_into_batches_and_ranks_does_not_matter() -> None:
    poses, target, visibility = example(batch=5)
    visibility[:2] &= torch.rand(visibility[:2].shape) < 0.2  # so that means of means would differ
    whole, parts = PoseError(), [PoseError(), PoseError()]
    boxes = BOX.expand(5, 4)
    whole.update(poses, target, visibility, boxes)
    for part, chosen in zip(parts, (slice(0, 2), slice(2, 5)), strict=True):
        part.update(poses[chosen], target[chosen], visibility[chosen], boxes[chosen])
    # What torchmetrics does over ranks: the states are summed.
    merged = PoseError()
    merged.update(poses[:0], target[:0], visibility[:0], boxes[:0])
    merged.totals = parts[0].totals + parts[1].totals
    merged.counts = parts[0].counts + parts[1].counts
    assert {name: reduce.__name__ for name, reduce in whole._reductions.items()} == {
        "totals": "dim_zero_sum",
        "counts": "dim_zero_sum",
    }
    assert figures_of(merged) == pytest.approx(figures_of(whole))


def test_another_box_is_another_unit() -> None:
    poses, target, visibility = example()
    scale = metrics.unit_scale(BOX, 2 * BOX)
    assert scale == pytest.approx(0.5)
    average = metrics.position_error(poses, target, visibility, scale)
    assert average.value == pytest.approx(metrics.position_error(poses / 2, target / 2, visibility).value)


def test_bone_error_is_the_change_of_the_limbs_lengths() -> None:
    """A turn of the whole figure changes no limb; a figure half as large halves them all."""
    _, target, visibility = example()
    turned = target @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    metric = PoseError()
    metric.update(turned, target, visibility)
    assert figures_of(metric)["bone_error"] == pytest.approx(0, abs=1e-5)
    length, seen = metrics.bone_lengths(target, visibility)
    metric = PoseError()
    metric.update(target / 2, target, visibility)
    assert figures_of(metric)["bone_error"] == pytest.approx(float(length[seen].mean()) / 2, rel=1e-4)


def test_oks_falls_with_the_distance_and_not_with_the_size() -> None:
    _, target, visibility = example()
    same, counted = metrics.keypoint_similarity(target, target, visibility)
    assert same[counted].min() == 1
    moved = target + 0.3
    near, _ = metrics.keypoint_similarity(moved, target, visibility)
    far, _ = metrics.keypoint_similarity(target + 0.6, target, visibility)
    assert far[counted].mean() < near[counted].mean() < 1
    scaled, _ = metrics.keypoint_similarity(7 * moved, 7 * target, visibility)
    torch.testing.assert_close(scaled, near, atol=1e-5, rtol=1e-4)


def test_oks_is_cocos_formula() -> None:
    """One joint off by d in a box of 2 x 4: exp(-d^2 / (2 * 0.53 * 8 * k^2)) for it, 1 for all others."""
    target = torch.zeros(1, 1, NUM_JOINTS, 2)
    target[..., 1, :] = torch.tensor([2.0, 4.0])
    poses = target.clone()
    poses[..., 0, 0] = 0.1
    found, _ = metrics.keypoint_similarity(poses, target, torch.ones(1, 1, NUM_JOINTS, dtype=torch.bool))
    nose = float(torch.exp(torch.tensor(-(0.1**2) / (2 * 0.53 * 8 * (2 * 0.026) ** 2))))
    assert found.item() == pytest.approx((nose + NUM_JOINTS - 1) / NUM_JOINTS, abs=1e-6)


def test_jerk_is_per_step_cubed() -> None:
    time = torch.arange(6.0)
    poses = torch.zeros(1, 6, NUM_JOINTS, 2)
    poses[..., 0] = (time**3 / 6 * 0.2)[:, None]
    visibility = torch.ones(1, 6, NUM_JOINTS, dtype=torch.bool)
    assert metrics.mean_jerk(poses, visibility).value == pytest.approx(0.2, abs=1e-5)


def test_bones_drift_where_a_figure_breathes_and_not_where_it_turns() -> None:
    _, target, visibility = example(frames=2)
    target[:, 1] = target[:, 0] @ torch.tensor([[0.0, 1.0], [-1.0, 0.0]])
    assert metrics.bone_drift(target, visibility).value == pytest.approx(0, abs=1e-5)
    target[:, 1] = 1.1 * target[:, 0]
    visibility[:] = True
    assert metrics.bone_drift(target, visibility).value == pytest.approx(0.1 / 1.05, abs=1e-3)


def test_feet_skate_where_they_slide_at_one_height() -> None:
    target, visibility = standing(frames=5)
    target[..., metrics.ANKLES, :] = torch.tensor([[0.2, 2.0], [-0.2, 2.0]])
    assert metrics.foot_skate(target, visibility).value == pytest.approx(0, abs=1e-6)
    slid = target + torch.arange(5.0)[:, None, None] * torch.tensor([0.1, 0.0])
    assert metrics.foot_skate(slid, visibility).value == pytest.approx(0.1, abs=1e-5)
    # A foot that is lifted is no foot on the floor, and a fall is no slide.
    lifted = target.clone()
    lifted[:, :, metrics.ANKLES[0], 0] += torch.arange(5.0)
    lifted[:, :, metrics.ANKLES[0], 1] -= 0.5
    assert metrics.foot_skate(lifted, visibility).value == pytest.approx(0, abs=1e-6)
    falling = target + torch.arange(5.0)[:, None, None] * torch.tensor([0.1, 0.1])
    assert metrics.foot_skate(falling, visibility).count == 0
