"""Motions in place: wave, clap, punch, kick, bow, sit down, stand up."""

from __future__ import annotations

import numpy as np

from datamodules.synthetic.motions import Parameters, alive, between, curve, deg, ease, smooth
from datamodules.synthetic.skeleton3d import LEFT, RIGHT, SIDE_SIGN, Body, Motion, standing


def _sides(p: Parameters) -> tuple[int, ...]:
    return {"left": (LEFT,), "right": (RIGHT,), "both": (LEFT, RIGHT)}[p.side]


def wave(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    """A raised arm; the forearm swings from side to side."""
    motion = standing(body, len(times))
    swing = np.sin(2 * np.pi * (p.frequency * times + p.phase))
    raise_ = between(88.0, 128.0, p.style)
    for side in _sides(p):
        motion.arms[:, side, 0] = deg(6.0)
        motion.arms[:, side, 1] = deg(raise_ + 4.0 * swing)
        motion.arms[:, side, 2] = deg(84.0)
        # at an elbow angle of 180 degrees less the raise the forearm is upright
        upright = 180.0 - raise_
        motion.arms[:, side, 3] = deg(max(upright, 48.0) + between(26.0, 42.0, p.amplitude) * swing)
        motion.spine[:, 1] += SIDE_SIGN[side] * deg(3.0)
    if p.side == "both":
        motion.spine[:, 1] = 0.0
    motion.spine[:, 1] += deg(1.5) * swing * (1.0 if p.side != "right" else -1.0)
    return alive(motion, times, p.style)


def clap(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    motion = standing(body, len(times))
    cycle = np.mod(p.frequency * times + p.phase, 1.0)
    apart = curve(cycle, (0.0, 0.0), (0.5, 1.0), (0.92, 0.0))
    height = between(-0.12, 0.03, p.style)
    width = between(0.11, 0.18, p.amplitude)
    for side in (LEFT, RIGHT):
        hand = np.zeros((len(times), 3))
        hand[:, 0] = SIDE_SIGN[side] * (0.046 + width * apart)
        # one hand comes from above, the other from below: the clap is seen from the side, too
        hand[:, 1] = height + (0.02 + SIDE_SIGN[side] * 0.055) * apart
        hand[:, 2] = 0.205 - 0.085 * apart
        motion.hands[side] = hand
    motion.elbow_pole = (0.35, -1.0, -0.35)
    motion.spine[:, 0] = deg(2.0) * (1.0 - apart)
    motion.head[:, 0] = deg(3.0)
    return alive(motion, times, p.style)


def punch(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    """Straight punches of one arm out of a guard; the shoulders turn with the fist."""
    motion = standing(body, len(times))
    side = _sides(p)[0]
    sign = SIDE_SIGN[side]
    cycle = np.mod(p.frequency * times + p.phase, 1.0)
    out = curve(cycle, (0.0, 0.0), (0.08, -0.06), (0.30, 1.0), (0.40, 1.0), (0.72, 0.0))
    strength = between(0.85, 1.05, p.amplitude)
    height = between(-0.03, 0.05, p.style)
    for each in (LEFT, RIGHT):
        guard = np.array([SIDE_SIGN[each] * 0.075, -0.055, 0.165])
        if each == side:  # from the ribs to the height of the chin
            guard = np.array([SIDE_SIGN[each] * 0.145, -0.165, 0.075])
        hand = np.tile(guard, (len(times), 1))
        if each == side:
            reach = np.array([SIDE_SIGN[each] * 0.03, height, 0.36 * strength])
            hand += out[:, None] * (reach - guard)
        motion.hands[each] = hand
    motion.elbow_pole = (0.45, -1.0, -0.05)
    motion.spine[:, 2] = -sign * deg(between(16.0, 26.0, p.amplitude)) * (out - 0.25)
    motion.head[:, 1] = sign * deg(12.0) * (out - 0.25)
    motion.spine[:, 0] = deg(6.0) + deg(5.0) * out
    # the foot of the other side stands in front
    motion.feet[:, side, 2], motion.feet[:, 1 - side, 2] = -0.11, 0.11
    motion.feet[:, :, 0] *= 1.15
    motion.pelvis[:, 1] -= 0.030 + 0.012 * out
    motion.pelvis[:, 2] += 0.02 * out
    return alive(motion, times, p.style, 0.6)


def kick(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    """Front kicks: the knee rises, the shin snaps out, and back the same way."""
    motion = standing(body, len(times))
    side = _sides(p)[0]
    sign = SIDE_SIGN[side]
    cycle = np.mod(p.frequency * times + p.phase, 1.0)
    top = between(62.0, 96.0, p.amplitude)
    hip = deg(curve(cycle, (0.0, -6.0), (0.08, -10.0), (0.34, top), (0.46, top), (0.80, -6.0)))
    knee = deg(curve(cycle, (0.0, 10.0), (0.20, 95.0), (0.42, 6.0), (0.56, 85.0), (0.84, 10.0)))
    raised = ease((np.sin(hip) + 0.1) / 0.6)
    motion.pitch[:] = -deg(between(5.0, 13.0, p.style)) * raised
    motion.spine[:, 0] = deg(8.0) * raised
    motion.pelvis[:, 0] += -sign * 0.035 * (0.4 + 0.6 * raised)
    motion.pelvis[:, 2] += 0.02 * raised
    motion.pelvis[:, 1] -= 0.008 + 0.012 * raised
    start = motion.pelvis + np.array([sign * body.hip, 0.0, 0.0])
    shin = hip - knee
    foot = start.copy()
    foot[:, 1] -= body.thigh * np.cos(hip) + body.shin * np.cos(shin)
    foot[:, 2] += body.thigh * np.sin(hip) + body.shin * np.sin(shin)
    foot[:, 1] = np.maximum(foot[:, 1], body.ankle)
    motion.feet[:, side] = foot
    motion.feet[:, 1 - side, 0] = -sign * 0.05
    motion.knees_out[:] = 0.02
    for each in (LEFT, RIGHT):
        against = 1.0 if each != side else -1.0
        motion.arms[:, each, 0] = deg(28.0) + against * deg(22.0) * raised
        motion.arms[:, each, 1] = deg(16.0) + deg(10.0) * raised
        motion.arms[:, each, 2] = deg(-20.0)
        motion.arms[:, each, 3] = deg(between(60.0, 95.0, p.style))
    return alive(motion, times, p.style, 0.6)


def bow(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    """From the hips, with straight legs: down, a short hold, up."""
    motion = standing(body, len(times))
    cycle = np.mod(p.frequency * times + 0.12 * p.phase - 0.05, 1.0)
    down = curve(cycle, (0.0, 0.0), (0.06, 0.0), (0.42, 1.0), (0.56, 1.0), (0.90, 0.0))
    angle = between(42.0, 72.0, p.amplitude)
    motion.pitch = deg(0.80 * angle) * down
    motion.spine[:, 0] = deg(0.35 * angle) * down
    motion.head[:, 0] = deg(14.0) * down
    motion.pelvis[:, 2] -= 0.085 * np.sin(deg(angle)) * down
    motion.pelvis[:, 1] -= 0.012 * down
    if p.style < 0.5:  # arms along the body
        motion.arms[:, :, 0] = deg(4.0) + deg(0.45 * angle) * down[:, None]
        motion.arms[:, :, 1] = deg(8.0)
    else:  # hands slide down the thighs
        motion.arms[:, :, 0] = deg(10.0) + deg(0.85 * angle) * down[:, None]
        motion.arms[:, :, 1] = deg(4.0)
        motion.arms[:, :, 3] = deg(18.0)
    motion.feet[:, LEFT, 0], motion.feet[:, RIGHT, 0] = 0.06, -0.06
    return alive(motion, times, p.style, 0.5)


def _seat(body: Body, p: Parameters, times: np.ndarray, seated: np.ndarray, moving: np.ndarray) -> Motion:
    """Between standing (0) and sitting (1); `moving` is 1 in the middle of the way: the trunk leans forward."""
    motion = standing(body, len(times))
    chair = body.ankle + body.shin * between(0.96, 1.06, p.amplitude)
    back = body.thigh * between(0.94, 1.0, p.amplitude)
    stand = float(motion.pelvis[0, 1])
    # first back, then down: the hips move on an arc about the knees
    motion.pelvis[:, 1] = stand + (chair - stand) * seated
    motion.pelvis[:, 2] = -back * np.sin(np.pi / 2 * np.clip(seated, 0.0, 1.0)) ** 1.0
    motion.pitch = deg(between(26.0, 36.0, p.style)) * moving + deg(between(-4.0, 6.0, p.style)) * seated
    motion.spine[:, 0] = deg(12.0) * moving + deg(6.0) * seated
    motion.head[:, 0] = -deg(10.0) * moving
    motion.feet[:, :, 2] += 0.015
    motion.feet[:, LEFT, 0], motion.feet[:, RIGHT, 0] = 0.08, -0.08
    motion.knees_out[:] = 0.18
    # hands: from the sides onto the thighs
    motion.arms[:, :, 0] = deg(4.0) + (deg(34.0) * moving + deg(22.0) * seated)[:, None]
    motion.arms[:, :, 1] = deg(8.0) - (deg(3.0) * seated)[:, None]
    motion.arms[:, :, 2] = -(deg(14.0) * seated)[:, None]
    motion.arms[:, :, 3] = deg(14.0) + (deg(42.0) * seated)[:, None]
    return alive(motion, times, p.style)


def _once(p: Parameters, times: np.ndarray) -> np.ndarray:
    seconds = 0.5 / p.frequency
    start = 0.1 + between(0.0, 0.45, p.phase) * min(1.2, max(p.seconds - seconds - 0.2, 0.0))
    return (times - start) / seconds


def sit_down(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    progress = _once(p, times)
    moving = np.sin(np.pi * np.clip(progress, 0.0, 1.0)) ** 2
    return _seat(body, p, times, smooth(progress), moving)


def stand_up(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    progress = _once(p, times)
    # the trunk leans before the hips leave the seat
    moving = np.sin(np.pi * np.clip(1.25 * progress, 0.0, 1.0)) ** 2
    return _seat(body, p, times, 1.0 - smooth((progress - 0.12) / 0.88), moving)
