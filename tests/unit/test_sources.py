"""Detections of single frames to clips: tracking, resampling, captions, restarting."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prepare
from datamodules.shards import read_shard
from datamodules.sources.captions import read_captions
from datamodules.sources.motion import resample
from datamodules.sources.select import Person, SelectConfig, make_clips, reject_person
from datamodules.sources.tracking import TrackingConfig, link
from modules.errors import UserError
from modules.pose.video import encode_video, read_frames

FIGURE = np.array([
    [0, -40], [0, -30], [-10, -30], [-12, -15], [-13, 0], [10, -30], [12, -15], [13, 0], [-6, 0], [-6, 20], [-6, 40],
    [6, 0], [6, 20], [6, 40], [-2, -42], [2, -42], [-4, -41], [4, -41],
], float)  # fmt: skip


def person(x: float, y: float = 60, swing: float = 0) -> np.ndarray:
    """A pose (18, 3) around (x, y), 82 px high."""
    joints = FIGURE + [x, y]
    joints[[4, 10]] += [swing, 0]
    joints[[7, 13]] -= [swing, 0]
    return np.concatenate([joints, np.full((18, 1), 0.9)], -1)


def walk(starts: list[float], speeds: list[float], frames: int) -> list[np.ndarray]:
    """Detections of people who walk sideways, in an order that changes from frame to frame."""
    rng = np.random.default_rng(0)
    found = []
    for t in range(frames):
        people = [person(x + v * t, swing=6 * np.sin(t / 3)) for x, v in zip(starts, speeds, strict=True)]
        found.append(np.stack([people[i] for i in rng.permutation(len(people))]))
    return found


def tracks(frames: list[np.ndarray], fps: float = 30, **options: Any) -> list[Any]:
    return [t for t in link(frames, fps, 0.1, TrackingConfig(**options)) if len(t.frames) > 3]


def test_people_are_told_apart_whatever_their_order():
    found = tracks(walk([50, 120, 200], [2, 0, -1], 40)[:30])
    assert len(found) == 3
    for track in found:
        steps = np.diff([pose[1, 0] for pose in track.poses])
        assert np.abs(steps - np.median(steps)).max() < 1e-9


def test_a_short_gap_is_bridged_and_a_long_one_ends_the_track():
    frames = walk([50], [2], 60)
    for gap, expected in ((10, 1), (20, 2)):
        holed = [f if not 20 <= t < 20 + gap else np.zeros((0, 18, 3)) for t, f in enumerate(frames)]
        assert len(tracks(holed)) == expected


def test_a_crossing_cuts_instead_of_exchanging_people():
    found = tracks(walk([50, 170], [3, -3], 40))
    assert len(found) >= 4
    assert any(track.cut for track in found)
    for track in found:  # nobody turns around
        steps = np.sign(np.diff([pose[1, 0] for pose in track.poses]))
        assert len(set(steps)) == 1


def test_one_pose_for_two_people_belongs_to_neither():
    frames = []
    for t in range(60):  # one stands, another comes and stays behind the first, who then goes
        places = [100.0 + max(t - 40, 0) * 3, min(30.0 + t * 3, 98)]
        hidden = abs(places[0] - places[1]) < 15
        frames.append(np.stack([person(x) for x in places[: 1 if hidden else 2]]))
    spans = [(track.frames[0], track.frames[-1]) for track in tracks(frames)]
    alone = [t for t, found in enumerate(frames) if len(found) == 1]
    assert any(start == 0 for start, _ in spans)
    assert any(stop == 59 for _, stop in spans)
    assert not any(start < alone[0] and stop > alone[0] for start, stop in spans)
    assert not any(start <= alone[-1] < stop for start, stop in spans)


def test_a_pose_with_limbs_of_two_people_is_not_taken():
    frames = walk([50], [2], 30)
    frames[15][0, [9, 10, 12, 13], :2] += [30, 40]
    assert [(t.frames[0], t.frames[-1]) for t in tracks(frames, growth=9)] == [(0, 29)]
    assert 15 not in [frame for track in tracks(frames) for frame in track.frames]


def test_second_finds_and_fragments_are_no_people():
    frames = walk([50, 150], [1, 1], 20)
    fragment = person(250)
    fragment[4:] = 0
    doubled = [np.concatenate([f, f[:1] + [1, 1, -0.2], fragment[None]]) for f in frames]
    assert len(link(doubled, 30, 0.1, TrackingConfig())) == 2


def test_resampling_keeps_what_is_known_and_bridges_up_to_the_limit():
    times = np.arange(20) / 10
    poses = np.stack([person(50 + 100 * t) for t in times])
    poses[8:10, 3] = 0  # unseen for 0.3 s
    first, dense = resample(poses, times + 0.1, 0.1, 0.35)
    assert first == 3
    assert dense.shape == (58, 18, 3)
    np.testing.assert_allclose(dense[:, 1, 0], 50 + 100 * np.arange(58) / 30, atol=1e-3)
    assert dense[:, 3, 2].all()
    _, holed = resample(poses, times, 0.1, 0.15)
    unseen = np.flatnonzero(holed[:, 3, 2] == 0)
    assert unseen.tolist() == list(range(22, 30))
    assert (holed[unseen, 3] == 0).all()


def test_odd_rates_become_30_frames_per_second():
    for fps in (10, 23.976, 25, 29.97, 59.94):
        times = np.arange(100) / fps
        first, dense = resample(np.stack([person(40 * t) for t in times]), times, 0.1, 0.2)
        np.testing.assert_allclose(dense[:, 1, 0], 40 * (first + np.arange(len(dense))) / 30, atol=1e-3)


def test_each_reason_for_leaving_a_person_out():
    config, size = SelectConfig(), (640, 480)
    good = np.stack([person(50)] * 60)
    assert reject_person(Person(0, good), size, 0.1, config) is None
    assert "min_seconds" in str(reject_person(Person(0, good[:29]), size, 0.1, config))
    assert "min_size" in str(reject_person(Person(0, good * [0.5, 0.5, 1]), size, 0.1, config))
    assert "min_mean" in str(reject_person(Person(0, good * [1, 1, 0.4]), size, 0.1, config))
    hidden = good.copy()
    hidden[:, 6:14] = 0
    assert "min_visible" in str(reject_person(Person(0, hidden), size, 0.1, SelectConfig(min_size=0.05)))


def test_clips_have_the_same_people_throughout():
    one, two = Person(0, np.ones((600, 18, 3))), Person(100, np.ones((400, 18, 3)))
    rejected: Counter[str] = Counter()
    clips = make_clips([one, two, Person(490, np.ones((60, 18, 3)))], SelectConfig(max_people=2), rejected)
    spans = [(c.start, c.start + c.poses.shape[1], c.poses.shape[0]) for c in clips]
    assert spans == [(0, 100, 1), (100, 295, 2), (295, 490, 2), (500, 550, 2), (550, 600, 1)]
    assert rejected == {"more people than max_people": 1}
    alone = make_clips([one, two], SelectConfig(people="each"), rejected)
    assert [c.poses.shape[:2] for c in alone] == [(1, 200)] * 5


# Captions


def captions(tmp_path: Path, text: str, name: str = "c.csv") -> Path:
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return path


def test_captions_of_a_part_of_the_video(tmp_path):
    rows = [{"name": "a", "captions": ["x", "y"], "label": "l"}, {"name": "a", "caption": "z", "start": 2, "end": 4}]
    lines = "\n\n".join(map(json.dumps, rows))
    for path in (
        captions(tmp_path, "name,caption,label,start,end\na,x,l,,\na,y,,,\na,z,,2,4\n"),
        captions(tmp_path, lines, "c.jsonl"),
    ):
        entry = read_captions(path)["a"]
        assert entry.at(0, 2) == ["x", "y"]
        assert entry.at(2, 3) == ["x", "y", "z"]
        assert entry.label == "l"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("c.csv", "video,text\na,b\n", "begins with the columns video, text"),
        ("c.csv", "name,caption,lable\na,b,c\n", "line 2: has the column 'lable'.* did you mean label"),
        ("c.csv", "name,caption\na,b,c\n", "line 2: has more values than columns"),
        ("c.csv", "name,caption\n,b\n", "line 2: has no name"),
        ("c.csv", "name,caption,fps\na,b,x\n", "line 2: its fps is 'x'"),
        ("c.csv", "name,caption,split\na,b,dev\n", "its split is 'dev'; allowed are train, val and test"),
        ("c.csv", "name,caption,start,end\na,b,4,2\n", "its start 4.0 is not before its end 2.0"),
        ("c.csv", "name,caption\n", "has no rows"),
        ("c.jsonl", '{"name": "a"\n', "line 1: is not JSON"),
        ("c.jsonl", "[1]\n", "line 1: is not an object"),
        ("c.jsonl", '{"name": "a", "captions": "b"}\n', "its captions are not a list"),
    ],
)
def test_mistakes_in_captions_name_the_line(tmp_path, name, text, message):
    with pytest.raises(UserError, match=message):
        read_captions(captions(tmp_path, text, name))


def test_captions_that_are_not_utf_8(tmp_path):
    (tmp_path / "c.csv").write_bytes(b"name,caption\na,caf\xe9\n")
    with pytest.raises(UserError, match=r"c.csv: is not UTF-8 .* at byte 18"):
        read_captions(tmp_path / "c.csv")


# The whole way


@pytest.fixture
def recordings(tmp_path) -> Path:
    """OpenPose folders of three videos at 15 fps: COCO-18, BODY_25, and the editors' dialect in one list."""
    for v, name in enumerate(("one", "two")):
        for t, people in enumerate(walk([60, 200 + 40 * v], [3, 0], 40)):
            entries = []
            for pose in people:
                values = pose
                if v:  # BODY_25: the mid hip comes ninth, the feet last
                    values = np.concatenate([pose[:8], pose[8:9], pose[8:], np.zeros((6, 3))])
                entries.append({"person_id": [-1], "pose_keypoints_2d": values.ravel().tolist()})
            path = tmp_path / "json" / name / f"{name}_{t:012d}_keypoints.json"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"version": 1.3, "people": entries}))
    frames = [{"width": 320, "height": 240, "keypoints": person(60 + 2 * t)[:, :2].tolist()} for t in range(40)]
    (tmp_path / "json" / "three.json").write_text(json.dumps(frames))
    captions(tmp_path, "name,caption,split\none,One walks left.,train\ntwo,Two walk.,val\nthree,Three walks.,test\n")
    return tmp_path


def arguments(folder: Path, out: str = "out", **options: Any) -> list[str]:
    values = {
        "poses": folder / "json", "captions": folder / "c.csv", "out": folder / out, "fps": 15, "width": 320,
        "height": 240, "workers": 1, **options,
    }  # fmt: skip
    return ["openpose", *(f"{key}={value}" for key, value in values.items() if value != "")]


def samples(folder: Path, split: str) -> list[Any]:
    return [r.sample() for path in sorted(folder.glob(f"{split}-*.tar")) for r in read_shard(str(path))]


def test_openpose_folders_become_shards(recordings, capsys):
    prepare.main(arguments(recordings, preview=2))
    out = recordings / "out"
    assert "1 train, 1 val, 1 test clips in 3 shards" in capsys.readouterr().out
    (one,), (two,), (three,) = (samples(out, split) for split in ("train", "val", "test"))
    assert one.poses.shape == two.poses.shape == (2, 79, 18, 3)
    assert three.poses.shape == (1, 79, 18, 3)
    assert one.captions == ["One walks left."]
    assert one.meta["source"] == "one"
    mover = one.poses[np.argmax(np.ptp(one.poses[:, :, 1, 0], axis=1))]
    np.testing.assert_allclose(mover[:, 1, 0], 60 + 1.5 * np.arange(79), atol=1e-3)
    np.testing.assert_allclose(two.poses[:, 0, 8:14, 1].min(), one.poses[:, 0, 8:14, 1].min(), atol=1e-3)
    manifest = json.loads((out / "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["tracks"] == 5
    assert not (out / ".work").exists()
    assert len(list((out / "preview").glob("*.png"))) == 2


def test_videos_come_along_on_the_canvas_of_the_poses(recordings):
    films = recordings / "films"
    films.mkdir()
    for name in ("one", "two", "three"):
        shades = [np.full((240, 320, 3), 6 * t, np.uint8) for t in range(40)]
        (films / f"{name}.mp4").write_bytes(encode_video(np.stack(shades), 15))
    prepare.main(arguments(recordings, videos=films, video="true", side=160, fps=0, width=0, height=0, preview=1))
    with tarfile.open(recordings / "out" / "train-000000.tar") as tar:
        files = {m.name.split(".", 1)[1]: tar.extractfile(m).read() for m in tar}  # type: ignore[union-attr]
    frames = read_frames(files["mp4"])
    poses = np.load(io.BytesIO(files["pose.npy"]), allow_pickle=False)
    assert frames.shape == (79, 120, 160, 3)
    assert poses[..., 0].max() < 160
    shown = frames.mean((1, 2, 3)) / 6
    assert np.abs(shown - np.arange(79) / 2).max() < 1.2
    (films / "one.mp4").write_bytes(encode_video(np.zeros((20, 240, 320, 3), np.uint8), 15))
    with pytest.raises(UserError, match=r"one.mp4 ends with frame 19, its poses need frame 39"):
        prepare.main(arguments(recordings, "short", videos=films, video="true"))


def test_a_captioner_of_the_user(recordings):
    code = "def caption(scene, frames):\n    return f'{len(scene.persons)} people in {scene.num_frames} frames.'\n"
    (recordings / "mine.py").write_text(code)
    prepare.main(arguments(recordings, captions="", captioner=recordings / "mine.py", val=0, test=0))
    assert {s.captions[0] for s in samples(recordings / "out", "train")} == {
        "2 people in 79 frames.", "1 people in 79 frames.",
    }  # fmt: skip
    (recordings / "empty.py").write_text("x = 1\n")
    with pytest.raises(UserError, match=r"empty.py defines no function caption"):
        prepare.main(arguments(recordings, "other", captions="", captioner=recordings / "empty.py"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"captions": ""}, r"captions are missing; give captions=FILE.*names: one, three, two\), or captioner"),
        ({"poses": "nowhere"}, "poses=nowhere is no folder"),
        ({"fps": 0}, "one: its frame rate is not known; give fps="),
        ({"width": 0}, "one: its files do not say the size of the canvas"),
        ({"video": "true"}, "video=true needs the videos"),
        ({"val": 0.8, "test": 0.5}, "val . test is 1.3, allowed is at most 1"),
        ({"keep.min_seconds": 9}, "no clip is left of 3 videos; left out: 5 track shorter than min_seconds"),
        ({"keep.poeple": "each"}, "keep.poeple is unknown; did you mean keep.people"),
    ],
)
def test_mistakes_are_one_line_and_leave_no_shard(recordings, options, message):
    with pytest.raises(UserError, match=message):
        prepare.main(arguments(recordings, **options))
    assert not list((recordings / "out").glob("*.tar"))


def test_a_video_without_a_caption_is_named(recordings):
    captions(recordings, "name,caption\none,x\ntwoo,y\nthree,z\n")
    with pytest.raises(UserError, match="no caption for the video 'two'; the captions have 'twoo'"):
        prepare.main(arguments(recordings))


def test_a_damaged_file_is_named_and_the_next_run_goes_on(recordings):
    bad = recordings / "json" / "two" / "two_000000000007_keypoints.json"
    good = bad.read_text()
    bad.write_text(good[:100])
    with pytest.raises(UserError, match=r"two_000000000007_keypoints.json: is not JSON"):
        prepare.main(arguments(recordings))
    assert not list((recordings / "out").glob("*.tar"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in sorted(folder.iterdir()) if p.is_file()}


def test_killed_at_any_moment_it_ends_with_the_same_bytes(recordings):
    many = recordings / "json"
    for i in range(30):
        (many / f"copy{i:02d}.json").write_text((many / "three.json").read_text())
    with (recordings / "c.csv").open("a") as file:
        file.writelines(f"copy{i:02d},Copy {i}.,\n" for i in range(30))
    prepare.main(arguments(recordings, "whole", shard_size=2))
    command = [sys.executable, "prepare.py", *arguments(recordings, "killed", shard_size=2)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        command, cwd=Path(prepare.__file__).parent, env=environment, stderr=subprocess.DEVNULL, start_new_session=True
    )
    deadline = time.monotonic() + 240  # a busy machine
    while process.poll() is None and time.monotonic() < deadline:
        if len(list((recordings / "killed" / ".work").glob("copy*.json"))) > 3:
            os.killpg(process.pid, signal.SIGKILL)
            break
        time.sleep(0.005)
    assert process.wait() == -signal.SIGKILL  # and not at its end
    (recordings / "killed" / ".train-000000.ab.tar").write_bytes(b"half")
    prepare.main(arguments(recordings, "killed", shard_size=2))
    assert files_of(recordings / "killed") == files_of(recordings / "whole")


def test_it_does_not_mix_data_sets(recordings):
    prepare.main(arguments(recordings))
    before = files_of(recordings / "out")
    prepare.main(arguments(recordings))
    assert files_of(recordings / "out") == before
    captions(recordings, "name,caption,split\none,Other.,train\ntwo,Two walk.,val\nthree,Three walks.,test\n")
    with pytest.raises(UserError, match=r"holds another data set \(inputs '.*; choose another out="):
        prepare.main(arguments(recordings))


def test_real_detections(shared_dir, tmp_path):
    poses = shared_dir / "data" / "video" / "vtest_openpose"
    captions(tmp_path, "name,caption\nvtest,People walk across a street.\n")
    options = {"poses": poses, "fps": 10, "width": 768, "height": 576, "keep.people": "each", "val": 0, "test": 0}
    prepare.main(arguments(tmp_path, **options))
    found = samples(tmp_path / "out", "train")
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["rejected"]["track shorter than min_seconds"] > 50
    assert len(found) == manifest["clips"] > 45
    for sample in found:  # nobody jumps: a step of the neck of half a body would be another person
        neck, seen = sample.poses[0, :, 1, :2], sample.poses[0, :, 1, 2] > 0
        steps = np.linalg.norm(np.diff(neck, axis=0), axis=-1)[seen[1:] & seen[:-1]]
        height = np.ptp(sample.poses[0, ..., 1][sample.poses[0, ..., 2] > 0])
        assert steps.max() < 0.25 * height
