"""The whole chain on held-out captions, beside real motion, baselines, rivals, and itself with each stage replaced."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torchmetrics import Metric

from modules.evaluation.ablation import interpolated, mean_pose, spline, stand_still
from modules.evaluation.foreign import FrechetVideoDistance, PoseEstimator
from modules.evaluation.llm import by_kind, is_valid, make_plans, quantised
from modules.evaluation.names import (
    CODED,
    INTERPOLATED,
    MEAN_POSE,
    OURS,
    PCHIP,
    PLAN,
    PLAN_PCHIP,
    QUANTISED,
    REAL,
    REAL_KEYS,
    RETRIEVAL,
)
from modules.evaluation.ranks import Ranks
from modules.evaluation.rows import Scoreboard, is_dense
from modules.evaluation.shown import Shown
from modules.evaluation.video import VideoScores, another, open_table, score_video
from modules.metrics.retrieval import CaptionRetrieval
from modules.pipeline import Pipeline
from modules.pose.io import Plan
from modules.pose.scene import Clip, Scene
from modules.pose.video import read_frames
from modules.reports import Column, Table

ROWS = (REAL, MEAN_POSE, RETRIEVAL, REAL_KEYS, QUANTISED, PCHIP, INTERPOLATED, CODED, PLAN, PLAN_PCHIP, OURS)
ABLATIONS = (REAL_KEYS, QUANTISED, PCHIP, INTERPOLATED, CODED, PLAN_PCHIP)
SHOWN = 4  # clips whose motion is shown on the page
AGAIN = 4  # motions of one caption for Multimodality


class Rival(Protocol):
    """Anything else that makes scenes of captions."""

    def generate(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Scene]:
        """Dense scenes, or key poses, which get splines; each depends on its own caption and seed alone."""
        ...


@dataclass
class Settings:
    """How much is made."""

    videos: int  # scenes that are rendered; 0: none, and no renderer is needed
    seed: int
    repeats: int  # captions of which `AGAIN` further motions are made for Multimodality
    ablations: bool = True  # rows in which each stage is replaced by the truth in turn
    fvd: FrechetVideoDistance | None = None  # the clips need their videos
    clip_score: Metric | None = None
    estimator: PoseEstimator | None = None


def evaluate(
    pipeline: Pipeline,
    train: Sequence[Clip],
    clips: Sequence[Clip],
    settings: Settings,
    rivals: Mapping[str, Rival],
    progress: Callable[[int], None] | None = None,
) -> tuple[list[Table], list[Shown]]:
    """Every caption is planned and interpolated; the first `videos` scenes are rendered as a whole.

    Args:
        pipeline: with exports of all stages (of the renderer, where videos are made) and the evaluator.
        train: the training split, for retrieval, the mean pose and novelty.
        clips: the held-out clips.
        rivals: further rows.
        progress: called with the number of clips done, of those that this process scores.

    Returns:
        The tables, the same in every process, and what the first process has to show.
    """
    run = _Run(pipeline, train, clips, settings, rivals)
    for places in run.ranks.chunks(len(clips)):
        run.score(places)
        if progress is not None:
            progress(len(places))
    tables = [*run.board.tables(), by_kind(run.board, OURS)]
    if not settings.videos:
        return tables, run.shown
    notes = ["Figures are held against the generated poses that the renderer was given."]
    rendered = open_table("videos of generated scenes", notes, settings.estimator is not None)
    run.videos.add_row(rendered, "ours")
    _foreign(rendered, settings)
    return [*tables, rendered], run.shown


def _foreign(table: Table, settings: Settings) -> None:
    """FVD and CLIPScore in the row of our videos."""
    if settings.fvd is not None:
        value, reason = settings.fvd.compute()
        table.columns.append(Column("FVD", "px", "down"))
        table.rows[-1].values["FVD"] = value
        table.notes += [reason] if reason else []
    if settings.clip_score is not None:
        table.columns.append(Column("CLIPScore", "px", "up"))
        table.rows[-1].values["CLIPScore"] = float(settings.clip_score.compute())


class _Run:
    """State of one evaluation."""

    def __init__(
        self,
        pipeline: Pipeline,
        train: Sequence[Clip],
        clips: Sequence[Clip],
        settings: Settings,
        rivals: Mapping[str, Rival],
    ) -> None:
        self.pipeline, self.train, self.clips = pipeline, train, clips
        self.settings, self.rivals = settings, rivals
        self.ranks, self.stride = Ranks.current(), pipeline.director.stride
        self.board = Scoreboard(pipeline.evaluator, train, clips, self.stride, AGAIN if settings.repeats else 0)
        rows = [name for name in ROWS if settings.ablations or name not in ABLATIONS]
        self.board.open([*rows, *rivals])
        self.retrieval = CaptionRetrieval([clip.caption for clip in train])
        self.still = mean_pose(train)
        self.videos = VideoScores(self.board.units.trials)
        self.shown: list[Shown] = []

    def score(self, places: range) -> None:
        """All rows of some clips."""
        part = [self.clips[place] for place in places]
        captions, add, stride = [clip.caption for clip in part], self.board.add, self.stride
        real = [clip.scene for clip in part]
        retrieved = [self.train[self.retrieval.nearest(caption)].scene for caption in captions]
        add(REAL, places, real, novelty=True)
        add(MEAN_POSE, places, [stand_still(scene, *self.still) for scene in real])
        add(RETRIEVAL, places, retrieved)
        if self.settings.ablations:
            self._ablations(places, real, captions)
        plans = make_plans(self.pipeline, self.clips, places, self.settings.seed)
        planned = [plan.scene_keys for plan in plans]
        add(PLAN, places, planned, valid=[is_valid(plan) for plan in plans])
        if self.settings.ablations:
            add(PLAN_PCHIP, places, [spline(scene, stride) for scene in planned], keys=planned)
        ours = [self.pipeline.dense(plan) for plan in plans]
        add(OURS, places, ours, novelty=True, keys=planned, again=self._again(places, self._ours_again))
        others = {}
        for name, rival in self.rivals.items():
            generate = functools.partial(self._rival, rival)
            others[name] = generate(captions, [self.settings.seed + place for place in places])
            add(name, places, others[name], novelty=True, again=self._again(places, generate))
        if self.ranks.first and not self.shown:
            rows = {REAL: real, RETRIEVAL: retrieved, PLAN: planned, OURS: ours, **others}
            for i, caption in enumerate(captions[:SHOWN]):
                self.shown.append(Shown(caption, {name: scenes[i] for name, scenes in rows.items()}))
        for place, plan, dense in zip(places, plans, ours, strict=True):
            if place < self.settings.videos:
                self._render(place, plan, dense)

    def _ablations(self, places: range, real: Sequence[Scene], captions: Sequence[str]) -> None:
        """Rows that start from the truth."""
        add, stride = self.board.add, self.stride
        keys = [scene.keys(stride) for scene in real]
        coded = [quantised(self.pipeline, scene) for scene in keys]
        add(REAL_KEYS, places, keys)
        add(QUANTISED, places, coded)
        add(PCHIP, places, [spline(scene, stride) for scene in keys], keys=keys, paired=True)
        for name, given in ((INTERPOLATED, keys), (CODED, coded)):
            scenes = interpolated(self.pipeline, given, captions, stride, self.settings.seed + places[0])
            add(name, places, scenes, keys=given, paired=True)

    def _ours_again(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Scene]:
        planned = [plan.scene_keys for plan in self.pipeline.plan(captions, seeds)]
        return interpolated(self.pipeline, planned, captions, self.stride, seeds[0])

    def _rival(self, rival: Rival, captions: Sequence[str], seeds: Sequence[int]) -> list[Scene]:
        scenes = rival.generate(captions, seeds)
        return [scene if is_dense(scene, self.stride) else spline(scene, self.stride) for scene in scenes]

    def _again(
        self, places: range, generate: Callable[[Sequence[str], Sequence[int]], list[Scene]]
    ) -> np.ndarray | None:
        """Embeddings (B, R, D) of further motions of the first captions of the split."""
        chosen = [i for i, place in enumerate(places) if place < self.settings.repeats]
        if not self.settings.repeats:
            return None
        width = self.pipeline.evaluator.config.embedding
        result = np.full((len(places), AGAIN, width), np.nan)
        for i in chosen:
            captions = [self.clips[places[i]].caption] * AGAIN
            seeds = [self.settings.seed + 1_000_000 + AGAIN * places[i] + k for k in range(AGAIN)]
            result[i] = self.pipeline.evaluator.embed_scenes(generate(captions, seeds)).numpy()
        return result

    def _render(self, place: int, plan: Plan, dense: Scene) -> None:
        """The video of one whole generated scene, held against the generated poses."""
        frame_stride, clips = self.pipeline.config.render.frame_stride, self.clips
        (video,) = self.pipeline.render([dense], [plan.seed])
        shown = dense.at(np.arange(0, dense.num_frames, frame_stride))
        other = clips[another(place, len(clips)) if len(clips) > 1 else place].scene
        other = other.at(np.arange(0, other.num_frames, frame_stride))
        # The other scene is held or cut to this one's length.
        other = other.at(np.minimum(np.arange(shown.num_frames), other.num_frames - 1))
        self.videos.add(place, score_video(video, shown, shown, other, clips[place], self.settings.estimator))
        if self.settings.fvd is not None and (encoded := clips[place].video) is not None:
            frames = clips[place].start + np.arange(0, clips[place].scene.num_frames, frame_stride)
            self.settings.fvd.update(video, read_frames(encoded, frames))
        if self.settings.clip_score is not None:
            pictures = torch.from_numpy(video).permute(0, 3, 1, 2)
            self.settings.clip_score.update(pictures, [clips[place].caption] * len(pictures))
        if self.ranks.first and place < len(self.shown):
            self.shown[place].video, self.shown[place].fps = video, self.pipeline.video_fps(dense)
