"""Training losses of the pose tokenizer. Unseen joints and padding enter none of them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from modules.metrics.pose import bone_lengths, difference
from modules.vqvae.network import AutoencoderOutput

# Keeps the gradient of a distance finite at zero; far below any error that matters (box coordinates).
_EPSILON = 1e-3


@dataclass
class Losses:
    """Each () and unweighted."""

    position: Tensor  # error of the visible joints, see `tokenizer_losses`
    velocity: Tensor  # mean distance of the differences between successive keys
    commitment: Tensor
    visibility: Tensor  # binary cross-entropy over the joints of real keys
    bone: Tensor  # mean difference of the limbs' lengths


def mean_distance(error: Tensor, mask: Tensor) -> Tensor:
    """Mean length of the vectors (..., 2) where mask (...) is True; 0 where it is nowhere."""
    length = (torch.where(mask[..., None], error, 0).square().sum(-1) + _EPSILON**2).sqrt() - _EPSILON
    return length.sum() / mask.sum().clamp(min=1)


def mean_smooth_l1(error: Tensor, mask: Tensor) -> Tensor:
    """Mean smooth L1 of the coordinates (..., 2) where mask (...) is True; 0 where it is nowhere."""
    kept = torch.where(mask[..., None], error, 0)
    return F.smooth_l1_loss(kept, torch.zeros_like(kept), reduction="sum") / (2 * mask.sum().clamp(min=1))


def tokenizer_losses(
    output: AutoencoderOutput, poses: Tensor, visibility: Tensor, key_mask: Tensor, position: str = "distance"
) -> Losses:
    """Losses of a reconstruction.

    Args:
        poses: (B, K, J, 2) truth.
        visibility: (B, K, J) bool, the truth.
        key_mask: (B, K) bool.
        position: "distance", the metric itself, or "smooth_l1".
    """
    seen = visibility & key_mask[..., None]
    real = key_mask[..., None].expand_as(visibility)
    error = output.poses - poses
    # The difference of the errors is the error of the differences.
    change, both_seen = difference(error, seen, order=1)
    cross_entropy = F.binary_cross_entropy_with_logits(
        output.visibility_logits, visibility.to(error.dtype), reduction="none"
    )
    length, both_ends = bone_lengths(output.poses, seen)
    true_length, _ = bone_lengths(poses, seen)
    bone = torch.where(both_ends, (length - true_length).abs(), 0).sum() / both_ends.sum().clamp(min=1)
    return Losses(
        position=(mean_distance if position == "distance" else mean_smooth_l1)(error, seen),
        velocity=mean_distance(change, both_seen),
        commitment=output.commitment,
        visibility=(cross_entropy * real).sum() / real.sum().clamp(min=1),
        bone=bone,
    )
