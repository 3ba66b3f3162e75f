"""Whole-body motions in place: jump, jumping jacks, squat, push-ups, dance."""

from __future__ import annotations

import numpy as np

from datamodules.synthetic.motions import Parameters, alive, between, curve, deg
from datamodules.synthetic.skeleton3d import LEFT, RIGHT, SIDE_SIGN, Body, Motion, standing

GRAVITY = 9.81
_STRAIGHT = 0.998  # reach of a leg with a straight knee, in units of its length


def jump(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    """Crouch, leave the ground, fly as gravity has it, land, straighten."""
    motion = standing(body, len(times))
    cycle = np.mod(p.frequency * times + p.phase, 1.0)
    leave, land = 0.40, between(0.66, 0.72, p.amplitude)
    flight = (land - leave) / p.frequency
    top = min(GRAVITY * flight**2 / 8.0 / body.height, 0.24)
    air = np.clip((cycle - leave) / (land - leave), 0.0, 1.0)
    height = 4.0 * top * air * (1.0 - air)
    depth = between(0.10, 0.16, p.amplitude)
    crouch = curve(cycle, (0.0, 0.0), (0.06, 0.0), (0.27, 1.0), (leave, -0.02), (land, 0.08), (0.82, 0.72), (0.98, 0.0))
    motion.pelvis[:, 1] += height - depth * crouch
    motion.pelvis[:, 2] = -0.05 * crouch
    tuck = np.sin(np.pi * air) * between(0.0, 0.09, p.style)
    # the ankle rises on the toes
    toes = curve(cycle, (0.0, 0.0), (0.33, 0.0), (leave, 0.05), (land, 0.05), (0.76, 0.0))
    motion.feet[:, :, 1] += (height + toes + tuck)[:, None]
    motion.pitch = deg(between(22.0, 34.0, p.style)) * np.maximum(crouch, 0.0)
    reach = between(92.0, 138.0, p.style) * {"slow": 1.0, "normal": 0.8, "fast": 0.65}[p.speed]
    swing = curve(cycle, (0.0, 5.0), (0.20, -38.0), (leave + 0.08, reach), (land, 0.6 * reach), (0.90, 8.0))
    motion.arms[:, :, 0] = deg(swing)[:, None]
    motion.arms[:, :, 1] = deg(14.0)
    motion.arms[:, :, 3] = deg(22.0)
    motion.head[:, 0] = -deg(8.0) * crouch
    return motion


def jumping_jacks(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    motion = standing(body, len(times))
    cycle = p.frequency * times + p.phase
    spread = 0.5 - 0.5 * np.cos(2 * np.pi * cycle)
    width = between(0.15, 0.23, p.amplitude)
    hop = between(0.020, 0.045, p.style) * (0.5 - 0.5 * np.cos(4 * np.pi * cycle))
    for side in (LEFT, RIGHT):
        sign = SIDE_SIGN[side]
        motion.feet[:, side, 0] = sign * (0.055 + (width - 0.055) * spread)
        motion.feet[:, side, 1] += hop
        motion.arms[:, side, 0] = deg(4.0)
        motion.arms[:, side, 1] = deg(10.0) + deg(between(138.0, 158.0, p.amplitude)) * spread
        motion.arms[:, side, 3] = deg(between(10.0, 28.0, p.style))
        motion.arms[:, side, 2] = deg(50.0) * spread
    reach = np.sqrt((0.99 * body.leg) ** 2 - (motion.feet[:, LEFT, 0] - body.hip) ** 2)
    motion.pelvis[:, 1] = motion.feet[:, LEFT, 1] + reach - 0.008
    motion.knees_out[:] = 0.5
    return motion


def squat(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    motion = standing(body, len(times))
    cycle = np.mod(p.frequency * times + p.phase, 1.0)
    down = curve(cycle, (0.0, 0.0), (0.06, 0.0), (0.46, 1.0), (0.54, 1.0), (0.94, 0.0))
    width = between(0.09, 0.13, p.style)
    motion.feet[:, LEFT, 0], motion.feet[:, RIGHT, 0] = width, -width
    motion.pelvis[:, 1] -= 0.004 + between(0.19, 0.27, p.amplitude) * down
    motion.pelvis[:, 2] = -between(0.11, 0.14, p.amplitude) * down
    motion.pitch = deg(between(24.0, 34.0, p.style)) * down
    motion.spine[:, 0] = deg(8.0) * down
    motion.head[:, 0] = -deg(16.0) * down
    motion.knees_out = 0.15 + 0.30 * down
    if p.style < 0.6:  # arms stretched forward for balance
        motion.arms[:, :, 0] = deg(8.0) + deg(108.0) * down[:, None]
        motion.arms[:, :, 3] = deg(10.0)
    else:  # hands before the chest
        motion.arms[:, :, 0] = deg(22.0) + deg(22.0) * down[:, None]
        motion.arms[:, :, 2] = -deg(38.0)
        motion.arms[:, :, 3] = deg(105.0)
    return alive(motion, times, p.style, 0.5)


def push_ups(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    """The body is a board that turns about the toes; the hands stay on the ground."""
    motion = standing(body, len(times))
    cycle = np.mod(p.frequency * times + p.phase, 1.0)
    down = curve(cycle, (0.0, 0.0), (0.06, 0.0), (0.48, 1.0), (0.54, 1.0), (0.94, 0.0))
    wide = between(0.14, 0.19, p.style)
    arm = body.upper_arm + body.forearm
    top = 0.03 + 0.985 * np.sqrt(arm**2 - (wide - body.shoulder) ** 2)
    bottom = between(0.11, 0.17, 1.0 - p.amplitude)
    shoulder = top + (bottom - top) * down
    toe = 0.075  # height of the ankles on the toes
    board = _STRAIGHT * body.leg + body.torso
    slope = np.arcsin((shoulder - toe) / board)
    along = np.stack([np.zeros_like(slope), np.sin(slope), np.cos(slope)], axis=-1)
    start = -0.5 * board  # the middle of the body is above the origin
    ankles = np.array([0.0, toe, start])
    motion.pelvis = ankles + _STRAIGHT * body.leg * along
    motion.feet[:] = ankles
    motion.feet[:, LEFT, 0], motion.feet[:, RIGHT, 0] = 0.05, -0.05
    motion.pitch = np.pi / 2 - slope
    motion.knees_out[:] = 0.0
    motion.head[:, 0] = -deg(between(14.0, 34.0, p.style))
    reach = float((_STRAIGHT * body.leg + body.torso) * np.cos(np.arcsin((top - toe) / board)))
    for side in (LEFT, RIGHT):
        motion.hands[side] = np.tile([SIDE_SIGN[side] * wide, 0.03, start + reach + 0.01], (len(times), 1))
    motion.hands_in_chest = False
    # in the chest's frame, which looks down: elbows go up (behind the chest), outwards, and towards the feet
    motion.elbow_pole = (0.55, -0.55, -1.0)
    return motion


def dance(body: Body, p: Parameters, times: np.ndarray) -> Motion:
    """Hips swing from foot to foot; three ways to move the arms."""
    motion = standing(body, len(times))
    cycle = p.frequency * times + p.phase
    beat = np.sin(2 * np.pi * cycle)
    bounce = 0.5 - 0.5 * np.cos(4 * np.pi * cycle)
    size = between(0.75, 1.1, p.amplitude)
    motion.feet[:, LEFT, 0], motion.feet[:, RIGHT, 0] = 0.115, -0.115
    for side in (LEFT, RIGHT):  # the free foot lifts when the hips are over the other
        free = np.clip(-SIDE_SIGN[side] * beat, 0.0, 1.0)
        motion.feet[:, side, 1] += 0.065 * size * free**2
        motion.feet[:, side, 0] -= SIDE_SIGN[side] * 0.03 * free**2
    motion.pelvis[:, 0] = 0.062 * size * beat
    motion.pelvis[:, 1] -= 0.028 + 0.026 * size * bounce
    motion.roll = -deg(7.0) * size * beat
    motion.spine[:, 1] = deg(13.0) * size * beat
    motion.spine[:, 2] = deg(13.0) * size * np.sin(2 * np.pi * cycle + 0.6)
    motion.head[:, 1] = -deg(12.0) * beat
    motion.knees_out[:] = 0.35
    for side in (LEFT, RIGHT):
        sign = SIDE_SIGN[side]
        if p.style < 0.34:  # arms overhead, swaying
            motion.arms[:, side, 1] = deg(142.0) + sign * deg(16.0) * size * beat
            motion.arms[:, side, 2] = deg(80.0)
            motion.arms[:, side, 3] = deg(34.0) + sign * deg(14.0) * beat
        elif p.style < 0.67:  # one arm up, the other down, in turns
            up = 0.5 + 0.5 * sign * beat
            motion.arms[:, side, 0] = deg(12.0)
            motion.arms[:, side, 1] = deg(28.0) + deg(108.0) * size * up
            motion.arms[:, side, 2] = deg(70.0) * up
            motion.arms[:, side, 3] = deg(70.0) - deg(30.0) * up
        else:  # bent elbows that pump forward in turns
            motion.arms[:, side, 0] = deg(12.0) + sign * deg(42.0) * size * beat
            motion.arms[:, side, 1] = deg(32.0)
            motion.arms[:, side, 2] = -deg(25.0)
            motion.arms[:, side, 3] = deg(95.0) + sign * deg(15.0) * beat
    return motion
