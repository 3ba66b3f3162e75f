"""Is a scene what its caption says? Counts, actions, directions, sides, durations and boxes.

Real, retrieved and generated scenes, dense or key poses, are judged by the same functions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import linear_sum_assignment
from torchvision.ops import box_iou

from modules.metrics.geometry import moving_side, travel_direction
from modules.pose.actors import Actor
from modules.pose.scene import Scene

# Captions state halves of a second: further off than this is the wrong one.
DURATION_TOLERANCE = 0.25


@dataclass
class SceneVerdict:
    """One scene against its caption. Lists have an entry for each person of the caption, None where it does not say."""

    count: bool
    duration: bool
    actions: list[bool | None]
    directions: list[bool | None]
    sides: list[bool | None]
    travels: list[bool]  # whether the caption says that the person travels
    box_iou: float  # mean over the people of the reference; 0 for one that is missing

    @property
    def caption(self) -> bool:
        """Count, and action, direction and side of everybody."""
        return self.count and all(entry is not False for entry in (*self.actions, *self.directions, *self.sides))


def scene_seconds(scene: Scene) -> float:
    """Duration of dense poses or of key poses: each point in time stands for the time up to the next."""
    spacing = (scene.times[-1] - scene.times[0]) / (scene.num_frames - 1) if scene.num_frames > 1 else 1 / scene.fps
    return float(scene.num_frames * spacing)


def match_boxes(found: np.ndarray, reference: np.ndarray) -> float:
    """Mean intersection over union under the best assignment: (P', 4) and (P, 4) px -> over the P reference boxes."""
    if not len(found) or not len(reference):
        return 0.0
    overlap = box_iou(torch.as_tensor(found), torch.as_tensor(reference)).numpy()
    rows, columns = linear_sum_assignment(overlap, maximize=True)
    return float(overlap[rows, columns].sum() / len(reference))


def boxes_on(scene: Scene, width: int, height: int) -> np.ndarray:
    """The boxes (P, 4) of a scene as they are on another canvas: the same shares of its width and height, px."""
    share = np.tile([width / scene.width, height / scene.height], 2)
    return scene.boxes * share.astype(scene.boxes.dtype)


def judge_scene(
    scene: Scene, actions: Sequence[str], actors: Sequence[Actor], seconds: float, boxes: np.ndarray
) -> SceneVerdict:
    """Judge a scene by its people in the order of their boxes' left edges, the order in which captions name them.

    Args:
        scene: dense or key poses.
        actions: what each person of `scene` does, by the evaluator.
        actors: the caption's people, from left to right; a missing person is wrong in everything.
        seconds: the caption's duration.
        boxes: (P, 4) px, those of the reference clip on the same canvas.
    """
    order = sorted(range(len(scene.persons)), key=lambda i: float(scene.persons[i].box[0]))
    right_actions: list[bool | None] = []
    directions: list[bool | None] = []
    sides: list[bool | None] = []
    for index, actor in enumerate(actors):
        person = scene.persons[order[index]] if index < len(order) else None
        named = person is not None and actions[order[index]] == actor.action
        right_actions.append(named if actor.action else None)
        direction = travel_direction(person, scene.times) if person is not None else ""
        directions.append(direction == actor.direction if actor.direction else None)
        side = moving_side(person, actor.action) if person is not None else ""
        sides.append(side == actor.side if actor.side not in ("", "none") else None)
    return SceneVerdict(
        count=len(scene.persons) == len(actors),
        duration=abs(scene_seconds(scene) - seconds) <= DURATION_TOLERANCE,
        actions=right_actions,
        directions=directions,
        sides=sides,
        travels=[actor.direction not in ("", "none") for actor in actors],
        box_iou=match_boxes(scene.boxes, boxes),
    )


VERDICTS = ("count", "duration", "box_iou", "action", "direction", "side", "caption")


def verdict_sums(verdict: SceneVerdict) -> dict[str, tuple[float, float]]:
    """Right ones and all, for each of `VERDICTS`, as `ClipAverages` takes them.

    People count one by one, for `direction` those who travel, for `side` those with one.
    """
    travelling = [right for right, travels in zip(verdict.directions, verdict.travels, strict=True) if travels]
    entries: dict[str, list[float]] = {
        "count": [verdict.count],
        "duration": [verdict.duration],
        "box_iou": [verdict.box_iou],
        "action": [float(right) for right in verdict.actions if right is not None],
        "direction": [float(right) for right in travelling if right is not None],
        "side": [float(right) for right in verdict.sides if right is not None],
        "caption": [verdict.caption],
    }
    return {name: (float(sum(values)), float(len(values))) for name, values in entries.items()}
