"""Clips to training items of the renderer: a window of frames, the drawn poses of the same frames, the caption."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch

from modules.controlnet.config import ClockConfig
from modules.errors import UserError
from modules.pose.draw import draw_boxes, draw_pose
from modules.pose.figures import figure_mask
from modules.pose.letterbox import Letterbox
from modules.pose.scene import Clip, Scene
from modules.pose.video import read_frames


def draw_hint(
    scene: Scene, indices: Sequence[int] | np.ndarray, size: tuple[int, int], boxes: bool = False
) -> np.ndarray:
    """Skeletons of some frames of a scene in OpenPose's colours on black, letterboxed: (F, H, W, 3) uint8.

    Args:
        boxes: draw the people's boxes, too, one colour a person.
    """
    fit = Letterbox((scene.width, scene.height), (size[1], size[0]))
    joints, seen = scene.joints, scene.visibility
    drawn = [draw_pose(fit.points(joints[:, index]), seen[:, index], size) for index in indices]
    return np.stack([draw_boxes(picture, scene) for picture in drawn] if boxes else drawn)


class Encode:
    """One window of `num_frames` frames a clip.

    In training the stride between frames is random, the start too; otherwise the window starts at the crop's first
    frame. A clip too short for its stride is shown at a smaller one; one with fewer frames than the window holds its
    last frame.
    """

    def __init__(
        self,
        *,
        width: int,
        height: int,
        num_frames: int,
        clock: ClockConfig,
        with_hint: bool,
        with_mask: Literal["never", "validation", "always"] = "never",
        hint_boxes: bool = False,
        cached_by: str | None = None,
    ) -> None:
        """Args:
        cached_by: fingerprint of the base whose latents and text states are shown instead of frames.
        """
        self.size = (height, width)
        self.num_frames = num_frames
        self.clock = clock
        self.with_hint = with_hint
        self.with_mask = with_mask
        self.hint_boxes = hint_boxes
        self.cached_by = cached_by
        self._kept: dict[tuple[str, int, int | None], np.ndarray] = {}  # (F, H, W, 3) by clip and window

    def __call__(self, clip: Clip, rng: np.random.Generator, train: bool) -> list[dict[str, Any]]:
        scene = clip.scene
        window = int(rng.integers(self.clock.windows)) if train and self.clock.windows else None
        every = self._cached_every(clip)
        indices, stride = self._indices(clip, rng, train, window, every)
        fit = Letterbox((scene.width, scene.height), (self.size[1], self.size[0]))
        item: dict[str, Any] = {"fps": scene.fps / stride, "caption": clip.caption}
        if self.cached_by is not None:
            assert clip.latents is not None
            item |= {"latents": clip.latents[(clip.start + indices) // every], "text": clip.text}
        else:
            item["frames"] = self._frames(clip, indices, window, fit)
        if self.with_hint:
            item["hint"] = draw_hint(scene, indices, self.size, self.hint_boxes)
        if self.with_mask == "always" or (self.with_mask == "validation" and not train):
            fitted = fit.scene(scene.at(indices))
            joints, seen = fitted.joints, fitted.visibility
            item["figure"] = np.stack(
                [figure_mask(joints[:, i], seen[:, i], *self.size) for i in range(self.num_frames)]
            )
        return [item]

    def _frames(self, clip: Clip, indices: np.ndarray, window: int | None, fit: Letterbox) -> np.ndarray:
        """(F, H, W, 3) uint8."""
        if clip.video is None:
            raise UserError(
                f"clip {clip.key} has no video, which the renderer is trained on; give shards with a column .mp4 "
                "(`make sample-data` makes some)"
            )
        frames = self._kept.get((clip.key, clip.start, window))
        if frames is None:
            frames = fit.frames(read_frames(clip.video, clip.start + indices))
            if window is not None:
                self._kept[clip.key, clip.start, window] = frames
        return frames

    def _cached_every(self, clip: Clip) -> int:
        """Of how many dense frames one has latents; 1 where frames are read."""
        if self.cached_by is None:
            return 1
        cache = clip.meta.get("cache", {})
        if cache.get("base") != self.cached_by:
            raise UserError(
                f"clip {clip.key} has latents of another base ({str(cache.get('base'))[:12]}...) than model.base "
                f"({self.cached_by[:12]}...): make them again with `python prepare.py latents base=...`"
            )
        return int(cache["every"])

    def _indices(
        self, clip: Clip, rng: np.random.Generator, train: bool, window: int | None, every: int
    ) -> tuple[np.ndarray, int]:
        """Frames of the crop that the item shows, and the stride between them; all on the grid of cached frames."""
        if window is not None:
            rng = np.random.default_rng([zlib.crc32(clip.key.encode()), window])
        first, clock = -clip.start % every, self.clock
        last = (clip.scene.num_frames - 1 - first) // every  # counted in cached frames, as all below
        longest = max(last // max(self.num_frames - 1, 1), 1)  # the largest stride that the clip has room for
        wanted = rng.integers(clock.min_stride, clock.max_stride + 1) if train else clock.val_stride
        stride = min(max(int(wanted) // every, 1), longest)
        room = max(last - stride * (self.num_frames - 1), 0)
        start = int(rng.integers(room + 1)) if train else 0
        return first + every * np.minimum(start + stride * np.arange(self.num_frames), max(last, 0)), stride * every


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items to a batch.

    Returns:
        frames (B, F, 3, H, W) in [-1, 1], or latents (B, C, F, h, w) and text (B, L, D); fps (B,) frames per second;
        captions, a list of B; with hints, hint (B, F, 3, H, W) in [0, 1]; with masks, figure (B, F, H, W) coverage in
        [0, 1].
    """
    batch: dict[str, Any] = {
        "fps": torch.tensor([item["fps"] for item in items], dtype=torch.float32),
        "captions": [item["caption"] for item in items],
    }
    if "frames" in items[0]:
        frames = torch.from_numpy(np.stack([item["frames"] for item in items]))  # (B, F, H, W, 3) uint8
        batch["frames"] = frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1
    else:
        latents = torch.from_numpy(np.stack([item["latents"] for item in items]))  # (B, F, C, h, w) float16
        batch["latents"] = latents.transpose(1, 2).float()
        batch["text"] = torch.from_numpy(np.stack([item["text"] for item in items])).float()
    if "hint" in items[0]:
        batch["hint"] = hint_tensor(np.stack([item["hint"] for item in items]))
    if "figure" in items[0]:
        batch["figure"] = torch.from_numpy(np.stack([item["figure"] for item in items])).float()
    return batch


def hint_tensor(hint: np.ndarray) -> torch.Tensor:
    """Drawn poses (B, F, H, W, 3) uint8 to (B, F, 3, H, W) in [0, 1]."""
    return torch.from_numpy(hint).permute(0, 1, 4, 2, 3).float() / 255
