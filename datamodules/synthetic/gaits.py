"""Motions on the feet: walk, run, side step, turn around. A foot that is down stays where it was put."""

from __future__ import annotations

import numpy as np

from datamodules.synthetic.motions import Parameters, alive, between, curve, deg, ease, smooth
from datamodules.synthetic.skeleton3d import LEFT, RIGHT, SIDE_SIGN, Body, Motion, standing


def _stride(parameters: Parameters, low: float, high: float) -> float:
    """Length of a whole cycle (two steps), shortened where the frame has no room for it."""
    length = between(low, high, parameters.amplitude)
    if parameters.distance is not None:
        length = min(length, parameters.distance / (parameters.frequency * parameters.seconds))
    return length


def _swing(phase: np.ndarray, stance: float) -> np.ndarray:
    """Place of a foot in units of the stride: still during the stance, one stride further after the swing."""
    return np.floor(phase) + ease((np.mod(phase, 1.0) - stance) / (1.0 - stance))


def walk(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    motion = standing(body, len(times))
    pace = {"slow": 0.85, "normal": 1.0, "fast": 1.12}[p.speed]
    stride = _stride(p, 0.56 * pace, 0.78 * pace)
    strength = min(stride / 0.66, 1.15)
    cycle = p.frequency * times + p.phase
    stance = 0.60
    width = between(0.035, 0.055, p.style)
    motion.pelvis[:, 2] = stride * (cycle - p.phase)
    for side, offset in ((LEFT, 0.0), (RIGHT, 0.5)):
        phase = cycle + offset
        at = np.mod(phase, 1.0)
        place = _swing(phase, stance) - offset - p.phase + 0.5 * stance
        roll = curve(at, (0.0, 0.0), (0.36, 0.0), (stance, 0.035), (0.85, 0.0))  # the heel rises and moves forward
        motion.feet[:, side, 0] = SIDE_SIGN[side] * width
        motion.feet[:, side, 2] = stride * place + roll
        lift = curve(at, (0.0, 0.012), (0.08, 0.0), (0.34, 0.0), (stance, 0.062), (0.70, 0.085), (0.90, 0.022))
        motion.feet[:, side, 1] += lift * (0.55 + 0.45 * strength)
        # the arm swings against the leg of its own side, which is at its front at phase 0
        swing = -np.cos(2 * np.pi * phase)
        motion.arms[:, side, 0] = deg(2.0) + deg(between(16.0, 26.0, p.amplitude)) * strength * swing
        motion.arms[:, side, 1] = deg(7.0)
        motion.arms[:, side, 3] = deg(between(14.0, 26.0, p.style)) + deg(9.0) * swing
    turn = np.cos(2 * np.pi * cycle)  # the left foot is at the front at phase 0
    motion.pelvis[:, 1] += -0.014 - 0.010 * strength * np.cos(4 * np.pi * cycle - 0.5)
    motion.pelvis[:, 0] += -0.012 * np.sin(2 * np.pi * (cycle - 0.55))
    motion.roll += deg(2.5) * np.sin(2 * np.pi * cycle)
    motion.spine[:, 2] = deg(9.0) * strength * turn
    motion.head[:, 1] = -deg(6.0) * strength * turn
    motion.pitch[:] = deg(between(2.0, 6.0, p.style) + (2.0 if p.speed == "fast" else 0.0))
    return motion


def run(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    motion = standing(body, len(times))
    pace = {"slow": 0.85, "normal": 1.0, "fast": 1.08}[p.speed]
    stride = _stride(p, 0.95 * pace, 1.30 * pace)
    strength = float(np.clip(stride / 1.1, 0.72, 1.15))
    cycle = p.frequency * times + p.phase
    stance = 0.36
    motion.pelvis[:, 2] = stride * (cycle - p.phase)
    reach = min(stride, 0.95)  # a long stride comes from the flight, not from the split of the legs
    for side, offset in ((LEFT, 0.0), (RIGHT, 0.5)):
        phase = cycle + offset
        at = np.mod(phase, 1.0)
        # relative to the pelvis: back with the ground during the stance, then a folded leg comes through
        down = 0.42 * stance * stride - stride * at
        back = 0.42 * stance * stride - stride * stance
        swing = curve(
            at, (0.0, 0.42 * stance * stride), (stance, back), (0.50, back - 0.07 * reach),
            (0.74, 0.10 * reach), (0.89, 0.27 * reach),
        )  # fmt: skip
        motion.feet[:, side, 2] = motion.pelvis[:, 2] + np.where(at < stance, down, swing) + 0.02
        lift = curve(
            at, (0.0, 0.012), (0.12, 0.0), (0.20, 0.0), (stance, 0.075), (0.58, 0.215), (0.74, 0.165), (0.90, 0.06)
        )
        motion.feet[:, side, 0] = SIDE_SIGN[side] * 0.03
        motion.feet[:, side, 1] += lift * between(0.8, 1.0, p.amplitude) * strength
        swing = -np.cos(2 * np.pi * (phase - 0.06))
        motion.arms[:, side, 0] = deg(-2.0) + deg(between(34.0, 46.0, p.amplitude)) * strength * swing
        motion.arms[:, side, 1] = deg(11.0)
        motion.arms[:, side, 2] = deg(-18.0)
        motion.arms[:, side, 3] = deg(between(78.0, 100.0, p.style)) + deg(12.0) * swing
    turn = np.cos(2 * np.pi * (cycle - 0.06))
    motion.pelvis[:, 1] += -0.030 + 0.026 * strength * np.sin(4 * np.pi * (cycle - stance / 2) - np.pi / 2)
    motion.spine[:, 2] = deg(14.0) * strength * turn
    motion.head[:, 1] = -deg(10.0) * strength * turn
    motion.pitch[:] = deg(between(7.0, 13.0, p.style))
    motion.head[:, 0] = -deg(6.0)
    return motion


def side_step(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    motion = standing(body, len(times))
    sign = 1.0 if p.travel == "left" else -1.0
    stride = _stride(p, 0.30, 0.44)
    cycle = p.frequency * times + p.phase
    lead, trail = (LEFT, RIGHT) if sign > 0 else (RIGHT, LEFT)
    place = {}
    for side, start in ((lead, 0.02), (trail, 0.52)):
        at = np.mod(cycle, 1.0)
        step = np.clip((at - start) / 0.44, 0.0, 1.0)
        place[side] = np.floor(cycle) + ease(step) - p.phase
        motion.feet[:, side, 1] += between(0.035, 0.07, p.style) * np.sin(np.pi * step) ** 2
        motion.feet[:, side, 0] = SIDE_SIGN[side] * 0.06 + sign * stride * place[side]
    middle = 0.5 * (place[lead] + place[trail])
    apart = place[lead] - place[trail]
    motion.pelvis[:, 0] += sign * stride * middle
    motion.pelvis[:, 1] += -between(0.02, 0.055, p.style) - 0.05 * apart * stride / 0.4
    motion.arms[:, :, 1] = deg(12.0) + deg(between(8.0, 22.0, p.amplitude)) * apart[:, None]
    motion.arms[:, :, 0] = deg(12.0)
    motion.arms[:, :, 3] = deg(between(25.0, 55.0, p.style))
    motion.spine[:, 1] = -sign * deg(2.5) * apart
    motion.pitch[:] = deg(4.0)
    return alive(motion, times, p.style, 0.6)


def turn_around(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    """Half a turn on the spot in small steps; the head leads."""
    motion = standing(body, len(times))
    seconds = 0.5 / p.frequency
    start = between(0.1, 0.5, p.phase) * min(1.0, max(p.seconds - seconds, 0.0))
    progress = (times - start) / seconds
    sign = 1.0 if p.style < 0.5 else -1.0
    heading = sign * np.pi * smooth(progress)
    motion.yaw = heading
    steps = 3
    for side in (LEFT, RIGHT):
        delay = 0.0 if (side == LEFT) == (sign > 0) else 0.5
        at = np.clip(progress * (steps + 0.5) - delay, 0.0, steps)
        moving = np.mod(at, 1.0)
        angle = sign * np.pi * (np.floor(at) + ease(moving)) / steps
        width = SIDE_SIGN[side] * 0.07
        motion.feet[:, side, 0] = width * np.cos(angle)
        motion.feet[:, side, 2] = -width * np.sin(angle)
        motion.feet[:, side, 1] += between(0.025, 0.05, p.amplitude) * np.sin(np.pi * moving) ** 2
    busy = np.sin(np.pi * np.clip(progress, 0.0, 1.0)) ** 2
    motion.head[:, 1] = sign * deg(28.0) * busy
    motion.spine[:, 2] = sign * deg(14.0) * busy
    motion.pelvis[:, 1] -= 0.012 * busy
    motion.arms[:, :, 1] += deg(between(8.0, 20.0, p.amplitude)) * busy[:, None]
    motion.arms[:, :, 3] += deg(18.0) * busy[:, None]
    return alive(motion, times, p.style)
