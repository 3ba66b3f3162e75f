"""What a motion is made of: its parameters, the type of an action, and the time curves.

Every action is a function `(body, parameters, times) -> Motion`. A fundamental frequency is at most 1.2 Hz: key poses
are sampled at 3 per second, faster motion would alias. Letters: T frames.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from datamodules.synthetic.skeleton3d import Body, Motion

MAX_FREQUENCY = 1.2  # Hz
SPEEDS = ("slow", "normal", "fast")


@dataclass(frozen=True)
class Parameters:
    """Parameters of one motion; the numbers without a unit are in [0, 1)."""

    side: str  # left, right, both or none: the person's
    travel: str  # none, forward, left or right: the person's
    speed: str
    frequency: float  # Hz: of the cycle, or 1 / (2 x seconds) of a movement made once
    amplitude: float
    phase: float
    style: float
    seconds: float
    distance: float | None = None  # at most this far, in units of the height (travelling actions)


@dataclass(frozen=True)
class Action:
    """One action: what its captions may say about it, and how it moves."""

    name: str
    build: Callable[[Body, Parameters, np.ndarray], Motion]
    frequencies: tuple[tuple[float, float], tuple[float, float], tuple[float, float]]  # slow, normal, fast, Hz
    viewpoints: tuple[str, ...]
    sides: tuple[str, ...] = ("none",)
    travels: bool = False
    once: bool = False


def smooth(x: np.ndarray) -> np.ndarray:
    """Ease from 0 to 1 (at x <= 0 and x >= 1) with zero velocity and acceleration at both ends."""
    x = np.clip(x, 0.0, 1.0)
    return x**3 * (x * (6.0 * x - 15.0) + 10.0)


def ease(x: np.ndarray) -> np.ndarray:
    """Ease from 0 to 1 with zero velocity at both ends."""
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3.0 - 2.0 * x)


def curve(phase: np.ndarray, *knots: tuple[float, float]) -> np.ndarray:
    """Periodic curve through `(phase, value)` knots by monotone cubic pieces: flat at extremes, no overshoot."""
    at = np.array([k[0] for k in knots])
    value = np.array([k[1] for k in knots])
    gap = np.diff(np.append(at, at[0] + 1.0))
    rise = np.diff(np.append(value, value[0])) / gap
    before, h_before = np.roll(rise, 1), np.roll(gap, 1)
    slope = np.zeros_like(value)
    same = rise * before > 0
    w1, w2 = 2.0 * gap + h_before, gap + 2.0 * h_before  # Fritsch-Butland weights (PCHIP)
    slope[same] = ((w1 + w2)[same]) / (w1[same] / before[same] + w2[same] / rise[same])
    p = np.mod(np.asarray(phase) - at[0], 1.0) + at[0]
    i = np.clip(np.searchsorted(at, p, side="right") - 1, 0, len(at) - 1)
    j = (i + 1) % len(at)
    t = (p - at[i]) / gap[i]
    h = gap[i]
    return (
        value[i] * (1 + 2 * t) * (1 - t) ** 2
        + slope[i] * h * t * (1 - t) ** 2
        + value[j] * t * t * (3 - 2 * t)
        + slope[j] * h * t * t * (t - 1)
    )


def between(low: float, high: float, u: float) -> float:
    return low + (high - low) * u


def deg(angle: float | np.ndarray) -> np.ndarray:
    return np.radians(angle)


def alive(motion: Motion, times: np.ndarray, style: float, amount: float = 1.0) -> Motion:
    """Breathing and a slow sway, so that nobody stands like a statue."""
    sway = amount * np.sin(2 * np.pi * (0.23 * times + style))
    breath = amount * np.sin(2 * np.pi * (0.31 * times + 3.0 * style))
    motion.pelvis[:, 0] += 0.004 * sway
    motion.spine[:, 1] += deg(1.0) * sway
    motion.spine[:, 0] += deg(0.8) * breath
    motion.head[:, 1] += deg(5.0) * np.sin(2 * np.pi * (0.17 * times + 2.0 * style)) * amount
    motion.arms[:, :, 1] += deg(1.2) * breath[:, None]
    return motion
