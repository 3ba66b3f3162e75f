"""Reading and writing OpenPose JSON (COCO-18), in both dialects.

`people` with `pose_keypoints_2d`: OpenPose and controlnet_aux. `width`, `height`, `keypoints`: pose editors.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from modules.files import atomic_write
from modules.pose.checks import fail, get, is_number, load_json, plain, short
from modules.pose.scene import Scene, make_person
from modules.pose.skeleton import JOINT_NAMES, NUM_JOINTS

# OpenPose's own default model adds the mid hip and the feet to the 18 joints.
_BODY_25_TO_18 = (0, 1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)


@dataclass(eq=False)
class OpenPoseFrame:
    """One frame of OpenPose JSON."""

    people: np.ndarray  # (n, J, 3) float64: x px, y px, confidence
    ids: list[int] | None  # identities, where every person of the frame has one
    size: tuple[int, int] | None  # canvas (width, height) px, where the file says so
    source: str  # file and frame, for messages


def read_openpose_frames(path: str | Path) -> list[OpenPoseFrame]:
    """The frames of a folder (one file a frame, by name) or of one file (a frame or a list of frames).

    COCO-18 is taken as it is, BODY_25 is reduced to it.

    Raises:
        UserError: nothing there, another format, a wrong number of values, a value that is not finite.
    """
    path = Path(path)
    files = sorted(path.glob("*.json")) if path.is_dir() else [path]
    if not files:
        fail(str(path), "has no .json files", "give a folder of OpenPose JSON, one file a frame")
    frames = []
    for file in files:
        data = load_json(file)
        entries = data if isinstance(data, list) else [data]
        for i, entry in enumerate(entries):
            frames.append(_read_frame(entry, f"{file}: frame {i}" if isinstance(data, list) else str(file)))
    if not frames:
        fail(str(path), "has no frames", "give OpenPose JSON with at least one frame")
    return frames


def _read_frame(entry: Any, where: str) -> OpenPoseFrame:
    if isinstance(entry, dict) and isinstance(entry.get("people"), list):
        size = None
        if "canvas_width" in entry:
            size = get(entry, "canvas_width", "count", where), get(entry, "canvas_height", "count", where)
        people, ids = [], []
        for p, person in enumerate(entry["people"]):
            values = person.get("pose_keypoints_2d") if isinstance(person, dict) else None
            people.append(_read_pose(values, f"{where}, person {p}"))
            number = person.get("person_id", -1)
            ids.append(number[0] if isinstance(number, list) and number else number)
        known = all(isinstance(i, int) and i >= 0 for i in ids) and len(set(ids)) == len(ids)
        return OpenPoseFrame(_stack(people), ids if known and ids else None, size, where)
    if isinstance(entry, dict) and isinstance(entry.get("keypoints"), list):
        size = get(entry, "width", "count", where), get(entry, "height", "count", where)
        points = entry["keypoints"]
        # One flat list of points, 18 a person, or one list of points for each person.
        if points and isinstance(points[0], list) and points[0] and isinstance(points[0][0], list):
            groups = points
        else:
            groups = [points[i : i + NUM_JOINTS] for i in range(0, len(points), NUM_JOINTS)]
        people = [_read_points(group, f"{where}, person {p}") for p, group in enumerate(groups)]
        return OpenPoseFrame(_stack(people), None, size, where)
    fail(where, "is not OpenPose JSON", "it needs 'people', or 'width', 'height' and 'keypoints'")


def _stack(people: list[np.ndarray]) -> np.ndarray:
    return np.stack(people) if people else np.zeros((0, NUM_JOINTS, 3))


def _read_points(points: Any, where: str) -> np.ndarray:
    """A person of the second dialect: 18 x [x, y], unseen joints at [0, 0]; a third value is a confidence."""
    if not isinstance(points, list) or len(points) != NUM_JOINTS:
        found = len(points) if isinstance(points, list) else short(points)
        fail(where, f"has {found} points, allowed are {NUM_JOINTS}", "give [0, 0] where unseen")
    full = []
    for j, point in enumerate(points):
        if not isinstance(point, list) or len(point) not in (2, 3) or not all(is_number(v) for v in point):
            joint = f"{where}, joint {j} ({JOINT_NAMES[j]})"
            fail(joint, f"is {short(point)}, allowed is [x, y] in pixels", "correct it")
        full += [*point, float(point[:2] != [0, 0])] if len(point) == 2 else point
    return _read_pose(full, where)


def _read_pose(values: Any, where: str) -> np.ndarray:
    """Flat x, y, confidence of one person -> (J, 3)."""
    if not isinstance(values, list) or len(values) not in (NUM_JOINTS * 3, 25 * 3):
        found = len(values) if isinstance(values, list) else short(values)
        problem = f"'pose_keypoints_2d' has {found} values, allowed are 54 (COCO-18) or 75 (BODY_25)"
        fail(where, problem, "export the poses in the COCO-18 format")
    for i, value in enumerate(values):
        if not is_number(value):
            name = JOINT_NAMES[i // 3] if len(values) == NUM_JOINTS * 3 else "BODY_25"
            joint = f"{where}, joint {i // 3} ({name})"
            fail(joint, f"is {short(value)}, allowed are finite numbers", "write 0 where unseen")
    pose = np.array(values, np.float64).reshape(-1, 3)
    return pose[list(_BODY_25_TO_18)] if len(pose) == 25 else pose


def read_openpose(
    path: str | Path,
    *,
    fps: float = 30.0,
    size: tuple[int, int] | None = None,
    min_confidence: float = 0.1,
    prompt: str = "",
) -> Scene:
    """Reads OpenPose JSON that tells people by `person_id`, or by their place in lists of one length.

    Args:
        path: a folder of one file a frame, or one file.
        fps: frames per second; the format does not say it.
        size: canvas (width, height) px for files that do not say it.
        min_confidence: a joint is visible above this confidence.
        prompt: caption of the scene.

    Returns:
        A dense scene; people without a visible joint are left out.

    Raises:
        UserError: besides wrong files, where the people of different frames cannot be told apart.
    """
    frames = read_openpose_frames(path)
    size = frames[0].size or size
    if size is None:
        fail(str(path), "does not say the size of its canvas", "give the width and height of the video")
    if any(frame.size not in (None, size) for frame in frames):
        fail(str(path), "has frames with different canvases", "split it into files of one canvas each")
    identities = sorted({i for frame in frames for i in frame.ids or []})
    if any(frame.ids is None and len(frame.people) for frame in frames):
        count = len(frames[0].people)
        for frame in frames:
            if len(frame.people) != count:
                problem = f"has {len(frame.people)} people, the first frame has {count}, and no person_id"
                fail(frame.source, problem, "track the people first: prepare.py does")
        identities = list(range(count))
        places = [identities] * len(frames)
    else:
        places = [frame.ids or [] for frame in frames]
    poses = np.zeros((len(identities), len(frames), NUM_JOINTS, 3))
    for f, (frame, ids) in enumerate(zip(frames, places, strict=True)):
        for pose, identity in zip(frame.people, ids, strict=True):
            poses[identities.index(identity), f] = pose
    visibility = poses[..., 2] > min_confidence
    persons = [make_person(p[..., :2], v, *size) for p, v in zip(poses, visibility, strict=True) if v.any()]
    return Scene(*size, fps, np.arange(len(frames)) / fps, persons, prompt)


def _frame_to_dict(scene: Scene, index: int, dialect: str) -> dict[str, Any]:
    people = []
    for p, person in enumerate(scene.persons):
        points = [plain(xy) for xy in person.joints[index]]
        if dialect == "keypoints":
            people += points
        else:
            seen = person.visibility[index]
            flat = [v for xy, s in zip(points, seen, strict=True) for v in (*xy, float(s))]
            people.append({"person_id": [p], "pose_keypoints_2d": flat})
    if dialect == "keypoints":
        return {"width": int(scene.width), "height": int(scene.height), "keypoints": people}
    size = {"canvas_width": int(scene.width), "canvas_height": int(scene.height)}
    return {"version": 1.3, "people": people, **size}


def write_openpose(
    path: str | Path, scene: Scene, *, dialect: Literal["people", "keypoints"] = "people"
) -> None:
    """Writes OpenPose JSON: one file where `path` ends in .json, otherwise a folder of one file a frame.

    `dialect="people"` keeps identities and visibility. `dialect="keypoints"` has neither: an unseen joint is
    [0, 0].
    """
    path = Path(path)
    frames = [_frame_to_dict(scene, i, dialect) for i in range(scene.num_frames)]
    if path.suffix == ".json":
        targets = {path: frames if len(frames) != 1 else frames[0]}
    else:
        targets = {path / f"frame_{i:012d}_keypoints.json": frame for i, frame in enumerate(frames)}
    for target, content in targets.items():
        with atomic_write(target) as file:
            json.dump(content, file, allow_nan=False)
