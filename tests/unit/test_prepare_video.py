"""Videos through a pose estimator; the networks themselves are replaced, their weights are not part of the project."""

from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import prepare
from datamodules.shards import find_shards, read_shard
from modules.errors import UserError
from modules.pose.video import encode_video
from tests.unit.test_sources import person

FRAMES = 45


@pytest.fixture
def videos(tmp_path) -> Path:
    """A white column that moves by 2 px a frame, from the tenth frame on."""
    frames = np.zeros((FRAMES, 160, 240, 3), np.uint8)
    for t in range(10, FRAMES):
        frames[t, :, 40 + 2 * t : 50 + 2 * t] = 255
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mp4").write_bytes(encode_video(frames, 30))
    (tmp_path / "c.csv").write_text("name,caption\na,A column moves.\n")
    return tmp_path


class FakeBody:
    """Finds the column, as rtmlib's Body would find a person."""

    def __init__(self, **options: Any) -> None:
        assert options["to_openpose"]

    def det_model(self, picture: np.ndarray) -> np.ndarray:
        columns = np.flatnonzero(picture[80, :, 0] > 128)
        return np.array([[columns[0], 0, columns[-1], 160]]) if len(columns) else np.zeros((0, 4))

    def pose_model(self, picture: np.ndarray, bboxes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        poses = np.stack([person((box[0] + box[2] + 1) / 2, 80) for box in bboxes])
        return poses[..., :2], poses[..., 2]


def run(folder: Path, *items: str) -> None:
    arguments = [f"videos={folder}/films", f"captions={folder}/c.csv", f"out={folder}/out", "workers=1"]
    prepare.main(["video", *arguments, *items])


def test_videos_become_shards(videos, monkeypatch):
    monkeypatch.setitem(sys.modules, "rtmlib", types.SimpleNamespace(Body=FakeBody))
    run(videos, "video=true")
    (shard,) = find_shards(videos / "out", "train")
    (sample,) = [r.sample() for r in read_shard(shard, ("pose", "video"))]
    assert sample.poses.shape == (1, FRAMES - 10, 18, 3)
    np.testing.assert_allclose(sample.poses[0, :, 1, 0], 45 + 2 * np.arange(10, FRAMES), atol=1.5)
    assert sample.video


def test_without_the_estimator(videos, monkeypatch):
    monkeypatch.setitem(sys.modules, "rtmlib", None)
    with pytest.raises(UserError, match=r"the pose estimator is not installed .*pip install 'pose-director\[video\]'"):
        run(videos)
    with pytest.raises(UserError, match=r"pose_model=nowhere.onnx is no file"):
        run(videos, "pose_model=nowhere.onnx")


def test_weights_that_cannot_be_loaded(videos, monkeypatch):
    def fail(**options: Any) -> None:
        raise RuntimeError("no\nnetwork")

    monkeypatch.setitem(sys.modules, "rtmlib", types.SimpleNamespace(Body=fail))
    with pytest.raises(UserError, match=r"cannot be loaded \(no network\); give the weights with detector=FILE"):
        run(videos, "device=cuda")
    assert not list((videos / "out").glob("*.tar"))
