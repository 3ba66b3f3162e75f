"""plan.json, OpenPose JSON, atomic files: exact round trips, and messages that name the place of a mistake."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from modules.errors import UserError
from modules.files import atomic_path, atomic_write
from modules.pose.io import (
    Plan,
    plan_to_dict,
    read_openpose,
    read_openpose_frames,
    read_plan,
    write_openpose,
    write_plan,
)
from modules.pose.scene import Scene
from tests.unit.test_pose_scene import assert_same


@pytest.fixture
def plan(make_scene) -> Plan:
    keys: Scene = make_scene(width=1280, height=720).keys(10)
    keys.prompt = 'A "quoted" prompt: {"box", é, 走'
    codes = np.random.default_rng(0).integers(0, 512, (2, 5, 6))
    return Plan(keys, seed=7, stride=10, codes=codes, tokenizer="abc")


# plan.json


def test_plan_round_trip_is_exact(plan, tmp_path):
    write_plan(tmp_path / "plan.json", plan)
    back = read_plan(tmp_path / "plan.json")
    assert_same(back.scene_keys, plan.scene_keys)
    assert (back.seed, back.stride, back.tokenizer, back.scene_keys.prompt) == (7, 10, "abc", plan.scene_keys.prompt)
    np.testing.assert_array_equal(back.codes, plan.codes)
    write_plan(tmp_path / "again.json", back)
    assert (tmp_path / "again.json").read_text() == (tmp_path / "plan.json").read_text()


def test_plan_has_the_documented_layout(plan):
    data = plan_to_dict(plan)
    assert list(data)[:8] == ["version", "prompt", "seed", "width", "height", "fps", "stride", "persons"]
    assert list(data["persons"][0]) == ["id", "box", "keys"]
    assert list(data["persons"][0]["keys"][1]) == ["time", "joints"]
    assert data["persons"][0]["keys"][1]["time"] == pytest.approx(1 / 3)
    assert [len(point) for point in data["persons"][0]["keys"][0]["joints"]] == [3] * 18


def test_layout_of_the_text_does_not_matter_to_codes(plan, tmp_path):
    data = plan_to_dict(plan)
    (tmp_path / "plan.json").write_text(json.dumps(data, indent=8, sort_keys=True))
    np.testing.assert_array_equal(read_plan(tmp_path / "plan.json").codes, plan.codes)


def edit_joint(data: dict[str, Any]) -> None:
    data["persons"][1]["keys"][2]["joints"][3][0] += 0.01


def edit_visibility(data: dict[str, Any]) -> None:
    point = data["persons"][0]["keys"][0]["joints"][0]
    point[:] = [0, 0, 0] if point[2] else [5, 5, 1]


def edit_box(data: dict[str, Any]) -> None:
    data["persons"][0]["box"] = [0, 0, 1280, 720]


def edit_size(data: dict[str, Any]) -> None:
    data["width"] = 1281


@pytest.mark.parametrize("edit", [edit_joint, edit_visibility, edit_box, edit_size])
def test_codes_are_dropped_when_a_coordinate_changed(plan, tmp_path, edit):
    data = plan_to_dict(plan)
    edit(data)
    (tmp_path / "plan.json").write_text(json.dumps(data))
    assert read_plan(tmp_path / "plan.json").codes is None


def test_codes_survive_another_prompt_and_seed(plan, tmp_path):
    data = plan_to_dict(plan) | {"prompt": "Another.", "seed": 8}
    (tmp_path / "plan.json").write_text(json.dumps(data))
    assert read_plan(tmp_path / "plan.json").codes is not None


def test_boxes_of_a_user_are_rounded_to_the_grid(plan, tmp_path):
    data = plan_to_dict(plan)
    data["persons"][0]["box"] = [101, 102, 301, 302]
    (tmp_path / "plan.json").write_text(json.dumps(data))
    box = read_plan(tmp_path / "plan.json").scene_keys.persons[0].box
    np.testing.assert_allclose(box, [101, 102, 301, 302], atol=1280 / 255 / 2)
    np.testing.assert_allclose(box * 255 / [1280, 720, 1280, 720] % 1 % 0.999, 0, atol=2e-3)


def person(data: dict[str, Any]) -> dict[str, Any]:
    return data["persons"][1]


def joints(data: dict[str, Any]) -> list[Any]:
    return person(data)["keys"][2]["joints"]


BAD: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda d: joints(d).pop(), r"person 1, key 2, joint 17 \(l_ear\): is missing; .* \[0, 0, 0\]"),
    (lambda d: joints(d).append([0, 0, 0]), "person 1, key 2: has 19 joints, allowed are 18"),
    (lambda d: joints(d).__setitem__(4, None), r"key 2, joint 4 \(r_wrist\): is null, allowed is \[x, y, visible\]"),
    (lambda d: joints(d).__setitem__(4, [1, 2]), r"joint 4 \(r_wrist\): is \[1, 2\]"),
    (lambda d: joints(d).__setitem__(4, [float("nan"), 2, 1]), r"joint 4 \(r_wrist\): is \[NaN, 2, 1\]"),
    (lambda d: joints(d).__setitem__(4, [1, float("inf"), 1]), r"joint 4 \(r_wrist\): is \[1, Infinity, 1\]"),
    (lambda d: joints(d).__setitem__(4, [1, 10**400, 1]), r"joint 4 \(r_wrist\): is \[1, 1000"),
    (lambda d: joints(d).__setitem__(4, [1, "2", 1]), r'joint 4 \(r_wrist\): is \[1, "2", 1\]'),
    (lambda d: joints(d).__setitem__(4, [1, 2, 0.5]), r"joint 4 \(r_wrist\): 'visible' is 0.5, allowed is 0 or 1"),
    (lambda d: person(d)["keys"].pop(), "person 1: has 4 keys, person 0 has 5; give all persons the same keys"),
    (lambda d: person(d).update(keys=[]), r"person 1: 'keys' is \[\], allowed is a list with at least one"),
    (lambda d: person(d).pop("keys"), "person 1: 'keys' is missing"),
    (lambda d: person(d)["keys"].__setitem__(2, 3), "person 1, key 2: is 3, allowed is an object"),
    (lambda d: person(d)["keys"][2].update(time=0.5), r"person 1, key 2: 'time' is 0.5 s.* set it to 0.666667"),
    (lambda d: person(d)["keys"][2].pop("time"), "person 1, key 2: 'time' is null, allowed are seconds"),
    (lambda d: person(d).update(box=[9, 9, 5, 20]), r"person 1: 'box' is \[9, 9, 5, 20\], allowed is x0 < x1"),
    (lambda d: person(d).update(box=[9, 9, 20, 9]), "person 1: 'box' .* allowed is x0 < x1 and y0 < y1"),
    (lambda d: person(d).update(box=[9, 9, 1290, 20]), r"'box' .* outside of the frame, allowed is 0\.\.1280 for x"),
    (lambda d: person(d).update(box=[-1, 9, 20, 20]), "person 1: 'box' .* outside of the frame"),
    (lambda d: person(d).update(box=[1, 2, 3]), "person 1: 'box' .* allowed are 4 numbers"),
    (lambda d: d.update(persons=[]), r"'persons' is \[\], allowed is a list with at least one"),
    (lambda d: d.update(version=2), "'version' is 2, allowed is 1"),
    (lambda d: d.pop("version"), "'version' is null, allowed is 1"),
    (lambda d: d.update(width=-5), "'width' is -5, allowed is a whole number above 0"),
    (lambda d: d.update(stride=0), "'stride' is 0, allowed is a whole number above 0"),
    (lambda d: d.update(stride=True), "'stride' is true"),
    (lambda d: d.update(fps="30"), "'fps' is \"30\", allowed is a number above 0"),
    (lambda d: d.update(prompt=3), "'prompt' is 3, allowed is a text"),
    (lambda d: d.pop("seed"), "'seed' is missing"),
    (lambda d: d.update(codes=[[1]]), "'codes' is not a list of ids"),
    (lambda d: d.update(codes="x"), "'codes' is not a list of ids"),
]


@pytest.mark.parametrize(("spoil", "message"), BAD)
def test_bad_plans_are_refused(plan, tmp_path, spoil, message):
    data = copy.deepcopy(plan_to_dict(plan))
    spoil(data)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(data))
    with pytest.raises(UserError, match=message) as error:
        read_plan(path)
    assert str(error.value).startswith(str(path))
    assert "; " in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[" * 100000, "is not JSON"),
        ("\xff", "is not JSON"),
        ("[]", r"is \[\], allowed is an object"),
    ],
)
def test_files_that_are_no_plan(tmp_path, text, message):
    path = tmp_path / "plan.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=message):
        read_plan(path)
    with pytest.raises(UserError, match="cannot be read"):
        read_plan(tmp_path / "nothing.json")


def test_a_plan_is_made_of_key_poses(make_scene):
    with pytest.raises(ValueError, match=r"take scene.keys\(10\)"):
        plan_to_dict(Plan(make_scene(), seed=0, stride=10))
    with pytest.raises(ValueError, match="codes have shape"):
        plan_to_dict(Plan(make_scene().keys(10), seed=0, stride=10, codes=np.zeros((5, 2, 6), int)))


# OpenPose JSON


@pytest.mark.parametrize("dialect", ["people", "keypoints"])
@pytest.mark.parametrize("target", ["poses.json", "poses"])
def test_openpose_round_trip_is_exact(make_scene, tmp_path, dialect, target):
    scene = make_scene(width=1280, height=720)
    write_openpose(tmp_path / target, scene, dialect=dialect)
    assert_same(read_openpose(tmp_path / target), scene)


def test_openpose_of_one_frame_is_one_object(make_scene, tmp_path):
    scene = make_scene(frames=1)
    write_openpose(tmp_path / "pose.json", scene, dialect="keypoints")
    data = json.loads((tmp_path / "pose.json").read_text())
    assert list(data) == ["width", "height", "keypoints"]
    assert len(data["keypoints"]) == 36
    assert_same(read_openpose(tmp_path / "pose.json"), scene)


def test_openpose_points_in_a_list_for_each_person(make_scene, tmp_path):
    scene = make_scene(frames=1)
    write_openpose(tmp_path / "pose.json", scene, dialect="keypoints")
    data = json.loads((tmp_path / "pose.json").read_text())
    data["keypoints"] = [data["keypoints"][:18], data["keypoints"][18:]]
    (tmp_path / "pose.json").write_text(json.dumps(data))
    assert_same(read_openpose(tmp_path / "pose.json"), scene)


def test_openpose_tells_people_by_their_id(make_scene, tmp_path):
    scene = make_scene(frames=3)
    write_openpose(tmp_path / "poses.json", scene)
    data = json.loads((tmp_path / "poses.json").read_text())
    data[1]["people"].reverse()
    del data[2]["people"][0]
    (tmp_path / "poses.json").write_text(json.dumps(data))
    back = read_openpose(tmp_path / "poses.json")
    np.testing.assert_array_equal(back.joints[:, :2], scene.joints[:, :2])
    np.testing.assert_array_equal(back.joints[1], scene.joints[1])
    assert not back.visibility[0, 2].any()


def openpose(people: list[Any], **more: Any) -> str:
    return json.dumps({"people": [{"pose_keypoints_2d": person} for person in people], **more})


def test_body_25_is_reduced(tmp_path):
    values = np.arange(75.0).reshape(25, 3)
    (tmp_path / "a.json").write_text(openpose([values.ravel().tolist()]))
    (frame,) = read_openpose_frames(tmp_path / "a.json")
    assert frame.size is None
    assert frame.people[0, :, 0].tolist() == [values[j, 0] for j in range(19) if j != 8]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (openpose([[1.0] * 51]), r"person 0: 'pose_keypoints_2d' has 51 values, allowed are 54 \(COCO-18\)"),
        (openpose([[1.0] * 54, None]), "person 1: 'pose_keypoints_2d' has null values"),
        (openpose([[1.0] * 4 + [float("nan")] + [1.0] * 49]), r"person 0, joint 1 \(neck\): is NaN"),
        (openpose([[1.0] * 54], canvas_width=0), "'canvas_width' is 0"),
        ('{"people": [3]}', "person 0: 'pose_keypoints_2d' has null values"),
        ('{"keypoints": []}', "'width' is missing"),
        ('{"width": 5, "height": 5, "keypoints": [[1, 2]]}', "person 0: has 1 points, allowed are 18"),
        ('{"width": 5, "height": 5, "keypoints": [' + "[1, 2], " * 17 + "[1]]}", r"joint 17 \(l_ear\): is \[1\]"),
        ('{"frames": 3}', "is not OpenPose JSON"),
        ("[]", "has no frames"),
    ],
)
def test_bad_openpose_is_refused(tmp_path, text, message):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(UserError, match=message) as error:
        read_openpose_frames(path)
    assert str(path) in str(error.value)


def test_openpose_without_identities_or_canvas(tmp_path):
    one, two = [1.0] * 54, [2.0] * 54
    (tmp_path / "0.json").write_text(openpose([one, two]))
    with pytest.raises(UserError, match="does not say the size of its canvas"):
        read_openpose(tmp_path)
    assert len(read_openpose(tmp_path, size=(64, 64)).persons) == 2
    (tmp_path / "1.json").write_text(openpose([two]))
    with pytest.raises(UserError, match="1.json: has 1 people, the first frame has 2, and no person_id; track"):
        read_openpose(tmp_path, size=(64, 64))
    (tmp_path / "1.json").write_text(openpose([two, one], canvas_width=9, canvas_height=9))
    with pytest.raises(UserError, match="frames with different canvases"):
        read_openpose(tmp_path, size=(64, 64))
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="has no .json files"):
        read_openpose(tmp_path / "empty")


def test_output_of_a_real_detector(shared_dir):
    frames = read_openpose_frames(shared_dir / "data" / "video" / "vtest_openpose")
    assert len(frames) == 795
    assert {len(frame.people) for frame in frames} <= set(range(8))
    assert all(frame.ids is None for frame in frames)


# Files


def test_atomic_files_are_complete_or_not_there(tmp_path):
    path = tmp_path / "sub" / "a.txt"
    with atomic_write(path) as file:
        file.write("one")
    with pytest.raises(TypeError), atomic_write(path) as file:
        file.write(b"bytes are refused by a text file")
    assert path.read_text() == "one"
    with atomic_path(path) as temporary:
        assert temporary.suffix == ".txt"
        assert temporary.parent == path.parent
        temporary.write_text("three")
        assert path.read_text() == "one"
    assert path.read_text() == "three"
    assert [item.name for item in Path(path.parent).iterdir()] == ["a.txt"]
    with pytest.raises(ValueError, match="mode is 'a'"), atomic_write(path, "a"):
        pass
