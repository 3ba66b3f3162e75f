"""Drawing dense poses between key poses. No Lightning; pure functions of their arguments and the generator.

B clips (people), T frames, K keys, J joints, N windows, M frames of a window.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from modules.interp.config import SamplingConfig
from modules.interp.network import Base, Conditions, InterpNetwork
from modules.interp.noise import SCHEDULE, draw_noise
from modules.interp.outline import cut_segments
from modules.interp.windows import Windows, blend_windows, cut_windows, gather_frames
from modules.pose.skeleton import NUM_JOINTS


@dataclass
class DensePoses:
    """Sampled dense poses."""

    joints: Tensor  # (B, T, J, 2) box coordinates, also for joints that are not visible
    visibility: Tensor  # (B, T, J) bool
    visibility_logits: Tensor  # (B, T, J)


def make_solver(name: str, steps: int) -> DDIMScheduler | DPMSolverMultistepScheduler:
    """A deterministic solver from diffusers, set to `steps` network evaluations."""
    if name == "ddim":
        solver = DDIMScheduler(clip_sample=False, timestep_spacing="trailing", **SCHEDULE)
    else:
        assert name == "dpmsolver++", name
        # The cosine schedule ends in almost pure noise, where a solver in steps of log SNR would spend them all.
        solver = DPMSolverMultistepScheduler(timestep_spacing="linspace", lambda_min_clipped=-5.1, **SCHEDULE)
    solver.set_timesteps(steps)
    return solver


@torch.no_grad()
def sample(
    network: InterpNetwork,
    keys: Tensor,
    key_visibility: Tensor,
    key_mask: Tensor,
    key_times: Tensor,
    num_frames: int,
    captions: Sequence[str] | Sequence[Sequence[str]] | None = None,
    *,
    sampling: SamplingConfig | None = None,
    generator: torch.Generator | None = None,
    max_windows: int = 4096,
) -> DensePoses:
    """Dense poses from key poses, of any length, any stride.

    The noise is drawn once for all frames, so that two windows that share a frame start from the same noise there, and
    an edit of key k changes no frame outside keys k-2..k+2, bitwise, for the same seed and length.

    Args:
        keys: (B, K, J, 2) box coordinates; key_visibility: (B, K, J) bool.
        key_mask: (B, K) bool, real keys first; key_times: (B, K) seconds, ascending over the real keys.
        num_frames: T; frame i is at i / network.fps. Frames more than a segment beyond the last key hold its pose.
        captions: one for each clip, or one for each key of each clip, or None to leave the text out.
        sampling: solver, evaluations, guidance, noise, fidelity to the keys.
        generator: on the CPU, so that a seed means the same on every device.
        max_windows: windows denoised at a time (a bound on memory).
    """
    sampling = sampling or SamplingConfig()
    device, clips = keys.device, len(keys)
    windows = cut_windows(keys, key_visibility, key_mask, key_times, num_frames, network.fps, sampling.key_error)
    shape = (clips, num_frames, NUM_JOINTS, 2)
    noise = sampling.temperature * draw_noise(shape, key_times, key_mask, network.fps, generator, sampling.jitter)
    noise, text = noise.to(device), _window_text(network, captions, windows, key_mask).to(device)
    course = _course(network, windows, text, clips, num_frames)
    joints, logits = [], []
    for index in torch.arange(len(windows.clip), device=device).split(max_windows):
        part = windows.select(index)
        base = network.base(part, gather_frames(part, course), network.spread(part, text[index]))
        everything = torch.ones(len(index), dtype=torch.bool, device=device)
        full = network.condition(part, base, text[index], everything, everything & (captions is not None))
        empty = None
        if sampling.guidance_scale != 1:
            empty = network.condition(part, base, text[index], ~everything, ~everything)
        residual, visible = _denoise(network, part, base, gather_frames(part, noise), full, empty, sampling)
        joints.append(base.decode(residual))
        logits.append(visible)
    dense = blend_windows(windows, torch.cat(joints), clips, num_frames)
    visible = blend_windows(windows, torch.cat(logits), clips, num_frames)
    if sampling.keep_keys > 0:
        dense = pull_to_keys(dense, windows, sampling.keep_keys, network.fps)
    return DensePoses(joints=dense, visibility=visible > 0, visibility_logits=visible)


def _window_text(
    network: InterpNetwork,
    captions: Sequence[str] | Sequence[Sequence[str]] | None,
    windows: Windows,
    key_mask: Tensor,
) -> Tensor:
    """Pooled text (N, E) of each window: of its clip's caption, or of that of its centre key."""
    if captions is None:
        return windows.times.new_zeros(len(windows.clip), network.text.pooled_width)
    if isinstance(captions[0], str):
        return network.embed_text([str(caption) for caption in captions])[windows.clip]
    # One call a caption: what a window is told does not depend, to the bit, on the captions of the others.
    rows = [list(row) for row in captions]
    embedded = {caption: network.embed_text([caption]) for row in rows for caption in row}
    return torch.cat([embedded[rows[clip][key]] for clip, key in key_mask.nonzero().tolist()])


def _course(network: InterpNetwork, windows: Windows, text: Tensor, clips: int, num_frames: int) -> Tensor:
    """What the keys let expect, as dense poses (B, T, J, 2). text: (N, E)."""
    segments = cut_segments(windows, network.fps)
    return segments.scatter(network.course(segments, text), clips, num_frames)


def _denoise(
    network: InterpNetwork,
    windows: Windows,
    base: Base,
    noise: Tensor,
    full: Conditions,
    empty: Conditions | None,
    sampling: SamplingConfig,
) -> tuple[Tensor, Tensor]:
    """Scaled residual (N, M, J, 2) and visibility logits (N, M, J) of the windows.

    `full`: with all conditions; `empty`: with none, for guidance, or None for plain sampling.
    """
    solver = make_solver(sampling.solver, sampling.steps)
    current, visible = noise, noise.new_zeros(noise.shape[:-1])
    for timestep in solver.timesteps:
        at = timestep.to(noise.device).expand(len(noise))
        prediction = network(current, at, windows, full)
        clean, visible = prediction.residual, prediction.visibility
        if empty is not None:
            free = network(current, at, windows, empty).residual
            clean = free + sampling.guidance_scale * (clean - free)
        current = solver.step(clean, int(timestep), current, return_dict=False)[0]
    if network.base_kind != "none":
        # Beyond the first and the last key the spline slows down and holds. What is drawn there, with a key on one side
        # alone, can end anywhere: people grew by half within the last frames.
        current = current * base.between[..., None]
    return current, visible


def pull_to_keys(dense: Tensor, windows: Windows, strength: float, fps: float) -> Tensor:
    """Move dense poses (B, T, J, 2) so that they meet the key poses, without a jump beside them.

    The miss at each key is spread over the two segments beside it with the windows' blending weights (they sum to 1,
    are flat at the keys), so a constant miss is a constant shift. Joints that the key does not show are left alone.
    """
    centre = windows.keys[:, 1]  # (N, J, 2)
    at = windows.frames + (-windows.times * fps).round().long()  # (N, M) the frame of the centre key, in each column
    at = at[:, 0].clamp(0, dense.shape[1] - 1)
    miss = (centre - dense[windows.clip, at]) * windows.key_visibility[:, 1, :, None]  # (N, J, 2)
    spread = miss[:, None].expand(-1, windows.frames.shape[1], -1, -1)
    return dense + strength * blend_windows(windows, spread, *dense.shape[:2])
