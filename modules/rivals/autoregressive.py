"""A rival without a pose tokenizer: a transformer that writes binned coordinates, one key pose of one person at a time.

Within a pose a small recurrent network writes joint after joint, x before y, so that every coordinate is told all those
before it. Letters: B scenes, N tokens (poses), P places for people, J joints (18), V bins and "unseen", W width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from modules.pose.scene import Scene
from modules.pose.skeleton import NUM_JOINTS
from modules.rivals.config import RivalsConfig
from modules.rivals.network import Cache, RivalNetwork, sizes

_BIN_WIDTH = 32
_REACH = 1.2  # coordinates from -1.2 to 1.2: a little beyond the canvas


class AutoregressiveRival(RivalNetwork):
    """Caption -> key poses of everybody, as bins; splines are left to the caller."""

    def __init__(self, config: RivalsConfig) -> None:
        super().__init__(config.network)
        self.settings = config
        size = config.network
        self.values = size.bins + 1  # the last one: unseen
        self.bins = nn.Embedding(2 * self.values, _BIN_WIDTH)  # of x, then of y
        self.pose_in = nn.Linear(2 * NUM_JOINTS * _BIN_WIDTH, size.width)
        self.start = nn.Parameter(torch.zeros(size.width))
        self.key_in, self.person_in = nn.Embedding(size.max_keys, size.width), nn.Embedding(size.max_people, size.width)
        self.left_in = nn.Embedding(size.max_keys + 1, size.width)  # keys that are still to come
        self.joint_in = nn.Embedding(NUM_JOINTS, 2 * _BIN_WIDTH)
        self.within = nn.GRU(2 * _BIN_WIDTH, size.width, batch_first=True)
        self.x_out, self.x_told = nn.Linear(size.width, self.values), nn.Linear(_BIN_WIDTH, size.width)
        self.y_out = nn.Linear(size.width, self.values)

    def to_bins(self, poses: Tensor, seen: Tensor) -> Tensor:
        """(..., J, 2) and (..., J) -> (..., J, 2) int64; unseen joints are the last bin on both axes."""
        bins = self.config.bins
        found = ((poses + _REACH) / (2 * _REACH) * bins).floor().long().clamp(0, bins - 1)
        return torch.where(seen[..., None], found, bins)

    def from_bins(self, bins: Tensor) -> tuple[Tensor, Tensor]:
        """Inverse of `to_bins`: the middles of the bins."""
        seen = (bins < self.config.bins).all(-1)
        poses = (bins.float() + 0.5) / self.config.bins * 2 * _REACH - _REACH
        return poses * seen[..., None], seen

    def _embed(self, bins: Tensor) -> Tensor:
        """(..., 2) bins -> (..., 2 * bin width)."""
        return self.bins(bins + torch.tensor([0, self.values], device=bins.device)).flatten(-2)

    def _places(self, key: Tensor, person: Tensor, keys: Tensor) -> Tensor:
        return self.key_in(key) + self.person_in(person) + self.left_in((keys - key).clamp_min(0))

    def losses(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """Cross-entropy of the bins; and of the numbers of people and keys. Nothing is drawn by chance."""
        stride, told = self.config.stride, self.read(batch["captions"])
        bins = self.to_bins(batch["poses"][:, ::stride], batch["seen"][:, ::stride])  # (B, K, P, J, 2)
        count, longest, places = bins.shape[:3]
        device = bins.device
        key, person = torch.arange(longest, device=device), torch.arange(places, device=device)
        real = (key < batch["keys"][:, None])[..., None] & (person < batch["people"][:, None])[:, None]  # (B, K, P)
        # Real tokens first, in order: what is left out must not stand between them.
        order = torch.argsort(~real.flatten(1), dim=1, stable=True)  # (B, K * P)
        bins = bins.flatten(1, 2).gather(1, order[..., None, None].expand(-1, -1, NUM_JOINTS, 2))
        real = real.flatten(1).gather(1, order)
        longest = int(real.sum(1).max())
        bins, real, order = bins[:, :longest], real[:, :longest], order[:, :longest]
        before = self.pose_in(self._embed(bins[:, :-1]).flatten(2))  # (B, N - 1, W)
        before = torch.cat([self.start.to(before.dtype).expand(count, 1, -1), before], 1)
        x = before + self._places(order // places, order % places, batch["keys"][:, None])
        hidden = self.run(x, told, None, causal=True)[real]  # (M, W)
        chosen = bins[real]  # (M, J, 2)
        previous = torch.cat([torch.zeros_like(self._embed(chosen[:, :1])), self._embed(chosen[:, :-1])], 1)
        state, _ = self.within(previous + self.joint_in.weight, hidden[None].contiguous())
        x_logits = self.x_out(state)
        y_logits = self.y_out(state + self.x_told(self.bins(chosen[..., 0])))
        losses = [nn.functional.cross_entropy(logits.flatten(0, 1), chosen[..., axis].flatten())
                  for axis, logits in enumerate((x_logits, y_logits))]  # fmt: skip
        return {
            "motion": losses[0] + losses[1],
            "people": nn.functional.cross_entropy(told.people, batch["people"] - 1),
            "keys": nn.functional.cross_entropy(told.keys, batch["keys"] - 1),
        }

    def _draw(self, logits: Tensor, chance: Tensor) -> Tensor:
        """One bin a row by inverse transform: (B, V) logits, (B,) uniform numbers."""
        share = (logits.float() / self.settings.temperature).softmax(-1).cumsum(-1)
        return (share < chance[:, None].to(share) * share[:, -1:]).sum(-1).clamp_max(self.values - 1)

    def _write_pose(self, hidden: Tensor, chances: Tensor) -> Tensor:
        """Bins (B, J, 2) of the next pose; hidden (B, W), chances (B, J, 2)."""
        state, written = hidden[None].contiguous(), []
        previous = hidden.new_zeros(len(hidden), 2 * _BIN_WIDTH)
        for joint in range(NUM_JOINTS):
            out, state = self.within((previous + self.joint_in.weight[joint])[:, None], state)
            x = self._draw(self.x_out(out[:, 0]), chances[:, joint, 0])
            y = self._draw(self.y_out(out[:, 0] + self.x_told(self.bins(x))), chances[:, joint, 1])
            unseen = (x == self.config.bins) | (y == self.config.bins)
            written.append(torch.where(unseen[:, None], self.config.bins, torch.stack([x, y], -1)))
            previous = self._embed(written[-1])
        return torch.stack(written, 1)

    @torch.inference_mode()
    def generate(self, captions: Sequence[str], seeds: Sequence[int]) -> list[Scene]:
        """Scenes of key poses; each depends on its own caption and seed."""
        told, config, device = self.read(captions), self.config, self.canvas.device
        people, keys = sizes(told)
        most = config.max_keys * config.max_people
        chances = torch.stack([
            torch.rand(most, NUM_JOINTS, 2, generator=torch.Generator().manual_seed(seed)) for seed in seeds
        ]).to(device)  # fmt: skip
        counts, lengths = (torch.tensor(values, device=device) for values in (people, keys))
        cache, written = Cache(), list[Tensor]()
        x = self.start.expand(len(captions), -1)
        for token in range(max(p * k for p, k in zip(people, keys, strict=True))):
            # Each scene has its own number of people: token t is person t mod P of key t div P.
            place = self._places((token // counts).clamp_max(config.max_keys - 1), token % counts, lengths)
            hidden = self.run((x + place)[:, None], told, None, causal=False, cache=cache)[:, 0]
            written.append(self._write_pose(hidden, chances[:, token]))
            x = self.pose_in(self._embed(written[-1]).flatten(1))
        poses, seen = self.from_bins(torch.stack(written, 1))  # (B, N, J, 2)
        result = []
        for i, caption in enumerate(captions):
            shape = (keys[i], people[i])
            own = poses[i, : keys[i] * people[i]].unflatten(0, shape).cpu().numpy()
            shown = seen[i, : keys[i] * people[i]].unflatten(0, shape).cpu().numpy()
            scene = self.scene(own, shown, people[i], caption)
            result.append(dataclasses.replace(scene, times=scene.times * config.stride))
        return result
