"""How near interpolated motion comes to the real one, beside splines through the same key poses.

As in the contracts: the 13 body joints, where seen; frames between the keys, none after the last key. Means are over
people.
Letters: N people, T frames, K keys, J joints (18).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from modules.interp.config import SamplingConfig
from modules.interp.network import InterpNetwork
from modules.interp.sampler import sample
from modules.interp.splines import clip_spline
from modules.metrics.intervals import ClipAverages, Units
from modules.pose.boxes import denormalise, normalise
from modules.pose.scene import Clip, Person, Scene
from modules.pose.skeleton import BODY_JOINTS
from modules.reports import Column, Table

_BATCH = 64
_BODY = list(BODY_JOINTS)
STRIDES = (10, 30)
_FIGURES = {
    "MPJPE": "position", "MPJPE px": "pixels", "MPJPE all joints": "all_joints", "at keys": "missed",
    "acceleration error": "acceleration_error", "acceleration": "acceleration", "through keys": "at_keys",
    "jerk": "jerk", "visibility": "visibility",
}  # fmt: skip


@dataclass
class Motion:
    """Dense poses of one person and the keys taken from them, in box coordinates."""

    poses: np.ndarray  # (T, J, 2)
    seen: np.ndarray  # (T, J) bool
    at: np.ndarray  # (K,) frames of the keys
    keys: np.ndarray  # (K, J, 2) as they are given to the interpolator
    key_seen: np.ndarray  # (K, J) bool
    half: float  # px per unit
    caption: str
    trial: Hashable  # the recording

    @property
    def scored(self) -> np.ndarray:
        """(T,) bool: frames between keys."""
        frames = np.arange(len(self.poses))
        return (frames < self.at[-1]) & ~np.isin(frames, self.at)


@dataclass
class Errors:
    """Figures of one method, each (N,): means over the scored frames and visible body joints of a person."""

    position: np.ndarray  # distance, box units
    pixels: np.ndarray  # distance, px
    acceleration_error: np.ndarray  # of second differences, box units per frame^2
    acceleration: np.ndarray  # length of the second differences themselves
    jerk: np.ndarray  # length of the third differences
    at_keys: np.ndarray  # length of the second differences around the inner keys
    missed: np.ndarray  # distance at the keys, box units
    all_joints: np.ndarray  # distance over all 18 joints
    visibility: np.ndarray  # share of all joints whose visibility is right


def gather(clips: Sequence[Clip], stride: int) -> list[Motion]:
    """Everybody with at least two key poses."""
    motions = []
    for clip, trial in zip(clips, Units.of(clips).trials, strict=True):
        at = np.arange(0, clip.scene.num_frames, stride)
        if len(at) < 2:
            continue
        for person in clip.scene.persons:
            poses = normalise(person.joints, person.box, person.visibility).astype(np.float32)
            half = float(max(person.box[2] - person.box[0], person.box[3] - person.box[1])) / 2
            motions.append(
                Motion(poses, person.visibility, at, poses[at], person.visibility[at], half, clip.caption, trial)
            )
    return motions


def spline(motions: Sequence[Motion], kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Dense poses and visibility by a spline ("linear", "pchip"); visibility is that of the nearest key."""
    result = []
    for motion in motions:
        frames = np.arange(len(motion.poses))
        nearest = np.abs(frames[:, None] - motion.at).argmin(1)
        poses = clip_spline(motion.keys, motion.key_seen, motion.at, frames, kind)
        result.append((poses, motion.key_seen[nearest]))
    return result


def interpolate(
    network: InterpNetwork,
    motions: Sequence[Motion],
    sampling: SamplingConfig,
    seed: int,
    progress: Callable[[int], None] | None = None,
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Dense poses and visibility by the network; `progress` is called with the number of people done."""
    device = next(network.parameters()).device
    generator = torch.Generator().manual_seed(seed)
    result = []
    for start in range(0, len(motions), _BATCH):
        part = motions[start : start + _BATCH]
        longest, frames = max(len(m.at) for m in part), max(len(m.poses) for m in part)
        keys = torch.zeros(len(part), longest, *part[0].poses.shape[1:])
        visibility = torch.zeros(keys.shape[:-1], dtype=torch.bool)
        mask = torch.zeros(len(part), longest, dtype=torch.bool)
        times = torch.zeros(len(part), longest, dtype=torch.float64)
        for i, motion in enumerate(part):
            count = len(motion.at)
            keys[i, :count] = torch.from_numpy(motion.keys)
            visibility[i, :count] = torch.from_numpy(motion.key_seen)
            mask[i, :count] = True
            times[i, :count] = torch.from_numpy(motion.at / network.fps)
        found = sample(
            network,
            keys.to(device),
            visibility.to(device),
            mask.to(device),
            times.to(device),
            frames,
            [motion.caption for motion in part],
            sampling=sampling,
            generator=generator,
        )
        joints, seen = found.joints.cpu().numpy(), found.visibility.cpu().numpy()
        result += [(joints[i, : len(m.poses)], seen[i, : len(m.poses)]) for i, m in enumerate(part)]
        if progress is not None:
            progress(len(part))
    return result


def mean_motion(drawn: Sequence[list[tuple[np.ndarray, np.ndarray]]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Mean over samples of the same people: of the poses; visibility is the majority's."""
    return [
        (np.mean([poses for poses, _ in same], 0), np.mean([visible for _, visible in same], 0) > 0.5)
        for same in zip(*drawn, strict=True)
    ]


def measure(motions: Sequence[Motion], found: Sequence[tuple[np.ndarray, np.ndarray]]) -> Errors:
    """Errors of dense poses against the real ones."""
    rows = []
    for motion, (poses, visible) in zip(motions, found, strict=True):
        weight = (motion.seen & motion.scored[:, None])[:, _BODY]
        offset = (poses - motion.poses)[:, _BODY]
        distance = _mean(np.linalg.norm(offset, axis=-1), weight)
        # A second difference needs three frames that are seen.
        seen = motion.seen[:, _BODY] & (np.arange(len(poses)) <= motion.at[-1])[:, None]
        triple = seen[:-2] & seen[1:-1] & seen[2:]
        body = poses[:, _BODY]
        error = _mean(np.linalg.norm(np.diff(offset, 2, axis=0), axis=-1), triple)
        second = np.linalg.norm(np.diff(body, 2, axis=0), axis=-1)
        jerk = _mean(np.linalg.norm(np.diff(body, 3, axis=0), axis=-1), triple[:-1] & triple[1:])
        inner = np.isin(np.arange(1, len(poses) - 1), motion.at[1:-1])[:, None]
        missed = _mean(np.linalg.norm(offset[motion.at], axis=-1), motion.seen[motion.at][:, _BODY])
        everywhere = _mean(np.linalg.norm(poses - motion.poses, axis=-1), motion.seen & motion.scored[:, None])
        right = float((visible == motion.seen)[motion.scored].mean())
        own = _mean(second, triple)
        # A clip with no inner key says nothing of the motion through keys.
        through = _mean(second, triple & inner) if (triple & inner).any() else np.nan
        rows.append((distance, distance * motion.half, error, own, jerk, through, missed, everywhere, right))
    return Errors(*np.array(rows, np.float64).T)


def _mean(values: np.ndarray, weight: np.ndarray) -> float:
    return float((values * weight).sum() / max(weight.sum(), 1))


def evaluate(
    network: InterpNetwork,
    clips: Sequence[Clip],
    *,
    sampling: SamplingConfig,
    samples: int = 1,
    seed: int,
    trained: Sequence[int] = STRIDES,
    progress: Callable[[int], None] | None = None,
) -> list[Table]:
    """One table for each stride (dense frames per key): real, linear, PCHIP, ours.

    Args:
        samples: drawn for every person; of more than one, the mean is scored as well.
        trained: the strides that the network has seen; others are scored and said to be new to it.
        progress: called with the number of people that the network has done.
    """
    tables = []
    for stride in STRIDES:
        tables.append(_table(network, gather(clips, stride), stride, sampling, samples, seed, progress))
        if stride not in trained:
            tables[-1].notes.append(f"This network was trained with strides {', '.join(map(str, trained))} alone.")
    return tables


def _table(
    network: InterpNetwork,
    motions: Sequence[Motion],
    stride: int,
    sampling: SamplingConfig,
    samples: int,
    seed: int,
    progress: Callable[[int], None] | None,
) -> Table:
    columns = [
        Column("MPJPE", "fine", "down"),
        Column("MPJPE px", "px", "down"),
        Column("MPJPE all joints", "fine", "down"),
        Column("at keys", "fine", "down"),
        Column("acceleration error", "fine", "down"),
        Column("acceleration", "fine"),
        Column("through keys", "fine"),
        Column("jerk", "fine"),
        Column("visibility", "share", "up"),
    ]
    table = Table(f"stride {stride}", columns)
    if not motions:
        table.notes.append(f"No clip is longer than {stride} frames.")
        return table
    methods = {
        "real": [(motion.poses, motion.seen) for motion in motions],
        "linear": spline(motions, "linear"),
        "PCHIP": spline(motions, "pchip"),
    }
    drawn = [interpolate(network, motions, sampling, seed + i, progress) for i in range(samples)]
    methods["ours"] = drawn[0]
    if samples > 1:
        methods[f"ours, mean of {samples}"] = mean_motion(drawn)
    trials = [motion.trial for motion in motions]
    for name, found in methods.items():
        errors = measure(motions, found)
        scores = ClipAverages(trials, [column.name for column in columns])
        for person in range(len(motions)):
            sums = {column: float(getattr(errors, figure)[person]) for column, figure in _FIGURES.items()}
            scores.add(person, {column: (value, 1.0) for column, value in sums.items() if np.isfinite(value)})
        table.add(name, **{column.replace(" ", "_"): value for column, value in scores.compute().items()})
    table.notes.append(
        f"{len(motions)} people; body joints, frames between keys. "
        "Units: half of the box's longer side = 1; acceleration and jerk: mean length of the second and third "
        "differences, per frame^2 and frame^3; through keys: acceleration at the inner keys. "
        f"± is half of the 95 % interval by bootstrap over {len(set(trials))} trials."
    )
    return table


def compared(
    network: InterpNetwork, clips: Sequence[Clip], stride: int, sampling: SamplingConfig, seed: int
) -> list[tuple[str, dict[str, Scene]]]:
    """(name, real, our and PCHIP's motion) of the first person of each clip, to look at."""
    result = []
    for clip in clips:
        motions = gather([clip], stride)[:1]
        if not motions:
            continue
        [ours], [pchip] = interpolate(network, motions, sampling, seed), spline(motions, "pchip")
        scenes = {}
        for label, (poses, visible) in (
            ("real", (motions[0].poses, motions[0].seen)), ("interpolated", ours), ("PCHIP", pchip),
        ):  # fmt: skip
            box = np.array([0, 0, 200, 200], np.float32)
            person = Person(denormalise(poses, box, visible).astype(np.float32), visible, box)
            scenes[label] = Scene(200, 200, network.fps, np.arange(len(poses)) / network.fps, [person])
        result.append((f"{clip.key}-stride{stride}", scenes))
    return result
