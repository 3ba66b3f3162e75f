"""Motion capture to shards: parsing, kinematics, rigs, cameras."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prepare
from datamodules.shards import read_shard
from datamodules.sources.bvh import forward_kinematics, read_bvh
from datamodules.sources.rigs import NEEDED, find_joints, to_body
from modules.errors import UserError
from modules.pose.skeleton import JOINT_NAMES

# A rig in decimetres that stands in a T pose: name, parent, offset.
RIG = (
    ("Hips", "", (0, 9, 0)), ("Spine", "Hips", (0, 2, 0)), ("Neck", "Spine", (0, 3, 0)), ("Head", "Neck", (0, 1, 0)),
    *(
        row
        for side, sign in (("Left", 1), ("Right", -1))
        for row in (
            (f"{side}Shoulder", "Spine", (sign * 0.2, 2.8, 0)), (f"{side}Arm", f"{side}Shoulder", (sign * 1.6, 0, 0)),
            (f"{side}ForeArm", f"{side}Arm", (sign * 2.7, 0, 0)), (f"{side}Hand", f"{side}ForeArm", (sign * 2.4, 0, 0)),
            (f"{side}UpLeg", "Hips", (sign, -0.5, 0)), (f"{side}Leg", f"{side}UpLeg", (0, -4, 0)),
            (f"{side}Foot", f"{side}Leg", (0, -4, 0)),
        )
    ),
)  # fmt: skip


def bvh(frames: list[dict[str, Any]], prefix: str = "", rate: int = 60, z_up: bool = False) -> str:
    """A BVH file; the frames give Z, Y, X rotations of joints in degrees."""
    children: dict[str, list[int]] = {}
    for number, (_, parent, _) in enumerate(RIG):
        children.setdefault(parent, []).append(number)
    order: list[str] = []

    def write(number: int) -> str:
        name, parent, (x, y, z) = RIG[number]
        order.append(name)
        offset = (x, -z, y) if z_up else (x, y, z)
        kind = "JOINT" if parent else "ROOT"
        positions = "" if parent else "Xposition Yposition Zposition "
        below = "\n".join(write(child) for child in children.get(name, [])) or "End Site\n{\nOFFSET 0 0.5 0\n}"
        return (
            f"{kind} {prefix}{name}\n{{\nOFFSET {' '.join(map(str, offset))}\n"
            f"CHANNELS {3 if parent else 6} {positions}Zrotation Yrotation Xrotation\n{below}\n}}"
        )

    hierarchy = write(0)
    values = [[0, 0, 0, *(v for name in order for v in frame.get(name, (0, 0, 0)))] for frame in frames]
    rows = [" ".join(map(str, row)) for row in values]
    return "\n".join(["HIERARCHY", hierarchy, "MOTION", f"Frames: {len(rows)}", f"Frame Time: {1 / rate}", *rows, ""])


def save(folder: Path, text: str, name: str = "move") -> Path:
    path = folder / "bvh" / f"{name}.bvh"
    path.parent.mkdir(exist_ok=True)
    path.write_text(text)
    return path


def test_kinematics_of_known_rotations(tmp_path):
    turns = [{}, {"LeftArm": (90, 0, 0)}, {"Hips": (0, 90, 0)}, {"LeftArm": (90, 0, 90)}]
    motion = read_bvh(save(tmp_path, bvh(turns)))
    place = {joint.name: number for number, joint in enumerate(motion.joints)}
    positions, _ = forward_kinematics(motion)
    np.testing.assert_allclose(positions[0, place["LeftHand"]], [1.8 + 5.1, 9 + 2 + 2.8, 0], atol=1e-9)
    np.testing.assert_allclose(positions[1, place["LeftHand"]], [1.8, 13.8 + 5.1, 0], atol=1e-9)  # about z: up
    np.testing.assert_allclose(positions[2, place["LeftHand"]], [0, 13.8, -6.9], atol=1e-9)  # all about y
    # Z first, then X about the turned axis: the arm stays up
    np.testing.assert_allclose(positions[3, place["LeftHand"]], [1.8, 18.9, 0], atol=1e-9)


@pytest.mark.parametrize("prefix", ["", "mixamorig:", "Character1_"])
@pytest.mark.parametrize("z_up", [False, True])
def test_a_body_from_any_rig(tmp_path, prefix, z_up):
    body = to_body(read_bvh(save(tmp_path, bvh([{}] * 3, prefix, z_up=z_up))), {}, 1.72, "rig")
    joints = dict(zip(JOINT_NAMES, body.joints[0], strict=True))
    np.testing.assert_allclose(body.facing, [[0, 0, 1]] * 3, atol=1e-9)
    assert joints["l_wrist"][0] > joints["l_shoulder"][0] > 0 > joints["r_shoulder"][0]
    assert joints["nose"][2] > joints["l_ear"][2]
    assert joints["l_eye"][0] > 0 > joints["r_eye"][0]
    np.testing.assert_allclose(joints["neck"], (joints["l_shoulder"] + joints["r_shoulder"]) / 2)
    assert 1.4 < joints["l_eye"][1] - joints["l_ankle"][1] < 1.75


def test_a_missing_joint_is_named():
    names = [name for name, _, _ in RIG if name != "LeftLeg"]
    with pytest.raises(UserError, match=r"rig: no joint for l_knee; .* joints.l_knee=NAME \(the rig has Hips"):
        find_joints(names, {}, "rig")
    assert find_joints([*names, "Strange"], {"l_knee": "Strange"}, "rig")["l_knee"] == len(names)
    with pytest.raises(UserError, match=r"has no joint 'Strnge' \(joints.l_knee\); did you mean Strange"):
        find_joints([*names, "Strange"], {"l_knee": "Strnge"}, "rig")
    with pytest.raises(UserError, match=r"joints.left_knee is unknown; known are head, l_shoulder"):
        find_joints(names, {"left_knee": "x"}, "rig")


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("MOTION", "", "has no line MOTION"),
        ("HIERARCHY", "NOTHING", "line 1: has 'NOTHING' where HIERARCHY must be"),
        ("OFFSET 0 9 0", "OFFSET 0 x 0", "line 4: has 'x' where a number must be"),
        ("Xposition", "Xscale", "has the channel 'Xscale'"),
        ("Frames: 3", "Frames: 4", "names 4 frames of .* and has 3; the file is cut off"),
        ("Frames: 3", "Frames: x", "are no numbers"),
        ("0 0 0 0\n", "0 0 0\n", "values, its joints have 57 channels"),
        ("0 0 0 0\n", "0 0 0 nan\n", "has a value that is not finite"),
        ("0 0 0 0\n", "0 0 0 x\n", "has a value that is no number"),
        ("End Site\n{\nOFFSET 0 0.5 0\n}\n}\n", "", "HIERARCHY|must be"),
    ],
)
def test_damaged_files_name_the_line(tmp_path, old, new, message):
    text = bvh([{}] * 3)
    assert old in text
    with pytest.raises(UserError, match=message):
        read_bvh(save(tmp_path, text.replace(old, new, 1)))


def arguments(folder: Path, motions: Path, **options: Any) -> list[str]:
    values = {"motions": motions, "captions": folder / "c.csv", "out": folder / "out", "workers": 1}
    values |= {"val": 0, "test": 0}
    return ["bvh", *(f"{key}={value}" for key, value in {**values, **options}.items())]


def samples(folder: Path) -> list[Any]:
    return [r.sample() for path in sorted(folder.glob("train-*.tar")) for r in read_shard(str(path))]


def test_a_motion_is_seen_by_all_cameras(tmp_path, capsys):
    wave = [{"LeftArm": (60 * np.sin(t / 20), 0, 0)} for t in range(1200)]  # 20 s at 60 fps
    save(tmp_path, bvh(wave))
    (tmp_path / "c.csv").write_text("name,caption,label\nmove,Waves her left arm.,wave\n")
    prepare.main(arguments(tmp_path, tmp_path / "bvh", preview=2))
    assert "12 train, 0 val, 0 test clips" in capsys.readouterr().out
    found = samples(tmp_path / "out")
    assert {s.poses.shape for s in found} == {(1, 200, 18, 3)}
    for s in found:
        seen = s.poses[..., 2] > 0
        assert seen[..., 1:4].all()
        assert (s.poses[seen][:, :2] >= 0).all()
        assert (s.poses[seen][:, :2] < [1280, 720]).all()
        # from the front the person's left is on the viewer's right; from behind the face is hidden
        left = float((s.poses[0, :, 5, 0] - s.poses[0, :, 2, 0]).mean())
        front = abs(s.meta["camera_azimuth_deg"])
        if front < 60 or front > 120:
            assert (left > 0) == (front < 60)
            assert seen[..., 0].all() == (front < 60)
    assert len({s.meta["camera_azimuth_deg"] for s in found}) == 12
    assert json.loads((tmp_path / "out" / "manifest.json").read_text())["motions"] == 1


def test_missing_captions(tmp_path):
    save(tmp_path, bvh([{}] * 100))
    (tmp_path / "c.csv").write_text("name,caption\nmover,x\n")
    with pytest.raises(UserError, match="no caption for the motion 'move'; the captions have 'mover'"):
        prepare.main(arguments(tmp_path, tmp_path / "bvh"))
    with pytest.raises(UserError, match="has no .bvh files"):
        prepare.main(arguments(tmp_path, tmp_path / "out"))


def test_three_real_rigs(shared_dir, tmp_path):
    motions = shared_dir / "data" / "bvh"
    for path in sorted(motions.glob("*.bvh")):
        motion = read_bvh(path)
        assert find_joints([joint.name for joint in motion.joints], {}, path.name).keys() == set(NEEDED)
        body = to_body(motion, {}, 1.72, path.name)
        part = dict(zip(JOINT_NAMES, body.joints.swapaxes(0, 1), strict=True))
        assert 1.2 < np.median(part["nose"][:, 1] - part["l_ankle"][:, 1]) < 1.75  # upright, in metres
        left = part["l_hip"] - part["r_hip"]
        up = part["neck"] - (part["l_hip"] + part["r_hip"]) / 2
        ahead = np.cross(left, up)
        assert np.median((ahead * body.facing).sum(-1) / np.linalg.norm(ahead, axis=-1)) > 0.7
        assert np.isfinite(body.joints).all()
    rows = "".join(f"{path.stem},Someone moves.\n" for path in motions.glob("*.bvh"))
    (tmp_path / "c.csv").write_text("name,caption\n" + rows)
    prepare.main(arguments(tmp_path, motions))
    assert len(samples(tmp_path / "out")) == 16
