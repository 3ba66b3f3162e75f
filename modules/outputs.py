"""What the chain leaves for people: one folder a prompt, written as a whole or not at all."""

from __future__ import annotations

import math
import os
import re
import secrets
import shutil
import textwrap
import unicodedata
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from modules.pipeline import Result
from modules.pose.draw import draw_boxes, draw_skeleton, poses_video, side_by_side, with_label
from modules.pose.io import write_openpose, write_plan
from modules.pose.letterbox import Letterbox
from modules.pose.scene import Scene
from modules.pose.video import write_video

FILES = ("plan.json", "poses.json", "poses.npy", "poses.mp4", "video.mp4", "video.gif", "sheet.png")
SHORTER_SIDE = 256  # px, at least, of the videos that people watch
_PANEL = 160  # px, height of a picture on the sheet
_PANELS = 10
_SLUG_LENGTH = 48


def slug(prompt: str) -> str:
    """A name for a folder: the prompt's words in ASCII, joined by hyphens."""
    ascii_text = unicodedata.normalize("NFKD", prompt).encode("ascii", "ignore").decode().lower()
    words = re.sub(r"[^a-z0-9]+", "-", ascii_text).strip("-")
    if len(words) > _SLUG_LENGTH:
        words = words[: _SLUG_LENGTH + 1].rpartition("-")[0] or words[:_SLUG_LENGTH]
    return words or "prompt"


def write_result(folder: Path, result: Result, scale: int = 0) -> None:
    """Write all FILES. A folder of that name is replaced.

    Args:
        scale: pixels of `video.mp4` per rendered pixel; 0: as many as make its shorter side 256 px or more.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    fresh = folder.with_name(f".{folder.name}.{secrets.token_hex(4)}")
    stale = folder.with_name(f"{fresh.name}.old")
    fresh.mkdir()
    try:
        for name in FILES:
            write_file(fresh / name, result, scale)
        if folder.exists():
            os.replace(folder, stale)
        os.replace(fresh, folder)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(stale, ignore_errors=True)


def write_file(path: Path, result: Result, scale: int = 0) -> None:
    """Write the one of FILES that `path` is named after. `plan.json` needs the plan alone; poses need no frames."""
    name = path.name
    if name == "plan.json":
        write_plan(path, result.plan)
    elif name == "poses.json":
        write_openpose(path, result.dense)
    elif name == "poses.npy":
        np.save(path, pose_array(result.dense), allow_pickle=False)
    elif name == "poses.mp4":
        size = _enlarged(result.dense.height, result.dense.width)
        write_video(path, poses_video(result.dense, size), result.dense.fps)
    elif name == "video.mp4":
        write_video(path, enlarge(result.frames, scale), result.fps)
    elif name == "video.gif":
        write_gif(path, enlarge(result.frames, scale), result.fps)
    elif name == "sheet.png":
        Image.fromarray(sheet(result)).save(path)
    else:
        raise ValueError(f"{name} is none of {', '.join(FILES)}")


def write_gif(path: Path, frames: np.ndarray, fps: float) -> None:
    """An animated GIF that repeats; frames (F, H, W, 3) uint8. Its clock has steps of 10 ms."""
    # One palette for all frames: colours of their own for each would flicker.
    step = max(1, len(frames) // 8)
    sample = np.concatenate(list(frames[::step]), axis=1)
    palette = Image.fromarray(sample).quantize(256)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    pictures[0].save(
        path, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0, disposal=1
    )


def pose_array(scene: Scene) -> np.ndarray:
    """(P, T, 18, 3) float32: x px, y px, confidence 0 or 1; the layout of the shards."""
    return np.concatenate([scene.joints, scene.visibility[..., None]], -1).astype(np.float32)


def _enlarged(height: int, width: int) -> tuple[int, int]:
    factor = max(1, math.ceil(SHORTER_SIDE / min(height, width)))
    return height * factor, width * factor


def enlarge(frames: np.ndarray, scale: int = 0) -> np.ndarray:
    """Frames (F, H, W, 3) at a whole multiple of their size."""
    height, width = frames.shape[1:3]
    size = _enlarged(height, width) if scale == 0 else (height * scale, width * scale)
    if size == (height, width):
        return frames
    return np.stack([cv2.resize(frame, size[::-1], interpolation=cv2.INTER_CUBIC) for frame in frames])


def sheet(result: Result) -> np.ndarray:
    """Key poses with boxes above the rendered frames of the same moments, under the prompt: (H, W, 3) uint8."""
    keys, frames = result.plan.scene_keys, result.frames
    size = (_PANEL, max(1, round(_PANEL * keys.width / keys.height)))
    fit = Letterbox((frames.shape[2], frames.shape[1]), (size[1], size[0]))
    indices = np.unique(np.linspace(0, keys.num_frames - 1, _PANELS).round().astype(int))
    columns = []
    for index in indices.tolist():
        pose = draw_boxes(draw_skeleton(keys, index, size), keys)
        frame = min(round(float(keys.times[index]) * result.fps), len(frames) - 1)
        columns.append(
            with_label(np.concatenate([pose, fit.frames(frames[frame : frame + 1])[0]]), f"{keys.times[index]:.2f} s")
        )
    strip = side_by_side(columns)
    return np.concatenate([_heading(f"{keys.prompt}  (seed {result.plan.seed})", strip.shape[1]), strip])


def overview(sheets: Sequence[Path]) -> np.ndarray:
    """Sheets of several scenes below each other at half their size: (H, W, 3) uint8."""
    pictures = [Image.open(path).convert("RGB") for path in sheets]
    halves = [np.asarray(picture.reduce(2)) for picture in pictures]
    width = max(half.shape[1] for half in halves)
    return np.concatenate([np.pad(half, ((0, 4), (0, width - half.shape[1]), (0, 0))) for half in halves])


def _heading(text: str, width: int) -> np.ndarray:
    font = ImageFont.load_default(size=15)
    per_line = max(8, int(width / max(font.getlength("n"), 1)))
    lines = textwrap.wrap(text, per_line)[:6] or [""]
    image = Image.new("RGB", (width, 20 * len(lines) + 8), (0, 0, 0))
    ImageDraw.Draw(image).multiline_text((6, 4), "\n".join(lines), (230, 230, 230), font, spacing=5)
    return np.asarray(image)
