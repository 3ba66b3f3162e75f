"""Training of the base: first the autoencoder, then UNet and text tower on its latents."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from modules.base.config import BaseConfig
from modules.base.data import collate, make_encode
from modules.base.network import BaseNetwork, network_config, write_sums
from modules.checkpoint import WEIGHTS_FILE, save_export
from modules.controlnet.config import ClockConfig
from modules.controlnet.diffusion import (
    diffusion_loss,
    draw_timesteps,
    drop_captions,
    figure_weights,
    fixed_noise,
    is_hidden,
)
from modules.controlnet.sampler import Guidance, sample, to_pixels
from modules.optim import OptimConfig, lr_factor, make_optimizer, param_groups
from modules.pose.draw import side_by_side
from modules.pose.scene import Clip

_MOMENTUM = 0.98  # of the running mean and spread of the latents
_SHOWN = 4  # sample videos


class BaseModule(L.LightningModule):
    """Two phases in one run: `vae_steps` steps of the autoencoder, then text-to-video on its latents.

    The autoencoder never moves in the second phase, nor do the statistics that normalise its latents.
    """

    monitor = ("val/loss", "min")
    columns: tuple[str, ...] = ("pose", "video")

    def __init__(self, config: dict[str, Any] | BaseConfig, max_steps: int) -> None:
        super().__init__()
        self.config = config if isinstance(config, BaseConfig) else from_plain(config)
        self.max_steps = max_steps
        self.save_hyperparameters({"config": dataclasses.asdict(self.config), "max_steps": max_steps})
        self.network = BaseNetwork(self.config.network)
        self.encode, self.collate = make_encode(self.config), collate
        network = self.config.network
        # Drawn poses to features at the size of the latents, for the clips of `hint_share`; no part of the export.
        self.scaffold: nn.Module = nn.Identity()
        if self.config.hint_share:
            self.scaffold = nn.Conv2d(3 * network.vae.factor**2, network.unet.block_out_channels[0], 1)

    def setup_data(self, clips: Callable[[], Iterable[Clip]]) -> None:
        """The words of the training captions."""
        self.network.text.fit_vocabulary(clip.caption for clip in clips())
        self.network.text.load_pretrained()

    @property
    def in_vae_phase(self) -> bool:
        return self.global_step < self.config.vae_steps

    def vae_loss(self, frames: Tensor, track: bool) -> dict[str, Tensor]:
        """Reconstruction of single frames (N, 3, H, W): absolute and squared error, a little pull to a unit Gaussian.

        `track` moves the running statistics of the latents.
        """
        posterior = self.network.posterior(frames)
        result = self.network.vae.decode(posterior.sample() if track else posterior.mode()).sample  # pyright: ignore
        error = result.float() - frames
        weight = self._detail_weight(frames)
        reconstruction = (weight * (error.abs() + error.square())).mean()
        kl = posterior.kl().float().mean() / posterior.mean[0].numel()
        if track:
            self._track_latents(posterior.mean.detach().float())
        return {"loss": reconstruction + self.config.kl_weight * kl, "reconstruction": reconstruction, "kl": kl}

    def _detail_weight(self, frames: Tensor) -> Tensor:
        """Weights (N, 1, H, W), 1 on average: flat areas are learned at once, the rest is what takes time."""
        around = torch.nn.functional.avg_pool2d(frames, 7, stride=1, padding=3, count_include_pad=False)
        contrast = (2 * (frames - around).abs()).amax(1, keepdim=True).clamp_max(1)
        weight = 1 + self.config.detail_weight * contrast
        return weight / weight.mean()

    @torch.no_grad()
    def _track_latents(self, latents: Tensor) -> None:
        """Running mean and spread of each channel of raw latents (N, C, h, w), from which they are normalised."""
        std, mean = torch.std_mean(latents, (0, 2, 3))
        keep = _MOMENTUM if self.global_step > 0 else 0.0
        self.network.latent_shift.mul_(keep).add_(mean * (1 - keep))
        scale = self.network.latent_scale
        scale.copy_(1 / (keep / scale + (1 - keep) * std.clamp_min(1e-4)))

    def model_step(
        self,
        batch: dict[str, Any],
        timestep: Tensor,
        noise: Tensor,
        captions: list[str],
        extra: Tensor | None = None,
        weight: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Diffusion loss of a batch at given timesteps (B,) and noise (B, C, F, h, w).

        Args:
            extra: (B * F, C0, h, w) features added after the UNet's first convolution.
            weight: of the loss, see `figure_weights`.
        """
        latents = self.network.encode_frames(batch["frames"])
        text = self.network.encode_text(captions)
        noisy = self.network.schedule.add_noise(latents, noise, timestep)
        prediction = self.network(noisy, timestep, text, batch["fps"], extra=extra)
        return diffusion_loss(self.network.schedule, prediction, latents, noise, timestep, weight)

    def _hints(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Arguments of `model_step` that show a share of the clips with their drawn poses; nothing where it is 0."""
        config = self.config
        if not config.hint_share:
            return {}
        hint = batch["hint"]  # (B, F, 3, H, W)
        shown = torch.rand(len(hint), device=hint.device) < config.hint_share
        pixels = nn.functional.pixel_unshuffle(hint.flatten(0, 1), config.network.vae.factor)
        extra = self.scaffold(pixels) * shown.repeat_interleave(hint.shape[1])[:, None, None, None]
        if not config.figure_weight:
            return {"extra": extra}
        weight = figure_weights(batch["figure"], self.network.latent_size, config.figure_weight * shown)
        return {"extra": extra, "weight": weight}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        if self.in_vae_phase:
            frames = batch["frames"].flatten(0, 1)
            chosen = torch.randperm(len(frames), device=frames.device)[: self.config.vae_frames]
            parts = self.vae_loss(frames[chosen], track=True)
            self.log_dict({f"train/vae_{key}": value for key, value in parts.items()})
            self.log("train/loss", parts["loss"])
            return parts["loss"]
        batch = self._window(batch)
        batch_size, steps = len(batch["captions"]), self.config.network.schedule.steps
        timestep = draw_timesteps(batch_size, steps, self.config.timestep_bias).to(self.device)
        noise = torch.randn(self._latent_shape(batch), device=self.device)
        captions = drop_captions(batch["captions"], self.config.caption_dropout)
        parts = self.model_step(batch, timestep, noise, captions, **self._hints(batch))
        self.log_dict({f"train/{key}": value for key, value in parts.items()}, batch_size=batch_size)
        return parts["weighted"]

    def _window(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The part of a batch that this step of the second phase sees: a few frames of all clips, or whole clips."""
        config, frames = self.config, batch["frames"]
        first = config.vae_steps + config.short_share * (self.max_steps - config.vae_steps)
        if self.global_step < first:
            start = int(torch.randint(max(frames.shape[1] - config.short_frames, 0) + 1, ()))
            chosen = slice(start, start + config.short_frames)
            return batch | {key: batch[key][:, chosen] for key in ("frames", "hint", "figure") if key in batch}
        return {key: value[: config.long_clips] for key, value in batch.items()}

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        """Loss at fixed timesteps and noise. In the first phase it is that of the untrained UNet, about 1."""
        batch_size, steps = len(batch["captions"]), self.config.network.schedule.steps
        timestep, noise = fixed_noise(self._latent_shape(batch), steps, batch_idx, self.device)
        parts = self.model_step(batch, timestep, noise, batch["captions"])
        self.log("val/loss", parts["loss"], batch_size=batch_size, sync_dist=True)
        if self.in_vae_phase or batch_idx == 0:
            vae = self.vae_loss(batch["frames"].flatten(0, 1)[: self.config.vae_frames], track=False)
            self.log("val/reconstruction", vae["reconstruction"], batch_size=batch_size, sync_dist=True)

    def _latent_shape(self, batch: dict[str, Any]) -> tuple[int, ...]:
        batch_size, frames = batch["frames"].shape[:2]
        return (batch_size, self.config.network.vae.latent_channels, frames, *self.network.latent_size)

    def configure_optimizers(self) -> Any:
        """One optimiser; each phase has its own warm-up and cosine. A parameter without a gradient is not touched."""
        config, first = self.config, self.config.vae_steps
        parts = {"unet": self.network.unet, "text": self.network.text, "scaffold": self.scaffold}
        others = [(f"{part}.{name}", p) for part, module in parts.items() for name, p in module.named_parameters()]
        vae = param_groups(self.network.vae.named_parameters(), config.vae_optim, is_hidden)
        rest = param_groups(others, config.optim, is_hidden)
        optimizer = make_optimizer([*vae, *rest])

        def vae_factor(step: int) -> float:
            return lr_factor(step, config.vae_optim, first) if step < first else 0.0

        def factor(step: int) -> float:
            return lr_factor(step - first, config.optim, self.max_steps - first) if step >= first else 0.0

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, [vae_factor] * len(vae) + [factor] * len(rest))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @torch.no_grad()
    def sample_videos(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Truth, reconstruction and (in the second phase) videos from the captions, one row each."""
        frames = batch["frames"][:_SHOWN]
        captions, rate = batch["captions"][:_SHOWN], batch["fps"][:_SHOWN]
        rebuilt = self.network.decode_latents(self.network.encode_frames(frames))
        rows = [to_pixels(frames), to_pixels(rebuilt)]
        if not self.in_vae_phase:
            rows.append(
                sample(
                    self.network, captions, list(range(len(captions))), num_frames=frames.shape[1], fps=rate,
                    steps=self.config.sampling_steps, guidance=Guidance(self.config.sampling_guidance),
                )
            )  # fmt: skip
        return {"truth_reconstruction_generated": np.concatenate([side_by_side(list(row)) for row in rows], axis=1)}

    def export(self, directory: Path, info: dict[str, Any]) -> None:
        """Weights at half precision, with a checksum file that is verified on loading."""
        full = self.network.state_dict()
        state = {key: value.half() if value.is_floating_point() else value for key, value in full.items()}
        config = dataclasses.asdict(self.config)
        config["network"] = dataclasses.asdict(self.network.export_config())
        save_export(
            directory, stage="base", config=config, state=state, info=info,
            extra=lambda folder: write_sums(folder, [WEIGHTS_FILE]),
        )  # fmt: skip


def from_plain(values: dict[str, Any]) -> BaseConfig:
    """The typed configuration from plain dicts."""
    values = copy.deepcopy(values)
    parts = {"optim": OptimConfig, "vae_optim": OptimConfig, "clock": ClockConfig, "network": None}
    built = {key: network_config(values[key]) if kind is None else kind(**values[key]) for key, kind in parts.items()}
    return BaseConfig(**{**values, **built})
