"""The motion that the key poses let expect: a curve through them that is smooth at the keys, made in one cheap step.

It has two parts, both small MLPs. At every key, three keys say how fast the body moves there, how far the key itself is
off (key poses with noise), and how sure all this is; between two keys, four keys say how the motion leaves the cubic
curve that these velocities make. So the curve has no kink at a key, and between keys k and k+1 it depends on keys
k-1..k+2 alone.

N windows, S segments (pairs of keys that follow each other), M frames of the longest segment, J joints, E width of the
text.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.interp.splines import centre_velocity, hermite
from modules.interp.windows import SLACK, Windows
from modules.pose.skeleton import NUM_JOINTS

POSE = NUM_JOINTS * 2
# Size of what the keys do not say, as measured on motion capture: it grows with a joint's way between the keys, a
# little with the body's, and has a floor (box coordinates per third of a second, growing with the square of the time
# between keys).
BODY_SHARE, STILL = 0.3, 0.02
# Waves of which the course between two keys is made.
WAVES = 6
ERROR_UNIT = 30.0  # of the error of keys: what a pose tokenizer loses is about 1


@dataclass
class Segments:
    """S pairs of windows whose centre keys follow each other, and the frames between the two keys."""

    before: Tensor  # (S,) int64: which window is that of the key before; the next one is that of the key after
    left: Windows  # the windows of the keys before
    right: Windows  # the windows of the keys after
    frames: Tensor  # (S, M) int64: from the key before up to the key after, which belongs to the next segment if any
    frame_mask: Tensor  # (S, M) bool
    share: Tensor  # (S, M) way from the key before to the key after, 0..1
    gap: Tensor  # (S,) seconds between the keys

    def gather(self, dense: Tensor) -> Tensor:
        """Values of a clip's frames in every segment: (B, T, ...) -> (S, M, ...)."""
        return dense[self.left.clip[:, None], self.frames]

    def scatter(self, values: Tensor, num_clips: int, num_frames: int) -> Tensor:
        """The inverse of `gather`: (S, M, ...) -> (B, T, ...), zeros at frames of no segment."""
        dense = values.new_zeros(num_clips, num_frames, *values.shape[2:])
        clip = self.left.clip[:, None].expand_as(self.frames)
        dense[clip[self.frame_mask], self.frames[self.frame_mask]] = values[self.frame_mask]
        return dense


def cut_segments(windows: Windows, fps: float) -> Segments:
    """The segments between the keys of `windows`, all windows of each clip in the order of `cut_windows`."""
    follows = windows.clip[1:] == windows.clip[:-1]
    before = follows.nonzero()[:, 0]
    left, right = windows.select(before), windows.select(before + 1)
    gap = left.key_times[:, 2]
    start = left.frames[:, 0] - left.times[:, 0].double() * fps  # (S,) frame of the key before, any real number
    first = (start - SLACK).ceil().long()
    last = (start + gap.double() * fps + SLACK).floor().long()
    # The frame of a key belongs to the segment after it; the last key of a clip has none.
    on_key = (start + gap.double() * fps - last).abs() <= SLACK
    last = torch.where(on_key & right.key_mask[:, 2], last - 1, last)
    most = int((last - first).max()) + 1 if len(before) else 0
    frames = first[:, None] + torch.arange(most, device=first.device)
    inside = frames <= last[:, None]
    # Padding repeats the last frame; keys closer than a frame may leave a segment without any.
    frames = torch.minimum(frames, last.maximum(first)[:, None])
    share = ((frames - start[:, None]) / (gap[:, None].double() * fps)).clamp(0, 1).to(gap.dtype)
    return Segments(before=before, left=left, right=right, frames=frames, frame_mask=inside, share=share, gap=gap)


def key_motion(keys: Tensor, windows: Windows) -> Tensor:
    """Typical size of what happens between a window's keys, filled in as (N, 3, J, 2): (N, J)."""
    ways = (keys[:, 1:] - keys[:, :-1]).square().sum((-1, 1))  # (N, J)
    # At the ends of a clip one segment stands for both.
    ways = ways * torch.where(windows.key_mask.all(1), 1.0, 2.0)[:, None]
    thirds = 1.5 * (windows.key_times[:, 2:] - windows.key_times[:, :1])  # (N, 1) thirds of a second between keys
    floor = (STILL * thirds**2) ** 2
    return (thirds * (ways + BODY_SHARE * ways.mean(-1, keepdim=True) + floor)).sqrt()


@dataclass
class AtKeys:
    """What three keys say of the one in the middle."""

    place: Tensor  # (N, J, 2) where the motion passes, box coordinates
    velocity: Tensor  # (N, J, 2) box coordinates per second
    motion: Tensor  # (N, J) see `key_motion`
    spread: Tensor  # (N, J) standard deviation of the scaled residual around the outline


class Outline(nn.Module):
    """Expected motion between key poses and how sure it is."""

    def __init__(self, *, width: int, layers: int, text_width: int) -> None:
        super().__init__()
        self.at_key = _mlp(7 * POSE + 4 * NUM_JOINTS + 6 + text_width, max(width // 2, 1), 2, 2 * POSE + NUM_JOINTS)
        self.between = _mlp(10 * POSE + 6 * NUM_JOINTS + 6 + text_width, width, layers, WAVES * POSE)

    def keys(self, windows: Windows, text: Tensor) -> AtKeys:
        """Place, velocity and spread at the centre keys. text: (N, E)."""
        filled = windows.fill()
        motion = key_motion(filled.joints, windows)
        steps = filled.joints[:, 1:] - filled.joints[:, :-1]  # (N, 2, J, 2)
        lengths = windows.key_times[:, 1:] - windows.key_times[:, :-1]  # (N, 2) seconds
        features = [
            *_shape(filled.joints, filled.joints[:, 1:2], steps, lengths, motion),
            windows.key_visibility.flatten(1),
            motion.log() + 2,
            windows.key_mask,
            ERROR_UNIT * windows.key_error[:, None],
            text,
        ]
        out = self.at_key(torch.cat([feature.to(text.dtype) for feature in features], dim=1))
        shift, slope, spread = out.split([POSE, POSE, NUM_JOINTS], dim=1)
        shift, slope = (part.unflatten(1, (NUM_JOINTS, 2)) * motion[..., None] for part in (shift, slope))
        gap = lengths.mean(1)[:, None, None]
        return AtKeys(
            place=filled.joints[:, 1] + shift,
            velocity=centre_velocity(filled, windows.key_times) + slope / gap,
            motion=motion,
            spread=F.softplus(spread + 0.5) + 0.01,
        )

    def forward(self, segments: Segments, text: Tensor, text_after: Tensor) -> Tensor:
        """Expected poses (S, M, J, 2) in box coordinates. text, text_after: (S, E) at the key before and after."""
        left, right = segments.left, segments.right
        start, stop = self.keys(left, text), self.keys(right, text_after)
        ahead, behind = left.fill(), right.fill()
        # Unseen joints of the two inner keys are filled in by the three keys around each, as for the whole motion.
        keys = torch.stack([ahead.joints[:, 0], ahead.joints[:, 1], behind.joints[:, 1], behind.joints[:, 2]], dim=1)
        motion = (start.motion + stop.motion) / 2
        steps = keys[:, 1:] - keys[:, :-1]  # (S, 3, J, 2)
        lengths = torch.cat([left.key_times[:, 1:2] - left.key_times[:, :1], left.key_times[:, 2:],
                             right.key_times[:, 2:]], dim=1)  # fmt: skip
        features = [
            *_shape(keys, keys[:, 1:3], steps, lengths, motion),
            left.key_visibility.flatten(1),
            right.key_visibility.flatten(1),
            left.key_mask[:, :1],
            right.key_mask[:, 2:],
            ERROR_UNIT * left.key_error[:, None],
            text,
        ]
        waves = self.between(torch.cat([feature.to(text.dtype) for feature in features], dim=1))
        share, gap = segments.share, segments.gap[:, None, None]
        cubic = hermite(start.place, start.velocity * gap, stop.place, stop.velocity * gap, share)
        orders = torch.arange(1, WAVES + 1, device=share.device)
        # Zero at both keys, and so is their slope.
        shapes = (torch.pi * share)[..., None].sin() * (torch.pi * share[..., None] * orders).sin()  # (S, M, W)
        course = (shapes @ waves.unflatten(1, (WAVES, POSE))).unflatten(-1, (NUM_JOINTS, 2))
        return cubic + 0.3 * motion[:, None, :, None] * course


def hide_outer(segments: Segments, hide_left: Tensor, hide_right: Tensor) -> Segments:
    """Segments as at the ends of a clip: without the key before the first (`hide_left`, (S,) bool), or after the second
    of the two keys."""
    return replace(
        segments, left=_without(segments.left, hide_left, 0), right=_without(segments.right, hide_right, 2)
    )


def _without(windows: Windows, hide: Tensor, side: int) -> Windows:
    """Windows whose key at `side` (0 or 2) does not exist where `hide` (N,) says so."""
    exists = windows.key_mask.clone()
    exists[:, side] &= ~hide
    times = windows.key_times.clone()
    times[:, side] = torch.where(exists[:, side], times[:, side], -times[:, 2 - side])
    return replace(
        windows,
        keys=windows.keys * exists[..., None, None],
        key_visibility=windows.key_visibility & exists[..., None],
        key_mask=exists,
        key_times=times,
    )


def _shape(keys: Tensor, middle: Tensor, steps: Tensor, lengths: Tensor, motion: Tensor) -> list[Tensor]:
    """What a movement looks like, as large as it is and in units of the motion; each of about unit variance.

    Args:
        keys: (N, K, J, 2), of which `middle` (N, C, J, 2) says where the body is.
        steps: (N, K - 1, J, 2); lengths: (N, K - 1) seconds; motion: (N, J).
    """
    centre = middle.mean((1, 2))[:, None, None]
    return [
        2 * (keys - centre).flatten(1),
        (3 * steps / (3 * lengths).sqrt()[..., None, None]).flatten(1),
        (steps / motion[:, None, :, None]).flatten(1),
        (3 * lengths).log(),
    ]


def _mlp(inputs: int, width: int, layers: int, outputs: int) -> nn.Sequential:
    """Linear layers with GELU between them; the last one starts at zero."""
    sizes = [inputs] + [width] * layers
    stack = [part for size in zip(sizes, sizes[1:], strict=False) for part in (nn.Linear(*size), nn.GELU())]
    last = nn.Linear(width, outputs)
    nn.init.zeros_(last.weight)
    nn.init.zeros_(last.bias)
    return nn.Sequential(*stack, last)
