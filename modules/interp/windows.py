"""Cutting a clip into windows around its key poses, and putting it together again.

Window k reaches from key k-1 to key k+1 and knows these three keys and nothing else. A frame between keys k and k+1 is
a blend of windows k and k+1: all of window k at key k, all of window k+1 at key k+1. Hence
- the motion through a key comes from one window: no seam at the keys, and none between them (smooth blending weights);
- an edit of key k reaches the frames between keys k-2 and k+2 and no others, bitwise;
- the cost grows with the length of a clip, and any length, any stride and irregular key times are the same problem.

B clips, T frames, K keys, J joints, N windows (all real keys of all clips), M frames of the longest window.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from modules.interp.splines import FilledKeys, fill_keys

SLACK = 1e-3  # frames: key times on the frame grid, computed in floating point


Rows = TypeVar("Rows")


def select_rows(values: Rows, index: Tensor) -> Rows:
    """Some rows of a dataclass of tensors (N, ...)."""
    return type(values)(**{name: tensor[index] for name, tensor in vars(values).items()})


@dataclass
class Windows:
    """N windows of three keys (left, centre, right); times are seconds from the centre key."""

    clip: Tensor  # (N,) int64: which clip of the batch
    frames: Tensor  # (N, M) int64: which frames of the clip (padding repeats the last)
    frame_mask: Tensor  # (N, M) bool
    weight: Tensor  # (N, M) blending weight; the weights of all windows at a frame sum to 1
    times: Tensor  # (N, M)
    gap: Tensor  # (N, M) seconds between the two keys around the frame
    phase: Tensor  # (N, M) way from the centre key to its neighbour, 0..1
    between: Tensor  # (N, M) bool: between two keys; False beyond the first and the last key of a clip
    keys: Tensor  # (N, 3, J, 2), zeros where unseen
    key_visibility: Tensor  # (N, 3, J) bool
    key_mask: Tensor  # (N, 3) bool: False for a neighbour that does not exist
    key_times: Tensor  # (N, 3), ascending; a missing neighbour has the time it would have
    key_error: Tensor  # (N,) how far off the key poses are, root of the mean square, box coordinates; 0: exact

    def select(self, index: Tensor) -> Windows:
        """Some of the windows."""
        return select_rows(self, index)

    def trim(self) -> Windows:
        """The same windows without the frames that all of them only have as padding."""
        length = int(self.frame_mask.sum(1).max())
        per_frame = ("frames", "frame_mask", "weight", "times", "gap", "phase", "between")
        return replace(self, **{name: getattr(self, name)[:, :length] for name in per_frame})

    def by_length(self) -> list[Windows]:
        """Groups of windows of similar length: with keys at several strides most frames of one group would be
        padding."""
        bucket = self.frame_mask.sum(1).log2().ceil()
        return [self.select((bucket == size).nonzero()[:, 0]).trim() for size in bucket.unique()]

    def fill(self) -> FilledKeys:
        return fill_keys(self.keys, self.key_visibility, self.key_times)


def _neighbours(values: Tensor) -> Tensor:
    """(B, K, ...) -> (B, K, 3, ...): the value before, at and after each key; zeros beyond the ends."""
    pad = torch.zeros_like(values[:, :1])
    return torch.stack([torch.cat([pad, values[:, :-1]], 1), values, torch.cat([values[:, 1:], pad], 1)], dim=2)


def cut_windows(
    keys: Tensor,
    key_visibility: Tensor,
    key_mask: Tensor,
    key_times: Tensor,
    num_frames: int,
    fps: float,
    key_error: Tensor | float = 0.0,
) -> Windows:
    """One window for every real key of every clip.

    Frames after a clip's last key (and before its first) belong to the window of that key, up to the length of the
    segment beside it.

    Args:
        keys: (B, K, J, 2); key_visibility: (B, K, J) bool.
        key_mask: (B, K) bool, real keys first.
        key_times: (B, K) seconds, ascending over the real keys; frame i is at i / fps.
        num_frames: T, frames of the (padded) clips.
        key_error: of all clips or of each, (B,).
    """
    times = _neighbours(key_times.double())  # (B, K, 3)
    exists = _neighbours(key_mask)  # (B, K, 3)
    real = key_mask.nonzero(as_tuple=True)  # N pairs (clip, key)
    times, exists = times[real], exists[real]  # (N, 3)
    centre = times[:, 1:2]
    times = times - centre
    # A missing neighbour is as far away as the other one; a clip with a single key has segments of a third of a second.
    left = torch.where(exists[:, 0], times[:, 0], torch.where(exists[:, 2], -times[:, 2], -1 / 3))
    right = torch.where(exists[:, 2], times[:, 2], -left)
    first = ((left + centre[:, 0]) * fps - SLACK).ceil().long().clamp_min(0)  # (N,)
    last = ((right + centre[:, 0]) * fps + SLACK).floor().long().clamp_max(num_frames - 1)
    length = int((last - first).max()) + 1
    frames = first[:, None] + torch.arange(length, device=keys.device)  # (N, M)
    frame_mask = frames <= last[:, None]
    frames = torch.minimum(frames, last[:, None])
    at = frames / fps - centre  # (N, M) seconds from the centre key
    on_left = at < 0
    gap = torch.where(on_left, -left[:, None], right[:, None])
    neighbour = torch.where(on_left, exists[:, :1], exists[:, 2:])
    phase = (at.abs() / gap).clamp(0, 1)
    u = 1 - phase
    weight = torch.where(neighbour, u * u * (3 - 2 * u), 1.0) * frame_mask
    dtype = keys.dtype
    error = torch.as_tensor(key_error, dtype=dtype, device=keys.device).expand(len(keys))
    visible = _neighbours(key_visibility)[real] & exists[..., None]
    return Windows(
        clip=real[0],
        frames=frames,
        frame_mask=frame_mask,
        weight=weight.to(dtype),
        times=at.to(dtype),
        gap=gap.to(dtype),
        phase=phase.to(dtype),
        between=neighbour,
        keys=torch.where(visible[..., None], _neighbours(keys)[real], 0.0),
        key_visibility=visible,
        key_mask=exists,
        key_times=torch.stack([left, torch.zeros_like(left), right], dim=1).to(dtype),
        key_error=error[real[0]],
    )


def gather_frames(windows: Windows, dense: Tensor) -> Tensor:
    """Values of a clip's frames in every window: (B, T, ...) -> (N, M, ...)."""
    return dense[windows.clip[:, None], windows.frames]


def blend_windows(windows: Windows, values: Tensor, num_clips: int, num_frames: int) -> Tensor:
    """The inverse of `gather_frames`: (N, M, ...) -> (B, T, ...), weighted; frames that no window covers are held.

    At most two windows meet at a frame, and a sum of two does not depend on their order: the result is deterministic.
    """
    trailing = values.shape[2:]
    flat = windows.clip[:, None] * num_frames + windows.frames  # (N, M)
    weight = windows.weight.reshape(*windows.weight.shape, *(1,) * len(trailing))
    total = values.new_zeros(num_clips * num_frames, *trailing)
    total.index_add_(0, flat.flatten(), (values * weight).flatten(0, 1))
    ends = torch.where(windows.frame_mask, windows.frames, windows.frames[:, :1])
    first = windows.frames.new_full((num_clips,), num_frames - 1)
    first.scatter_reduce_(0, windows.clip, windows.frames[:, 0], "amin")
    last = first.scatter_reduce(0, windows.clip, ends.amax(1), "amax", include_self=False)
    held = torch.arange(num_frames, device=values.device).expand(num_clips, -1)  # (B, T)
    held = torch.minimum(torch.maximum(held, first[:, None]), last[:, None])
    return total.unflatten(0, (num_clips, num_frames))[torch.arange(num_clips, device=held.device)[:, None], held]
