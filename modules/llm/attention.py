"""Attention over packed rows: samples stand one after another in a row, and no sample sees another.

The linear layers of the model run over the packed tokens, without padding. For attention alone the samples are laid out
as a padded batch (S samples, M positions), where plain causal attention needs no mask at all.

Letters: B rows, L tokens of a row, S samples, M longest sample, H heads, G query heads per key head, E head width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AttentionInterface

PACKED = "packed_sdpa"


@dataclass
class Packing:
    """Where the tokens of packed rows stand in the padded batch of samples."""

    token_of_slot: Tensor  # (S, M) int64 index into the flat rows (B * L); padding points at token 0
    slot_of_token: Tensor  # (B * L,) int64 index into the flat samples (S * M); padding of rows points at slot 0


def make_packing(sample_ids: Tensor, position_ids: Tensor) -> Packing:
    """From (B, L) sample numbers (0 .. S-1 over the whole batch, -1 for padding) and positions within a sample."""
    real = sample_ids >= 0
    samples, longest = int(sample_ids.max()) + 1, int(position_ids.max()) + 1
    slots = torch.where(real, sample_ids * longest + position_ids, 0).flatten()  # (B * L,)
    tokens = real.flatten().nonzero()[:, 0]
    inverse = torch.zeros(samples * longest, dtype=torch.int64, device=slots.device)
    inverse[slots[tokens]] = tokens
    return Packing(inverse.view(samples, longest), slots)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    packing: Packing,
    dropout: float = 0.0,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Causal attention within each sample: query (B, H, L, E), key and value (B, H / G, L, E) -> (B, L, H, E)."""
    assert attention_mask is None, "packed rows need no mask"
    rows, length = query.shape[0], query.shape[2]
    samples, longest = packing.token_of_slot.shape
    index = packing.token_of_slot.flatten()

    def unpack(states: Tensor) -> Tensor:
        flat = states.transpose(1, 2).flatten(0, 1)  # (B, H, L, E) -> (B * L, H, E)
        return flat[index].view(samples, longest, *flat.shape[1:]).transpose(1, 2)  # (S, H, M, E)

    out = F.scaled_dot_product_attention(
        unpack(query),
        unpack(key),
        unpack(value),
        dropout_p=dropout,
        is_causal=True,
        scale=scaling,
        enable_gqa=query.shape[1] != key.shape[1],
    )
    flat = out.transpose(1, 2).flatten(0, 1)[packing.slot_of_token]  # (S, H, M, E) -> (S * M, H, E) -> (B * L, H, E)
    return flat.view(rows, length, *flat.shape[1:]), None


AttentionInterface.register(PACKED, packed_attention)
