"""What both rivals are made of: a text tower, transformer blocks, and heads for the number of people and the duration.

Letters: B scenes, N tokens, L tokens of the caption, W width, H heads, P places for people, J joints (18).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.checkpoint import read_export
from modules.optim import OptimConfig
from modules.pose.scene import Scene, make_person
from modules.rivals.config import RivalNetworkConfig, RivalsConfig
from modules.text import TextConfig, TextEncoder


@dataclass
class Told:
    """What a caption says, as the blocks read it."""

    tokens: Tensor  # (B, L, W)
    mask: Tensor  # (B, L) bool
    people: Tensor  # (B, P) logits of 1 .. P people
    keys: Tensor  # (B, K) logits of 1 .. K keys


@dataclass
class Cache:
    """Keys and values of the tokens so far, one entry a block."""

    seen: list[tuple[Tensor, Tensor]] = field(default_factory=list)


class Block(nn.Module):
    """Self-attention, cross-attention to the caption, MLP; each after a norm."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.key_value, self.cross_out = (nn.Linear(width, n * width) for n in (1, 2, 1))
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def _split(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (B, H, N, W/H)

    def forward(
        self, x: Tensor, told: Told, mask: Tensor | None, causal: bool, past: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x (B, N, W), mask (B, N) bool of the real tokens; `past` keys and values come before those of x."""
        query, key, value = (self._split(part) for part in self.qkv(self.norms[0](x)).chunk(3, dim=-1))
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        allowed = None if mask is None else mask[:, None, None]
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=allowed, is_causal=causal)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        text_key, text_value = (self._split(part) for part in self.key_value(told.tokens).chunk(2, dim=-1))
        asked = self._split(self.query(self.norms[1](x)))
        read = F.scaled_dot_product_attention(asked, text_key, text_value, attn_mask=told.mask[:, None, None])
        x = x + self.cross_out(read.transpose(1, 2).flatten(2))
        return x + self.mlp(self.norms[2](x)), (key, value)


class RivalNetwork(nn.Module):
    """Base of both rivals."""

    canvas: Tensor  # (2,) px, width and height of the scenes that it makes

    def __init__(self, config: RivalNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("canvas", torch.tensor([64.0, 64.0]))
        self.text = TextEncoder(config.text)
        self.text_in = nn.Linear(self.text.width, config.width)
        self.people_out = nn.Linear(self.text.pooled_width, config.max_people)
        self.keys_out = nn.Linear(self.text.pooled_width, config.max_keys)
        self.blocks = nn.ModuleList(Block(width=config.width, heads=config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)

    def read(self, captions: Sequence[str]) -> Told:
        """Read captions."""
        found = self.text(captions)
        return Told(self.text_in(found.tokens), found.mask, self.people_out(found.pooled), self.keys_out(found.pooled))

    def run(self, x: Tensor, told: Told, mask: Tensor | None, causal: bool, cache: Cache | None = None) -> Tensor:
        """All blocks: (B, N, W) -> (B, N, W). With a cache, x is what is new."""
        for number, block in enumerate(self.blocks):
            past = cache.seen[number] if cache is not None and len(cache.seen) > number else None
            x, seen = block(x, told, mask, causal, past)
            if cache is not None:
                cache.seen[number : number + 1] = [seen]
        return self.norm(x)

    def scene(self, poses: np.ndarray, seen: np.ndarray, people: int, caption: str) -> Scene:
        """A scene of the canvas from (T, P, J, 2) in units of half of its longer side, and (T, P, J)."""
        width, height = (int(side) for side in self.canvas.tolist())
        joints = poses * max(width, height) / 2 + np.array([width, height]) / 2
        persons = [
            make_person((joints[:, p] * seen[:, p, :, None]).astype(np.float32), seen[:, p], width, height)
            for p in range(people)
            if seen[:, p].any()
        ]
        times = np.arange(len(poses)) / self.config.fps
        return Scene(width, height, self.config.fps, times, persons, caption)


def sizes(told: Told) -> tuple[list[int], list[int]]:
    """The likeliest number of people and of keys of each caption."""
    return (told.people.argmax(-1) + 1).tolist(), (told.keys.argmax(-1) + 1).tolist()


def from_plain(values: dict[str, Any]) -> RivalsConfig:
    """The configuration from plain values."""
    network = RivalNetworkConfig(**{**values["network"], "text": TextConfig(**values["network"]["text"])})
    return RivalsConfig(**{**values, "network": network, "optim": OptimConfig(**values["optim"])})


def build(config: RivalsConfig) -> RivalNetwork:
    """The network of a kind."""
    from modules.rivals.autoregressive import AutoregressiveRival
    from modules.rivals.diffusion import DiffusionRival

    return (DiffusionRival if config.kind == "diffusion" else AutoregressiveRival)(config)


def from_export(directory: Path) -> RivalNetwork:
    """The network of an export."""
    found = read_export(directory, "rivals")
    network = build(from_plain(found.config))
    network.load_state_dict(found.load_state())
    network.text.load_pretrained()
    return network
