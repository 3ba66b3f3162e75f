"""Who is who: detections of single frames linked to tracks of one person each.

Letters: n detections of a frame, m tracks, J joints (18). A pose is (J, 3): x px, y px, confidence.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.optimize import linear_sum_assignment

_FAR = 1e3  # a cost that no pair has
_MIN_COMMON = 3  # joints that two poses must both show to be compared
_CLIP = 0.6  # a joint further off than this share of the body counts no more: limbs swing, detectors exchange them
_DUPLICATE = 0.05  # two detections of a frame nearer than this are one person
_SMOOTH = 0.6  # how much of the last step enters the velocity


@dataclass
class TrackingConfig:
    """When two poses are the same person. Lengths are shares of the body's size, the longer side of its box."""

    max_gap: float = 0.5  # seconds without a detection that a track survives
    slack: float = 0.08  # how far from its prediction a person may be, at once ...
    speed: float = 1.2  # ... and more for each second since the last detection
    margin: float = 0.3  # share of that: another person so near to as good a match makes it unsure, and a cut
    growth: float = 1.2  # change of size from one sighting to the next beyond which it is another person, or two in one
    near: float = 0.25  # distance of two people within which a detector may give one pose for both
    min_joints: int = 5  # visible joints of a detection


@dataclass
class Track:
    """One person."""

    frames: list[int] = field(default_factory=list)  # numbers of the source frames, rising
    poses: list[np.ndarray] = field(default_factory=list)  # (J, 3) each
    cut: bool = False  # ended because it could have been mistaken for another
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))  # px a frame

    def add(self, frame: int, pose: np.ndarray, threshold: float) -> None:
        if self.frames:
            last = self.poses[-1]
            both = (last[:, 2] > threshold) & (pose[:, 2] > threshold)
            step = np.median(pose[both, :2] - last[both, :2], axis=0) / (frame - self.frames[-1])
            self.velocity = _SMOOTH * step + (1 - _SMOOTH) * self.velocity if len(self.frames) > 1 else 0.5 * step
        self.frames.append(frame)
        self.poses.append(pose)

    def predict(self, frame: int) -> np.ndarray:
        """The pose expected in a later frame: moved as a whole."""
        pose = self.poses[-1].copy()
        # A person who was not seen for long has perhaps stopped.
        pose[:, :2] += self.velocity * min(frame - self.frames[-1], 5)
        return pose

    def trim(self) -> None:
        """Drops an end that is shorter than the gap before it, and a beginning: it may be of somebody else."""
        for sign in (1, -1):
            frames, poses = self.frames[::sign], self.poses[::sign]
            gaps = [abs(after - before) for before, after in itertools.pairwise(frames)]
            places = [i for i, gap in enumerate(gaps) if gap > 1 and len(frames) - i - 1 < gap]
            stop = min(places, default=len(frames) - 1) + 1
            self.frames, self.poses = frames[:stop][::sign], poses[:stop][::sign]


def body_size(poses: np.ndarray, threshold: float) -> np.ndarray:
    """Longer side of the box of the visible joints: (n, J, 3) -> (n,) px, 0 where none is visible."""
    seen = poses[..., 2:] > threshold
    low = np.where(seen, poses[..., :2], np.inf).min(1)
    high = np.where(seen, poses[..., :2], -np.inf).max(1)
    return np.where(seen.any((1, 2)), (high - low).max(-1), 0.0)


def distances(first: np.ndarray, second: np.ndarray, threshold: float) -> np.ndarray:
    """How unlike poses are: (m, J, 3), (n, J, 3) -> (m, n), mean distance of common joints in body sizes."""
    seen = (first[:, None, :, 2] > threshold) & (second[None, :, :, 2] > threshold)  # (m, n, J)
    sizes = np.maximum(body_size(first, threshold)[:, None], body_size(second, threshold)[None])
    gap = np.linalg.norm(first[:, None, :, :2] - second[None, :, :, :2], axis=-1)
    gap = np.minimum(gap / np.maximum(sizes, 1e-6)[..., None], _CLIP)
    common = seen.sum(-1)
    return np.where(common >= _MIN_COMMON, (gap * seen).sum(-1) / np.maximum(common, 1), _FAR)


def growth(first: np.ndarray, second: np.ndarray, threshold: float) -> np.ndarray:
    """How much poses differ in size: (m, J, 3), (n, J, 3) -> (m, n), 1 or more, by the spread of their common joints.

    A half-hidden person has fewer joints, but these have the same spread. Where two people stand before each other, a
    detector gives one pose with limbs of both: its spread jumps.
    """
    both = (first[:, None, :, 2] > threshold) & (second[None, :, :, 2] > threshold)  # (m, n, J)
    count = np.maximum(both.sum(-1), 1)[..., None]

    def spread(points: np.ndarray) -> np.ndarray:
        mean = (points * both[..., None]).sum(-2) / count
        return np.sqrt((((points - mean[..., None, :]) * both[..., None]) ** 2).sum((-2, -1)) + 1e-6)

    ratio = spread(second[None, :, :, :2]) / spread(first[:, None, :, :2])
    return np.maximum(ratio, 1 / ratio)


def clean(poses: np.ndarray, threshold: float, min_joints: int) -> np.ndarray:
    """Detections without those of too few joints and without second finds of the same person."""
    seen = (poses[..., 2] > threshold).sum(-1)
    order = [i for i in np.argsort(-seen, kind="stable") if seen[i] >= min_joints]
    kept: list[int] = []
    unlike = distances(poses, poses, threshold)
    for i in order:
        if all(unlike[i, j] > _DUPLICATE for j in kept):
            kept.append(int(i))
    return poses[sorted(kept)]


def link(frames: Sequence[np.ndarray], fps: float, threshold: float, config: TrackingConfig) -> list[Track]:
    """Tracks of the people of a video.

    Each frame's detections go to the tracks by optimal assignment of pose distance to the predicted poses. Where
    another assignment would be nearly as good, the people could be exchanged: all tracks concerned are cut there. So
    they are where somebody vanishes or appears beside another: a detector gives one pose for two people who overlap,
    and nobody knows whose.

    Args:
        frames: (n, J, 3) detections of each frame.
        fps: of the video.
        threshold: a joint is visible above this confidence.
        config: see there.
    """
    active: list[Track] = []
    done: list[Track] = []
    max_gap = max(round(config.max_gap * fps), 1)
    for number, found in enumerate(frames):
        detections = clean(found, threshold, config.min_joints)
        alive = [track for track in active if number - track.frames[-1] <= max_gap]
        done += [track for track in active if number - track.frames[-1] > max_gap]
        matches, unsure = _match(alive, detections, number, fps, threshold, config)
        merged = _merged(alive, detections, matches, number, threshold, config)
        for track in (*unsure, *merged):
            track.cut = True
        taken = set()
        for t, d in matches:
            if not alive[t].cut:
                alive[t].add(number, detections[d], threshold)
                taken.add(d)
        done += [track for track in alive if track.cut]
        active = [track for track in alive if not track.cut]
        for d in set(range(len(detections))) - taken:
            track = Track()
            track.add(number, detections[d], threshold)
            active.append(track)
    for track in done + active:
        track.trim()
    return sorted(done + active, key=lambda track: (track.frames[0], track.frames[-1], float(track.poses[0][0, 0])))


def _match(
    tracks: list[Track],
    detections: np.ndarray,
    number: int,
    fps: float,
    threshold: float,
    config: TrackingConfig,
) -> tuple[list[tuple[int, int]], list[Track]]:
    """Pairs (track, detection), and the tracks that end because they could be mistaken for others."""
    if not tracks or not len(detections):
        return [], []
    predicted = np.stack([track.predict(number) for track in tracks])
    cost = distances(predicted, detections, threshold)
    waited = np.array([number - track.frames[-1] for track in tracks]) / fps
    gate = config.slack + config.speed * waited
    ratio = growth(np.stack([track.poses[-1] for track in tracks]), detections, threshold)
    cost = np.where((cost < gate[:, None]) & (ratio < config.growth), cost, _FAR)
    rows, columns = linear_sum_assignment(cost)
    pairs = [(int(t), int(d)) for t, d in zip(rows, columns, strict=True) if cost[t, d] < _FAR]
    unsure: set[int] = set()
    for t, d in pairs:
        margin = config.margin * gate
        rivals = [i for i in range(len(tracks)) if i != t and cost[i, d] < cost[t, d] + max(margin[t], margin[i])]
        others = [j for j in range(len(detections)) if j != d and cost[t, j] < cost[t, d] + margin[t]]
        if rivals or others:
            unsure |= {t, *rivals}
    return [(t, d) for t, d in pairs if t not in unsure], [tracks[t] for t in sorted(unsure)]


def _merged(
    tracks: list[Track],
    detections: np.ndarray,
    matches: list[tuple[int, int]],
    number: int,
    threshold: float,
    config: TrackingConfig,
) -> list[Track]:
    """Tracks whose detection may be, or may have been, one pose for two people."""
    if not matches:
        return []
    matched, found = {t for t, _ in matches}, {d for _, d in matches}
    gone = [track for t, track in enumerate(tracks) if t not in matched and track.frames[-1] == number - 1]
    lost = [track.predict(number) for track in gone]
    new = [detection for d, detection in enumerate(detections) if d not in found]
    if not lost and not new:
        return []
    close = distances(np.stack([detections[d] for _, d in matches]), np.stack([*lost, *new]), threshold).min(1)
    return [tracks[t] for (t, _), distance in zip(matches, close, strict=True) if distance < config.near]
