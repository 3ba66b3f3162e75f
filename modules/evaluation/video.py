"""Scores of rendered videos against the poses that they should show and the captions that they should obey.

Letters: F frames, P persons, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from modules.metrics.intervals import ClipAverages, ClipTable
from modules.metrics.pose import detected_keypoints
from modules.metrics.video import background_flicker, figure_iou, read_colours, segment
from modules.pose.figures import figure_mask
from modules.pose.letterbox import Letterbox
from modules.pose.scene import Clip, Scene
from modules.reports import Column, Table

_COLUMNS = [
    Column("figure IoU", "number", "up"),
    Column("IoU with another clip's figure", "number"),
    Column("area ratio", "number"),
    Column("area within 50 %", "share", "up"),
    Column("background", "share", "up"),
    Column("clothes", "share", "up"),
    Column("flicker", "number", "down"),
    Column("videos", "count"),
]
_ESTIMATED = "PCK, estimated"
_AVERAGES = (
    "figure IoU", "IoU with another clip's figure", "area within 50 %", "background", "clothes", "flicker", _ESTIMATED
)  # fmt: skip
_NOTES = [
    "figure IoU: of the figures found in the video's pixels with those drawn from its own poses, mean over frames.",
    "area ratio: area of the figures found to that of the figures drawn, median over videos.",
    "flicker (temporal consistency): mean change of the background from frame to frame, of 255.",
    "background, clothes (shirt and trousers of each person): the colour that the caption names is seen.",
]
_NOTE_ESTIMATED = (
    "PCK, estimated: joints that the pose estimator finds within 0.2 torso lengths of the given poses; a joint that it "
    "does not find is wrong."
)


def open_table(title: str, notes: Sequence[str], estimated: bool) -> Table:
    """A table of `VideoScores`, without rows yet; `estimated`: with the column of a pose estimator."""
    columns = [*_COLUMNS, Column(_ESTIMATED, "share", "up")] if estimated else list(_COLUMNS)
    return Table(title, columns, notes=[*_NOTES, *([_NOTE_ESTIMATED] if estimated else []), *notes])


@dataclass
class VideoScore:
    """One video."""

    iou: float
    other_iou: float
    area: float  # found / drawn
    background: bool | None  # None: the caption names none
    clothes: list[bool]  # shirt and trousers of everybody
    flicker: float | None = None  # of 255; None: a single frame, or no background
    keypoints: tuple[float, float] = (0.0, 0.0)  # joints that an estimator finds in their place, and visible ones


def another(index: int, count: int) -> int:
    """Index of "another clip": always a different one (count > 1), and with another first action in the sample data."""
    return (index + (2 * count // 5 | 1)) % count


def masks(scene: Scene, height: int, width: int) -> np.ndarray:
    """Figures drawn from a scene, (F, H, W) bool."""
    fitted = Letterbox((scene.width, scene.height), (width, height)).scene(scene)
    joints, seen = fitted.joints, fitted.visibility
    return np.stack([figure_mask(joints[:, i], seen[:, i], height, width) > 0.5 for i in range(scene.num_frames)])


def score_video(
    frames: np.ndarray,
    shown: Scene,
    wanted: Scene,
    other: Scene,
    clip: Clip,
    estimator: Callable[[np.ndarray], np.ndarray] | None = None,
) -> VideoScore:
    """Score one video.

    Args:
        frames: (F, H, W, 3) uint8.
        shown: the poses that the video was made from: colours are read there. (F times)
        wanted: the poses that its figures are held against. (F times)
        other: poses of another clip. (F times)
        clip: whose caption counts.
        estimator: finds (F, P, 18, 3) px and confidence in frames.
    """
    height, width = frames.shape[1:3]
    found, drawn = segment(frames), masks(wanted, height, width)
    area = float(found.sum() / max(drawn.sum(), 1))
    fitted = Letterbox((shown.width, shown.height), (width, height)).scene(shown)
    background, clothes = read_colours(
        frames, found, fitted.joints.transpose(1, 0, 2, 3), fitted.visibility.transpose(1, 0, 2)
    )
    named = clip.meta.get("actors", [])
    if len(named) != len(clothes):  # another number of people than the caption's
        clothes = [("", "")] * len(named)
    right = [
        name == actor[part]
        for actor, names in zip(named, clothes, strict=True)
        for part, name in zip(("shirt", "trousers"), names, strict=True)
        if actor.get(part)
    ]
    backdrop = clip.meta.get("background")
    return VideoScore(
        iou=float(figure_iou(found, drawn).mean()),
        other_iou=float(figure_iou(found, masks(other, height, width)).mean()),
        area=area,
        background=None if not backdrop else background == backdrop,
        clothes=right,
        flicker=background_flicker(frames, found),
        keypoints=(0.0, 0.0) if estimator is None else _keypoints(estimator(frames), wanted, height, width),
    )


def _keypoints(found: np.ndarray, wanted: Scene, height: int, width: int) -> tuple[float, float]:
    """Joints that are found where they should be, and those that should."""
    fitted = Letterbox((wanted.width, wanted.height), (width, height)).scene(wanted)
    joints, seen = torch.from_numpy(fitted.joints).float(), torch.from_numpy(fitted.visibility)
    average = detected_keypoints(found, joints, seen)
    return float(average.total), float(average.count)


class VideoScores:
    """The scores of one row, with intervals, over all processes.

    Args:
        trials: of the clips.
    """

    def __init__(self, trials: Sequence[Hashable]) -> None:
        self.averages = ClipAverages(trials, _AVERAGES)
        self.areas = ClipTable(trials, area=1)

    def add(self, place: int, score: VideoScore) -> None:
        """The video of one clip."""
        sums = {
            "figure IoU": (score.iou, 1.0),
            "IoU with another clip's figure": (score.other_iou, 1.0),
            "area within 50 %": (float(0.5 <= score.area <= 1.5), 1.0),
            "clothes": (float(sum(score.clothes)), float(len(score.clothes))),
        }
        sums[_ESTIMATED] = score.keypoints
        if score.flicker is not None:
            sums["flicker"] = (score.flicker, 1.0)
        if score.background is not None:
            sums["background"] = (float(score.background), 1.0)
        self.averages.add(place, sums)
        self.areas.update([place], area=[[score.area]])

    def add_row(self, table: Table, name: str, with_clothes: bool = True) -> None:
        """The means, as a row of a table of `open_table`. All processes must call it together."""
        figures: dict[str, Any] = dict(self.averages.compute())
        areas = self.areas.compute()["area"][:, 0]
        shown = areas[areas > 0]
        if not with_clothes:
            figures["clothes"] = None
        figures |= {"area ratio": float(np.median(shown)) if len(shown) else None, "videos": len(shown)}
        known = {column.name for column in table.columns}  # that of an estimator is only there with one
        table.add(name, **{key.replace(" ", "_"): value for key, value in figures.items() if key in known})
