"""A rival without a plan: diffusion over the dense poses of the whole scene, told the caption.

As the motion diffusion models have it: the clean motion is predicted, cosine schedule, velocity loss, classifier-free
guidance. Letters: B scenes, T dense frames, N tokens of F frames, P places for people, J joints (18), W width.
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
_CHANNELS = 3  # x, y, and whether the joint is seen: -1 or 1


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


class DiffusionRival(RivalNetwork):
    """Caption -> dense poses of everybody."""

    def __init__(self, config: RivalsConfig) -> None:
        super().__init__(config.network)
        self.settings = config
        size = config.network
        self.numbers = size.frames_per_token * size.max_people * NUM_JOINTS * _CHANNELS  # of a token
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

    def _tokens(self, batch: dict[str, Any]) -> Tensor:
        sign = batch["seen"].to(batch["poses"].dtype)[..., None] * 2 - 1
        motion = torch.cat([batch["poses"], sign], -1)  # (B, T, P, J, 3)
        return motion.unflatten(1, (-1, self.config.frames_per_token)).flatten(2)  # (B, N, numbers)

    def _motion(self, tokens: Tensor) -> Tensor:
        shape = (self.config.frames_per_token, self.config.max_people, NUM_JOINTS, _CHANNELS)
        return tokens.unflatten(-1, shape).flatten(1, 2)  # (B, T, P, J, 3)

    def _without(self, told: Told, keep: Tensor) -> Told:
        """Captions dropped where `keep` (B,) is False."""
        tokens = torch.where(keep[:, None, None], told.tokens, self.nothing.to(told.tokens.dtype))
        return Told(tokens, told.mask, told.people, told.keys)

    def losses(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Position, velocity, visibility; and of the numbers of people and keys."""
        clean, told = self._tokens(batch), self.read(batch["captions"])
        device, count = clean.device, len(clean)
        frames = torch.arange(batch["poses"].shape[1], device=device) < batch["keys"][:, None] * self.config.stride
        mask = frames[:, :: self.config.frames_per_token]
        keep = (torch.rand(count, generator=generator) >= self.settings.text_drop).to(device)
        steps = torch.randint(_STEPS, (count,), generator=generator).to(device)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        noisy = _schedule().add_noise(clean, noise, steps)  # type: ignore[arg-type]
        found = self._motion(self.denoise(noisy, steps, batch["people"], self._without(told, keep), mask))
        there = torch.arange(self.config.max_people, device=device) < batch["people"][:, None]  # (B, P)
        real = frames[:, :, None, None] & there[:, None, :, None]
        seen = batch["seen"] & real
        error = (found[..., :2] - batch["poses"]).square().sum(-1)
        speed = (found[..., :2].diff(dim=1) - batch["poses"].diff(dim=1)).square().sum(-1)
        sign = (found[..., 2] - (batch["seen"].float() * 2 - 1)).square()
        both = seen[:, 1:] & seen[:, :-1]
        parts = {
            "position": (error * seen).sum() / seen.sum().clamp_min(1),
            "velocity": (speed * both).sum() / both.sum().clamp_min(1),
            "visibility": (sign * real).sum() / real.sum().clamp_min(1) / NUM_JOINTS,
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
        found = self._motion(motion).float().cpu().numpy()
        result = []
        for i, caption in enumerate(captions):
            frames = keys[i] * config.stride
            result.append(self.scene(found[i, :frames, ..., :2], found[i, :frames, ..., 2] > 0, people[i], caption))
        return result
