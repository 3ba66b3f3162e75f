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

# Width of the smoothing as a share of the distance between keys: the swing of a motion from one key to the next. On top
# of it come a share (of the standard deviation) as quick as a few frames, and a little white noise, without which the
# fastest part of a motion would never be hidden. With these a sample has the acceleration, the jerk and the spectrum of
# motion capture nearly before the network has denoised anything, as measured by putting this noise around the outline.
SMOOTHING = 0.2
QUICK, QUICK_FRAMES = 0.08, 1.0
WHITE = 0.01
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
    jitter: float = 1.0,
) -> Tensor:
    """Noise of unit variance for whole clips, smooth over time.

    It depends on the generator and on the keys' times, never on their poses.

    Args:
        shape: (B, T, ...).
        key_times: (B, K) seconds; key_mask: (B, K) bool, real keys first.
        jitter: factor on the shares of quick and white noise, 1 as in training.

    Returns:
        `shape`, on the CPU.
    """
    clips, frames = shape[:2]
    gaps = key_times.masked_fill(~key_mask, 0).amax(1) / (key_mask.sum(1) - 1).clamp_min(1)  # (B,) seconds
    gaps = torch.where(gaps > 0, gaps, 1 / 3).cpu()
    noise = torch.empty(clips, frames, math.prod(shape[2:]))
    for clip, gap in enumerate(gaps.tolist()):
        noise[clip] = _smooth(frames, noise.shape[2], _width(gap, fps), generator)
        quick = _smooth(frames, noise.shape[2], QUICK_FRAMES, generator)
        noise[clip] = _mix(noise[clip], quick, generator, jitter)
    return noise.reshape(shape)


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
    channels = math.prod(shape[2:])

    def smooth(widths: Tensor) -> Tensor:
        reach = _reach(float(widths.max()))
        white = torch.randn(windows, frames + 2 * reach, channels, generator=generator)
        offsets = torch.arange(frames + 2 * reach) - reach - torch.arange(frames)[:, None]  # (M, M + 2R)
        return _kernel(offsets, widths[:, None, None]) @ white

    return _mix(smooth(_width(gaps.cpu(), fps)), smooth(torch.tensor([QUICK_FRAMES])), generator).reshape(shape)


def _width(gap: Any, fps: float) -> Any:
    return gap * fps * SMOOTHING


def _reach(width: float) -> int:
    return int(3 * width) + 1


def _kernel(offsets: Tensor, width: Any) -> Tensor:
    """Gaussian weights whose squares add up to 1 over the last axis."""
    weights = torch.exp(-0.5 * (offsets / width) ** 2)
    return weights / weights.square().sum(-1, keepdim=True).sqrt()


def _smooth(frames: int, channels: int, width: float, generator: torch.Generator | None) -> Tensor:
    """Smooth noise (T, C) of one width (frames) and unit variance."""
    reach = _reach(width)
    white = torch.randn(frames + 2 * reach, channels, generator=generator)
    offsets = torch.arange(-reach, reach + 1)
    parts = zip((offsets + reach).tolist(), _kernel(offsets, width).tolist(), strict=True)
    first, weight = next(parts)
    noise = white[first : first + frames] * weight
    for offset, weight in parts:
        noise += white[offset : offset + frames] * weight
    return noise


def _mix(slow: Tensor, quick: Tensor, generator: torch.Generator | None, jitter: float = 1.0) -> Tensor:
    """The three parts of the noise with their shares, (..., M, C); the white one is drawn here."""
    fast = QUICK * quick + WHITE * torch.randn(slow.shape, generator=generator)
    return (1 - jitter**2 * (QUICK**2 + WHITE**2)) ** 0.5 * slow + jitter * fast
