"""BVH motion capture files: the skeleton, the motion, and where its joints are.

Letters: T frames, B joints of the rig. Lengths are in the units of the file, angles in degrees.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import numpy as np

from modules.pose.checks import fail

_AXES = {"X": 0, "Y": 1, "Z": 2}
_CHANNELS = {f"{axis}{kind}" for axis in _AXES for kind in ("position", "rotation")}


@dataclass
class RigJoint:
    """A joint of the rig."""

    name: str  # "" for an end site
    parent: int  # -1 for the root
    offset: np.ndarray  # (3,) from the parent
    channels: list[str] = field(default_factory=list)  # in the order in which they are applied


@dataclass(eq=False)
class Motion:
    """A BVH file."""

    joints: list[RigJoint]  # parents before children
    values: np.ndarray  # (T, all channels in the order of the joints)
    frame_time: float  # seconds


class _Tokens:
    """The words of a file, with the line of each for messages."""

    def __init__(self, path: Path, lines: list[str]) -> None:
        self._path = path
        self._words: Iterator[tuple[int, str]] = (
            (number, word) for number, line in enumerate(lines, 1) for word in line.split()
        )
        self.line = 1

    def next(self) -> str:
        try:
            self.line, word = next(self._words)
        except StopIteration:
            self.fail("ends in the middle of the HIERARCHY")
        return word

    def expect(self, *words: str) -> str:
        word = self.next()
        if word.upper() not in words:
            self.fail(f"has {word!r} where {' or '.join(words)} must be")
        return word.upper()

    def number(self) -> float:
        word = self.next()
        try:
            value = float(word)
        except ValueError:
            value = math.nan
        if not math.isfinite(value):
            self.fail(f"has {word!r} where a number must be")
        return value

    def fail(self, problem: str) -> NoReturn:
        fail(f"{self._path}: line {self.line}", problem, "export the motion again as BVH")


def read_bvh(path: str | Path) -> Motion:
    """Reads a BVH file of any rig.

    Raises:
        UserError: with the file and the line.
    """
    path = Path(path)
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        fail(str(path), f"cannot be read ({error.strerror})", "give a BVH file")
    split = next((i for i, line in enumerate(lines) if line.strip().upper() == "MOTION"), None)
    if split is None:
        fail(str(path), "has no line MOTION", "export the motion again as BVH")
    tokens = _Tokens(path, lines[:split])
    tokens.expect("HIERARCHY")
    tokens.expect("ROOT")
    joints: list[RigJoint] = []
    _read_joint(tokens, joints, -1, tokens.next())
    return _read_motion(path, lines, split, joints)


def _read_joint(tokens: _Tokens, joints: list[RigJoint], root: int, name: str) -> None:
    """The joint after its name, and all below it."""
    stack = [root]
    while True:
        joint = RigJoint(name, stack[-1], np.zeros(3))
        joints.append(joint)
        stack.append(len(joints) - 1)
        tokens.expect("{")
        tokens.expect("OFFSET")
        joint.offset = np.array([tokens.number() for _ in range(3)])
        while True:
            word = tokens.expect("CHANNELS", "JOINT", "END", "}")
            if word == "CHANNELS":
                joint.channels = [tokens.next() for _ in range(int(tokens.number()))]
                if unknown := set(joint.channels) - _CHANNELS:
                    tokens.fail(f"has the channel {min(unknown)!r}, known are positions and rotations about X, Y, Z")
            elif word == "}":
                stack.pop()
                if len(stack) == 1:
                    return
            else:
                name = tokens.next()
                name = "" if word == "END" else name
                break


def _read_motion(path: Path, lines: list[str], split: int, joints: list[RigJoint]) -> Motion:
    rest = [(number, line.split()) for number, line in enumerate(lines[split + 1 :], split + 2) if line.strip()]
    if len(rest) < 3 or rest[0][1][0].lower() != "frames:" or rest[1][1][:2] != ["Frame", "Time:"]:
        fail(f"{path}: line {split + 2}", "has no Frames: and Frame Time:", "export the motion again as BVH")
    try:
        count, frame_time = int(rest[0][1][1]), float(rest[1][1][2])
    except (ValueError, IndexError):
        fail(f"{path}: line {rest[0][0]}", "its frames or frame time are no numbers", "export the motion again as BVH")
    if count != len(rest) - 2 or not count or not 1e-4 < frame_time < 10:
        problem = f"names {count} frames of {frame_time} s and has {len(rest) - 2}"
        fail(str(path), problem, "the file is cut off or edited; export the motion again")
    width = sum(len(joint.channels) for joint in joints)
    values = np.empty((count, width))
    for frame, (number, words) in enumerate(rest[2:]):
        if len(words) != width:
            problem = f"has {len(words)} values, its joints have {width} channels"
            fail(f"{path}: line {number}", problem, "export the motion again as BVH")
        try:
            values[frame] = np.array(words, float)
        except ValueError:
            fail(f"{path}: line {number}", "has a value that is no number", "export the motion again as BVH")
    if not np.isfinite(values).all():
        frame = int(np.argwhere(~np.isfinite(values))[0, 0])
        fail(f"{path}: line {rest[2 + frame][0]}", "has a value that is not finite", "export the motion again as BVH")
    return Motion(joints, values, frame_time)


def forward_kinematics(motion: Motion) -> tuple[np.ndarray, np.ndarray]:
    """Where all joints are: positions (T, B, 3) and global rotations (T, B, 3, 3)."""
    frames = len(motion.values)
    positions = np.zeros((frames, len(motion.joints), 3))
    rotations = np.zeros((frames, len(motion.joints), 3, 3))
    column = 0
    for number, joint in enumerate(motion.joints):
        offset = np.broadcast_to(joint.offset, (frames, 3)).copy()
        local = np.broadcast_to(np.eye(3), (frames, 3, 3))
        moved = False
        for channel in joint.channels:
            values = motion.values[:, column]
            column += 1
            axis = _AXES[channel[0]]
            if channel.endswith("position"):
                # A position takes the place of the joint's offset; the root's offset is added to it.
                if not moved and joint.parent >= 0:
                    offset[:] = 0
                moved = True
                offset[:, axis] += values
            else:
                local = local @ _rotation(axis, np.radians(values))
        if joint.parent < 0:
            positions[:, number], rotations[:, number] = offset, local
        else:
            parent = rotations[:, joint.parent]
            positions[:, number] = positions[:, joint.parent] + (parent @ offset[..., None])[..., 0]
            rotations[:, number] = parent @ local
    return positions, rotations


def _rotation(axis: int, angle: np.ndarray) -> np.ndarray:
    """Rotation matrices (T, 3, 3) about a coordinate axis; angles in radians."""
    matrix = np.zeros((len(angle), 3, 3))
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix[:, axis, axis] = 1
    matrix[:, i, i] = matrix[:, j, j] = np.cos(angle)
    matrix[:, j, i] = np.sin(angle)
    matrix[:, i, j] = -matrix[:, j, i]
    return matrix
