"""Videos by DDIM from text and drawn poses, of any length: overlapping windows blended at every denoising step.

Letters: B videos, F frames of the whole video, n frames of a window, C channels, L tokens, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from modules.base.network import BaseNetwork
    from modules.controlnet.controlnet import PoseControlNet


# What a video is told: one caption, or one for each of its frames.
Caption = str | Sequence[str]


@dataclass
class Control:
    """A pose ControlNet, the drawn poses of the whole video, and how strongly they count."""

    network: PoseControlNet
    hint: Tensor  # (B, F, 3, H, W) in [0, 1]
    scale: float = 1.0
    start: float = 0.0  # share of the steps from which the poses count
    end: float = 1.0  # and up to which

    def acts(self, step: int, steps: int) -> bool:
        """Whether the poses count in step `step` (from 0) of `steps`."""
        return self.scale != 0 and step / steps >= self.start and (step + 1) / steps <= self.end


@dataclass
class Windows:
    """How a video longer than the network's window is covered."""

    overlap: float = 0.5  # share of a window that the next one covers, too
    shared_noise: bool = False  # later windows start from the first one's noise in another order (arXiv 2310.15169)


@dataclass
class Guidance:
    """Classifier-free guidance: how strongly the text counts against the empty prompt."""

    scale: float = 4.0  # 1 is no guidance, at half the cost
    rescale: float = 0.0  # brings the contrast of guided latents back, 0 to 1 (arXiv 2305.08891, section 3.4)


class Predictions:
    """What was predicted for each window at each step of the last video, to be used again where nothing has changed.

    A window is predicted from its own frames alone, so that an edit of the poses reaches further windows step by step.
    Those that it has not reached yet are not computed again; the result is that of computing all, to the bit.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[int, int], tuple[tuple[Tensor | None, ...], Tensor]] = {}
        self._what: object = None
        self.made = self.used = 0  # predictions of the last video: made, used again

    def begin(self, what: object) -> None:
        """A video begins; `what` holds all that its predictions depend on besides the inputs of `get`."""
        self.made = self.used = 0
        if self._what != what:
            self._kept.clear()
        self._what = what

    def get(self, step: int, start: int, inputs: tuple[Tensor | None, ...], make: Callable[[], Tensor]) -> Tensor:
        """The prediction of the window that begins with frame `start`, made where the inputs are others than before."""
        before, found = self._kept.get((step, start), ((), None))
        if found is not None and all(map(_same, before, inputs)):
            self.used += 1
        else:
            found = make()
            self.made += 1
        # The new inputs, though equal: views of the old ones would keep the whole video before in memory.
        self._kept[step, start] = inputs, found
        return found


def _same(a: Tensor | None, b: Tensor | None) -> bool:
    return a is b or (a is not None and b is not None and torch.equal(a, b))


def windows(num_frames: int, length: int, overlap: float = 0.5) -> list[range]:
    """Windows of at most `length` frames that cover a video, the last one at its end."""
    if num_frames <= length:
        return [range(num_frames)]
    hop = max(round(length * (1 - overlap)), 1)
    starts = [*range(0, num_frames - length, hop), num_frames - length]
    return [range(start, start + length) for start in starts]


def window_weights(length: int) -> Tensor:
    """Weights (n,) of a window's frames: a triangle, so that a frame changes windows gradually."""
    index = torch.arange(length, dtype=torch.float32)
    return torch.minimum(index, length - 1 - index) + 1


def initial_noise(
    seeds: Sequence[int], channels: int, num_frames: int, size: tuple[int, int], shared: int | None = None
) -> Tensor:
    """(B, C, F, h, w): a video's noise depends on its seed alone, a frame's on its number alone.

    Args:
        shared: length of a window; each further one has the noise of the first window's frames in another order.
    """
    videos = []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        own = min(num_frames, shared or num_frames)
        frames = [torch.randn(channels, *size, generator=generator) for _ in range(own)]
        while len(frames) < num_frames:
            frames += [frames[index] for index in torch.randperm(own, generator=generator).tolist()]
        videos.append(torch.stack(frames[:num_frames], 1))
    return torch.stack(videos)


@torch.no_grad()
def sample_latents(
    base: BaseNetwork,
    captions: Sequence[Caption],
    seeds: Sequence[int],
    *,
    num_frames: int,
    fps: float | Tensor,
    steps: int = 20,
    guidance: Guidance | None = None,
    control: Control | None = None,
    eta: float = 0.0,
    long: Windows | None = None,
    on_step: Callable[[int, int], None] | None = None,
    kept: Predictions | None = None,
) -> Tensor:
    """Clean latents (B, C, F, h, w). A video depends on its own caption, seed and poses, not on its batch.

    Args:
        captions, seeds: one a video. Where a caption changes within a video, a window has that of its middle frame.
        num_frames: of the whole video; longer than the network's window is covered by several.
        fps: () or (B,) frames per second, 30 / frame_stride.
        steps: denoising steps.
        eta: 0 is deterministic; noise of later steps comes from the same seeds.
        long: how windows cover a long video.
        on_step: called with (steps done, steps in all) after each; it may raise, to stop.
        kept: of the video before, by the same networks; what holds still is used again.
    """
    kept = kept or Predictions()
    guidance, long = guidance or Guidance(), long or Windows()
    device = base.latent_scale.device
    schedule, batch = base.schedule, len(captions)
    generators_seed = [seed + 1_000_003 for seed in seeds]
    channels = base.config.vae.latent_channels
    shared = base.config.num_frames if long.shared_noise else None
    latents = initial_noise(seeds, channels, num_frames, base.latent_size, shared).to(device)
    rate = torch.as_tensor(fps, dtype=torch.float32, device=device).expand(batch)
    spans = windows(num_frames, base.config.num_frames, long.overlap)
    texts = _window_texts(base, captions, spans)
    empty = base.encode_text([""]).expand_as(texts[0]) if guidance.scale != 1 else None
    timesteps = schedule.timesteps(steps)
    half = torch.is_autocast_enabled(device.type)
    kept.begin((base, control and (control.network, control.scale), steps, guidance, rate.tolist(), half, long))
    for number, timestep in enumerate(timesteps):
        total, weight = torch.zeros_like(latents), torch.zeros(num_frames, 1, 1, device=device)
        for span, text in zip(spans, texts, strict=True):
            part = slice(span.start, span.stop)
            acting = control if control is not None and control.acts(number, len(timesteps)) else None
            noisy = latents[:, :, part]
            hint = acting.hint[:, part] if acting is not None else None
            predict = partial(_predict, base, noisy, timestep, text, empty, rate, guidance, acting, part)
            predicted = kept.get(number, span.start, (noisy, text, hint), predict)
            share = window_weights(len(span)).to(device)[:, None, None]  # (n, 1, 1)
            total[:, :, part] += share * predicted
            weight[part] += share
        after = timesteps[number + 1] if number + 1 < len(timesteps) else None
        noise = None
        if eta > 0:
            step_seeds = [seed + 7919 * number for seed in generators_seed]
            noise = initial_noise(step_seeds, channels, num_frames, base.latent_size).to(device)
        latents = schedule.step(total / weight, latents, timestep, after, eta, noise)
        if on_step is not None:
            on_step(number + 1, len(timesteps))
    return latents


def _window_texts(base: BaseNetwork, captions: Sequence[Caption], spans: Sequence[range]) -> list[Tensor]:
    """Text states (B, L, D) of each window."""
    made: dict[tuple[str, ...], Tensor] = {}
    texts = []
    for span in spans:
        middle = span[len(span) // 2]
        told = tuple(caption if isinstance(caption, str) else caption[middle] for caption in captions)
        if told not in made:
            made[told] = base.encode_text(told)
        texts.append(made[told])
    return texts


def _predict(
    base: BaseNetwork,
    noisy: Tensor,
    timestep: int,
    text: Tensor,
    empty: Tensor | None,
    fps: Tensor,
    guidance: Guidance,
    control: Control | None,
    part: slice,
) -> Tensor:
    """Guided prediction (B, C, n, h, w) for one window, `part` of the frames."""
    doubled = empty is not None
    if doubled:  # with and without text in one batch
        noisy, text, fps = torch.cat([noisy, noisy]), torch.cat([text, empty]), torch.cat([fps, fps])
    times = torch.full((len(noisy),), timestep, device=noisy.device)
    residuals = None
    if control is not None:
        hint = control.hint[:, part]
        hint = torch.cat([hint, hint]) if doubled else hint
        residuals = control.network(noisy, times, text, hint=hint, fps=fps, scale=control.scale)
    predicted = base(noisy, times, text, fps, residuals)
    if not doubled:
        return predicted
    conditional, unconditional = predicted.chunk(2)
    guided = unconditional + guidance.scale * (conditional - unconditional)
    if guidance.rescale > 0:
        axes = tuple(range(1, guided.ndim))
        ratio = conditional.std(axes, keepdim=True) / guided.std(axes, keepdim=True)
        guided = guided * (guidance.rescale * ratio + 1 - guidance.rescale)
    return guided


def to_pixels(frames: Tensor) -> np.ndarray:
    """Frames (B, F, 3, H, W) in [-1, 1] to (B, F, H, W, 3) uint8."""
    pixels = ((frames.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return pixels.permute(0, 1, 3, 4, 2).cpu().numpy()


def sample(
    base: BaseNetwork,
    captions: Sequence[Caption],
    seeds: Sequence[int],
    *,
    num_frames: int,
    fps: float | Tensor,
    steps: int = 20,
    guidance: Guidance | None = None,
    control: Control | None = None,
    eta: float = 0.0,
    long: Windows | None = None,
    on_step: Callable[[int, int], None] | None = None,
    kept: Predictions | None = None,
) -> np.ndarray:
    """Videos (B, F, H, W, 3) uint8; the arguments are those of `sample_latents`."""
    latents = sample_latents(
        base, captions, seeds, num_frames=num_frames, fps=fps, steps=steps, guidance=guidance, control=control, eta=eta,
        long=long, on_step=on_step, kept=kept,
    )  # fmt: skip
    return to_pixels(base.decode_latents(latents))
