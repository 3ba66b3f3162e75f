"""What the main table of the interpolator leaves out: cost, text, variety, spectrum, motion of any length, bad keys.

Letters: N people, T frames, J joints (18).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import torch

from modules.evaluation.interp import Motion, interpolate, measure, spline
from modules.interp.config import SamplingConfig
from modules.interp.network import InterpNetwork
from modules.interp.sampler import sample
from modules.pose.skeleton import BODY_JOINTS
from modules.reports import Column, Table
from modules.vqvae.network import PoseTokenizer

EVALUATIONS = (1, 2, 4, 8, 16, 50)
BANDS = ((0.5, 2), (2, 4), (4, 8), (8, 15))  # Hz
_SPECTRUM_FRAMES = 64
_NOISE = 0.02  # root of the mean square distance, box coordinates: about what detectors and tokenizers lose
_BODY = list(BODY_JOINTS)
Found = list[tuple[np.ndarray, np.ndarray]]


def by_evaluations(network: InterpNetwork, motions: Sequence[Motion], sampling: SamplingConfig, stride: int) -> Table:
    """Error and cost against the number of network evaluations; times are for all these people in one batch."""
    columns = [
        Column("MPJPE", "fine", "down"), Column("acceleration", "fine"), Column("jerk", "fine"),
        Column("ms for 200 frames", "px", "down"),
    ]  # fmt: skip
    table = Table(f"network evaluations, stride {stride}", columns)
    frames = sum(len(motion.poses) for motion in motions)
    for steps in EVALUATIONS:
        started = time.perf_counter()
        found = interpolate(network, motions, replace(sampling, steps=steps), 0)
        seconds = time.perf_counter() - started
        errors = measure(motions, found)
        table.add(
            str(steps),
            MPJPE=float(errors.position.mean()),
            acceleration=float(errors.acceleration.mean()),
            jerk=float(errors.jerk.mean()),
            ms_for_200_frames=1000 * seconds / frames * 200,
        )
    table.notes = [f"{len(motions)} people, one sample each. Those of real motion are in the table of the stride."]
    return table


def by_text(network: InterpNetwork, motions: Sequence[Motion], sampling: SamplingConfig, stride: int) -> Table:
    """The effect of the prompt and of guidance, and how far samples of the same keys are apart."""
    columns = [Column("MPJPE", "fine", "down"), Column("spread", "fine"), Column("acceleration", "fine")]
    table = Table(f"text and guidance, stride {stride}", columns)
    half = len(motions) // 2
    others = [replace(m, caption=motions[(i + half) % len(motions)].caption) for i, m in enumerate(motions)]
    nothing = [replace(m, caption="") for m in motions]
    for name, told, scale in (
        ("right prompt", motions, 1.0),
        ("wrong prompt", others, 1.0),
        ("no prompt", nothing, 1.0),
        ("right prompt, guidance 1.5", motions, 1.5),
        ("right prompt, guidance 2", motions, 2.0),
    ):
        drawn = [interpolate(network, told, replace(sampling, guidance_scale=scale), seed) for seed in (0, 1)]
        errors = measure(motions, drawn[0])
        table.add(
            name,
            MPJPE=float(errors.position.mean()),
            spread=_spread(motions, *drawn),
            acceleration=float(errors.acceleration.mean()),
        )
    table.notes = [f"{len(motions)} people. spread: distance of two samples of the same keys, frames between keys."]
    return table


def _spread(motions: Sequence[Motion], one: Found, other: Found) -> float:
    """Mean distance of two samples over the seen body joints of the frames between keys."""
    means = []
    for motion, (a, _), (b, _) in zip(motions, one, other, strict=True):
        weight = (motion.seen & motion.scored[:, None])[:, _BODY]
        means.append((np.linalg.norm((a - b)[:, _BODY], axis=-1) * weight).sum() / max(weight.sum(), 1))
    return float(np.mean(means))


def spectrum(network: InterpNetwork, motions: Sequence[Motion], sampling: SamplingConfig, stride: int) -> Table:
    """Power of the joints' speed by frequency, as a multiple of that of real motion."""
    columns = [Column(f"{low:g}-{high:g} Hz", "px") for low, high in BANDS]
    table = Table(f"power spectrum of the joints' speed, stride {stride}", columns)
    # What follows the last key is no interpolation.
    motions = [motion for motion in motions if motion.at[-1] >= _SPECTRUM_FRAMES]
    if not motions:
        table.notes = [f"No clip has keys up to frame {_SPECTRUM_FRAMES}."]
        return table
    real = _power(motions, [motion.poses for motion in motions], network.fps)
    for name, found in (
        ("linear", spline(motions, "linear")),
        ("PCHIP", spline(motions, "pchip")),
        ("ours", interpolate(network, motions, sampling, 0)),
    ):
        ratio = _power(motions, [poses for poses, _ in found], network.fps) / real
        table.add(name, **{column.name.replace(" ", "_"): float(r) for column, r in zip(columns, ratio, strict=True)})
    table.notes = [
        f"Real motion = 1. {len(motions)} people, the first {_SPECTRUM_FRAMES} frames, body joints seen in all of them."
    ]
    return table


def _power(motions: Sequence[Motion], found: Sequence[np.ndarray], fps: float) -> np.ndarray:
    """Power of the joints' speed in each band, (bands,), of poses (T, J, 2); joints truly seen throughout."""
    total = np.zeros(len(BANDS))
    window = np.hanning(_SPECTRUM_FRAMES)[:, None]
    frequency = np.fft.rfftfreq(_SPECTRUM_FRAMES, 1 / fps)
    for motion, poses in zip(motions, found, strict=True):
        seen = motion.seen[: _SPECTRUM_FRAMES + 1, _BODY].all(0)
        speed = np.linalg.norm(np.diff(poses[: _SPECTRUM_FRAMES + 1, _BODY], axis=0), axis=-1)[:, seen]  # (64, joints)
        power = np.abs(np.fft.rfft((speed - speed.mean(0)) * window, axis=0)) ** 2
        total += [power[(frequency >= low) & (frequency < high)].sum() for low, high in BANDS]
    return total


def long_motion(network: InterpNetwork, motions: Sequence[Motion], sampling: SamplingConfig, stride: int) -> Table:
    """A minute of key poses, one clip there and back again: seams, speed, and what an edit of one key changes."""
    seconds = 60
    count = int(seconds * network.fps) // stride
    longest = max(motions, key=lambda motion: len(motion.keys))
    # There and back there is no jump between two clips, which would be an acceleration at keys of its own.
    there = np.arange(len(longest.keys))
    order = np.resize(np.concatenate([there, there[-2:0:-1]]), count)
    keys, seen = longest.keys[order], longest.key_seen[order]

    def draw(poses: np.ndarray) -> np.ndarray:
        inputs = torch.from_numpy(poses)[None], torch.from_numpy(seen)[None], torch.ones(1, count, dtype=torch.bool)
        times = torch.arange(count, dtype=torch.float64)[None] * stride / network.fps
        generator = torch.Generator().manual_seed(0)
        dense = sample(network, *inputs, times, count * stride, None, sampling=sampling, generator=generator)
        return dense.joints[0].numpy()

    started = time.perf_counter()
    dense = draw(keys)
    milliseconds = 1000 * (time.perf_counter() - started)
    edited, middle = keys.copy(), count // 2
    edited[middle] += 0.1
    changed = np.flatnonzero((draw(edited) != dense).any((1, 2)))
    acceleration = np.linalg.norm(np.diff(dense[: (count - 1) * stride], 2, axis=0), axis=-1).mean(1)
    at_key = np.isin(np.arange(1, len(acceleration) + 1), np.arange(count) * stride)
    outside = (changed < (middle - 2) * stride) | (changed > (middle + 2) * stride)
    columns = [
        Column("acceleration at seams", "fine"), Column("elsewhere", "fine"), Column("ms", "count", "down"),
        Column("frames changed by an edit", "count"), Column("of them outside", "count", "down"),
    ]  # fmt: skip
    table = Table(f"{seconds} seconds in one piece, stride {stride}", columns)
    table.add(
        "ours",
        acceleration_at_seams=float(acceleration[at_key].mean()),
        elsewhere=float(acceleration[~at_key].mean()),
        ms=milliseconds,
        frames_changed_by_an_edit=len(changed),
        of_them_outside=int(outside.sum()),
    )
    table.notes = ["Windows meet at the keys. Outside: before key k-2 or after key k+2 of the edited key k."]
    return table


def by_keys(
    network: InterpNetwork,
    motions: Sequence[Motion],
    sampling: SamplingConfig,
    stride: int,
    tokenizer: PoseTokenizer | None = None,
) -> Table:
    """Key poses that are off: by noise, and through the pose tokenizer where one is given.

    The network keeps them, or is told how far off keys of this kind are on the average and may repair them.
    """
    columns = [
        Column("MPJPE", "fine", "down"), Column("at keys", "fine", "down"), Column("acceleration", "fine"),
        Column("through keys", "fine"), Column("jerk", "fine"),
    ]  # fmt: skip
    table = Table(f"key poses that are off, stride {stride}", columns)
    rng = np.random.default_rng(0)
    kinds = {f"noise of {_NOISE}": [_with_noise(motion, rng) for motion in motions]}
    if tokenizer is not None:
        kinds["tokenizer's"] = [_coded(motion, tokenizer) for motion in motions]
    for kind, given in kinds.items():
        error = np.sqrt(np.mean([_square_error(motion) for motion in given]))
        free = replace(sampling, keep_keys=0.0, key_error=float(error))
        for name, found in (
            ("PCHIP", spline(given, "pchip")),
            ("keys kept", interpolate(network, given, sampling, 0)),
            ("keys repaired", interpolate(network, given, free, 0)),
            ("repaired, temperature 0", interpolate(network, given, replace(free, temperature=0.0), 0)),
        ):
            errors = measure(motions, found)
            through = np.nanmean(errors.at_keys) if np.isfinite(errors.at_keys).any() else None
            table.add(
                f"{kind} keys, {name}",
                MPJPE=float(errors.position.mean()),
                at_keys=float(errors.missed.mean()),
                acceleration=float(errors.acceleration.mean()),
                through_keys=through,
                jerk=float(errors.jerk.mean()),
            )
    table.notes = [f"{len(motions)} people, one sample each; at keys: distance from the true pose."]
    return table


def _with_noise(motion: Motion, rng: np.random.Generator) -> Motion:
    noise = rng.normal(0, _NOISE / 2**0.5, motion.keys.shape).astype(np.float32)
    return replace(motion, keys=motion.keys + noise * motion.key_seen[..., None])


@torch.no_grad()
def _coded(motion: Motion, tokenizer: PoseTokenizer) -> Motion:
    """The keys as the tokenizer gives them back."""
    device = next(tokenizer.parameters()).device
    poses, seen = torch.from_numpy(motion.keys)[None].to(device), torch.from_numpy(motion.key_seen)[None].to(device)
    found = tokenizer(poses, seen, torch.ones(seen.shape[:2], dtype=torch.bool, device=device))
    key_seen = found.visibility[0].cpu().numpy()
    return replace(motion, keys=found.poses[0].cpu().numpy() * key_seen[..., None], key_seen=key_seen)


def _square_error(motion: Motion) -> float:
    """Mean square distance of the given keys from the true ones."""
    both = motion.key_seen & motion.seen[motion.at]
    distance = np.square(motion.keys - motion.poses[motion.at]).sum(-1)
    return float((distance * both).sum() / max(both.sum(), 1))


def details(
    network: InterpNetwork,
    gathered: Callable[[int], list[Motion]],
    sampling: SamplingConfig,
    strides: Sequence[int],
    tokenizer: PoseTokenizer | None = None,
    tokenizer_stride: int = 0,
) -> list[Table]:
    """All of these tables for each stride; `gathered(stride)` gives the people.

    `tokenizer`: key poses at `tokenizer_stride` are also tried as it gives them back.
    """
    tables = []
    for stride in strides:
        motions = gathered(stride)
        if motions:
            makers = (by_evaluations, by_text, spectrum, long_motion)
            tables += [make(network, motions, sampling, stride) for make in makers]
            coder = tokenizer if stride == tokenizer_stride else None
            tables.append(by_keys(network, motions, sampling, stride, coder))
    return tables
