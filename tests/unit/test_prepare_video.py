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


def write_networks(folder: Path) -> list[str]:
    """Networks in the format of YOLOX (with its choice of boxes) and of RTMPose, which find the column."""
    onnx = pytest.importorskip("onnx", reason="needs onnx to make networks: pip install onnx")
    make, side, width, height = onnx.helper, 416, 192, 256

    def save(name: str, nodes: list[Any], shapes: list[Any], inputs: list[int], constants: dict[str, Any]) -> str:
        values = [onnx.numpy_helper.from_array(np.array(value), key) for key, value in constants.items()]
        outputs = [make.make_tensor_value_info(key, onnx.TensorProto.FLOAT, shape) for key, shape in shapes]
        picture = make.make_tensor_value_info("picture", onnx.TensorProto.FLOAT, inputs)
        graph = make.make_graph(nodes, name, [picture], outputs, values)
        model = make.make_model(graph, opset_imports=[make.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        (folder / f"{name}.onnx").write_bytes(model.SerializeToString())
        return str(folder / f"{name}.onnx")

    node = make.make_node
    detector = save(
        "detector",
        [
            node("Slice", ["picture", "top", "below", "rows"], ["band"]),  # above the padding
            node("ReduceMin", ["band"], ["lightness"], axes=[1, 2], keepdims=0),  # of each column
            node("Greater", ["lightness", "limit"], ["white"]),
            node("Cast", ["white"], ["columns"], to=onnx.TensorProto.FLOAT),
            node("ArgMax", ["columns"], ["left"], axis=1),
            node("ArgMax", ["columns"], ["right"], axis=1, select_last_index=1),
            node("Cast", ["left"], ["x0"], to=onnx.TensorProto.FLOAT),
            node("Cast", ["right"], ["x1"], to=onnx.TensorProto.FLOAT),
            node("ReduceMax", ["columns"], ["score"], axes=[1], keepdims=1),
            node("Concat", ["x0", "y0", "x1", "y1", "score"], ["box"], axis=1),
            node("Reshape", ["box", "shape"], ["boxes"]),
        ],
        [("boxes", [1, 1, 5])],
        [1, 3, side, side],
        {
            "top": [20], "below": [200], "rows": [2], "limit": np.float32(200), "shape": [1, 1, 5],
            "y0": np.float32([[0]]), "y1": np.float32([[277]]),
        },
    )  # fmt: skip
    # The 17 joints of COCO at fixed places of the person's crop, one bin (half a pixel) surely each.
    places = np.linspace([60, 40], [130, 230], 17).round().astype(int)
    bins = {"x": np.zeros((1, 17, 2 * width), np.float32), "y": np.zeros((1, 17, 2 * height), np.float32)}
    for joint, (x, y) in enumerate(places):
        bins["x"][0, joint, 2 * x] = bins["y"][0, joint, 2 * y] = 0.9
    mean = node("ReduceMean", ["picture"], ["mean"], axes=[0, 1, 2, 3], keepdims=0)
    nodes = [mean, node("Mul", ["mean", "zero"], ["z"])]
    nodes += [node("Add", [f"bins_{axis}", "z"], [f"simcc_{axis}"]) for axis in "xy"]
    shapes = [("simcc_x", [1, 17, 2 * width]), ("simcc_y", [1, 17, 2 * height])]
    constants = {"zero": np.float32(0), "bins_x": bins["x"], "bins_y": bins["y"]}
    return [detector, save("pose", nodes, shapes, [1, 3, height, width], constants)]


def test_the_real_estimator_with_networks_of_ours(videos):
    pytest.importorskip("rtmlib", reason="needs rtmlib: pip install 'pose-director[video]'")
    detector, pose = write_networks(videos)
    size = ["detector_width=416", "detector_height=416", "keep.min_visible=0.3"]
    run(videos, f"detector={detector}", f"pose_model={pose}", *size)
    (shard,) = find_shards(videos / "out", "train")
    (sample,) = [r.sample() for r in read_shard(shard)]
    assert sample.poses.shape == (1, FRAMES - 10, 18, 3)
    assert (sample.poses[..., 2] > 0.8).all()
    steps = np.diff(sample.poses[0, :, :, 0], axis=0)
    np.testing.assert_allclose(steps.mean(0), 2, atol=0.15)  # px a frame
    order = [0, 15, 14, 17, 16, 5, 2, 6, 3, 7, 4, 11, 8, 12, 9, 13, 10]  # COCO's joints in OpenPose's order
    assert (np.diff(sample.poses[0, 0, order, 1]) > 0).all()


def test_without_the_estimator(videos, monkeypatch):
    monkeypatch.setitem(sys.modules, "rtmlib", None)
    with pytest.raises(UserError, match=r"the pose estimator is not installed .*pip install 'pose-director\[video\]'"):
        run(videos)
    with pytest.raises(UserError, match=r"pose_model=nowhere.onnx is no file"):
        run(videos, "pose_model=nowhere.onnx")
    (videos / "rtmo-m.onnx").touch()
    with pytest.raises(UserError, match=r"rtmlib takes every path with 'rtmo' in it for RTMO"):
        run(videos, f"pose_model={videos}/rtmo-m.onnx")


def test_weights_that_cannot_be_loaded(videos, monkeypatch):
    def fail(**options: Any) -> None:
        raise RuntimeError("no\nnetwork")

    monkeypatch.setitem(sys.modules, "rtmlib", types.SimpleNamespace(Body=fail))
    with pytest.raises(UserError, match=r"cannot be loaded \(no network\); give the weights with detector=FILE"):
        run(videos, "device=cuda")
    assert not list((videos / "out").glob("*.tar"))
