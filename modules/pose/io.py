"""Reading and writing `plan.json`; OpenPose JSON is in `openpose.py` and can be had from here too.

A plan holds the boxes and key poses of a scene, for people to edit by hand. The reader checks the whole file
and names the file, the person, the key and the joint of a mistake, counted from 0 as in the file.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from modules.files import atomic_write
from modules.pose.boxes import round_box
from modules.pose.checks import fail, get, is_number, is_whole, load_json, plain, short
from modules.pose.openpose import OpenPoseFrame, read_openpose, read_openpose_frames, write_openpose
from modules.pose.scene import Person, Scene
from modules.pose.skeleton import JOINT_NAMES, NUM_JOINTS

__all__ = [
    "OpenPoseFrame",
    "Plan",
    "plan_from_dict",
    "plan_to_dict",
    "read_openpose",
    "read_openpose_frames",
    "read_plan",
    "write_openpose",
    "write_plan",
]

PLAN_VERSION = 1


@dataclass(eq=False)
class Plan:
    """What `plan.json` holds."""

    scene_keys: Scene  # the key poses, at times k * stride / fps
    seed: int
    stride: int  # dense frames per key
    # (P, K, Q) int64 pose ids of the key poses, a cache: None where a coordinate, box or time was edited.
    codes: np.ndarray | None = None
    tokenizer: str = ""  # fingerprint of the vqvae export that the codes belong to
    # One number a person, which names the noise of that person's dense motion: it stays when others come and go.
    ids: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.ids = self.ids or list(range(len(self.scene_keys.persons)))


def _digest(scene: Scene) -> str:
    """Hash of all that codes depend on: canvas, times, boxes, joints and visibility."""
    digest = hashlib.sha256(repr((scene.width, scene.height, scene.times.tolist())).encode())
    for person in scene.persons:
        for array in (person.box, person.joints, person.visibility):
            digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def plan_to_dict(plan: Plan) -> dict[str, Any]:
    """The content of `plan.json`.

    Raises:
        ValueError: the times of the scene are not k * stride / fps, or the codes do not fit the scene.
    """
    scene = plan.scene_keys
    expected = np.arange(scene.num_frames) * plan.stride / scene.fps
    if not np.allclose(scene.times, expected, rtol=0, atol=1e-6):
        raise ValueError(f"a plan holds key poses {plan.stride} frames apart; take scene.keys({plan.stride})")
    persons = []
    for number, person in zip(plan.ids, scene.persons, strict=True):
        keys = []
        for time, joints, visibility in zip(expected, person.joints, person.visibility, strict=True):
            points = [[*plain(xy), int(seen)] for xy, seen in zip(joints, visibility, strict=True)]
            keys.append({"time": float(time), "joints": points})
        persons.append({"id": number, "box": plain(person.box), "keys": keys})
    data: dict[str, Any] = {
        "version": PLAN_VERSION,
        "prompt": scene.prompt,
        "seed": int(plan.seed),
        "width": int(scene.width),
        "height": int(scene.height),
        "fps": scene.fps,
        "stride": int(plan.stride),
        **({"later": [{"time": time, "prompt": prompt} for time, prompt in scene.later]} if scene.later else {}),
        "persons": persons,
    }
    if plan.codes is not None:
        codes = np.asarray(plan.codes)
        if codes.shape[:2] != (len(scene.persons), scene.num_frames) or codes.ndim != 3:
            raise ValueError(
                f"codes have shape {codes.shape}, allowed is (P, K, Q) with P={len(scene.persons)}, "
                f"K={scene.num_frames}"
            )
        data |= {"codes": codes.tolist(), "codes_tokenizer": plan.tokenizer, "codes_of": _digest(scene)}
    return data


def write_plan(path: str | Path, plan: Plan) -> None:
    """Writes `plan.json`, one key pose a line, complete or not at all."""
    text = json.dumps(plan_to_dict(plan), ensure_ascii=False, allow_nan=False)
    # Line breaks for people. A prompt cannot match: quotes inside of a JSON text are escaped.
    for old, new in (('{"id"', '\n {"id"'), ('{"time"', '\n  {"time"'), (', "codes"', ',\n "codes"')):
        text = text.replace(old, new)
    with atomic_write(path) as file:
        file.write(text + "\n")


def read_plan(path: str | Path) -> Plan:
    """Reads and checks `plan.json`.

    `codes` is None where the file has none, or where any coordinate, box or time differs from those that the
    codes were made for. Boxes are moved to the nearest edges of the box-token grid.

    Raises:
        UserError: anything in the file that is missing or not allowed.
    """
    return plan_from_dict(load_json(Path(path)), name=str(path))


def plan_from_dict(data: Any, name: str = "plan") -> Plan:
    """Inverse of `plan_to_dict`. `name` is how messages call the file."""
    version = data.get("version") if isinstance(data, dict) else None
    if isinstance(data, dict) and version != PLAN_VERSION:
        fail(name, f"'version' is {short(version)}, allowed is {PLAN_VERSION}", "write the plan again")
    prompt, seed = get(data, "prompt", "text", name), get(data, "seed", "integer", name)
    width, height = get(data, "width", "count", name), get(data, "height", "count", name)
    fps, stride = get(data, "fps", "number", name), get(data, "stride", "count", name)
    persons: list[Person] = []
    ids: list[int] = []
    num_keys = None
    for p, entry in enumerate(get(data, "persons", "list", name)):
        where = f"{name}: person {p}"
        box = _read_box(get(entry, "box", "list", where), width, height, where)
        keys = get(entry, "keys", "list", where)
        if num_keys is not None and len(keys) != num_keys:
            fail(where, f"has {len(keys)} keys, person 0 has {num_keys}", "give all persons the same keys")
        num_keys = len(keys)
        poses = [_read_key(key, k * stride / fps, f"{where}, key {k}") for k, key in enumerate(keys)]
        array = np.array(poses, np.float64)  # (K, J, 3)
        visibility = array[..., 2] > 0
        joints = np.where(visibility[..., None], array[..., :2], 0).astype(np.float32)
        persons.append(Person(joints, visibility, box))
        ids.append(_read_id(entry, p, ids, where))
    times = np.arange(num_keys or 0) * stride / fps
    scene = Scene(width, height, fps, times, persons, prompt, _read_later(data, name))
    return Plan(scene, seed, stride, _read_codes(data, scene, name), str(data.get("codes_tokenizer", "")), ids)


def _read_id(entry: dict[str, Any], place: int, earlier: list[int], where: str) -> int:
    """The number of a person; the place in the file where it has none."""
    number = entry.get("id", place)
    if not is_whole(number) or not 0 <= number < 2**31 or number in earlier:
        fail(where, f"'id' is {short(number)}, allowed is a whole number from 0 that nobody else has", "change it")
    return number


def _read_later(data: dict[str, Any], name: str) -> tuple[tuple[float, str], ...]:
    """Prompts that hold from a later time on."""
    entries = data.get("later", [])
    if not isinstance(entries, list):
        fail(name, f"'later' is {short(entries)}, allowed is a list", "remove it or correct it")
    later: list[tuple[float, str]] = []
    for i, entry in enumerate(entries):
        where = f"{name}: later {i}"
        time, prompt = get(entry, "time", "number", where), get(entry, "prompt", "text", where)
        if later and time <= later[-1][0]:
            fail(where, f"'time' is {time:g}, the one before has {later[-1][0]:g}", "put them in the order of time")
        later.append((float(time), prompt))
    return tuple(later)


def _read_box(values: list[Any], width: int, height: int, where: str) -> np.ndarray:
    if len(values) != 4 or not all(is_number(value) for value in values):
        fail(where, f"'box' is {short(values)}, allowed are 4 numbers [x0, y0, x1, y1]", "correct the box")
    x0, y0, x1, y1 = values
    if x1 <= x0 or y1 <= y0:
        fail(where, f"'box' is {short(values)}, allowed is x0 < x1 and y0 < y1", "move its edges")
    if x0 < 0 or y0 < 0 or x1 > width or y1 > height:
        allowed = f"allowed is 0..{width} for x and 0..{height} for y"
        fail(where, f"'box' {short(values)} is outside of the frame, {allowed}", "move it into the frame")
    return round_box(np.array(values, np.float32), width, height)


def _read_key(entry: Any, expected: float, where: str) -> list[list[float]]:
    """18 checked [x, y, visible] of one key pose."""
    joints = get(entry, "joints", "list", where)
    time = entry.get("time")
    if not is_number(time):
        fail(where, f"'time' is {short(time)}, allowed are seconds", f"set it to {expected:g}")
    if abs(time - expected) > 1e-3:
        problem = f"'time' is {time:g} s, but key poses are stride / fps seconds apart in every person"
        fail(where, problem, f"set it to {expected:g}, or change 'stride'")
    for j, point in enumerate(joints[:NUM_JOINTS]):
        if not (isinstance(point, list) and len(point) == 3 and all(is_number(v) for v in point[:2])):
            joint = f"{where}, joint {j} ({JOINT_NAMES[j]})"
            fail(joint, f"is {short(point)}, allowed is [x, y, visible] in pixels", "correct the numbers")
        if point[2] not in (0, 1):
            joint = f"{where}, joint {j} ({JOINT_NAMES[j]})"
            fail(joint, f"'visible' is {short(point[2])}, allowed is 0 or 1", "set it to one of them")
    if len(joints) < NUM_JOINTS:
        joint = f"{where}, joint {len(joints)} ({JOINT_NAMES[len(joints)]})"
        fail(joint, "is missing", "a joint that is not seen is written as [0, 0, 0]")
    if len(joints) > NUM_JOINTS:
        fail(where, f"has {len(joints)} joints, allowed are {NUM_JOINTS}", "remove those after l_ear")
    return joints


def _read_codes(data: dict[str, Any], scene: Scene, name: str) -> np.ndarray | None:
    if "codes" not in data or data.get("codes_of") != _digest(scene):
        return None
    try:
        codes = np.array(data["codes"], dtype=np.int64)
    except (ValueError, TypeError, OverflowError):
        codes = np.zeros(0, np.int64)
    shape = (len(scene.persons), scene.num_frames)
    if codes.ndim != 3 or codes.shape[:2] != shape or (codes < 0).any():
        fail(name, "'codes' is not a list of ids by person, key and depth", "remove 'codes' from the file")
    return codes
