import cv2
import numpy as np
import pytest

from datamodules.synthetic.clips import synthesise
from modules.metrics.video import clothes_over_time, figure_iou, read_colours, segment
from modules.pose.appearance import BACKGROUNDS, draw_background
from modules.pose.figures import figure_mask
from modules.pose.video import encode_video, read_frames


@pytest.fixture(scope="module")
def clips():
    """Test clips as they come out of their video file, every tenth frame, with the true masks."""
    found = []
    for index in range(16):
        clip = synthesise(11, "test", index)
        clip.pose, clip.depths = clip.pose[:, ::10], clip.depths[:, ::10]
        frames = read_frames(encode_video(clip.frames(), 30, lossless_colour=True, crf=12))
        masks = np.stack([figure_mask(p[..., :2], p[..., 2] > 0, 64, 64) > 0.5 for p in clip.pose.swapaxes(0, 1)])
        found.append((clip, frames, masks))
    return found


def test_the_segmenter_finds_the_figures_of_real_clips(clips):
    scores = [figure_iou(segment(frames), masks).mean() for _, frames, masks in clips]
    assert np.mean(scores) > 0.95
    assert min(scores) > 0.88


def test_another_clip_has_another_figure(clips):
    masks = [masks[:5] for *_, masks in clips]
    assert np.mean([figure_iou(a, b).mean() for a, b in zip(masks, masks[1:], strict=False)]) < 0.4


@pytest.mark.parametrize("name", BACKGROUNDS)
def test_an_empty_video_has_no_figure(name):
    noise = np.random.default_rng(0).integers(-6, 7, (4, 64, 64, 3))
    frames = np.clip(draw_background(name, 64, 64) + noise, 0, 255).astype(np.uint8)
    assert segment(frames).mean() < 0.002


def test_the_segmenter_does_not_depend_on_the_palette(clips):
    """Any permutation of the colour channels gives nearly the same figures."""
    scores = [figure_iou(segment(frames[..., ::-1]), masks).mean() for _, frames, masks in clips[:6]]
    assert np.mean(scores) > 0.9


@pytest.mark.parametrize("blur", [0.0, 1.2])
def test_colours_are_read_back_from_sharp_and_blurred_clips(clips, blur):
    right = []
    for clip, frames, _ in clips:
        shown = np.stack([cv2.GaussianBlur(frame, (0, 0), blur) for frame in frames]) if blur else frames
        pose = clip.pose.swapaxes(0, 1)  # (F, P, 18, 3)
        background, clothes = read_colours(shown, segment(shown), pose[..., :2], pose[..., 2] > 0)
        right.append(background == clip.meta["background"])
        for (shirt, trousers), actor in zip(clothes, clip.meta["actors"], strict=True):
            right += [shirt == actor["shirt"], trousers == actor["trousers"]]
    assert np.mean(right) > 0.95


def test_clothes_that_cannot_be_seen_have_no_name(clips):
    clip, frames, masks = clips[0]
    pose = clip.pose.swapaxes(0, 1)
    _, clothes = read_colours(frames, masks, pose[..., :2], np.zeros(pose.shape[:-1], bool))
    assert set(clothes) == {("", "")}


def test_overlap_of_masks():
    a, b = np.zeros((3, 4, 4), bool), np.zeros((3, 4, 4), bool)
    a[0, :2], b[0, :2] = True, True  # the same
    a[1, :2], b[1, 1:3] = True, True  # one of three rows in common
    np.testing.assert_allclose(figure_iou(a, b), [1, 1 / 3, 1])


def test_colours_over_time_see_a_change_of_clothes(clips):
    clip, frames, masks = clips[0]
    joints, seen = clip.pose[..., :2].swapaxes(0, 1), clip.pose[..., 2].swapaxes(0, 1) > 0
    still = clothes_over_time(frames, masks, joints, seen)
    assert still.shape == (len(frames), joints.shape[1], 2, 3)
    assert np.nanmax(np.linalg.norm(still - np.nanmedian(still, axis=0), axis=-1)) < 15
    changed = frames.copy()
    changed[-1][masks[-1]] = 255 - changed[-1][masks[-1]]
    moved = clothes_over_time(changed, masks, joints, seen)
    assert np.array_equal(moved[:-1], still[:-1], equal_nan=True)
    assert np.nanmin(np.linalg.norm(moved[-1] - still[-1], axis=-1)) > 20
    assert np.isnan(clothes_over_time(frames, np.zeros_like(masks), joints, seen)).all()
