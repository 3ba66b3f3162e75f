"""Depth head: all ids of a key pose from one step of the large model.

Without it each of the Q ids of a key pose is a token of its own, and costs a step. With it a key pose is one place in
the sequence: its embedding is the sum of its ids' rows, and the state before it goes to a small network that writes the
ids one depth after another. A residual quantiser adds its codes up, and so does the head: depth q sees the state and
the sum of the vectors of the codes before it.

Letters: N key poses, D width of the large model, W width of the head, Q quantisers, V codebook size, L places.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from modules.errors import UserError
from modules.llm.config import DepthHeadConfig
from modules.llm.tokens import CodeShape, SceneVocabulary

DEPTH_FILE = "depth_head.safetensors"  # beside the weights of the Llama


class DepthHead(nn.Module):
    """p(codes of a key pose | state), depth by depth.

    Args:
        hidden_size: D.
    """

    def __init__(self, config: DepthHeadConfig, *, hidden_size: int, codes: CodeShape) -> None:
        super().__init__()
        self.num_quantizers, self.codebook_size = codes.num_quantizers, codes.codebook_size
        width = config.width
        self.norm_in = nn.RMSNorm(hidden_size)
        self.project = nn.Linear(hidden_size, width, bias=False)
        # Of this module itself, not of a part of it: under ZeRO-3 weights are there while their own module runs.
        self.depths = nn.Parameter(torch.empty(codes.num_quantizers, width))
        self.head = nn.Parameter(torch.empty(codes.num_quantizers, codes.codebook_size, width))
        self.codes = nn.Embedding(max(codes.num_quantizers - 1, 1) * codes.codebook_size, width)
        self.layers = nn.ModuleList(Block(width) for _ in range(config.num_layers))
        self.norm = nn.RMSNorm(width)
        nn.init.normal_(self.depths, std=0.5)
        nn.init.normal_(self.codes.weight, std=0.5)
        nn.init.normal_(self.head, std=0.02)

    def forward(self, states: Tensor, codes: Tensor) -> Tensor:
        """Logits (N, Q, V) of true codes (N, Q), each depth given those before it; states are (N, D)."""
        offsets = torch.arange(self.num_quantizers - 1, device=codes.device) * self.codebook_size
        before = self.codes(codes[:, :-1] + offsets).cumsum(1)  # (N, Q - 1, W)
        hidden = self.project(self.norm_in(states))[:, None] + F.pad(before, (0, 0, 1, 0)) + self.depths
        for layer in self.layers:
            hidden = layer(hidden)
        return torch.einsum("nqw,qvw->nqv", self.norm(hidden), self.head)

    def start(self, states: Tensor) -> Tensor:
        """What the first depth is drawn from (N, W)."""
        return self.project(self.norm_in(states))

    def step(self, sums: Tensor, depth: int) -> Tensor:
        """Logits (N, V) float32 of one depth."""
        hidden = sums + self.depths[depth]
        for layer in self.layers:
            hidden = layer(hidden)
        return F.linear(self.norm(hidden), self.head[depth]).float()

    def add(self, sums: Tensor, codes: Tensor, depth: int) -> Tensor:
        """What the depth after `depth` is drawn from, now that its codes (N,) are known."""
        return sums + self.codes(codes + depth * self.codebook_size)

    def losses(self, states: Tensor, codes: Tensor) -> tuple[Tensor, Tensor]:
        """Cross-entropy (N, Q) of true codes, and whether the likeliest code is the right one (N, Q) bool."""
        logits = self(states, codes).float()
        losses = F.cross_entropy(logits.flatten(0, 1), codes.flatten(), reduction="none").view_as(codes)
        return losses, logits.detach().argmax(-1) == codes


class Block(nn.Module):
    """Residual MLP on vectors of width W."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(width)
        self.up = nn.Linear(width, 4 * width, bias=False)
        self.down = nn.Linear(4 * width, width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, hidden: Tensor) -> Tensor:
        return hidden + self.down(F.silu(self.up(self.norm(hidden))))


def embed_slots(embedding: Callable[[Tensor], Tensor], ids: Tensor) -> Tensor:
    """Embeddings (..., D) of places (..., Q): one id, or the ids of a key pose; -1 where there is none."""
    real = ids >= 0
    rows = embedding(ids.clamp(min=0)) * real[..., None]
    return rows.sum(-2) / real.sum(-1, keepdim=True).clamp(min=1).sqrt().to(rows.dtype)


def slots_of(ids: Tensor, pose_index: Tensor, codes: Tensor, vocabulary: SceneVocabulary) -> Tensor:
    """Places (B, L, Q) of packed rows (B, L): text and marks as they are, key poses at `pose_index` (R, K, 1)."""
    slots = torch.full((ids.numel(), codes.shape[-1]), -1, dtype=torch.int64, device=ids.device)
    slots[:, 0] = ids.flatten()
    real = pose_index[..., 0] >= 0
    slots[pose_index[..., 0][real]] = vocabulary.pose_ids(codes)[real]
    return slots.view(*ids.shape, -1)


def pad_slots(rows: Sequence[Sequence[Sequence[int]]], num_quantizers: int) -> Tensor:
    """Ragged lists of places to (B, n, Q), padded by -1."""
    ids = torch.full((len(rows), max(map(len, rows)), num_quantizers), -1, dtype=torch.int64)
    for number, row in enumerate(rows):
        for place, slot in enumerate(row):
            ids[number, place, : len(slot)] = torch.tensor(slot)
    return ids


def save_depth_head(head: DepthHead, folder: Path) -> None:
    """Write its weights beside those of the Llama."""
    state = {name: value.detach().cpu().contiguous() for name, value in head.state_dict().items()}
    save_file(state, folder / DEPTH_FILE)


def load_depth_head(folder: Path, config: dict[str, Any], *, hidden_size: int, codes: CodeShape) -> DepthHead:
    """The depth head of an export.

    Raises:
        UserError: its file is missing, or does not fit.
    """
    head = DepthHead(DepthHeadConfig(**config), hidden_size=hidden_size, codes=codes)
    try:
        head.load_state_dict(load_file(folder / DEPTH_FILE))
    except (OSError, RuntimeError) as error:
        raise UserError(
            f"{folder / DEPTH_FILE} cannot be read ({str(error).splitlines()[0]}); export the run again"
        ) from None
    return head.eval().requires_grad_(False)
