"""A rival without a plan: diffusion over the dense poses of the whole scene, told the caption.

As the motion diffusion models have it: features of mean 0 and variance 1 (where a person is, and each joint from
there), the clean motion is predicted, cosine schedule, velocity loss, classifier-free guidance.
Letters: B scenes, T dense frames, N tokens of F frames, P places for people, J joints (18), W width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from torch import Tensor, nn

from modules.pose.scene import Scene
from modules.pose.skeleton import NUM_JOINTS
from modules.rivals.config import RivalsConfig
from modules.rivals.network import RivalNetwork, Told, sizes

_STEPS = 1000
_FEATURES = 3 * NUM_JOINTS + 2  # of a person: place, joints from there, and whether they are seen (-1 or 1)


def _schedule() -> DDIMScheduler:
    return DDIMScheduler(
        num_train_timesteps=_STEPS, beta_schedule="squaredcos_cap_v2", prediction_type="sample", clip_sample=False,
        timestep_spacing="trailing",
    )  # fmt: skip


def _waves(values: Tensor, width: int) -> Tensor:
    """Sines and cosines of positions or steps: (...) -> (..., W)."""
    rates = torch.exp(-math.log(10000.0) * torch.arange(width // 2, device=values.device) / (width // 2))
    angles = values[..., None] * rates
    return torch.cat([angles.sin(), angles.cos()], -1)


def _points(poses: Tensor, seen: Tensor) -> tuple[Tensor, Tensor]:
    """Place of each person (mean of the visible joints), and the joints from there.

    Args:
        poses: (B, T, P, J, 2).
        seen: (B, T, P, J) bool.

    Returns:
        (B, T, P, J + 1, 2), and (B, T, P, J + 1) bool: where they are known.
    """
    weight = seen[..., None].to(poses.dtype)
    place = (poses * weight).sum(-2, keepdim=True) / weight.sum(-2, keepdim=True).clamp_min(1)
    return torch.cat([place, poses - place], -2), torch.cat([seen.any(-1, keepdim=True), seen], -1)


class DiffusionRival(RivalNetwork):
    """Caption -> dense poses of everybody."""

    mean: Tensor  # (J + 1, 2) of the place and of the joints from there
    std: Tensor  # (J + 1, 2)

    def __init__(self, config: RivalsConfig) -> None:
        super().__init__(config.network)
        self.settings = config
        size = config.network
        self.numbers = size.frames_per_token * size.max_people * _FEATURES  # of a token
        self.register_buffer("mean", torch.zeros(NUM_JOINTS + 1, 2))
        self.register_buffer("std", torch.ones(NUM_JOINTS + 1, 2))
        self.motion_in, self.motion_out = nn.Linear(self.numbers, size.width), nn.Linear(size.width, self.numbers)
        self.step_in = nn.Sequential(nn.Linear(size.width, size.width), nn.SiLU(), nn.Linear(size.width, size.width))
        self.people_in = nn.Embedding(size.max_people, size.width)
        self.nothing = nn.Parameter(torch.zeros(1, 1, size.width))  # instead of a dropped caption
        nn.init.zeros_(self.motion_out.weight)
        nn.init.zeros_(self.motion_out.bias)

    def denoise(self, noisy: Tensor, steps: Tensor, people: Tensor, told: Told, mask: Tensor) -> Tensor:
        """The clean motion (B, N, numbers) of a noisy one at steps (B,); mask (B, N)."""
        x = self.motion_in(noisy) + _waves(torch.arange(noisy.shape[1], device=noisy.device).float(), self.config.width)
        x = x + (self.step_in(_waves(steps.float(), self.config.width)) + self.people_in(people - 1))[:, None]
        return self.motion_out(self.run(x, told, mask, causal=False))

    def fit_scale(self, batch: dict[str, Any]) -> None:
        """Mean and standard deviation of the features, from some clips."""
        points, there = _points(batch["poses"], batch["seen"])
        found = points[there.any(-1)]  # poses of people who are there: (M, J + 1, 2)
        weight = there[there.any(-1)][..., None].float()
        count = weight.sum(0).clamp_min(1)
        self.mean.copy_((found * weight).sum(0) / count)
        self.std.copy_((((found - self.mean).square() * weight).sum(0) / count).sqrt().clamp_min(1e-3))

    def _scaled(self, batch: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """`_points` of a batch with mean 0 and variance 1; 0 where they are not known."""
        points, there = _points(batch["poses"], batch["seen"])
        return (points - self.mean) / self.std * there[..., None], there

    def _tokens(self, points: Tensor, seen: Tensor) -> Tensor:
        """Features of frames (B, T, P, J + 1, 2) and (B, T, P, J) as tokens (B, N, numbers)."""
        motion = torch.cat([points.flatten(3), seen.to(points.dtype) * 2 - 1], -1)
        return motion.unflatten(1, (-1, self.config.frames_per_token)).flatten(2)

    def _features(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `_tokens`; visibility above 0."""
        shape = (self.config.frames_per_token, self.config.max_people, _FEATURES)
        motion = tokens.unflatten(-1, shape).flatten(1, 2)  # (B, T, P, features)
        points, sign = motion.split([2 * NUM_JOINTS + 2, NUM_JOINTS], -1)
        return points.unflatten(-1, (NUM_JOINTS + 1, 2)), sign

    def _poses(self, points: Tensor) -> Tensor:
        """Joints (B, T, P, J, 2) on the canvas from scaled features."""
        found = points * self.std + self.mean
        return found[..., :1, :] + found[..., 1:, :]

    def _without(self, told: Told, keep: Tensor) -> Told:
        """Captions dropped where `keep` (B,) is False."""
        tokens = torch.where(keep[:, None, None], told.tokens, self.nothing.to(told.tokens.dtype))
        return Told(tokens, told.mask, told.people, told.keys)

    def losses(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Position, velocity, visibility; and of the numbers of people and keys."""
        (points, there), told = self._scaled(batch), self.read(batch["captions"])
        clean = self._tokens(points, batch["seen"])
        device, count = clean.device, len(clean)
        frames = torch.arange(batch["poses"].shape[1], device=device) < batch["keys"][:, None] * self.config.stride
        mask = frames[:, :: self.config.frames_per_token]
        keep = (torch.rand(count, generator=generator) >= self.settings.text_drop).to(device)
        steps = torch.randint(_STEPS, (count,), generator=generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        noisy = _schedule().add_noise(clean, noise, steps)  # type: ignore[arg-type]
        found, sign = self._features(self.denoise(noisy, steps, batch["people"], self._without(told, keep), mask))
        present = torch.arange(self.config.max_people, device=device) < batch["people"][:, None]  # (B, P)
        real = frames[:, :, None, None] & present[:, None, :, None]
        there = there & real
        error = (found - points).square().sum(-1)
        speed = (found.diff(dim=1) - points.diff(dim=1)).square().sum(-1)
        wrong = (sign - (batch["seen"].float() * 2 - 1)).square()
        both = there[:, 1:] & there[:, :-1]
        parts = {
            "position": (error * there).sum() / there.sum().clamp_min(1),
            "velocity": (speed * both).sum() / both.sum().clamp_min(1),
            "visibility": (wrong * real).sum() / real.sum().clamp_min(1) / NUM_JOINTS,
        }
        speed_weight = 10 * self.settings.velocity_weight
        motion = parts["position"] + speed_weight * parts["velocity"] + 0.1 * parts["visibility"]
        return parts | {
            "motion": motion,
            "people": nn.functional.cross_entropy(told.people, batch["people"] - 1),
            "keys": nn.functional.cross_entropy(told.keys, batch["keys"] - 1),
        }

    @torch.inference_mode()
    def generate(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Scene]:
        """Dense scenes; each depends on its own caption and seed."""
        told, config, device = self.read(captions), self.config, self.canvas.device
        people, keys = sizes(told)
        each = config.stride // config.frames_per_token
        tokens = max(keys) * each
        mask = torch.arange(tokens, device=device) < torch.tensor(keys, device=device)[:, None] * each
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        full = config.max_keys * each
        motion = torch.stack([torch.randn(full, self.numbers, generator=g)[:tokens] for g in generators]).to(device)
        numbers = torch.tensor(people, device=device)
        everything = torch.ones(len(captions), dtype=torch.bool, device=device)
        nothing, solver = self._without(told, ~everything), _schedule()
        solver.set_timesteps(self.settings.steps)
        for step in solver.timesteps.tolist():
            steps = torch.full((len(captions),), step, device=device)
            clean = self.denoise(motion, steps, numbers, told, mask)
            if self.settings.guidance_scale != 1:
                plain = self.denoise(motion, steps, numbers, nothing, mask)
                clean = plain + self.settings.guidance_scale * (clean - plain)
            motion = solver.step(clean, step, motion).prev_sample  # type: ignore[union-attr]
        points, sign = self._features(motion)
        poses, seen = self._poses(points).float().cpu().numpy(), (sign > 0).cpu().numpy()
        result = []
        for i, caption in enumerate(captions):
            frames = keys[i] * config.stride
            result.append(self.scene(poses[i, :frames], seen[i, :frames], people[i], caption))
        return result
