"""Training of the interpolator."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from modules.checkpoint import load_frozen, read_export, save_export
from modules.interp.config import InterpConfig, SamplingConfig
from modules.interp.data import Encode, collate, person_item
from modules.interp.losses import Mean, counted_joints, outline_losses, residual_losses, spread_loss, visibility_loss
from modules.interp.network import InterpNetwork, network_config, preconditioning
from modules.interp.noise import TRAIN_TIMESTEPS, draw_window_noise, noise_schedule
from modules.interp.outline import cut_segments, hide_outer
from modules.interp.sampler import DensePoses, pull_to_keys, sample
from modules.interp.splines import clip_spline
from modules.interp.windows import Windows, cut_windows, gather_frames
from modules.metrics.pose import Average, mean_acceleration, position_error
from modules.optim import OptimConfig, build_optimizer
from modules.pose.boxes import denormalise
from modules.pose.draw import pose_strip, poses_video, side_by_side, with_label
from modules.pose.scene import Clip, Person, Scene

_FIT_CLIPS = 300  # clips from which the unit of the residual is fitted
_SCORES = ("mpjpe", "mpjpe_linear", "mpjpe_pchip", "acceleration", "true_acceleration", "visibility_accuracy")
_CANVAS = 160  # px, pictures of samples


class InterpModule(L.LightningModule):
    """Denoising of windows between key poses; every person of a clip is a sample."""

    monitor = ("val/mpjpe", "min")
    columns: tuple[str, ...] = ("pose",)

    def __init__(self, config: dict[str, Any] | InterpConfig, max_steps: int) -> None:
        super().__init__()
        self.config = config if isinstance(config, InterpConfig) else _from_plain(config)
        self.max_steps = max_steps
        self.save_hyperparameters({"config": dataclasses.asdict(self.config), "max_steps": max_steps})
        self.network = InterpNetwork.from_config(self.config.network)
        self.encode = Encode(self.config)
        self.collate = collate
        self.scores = nn.ModuleDict({name: MeanMetric() for name in _SCORES})
        # In a list, so that the frozen network is no part of this module's weights.
        self._vqvae: list[nn.Module] = []
        self._vqvae_stride = 0

    def setup_data(self, clips: Callable[[], Iterable[Clip]]) -> None:
        """The vocabulary of the small text tower, and the unit of the residual."""
        rng = np.random.default_rng(0)
        captions: list[str] = []
        chosen: list[Clip] = []
        for number, clip in enumerate(clips()):
            captions.append(clip.caption)
            if number < _FIT_CLIPS:
                chosen.append(clip)
            elif (place := int(rng.integers(number + 1))) < _FIT_CLIPS:
                chosen[place] = clip
        self.network.text.fit_vocabulary(captions)
        items = [
            person_item(person, stride, self.config.network.fps, clip.caption)
            for clip, stride in zip(chosen, np.resize(self.config.strides, len(chosen)).tolist(), strict=True)
            for person in clip.scene.persons
        ]
        batch: dict[str, Any] = collate(items) | {"key_error": 0.0}
        windows = self._cut(batch)
        visible = gather_frames(windows, batch["visibility"] & batch["frame_mask"][..., None])
        self.network.fit_scale(windows, gather_frames(windows, batch["poses"]), visible)

    def setup(self, stage: str) -> None:
        self.network.text.load_pretrained()
        self._load_vqvae()

    def _load_vqvae(self) -> None:
        if self.config.vqvae is not None and not self._vqvae:
            self._vqvae_stride = read_export(self.config.vqvae, "vqvae").config["stride"]
            self._vqvae = [load_frozen(self.config.vqvae, "vqvae")]

    def on_fit_start(self) -> None:
        for network in self._vqvae:
            network.to(self.device)

    def _degrade_keys(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> dict[str, Any]:
        """The batch with the key poses that a director gives: a share of the clips through the VQ-VAE, a share with
        noise."""
        keys, visibility, mask = batch["keys"], batch["key_visibility"], batch["key_mask"]
        clips, device = len(keys), keys.device
        if self._vqvae and mask.shape[1] > 1:
            coded = self._vqvae[0](keys, visibility, mask)
            strides = (batch["key_times"][:, 1] * self.config.network.fps).round()
            share = torch.rand(clips, generator=generator).to(device) < self.config.vqvae_share
            chosen = (share & (strides == self._vqvae_stride))[:, None, None]
            keys = torch.where(chosen[..., None], coded.poses, keys)
            visibility = torch.where(chosen, coded.visibility & mask[..., None], visibility)
        if self.config.key_noise > 0:
            noisy = torch.rand(clips, 1, 1, 1, generator=generator) < self.config.noise_share
            spread = self.config.key_noise * torch.rand(clips, 1, 1, 1, generator=generator) * noisy
            keys = keys + (spread * torch.randn(keys.shape, generator=generator)).to(device)
        both = visibility & batch["key_visibility"]
        square = (keys - batch["keys"]).square().sum(-1) * both
        error = (square.sum((1, 2)) / both.sum((1, 2)).clamp_min(1)).sqrt()
        keys = torch.where(visibility[..., None], keys, torch.zeros_like(keys))
        return batch | {"keys": keys, "key_visibility": visibility, "key_error": error}

    def _cut(self, batch: dict[str, Any]) -> Windows:
        return cut_windows(
            batch["keys"],
            batch["key_visibility"],
            batch["key_mask"],
            batch["key_times"],
            batch["poses"].shape[1],
            self.config.network.fps,
            batch["key_error"],
        )

    def model_step(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Denoise windows of the batch at random diffusion steps: each loss, and their weighted sum as "loss"."""
        exact, batch = self._cut(batch | {"key_error": 0.0}), self._degrade_keys(batch, generator)
        windows, text = self._cut(batch), self.network.embed_text(batch["captions"])
        course, outline = self._outline(windows, batch, text, generator)
        # Keys that are off are repaired by the outline alone. What is diffused starts from an outline through the true
        # ones: else a sample would swing about each key as much as the key is off.
        course = pull_to_keys(course, exact, 1.0, self.config.network.fps)
        per_clip, clips = self.config.windows_per_clip, len(batch["poses"])
        if 0 < per_clip * clips < len(windows.clip):
            order = torch.randperm(len(windows.clip), generator=generator)[: per_clip * clips]
            windows = windows.select(order.to(windows.clip.device))
        groups = [
            self._losses(group, batch | {"course": course}, text[group.clip], generator)
            for group in windows.by_length()
        ]
        found = {name: sum((group[name] for group in groups[1:]), groups[0][name]).value for name in groups[0]}
        weights = self.config
        loss = found["position"] + weights.velocity_weight * found["velocity"]
        loss = loss + weights.spread_weight * found["spread"] + weights.visibility_weight * found["visibility"]
        found |= {name: mean.value for name, mean in outline.items()}
        expected = found["outline"] + weights.outline_velocity_weight * found["outline_velocity"]
        return found | {"loss": loss + weights.outline_weight * expected}

    def _outline(
        self, windows: Windows, batch: dict[str, Any], text: Tensor, generator: torch.Generator | None
    ) -> tuple[Tensor, dict[str, Mean]]:
        """The outline of all clips as dense poses (B, T, J, 2), without gradient, and its losses."""
        segments = cut_segments(windows, self.config.network.fps)
        clips, count = len(text), len(segments.before)
        keep = (torch.rand(clips, generator=generator) >= self.config.text_drop).to(self.device)
        ends = torch.rand(2, count, generator=generator).to(self.device) < self.config.end_share
        segments = hide_outer(segments, ends[0], ends[1])
        course = self.network.course(segments, (text * keep[:, None])[windows.clip])
        seen = segments.gather(batch["visibility"] & batch["frame_mask"][..., None]) & segments.frame_mask[..., None]
        known = segments.left.key_visibility.any(1) | segments.right.key_visibility.any(1)
        losses = outline_losses(course - segments.gather(batch["poses"]), seen & known[:, None], segments)
        return segments.scatter(course.detach(), clips, batch["poses"].shape[1]), losses

    def _losses(
        self, windows: Windows, batch: dict[str, Any], text: Tensor, generator: torch.Generator | None
    ) -> dict[str, Mean]:
        """Losses of the denoiser on windows of similar length."""
        count = len(windows.clip)
        inside = gather_frames(windows, batch["frame_mask"]) & windows.frame_mask
        visible = gather_frames(windows, batch["visibility"]) & inside[..., None]
        keep_keys, keep_text = (
            (torch.rand(count, generator=generator) >= share).to(self.device)
            for share in (self.config.key_drop, self.config.text_drop)
        )
        spread = self.network.spread(windows, text * keep_text[:, None])
        base = self.network.base(windows, gather_frames(windows, batch["course"]), spread.detach())
        mask = counted_joints(visible, base)
        clean = base.encode(gather_frames(windows, batch["poses"]))
        clean = torch.where(mask > 0, clean, torch.zeros_like(clean))
        conditions = self.network.condition(windows, base, text, keep_keys, keep_text)
        fit = spread_loss(clean, spread[:, None, :, None], mask)
        timesteps = torch.randint(TRAIN_TIMESTEPS, (count,), generator=generator).to(self.device)
        span = (windows.key_times[:, 2] - windows.key_times[:, 0]) / 2
        noise = draw_window_noise(tuple(clean.shape), span, self.config.network.fps, generator).to(self.device)
        noisy = noise_schedule().add_noise(clean, noise, timesteps)  # pyright: ignore[reportArgumentType]
        prediction = self.network(noisy, timesteps, windows, conditions)
        # In units in which the error of an untrained network has unit variance at every step.
        error = (prediction.residual - clean) / preconditioning(timesteps).outward
        losses = residual_losses(error, mask, windows, base)
        visibility = visibility_loss(prediction.visibility, visible, inside)
        return losses | {"spread": fit, "visibility": visibility}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        losses = self.model_step(batch)
        self.log_dict({f"train/{name}": value for name, value in losses.items()}, batch_size=len(batch["poses"]))
        return losses["loss"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        generator = torch.Generator().manual_seed(batch_idx)
        losses = self.model_step(batch, generator)
        size = len(batch["poses"])
        self.log_dict({f"val/{name}": value for name, value in losses.items()}, batch_size=size, sync_dist=True)
        for name, average in self._score(batch, self.sample(batch, generator)).items():
            metric = self.scores[name]
            assert isinstance(metric, MeanMetric)
            if average.count > 0:
                metric.update(average.value, weight=average.count.float())

    def on_validation_epoch_end(self) -> None:
        found: dict[str, Tensor] = {}
        for name, metric in self.scores.items():
            assert isinstance(metric, MeanMetric)
            found[name] = metric.compute()
            metric.reset()
        found["acceleration_ratio"] = found.pop("acceleration") / found.pop("true_acceleration")
        self.log_dict({f"val/{name}": value for name, value in found.items()})

    def sample(self, batch: dict[str, Any], generator: torch.Generator) -> DensePoses:
        """Dense poses for the batch's keys by the configured sampling."""
        return sample(
            self.network,
            batch["keys"],
            batch["key_visibility"],
            batch["key_mask"],
            batch["key_times"],
            batch["poses"].shape[1],
            batch["captions"],
            sampling=self.config.sampling,
            generator=generator,
        )

    def _score(self, batch: dict[str, Any], found: DensePoses) -> dict[str, Average]:
        """Errors on the frames between keys, none after the last key, of ours and of splines; visible joints only."""
        poses, device = batch["poses"], batch["poses"].device
        at = (batch["key_times"] * self.config.network.fps).round().long()  # (B, K)
        last = at.masked_fill(~batch["key_mask"], 0).amax(1)  # (B,)
        frames = torch.arange(poses.shape[1], device=device)
        until = batch["frame_mask"] & (frames <= last[:, None])  # (B, T)
        is_key = torch.zeros_like(until).scatter_(1, torch.where(batch["key_mask"], at, 0), True)
        seen = batch["visibility"] & until[..., None]
        between = seen & ~is_key[..., None]
        scores = {
            "mpjpe": position_error(found.joints, poses, between),
            "acceleration": mean_acceleration(found.joints, seen),
            "true_acceleration": mean_acceleration(poses, seen),
        }
        for kind in ("linear", "pchip"):
            spline = torch.from_numpy(_splines(batch, self.config.network.fps, kind)).to(device)
            scores[f"mpjpe_{kind}"] = position_error(spline, poses, between)
        right = ((found.visibility == batch["visibility"]) & until[..., None]).double().sum()
        scores["visibility_accuracy"] = Average(right, until.double().sum() * poses.shape[2])
        return scores

    def configure_optimizers(self) -> Any:
        def is_hidden(name: str) -> bool:
            return "embedding" not in name

        return build_optimizer(self.network.named_parameters(), self.config.optim, self.max_steps, is_hidden)

    def sample_images(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Real, interpolated and spline motion of the first person, as strips."""
        rows = [with_label(pose_strip(scene, boxes=False), name) for name, scene in self._scenes(batch).items()]
        return {"poses": np.concatenate(rows)}

    def sample_videos(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """Real, interpolated and spline motion of the first person, side by side."""
        return {"poses": side_by_side([poses_video(scene) for scene in self._scenes(batch).values()])}

    def _scenes(self, batch: dict[str, Any]) -> dict[str, Scene]:
        one = {name: value[:1] for name, value in batch.items()}
        found = self.sample(one, torch.Generator().manual_seed(0))
        length, fps = int(one["frame_mask"].sum()), self.config.network.fps
        real_seen = one["visibility"][0, :length].cpu().numpy()
        motions = {
            "real": (one["poses"][0].cpu().numpy(), real_seen),
            "interpolated": (found.joints[0].cpu().numpy(), found.visibility[0, :length].cpu().numpy()),
            "PCHIP": (_splines(one, fps, "pchip")[0], real_seen),
        }
        margin = _CANVAS // 10
        box = np.array([margin, margin, _CANVAS - margin, _CANVAS - margin], np.float32)
        return {
            name: Scene(
                _CANVAS,
                _CANVAS,
                fps,
                np.arange(length) / fps,
                [Person(denormalise(poses[:length], box, seen), seen, box)],
            )
            for name, (poses, seen) in motions.items()
        }

    def export(self, directory: Path, info: dict[str, Any]) -> None:
        config = dataclasses.replace(
            self.config, network=dataclasses.replace(self.config.network, text=self.network.text.export_config())
        )
        save_export(
            directory,
            stage="interp",
            config=dataclasses.asdict(config),
            state=self.network.state_dict(),
            info=info,
        )


def _splines(batch: dict[str, Any], fps: float, kind: str) -> np.ndarray:
    """The baseline for every person of a batch: (B, T, J, 2)."""
    keys, visibility, mask, times = (
        batch[name].cpu().numpy() for name in ("keys", "key_visibility", "key_mask", "key_times")
    )
    frames = np.arange(batch["poses"].shape[1]) / fps
    return np.stack(
        [clip_spline(keys[i, real], visibility[i, real], times[i, real], frames, kind) for i, real in enumerate(mask)]
    )


def _from_plain(values: dict[str, Any]) -> InterpConfig:
    parts = {
        "network": network_config(values["network"]),
        "optim": OptimConfig(**values["optim"]),
        "sampling": SamplingConfig(**values["sampling"]),
    }
    return InterpConfig(**{**values, **parts})
