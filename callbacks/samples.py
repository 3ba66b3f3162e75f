"""Pictures and videos of what a stage makes, in TensorBoard."""

from __future__ import annotations

import io
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.compat.proto.summary_pb2 import Summary  # pyright: ignore[reportAttributeAccessIssue]  # generated


class Samples(L.Callback):
    """Shows the first validation batch every `every` validations.

    A stage gives `sample_images(batch) -> {name: (H, W, 3) uint8}`, `sample_videos(batch) -> {name: (T, H, W, 3)
    uint8}`, or both. Videos are shown as animated GIFs.
    """

    def __init__(self, every: int, fps: float = 10.0):
        self.every = every
        self.fps = fps
        self._validations = 0
        self._batch: Any = None

    def on_validation_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if batch_idx == 0:
            self._batch = batch

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Runs while averaged weights are in place. Every rank takes part: sharded networks need all of them."""
        batch, self._batch = self._batch, None
        if trainer.sanity_checking or batch is None:
            return
        self._validations += 1
        if self._validations % self.every and trainer.global_step < trainer.max_steps:
            return
        images = _call(pl_module, "sample_images", batch)
        videos = _call(pl_module, "sample_videos", batch)
        if not isinstance(trainer.logger, TensorBoardLogger) or not trainer.is_global_zero:
            return
        writer = trainer.logger.experiment
        for name, image in images.items():
            writer.add_image(f"samples/{name}", image, trainer.global_step, dataformats="HWC")
        for name, frames in videos.items():
            summary = Summary(value=[Summary.Value(tag=f"samples/{name}", image=gif_summary(frames, self.fps))])
            writer._get_file_writer().add_summary(summary, trainer.global_step)

    def state_dict(self) -> dict[str, Any]:
        return {"validations": self._validations}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._validations = state_dict["validations"]


def _call(pl_module: L.LightningModule, name: str, batch: Any) -> dict[str, np.ndarray]:
    method = getattr(pl_module, name, None)
    return method(batch) if method is not None else {}


def gif_summary(frames: np.ndarray, fps: float) -> Summary.Image:
    """Frames (T, H, W, 3) uint8 as TensorBoard's own image type: browsers play a GIF in the place of a PNG."""
    pictures = [Image.fromarray(frame) for frame in frames]
    data = io.BytesIO()
    pictures[0].save(
        data, format="GIF", save_all=True, append_images=pictures[1:], duration=round(1000 / fps), loop=0
    )
    height, width = frames.shape[1:3]
    return Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=data.getvalue())
