"""What a person does in the frame, read from the joints alone: direction of travel, and the side that moves.

The same rules judge real, retrieved and generated motion, dense poses and key poses.
Letters: N points in time, J joints (18).
"""

from __future__ import annotations

import numpy as np

from modules.pose.figures import figure_height
from modules.pose.scene import Person
from modules.pose.skeleton import JOINT_NAMES

_JOINT = {name: index for index, name in enumerate(JOINT_NAMES)}
_TRUNK = [_JOINT[name] for name in ("neck", "r_hip", "l_hip")]
# Which limb shows the side of an action: what moves, and what it moves relative to.
SIDE_LIMBS = {"wave": ("wrist", "shoulder"), "punch": ("wrist", "shoulder"), "kick": ("ankle", "hip")}

# Net travel in body heights: in-place motions stay well below (sitting down moves the trunk by up to 0.3).
TRAVEL_HEIGHTS = 0.38
# Net growth of the figure, natural logarithm: 1.25 times.
GROWTH_LOG = 0.22
# One side alone moves where its spread is this many times that of the other.
SIDE_RATIO = 2.0


def _net_change(values: np.ndarray, times: np.ndarray, valid: np.ndarray) -> float:
    """Change from start to end by the slope of a fitted line, which one odd frame or one step cannot fool."""
    if valid.sum() < 2:
        return 0.0
    at, value = times[valid] - times[valid].mean(), values[valid]
    slope = float((at * (value - value.mean())).sum() / (at * at).sum())
    spacing = (times[-1] - times[0]) / (len(times) - 1)
    return slope * spacing * len(times)


def travel_direction(person: Person, times: np.ndarray) -> str:
    """Direction of travel as the viewer sees it: "left", "right", "toward", "away" or "none".

    Growing or shrinking clearly is coming or going, whatever the way on the canvas: perspective moves those people
    sideways too.

    Args:
        person: dense or key poses in px.
        times: (N,) seconds.
    """
    heights = figure_height(person.joints, person.visibility)  # (N,)
    seen = np.asarray(heights > 0)
    if not seen.any():
        return "none"
    growth = _net_change(np.log(np.maximum(heights, 1e-3)), times, seen)
    if abs(growth) > GROWTH_LOG:
        return "toward" if growth > 0 else "away"
    trunk, trunk_seen = person.joints[:, _TRUNK, 0].mean(1), np.all(person.visibility[:, _TRUNK], axis=1)
    shift = _net_change(trunk, times, np.asarray(trunk_seen)) / float(np.median(heights[seen]))
    if abs(shift) > TRAVEL_HEIGHTS:
        return "right" if shift > 0 else "left"
    return "none"


def moving_side(person: Person, action: str) -> str:
    """The person's side that an action of `SIDE_LIMBS` is done with: "left", "right", "both"; "none" for other actions.

    The side whose wrist (wave, punch) or ankle (kick) moves more, relative to its own shoulder or hip.
    """
    if action not in SIDE_LIMBS:
        return "none"
    end, root = SIDE_LIMBS[action]
    left, right = (_spread(person, f"{side}_{end}", f"{side}_{root}") for side in ("l", "r"))
    if action == "wave" and max(left, right) < SIDE_RATIO * min(left, right):
        return "both"
    return "left" if left > right else "right"


def _spread(person: Person, end: str, root: str) -> float:
    """Root mean square distance of a joint from its mean place relative to another one, px; 0 where never seen."""
    seen = person.visibility[:, _JOINT[end]] & person.visibility[:, _JOINT[root]]
    if not seen.any():
        return 0.0
    offset = person.joints[seen, _JOINT[end]] - person.joints[seen, _JOINT[root]]
    return float(np.sqrt(((offset - offset.mean(0)) ** 2).sum(-1).mean()))
