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
    ) -> None:
        self.size = (height, width)
        self.num_frames = num_frames
        self.clock = clock
        self.with_hint = with_hint
        self.with_mask = with_mask
        self.hint_boxes = hint_boxes
        self._kept: dict[tuple[str, int, int | None], np.ndarray] = {}  # (F, H, W, 3) by clip and window

    def __call__(self, clip: Clip, rng: np.random.Generator, train: bool) -> list[dict[str, Any]]:
        if clip.video is None:
            raise UserError(
                f"clip {clip.key} has no video, which the renderer is trained on; give shards with a column .mp4 "
                "(`make sample-data` makes some)"
            )
        scene = clip.scene
        window = int(rng.integers(self.clock.windows)) if train and self.clock.windows else None
        indices, stride = self._indices(clip, rng, train, window)
        fit = Letterbox((scene.width, scene.height), (self.size[1], self.size[0]))
        frames = self._kept.get((clip.key, clip.start, window))
        if frames is None:
            frames = fit.frames(read_frames(clip.video, clip.start + indices))
            if window is not None:
                self._kept[clip.key, clip.start, window] = frames
        item: dict[str, Any] = {"frames": frames, "fps": scene.fps / stride, "caption": clip.caption}
        if self.with_hint:
            item["hint"] = draw_hint(scene, indices, self.size, self.hint_boxes)
        if self.with_mask == "always" or (self.with_mask == "validation" and not train):
            fitted = fit.scene(scene.at(indices))
            joints, seen = fitted.joints, fitted.visibility
            item["figure"] = np.stack(
                [figure_mask(joints[:, i], seen[:, i], *self.size) for i in range(self.num_frames)]
            )
        return [item]

    def _indices(self, clip: Clip, rng: np.random.Generator, train: bool, window: int | None) -> tuple[np.ndarray, int]:
        """Frames of the crop that the item shows, and the stride between them."""
        if window is not None:
            rng = np.random.default_rng([zlib.crc32(clip.key.encode()), window])
        last, clock = clip.scene.num_frames - 1, self.clock
        longest = max(last // max(self.num_frames - 1, 1), 1)  # the largest stride that the clip has room for
        wanted = rng.integers(clock.min_stride, clock.max_stride + 1) if train else clock.val_stride
        stride = int(min(wanted, longest))
        room = max(last - stride * (self.num_frames - 1), 0)
        start = int(rng.integers(room + 1)) if train else 0
        return np.minimum(start + stride * np.arange(self.num_frames), last), stride


def collate(items: list[dict[str, Any]]) -> dict[str, Any]:
    """Items to a batch.

    Returns:
        frames (B, F, 3, H, W) in [-1, 1]; fps (B,) frames per second; captions, a list of B; with hints, hint
        (B, F, 3, H, W) in [0, 1]; with masks, figure (B, F, H, W) coverage in [0, 1].
    """
    frames = torch.from_numpy(np.stack([item["frames"] for item in items]))  # (B, F, H, W, 3) uint8
    batch: dict[str, Any] = {
        "frames": frames.permute(0, 1, 4, 2, 3).float() / 127.5 - 1,
        "fps": torch.tensor([item["fps"] for item in items], dtype=torch.float32),
        "captions": [item["caption"] for item in items],
    }
    if "hint" in items[0]:
        batch["hint"] = hint_tensor(np.stack([item["hint"] for item in items]))
    if "figure" in items[0]:
        batch["figure"] = torch.from_numpy(np.stack([item["figure"] for item in items])).float()
    return batch


def hint_tensor(hint: np.ndarray) -> torch.Tensor:
    """Drawn poses (B, F, H, W, 3) uint8 to (B, F, 3, H, W) in [0, 1]."""
    return torch.from_numpy(hint).permute(0, 1, 4, 2, 3).float() / 255
