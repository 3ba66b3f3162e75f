"""Edits of plans: what they name changes, everything else stays, and wrong ones are refused with their place."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from modules.editing import apply_edits, check_edits, read_edits, stretch
from modules.errors import UserError
from modules.pose.importing import read_poses
from modules.pose.io import Plan, plan_from_dict, plan_to_dict, write_openpose
from modules.pose.scene import Scene

MakeScene = Callable[..., Scene]


@pytest.fixture
def plan(make_scene: MakeScene) -> Plan:
    return Plan(make_scene(frames=60).keys(10), 4, 10)


def changed(before: Plan, after: Plan) -> set[tuple[int, ...]]:
    """(person, key, joint) of every difference."""
    a, b = before.scene_keys, after.scene_keys
    differs = (a.joints != b.joints).any(-1) | (a.visibility != b.visibility)
    return {tuple(place) for place in np.argwhere(differs).tolist()}


def edit(plan: Plan, **values: object) -> Plan:
    return apply_edits(plan, check_edits([values]))


def test_a_joint_moves_alone(plan: Plan) -> None:
    after = edit(plan, op="move_joint", person=1, key=3, joint="r_wrist", x=12.5, y=7)
    assert changed(plan, after) == {(1, 3, 4)}
    np.testing.assert_array_equal(after.scene_keys.joints[1, 3, 4], [12.5, 7])
    assert after.scene_keys.visibility[1, 3, 4]
    assert after.codes is None


def test_a_joint_is_hidden_and_comes_back(plan: Plan) -> None:
    hidden = edit(plan, op="show_joint", person=0, key=2, joint=7, visible=0)
    assert not hidden.scene_keys.visibility[0, 2, 7]
    assert hidden.scene_keys.joints[0, 2, 7].tolist() == [0, 0]
    back = edit(hidden, op="show_joint", person=0, key=2, joint=7, visible=1)
    assert back.scene_keys.visibility[0, 2, 7]
    assert (back.scene_keys.joints[0, 2, 7] > 0).all()


def test_a_person_moves_in_one_key_or_in_all(plan: Plan) -> None:
    one = edit(plan, op="move_person", person=0, key=1, dx=3, dy=-2)
    assert {place[:2] for place in changed(plan, one)} == {(0, 1)}
    np.testing.assert_array_equal(one.scene_keys.boxes, plan.scene_keys.boxes)
    everywhere = edit(plan, op="move_person", person=0, dx=1000, dy=0)  # as far as the canvas reaches
    box = everywhere.scene_keys.boxes[0]
    assert box[2] == pytest.approx(64)
    seen = plan.scene_keys.visibility[0]
    shift = (everywhere.scene_keys.joints - plan.scene_keys.joints)[0][seen]
    expected = [box[0] - plan.scene_keys.boxes[0, 0], 0]
    np.testing.assert_allclose(shift, np.broadcast_to(expected, shift.shape), atol=1e-4)
    assert {place[0] for place in changed(plan, everywhere)} == {0}


def test_poses_go_with_their_box(plan: Plan) -> None:
    after = edit(plan, op="set_box", person=1, box=[0, 0, 64, 32])
    person = after.scene_keys.persons[1]
    np.testing.assert_allclose(person.box, [0, 0, 64, 32], atol=64 / 255)
    back = stretch(person.joints, person.visibility, person.box, plan.scene_keys.persons[1].box)
    np.testing.assert_allclose(back, plan.scene_keys.persons[1].joints, atol=1e-4)


def test_people_keep_their_numbers(plan: Plan) -> None:
    after = edit(plan, op="delete_person", person=0)
    assert after.ids == [1]
    np.testing.assert_array_equal(after.scene_keys.joints[0], plan.scene_keys.joints[1])
    again = plan_from_dict(plan_to_dict(after))
    assert again.ids == [1]
    with pytest.raises(UserError, match="edits: edit 0: would leave nobody"):
        edit(after, op="delete_person", person=0)


def test_later_prompts_are_kept_in_the_file(plan: Plan) -> None:
    plan.scene_keys.later = ((1.0, "A person sits."),)
    again = plan_from_dict(json.loads(json.dumps(plan_to_dict(plan)))).scene_keys
    assert again.later == ((1.0, "A person sits."),)
    assert again.prompt_at(0.99) == plan.scene_keys.prompt
    assert again.prompt_at(1.0) == "A person sits."


@pytest.mark.parametrize(
    ("edits", "message"),
    [
        ({}, r"edits: is \{\}, allowed is a list of edits"),
        ([3], "edit 0: 'op' is null, allowed are move_joint"),
        ([{"op": "explode"}], "edit 0: 'op' is \"explode\""),
        ([{"op": ["move_joint"]}], "edit 0: 'op' is"),
        ([{"op": "delete_person", "person": 0}, {"op": "set_box", "person": 0}], "edit 1: 'box' is missing"),
        ([{"op": "delete_person", "person": 0, "key": 1}], "edit 0: 'key' is unknown; delete_person takes person"),
        ([{"op": "delete_person", "person": -1}], "'person': is -1, allowed is a whole number from 0"),
        ([{"op": "delete_person", "person": True}], "'person': is true"),
        ([{"op": "move_joint", "person": 0, "key": 0, "joint": "tail", "x": 1, "y": 1}], "'joint': is \"tail\""),
        ([{"op": "move_joint", "person": 0, "key": 0, "joint": 18, "x": 1, "y": 1}], "'joint': is 18"),
        ([{"op": "move_joint", "person": 0, "key": 0, "joint": 1, "x": 1e99, "y": 1}], "'x': is 1e\\+99"),
        ([{"op": "set_box", "person": 0, "box": [5, 5, 5, 9]}], "allowed is x0 < x1 and y0 < y1"),
        ([{"op": "set_prompt", "prompt": " "}], "'prompt': The prompt is empty"),
        ([{"op": "continue", "key": 2, "prompt": "x", "seconds": 0}], "'seconds': is 0"),
    ],
)
def test_edits_are_checked_before_anything_else(edits: object, message: str) -> None:
    with pytest.raises(UserError, match=message):
        check_edits(edits)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"op": "delete_person", "person": 2}, "'person' is 2, the plan has persons 0 to 1"),
        ({"op": "move_person", "person": 0, "key": 6, "dx": 1, "dy": 1}, "'key' is 6, the plan has key poses 0 to 5"),
        ({"op": "set_box", "person": 0, "box": [0, 0, 65, 64]}, "is outside of the frame"),
    ],
)
def test_edits_that_have_no_place_in_the_plan(plan: Plan, values: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        edit(plan, **values)


def test_a_file_of_edits(tmp_path: Path, plan: Plan) -> None:
    path = tmp_path / "edits.json"
    path.write_text('[{"op": "delete_person", "person": 1}, {"op": "set_prompt", "prompt": "One waves."}]')
    after = apply_edits(plan, read_edits(path))
    assert after.scene_keys.prompt == "One waves."
    assert len(after.scene_keys.persons) == 1
    path.write_text("[")
    with pytest.raises(UserError, match="edits.json: is not JSON"):
        read_edits(path)


def test_poses_of_other_programs_become_plans(tmp_path: Path, make_scene: MakeScene) -> None:
    scene = make_scene(frames=45)
    write_openpose(tmp_path / "poses.json", scene)
    array = np.concatenate([scene.joints, scene.visibility[..., None]], -1).astype(np.float32)
    np.save(tmp_path / "poses.npy", array)
    for name in ("poses.json", "poses.npy"):
        plan = read_poses(tmp_path / name, size=(64, 64), prompt="Two dance.", seed=3)
        assert (plan.scene_keys.num_frames, plan.stride, plan.seed, plan.scene_keys.prompt) == (5, 10, 3, "Two dance.")
        np.testing.assert_allclose(plan.scene_keys.joints, scene.keys(10).joints, atol=1e-5)
        plan_from_dict(plan_to_dict(plan))


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((2, 5, 17, 3)), r"has the shape \(2, 5, 17, 3\), allowed is float"),
        (np.zeros((1, 5, 18, 3)), "shows nobody"),
        (np.full((1, 5, 18, 3), np.nan), "not finite"),
        (np.array(["a"]), "holds <U1"),
    ],
)
def test_wrong_arrays_are_refused(tmp_path: Path, array: np.ndarray, message: str) -> None:
    np.save(tmp_path / "poses.npy", array)
    with pytest.raises(UserError, match=message):
        read_poses(tmp_path / "poses.npy", size=(64, 64))


def test_a_header_that_promises_more_than_there_is_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npy"
    with path.open("wb") as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (10**6, 10**6, 18, 3)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(UserError, match="is not a .npy file"):
        read_poses(path, size=(64, 64))
    np.save(path, np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match="is not a .npy file"):
        read_poses(path, size=(64, 64))
