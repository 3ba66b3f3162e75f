"""Plans from poses of other programs: OpenPose JSON, or `.npy` in the layout of the shards, both dense frames."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from modules.pose.checks import fail
from modules.pose.io import Plan
from modules.pose.openpose import read_openpose
from modules.pose.scene import Scene, make_person
from modules.pose.skeleton import NUM_JOINTS

MIN_CONFIDENCE = 0.1


def read_pose_array(path: str | Path) -> np.ndarray:
    """(P, T, 18, 3) of a `.npy` file: x px, y px, confidence.

    Raises:
        UserError: not such a file. Nothing in it is unpickled, and no more is read than the file holds.
    """
    try:
        # Mapped, not read: a header that promises more than there is takes no memory.
        poses = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        reason = " ".join(str(error).split())
        fail(str(path), f"is not a .npy file of numbers ({reason})", "save it with numpy.save(..., allow_pickle=False)")
    wanted = f"allowed is float (people, frames, {NUM_JOINTS}, 3)"
    if not isinstance(poses, np.ndarray) or poses.dtype.kind not in "fiu":
        fail(str(path), f"holds {getattr(poses, 'dtype', type(poses).__name__)}, {wanted}", "save such an array")
    if poses.ndim != 4 or poses.shape[2:] != (NUM_JOINTS, 3) or 0 in poses.shape:
        fail(str(path), f"has the shape {poses.shape}, {wanted}", "save such an array")
    poses = np.array(poses, np.float32)
    if not np.isfinite(poses).all() or np.abs(poses).max() > 1e9:
        fail(str(path), "holds values that are not finite, or beyond 1e9", "write 0, 0, 0 where a joint is not seen")
    return poses


def read_poses(
    path: str | Path, *, size: tuple[int, int], fps: float = 30.0, stride: int = 10, prompt: str = "", seed: int = 0
) -> Plan:
    """A plan of every `stride`-th frame of dense poses.

    Args:
        path: a `.npy` file, an OpenPose JSON file, or a folder of them.
        size: canvas (width, height) px, for files that do not say it.
        fps: of the poses.

    Raises:
        UserError: a wrong file, or nobody in it.
    """
    path = Path(path)
    if path.suffix.lower() == ".npy":
        poses = read_pose_array(path)
        seen = poses[..., 2] > MIN_CONFIDENCE
        persons = [make_person(p[..., :2], v, *size) for p, v in zip(poses, seen, strict=True) if v.any()]
        scene = Scene(*size, fps, np.arange(poses.shape[1]) / fps, persons, prompt)
    else:
        scene = read_openpose(path, fps=fps, size=size, min_confidence=MIN_CONFIDENCE, prompt=prompt)
    keys = scene.keys(stride)
    shown = [person for person in keys.persons if person.visibility.any()]
    if not shown:
        fail(str(path), "shows nobody", f"give poses with joints whose confidence is above {MIN_CONFIDENCE}")
    keys.persons = [make_person(p.joints, p.visibility, scene.width, scene.height) for p in shown]
    return Plan(keys, seed, stride)
