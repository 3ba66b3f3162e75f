"""The whole chain on held-out captions: plans, dense poses and videos against what the captions say."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from modules.evaluation.llm import COLUMNS, NOTES, Judge, by_kind, make_plans, quantised, retrieve, valid_share
from modules.evaluation.video import COLUMNS as VIDEO_COLUMNS
from modules.evaluation.video import NOTES as VIDEO_NOTES
from modules.evaluation.video import add_row, another, score_video
from modules.metrics.novelty import gather_motions
from modules.pipeline import Pipeline
from modules.pose.io import Plan
from modules.pose.scene import Clip, Scene
from modules.reports import Table


def evaluate(
    pipeline: Pipeline,
    train: Sequence[Clip],
    clips: Sequence[Clip],
    *,
    videos: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[Table]:
    """Every caption is planned and interpolated; the first `videos` scenes are rendered as a whole.

    Args:
        pipeline: with exports of all stages and the evaluator.
        train: the training split, for retrieval and novelty.
        clips: the held-out clips.
        progress: called with the number of scenes done, `len(clips)` for plans, as many for dense poses, then `videos`.
    """
    stride = pipeline.director.stride
    judge = Judge(pipeline, clips, gather_motions([clip.scene for clip in train], stride), stride)
    plans = make_plans(pipeline, clips, seed, progress)
    keys = [plan.scene_keys for plan in plans]
    dense = []
    for plan in plans:
        dense.append(pipeline.dense(plan))
        if progress is not None:
            progress(1)
    table = Table("chain", COLUMNS, notes=NOTES)
    judge.add_row(table, "real (dense)", [clip.scene for clip in clips])
    judge.add_row(table, "real (key poses)", [clip.scene.keys(stride) for clip in clips], with_novelty=False)
    through = [quantised(pipeline, clip.scene.keys(stride)) for clip in clips]
    judge.add_row(table, "real, through vqvae", through, with_novelty=False)
    judge.add_row(table, "caption retrieval (dense)", retrieve(train, clips), with_novelty=False)
    judge.add_row(table, "ours, plan (key poses)", keys, valid=valid_share(plans), with_novelty=False)
    judge.add_row(table, "ours, dense", dense)
    kinds = by_kind(judge.verdicts(dense), clips)
    rendered = _rendered(pipeline, plans[:videos], dense[:videos], clips[:videos], progress)
    return [table, kinds, rendered]


def _rendered(
    pipeline: Pipeline,
    plans: Sequence[Plan],
    dense: Sequence[Scene],
    clips: Sequence[Clip],
    progress: Callable[[int], None] | None,
) -> Table:
    """Videos of whole generated scenes, held against the generated poses."""
    videos = pipeline.render(dense, [plan.seed for plan in plans], progress=progress)
    stride = pipeline.config.render.frame_stride
    shown = [scene.at(np.arange(0, scene.num_frames, stride)) for scene in dense]
    scores = []
    for i, (video, scene, clip) in enumerate(zip(videos, shown, clips, strict=True)):
        other = shown[another(i, len(shown))]
        # The other scene is held or cut to this one's length.
        other = other.at(np.minimum(np.arange(scene.num_frames), other.num_frames - 1))
        scores.append(score_video(video, scene, scene, other, clip))
    notes = [*VIDEO_NOTES, "Figures are held against the generated poses that the renderer was given."]
    table = Table("videos of generated scenes", VIDEO_COLUMNS, notes=notes)
    add_row(table, "ours", scores)
    return table
