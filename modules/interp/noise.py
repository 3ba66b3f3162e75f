"""The noise of the diffusion: its schedule, and its colour.

White noise has most of its energy at frequencies where motion has none, and a sampler must take all of it out again.
The noise here is smooth over time, like the residual that it hides (autocorrelation measured on motion capture),
which is white noise in other coordinates: every solver stays valid, and few evaluations give motion without jitter.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from torch import Tensor

# Width of the smoothing as a share of the distance between keys, and the share of the noise (std) left white at keys a
# third of a second apart: it falls with the root of the distance, as motion's jitter stays and its swing grows.
SMOOTHING, WHITE = 0.2, 0.05
TRAIN_TIMESTEPS = 1000
SCHEDULE = {
    "num_train_timesteps": TRAIN_TIMESTEPS,
    "beta_schedule": "squaredcos_cap_v2",
    "prediction_type": "sample",
}


@functools.lru_cache(maxsize=1)
def noise_schedule() -> DDPMScheduler:
    """The cosine schedule of training (Nichol and Dhariwal, 2021); the network predicts the clean sample."""
    return DDPMScheduler(clip_sample=False, **SCHEDULE)


def draw_noise(
    shape: tuple[int, ...],
    key_times: Tensor,
    key_mask: Tensor,
    fps: float,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Noise of unit variance for whole clips, smooth over time.

    It depends on the generator and on the keys' times, never on their poses.

    Args:
        shape: (B, T, ...).
        key_times: (B, K) seconds; key_mask: (B, K) bool, real keys first.

    Returns:
        `shape`, on the CPU.
    """
    clips, frames = shape[:2]
    gaps = key_times.masked_fill(~key_mask, 0).amax(1) / (key_mask.sum(1) - 1).clamp_min(1)  # (B,) seconds
    gaps = torch.where(gaps > 0, gaps, 1 / 3).cpu()
    noise = torch.empty(clips, frames, math.prod(shape[2:]))
    for clip, gap in enumerate(gaps.tolist()):
        width = _width(gap, fps)
        reach = _reach(width)
        white = torch.randn(frames + 2 * reach, noise.shape[2], generator=generator)
        offsets = torch.arange(-reach, reach + 1)
        kernel = _kernel(offsets, width)
        for offset, weight in zip((offsets + reach).tolist(), kernel.tolist(), strict=True):
            part = white[offset : offset + frames]
            noise[clip] = part * weight if offset == 0 else noise[clip] + part * weight
    return _add_white(noise, gaps, generator).reshape(shape)


def draw_window_noise(
    shape: tuple[int, ...], gaps: Tensor, fps: float, generator: torch.Generator | None = None
) -> Tensor:
    """The same noise for windows of a training step, each on its own.

    Args:
        shape: (N, M, ...).
        gaps: (N,) seconds between the keys of each window.

    Returns:
        `shape`, on the CPU.
    """
    windows, frames = shape[:2]
    widths = _width(gaps.cpu(), fps)
    reach = _reach(float(widths.max()))
    white = torch.randn(windows, frames + 2 * reach, math.prod(shape[2:]), generator=generator)
    offsets = torch.arange(frames + 2 * reach) - reach - torch.arange(frames)[:, None]  # (M, M + 2R)
    kernel = _kernel(offsets, widths[:, None, None])  # (N, M, M + 2R)
    return _add_white(kernel @ white, gaps.cpu(), generator).reshape(shape)


def _width(gap: Any, fps: float) -> Any:
    return gap * fps * SMOOTHING


def _reach(width: float) -> int:
    return int(3 * width) + 1


def _kernel(offsets: Tensor, width: Any) -> Tensor:
    """Gaussian weights whose squares add up to 1 over the last axis."""
    weights = torch.exp(-0.5 * (offsets / width) ** 2)
    return weights / weights.square().sum(-1, keepdim=True).sqrt()


def _add_white(noise: Tensor, gaps: Tensor, generator: torch.Generator | None) -> Tensor:
    """Smooth noise (N, M, C) with the white share for keys `gaps` (N,) seconds apart."""
    share = (WHITE * (3 * gaps.to(noise.dtype)).rsqrt()).clamp(max=0.5)[:, None, None]
    return (1 - share**2).sqrt() * noise + share * torch.randn(noise.shape, generator=generator)
