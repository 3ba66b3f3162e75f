"""A 3D person: bone lengths, joint limits and forward kinematics to the 18 OpenPose joints.

Lengths are in units of the person's standing height. Axes of the action's frame: x to the person's left, y up, z
forward, ground at y = 0, the person standing at the origin at the start. Angles are in radians. Bone lengths are
constant by construction: limbs are either rotated (angles) or solved as two bones (a target for wrist or ankle).

Letters: T frames, J = 18 joints. Sides are indexed 0 = left, 1 = right.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from modules.pose.skeleton import JOINT_NAMES

LEFT, RIGHT = 0, 1
SIDE_SIGN = (1.0, -1.0)  # x of the person's left, right
ELBOW_LIMITS = (np.radians(3.0), np.radians(150.0))
KNEE_LIMITS = (np.radians(4.0), np.radians(145.0))
# flexion (forward), abduction (sideways, up to overhead), axial rotation of the upper arm
SHOULDER_LIMITS = np.radians(np.array([[-65.0, 185.0], [-25.0, 175.0], [-100.0, 100.0]]))
SPINE_LIMITS = np.radians(np.array([[-25.0, 60.0], [-35.0, 35.0], [-50.0, 50.0]]))  # bend, side, twist
HEAD_LIMITS = np.radians(np.array([[-50.0, 50.0], [-75.0, 75.0]]))  # nod, turn
JOINT = {name: index for index, name in enumerate(JOINT_NAMES)}


@dataclass(frozen=True)
class Body:
    """Lengths of one person in units of the standing height; `height` is in metres."""

    height: float = 1.72
    ankle: float = 0.045  # height of the ankle above the ground
    shin: float = 0.245
    thigh: float = 0.245
    hip: float = 0.058  # half of the distance between the hips
    torso: float = 0.290
    shoulder: float = 0.115  # half of the distance between the shoulders
    upper_arm: float = 0.172
    forearm: float = 0.150
    neck: float = 0.098  # neck to the middle between the ears
    face: float = 1.0  # scale of the face

    @property
    def leg(self) -> float:
        return self.thigh + self.shin

    @property
    def stand(self) -> float:
        """Height of the hips when standing with slightly bent knees."""
        return self.ankle + 0.997 * self.leg


def sample_body(rng: np.random.Generator, gender: str) -> Body:
    """Proportions of one person: each length within a few per cent of the mean."""

    def vary(value: float, spread: float = 0.03) -> float:
        return float(value * (1.0 + spread * rng.uniform(-1.0, 1.0)))

    woman = gender == "woman"
    return Body(
        height=vary(1.66 if woman else 1.76, 0.05),
        shin=vary(0.245),
        thigh=vary(0.245),
        hip=vary(0.062 if woman else 0.056, 0.06),
        torso=vary(0.288, 0.03),
        shoulder=vary(0.106 if woman else 0.119, 0.05),
        upper_arm=vary(0.172, 0.04),
        forearm=vary(0.150, 0.04),
        neck=vary(0.098, 0.03),
        face=vary(1.0, 0.05),
    )


@dataclass
class Motion:
    """Tracks of one motion in the action's frame; arrays are (T, ...) and angles are clamped to the joints' limits.

    `arms` holds (flexion, abduction, rotation, elbow) per side; `hands` overrides an arm by a target of the wrist, in
    the chest's frame (origin at the neck) or in the action's frame (`hands_in_chest = False`). `feet` are ankle
    targets.
    """

    pelvis: np.ndarray  # (T, 3)
    feet: np.ndarray  # (T, 2, 3)
    arms: np.ndarray  # (T, 2, 4)
    yaw: np.ndarray  # (T,) heading, positive to the person's left
    pitch: np.ndarray  # (T,) pelvis, positive leans forward
    roll: np.ndarray  # (T,)
    spine: np.ndarray  # (T, 3) bend, side, twist
    head: np.ndarray  # (T, 2) nod, turn
    knees_out: np.ndarray  # (T,) how far the knees point outwards
    hands: list[np.ndarray | None] = field(default_factory=lambda: [None, None])  # (T, 3) each
    hands_in_chest: bool = True
    elbow_pole: tuple[float, float, float] = (0.5, -1.0, -0.2)  # (outwards, up, forward)


def standing(body: Body, frames: int) -> Motion:
    """A person who stands still with hanging arms: the start of every motion."""
    zeros = np.zeros(frames)
    feet = np.zeros((frames, 2, 3))
    feet[:, LEFT, 0], feet[:, RIGHT, 0] = 0.075, -0.075
    feet[:, :, 1] = body.ankle
    pelvis = np.zeros((frames, 3))
    pelvis[:, 1] = body.stand - 0.004
    arms = np.tile(np.radians([4.0, 9.0, 0.0, 14.0]), (frames, 2, 1))
    return Motion(
        pelvis=pelvis,
        feet=feet,
        arms=arms,
        yaw=zeros.copy(),
        pitch=zeros.copy(),
        roll=zeros.copy(),
        spine=np.zeros((frames, 3)),
        head=np.zeros((frames, 2)),
        knees_out=np.full(frames, 0.12),
    )


def rotation(axis: str, angle: np.ndarray) -> np.ndarray:
    """Rotation matrices (T, 3, 3) about x, y or z."""
    c, s = np.cos(angle), np.sin(angle)
    out = np.zeros((*np.shape(angle), 3, 3))
    i, j = {"x": (1, 2), "y": (2, 0), "z": (0, 1)}[axis]
    k = 3 - i - j
    out[..., k, k] = 1.0
    out[..., i, i] = out[..., j, j] = c
    out[..., i, j], out[..., j, i] = -s, s
    return out


def _apply(matrix: np.ndarray, vector: np.ndarray | tuple[float, float, float]) -> np.ndarray:
    """Rotates one vector (3,) or a vector per frame (T, 3) by (T, 3, 3)."""
    return (matrix @ np.asarray(vector, float)[..., None])[..., 0]


def two_bones(
    root: np.ndarray, target: np.ndarray, first: float, second: float, pole: np.ndarray, limits: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Middle and end (T, 3) of a two-bone limb that reaches for `target` (T, 3), bending towards `pole` (T, 3).

    The joint's flexion stays within `limits`: a target out of reach is approached as far as they allow.
    """
    # of the least and of the most flexed limb
    reach = np.sqrt(first**2 + second**2 + 2.0 * first * second * np.cos(np.asarray(limits)))
    offset = target - root
    distance = np.linalg.norm(offset, axis=-1, keepdims=True)
    direction = offset / np.maximum(distance, 1e-6)
    distance = np.clip(distance, reach[1], reach[0])
    along = (first**2 - second**2 + distance**2) / (2.0 * distance)
    aside = np.sqrt(np.maximum(first**2 - along**2, 0.0))
    bend = pole - (pole * direction).sum(-1, keepdims=True) * direction
    bend /= np.maximum(np.linalg.norm(bend, axis=-1, keepdims=True), 1e-6)
    return root + along * direction + aside * bend, root + distance * direction


def _clamped(values: np.ndarray, limits: np.ndarray) -> np.ndarray:
    return np.clip(values, limits[:, 0], limits[:, 1])


def _arm(
    motion: Motion, body: Body, side: int, chest: np.ndarray, shoulder: np.ndarray, neck: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    sign = SIDE_SIGN[side]
    target = motion.hands[side]
    if target is not None:
        outwards, up, forward = motion.elbow_pole
        pole = _apply(chest, (sign * outwards, up, forward))
        wrist = neck + _apply(chest, target) if motion.hands_in_chest else target
        return two_bones(shoulder, wrist, body.upper_arm, body.forearm, pole, ELBOW_LIMITS)
    flexion, abduction, twist = _clamped(motion.arms[:, side, :3], SHOULDER_LIMITS).T
    elbow = np.clip(motion.arms[:, side, 3], *ELBOW_LIMITS)
    upper = chest @ rotation("z", sign * abduction) @ rotation("x", -flexion) @ rotation("y", sign * twist)
    middle = shoulder + body.upper_arm * _apply(upper, (0.0, -1.0, 0.0))
    return middle, middle + body.forearm * _apply(upper @ rotation("x", -elbow), (0.0, -1.0, 0.0))


def forward_kinematics(body: Body, motion: Motion) -> tuple[np.ndarray, np.ndarray]:
    """Joints (T, 18, 3) in the action's frame, in units of the height, and the head's facing direction (T, 3)."""
    frames = len(motion.pelvis)
    joints = np.zeros((frames, len(JOINT_NAMES), 3))
    heading = rotation("y", motion.yaw)
    pelvis = heading @ rotation("x", motion.pitch) @ rotation("z", motion.roll)
    bend, lean, twist = _clamped(motion.spine, SPINE_LIMITS).T
    chest = pelvis @ rotation("x", bend) @ rotation("z", lean) @ rotation("y", twist)
    # half of the torso moves with the pelvis, the rest with the chest: a bent spine is then a curve of two bones
    middle = motion.pelvis + 0.4 * body.torso * _apply(pelvis, (0.0, 1.0, 0.0))
    neck = middle + 0.6 * body.torso * _apply(chest, (0.0, 1.0, 0.0))
    joints[:, JOINT["neck"]] = neck
    nod, turn = _clamped(motion.head, HEAD_LIMITS).T
    head = chest @ rotation("y", turn) @ rotation("x", nod)
    centre = neck + body.neck * _apply(head, (0.0, 0.98, 0.2))
    for name, offset in _FACE.items():
        joints[:, JOINT[name]] = centre + body.face * _apply(head, offset)
    for side, letter in ((LEFT, "l"), (RIGHT, "r")):
        sign = SIDE_SIGN[side]
        shoulder = neck + _apply(chest, (sign * body.shoulder, -0.012, 0.0))
        elbow, wrist = _arm(motion, body, side, chest, shoulder, neck)
        hip = motion.pelvis + _apply(pelvis, (sign * body.hip, 0.0, 0.0))
        pole = _apply(heading, (0.0, 0.0, 1.0)) + (sign * motion.knees_out)[:, None] * _apply(heading, (1.0, 0.0, 0.0))
        # bent over a knee (push-ups) the pelvis' own forward direction decides
        pole = pole + 0.6 * _apply(pelvis, (0.0, 0.0, 1.0))
        knee, ankle = two_bones(hip, motion.feet[:, side], body.thigh, body.shin, pole, KNEE_LIMITS)
        for name, value in (
            ("shoulder", shoulder), ("elbow", elbow), ("wrist", wrist), ("hip", hip), ("knee", knee), ("ankle", ankle),
        ):  # fmt: skip
            joints[:, JOINT[f"{letter}_{name}"]] = value
    return joints, _apply(head, (0.0, 0.0, 1.0))


_FACE = {
    "nose": (0.0, -0.012, 0.062),
    "l_eye": (0.019, 0.010, 0.050),
    "r_eye": (-0.019, 0.010, 0.050),
    "l_ear": (0.044, 0.0, 0.0),
    "r_ear": (-0.044, 0.0, 0.0),
}
