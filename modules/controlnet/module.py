"""Training of the pose ControlNet on a frozen base."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import lightning as L
import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanMetric

from modules.checkpoint import fingerprint, save_export
from modules.controlnet.config import ClockConfig, ControlNetConfig, ControlNetworkConfig
from modules.controlnet.controlnet import control_parameters
from modules.controlnet.data import Encode, collate
from modules.controlnet.diffusion import (
    diffusion_loss,
    draw_timesteps,
    drop_captions,
    figure_weights,
    fixed_noise,
    is_hidden,
)
from modules.controlnet.network import PoseRenderer, load_base
from modules.controlnet.sampler import Control, Guidance, sample, to_pixels
from modules.metrics.video import figure_iou, segment
from modules.optim import OptimConfig, lr_factor, make_optimizer, param_groups
from modules.pose.draw import side_by_side

if TYPE_CHECKING:
    from modules.base.network import BaseNetwork

_SHOWN = 4  # sample videos


class ControlNetModule(L.LightningModule):
    """Diffusion loss of the controlled base; only the ControlNet is trained.

    The best checkpoint is the one whose sampled videos follow the poses best: `val/iou` is the overlap of the figures
    segmented from a few sampled clips with the figures drawn from the same poses. The loss hardly tells, because it is
    mostly about what the base does anyway.
    """

    monitor = ("val/iou", "max")
    columns: tuple[str, ...] = ("pose", "video")

    def __init__(
        self, config: dict[str, Any] | ControlNetConfig, max_steps: int, base: BaseNetwork | None = None
    ) -> None:
        """`base` stands in for the export that the configuration names (tests; a base that is not exported)."""
        super().__init__()
        self.config = config if isinstance(config, ControlNetConfig) else from_plain(config)
        self.max_steps = max_steps
        self.save_hyperparameters({"config": dataclasses.asdict(self.config), "max_steps": max_steps})
        base = load_base(self.config.base) if base is None else base
        self.renderer = PoseRenderer(base, self.config.network)
        if self.config.base_precision != "float32":
            base.set_precision(getattr(torch, self.config.base_precision))  # the ControlNet was copied before
        self.renderer.control.checkpoint_blocks = self.config.gradient_checkpointing
        base.unet.checkpoint_blocks = self.config.gradient_checkpointing
        network = base.config
        self.encode = Encode(
            width=network.width, height=network.height, num_frames=network.num_frames, clock=self.config.clock,
            with_hint=True, with_mask="always" if self.config.figure_weight else "validation",
            hint_boxes=self.config.network.hint_boxes,
            cached_by=fingerprint(self.config.base) if self.config.cached else None,
        )  # fmt: skip
        self.collate = collate
        if self.config.cached:
            self.columns = ("pose", "latents", "text")
        self._empty: Tensor | None = None  # (1, L, D) states of the empty prompt
        self.iou = MeanMetric()
        self._sampled = 0

    def model_step(
        self, batch: dict[str, Any], timestep: Tensor, noise: Tensor, captions: list[str], weight: Tensor | None = None
    ) -> dict[str, Tensor]:
        """Diffusion loss at given timesteps (B,) and noise (B, C, F, h, w)."""
        base = self.renderer.base
        latents = batch["latents"] if "latents" in batch else base.encode_frames(batch["frames"])
        text = self._text(batch, captions)
        noisy = base.schedule.add_noise(latents, noise, timestep)
        prediction = self.renderer.predict(noisy, timestep, text, batch["fps"], batch["hint"])
        return diffusion_loss(base.schedule, prediction, latents, noise, timestep, weight)

    @torch.no_grad()
    def _text(self, batch: dict[str, Any], captions: list[str]) -> Tensor:
        """Text states (B, L, D) of the captions of a batch, some of which may have been dropped."""
        base = self.renderer.base
        if "text" not in batch:
            return base.encode_text(captions)
        if self._empty is None:
            self._empty = base.encode_text([""])
        told = torch.tensor([bool(caption) for caption in captions], device=self.device)
        return torch.where(told[:, None, None], batch["text"], self._empty)

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        config, schedule = self.config, self.renderer.base.schedule
        batch_size = len(batch["captions"])
        timestep = draw_timesteps(batch_size, schedule.config.steps, config.timestep_bias).to(self.device)
        noise = torch.randn(self._latent_shape(batch), device=self.device)
        captions = drop_captions(batch["captions"], config.caption_dropout)
        parts = self.model_step(batch, timestep, noise, captions, self._figure_weight(batch))
        self.log_dict({f"train/{key}": value for key, value in parts.items()}, batch_size=batch_size)
        return parts["weighted"]

    def _figure_weight(self, batch: dict[str, Any]) -> Tensor | None:
        """Weights (B, 1, F, h, w) of the loss, where any are asked for."""
        if not self.config.figure_weight:
            return None
        return figure_weights(batch["figure"], self.renderer.base.latent_size, self.config.figure_weight)

    def _latent_shape(self, batch: dict[str, Any]) -> tuple[int, ...]:
        base, (batch_size, frames) = self.renderer.base, batch["hint"].shape[:2]
        return (batch_size, base.config.vae.latent_channels, frames, *base.latent_size)

    def on_validation_epoch_start(self) -> None:
        self._sampled = 0

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss with control at fixed timesteps and noise; overlap of sampled figures with the drawn ones."""
        base, batch_size = self.renderer.base, len(batch["captions"])
        timestep, noise = fixed_noise(self._latent_shape(batch), base.schedule.config.steps, batch_idx, self.device)
        parts = self.model_step(batch, timestep, noise, batch["captions"])
        self.log("val/loss", parts["loss"], batch_size=batch_size, sync_dist=True)
        count = min(batch_size, self.config.sampled_clips - self._sampled)
        if count > 0:
            videos = self._sample(batch, count, first_seed=self._sampled)
            self._sampled += count
            drawn = (batch["figure"][:count] > 0.5).cpu().numpy()
            for video, mask in zip(videos, drawn, strict=True):
                self.iou.update(float(figure_iou(segment(video), mask).mean()))
            self.log("val/iou", self.iou)

    def _sample(self, batch: dict[str, Any], count: int, first_seed: int = 0) -> np.ndarray:
        """Videos (count, F, H, W, 3) uint8 of a batch's captions and poses."""
        config = self.config
        hint = batch["hint"][:count]
        return sample(
            self.renderer.base, batch["captions"][:count], range(first_seed, first_seed + count),
            num_frames=hint.shape[1], fps=batch["fps"][:count], steps=config.sampling_steps,
            guidance=Guidance(config.sampling_guidance), control=Control(self.renderer.control, hint),
        )  # fmt: skip

    def configure_optimizers(self) -> Any:
        """Hint encoder and zero convolutions, which start from nothing, may learn faster than the copy."""
        optim, groups = self.config.optim, []
        for name, parameters in control_parameters(self.renderer.control).items():
            scale = self.config.fresh_lr_scale if name == "fresh" else 1.0
            groups += param_groups(parameters, optim, is_hidden, scale)
        optimizer = make_optimizer(groups)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, optim, self.max_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @torch.no_grad()
    def sample_videos(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Truth, poses and the videos rendered from them, one row each."""
        count = min(len(batch["captions"]), _SHOWN)
        poses = to_pixels(batch["hint"][:count] * 2 - 1)
        base = self.renderer.base
        frames = batch["frames"][:count] if "frames" in batch else base.decode_latents(batch["latents"][:count])
        rows = [to_pixels(frames), poses, self._sample(batch, count)]
        return {"truth_poses_rendered": np.concatenate([side_by_side(list(row)) for row in rows], axis=1)}

    def export(self, directory: Path, info: dict[str, Any]) -> None:
        """The ControlNet alone; the base is named by its path and the hash of its weights."""
        config = {**dataclasses.asdict(self.config), "base_fingerprint": fingerprint(self.config.base)}
        save_export(directory, stage="controlnet", config=config, state=self.renderer.state_dict(), info=info)


def from_plain(values: dict[str, Any]) -> ControlNetConfig:
    """The typed configuration from plain dicts."""
    values = copy.deepcopy(values)
    parts = {"optim": OptimConfig, "clock": ClockConfig, "network": ControlNetworkConfig}
    return ControlNetConfig(**{**values, **{key: kind(**values[key]) for key, kind in parts.items()}})
