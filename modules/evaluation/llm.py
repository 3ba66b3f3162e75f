"""How well plans say what their captions say, beside real motion and beside retrieval from the training split."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
import torch

from modules.errors import UserError
from modules.llm.scenes import decode_codes
from modules.metrics.novelty import Motions, gather_motions, nearest_distances
from modules.metrics.retrieval import CaptionRetrieval
from modules.metrics.scene import SceneScores, SceneVerdict, judge_scene
from modules.pipeline import Pipeline
from modules.pose.actors import clip_actors
from modules.pose.boxes import denormalise, normalise
from modules.pose.io import Plan, plan_from_dict, plan_to_dict
from modules.pose.scene import Clip, Person, Scene
from modules.reports import Column, Table

_BATCH = 32  # prompts planned at once

COLUMNS = [
    Column("valid", "share", "up"),
    Column("people", "share", "up"),
    Column("duration", "share", "up"),
    Column("box IoU", "number", "up"),
    Column("action", "share", "up"),
    Column("direction", "share", "up"),
    Column("side", "share", "up"),
    Column("whole caption", "share", "up"),
    Column("novelty", "number"),
]
NOTES = [
    "valid: the plan passes every check of plan.json. people: right number of them. duration: within 0.25 s.",
    "action: by the evaluator. direction: of those who travel, by geometry. side: of those whose caption names one.",
    "whole caption: number of people, and action, direction and side of everybody (those who do not travel must not).",
    "novelty: mean distance to the nearest training motion, box units (half of the longer side = 1); 0 is a copy.",
]


class Judge:
    """Judges scenes against the captions of some clips.

    Args:
        pipeline: its evaluator names the actions.
        clips: the clips whose captions count, and whose scenes are the reference for boxes.
        train: motions of the training split, for the novelty.
        stride: dense frames per key pose.
    """

    def __init__(self, pipeline: Pipeline, clips: Sequence[Clip], train: Motions, stride: int) -> None:
        self.pipeline, self.clips, self.train, self.stride = pipeline, clips, train, stride

    def verdicts(self, scenes: Sequence[Scene]) -> list[SceneVerdict]:
        """One verdict a clip; scenes in the order of the clips."""
        return [
            judge_scene(scene, actions, clip_actors(clip), caption_seconds(clip), clip.scene.boxes)
            for scene, actions, clip in zip(scenes, self.pipeline.evaluator.classify(scenes), self.clips, strict=True)
        ]

    def add_row(
        self, table: Table, name: str, scenes: Sequence[Scene], valid: float | None = None, with_novelty: bool = True
    ) -> None:
        """Judge the scenes and add a row with all columns.

        Args:
            with_novelty: False for clips of the training split, and where another row has the same motion.
        """
        figures = score(self.verdicts(scenes))
        novelty = None
        if with_novelty and any(scene.persons for scene in scenes):
            novelty = float(nearest_distances(gather_motions(scenes, self.stride), self.train).mean())
        table.add(name, valid=valid, novelty=novelty, **figures)


def caption_seconds(clip: Clip) -> float:
    """The duration that a caption states; that of the clip where it states none."""
    return float(clip.meta.get("seconds", clip.scene.num_frames / clip.scene.fps))


def score(verdicts: Sequence[SceneVerdict]) -> dict[str, float | None]:
    """Means of verdicts under the names of the columns."""
    scores = SceneScores()
    for verdict in verdicts:
        scores.update(verdict)
    names = {"count": "people", "box_iou": "box_IoU", "caption": "whole_caption"}
    return {names.get(name, name): value for name, value in scores.compute().items()}


def make_plans(
    pipeline: Pipeline, clips: Sequence[Clip], seed: int, progress: Callable[[int], None] | None = None
) -> list[Plan]:
    """Plans of the captions, with the seeds seed, seed + 1, ...; `progress` is called with the number of new plans."""
    plans: list[Plan] = []
    for start in range(0, len(clips), _BATCH):
        prompts = [clip.caption for clip in clips[start : start + _BATCH]]
        plans += pipeline.plan(prompts, [seed + start + i for i in range(len(prompts))])
        if progress is not None:
            progress(len(prompts))
    return plans


def valid_share(plans: Sequence[Plan]) -> float:
    """Share of plans that pass the checks of plan.json when read back."""
    return float(np.mean([_is_valid(plan) for plan in plans]))


def _is_valid(plan: Plan) -> bool:
    try:
        found = plan_from_dict(plan_to_dict(plan))
    except UserError:
        return False
    return bool(found.scene_keys.persons) and found.scene_keys.num_frames > 0


@torch.inference_mode()
def quantised(pipeline: Pipeline, keys: Scene) -> Scene:
    """Key poses as the pose tokenizer gives them back: the best that a director can write."""
    poses = torch.from_numpy(normalise(keys.joints, keys.boxes, keys.visibility).astype(np.float32))  # (P, K, J, 2)
    mask = torch.ones(poses.shape[:2], dtype=torch.bool)
    tensors = [tensor.to(pipeline.device) for tensor in (poses, torch.from_numpy(keys.visibility), mask)]
    coords, seen = decode_codes(pipeline.tokenizer, pipeline.tokenizer.encode(*tensors))
    joints = denormalise(coords, keys.boxes, seen).astype(np.float32)
    persons = [Person(*parts) for parts in zip(joints, seen, keys.boxes, strict=True)]
    return dataclasses.replace(keys, persons=persons)


def retrieve(train: Sequence[Clip], clips: Sequence[Clip]) -> list[Scene]:
    """The scene of the training clip with the nearest caption, for each clip."""
    retrieval = CaptionRetrieval([clip.caption for clip in train])
    return [train[retrieval.nearest(clip.caption)].scene for clip in clips]


def evaluate(
    pipeline: Pipeline,
    train: Sequence[Clip],
    clips: Sequence[Clip],
    *,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[Table]:
    """Scores of the plans of held-out captions.

    Args:
        pipeline: with exports of `vqvae`, `llm` and `evaluator`.
        train: the training split, for retrieval and novelty.
        clips: the held-out clips.
        progress: called with the number of new plans.
    """
    stride = pipeline.director.stride
    judge = Judge(pipeline, clips, gather_motions([clip.scene for clip in train], stride), stride)
    plans = make_plans(pipeline, clips, seed, progress)
    ours = [plan.scene_keys for plan in plans]
    table = Table("plans", COLUMNS, notes=NOTES)
    judge.add_row(table, "real (key poses)", [clip.scene.keys(stride) for clip in clips])
    through = [quantised(pipeline, clip.scene.keys(stride)) for clip in clips]
    judge.add_row(table, "real, through vqvae", through, with_novelty=False)
    judge.add_row(
        table, "caption retrieval", [scene.keys(stride) for scene in retrieve(train, clips)], with_novelty=False
    )
    judge.add_row(table, "ours", ours, valid=valid_share(plans))
    return [table, by_kind(judge.verdicts(ours), clips)]


def by_kind(verdicts: Sequence[SceneVerdict], clips: Sequence[Clip]) -> Table:
    """Our scores by the number of people, and by whether an action's phrasing is in the training split."""
    columns = [*(column for column in COLUMNS if column.name not in ("valid", "novelty")), Column("clips", "count")]
    table = Table("ours, by kind of caption", columns)
    groups = {
        f"{n} {'person' if n == 1 else 'people'}": [len(clip_actors(clip)) == n for clip in clips] for n in (1, 2, 3, 4)
    }
    if any("held_out_phrasing" in clip.meta for clip in clips):
        groups["known phrasing"] = [not clip.meta.get("held_out_phrasing") for clip in clips]
        groups["held-out phrasing"] = [bool(clip.meta.get("held_out_phrasing")) for clip in clips]
    for name, members in groups.items():
        chosen = [verdict for verdict, member in zip(verdicts, members, strict=True) if member]
        if chosen:
            table.add(name, clips=len(chosen), **score(chosen))
    return table
