"""The paper's claim: does the same renderer show what the caption says better with the director than without?

Read from the silhouettes in the pixels: no pose, and no network of ours, has a say. One person a clip.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from modules.evaluation.llm import make_plans
from modules.evaluation.ranks import Ranks
from modules.evaluation.video import masks as drawn_masks
from modules.metrics.geometry import SIDE_LIMBS
from modules.metrics.intervals import ClipAverages, Units
from modules.metrics.silhouettes import SilhouetteReader, describe
from modules.metrics.video import segment
from modules.pipeline import Pipeline
from modules.pose.actors import clip_actors
from modules.pose.scene import Clip, Scene
from modules.pose.skeleton import JOINT_NAMES
from modules.pose.video import read_frames
from modules.reports import Column, Table

WITHOUT, WITH = "without the director: caption alone", "with the director"
ROWS = ("real video", "real poses, drawn", WITHOUT, WITH)
_JOINT = {name: index for index, name in enumerate(JOINT_NAMES)}
_CANVAS = 64  # px, silhouettes that the reader learns from


def viewer_side(scene: Scene, action: str, side: str) -> str:
    """On which side of the picture the limb of a one-sided action moves: "left", "right" or "" (cannot be told)."""
    if action not in SIDE_LIMBS or side not in ("left", "right"):
        return ""
    person, (end, _) = scene.persons[0], SIDE_LIMBS[action]
    limb, neck = _JOINT[f"{side[0]}_{end}"], _JOINT["neck"]
    seen = person.visibility[:, limb] & person.visibility[:, neck]
    if not seen.any():
        return ""
    offset = (person.joints[seen, limb, 0] - person.joints[seen, neck, 0]).mean()
    height = float(person.box[3] - person.box[1])
    return "" if abs(offset) < 0.08 * height else "left" if offset < 0 else "right"


def _label(clip: Clip) -> tuple[str, str]:
    (actor,) = clip_actors(clip)
    return actor.action, viewer_side(clip.scene, actor.action, actor.side)


def evaluate(
    pipeline: Pipeline,
    train: Sequence[Clip],
    clips: Sequence[Clip],
    *,
    count: int,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> tuple[Table, list[tuple[str, np.ndarray, np.ndarray]]]:
    """Renders `count` captions of one person twice, and reads action and side.

    Args:
        pipeline: with exports of all stages.
        train: single persons of it teach the reader.
        clips: of the held-out split, with video.
        progress: called with the number of captions done, of those that this process renders.

    Returns:
        The table, and (caption, video without, video with the director) of those that this process rendered.
    """
    step = pipeline.config.render.frame_stride
    actions, sides = _readers(train, step)
    chosen = [clip for clip in clips if len(clip.scene.persons) == 1][:count]
    units = Units.of(chosen)
    averages = {name: ClipAverages(units.trials, ("action", "side")) for name in ROWS}
    pairs = []
    for places in Ranks.current().chunks(len(chosen), 4):
        plans = make_plans(pipeline, chosen, places, seed)
        for place, plan in zip(places, plans, strict=True):
            clip, dense = chosen[place], pipeline.dense(plan)
            settings = pipeline.config.render
            off = dataclasses.replace(settings, control_scale=0.0)
            (without,), (with_it,) = (pipeline.render([dense], [plan.seed], settings=s) for s in (off, settings))
            pairs.append((clip.caption, without, with_it))
            thin = clip.scene.at(np.arange(0, clip.scene.num_frames, step))
            found = {
                "real poses, drawn": drawn_masks(thin, _CANVAS, _CANVAS),
                WITHOUT: segment(without),
                WITH: segment(with_it),
            }
            if clip.video is not None:
                frames = read_frames(clip.video, clip.start + np.arange(0, clip.scene.num_frames, step))
                found["real video"] = segment(frames)
            action, side = _label(clip)
            for name, masks in found.items():
                features = describe(masks)[None]
                sums = {"action": (float(actions.read(features) == [action]), 1.0)}
                if side:
                    sums["side"] = (float(sides.read(features, ("left", "right")) == [side]), 1.0)
                averages[name].add(place, sums)
            if progress is not None:
                progress(1)
    table = Table("the renderer with and without the director", [
        Column("action", "share", "up"), Column("side", "share", "up"), Column("captions", "count")
    ])  # fmt: skip
    for name in ROWS:
        figures = averages[name].compute()
        table.add(name, captions=len(chosen), **figures)
    sided = sum(bool(_label(clip)[1]) for clip in chosen)
    table.notes = [
        f"Captions of one person. Read from silhouettes of the pixels by a linear classifier that was fitted to the "
        f"training split's; chance is {1 / len(actions.names):.1%} for the action and 50 % for the side.",
        "side: on which side of the picture the limb of a one-sided action moves, as in the real clip: "
        f"{sided} captions where it can be told. Without: the same renderer, seed and length, control off.",
        f"± is half of the 95 % interval: {units}.",
    ]
    return table, pairs


def _readers(train: Sequence[Clip], step: int) -> tuple[SilhouetteReader, SilhouetteReader]:
    """Readers of the action and of the side, from the drawn silhouettes of the training split's single persons."""
    single = [clip for clip in train if len(clip.scene.persons) == 1]
    features = []
    for clip in single:
        thin = clip.scene.at(np.arange(0, clip.scene.num_frames, step))
        features.append(describe(drawn_masks(thin, _CANVAS, _CANVAS)))
    labels, stacked = [_label(clip) for clip in single], np.stack(features)
    sided = [i for i, (_, side) in enumerate(labels) if side]
    if len({labels[i][1] for i in sided}) < 2:
        sided = list(range(len(labels)))  # data without sides: nothing will be asked of this reader
    return (
        SilhouetteReader.fit(stacked, [action for action, _ in labels]),
        SilhouetteReader.fit(stacked[sided], [labels[i][1] for i in sided]),
    )
