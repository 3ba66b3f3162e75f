"""Pictures of a finished data set, to see whether it is right: pose strips, and poses on the video."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from datamodules.sample import FPS, SPLITS, Sample
from datamodules.shards import read_shard
from modules.files import atomic_path
from modules.pose.draw import draw_boxes, draw_skeleton, side_by_side, with_label
from modules.pose.scene import Scene, make_person
from modules.pose.video import read_frames, read_info, write_video

_HEIGHT = 240  # px of a picture in a strip
_PANELS = 8
_THRESHOLD = 0.1


def write_preview(out: Path, count: int, videos: Mapping[str, str] | None = None) -> list[Path]:
    """Writes `{out}/preview/{key}.png`, and `{key}.mp4` where there is a video, for clips spread over the data set.

    Args:
        out: folder of the shards.
        count: number of clips.
        videos: path of the video of each source, for clips whose shards hold none.
    """
    folder = out / "preview"
    if count:
        shutil.rmtree(folder, ignore_errors=True)
    written = []
    for sample in _choose(out, count):
        scene = _scene(sample)
        if not scene.persons:
            continue
        chosen = np.linspace(0, scene.num_frames - 1, _PANELS).round().astype(int).tolist()
        poses = [draw_boxes(draw_skeleton(scene, index), scene) for index in chosen]
        rows = [_row(poses, scene, [f"{scene.times[index]:.2f} s" for index in chosen])]
        frames = _frames(sample, scene, (videos or {}).get(str(sample.meta.get("source")), ""))
        if frames is not None:
            film = np.stack([_overlay(frame, scene, i) for i, frame in enumerate(frames)])
            rows.append(_row([film[index] for index in chosen], scene))
            write_video(folder / f"{sample.key}.mp4", film, FPS)
        strip = np.concatenate([*rows, _line(sample.captions[0], rows[0].shape[1])])
        path = folder / f"{sample.key}.png"
        with atomic_path(path) as temporary:
            Image.fromarray(strip).save(temporary)
        written.append(path)
    return written


def _row(pictures: Sequence[np.ndarray], scene: Scene, labels: Sequence[str] = ()) -> np.ndarray:
    """Pictures of the canvas side by side, cut to where the people are."""
    low, high = scene.boxes[:, :2].min(0), scene.boxes[:, 2:].max(0)
    margin = 0.15 * (high - low).max() + 4
    x0, y0 = np.maximum(low - margin, 0).astype(int).tolist()
    x1, y1 = np.ceil(high + margin).astype(int).tolist()
    panels = []
    for number, picture in enumerate(pictures):
        cut = picture[y0:y1, x0:x1]
        width = min(max(round(_HEIGHT * cut.shape[1] / cut.shape[0]), 1), 3 * _HEIGHT)
        panel = cv2.resize(cut, (width, _HEIGHT), interpolation=cv2.INTER_AREA)
        panels.append(with_label(panel, labels[number]) if labels else panel)
    return side_by_side(panels)


def _line(text: str, width: int) -> np.ndarray:
    """A line of text on black."""
    line = np.zeros((24, width, 3), np.uint8)
    plain = text.encode("ascii", "replace").decode()
    cv2.putText(line, plain, (4, 17), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (230, 230, 230), 1, cv2.LINE_AA)
    return line


def _choose(out: Path, count: int) -> list[Sample]:
    """Clips at equal distances over all shards."""
    shards = [
        path
        for split in SPLITS
        for pattern in (f"{split}-*.tar", f"{split}/pose-*.tar")
        for path in sorted(out.glob(pattern))
    ]
    shards = shards if count else []
    samples: list[Sample] = []
    for place in np.linspace(0, len(shards), count, endpoint=False).tolist() if shards else []:
        records = list(read_shard(str(shards[int(place)]), ("pose",)))
        samples.append(records[int((place % 1) * len(records))].sample())
    return list({sample.key: sample for sample in samples}.values())


def _scene(sample: Sample) -> Scene:
    width, height = sample.meta["width"], sample.meta["height"]
    seen = sample.poses[..., 2] > _THRESHOLD
    people = [make_person(p[..., :2], v, width, height) for p, v in zip(sample.poses, seen, strict=True) if v.any()]
    return Scene(width, height, float(FPS), np.arange(sample.poses.shape[1]) / FPS, people, sample.captions[0])


def _frames(sample: Sample, scene: Scene, video: str) -> np.ndarray | None:
    """The pictures of a clip on the canvas of its poses."""
    if not video:
        return None
    fps = read_info(video).fps
    times = sample.meta["start_seconds"] + scene.times
    frames = read_frames(video, np.floor(times * fps + 0.5).astype(int))
    size = scene.width, scene.height
    if frames.shape[1:3] == size[::-1]:
        return frames
    return np.stack([cv2.resize(frame, size, interpolation=cv2.INTER_AREA) for frame in frames])


def _overlay(frame: np.ndarray, scene: Scene, index: int) -> np.ndarray:
    drawn = draw_skeleton(scene, index)
    shown = drawn.any(-1, keepdims=True)
    picture = draw_boxes(np.where(shown, drawn, frame), scene)
    for number, person in enumerate(scene.persons):
        x, y = person.box[:2].astype(int).tolist()
        cv2.putText(picture, str(number), (x, max(y - 4, 12)), cv2.FONT_HERSHEY_SIMPLEX, 0.6, (255, 255, 0), 2)
    return picture

