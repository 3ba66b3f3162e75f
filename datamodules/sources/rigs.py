"""From the joints of any rig to OpenPose's 18, in metres, upright.

Letters: T frames, B joints of the rig, J joints (18). Axes: y up; a person's left is +x where they face +z.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from datamodules.sources.bvh import Motion, forward_kinematics
from modules.errors import UserError
from modules.pose.skeleton import JOINT_NAMES, NUM_JOINTS

# What rigs call each joint, without prefix, case and separators; {s}: left, l; the first that is there counts.
# A rig with an "Arm" calls its collar bone "Shoulder".
_LIMBS = {
    "shoulder": ("{s}arm", "{s}uparm", "{s}upperarm", "upperarm{s}", "{s}shoulder", "{s}shldr", "{s}humerus"),
    "elbow": ("{s}forearm", "{s}elbow", "{s}lowerarm", "{s}lowarm", "forearm{s}", "lowerarm{s}", "{s}radius"),
    "wrist": ("{s}wrist", "{s}hand", "hand{s}"),
    "hip": ("{s}upleg", "{s}thigh", "thigh{s}", "{s}hip", "{s}upperleg", "{s}femur"),
    "knee": ("{s}knee", "{s}leg", "{s}calf", "{s}shin", "calf{s}", "shin{s}", "{s}lowleg", "{s}lowerleg", "{s}tibia"),
    "ankle": ("{s}ankle", "{s}foot", "foot{s}"),
}
_SIDES = {"l": ("left", "l"), "r": ("right", "r")}
_HEAD = ("head", "head1", "skull")
_PREFIX = re.compile(r"^(.*:|cc_base_|mixamorig_?|bip0?1_?|bip001 ?|character1_|b_|def-)", re.IGNORECASE)

NEEDED = ("head", *(f"{side}_{part}" for side in _SIDES for part in _LIMBS))

# From the joint of the head to the parts of the face, in units of the body's height: left, up, forward.
_FACE = {
    "nose": (0.0, 0.012, 0.062), "l_eye": (0.017, 0.032, 0.050), "r_eye": (-0.017, 0.032, 0.050),
    "l_ear": (0.044, 0.024, 0.0), "r_ear": (-0.044, 0.024, 0.0),
}  # fmt: skip
_INDEX = {name: number for number, name in enumerate(JOINT_NAMES)}


@dataclass(frozen=True, eq=False)
class Body:
    """A motion in space."""

    joints: np.ndarray  # (T, J, 3) metres
    facing: np.ndarray  # (T, 3) unit vectors, where the head looks


def find_joints(names: list[str], table: Mapping[str, str], where: str) -> dict[str, int]:
    """The joint of the rig for each of `NEEDED`.

    Args:
        names: of the rig's joints.
        table: what the user says: needed joint -> name in the rig.
        where: for messages.

    Raises:
        UserError: names the joint that is missing.
    """
    if unknown := sorted(set(table) - set(NEEDED)):
        raise UserError(f"joints.{unknown[0]} is unknown; known are {', '.join(NEEDED)}")
    plain: dict[str, int] = {}
    for number, name in enumerate(names):
        if name:
            plain.setdefault(re.sub(r"[^a-z0-9]", "", _PREFIX.sub("", name).lower()), number)
    found = {}
    for joint in NEEDED:
        if joint in table:
            if table[joint] not in names:
                near = difflib.get_close_matches(table[joint], names, n=1)
                guess = f"; did you mean {near[0]}?" if near else ""
                raise UserError(f"{where}: has no joint {table[joint]!r} (joints.{joint}){guess}")
            found[joint] = names.index(table[joint])
            continue
        side, _, part = joint.partition("_")
        candidates = [form.format(s=s) for form in _LIMBS[part] for s in _SIDES[side]] if part else list(_HEAD)
        place = next((plain[name] for name in candidates if name in plain), None)
        if place is None:
            named = [name for name in names if name]
            some = ", ".join(named[:12]) + (", ..." if len(named) > 12 else "")
            raise UserError(f"{where}: no joint for {joint}; name it with joints.{joint}=NAME (the rig has {some})")
        found[joint] = place
    return found


def to_body(motion: Motion, table: Mapping[str, str], height: float, where: str) -> Body:
    """The 18 joints of a motion.

    The neck is between the shoulders, as in OpenPose; the face is placed on the head by a person's proportions.

    Args:
        motion: of any rig, in any unit, with any axis upwards.
        table: see `find_joints`.
        height: of the person in metres; the motion is scaled to it.
        where: for messages.

    Raises:
        UserError: a joint is missing, or the rig has no size.
    """
    places = find_joints([joint.name for joint in motion.joints], table, where)
    positions, rotations = forward_kinematics(motion)
    part = {name: positions[:, place] for name, place in places.items()}
    hips, ankles = _middle(part, "hip"), _middle(part, "ankle")
    turn = _upright((part["head"] - ankles).mean(0))
    size = _height(part)
    if not size > 0:
        raise UserError(f"{where}: its bones have no length; export the motion again with the rig's own offsets")
    scale = height / size
    part = {name: scale * points @ turn.T for name, points in part.items()}
    head = turn @ rotations[:, places["head"]]
    left, up, forward = _head_axes(motion, places, part, head)
    joints = np.zeros((len(hips), NUM_JOINTS, 3))
    for name, points in part.items():
        if name != "head":
            joints[:, _INDEX[name]] = points
    joints[:, _INDEX["neck"]] = _middle(part, "shoulder")
    axes = np.stack([left, up, forward], -1)  # (T, 3, 3)
    for name, offset in _FACE.items():
        joints[:, _INDEX[name]] = part["head"] + height * axes @ np.array(offset)
    joints -= [0, joints[..., 1].min(), 0]
    return Body(joints, forward)


def _middle(part: Mapping[str, np.ndarray], name: str) -> np.ndarray:
    return 0.5 * (part[f"l_{name}"] + part[f"r_{name}"])


def _upright(up: np.ndarray) -> np.ndarray:
    """Rotation (3, 3) that turns the coordinate axis nearest to `up` to +y."""
    axis = int(np.abs(up).argmax())
    sign = 1.0 if up[axis] > 0 else -1.0
    if axis == 0:
        return np.array([[0, -sign, 0], [sign, 0, 0], [0, 0, 1]])
    if axis == 1:
        return np.diag([1, sign, sign])
    return np.array([[1, 0, 0], [0, 0, sign], [0, -sign, 0]])


def _height(part: Mapping[str, np.ndarray]) -> float:
    """Standing height in the rig's units, from its bones: sole to crown."""

    def bone(first: np.ndarray, second: np.ndarray) -> float:
        return float(np.median(np.linalg.norm(first - second, axis=-1)))

    leg = bone(part["l_hip"], part["l_knee"]) + bone(part["l_knee"], part["l_ankle"])
    trunk = bone(_middle(part, "hip"), _middle(part, "shoulder"))
    # Legs from hip to ankle and trunk are 0.76 of a person's height.
    return (leg + trunk) / 0.76


def _head_axes(
    motion: Motion, places: Mapping[str, int], part: Mapping[str, np.ndarray], head: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left, up and forward of the head, (T, 3) each."""
    rest = Motion(motion.joints, np.zeros((1, motion.values.shape[1])), motion.frame_time)
    still = {name: forward_kinematics(rest)[0][:, place] for name, place in places.items()}
    legs = _middle(still, "hip") - _middle(still, "ankle")
    trunk = still["head"] - _middle(still, "hip")
    straight = float((legs * trunk).sum() / (np.linalg.norm(legs) * np.linalg.norm(trunk) + 1e-9))
    if straight > 0.9:
        # The rig at rest stands upright and looks ahead: what the head's own axes mean can be read from it.
        axes = np.stack(_body_axes(still), -1)[0]
    else:
        # It does not: over the motion, the head looks where the body does.
        body = np.stack(_body_axes(part), -1)  # (T, 3, 3), columns left, up, forward
        left, _, right = np.linalg.svd(np.mean(head.swapaxes(-1, -2) @ body, axis=0))
        axes = left @ np.diag([1, 1, np.linalg.det(left @ right)]) @ right
    turned = head @ axes
    return turned[..., 0], turned[..., 1], turned[..., 2]


def _body_axes(part: Mapping[str, np.ndarray]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Left, up and forward of the trunk, (T, 3) each, orthonormal."""
    up = _unit(_middle(part, "shoulder") - _middle(part, "hip"))
    across = part["l_hip"] - part["r_hip"] + part["l_shoulder"] - part["r_shoulder"]
    left = _unit(across - (across * up).sum(-1, keepdims=True) * up)
    return left, up, np.cross(left, up)


def _unit(vector: np.ndarray) -> np.ndarray:
    return vector / np.maximum(np.linalg.norm(vector, axis=-1, keepdims=True), 1e-9)
