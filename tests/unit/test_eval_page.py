"""The page of a report, the page of blind pairs, TensorBoard, foreign networks, silhouettes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from configs.eval_schema import EvalOptions
from modules.errors import UserError
from modules.evaluation.claim import viewer_side
from modules.evaluation.foreign import FrechetVideoDistance, PoseEstimator, VideoFeatures, clip_score
from modules.evaluation.page import write_page
from modules.evaluation.shown import Shown
from modules.evaluation.tensorboard import log_report
from modules.evaluation.video import VideoScores, open_table, score_video
from modules.evaluation.votes import write_votes
from modules.metrics.intervals import Estimate
from modules.metrics.silhouettes import SilhouetteReader, describe
from modules.metrics.video import background_flicker
from modules.pose.scene import Clip, Scene
from modules.reports import Column, Report, Table, read_report, write_report

VIDEO = np.random.default_rng(0).integers(0, 255, (6, 16, 16, 3), np.uint8)


def make_report() -> Report:
    table = Table("chain <1>", [Column("action", "share", "up"), Column("KID", "fine", "down")], notes=["5 < 6"])
    table.add("real", action=Estimate(1.0), KID=Estimate(0.01, -0.02, 0.04))
    table.add("ours: all", action=Estimate(0.5, 0.25, 0.65), KID=Estimate(0.5, 0.4, 0.6))
    table.add("rival: diffusion", action=0.25, KID=Estimate(0.3, 0.2, 0.4))
    return Report("chain", "test", {"evaluator": "runs/x sha256:abc"}, 3, [table], 1.0)


def test_intervals_are_kept_and_shown(tmp_path: Path) -> None:
    report = make_report()
    found = read_report(write_report(tmp_path, report))
    assert found == report
    assert found.tables[0].rows[1].intervals["action"] == [0.25, 0.65]
    text = (tmp_path / "test.md").read_text()
    assert "50.0% ± 20.0" in text
    assert "0.0100 ± 0.0300" in text


def test_the_page_needs_nothing_else(tmp_path: Path, make_scene: Callable[..., Scene]) -> None:
    history = tmp_path / "history.jsonl"
    history.write_text("".join(json.dumps({"step": s, "val/loss": 1 / s}) + "\n" for s in (1, 2, 3)))
    scene = make_scene(frames=20)
    shown = [Shown("A <b> person", {"real": scene, "ours": scene.keys(10)}, VIDEO, 7.5)]
    page = write_page(tmp_path, make_report(), shown, {"llm": history}).read_text()
    assert page.startswith("<!doctype html>")
    assert "<script" not in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)
    assert page.count("data:image/png;base64,") == 3  # two strips, and what the video shows before it plays
    assert page.count("data:video/mp4;base64,") == 1
    assert "chain &lt;1&gt;" in page
    assert "A &lt;b&gt; person" in page
    assert "llm: val/loss" in page
    assert 'title="0.25 to 0.65"' in page
    # The best of ours and the rivals: action ours, KID the rival's; real motion does not compete.
    rows = re.findall(r"<tr.*?</tr>", page)
    assert [row.count('class="best"') for row in rows] == [0, 0, 1, 1]
    assert page.count("<polyline") == 1


def test_scalars_are_logged(tmp_path: Path) -> None:
    log_report(tmp_path, make_report())
    events = EventAccumulator(str(tmp_path / "tensorboard/test")).Reload()
    assert events.Scalars("chain <1>/action/ours: all")[0].value == 0.5


def test_blind_pairs_do_not_give_themselves_away(tmp_path: Path) -> None:
    other = VIDEO[::-1].copy()
    path, key = write_votes(tmp_path, "test", [(f"caption {i}", VIDEO, other) for i in range(12)], 7.5, seed=0)
    page, answers = path.read_text(), json.loads(key.read_text())
    assert "director" not in page
    assert "without" not in page
    assert page.count("<fieldset") == 12
    videos = re.findall(r'src="(data:video[^"]+)"', page)
    assert len(set(videos)) == 2
    first = [answers["pairs"][f"pair{i}"]["A"] for i in range(12)]
    assert set(first) == {"first", "second"}
    # The key says which video stands where.
    of = dict(zip(first, videos[::2], strict=True))
    assert all(of[name] == video for name, video in zip(first, videos[::2], strict=True))


class Mean(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.mean((2, 3, 4))


def test_fvd_of_a_scripted_network(tmp_path: Path) -> None:
    path = tmp_path / "mean.pt"
    torch.jit.script(Mean()).save(str(path))  # type: ignore[attr-defined]
    distance = FrechetVideoDistance(VideoFeatures(str(path)))
    rng = np.random.default_rng(0)
    for _ in range(30):
        video = rng.integers(0, 200, (5, 8, 8, 3), np.uint8)
        distance.update(video, video + np.uint8(30))
    value, reason = distance.compute()
    assert reason is None
    assert value == pytest.approx(3 * (30 / 127.5) ** 2, rel=0.02)
    few = FrechetVideoDistance(VideoFeatures(str(path)))
    few.update(VIDEO, VIDEO)
    assert few.compute() == (None, "No FVD: 1 videos, and 3 dimensions need 30 (videos=).")


def test_foreign_networks_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file; name a TorchScript file"):
        VideoFeatures(str(tmp_path / "none.pt"))
    (tmp_path / "text.pt").write_text("no network")
    with pytest.raises(UserError, match="is not TorchScript"):
        VideoFeatures(str(tmp_path / "text.pt"))
    with pytest.raises(UserError, match="no folder with a CLIP model"):
        clip_score(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match="cannot be read as a CLIP model"):
        clip_score(str(tmp_path))


class BrightestPixels(torch.nn.Module):
    """Joint i is where the picture has the grey 100 + 8 i; one person."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        width = x.shape[3]
        grey = (x.mean(1) * 255).round().flatten(1)  # (B, H W)
        levels = 100 + 8 * torch.arange(18)
        distance, place = (grey[:, None] - levels[None, :, None]).abs().min(2)
        found = [place % width + 0.5, place.div(width, rounding_mode="floor") + 0.5, (distance < 3).float()]
        return torch.stack(found, -1)[:, None]


def test_an_estimator_finds_what_was_drawn(tmp_path: Path, make_scene: Callable[..., Scene]) -> None:
    path = tmp_path / "estimator.pt"
    torch.jit.script(BrightestPixels()).save(str(path))  # type: ignore[attr-defined]
    estimator = PoseEstimator(str(path))
    scene = make_scene(persons=1, frames=3)
    person, grid = scene.persons[0], np.arange(18)
    person.visibility[:] = True
    person.joints[:] = np.stack([grid % 4 * 12 + 4.5, grid // 4 * 10 + 4.5], -1)
    video = np.zeros((3, scene.height, scene.width, 3), np.uint8)
    for joint, (x, y) in enumerate(person.joints[0].astype(int)):
        video[:, y, x] = 100 + 8 * joint
    clip = Clip("a", scene, "A person waves.")
    score = score_video(video, scene, scene, scene, clip, estimator)
    assert score.keypoints == (54, 54)
    video[0, person.joints[0, 5, 1].astype(int), person.joints[0, 5, 0].astype(int)] = 0  # a joint is not found
    assert score_video(video, scene, scene, scene, clip, estimator).keypoints == (53, 54)
    person.visibility[:, :4] = False  # neck: without a torso there is no measure
    assert score_video(video, scene, scene, scene, clip, estimator).keypoints == (0, 0)
    scores, table = VideoScores(["a"]), open_table("videos", [], estimated=True)
    scores.add(0, score)
    scores.add_row(table, "ours")
    assert table.rows[0].values["PCK, estimated"] == 1.0


class TwoNumbers(torch.nn.Module):
    """An estimator that forgets the confidence."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros(x.shape[0], 1, 18, 2)


def test_an_estimator_of_other_shapes(tmp_path: Path) -> None:
    torch.jit.script(Mean()).save(str(tmp_path / "mean.pt"))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"estimator=.*mean.pt does not take \(B, 3, H, W\)"):
        PoseEstimator(str(tmp_path / "mean.pt"))(VIDEO)
    torch.jit.script(torch.nn.Flatten()).save(str(tmp_path / "flat.pt"))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"gives \(6, 768\) for 6 frames; it must give \(6, P, 18, 3\)"):
        PoseEstimator(str(tmp_path / "flat.pt"))(VIDEO)
    torch.jit.script(TwoNumbers()).save(str(tmp_path / "two.pt"))  # type: ignore[attr-defined]
    with pytest.raises(UserError, match=r"gives \(6, 1, 18, 2\) for 6 frames"):
        PoseEstimator(str(tmp_path / "two.pt"))(VIDEO)
    with pytest.raises(UserError, match="estimator looks at rendered videos, and videos is 0"):
        EvalOptions(estimator="pose.pt", videos=0)
    with pytest.raises(UserError, match="estimator=none.pt: no such file"):
        PoseEstimator("none.pt")


def bar(at: int, frames: int = 8) -> np.ndarray:
    """A standing figure that waves a bar on one side."""
    masks = np.zeros((frames, 32, 32), bool)
    masks[:, 8:28, 14:18] = True
    for i in range(frames):
        row = 8 + (i % 4) * 2
        masks[i, row : row + 2, min(at, 16) : max(at, 16)] = True
    return masks


def test_silhouettes_tell_sides_apart_at_any_place_and_size() -> None:
    features = np.stack([describe(bar(at)) for at in (4, 5, 6, 26, 27, 28)])
    reader = SilhouetteReader.fit(features, ["left"] * 3 + ["right"] * 3)
    moved = np.roll(bar(5), (2, 3), axis=(1, 2))
    large = bar(27).repeat(2, axis=1).repeat(2, axis=2)
    assert reader.read(np.stack([describe(moved), describe(large)])) == ["left", "right"]
    assert reader.read(describe(moved)[None], among=("right",)) == ["right"]
    assert not describe(np.zeros((4, 32, 32), bool)).any()


def test_the_side_of_the_picture(make_scene: Callable[..., Scene]) -> None:
    scene = make_scene(persons=1)
    assert viewer_side(scene, "walk", "left") == ""
    assert viewer_side(scene, "wave", "both") == ""
    sides = {viewer_side(s, "wave", "left") for s in (scene, scene.mirrored())}
    assert sides <= {"left", "right", ""}
    person = scene.persons[0]
    person.visibility[:], person.joints[:, 7], person.joints[:, 1] = True, (50, 10), (30, 10)
    assert viewer_side(scene, "wave", "left") == "right"


def test_flicker_is_the_change_of_the_background() -> None:
    frames, masks = np.full((4, 12, 12, 3), 100, np.uint8), np.zeros((4, 12, 12), bool)
    masks[:, 4:6, 4:6] = True
    frames[:, 4:6, 4:6] = np.arange(4, dtype=np.uint8)[:, None, None, None] * 50
    assert background_flicker(frames, masks) == 0
    frames[1::2, 9:] = 110
    assert 0 < background_flicker(frames, masks) < 10  # type: ignore[operator]
    assert background_flicker(frames[:1], masks[:1]) is None
