"""Losses of the interpolator. N windows, M frames, J joints."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from modules.interp.network import Base
from modules.interp.outline import Segments
from modules.interp.windows import Windows

_TINY = 1e-6  # under a root, for its slope at zero


@dataclass
class Mean:
    """A sum and what to divide it by, so that groups of windows can be added up."""

    total: Tensor
    count: Tensor

    def __add__(self, other: Mean) -> Mean:
        return Mean(self.total + other.total, self.count + other.count)

    @property
    def value(self) -> Tensor:
        """The mean; 0 where nothing counts."""
        return self.total / self.count.clamp_min(1)


def velocity(values: Tensor, windows: Windows) -> Tensor:
    """First difference along time, (N, M, J, 2) -> (N, M - 1, J, 2), per segment between keys and per pi.

    In this unit a residual that swings out and back once between two keys weighs as much as its velocity.
    """
    frames = (windows.gap[:, 1:] / (windows.times[:, 1:] - windows.times[:, :-1]).clamp_min(1e-3))[..., None, None]
    return (values[:, 1:] - values[:, :-1]) * frames / torch.pi


def counted_joints(visible: Tensor, base: Base) -> Tensor:
    """(N, M, J, 1) 1 where a joint is seen (`visible`, (N, M, J)) and can be known: at least one key shows it."""
    return (visible & base.anchored[:, None])[..., None].to(base.spline.dtype)


def residual_losses(error: Tensor, mask: Tensor, windows: Windows, base: Base) -> dict[str, Mean]:
    """Huber losses of an error in the scaled residual (N, M, J, 2) and of its velocity.

    Residuals have heavy tails, also in units of the motion: a few jumps would make up most of a squared error.

    Args:
        mask: see `counted_joints`.
    """
    error = error * mask
    both = mask[:, 1:] * mask[:, :-1]
    moved = velocity(error * base.profile, windows) * both
    return {
        "position": Mean(F.huber_loss(error, torch.zeros_like(error), reduction="sum"), 2 * mask.sum()),
        "velocity": Mean(F.huber_loss(moved, torch.zeros_like(moved), reduction="sum"), 2 * both.sum()),
    }


def outline_losses(error: Tensor, counted: Tensor, segments: Segments) -> dict[str, Mean]:
    """Mean length of the outline's error (S, M, J, 2) and of its velocity, box coordinates per third of a second
    between keys.

    Plain distances, as they are scored. The unit makes segments of all lengths weigh alike: errors grow with the gap.

    Args:
        counted: (S, M, J) bool.
    """
    unit = 3 * segments.gap[:, None, None]
    steps = (segments.share[:, 1:] - segments.share[:, :-1]).clamp_min(1e-3)[..., None]  # as in `velocity`
    moved = (error[:, 1:] - error[:, :-1]).square().sum(-1)
    both = counted[:, 1:] & counted[:, :-1]
    return {
        "outline": _mean((error.square().sum(-1) + _TINY).sqrt() / unit, counted),
        "outline_velocity": _mean((moved + _TINY).sqrt() / (torch.pi * steps * unit), both),
    }


def _mean(values: Tensor, counted: Tensor) -> Mean:
    return Mean((values * counted).sum(), counted.sum())


def spread_loss(clean: Tensor, spread: Tensor, mask: Tensor) -> Mean:
    """Negative log-likelihood of residuals under a normal distribution of width `spread` (N, 1, J, 1).

    Args:
        clean: (N, M, J, 2) residuals in units of this spread.
    """
    ratio = (clean * (spread.detach() / spread)).square().clamp_max(25)
    return Mean(((0.5 * ratio + spread.log()) * mask).sum(), 2 * mask.sum())


def visibility_loss(logits: Tensor, visible: Tensor, inside: Tensor) -> Mean:
    """Cross-entropy of the visibility (N, M, J) over the frames of the clip (N, M)."""
    loss = F.binary_cross_entropy_with_logits(logits, visible.to(logits.dtype), reduction="none")
    return Mean((loss * inside[..., None]).sum(), inside.sum() * visible.shape[-1])
