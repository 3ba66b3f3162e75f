"""One sample: who does what, where and how, by numbers that depend only on (seed, split, index).

Letters: P persons, T frames, J = 18 joints.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from datamodules.sample import FPS, SPLITS
from datamodules.synthetic import captions, splits
from datamodules.synthetic.actions import ACTIONS, BACK, FRONT, LEFT_SIDE, RIGHT_SIDE
from datamodules.synthetic.camera import SIZE, project, seen
from datamodules.synthetic.motions import SPEEDS, Action, Parameters
from datamodules.synthetic.skeleton3d import JOINT, Body, forward_kinematics, rotation, sample_body
from modules.pose.appearance import BACKGROUNDS, CLOTHES, HAIRS, SKINS, FigureColours
from modules.pose.boxes import extent
from modules.pose.figures import draw_figures

VERSION = 2  # of the content: shards of another version are not mixed with these
_PEOPLE = (0.60, 0.27, 0.13)  # share of clips with one, two and three people
_SIZES = (("small", 0.46, 0.56), ("medium", 0.60, 0.72), ("large", 0.77, 0.90))
_MIN_SIZE = (0.45, 0.42, 0.40)  # by the number of people
_TRAVEL_SHARE = 0.22  # of the frame: less is no travel to the left or right
_MIN_STRIDE = {"walk": 0.34, "run": 0.62, "side step": 0.20}
_ROOM = 0.05  # free space between neighbours, in units of the height
_ATTEMPTS = 60


@dataclass
class SyntheticClip:
    """A clip, its metadata, and what is needed to draw it."""

    pose: np.ndarray  # (P, T, 18, 3) float32: x px, y px, confidence; zeros where unseen
    meta: dict[str, Any]
    depths: np.ndarray = field(repr=False)  # (P, T, 18) metres
    colours: list[FigureColours] = field(repr=False)

    def frames(self) -> np.ndarray:
        """The pictures, drawn now: (T, 64, 64, 3) uint8."""
        background = self.meta["background"]
        pictures = [
            draw_figures(joints[..., :2], joints[..., 2] > 0, self.colours, SIZE, SIZE, depths, background)
            for joints, depths in zip(self.pose.swapaxes(0, 1), self.depths.swapaxes(0, 1), strict=True)
        ]
        return np.stack(pictures)


@dataclass
class _Actor:
    """One person while the clip is being made."""

    meta: dict[str, Any]
    body: Body
    joints: np.ndarray  # (T, 18, 3) metres, world, at the origin
    facing: np.ndarray  # (T, 3)
    colours: FigureColours
    travel: float  # metres covered


class _Reject(Exception):
    """The numbers drawn do not make a good clip: draw again."""


def synthesise(seed: int, split: str, index: int) -> SyntheticClip:
    """Makes one clip. The same arguments give the same clip, whatever else is made."""
    key = [seed, SPLITS.index(split), index]
    rng = np.random.default_rng(key)
    # every action comes equally often as that of the first person made
    first = list(ACTIONS)[(index + seed) % len(ACTIONS)]
    count = min(1 + int(rng.choice(3, p=_PEOPLE)), 2 if first == "side step" else 3)  # three leave no room to travel
    for attempt in range(_ATTEMPTS):
        try:
            return _attempt(np.random.default_rng([*key, attempt + 1]), split, index, count, first)
        except _Reject:
            continue
    raise RuntimeError(f"no clip of {count} people with {first!r} in {_ATTEMPTS} attempts: {seed} {split} {index}")


def _attempt(rng: np.random.Generator, split: str, index: int, count: int, first: str) -> SyntheticClip:
    names = [first, *(list(ACTIONS)[int(rng.integers(len(ACTIONS)))] for _ in range(count - 1))]
    plans = [_plan(rng, ACTIONS[name], count) for name in names]
    if count == 3:  # one viewpoint for all: three would not fit into the 77 tokens of a CLIP text tower
        for plan in plans[1:]:
            if plan["direction"] == "none" and plans[0]["viewpoint"] in ACTIONS[plan["action"]].viewpoints:
                plan["viewpoint"] = plans[0]["viewpoint"]
        if len({plan["viewpoint"] for plan in plans}) > 1:
            raise _Reject
    seconds = _seconds(rng, plans, count)
    size_name, low, high = _SIZES[int(rng.integers(3))] if count == 1 else ("none", 0.46, 0.66)
    size = float(rng.uniform(low, high))
    lateral = any(plan["direction"] in ("left", "right") for plan in plans)
    if lateral:
        size = float(rng.uniform(0.46, 0.58 if count == 1 else 0.50))
    if count == 3:
        size = min(size, 0.50)
    actors = [_actor(rng, split, plan, seconds, size, count) for plan in plans]
    order = rng.permutation(count)
    actors = [actors[i] for i in order]
    distance, eye = _camera(rng, actors), float(rng.uniform(0.95, 1.45))
    _pack(rng, actors)
    joints = np.stack([actor.joints for actor in actors])
    place_name = ("left", "middle", "right")[int(rng.integers(3))]
    centre = {"left": 0.30, "middle": 0.5, "right": 0.70}[place_name] if count == 1 and not lateral else 0.5
    centre += float(rng.uniform(-0.035, 0.035))
    heights = np.array([actor.body.height for actor in actors])
    view = project(joints, heights, distance, eye, size, centre, float(rng.uniform(0.90, 0.97)))
    if view.size < _MIN_SIZE[count - 1] - (0.03 if lateral else 0.0) or view.heights.max() > 0.95:
        raise _Reject
    visible = seen(view, np.stack([actor.facing for actor in actors]), joints, distance, eye)
    pose = np.concatenate([view.pixels, np.ones((*visible.shape, 1))], axis=-1) * visible[..., None]
    metas = _describe(actors, pose, view.heights, lateral)
    background = list(BACKGROUNDS)[int(rng.integers(len(BACKGROUNDS)))]
    meta = {
        "caption": captions.make_caption(rng, metas, background, seconds),
        "label": metas[0]["action"],
        "fps": FPS,
        "width": SIZE,
        "height": SIZE,
        "num_frames": pose.shape[1],
        "seconds": seconds,
        "background": background,
        "actors": metas,
        "split": split,
        "motion": f"{split}-{index}",
        "held_out_phrasing": any(m["phrasing"] == len(captions.PHRASINGS[m["action"]]) - 1 for m in metas),
    }
    return SyntheticClip(pose.astype(np.float32), meta, view.depths, [actor.colours for actor in actors])


def _plan(rng: np.random.Generator, action: Action, count: int) -> dict[str, Any]:
    """What one person does, before lengths and places are known."""
    direction, viewpoint = "none", action.viewpoints[int(rng.integers(len(action.viewpoints)))]
    if action.travels:
        lateral = ("left", "right")
        along = () if action.name == "side step" else ("toward", "away")
        if action.name == "side step" and count == 3:
            raise _Reject
        options = along if count == 3 else (*lateral, *along)
        direction = options[int(rng.integers(len(options)))]
        if along:
            viewpoint = {"left": LEFT_SIDE, "right": RIGHT_SIDE, "toward": FRONT, "away": BACK}[direction]
    return {
        "action": action.name,
        "side": action.sides[int(rng.integers(len(action.sides)))],
        "direction": direction,
        "speed": SPEEDS[int(rng.choice(3, p=(0.28, 0.44, 0.28)))],
        "viewpoint": viewpoint,
    }


def _seconds(rng: np.random.Generator, plans: list[dict[str, Any]], count: int) -> float:
    """Duration in halves of a second, long enough for slow movements and short enough to stay in the frame."""
    shortest, longest = 2.0, 6.5
    for plan in plans:
        pace = SPEEDS.index(plan["speed"])
        if ACTIONS[plan["action"]].once or plan["action"] == "bow":
            shortest = max(shortest, (4.0, 2.5, 2.0)[pace])
        elif not ACTIONS[plan["action"]].travels:
            shortest = max(shortest, (3.0, 2.0, 2.0)[pace])
        if plan["direction"] in ("left", "right"):
            slowness = {"walk": (4.5, 3.5, 2.5), "run": (3.0, 2.5, 2.0), "side step": (6.0, 5.0, 4.0)}[plan["action"]]
            longest = min(longest, slowness[pace] - (1.0 if count > 1 and plan["action"] == "walk" else 0.0))
        elif plan["action"] == "run":
            longest = min(longest, 4.5)
    if longest < shortest:
        raise _Reject
    return float(rng.integers(round(2 * shortest), round(2 * longest) + 1) / 2)


def _heading(rng: np.random.Generator, plan: dict[str, Any]) -> float:
    """Degrees; 0 faces the camera, positive to the viewer's right."""
    base = {FRONT: 0.0, BACK: 180.0, LEFT_SIDE: -90.0, RIGHT_SIDE: 90.0}.get(plan["viewpoint"])
    if base is None:
        return float(rng.choice([-1.0, 1.0]) * rng.uniform(36.0, 54.0))
    spread = 5.0 if plan["direction"] in ("toward", "away") else 12.0
    return base + float(rng.uniform(-spread, spread))


def _actor(
    rng: np.random.Generator, split: str, plan: dict[str, Any], seconds: float, size: float, count: int
) -> _Actor:
    action = ACTIONS[plan["action"]]
    gender = ("man", "woman", "person")[int(rng.choice(3, p=(0.42, 0.42, 0.16)))]
    body = sample_body(rng, gender)
    distance = None
    if plan["direction"] in ("left", "right"):
        room = 1.0 / size - 0.5  # frame less the person's own width, in heights
        distance = room * float(rng.uniform(0.82, 0.98)) if count == 1 else float(rng.uniform(0.58, 0.85))
    travel = "none"
    if action.travels:
        travel = "forward"
        if action.name == "side step":
            # seen from the front, the person's left is the viewer's right
            same = plan["viewpoint"] == BACK
            travel = plan["direction"] if same else {"left": "right", "right": "left"}[plan["direction"]]
    parameters = Parameters(
        side=plan["side"],
        travel=travel,
        speed=plan["speed"],
        frequency=float(rng.uniform(*action.frequencies[SPEEDS.index(plan["speed"])])),
        amplitude=splits.draw_parameter(rng, split),
        phase=float(rng.uniform()),
        style=splits.draw_parameter(rng, split),
        seconds=seconds,
        distance=distance,
    )
    if distance is not None and distance / (parameters.frequency * seconds) < _MIN_STRIDE[action.name]:
        raise _Reject
    times = np.arange(round(FPS * seconds)) / FPS
    local, facing = forward_kinematics(body, action.build(body, parameters, times))
    turn = rotation("y", np.radians(_heading(rng, plan)))
    joints = body.height * local @ turn.T
    hips = 0.5 * (joints[:, JOINT["l_hip"]] + joints[:, JOINT["r_hip"]])
    middle = 0.5 * (hips.min(0) + hips.max(0))
    joints = joints - np.array([middle[0], 0.0, middle[2]])
    shirt, trousers = splits.draw_colours(rng, split, plan["action"], plan["side"], plan["direction"], tuple(CLOTHES))
    colours = FigureColours(
        shirt, trousers, list(SKINS)[int(rng.integers(len(SKINS)))], list(HAIRS)[int(rng.integers(len(HAIRS)))]
    )
    meta = {
        **plan,
        "gender": gender,
        "shirt": shirt,
        "trousers": trousers,
        "skin": colours.skin,
        "hair": colours.hair,
        "phrasing": captions.choose_phrasing(rng, plan["action"], split),
        "combination": splits.combination(plan["action"], plan["side"], plan["direction"], shirt, trousers),
        "frequency": round(parameters.frequency, 4),
        "amplitude": round(parameters.amplitude, 4),
        "style": round(parameters.style, 4),
    }
    return _Actor(meta, body, joints, facing @ turn.T, colours, float(np.linalg.norm(hips[-1] - hips[0])))


def _camera(rng: np.random.Generator, actors: list[_Actor]) -> float:
    """Distance of the camera: near enough for people who come or go to grow or shrink clearly."""
    travels = [actor.travel for actor in actors if actor.meta["direction"] in ("toward", "away")]
    if not travels:
        return float(rng.uniform(4.5, 8.0))
    shortest = min(travels)
    ratio = float(rng.uniform(1.42, 1.85))
    distance = shortest / (ratio - 1.0) + 0.5 * shortest
    if distance - 0.5 * max(travels) < 2.2:
        raise _Reject
    return distance


def _pack(rng: np.random.Generator, actors: list[_Actor]) -> None:
    """Moves people side by side, from left to right, as close as they may come at any moment."""
    for left, right in zip(actors, actors[1:], strict=False):
        reach = left.joints[..., 0].max(-1) - right.joints[..., 0].min(-1)  # (T,)
        room = (_ROOM + float(rng.uniform(0.0, 0.18))) * left.body.height
        right.joints = right.joints + np.array([float(reach.max()) + room, 0.0, 0.0])
    # all around the origin, so that the perspective is the same for all
    every = np.concatenate([actor.joints[..., 0].ravel() for actor in actors])
    for actor in actors:
        actor.joints = actor.joints - np.array([0.5 * (every.min() + every.max()), 0.0, 0.0])


def _describe(actors: list[_Actor], pose: np.ndarray, heights: np.ndarray, lateral: bool) -> list[dict[str, Any]]:
    """Adds place and size as they came out, and checks that order and direction can be seen."""
    visibility = pose[..., 2] > 0
    if visibility[:, :, JOINT["neck"]].mean() < 0.98 or not visibility.any((-2, -1)).all():
        raise _Reject
    boxes = extent(pose[..., :2], visibility)
    if (np.diff(boxes[:, 0]) < 1.5).any():
        raise _Reject
    metas = []
    for actor, joints, height, box in zip(actors, pose, heights, boxes, strict=True):
        meta = dict(actor.meta)
        shift = float(joints[-1, JOINT["neck"], 0] - joints[0, JOINT["neck"], 0]) / SIZE
        growth = float(height[-1] / height[0])
        direction = meta["direction"]
        if direction in ("left", "right") and (shift if direction == "right" else -shift) < _TRAVEL_SHARE:
            raise _Reject
        if direction in ("toward", "away") and (growth if direction == "toward" else 1.0 / growth) < 1.28:
            raise _Reject
        middle = float(box[0] + box[2]) / 2 / SIZE
        alone = len(actors) == 1
        place = "left" if middle < 0.39 else "right" if middle > 0.61 else "middle"
        if alone and not lateral and (0.36 < middle < 0.42 or 0.58 < middle < 0.64):
            raise _Reject
        tall = float(height.mean())
        meta["place"] = "none" if lateral or not alone else place
        meta["size"] = "none" if direction != "none" or not alone else _size_name(tall)
        metas.append(meta)
    return metas


def _size_name(size: float) -> str:
    if 0.575 < size < 0.585 or 0.735 < size < 0.755:
        raise _Reject
    return "small" if size < 0.58 else "medium" if size < 0.745 else "large"
