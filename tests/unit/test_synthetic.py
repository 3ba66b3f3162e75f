import json
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest

import prepare
from datamodules.sample import SPLITS, parse_sample
from datamodules.synthetic import captions, splits
from datamodules.synthetic.actions import ACTIONS
from datamodules.synthetic.build import SyntheticConfig, build
from datamodules.synthetic.clips import synthesise
from datamodules.synthetic.motions import MAX_FREQUENCY, SPEEDS, Parameters, curve
from datamodules.synthetic.skeleton3d import JOINT, KNEE_LIMITS, Body, forward_kinematics, sample_body
from modules.errors import UserError
from modules.pose.figures import figure_height
from modules.pose.video import read_frames

BONES = (
    ("l_shoulder", "l_elbow"), ("l_elbow", "l_wrist"), ("r_shoulder", "r_elbow"), ("r_elbow", "r_wrist"),
    ("l_hip", "l_knee"), ("l_knee", "l_ankle"), ("r_hip", "r_knee"), ("r_knee", "r_ankle"),
    ("l_shoulder", "r_shoulder"), ("l_hip", "r_hip"), ("l_ear", "r_ear"), ("nose", "l_eye"),
)  # fmt: skip


def motion_of(name, speed="normal", side=None, amplitude=0.5, style=0.3, seconds=3.0, travel=None, phase=0.0):
    action = ACTIONS[name]
    frequency = float(np.mean(action.frequencies[SPEEDS.index(speed)]))
    travel = travel or ("none" if not action.travels else "left" if name == "side step" else "forward")
    parameters = Parameters(side or action.sides[0], travel, speed, frequency, amplitude, phase, style, seconds)
    return forward_kinematics(Body(), action.build(Body(), parameters, np.arange(0, seconds, 1 / 30)))[0]


def angle(joints, a, b, c):
    """Flexion at b in degrees: 0 for a straight limb."""
    first, second = joints[:, JOINT[b]] - joints[:, JOINT[a]], joints[:, JOINT[c]] - joints[:, JOINT[b]]
    cosine = (first * second).sum(-1) / np.linalg.norm(first, axis=-1) / np.linalg.norm(second, axis=-1)
    return np.degrees(np.arccos(np.clip(cosine, -1, 1)))


@pytest.fixture(scope="module")
def clips():
    return [synthesise(7, "train", index) for index in range(300)]


def people(clips):
    """Every person of the clips: (meta, joints (T, 18, 2), visibility (T, 18))."""
    for clip in clips:
        for actor, pose in zip(clip.meta["actors"], clip.pose, strict=True):
            yield actor, pose[..., :2], pose[..., 2] > 0


@pytest.mark.parametrize("name", ACTIONS)
def test_bones_keep_their_lengths_and_joints_their_limits(name):
    for amplitude, style in ((0.0, 0.0), (0.5, 0.5), (0.99, 0.99)):
        joints = motion_of(name, amplitude=amplitude, style=style)
        assert np.isfinite(joints).all()
        for a, b in BONES:
            length = np.linalg.norm(joints[:, JOINT[a]] - joints[:, JOINT[b]], axis=-1)
            assert np.ptp(length) < 1e-6, (a, b)
        for side in "lr":
            knee = angle(joints, f"{side}_hip", f"{side}_knee", f"{side}_ankle")
            assert knee.max() <= np.degrees(KNEE_LIMITS[1]) + 1e-3
            elbow = angle(joints, f"{side}_shoulder", f"{side}_elbow", f"{side}_wrist")
            assert elbow.max() <= 150.01
        assert joints[..., 1].min() > -0.01  # nobody sinks into the ground
        # smooth: the fastest joints are the feet of a runner and the hands of a jumper
        assert np.linalg.norm(np.diff(joints, axis=0), axis=-1).max() < 0.19


@pytest.mark.parametrize("name", ACTIONS)
def test_nothing_is_faster_than_the_keys_can_show(name):
    ranges = ACTIONS[name].frequencies
    assert max(map(max, ranges)) <= MAX_FREQUENCY
    slow, normal, fast = ranges
    assert slow[1] < normal[0] <= normal[1] < fast[0], "speeds are apart"


def test_knees_of_a_walker_bend_forward_and_feet_stay_where_they_are_put():
    joints = motion_of("walk", seconds=4.0)
    for side in "lr":
        hip, knee, ankle = (joints[:, JOINT[f"{side}_{n}"]] for n in ("hip", "knee", "ankle"))
        middle = 0.5 * (hip + ankle)
        assert (knee[:, 2] - middle[:, 2]).min() > -0.02
        down = ankle[:, 1] <= np.quantile(ankle[:, 1], 0.25)
        still = np.abs(np.diff(ankle[:, 2]))[down[1:] & down[:-1]]
        assert np.median(still) < 0.25 * np.ptp(joints[:, JOINT["neck"], 2]) / len(joints)
    arm = joints[:, JOINT["l_wrist"], 2] - joints[:, JOINT["l_shoulder"], 2]
    leg = joints[:, JOINT["l_ankle"], 2] - joints[:, JOINT["l_hip"], 2]
    assert np.corrcoef(arm, leg)[0, 1] < -0.6, "arms swing against the legs"


def test_a_sitter_ends_at_the_height_of_a_chair_and_a_riser_stands():
    for name, first, last in (("sit down", 0.53, 0.29), ("stand up", 0.29, 0.53)):
        hips = motion_of(name)[:, JOINT["l_hip"], 1]
        assert hips[0] == pytest.approx(first, abs=0.03)
        assert hips[-1] == pytest.approx(last, abs=0.03)


def test_push_ups_are_straight_and_horizontal_with_the_hands_on_the_ground():
    joints = motion_of("push-ups")
    assert joints[:, JOINT["neck"], 1].max() < 0.45
    for side in "lr":
        assert angle(joints, f"{side}_shoulder", f"{side}_hip", f"{side}_ankle").max() < 20
        assert np.ptp(joints[:, JOINT[f"{side}_wrist"]], axis=0).max() < 0.01
    assert np.ptp(joints[:, JOINT["neck"], 1]) > 0.1


def test_hands_meet_in_a_clap_and_feet_leave_the_ground_in_a_jump():
    clap = motion_of("clap")
    gap = np.linalg.norm(clap[:, JOINT["l_wrist"]] - clap[:, JOINT["r_wrist"]], axis=-1)
    assert gap.min() < 0.11
    assert gap.max() > 0.25
    jump = motion_of("jump")
    assert jump[:, [JOINT["l_ankle"], JOINT["r_ankle"]], 1].min(1).max() > Body().ankle + 0.06


def test_turning_around_changes_left_and_right():
    joints = motion_of("turn around")
    across = joints[:, JOINT["l_shoulder"], 0] - joints[:, JOINT["r_shoulder"], 0]
    assert across[0] > 0.2
    assert across[-1] < -0.2


def test_the_same_numbers_give_the_same_clip_and_others_another():
    first, again, other = synthesise(3, "val", 5), synthesise(3, "val", 5), synthesise(4, "val", 5)
    np.testing.assert_array_equal(first.pose, again.pose)
    np.testing.assert_array_equal(first.frames()[::20], again.frames()[::20])
    assert first.meta == again.meta
    assert first.meta["caption"] != other.meta["caption"]


def test_poses_keep_to_the_schema(clips):
    for clip in clips:
        pose, meta = clip.pose, clip.meta
        assert pose.dtype == np.float32
        assert pose.shape == (len(meta["actors"]), meta["num_frames"], 18, 3)
        assert 60 <= meta["num_frames"] <= 200
        assert meta["num_frames"] == round(30 * meta["seconds"])
        seen = pose[..., 2] > 0
        assert (pose[~seen] == 0).all()
        assert ((pose[seen][:, :2] >= 0) & (pose[seen][:, :2] < 64)).all()
        left_edges = np.where(seen, pose[..., 0], np.inf).min((1, 2))
        assert (np.diff(left_edges) > 0).all(), "people are ordered from left to right"
        body = seen[:, :, 1:14].mean()
        assert body > 0.8


def test_direction_of_travel_can_be_measured(clips):
    agree = []
    for actor, joints, visibility in people(clips):
        shift = (joints[-1, JOINT["neck"], 0] - joints[0, JOINT["neck"], 0]) / 64
        heights = figure_height(joints, visibility)
        growth = np.median(heights[-10:]) / np.median(heights[:10])
        measured = "none"
        if ACTIONS[actor["action"]].travels:
            if max(growth, 1 / growth) > 1.22:
                measured = "toward" if growth > 1 else "away"
            elif abs(shift) > 0.15:
                measured = "right" if shift > 0 else "left"
        elif abs(shift) > 0.2:
            measured = "moved"
        agree.append(measured == actor["direction"])
    assert np.mean(agree) >= 0.97


def test_side_of_the_action_can_be_measured(clips):
    def spread(joints, visibility, end, start):
        seen = visibility[:, JOINT[end]] & visibility[:, JOINT[start]]
        offset = joints[seen, JOINT[end]] - joints[seen, JOINT[start]]
        return np.sqrt(((offset - offset.mean(0)) ** 2).sum(-1).mean()) if seen.any() else 0.0

    agree = []
    for actor, joints, visibility in people(clips):
        if actor["side"] == "none":
            continue
        end, start = ("ankle", "hip") if actor["action"] == "kick" else ("wrist", "shoulder")
        left, right = (spread(joints, visibility, f"{s}_{end}", f"{s}_{start}") for s in "lr")
        measured = "both" if max(left, right) < 2 * min(left, right) and actor["action"] == "wave" else None
        agree.append((measured or ("left" if left > right else "right")) == actor["side"])
    assert len(agree) > 30
    assert np.mean(agree) >= 0.97


def test_all_actions_directions_and_sides_occur(clips):
    actors = [actor for clip in clips for actor in clip.meta["actors"]]
    assert {a["action"] for a in actors} == set(ACTIONS)
    assert len(ACTIONS) == 16
    assert {a["direction"] for a in actors} == {"left", "right", "toward", "away", "none"}
    assert {a["side"] for a in actors} == {"left", "right", "both", "none"}
    assert {a["size"] for a in actors} == {"small", "medium", "large", "none"}
    assert {len(clip.meta["actors"]) for clip in clips} == {1, 2, 3}


def test_captions_name_what_is_shown(clips):
    for clip in clips:
        caption, meta = clip.meta["caption"], clip.meta
        assert f"{meta['seconds']:g} seconds" in caption
        assert meta["background"] in caption.lower()
        places = []
        for actor in meta["actors"]:
            clothes = f"{actor['shirt']} shirt and {actor['trousers']} trousers"
            places.append(caption.find(clothes, places[-1] + 1 if places else 0))
            assert places[-1] >= 0, "clothes in the order of the people"
            if actor["speed"] != "normal":
                assert any(word in caption for word in ("slow", "quickly", "fast"))
            if actor["direction"] in ("left", "right"):
                assert f"the {actor['direction']}" in caption
        assert "  " not in caption
        assert "{" not in caption
        assert len(caption.split()) < 75


def test_splits_share_no_combination_band_or_phrasing():
    seen = {split: [synthesise(2, split, i).meta for i in range(64)] for split in SPLITS}
    actors = {split: [a for meta in metas for a in meta["actors"]] for split, metas in seen.items()}
    combinations = {split: {a["combination"] for a in found} for split, found in actors.items()}
    assert not combinations["train"] & combinations["test"]
    assert not combinations["train"] & combinations["val"]
    assert not combinations["val"] & combinations["test"]
    for split, found in actors.items():
        for name in ("amplitude", "style"):
            values = np.array([a[name] for a in found])
            inside = [(values >= low - 1e-3) & (values <= high + 1e-3) for low, high in splits.BANDS[split]]
            assert np.any(inside, axis=0).all()
    last = [a["phrasing"] == len(captions.PHRASINGS[a["action"]]) - 1 for a in actors["test"]]
    assert 0.3 < np.mean(last) < 0.7
    for split in ("train", "val"):
        assert not any(a["phrasing"] == len(captions.PHRASINGS[a["action"]]) - 1 for a in actors[split])


def test_bands_of_the_splits_fill_the_range_without_overlap():
    edges = sorted(band for bands in splits.BANDS.values() for band in bands)
    assert edges[0][0] == 0
    assert edges[-1][1] == 1
    assert all(a[1] == b[0] for a, b in zip(edges, edges[1:], strict=False))


def test_each_action_has_five_phrasings_and_held_out_words_are_known():
    assert captions.PHRASINGS.keys() == ACTIONS.keys()
    known, held_out = set(), set()
    for phrasings in captions.PHRASINGS.values():
        assert len(set(phrasings)) > 5
        known |= set(re.findall(r"[a-z-]+", " ".join(phrasings[:-1])))
        held_out |= set(re.findall(r"[a-z-]+", phrasings[-1]))
    assert held_out <= known, "a vocabulary of the training captions knows the words of the held-out phrasings"


def test_proportions_differ_but_little():
    bodies = [sample_body(np.random.default_rng(i), "person") for i in range(20)]
    legs = np.array([body.leg for body in bodies])
    assert 0 < legs.std() / legs.mean() < 0.05


def test_a_curve_passes_its_knots_and_repeats():
    knots = ((0.1, 0.0), (0.4, 1.0), (0.7, -0.5))
    at = np.array([k[0] for k in knots])
    np.testing.assert_allclose(curve(at, *knots), [k[1] for k in knots], atol=1e-12)
    phase = np.linspace(0, 1, 50)
    np.testing.assert_allclose(curve(phase, *knots), curve(phase + 3, *knots), atol=1e-9)
    assert curve(phase, *knots).max() <= 1 + 1e-9


SMALL = {"train": 5, "val": 2, "test": 2, "shard_size": 3, "workers": 1}


def files_of(folder):
    return {path.name: path.read_bytes() for path in sorted(Path(folder).iterdir())}


def test_build_writes_readable_shards_and_goes_on_where_it_stopped(tmp_path):
    config = SyntheticConfig(out=str(tmp_path / "a"), **SMALL)
    manifest = build(config, progress=False)
    names = ["train-000000.tar", "train-000001.tar", "val-000000.tar", "test-000000.tar"]
    assert list(manifest["shards"]) == names
    assert sum(shard["samples"] for shard in manifest["shards"].values()) == 9
    before = files_of(config.out)
    assert sorted(before) == sorted([*names, "manifest.json"])

    (tmp_path / "a" / "train-000001.tar").unlink()
    (tmp_path / "a" / ".val-000000.0123.tar").write_bytes(b"half")  # what a killed run leaves
    kept = (tmp_path / "a" / "train-000000.tar").stat().st_mtime_ns
    build(config, progress=False)
    assert files_of(config.out) == before, "the same bytes again"
    assert (tmp_path / "a" / "train-000000.tar").stat().st_mtime_ns == kept

    with tarfile.open(tmp_path / "a" / "val-000000.tar") as tar:
        raw = {m.name.split(".", 1)[1]: tar.extractfile(m).read() for m in tar if m.name.startswith("val000001.")}
    sample = parse_sample({"__key__": "val000001", "__url__": "val", **raw}, ("pose", "video"))
    clip = synthesise(0, "val", 1)
    np.testing.assert_array_equal(sample.poses, clip.pose)
    assert sample.captions == [clip.meta["caption"]]
    frames = read_frames(sample.video)
    assert frames.shape == clip.frames().shape
    assert np.abs(frames.astype(int) - clip.frames()).mean() < 2


def test_build_does_not_mix_data_sets(tmp_path):
    config = SyntheticConfig(out=str(tmp_path), **SMALL)
    build(config, progress=False)
    other = SyntheticConfig(out=str(tmp_path), **{**SMALL, "train": 3}, seed=1)
    with pytest.raises(UserError, match=r"holds another data set \(train 5 there, 3 asked for, seed 0 there, 1"):
        build(other, progress=False)
    other.overwrite = True
    assert build(other, progress=False)["samples"]["train"] == 3
    assert not (tmp_path / "train-000001.tar").exists()
    (tmp_path / "manifest.json").unlink()
    with pytest.raises(UserError, match=r"shards without a manifest"):
        build(config, progress=False)


def test_prepare_refuses_what_it_does_not_know(tmp_path):
    with pytest.raises(UserError, match=r"source 'sythetic' is unknown; known: .*synthetic"):
        prepare.main(["sythetic"])
    with pytest.raises(UserError, match=r"one source must be named, got none; known: .*synthetic"):
        prepare.main(["out=data/sample"])
    with pytest.raises(UserError, match=r"tran"):
        prepare.main(["synthetic", f"out={tmp_path}", "tran=5"])
    with pytest.raises(UserError, match=r"workers is 0, allowed is 1 or more"):
        prepare.main(["synthetic", f"out={tmp_path}", "workers=0"])
    assert not list(tmp_path.iterdir())


def test_prepare_makes_a_data_set_and_exits_with_2_after_a_mistake(tmp_path, capsys):
    arguments = ["synthetic", f"out={tmp_path / 'd'}", "train=2", "val=1", "test=1", "workers=1"]
    prepare.main(arguments)
    assert "2 train, 1 val, 1 test clips in 3 shards" in capsys.readouterr().out
    assert json.loads((tmp_path / "d" / "manifest.json").read_text())["complete"]

    command = [sys.executable, "prepare.py", *arguments, "seed=-1"]
    wrong = subprocess.run(command, cwd=Path(prepare.__file__).parent, capture_output=True, text=True, check=False)
    assert wrong.returncode == 2
    assert wrong.stderr == "error: command line: seed is -1, allowed is 0 or more; for example seed=100\n"
