"""Edits of a plan, as the page sends them and as `edits.json` holds them: a list of objects with an `op`.

    move_joint     person key joint x y          a joint of one key pose, px; it becomes visible
    show_joint     person key joint visible      0 hides it, 1 shows it
    move_person    person dx dy [key]            one key pose, or with the box all of them
    set_box        person box                    move or resize the box; the key poses go with it
    delete_person  person
    add_person     [box] [prompt] [seed]         the director writes somebody more beside those who are there
    continue       key prompt [seed] [seconds]   from this key pose on the director writes anew
    set_prompt     prompt                        another caption for the motion and the video; the key poses stay

Persons and keys are counted from 0. A joint is a number or a name (`r_wrist`). What an edit does not name stays the
same, bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from modules.errors import UserError
from modules.pipeline import Pipeline
from modules.pose.boxes import round_box
from modules.pose.checks import fail, is_number, is_whole, load_json, short
from modules.pose.io import Plan
from modules.pose.scene import Person
from modules.pose.skeleton import JOINT_NAMES, NUM_JOINTS
from modules.text import check_prompt

MAX_EDITS = 1000
_REQUIRED = {
    "move_joint": ("person", "key", "joint", "x", "y"),
    "show_joint": ("person", "key", "joint", "visible"),
    "move_person": ("person", "dx", "dy"),
    "set_box": ("person", "box"),
    "delete_person": ("person",),
    "add_person": (),
    "continue": ("key", "prompt"),
    "set_prompt": ("prompt",),
}
_OPTIONAL = {"move_person": ("key",), "add_person": ("box", "prompt", "seed"), "continue": ("seed", "seconds")}
# These ask the director; all others are arithmetic.
DIRECTED = ("add_person", "continue")

Edit = dict[str, Any]


def read_edits(path: str | Path) -> list[Edit]:
    """The edits of a JSON file.

    Raises:
        UserError: not a list of edits; names the edit, counted from 0, and the field.
    """
    return check_edits(load_json(Path(path)), str(path))


def check_edits(data: Any, name: str = "edits") -> list[Edit]:
    """Edits out of JSON, their fields and kinds checked; `apply_edits` checks them against a plan."""
    if not isinstance(data, list):
        fail(name, f"is {short(data)}, allowed is a list of edits", 'e.g. [{"op": "delete_person", "person": 1}]')
    if len(data) > MAX_EDITS:
        fail(name, f"has {len(data)} edits, allowed are {MAX_EDITS}", "split the file")
    for number, edit in enumerate(data):
        _check_edit(edit, f"{name}: edit {number}")
    return data


def _check_edit(edit: Any, where: str) -> None:
    op = edit.get("op") if isinstance(edit, dict) else None
    if not isinstance(op, str) or op not in _REQUIRED:
        fail(where, f"'op' is {short(op)}, allowed are {', '.join(_REQUIRED)}", "correct it")
    optional = _OPTIONAL.get(op, ())
    missing = [field for field in _REQUIRED[op] if field not in edit]
    if missing:
        fail(where, f"'{missing[0]}' is missing", f"{op} needs {', '.join(_REQUIRED[op])}")
    unknown = [field for field in edit if field not in ("op", *_REQUIRED[op], *optional)]
    if unknown:
        fail(where, f"'{unknown[0]}' is unknown", f"{op} takes {', '.join((*_REQUIRED[op], *optional))}")
    for field, value in edit.items():
        if field != "op" and not (value is None and field in optional):
            _KINDS[field](value, f"{where}, '{field}'")


def _number(value: Any, where: str) -> None:
    if not is_number(value):
        fail(where, f"is {short(value)}, allowed is a number", "correct it")


def _count(value: Any, where: str) -> None:
    if not is_whole(value) or not 0 <= value < 2**31:
        fail(where, f"is {short(value)}, allowed is a whole number from 0", "correct it")


def _joint(value: Any, where: str) -> None:
    if not (is_whole(value) and 0 <= value < NUM_JOINTS) and not (isinstance(value, str) and value in JOINT_NAMES):
        names = ", ".join(JOINT_NAMES)
        fail(where, f"is {short(value)}, allowed is 0 to {NUM_JOINTS - 1} or one of {names}", "correct it")


def _flag(value: Any, where: str) -> None:
    if value not in (0, 1):
        fail(where, f"is {short(value)}, allowed is 0 or 1", "correct it")


def _box(value: Any, where: str) -> None:
    if not isinstance(value, list) or len(value) != 4 or not all(is_number(v) for v in value):
        fail(where, f"is {short(value)}, allowed are 4 numbers [x0, y0, x1, y1]", "correct it")
    if value[2] <= value[0] or value[3] <= value[1]:
        fail(where, f"is {short(value)}, allowed is x0 < x1 and y0 < y1", "move its edges")


def _seconds(value: Any, where: str) -> None:
    if not is_number(value) or value <= 0:
        fail(where, f"is {short(value)}, allowed is a number above 0", "correct it")


def _prompt(value: Any, where: str) -> None:
    if not isinstance(value, str):
        fail(where, f"is {short(value)}, allowed is a text", "correct it")
    try:
        check_prompt(value)
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


_KINDS: dict[str, Callable[[Any, str], None]] = {
    "person": _count, "key": _count, "joint": _joint, "x": _number, "y": _number, "dx": _number, "dy": _number,
    "visible": _flag, "box": _box, "prompt": _prompt, "seed": _count, "seconds": _seconds,
}  # fmt: skip


def apply_edits(plan: Plan, edits: Sequence[Edit], pipeline: Pipeline | None = None, name: str = "edits") -> Plan:
    """The plan with all edits, one after another. The given plan is left as it is.

    Args:
        edits: from `check_edits` or `read_edits`.
        pipeline: for the edits that ask the director.

    Raises:
        UserError: an edit that the plan has no place for; nothing is applied then.
    """
    for number, edit in enumerate(edits):
        plan = _apply(plan, edit, pipeline, f"{name}: edit {number}")
    return plan


def _apply(plan: Plan, edit: Edit, pipeline: Pipeline | None, where: str) -> Plan:
    scene, op = plan.scene_keys, edit["op"]
    person, key = edit.get("person"), edit.get("key")
    if person is not None and person >= len(scene.persons):
        fail(where, f"'person' is {person}, the plan has persons 0 to {len(scene.persons) - 1}", "correct it")
    # A continuation may start right after the last key pose.
    last = scene.num_frames - (op != "continue")
    if key is not None and key > last:
        fail(where, f"'key' is {key}, the plan has key poses 0 to {scene.num_frames - 1}", "correct it")
    if op in DIRECTED:
        from modules.directing import add_person, continue_plan

        if pipeline is None:
            raise ValueError(f"{op} needs a pipeline")
        options = {field: value for field, value in edit.items() if field != "op"}
        return (add_person if op == "add_person" else continue_plan)(pipeline, plan, **options)
    if op == "set_prompt":
        return dataclasses.replace(plan, scene_keys=dataclasses.replace(scene, prompt=edit["prompt"].strip()))
    assert person is not None
    if op == "delete_person":
        if len(scene.persons) == 1:
            fail(where, "would leave nobody in the plan", "add somebody before, or make a new plan")
        keep = [i for i in range(len(scene.persons)) if i != person]
        return with_persons(plan, [scene.persons[i] for i in keep], [plan.ids[i] for i in keep])
    changed = _change(scene.persons[person], edit, scene.width, scene.height, where)
    return with_persons(plan, [changed if i == person else p for i, p in enumerate(scene.persons)], plan.ids)


def with_persons(plan: Plan, persons: list[Person], ids: list[int]) -> Plan:
    """The plan with other people. Its codes are dropped: they are those of the coordinates before."""
    scene = dataclasses.replace(plan.scene_keys, persons=persons)
    return dataclasses.replace(plan, scene_keys=scene, codes=None, ids=list(ids))


def _change(person: Person, edit: Edit, width: int, height: int, where: str) -> Person:
    joints, visibility = person.joints.copy(), person.visibility.copy()
    if edit["op"] in ("move_joint", "show_joint"):
        joint = edit["joint"] if is_whole(edit["joint"]) else JOINT_NAMES.index(edit["joint"])
        place = edit["key"], joint
        if edit["op"] == "move_joint":
            joints[place], visibility[place] = (edit["x"], edit["y"]), True
        elif edit["visible"]:
            _show(joints, visibility, person.box, *place)
        else:
            joints[place], visibility[place] = 0, False
        return Person(joints, visibility, person.box)
    if edit["op"] == "move_person" and edit.get("key") is not None:
        shift = np.array([edit["dx"], edit["dy"]], np.float32)
        joints[edit["key"]] = np.where(visibility[edit["key"]][:, None], joints[edit["key"]] + shift, 0)
        return Person(joints, visibility, person.box)
    if edit["op"] == "move_person":
        low = np.clip([edit["dx"], edit["dy"]], -person.box[:2], (width, height) - person.box[2:])
        box = person.box + np.tile(low, 2)
    else:
        box = np.array(edit["box"], np.float32)
        if box.min() < 0 or box[2] > width or box[3] > height:
            allowed = f"allowed is 0..{width} for x and 0..{height} for y"
            fail(f"{where}, 'box'", f"{short(edit['box'])} is outside of the frame, {allowed}", "move it inside")
    box = round_box(box.astype(np.float32), width, height)
    return Person(stretch(joints, visibility, person.box, box), visibility, box)


def _show(joints: np.ndarray, visibility: np.ndarray, box: np.ndarray, key: int, joint: int) -> None:
    """A hidden joint appears where it is at the nearest key pose that shows it, else in the middle of the box."""
    if visibility[key, joint]:
        return
    seen = np.flatnonzero(visibility[:, joint])
    nearest = seen[np.abs(seen - key).argmin()] if seen.size else None
    joints[key, joint] = (box[:2] + box[2:]) / 2 if nearest is None else joints[nearest, joint]
    visibility[key, joint] = True


def stretch(joints: np.ndarray, visibility: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Joints (..., J, 2) px that go with their box, on each axis by itself; unseen ones stay (0, 0)."""
    scale = (new[2:] - new[:2]) / (old[2:] - old[:2])
    moved = (joints - old[:2]) * scale + new[:2]
    return np.where(visibility[..., None], moved, 0).astype(np.float32)
