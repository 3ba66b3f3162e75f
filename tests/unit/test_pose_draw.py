"""Drawing of skeletons, and video files."""

from __future__ import annotations

import av
import numpy as np
import pytest

from modules.errors import UserError
from modules.pose.draw import draw_boxes, draw_pose, draw_skeleton, pose_strip, poses_video, side_by_side, with_label
from modules.pose.letterbox import Letterbox
from modules.pose.skeleton import JOINT_COLORS, LIMBS
from modules.pose.video import encode_video, read_frames, write_video

SIZES = [(64, 64), (320, 512), (512, 512), (45, 80)]


def spread_pose(size: tuple[int, int]) -> np.ndarray:
    """18 joints on a grid: none hides another."""
    rows, columns = np.divmod(np.arange(18), 5)
    return np.stack([(columns + 0.5) / 5 * size[1], (rows + 0.5) / 4 * size[0]], -1)[None]


@pytest.mark.parametrize("size", SIZES)
def test_every_joint_has_its_colour_at_its_place(size):
    pose = spread_pose(size)
    picture = draw_pose(pose, np.ones((1, 18), bool), size)
    assert picture.shape == (*size, 3)
    for (x, y), color in zip(pose[0], JOINT_COLORS, strict=True):
        # Within one pixel: a joint may lie on the border of four.
        around = picture[max(int(y) - 1, 0) : int(y) + 2, max(int(x) - 1, 0) : int(x) + 2].reshape(-1, 3).astype(int)
        assert np.abs(around - color).sum(-1).min() < 100


@pytest.mark.parametrize("size", SIZES)
def test_a_joint_is_drawn_where_it_is_to_a_part_of_a_pixel(size):
    seen = np.zeros((1, 18), bool)
    seen[0, 0] = True
    rows, columns = np.mgrid[: size[0], : size[1]] + 0.5
    for offset in np.random.default_rng(0).uniform(-1, 1, (8, 2)):
        pose = np.zeros((1, 18, 2))
        pose[0, 0] = np.array([size[1], size[0]]) / 2 + offset
        red = draw_pose(pose, seen, size)[..., 0].astype(float)
        centre = [(red * columns).sum() / red.sum(), (red * rows).sum() / red.sum()]
        np.testing.assert_allclose(centre, pose[0, 0], atol=0.2)


def test_unseen_joints_and_their_limbs_are_not_drawn():
    pose = spread_pose((512, 512))
    assert not draw_pose(pose, np.zeros((1, 18), bool), (512, 512)).any()
    for joint in range(18):
        seen = np.ones((1, 18), bool)
        seen[0, joint] = False
        moved = pose.copy()
        moved[0, joint] = [3, 500]
        np.testing.assert_array_equal(draw_pose(pose, seen, (512, 512)), draw_pose(moved, seen, (512, 512)))


def test_every_limb_is_drawn():
    pose = spread_pose((512, 512))
    for a, b in LIMBS:
        seen = np.zeros((1, 18), bool)
        seen[0, [a, b]] = True
        x, y = pose[0, [a, b]].mean(0).astype(int)
        assert draw_pose(pose, seen, (512, 512))[y, x].any()


def test_no_coordinate_breaks_the_drawing():
    pose = spread_pose((64, 64))
    pose[0, :6] = [[np.nan, 3], [np.inf, 3], [1e30, -1e30], [-500, 30], [2**31, 2**31], [64, 64]]
    assert draw_pose(pose, np.ones((1, 18), bool), (64, 64)).any()


def test_a_scene_is_drawn_through_the_letterbox(make_scene):
    scene = make_scene(width=128, height=64)
    np.testing.assert_array_equal(
        draw_skeleton(scene, 3, (64, 64)),
        draw_pose(Letterbox((128, 64), (64, 64)).scene(scene).joints[:, 3], scene.visibility[:, 3], (64, 64)),
    )
    assert draw_skeleton(scene, 0).shape == (64, 128, 3)
    video = poses_video(scene, (48, 64))
    assert video.shape == (45, 48, 64, 3)
    np.testing.assert_array_equal(video[7], draw_skeleton(scene, 7, (48, 64)))


def test_all_people_are_drawn(make_scene):
    scene = make_scene()
    both = draw_skeleton(scene, 0, (256, 256)).any(-1)
    for person in range(2):
        alone = draw_pose(scene.joints[[person], 0] * 4, scene.visibility[[person], 0], (256, 256))
        assert not (alone.any(-1) & ~both).any()


def test_boxes_are_at_their_place(make_scene):
    scene = make_scene(persons=1)
    picture = draw_boxes(np.zeros((640, 640, 3), np.uint8), scene)
    rows, columns = np.nonzero(picture.any(-1))
    found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
    np.testing.assert_allclose(found, scene.persons[0].box * 10, atol=2)


def test_a_strip_has_one_labelled_picture_a_time(make_scene):
    scene = make_scene()
    strip = pose_strip(scene, 5, (64, 64))
    label = strip.shape[0] - 64
    assert strip.shape[1] == 5 * 64 + 4 * 2
    assert label > 8
    for i, index in enumerate([0, 11, 22, 33, 44]):
        panel = strip[:, i * 66 : i * 66 + 64]
        np.testing.assert_array_equal(panel[:64], draw_boxes(draw_skeleton(scene, index, (64, 64)), scene))
        assert panel[64:].any()
    assert pose_strip(scene.keys(30), 5, (64, 64), boxes=False).shape[1] == 2 * 64 + 2
    assert pose_strip(make_scene(width=128, height=64)).shape[1] == 8 * 320 + 7 * 2


def test_labels_fit_the_width():
    for width in (32, 64, 512):
        picture = with_label(np.zeros((8, width, 3), np.uint8), "12.34 s")
        assert picture.shape[1] == width
        assert not picture[8:, 0].any()
        assert not picture[8:, -1].any()


def test_side_by_side_pads():
    one, two = np.full((4, 5, 3), 9, np.uint8), np.full((6, 3, 3), 8, np.uint8)
    row = side_by_side([one, two], gap=1)
    assert row.shape == (6, 9, 3)
    assert (row[:4, :5] == 9).all()
    assert not row[4:, :5].any()
    assert (row[:, 6:] == 8).all()
    videos = side_by_side([np.stack([one, one + 1]), np.stack([two] * 3)])
    assert videos.shape == (3, 6, 10, 3)
    assert (videos[2, :4, :5] == 10).all()


# Video files


@pytest.fixture
def frames() -> np.ndarray:
    rows, columns = np.mgrid[:64, :64]
    pictures = [np.stack([columns * 2 + t, rows * 3, 90 + columns - rows], -1) for t in range(40)]
    return np.stack(pictures).astype(np.uint8)


@pytest.mark.parametrize(("lossless", "tolerance"), [(True, 1.5), (False, 2.5)])
def test_frames_come_back_by_their_number(frames, lossless, tolerance):
    data = encode_video(frames, 30, lossless_colour=lossless)
    back = read_frames(data)
    assert back.shape == frames.shape
    assert np.abs(back.astype(float) - frames).mean() < tolerance
    np.testing.assert_array_equal(read_frames(data, [39, 0, 17, 17]), back[[39, 0, 17, 17]])
    np.testing.assert_array_equal(read_frames(data, np.arange(5, 20, 4)), back[5:20:4])
    assert encode_video(frames, 30, lossless_colour=lossless) == data


@pytest.mark.parametrize("fps", [30, 7.5, 29.97])
def test_video_files_have_their_rate_and_any_size(frames, tmp_path, fps):
    write_video(tmp_path / "a.mp4", frames[:, :63, :51], fps)
    assert read_frames(tmp_path / "a.mp4").shape == (40, 64, 52, 3)
    with av.open(str(tmp_path / "a.mp4"), "r") as container:
        stream = container.streams.video[0]
        assert float(stream.average_rate or 0) == pytest.approx(fps, rel=1e-3)
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert stream.codec_context.name == "h264"


def test_bad_videos_are_refused(frames, tmp_path):
    data = encode_video(frames, 30)
    with pytest.raises(UserError, match="the video has no frame 40"):
        read_frames(data, [3, 40])
    with pytest.raises(UserError, match="cannot be read as a video"):
        read_frames(b"no video")
    with pytest.raises(UserError, match="nothing.mp4 cannot be read as a video"):
        read_frames(tmp_path / "nothing.mp4")
    with pytest.raises(ValueError, match="indices must be"):
        read_frames(data, [-1])
    with pytest.raises(ValueError, match=r"got float64 \(40, 64, 64, 3\)"):
        write_video(tmp_path / "a.mp4", frames.astype(float), 30)
    assert not list(tmp_path.iterdir())
