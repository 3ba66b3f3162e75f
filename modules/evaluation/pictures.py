"""True and found poses side by side, as strips and videos to look at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from modules.files import atomic_write
from modules.llm.scenes import scene_from_plan
from modules.pipeline import Pipeline
from modules.pose.draw import pose_strip, poses_video, side_by_side
from modules.pose.scene import Clip, Person, Scene
from modules.pose.video import write_video

_SIZE = (192, 192)  # px, height and width of a pose


def write_comparisons(folder: Path, comparisons: Sequence[tuple[str, dict[str, Scene]]]) -> None:
    """For each (file name, {label: scene}): <name>.png, strips above each other, and <name>.mp4, side by side.

    The first scene of each is the true one; all are shown on one canvas around the people of all.
    """
    for name, scenes in comparisons:
        folder.mkdir(parents=True, exist_ok=True)
        true = next(iter(scenes.values()))
        shown = {label: _zoomed(scene, list(scenes.values())) for label, scene in scenes.items()}
        strips = [
            part
            for label, scene in shown.items()
            for strip in [pose_strip(scene, count=10, size=_SIZE, boxes=False)]
            for part in (_line(label, strip.shape[1]), strip)
        ]
        width = max(strip.shape[1] for strip in strips)  # scenes may differ in length
        strips = [np.pad(strip, [(0, 0), (0, width - strip.shape[1]), (0, 0)]) for strip in strips]
        with atomic_write(folder / f"{name}.png", "wb") as file:
            file.write(cv2.imencode(".png", np.concatenate(strips)[..., ::-1])[1].tobytes())
        step = true.times[1] - true.times[0] if true.num_frames > 1 else 1 / true.fps
        frames = side_by_side([poses_video(scene, _SIZE) for scene in shown.values()])
        write_video(folder / f"{name}.mp4", _even(frames), round(1 / step))


def written(pipeline: Pipeline, clips: Sequence[Clip], count: int, seed: int) -> list[tuple[str, dict[str, Scene]]]:
    """What the director writes for captions of some clips, all different, below the true key poses."""
    if count == 0:
        return []
    chosen = list({clip.caption: clip for clip in clips}.values())
    chosen = chosen[:: max(len(chosen) // count, 1)][:count]
    director = pipeline.director
    found = []
    seeds = [seed + i for i in range(len(chosen))]
    plans = director.plan([clip.caption for clip in chosen], seeds=seeds, sampling=pipeline.token_sampling)
    for clip, plan in zip(chosen, plans, strict=True):
        width, height = clip.scene.width, clip.scene.height
        canvas: dict[str, Any] = {"width": width, "height": height, "fps": director.fps, "stride": director.stride}
        scene = scene_from_plan(plan, pipeline.tokenizer, **canvas)
        found.append((clip.key.replace("/", "_"), {clip.caption: clip.scene.keys(director.stride), "director": scene}))
    return found


def _line(text: str, width: int) -> np.ndarray:
    """A line of small text: (18, width, 3)."""
    line = np.zeros((18, width, 3), np.uint8)
    cv2.putText(line, text, (4, 13), cv2.FONT_HERSHEY_SIMPLEX, 0.42, (220, 220, 220), 1, cv2.LINE_AA)
    return line


def _zoomed(scene: Scene, on: Sequence[Scene]) -> Scene:
    """The scene on a square canvas around the people of several."""
    boxes = np.concatenate([other.boxes for other in on])
    low, high = boxes[:, :2].min(0), boxes[:, 2:].max(0)
    side = int(np.ceil(1.2 * (high - low).max()))
    shift = np.array([side, side]) / 2 - (low + high) / 2
    persons = [
        Person((p.joints + shift).astype(np.float32), p.visibility, p.box + np.tile(shift, 2)) for p in scene.persons
    ]
    return replace(scene, width=side, height=side, persons=persons)


def _even(frames: np.ndarray) -> np.ndarray:
    """Both sides even, as H.264 wants them."""
    height, width = frames.shape[1:3]
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)))
