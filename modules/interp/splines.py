"""Splines through key poses: the curve that the diffusion model corrects, and the baselines it is measured against.

N windows, M frames of a window, T frames of a clip, K keys, J joints. A window has three keys: left, centre, right.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.interpolate import PchipInterpolator
from torch import Tensor

KINDS = ("linear", "pchip")


@dataclass
class FilledKeys:
    """Three keys with every joint filled in where at least one of them shows it."""

    joints: Tensor  # (N, 3, J, 2)
    left_known: Tensor  # (N, J) bool: left and centre key show the joint
    right_known: Tensor  # (N, J) bool: centre and right key show it
    anchored: Tensor  # (N, J) bool: seen in at least one key


def fill_keys(keys: Tensor, visibility: Tensor, times: Tensor) -> FilledKeys:
    """Fill unseen joints of a window's keys: in the middle by the line between the outer two, else by the nearest key.

    Args:
        keys: (N, 3, J, 2).
        visibility: (N, 3, J) bool; all False for a key that does not exist.
        times: (N, 3) seconds, ascending.
    """
    left, centre, right = keys.unbind(1)  # each (N, J, 2)
    sees_left, sees_centre, sees_right = visibility.unbind(1)  # each (N, J)
    share = ((times[:, 1] - times[:, 0]) / (times[:, 2] - times[:, 0]))[:, None, None]
    both = sees_left & sees_right
    nearest = torch.where(sees_left[..., None], left, right)
    nearest = torch.where((sees_left | sees_right)[..., None], nearest, torch.zeros_like(nearest))
    middle = torch.where(both[..., None], torch.lerp(left, right, share), nearest)
    centre = torch.where(sees_centre[..., None], centre, middle)
    left = torch.where(sees_left[..., None], left, centre)
    right = torch.where(sees_right[..., None], right, centre)
    return FilledKeys(
        joints=torch.stack([left, centre, right], dim=1),
        left_known=sees_left & sees_centre,
        right_known=sees_right & sees_centre,
        anchored=visibility.any(1),
    )


def window_spline(filled: FilledKeys, key_times: Tensor, times: Tensor, kind: str) -> Tensor:
    """Value at `times` of the spline through three keys; before the first and after the last key the pose is held.

    Args:
        key_times: (N, 3) seconds, ascending.
        times: (N, M) seconds.
        kind: "linear", or "pchip" (Fritsch and Carlson's slopes as in SciPy: no overshoot).

    Returns:
        (N, M, J, 2).
    """
    left, centre, right = filled.joints.unbind(1)
    first, second = (key_times[:, 1:] - key_times[:, :-1])[..., None, None].unbind(1)  # lengths, each (N, 1, 1)
    before, after = (centre - left) / first, (right - centre) / second  # mean velocities, (N, J, 2)
    on_left = (times < key_times[:, 1:2])[..., None, None]  # (N, M, 1, 1)
    start = torch.where(on_left, left[:, None], centre[:, None])  # (N, M, J, 2)
    stop = torch.where(on_left, centre[:, None], right[:, None])
    origin = torch.where(on_left[..., 0, 0], key_times[:, :1], key_times[:, 1:2])
    length = torch.where(on_left, first[:, None], second[:, None])  # (N, M, 1, 1)
    u = ((times - origin)[..., None, None] / length).clamp(0, 1)
    if kind == "linear":
        return torch.lerp(start, stop, u)
    assert kind == "pchip", kind
    before, after = _velocities(before, after, filled)
    at_left = _end_slope(before, after, first, second)
    at_centre = _inner_slope(before, after, first, second)
    at_right = _end_slope(after, before, second, first)
    start_slope = torch.where(on_left, at_left[:, None], at_centre[:, None]) * length
    stop_slope = torch.where(on_left, at_centre[:, None], at_right[:, None]) * length
    return _cubic(start, start_slope, stop, stop_slope, u)


def centre_velocity(filled: FilledKeys, key_times: Tensor) -> Tensor:
    """Velocity (N, J, 2), per second, at which the "pchip" spline passes the centre key; key_times: (N, 3) seconds."""
    left, centre, right = filled.joints.unbind(1)
    first, second = (key_times[:, 1:] - key_times[:, :-1])[..., None, None].unbind(1)  # (N, 1, 1)
    before, after = _velocities((centre - left) / first, (right - centre) / second, filled)
    return _inner_slope(before, after, first, second)


def hermite(start: Tensor, start_slope: Tensor, stop: Tensor, stop_slope: Tensor, share: Tensor) -> Tensor:
    """Cubic curves (S, M, J, 2) between two poses, each (S, J, 2), with slopes per segment, at `share` (S, M), 0..1."""
    return _cubic(start[:, None], start_slope[:, None], stop[:, None], stop_slope[:, None], share[..., None, None])


def _cubic(start: Tensor, start_slope: Tensor, stop: Tensor, stop_slope: Tensor, u: Tensor) -> Tensor:
    square, cube = u * u, u * u * u
    return (
        start * (2 * cube - 3 * square + 1)
        + start_slope * (cube - 2 * square + u)
        + stop * (3 * square - 2 * cube)
        + stop_slope * (cube - square)
    )


def _velocities(before: Tensor, after: Tensor, filled: FilledKeys) -> tuple[Tensor, Tensor]:
    """Mean velocities (N, J, 2) on both sides of the centre key.

    A side that no key shows takes the other side's: the end of a curve through two points is straight. (A joint filled
    in on the line between the outer keys has the same velocity on both sides.)
    """
    lone = filled.left_known ^ filled.right_known
    from_right, from_left = (lone & filled.right_known)[..., None], (lone & filled.left_known)[..., None]
    return torch.where(from_right, after, before), torch.where(from_left, before, after)


def _inner_slope(before: Tensor, after: Tensor, first: Tensor, second: Tensor) -> Tensor:
    """Weighted harmonic mean of two velocities of the same sign, else 0 (a turning point stays one)."""
    same = before * after > 0
    one, two = 2 * second + first, second + 2 * first
    safe_before, safe_after = torch.where(same, before, 1.0), torch.where(same, after, 1.0)
    return torch.where(same, (one + two) / (one / safe_before + two / safe_after), 0.0)


def _end_slope(near: Tensor, far: Tensor, near_length: Tensor, far_length: Tensor) -> Tensor:
    """Three-point slope at an end, limited so that the curve keeps the shape of the keys."""
    slope = ((2 * near_length + far_length) * near - near_length * far) / (near_length + far_length)
    slope = torch.where(slope * near <= 0, torch.zeros_like(slope), slope)
    return torch.where((near * far < 0) & (slope.abs() > 3 * near.abs()), 3 * near, slope)


def clip_spline(
    keys: np.ndarray, visibility: np.ndarray, key_times: np.ndarray, times: np.ndarray, kind: str
) -> np.ndarray:
    """Baseline over a whole clip: for every joint a spline through the keys that show it, held beyond their ends.

    Args:
        keys: (K, J, 2).
        visibility: (K, J) bool.
        key_times: (K,) ascending, the unit of `times`.
        times: (T,).
        kind: "linear" or "pchip".

    Returns:
        (T, J, 2); zeros for a joint that no key shows.
    """
    result = np.zeros((len(times), *keys.shape[1:]), np.float32)
    for joint in range(keys.shape[1]):
        seen = visibility[:, joint]
        points, at = keys[seen, joint].astype(np.float64), key_times[seen]
        if not len(at):
            continue
        clamped = np.clip(times, at[0], at[-1])
        if kind == "pchip" and len(at) > 1:
            result[:, joint] = PchipInterpolator(at, points)(clamped)
        else:
            result[:, joint] = np.stack([np.interp(clamped, at, points[:, axis]) for axis in (0, 1)], axis=-1)
    return result
