"""Changes of training samples by chance."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from configs.schema import AugmentConfig
from datamodules.augment import (
    Augment,
    jitter,
    lose_joints,
    mirror_poses,
    move_camera,
    swap_frames,
    swap_sides,
    time_warp,
)
from datamodules.sample import Sample
from datamodules.webdataset import PoseDataModule
from modules.errors import UserError
from modules.pose.scene import Clip
from modules.pose.skeleton import MIRROR
from tests.conftest import make_meta, make_poses
from tests.unit.test_datamodule import module


def sample(seed: int = 0, **more: object) -> Sample:
    poses = make_poses(np.random.default_rng(seed), 2, 40)
    meta = make_meta("A man on the left waves his Right hand.", **more)
    return Sample("k", poses, [str(meta["caption"])], meta)


@pytest.mark.parametrize(
    ("text", "other"),
    [
        ("waves his left hand", "waves his right hand"),
        ("Left, RIGHT and left-handed", "Right, LEFT and right-handed"),
        ("the leftmost walks rightwards", "the rightmost walks leftwards"),
        ("a bright light is leftover, rightly", "a bright light is leftover, rightly"),
    ],
)
def test_words_of_sides_are_exchanged(text, other):
    assert swap_sides(text) == other
    assert swap_sides(other) == text


def test_a_mirrored_sample_is_mirrored_in_all_it_says():
    before = sample(label="wave - right", actors=[{"side": "right", "direction": "left", "n": 1}] * 2)
    after = Augment(mirror=1.0)(before, np.random.default_rng(0))
    assert after.captions == ["A man on the right waves his Left hand."]
    assert after.meta["caption"] == after.captions[0]
    assert after.meta["actors"][0] == {"side": "left", "direction": "right", "n": 1}
    assert after.meta["label"] == "wave - left"
    seen = before.poses[..., 2] > 0
    np.testing.assert_allclose(after.poses[..., list(MIRROR), 0][seen], 64 - before.poses[..., 0][seen])
    np.testing.assert_allclose(mirror_poses(after.poses, 64), before.poses, atol=1e-5)


def test_unseen_joints_stay_unseen_and_zero():
    before = sample()
    everything = Augment(mirror=0.5, jitter=0.05, joint_loss=0.1, side_swap=0.1, time_warp=0.3, camera=0.2)
    for seed in range(10):
        poses = everything(before, np.random.default_rng(seed)).poses
        assert poses.dtype == np.float32
        assert np.isfinite(poses).all()
        assert (poses[poses[..., 2] == 0] == 0).all()


def test_each_change_does_what_it_says():
    rng, poses = np.random.default_rng(0), sample().poses
    seen = poses[..., 2] > 0
    noise = (jitter(poses, 0.01, rng) - poses)[seen][:, :2]
    body = np.ptp(poses[0][seen[0]][:, :2], axis=0).max()
    assert noise.std() == pytest.approx(0.01 * body, rel=0.3)
    lost = [(lose_joints(poses, 0.1, np.random.default_rng(i))[..., 2] == 0)[seen].mean() for i in range(60)]
    assert np.mean(lost) == pytest.approx(0.1, rel=0.3)
    swapped = swap_frames(poses, 0.3, rng)
    changed = (swapped != poses).any((2, 3))
    assert 0.15 < changed.mean() < 0.45
    np.testing.assert_array_equal(swapped[changed], poses[..., list(MIRROR), :][changed])
    lengths = {time_warp(poses, 0.25, np.random.default_rng(i)).shape[1] for i in range(60)}
    assert 31 <= min(lengths) < 35 < 48 < max(lengths) <= 54
    full = np.where(seen[..., None], poses, [30, 30, 1]).astype(np.float32)
    slow = time_warp(full, 0.25, np.random.default_rng(3))
    np.testing.assert_allclose(slow[:, [0, -1]], full[:, [0, -1]], atol=1e-5)
    moved = move_camera(full, (64, 64), 0.2, rng)
    inside = moved[..., 2] > 0
    ratio = np.ptp(moved[inside][:, :2], axis=0) / np.ptp(full[inside][:, :2], axis=0)
    assert ratio[0] == pytest.approx(ratio[1], rel=1e-3)


def test_the_data_module_augments_training_alone_and_reproducibly(make_shards):
    path = make_shards(train=(2, 4), val=(1, 4))

    def encode(clip: Clip, rng: np.random.Generator, train: bool) -> list[Any]:
        return [{"key": clip.key, "start": clip.scene.joints.sum().item()}]

    def sums(role: str, **options: Any) -> list[float]:
        data = module(path, encode=encode, **options)
        loader = data.train_dataloader() if role == "train" else data.val_dataloader()
        return [value for batch in loader for value in batch["start"]]

    jittered = {"augment": {"jitter": 0.02}}
    assert sums("train", **jittered) == sums("train", **jittered) != sums("train")
    assert sums("val", **jittered) == sums("val")


def test_shares_are_checked():
    with pytest.raises(UserError, match=r"data.augment.jitter is 2; allowed is from 0 to 1"):
        AugmentConfig(jitter=2)
    assert AugmentConfig().__dict__ == Augment().__dict__, "the settings and what they set"


def test_a_video_cannot_be_mirrored(tmp_path):
    options = {"encode": lambda *a: [], "collate": dict, "batch_size": 1, "augment": {"mirror": 0.5}}
    with pytest.raises(UserError, match=r"data.augment.mirror, time_warp and camera cannot go with a stage that reads"):
        PoseDataModule(path=str(tmp_path), columns=("pose", "video"), **options)
