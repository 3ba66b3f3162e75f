"""A Llama with a key-value cache of fixed size, for decoding.

At a step of a small model most of the time is spent between the matrix products. So weights are called directly, not
through modules; sines of positions are looked up; and samples that are equally long need neither a mask nor an index.

Letters: B samples, n new tokens, M cache length, H heads, G query heads per key head, E head width, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(slots=True)
class _Layer:
    """Weights of a layer, each with its bias or None."""

    attention_norm: Tensor
    query: tuple[Tensor, Tensor | None]
    key: tuple[Tensor, Tensor | None]
    value: tuple[Tensor, Tensor | None]
    out: tuple[Tensor, Tensor | None]
    mlp_norm: Tensor
    gate: tuple[Tensor, Tensor | None]
    up: tuple[Tensor, Tensor | None]
    down: tuple[Tensor, Tensor | None]


class CachedLlama:
    """A Llama fed with ragged batches.

    Args:
        network: transformers' LlamaForCausalLM.
        batch: B.
        capacity: tokens that each sample can hold.
    """

    def __init__(self, network: Any, *, batch: int, capacity: int) -> None:
        config, weight = network.config, network.lm_head.weight
        self.embedding, self.head = network.model.embed_tokens.weight, weight
        self.final_norm, self.epsilon = network.model.norm.weight, config.rms_norm_eps
        self.activation = network.model.layers[0].mlp.act_fn
        self.layers = [_weights(layer) for layer in network.model.layers]
        self.scaling = network.model.layers[0].self_attn.scaling
        self.key_heads = config.num_key_value_heads
        self.head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        shape = (config.num_hidden_layers, 2, batch, self.key_heads, capacity, self.head_dim)
        self.cache = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.lengths = [0] * batch
        cos, sin = network.model.rotary_emb(weight[:1, None], torch.arange(capacity, device=weight.device)[None])
        half = self.head_dim // 2
        self.cos, self.sin = cos[0], torch.cat((-sin[0, :, :half], sin[0, :, half:]), -1)  # (M, E)
        self.rows = torch.arange(batch, device=weight.device)

    def keep(self, rows: list[int]) -> None:
        """Go on with some of the samples alone."""
        self.cache = self.cache[:, :, torch.tensor(rows, device=self.cache.device)].contiguous()
        self.lengths = [self.lengths[row] for row in rows]
        self.rows = self.rows[: len(rows)]

    def embed(self, ids: Tensor) -> Tensor:
        """(...) ids to (..., D)."""
        return F.embedding(ids, self.embedding)

    def extend(self, hidden: Tensor, counts: list[int]) -> Tensor:
        """Feed each sample its next tokens.

        Args:
            hidden: (B, n, D) their embeddings, padded at the end.
            counts: how many of them are real, at least 1 of each sample.

        Returns:
            (B, D) hidden states after the last real token of each sample.
        """
        batch, width = hidden.shape[:2]
        device, capacity = hidden.device, self.cache.shape[4]
        even = min(self.lengths) == max(self.lengths) and self.lengths[0] + width <= capacity
        first, seen = self.lengths[0], max(map(int.__add__, self.lengths, counts))
        where: Any
        if even:
            where = slice(first, first + width)
            cos, sin = self.cos[where, None], self.sin[where, None]  # (n, 1, E)
            seen = first + width
        else:
            lengths = torch.tensor(self.lengths, device=device)
            # Padding is written to the cache like the rest; what comes next overwrites it before it can be seen.
            where = (lengths[:, None] + torch.arange(width, device=device)).clamp(max=capacity - 1)  # (B, n)
            cos, sin = self.cos[where, None], self.sin[where, None]  # (B, n, 1, E)
        mask = None
        if width > 1 or not even:
            last = torch.arange(first, seen, device=device) if even else where
            mask = torch.arange(seen, device=device) <= last[..., None]  # (n, M) or (B, n, M)
            mask = mask.expand(batch, width, seen)
            group = self.layers[0].query[0].shape[0] // self.head_dim // self.key_heads
            mask = mask.repeat_interleave(group, 1)[:, None]  # (B, 1, n * G, M)
        for layer, cache in zip(self.layers, self.cache, strict=True):
            states = self._norm(hidden, layer.attention_norm)
            hidden = hidden + self._attend(layer, cache, states, cos, sin, mask, where, seen)
            states = self._norm(hidden, layer.mlp_norm)
            gated = self.activation(F.linear(states, *layer.gate)).mul_(F.linear(states, *layer.up))
            hidden = hidden + F.linear(gated, *layer.down)
        self.lengths = list(map(int.__add__, self.lengths, counts))
        if width == 1:
            return self._norm(hidden[:, 0], self.final_norm)
        last = hidden[self.rows, torch.tensor(counts, device=device) - 1]  # (B, D)
        return self._norm(last, self.final_norm)

    def _attend(
        self, layer: _Layer, cache: Tensor, states: Tensor, cos: Tensor, sin: Tensor, mask: Tensor | None, where: Any,
        seen: int,
    ) -> Tensor:  # fmt: skip
        batch, width = states.shape[:2]
        query = F.linear(states, *layer.query).view(batch, width, -1, self.head_dim)  # (B, n, H, E)
        key = F.linear(states, *layer.key).view(batch, width, -1, self.head_dim)
        value = F.linear(states, *layer.value).view(batch, width, -1, self.head_dim)
        query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
        if isinstance(where, slice):
            cache[0, :, :, where] = key.transpose(1, 2)
            cache[1, :, :, where] = value.transpose(1, 2)
        else:
            rows = self.rows[:, None].expand_as(where)
            cache[0].transpose(1, 2)[rows, where] = key
            cache[1].transpose(1, 2)[rows, where] = value
        # The G query heads of one key head are G more queries: (B, n, H, E) -> (B, H / G, n * G, E).
        group = query.shape[2] // self.key_heads
        if width == 1:
            query = query.view(batch, self.key_heads, group, self.head_dim)
        else:
            query = query.unflatten(2, (self.key_heads, group)).transpose(1, 2).flatten(2, 3)
        out = F.scaled_dot_product_attention(
            query, cache[0, :, :, :seen], cache[1, :, :, :seen], attn_mask=mask, scale=self.scaling
        )
        if width == 1:
            return F.linear(out.reshape(batch, 1, -1), *layer.out)
        out = out.unflatten(2, (width, group)).transpose(1, 2).flatten(2)  # (B, n, H * E)
        return F.linear(out, *layer.out)

    def _norm(self, hidden: Tensor, weight: Tensor) -> Tensor:
        return F.rms_norm(hidden, weight.shape, weight, self.epsilon)

    def logits(self, hidden: Tensor, start: int, width: int) -> Tensor:
        """Logits (B', width) float32 of the ids start .. start + width - 1."""
        return F.linear(hidden, self.head[start : start + width]).float()


def _weights(layer: Any) -> _Layer:
    attention, mlp = layer.self_attn, layer.mlp
    projections = [attention.q_proj, attention.k_proj, attention.v_proj, attention.o_proj]
    query, key, value, out, gate, up, down = (
        (module.weight, module.bias) for module in (*projections, mlp.gate_proj, mlp.up_proj, mlp.down_proj)
    )
    norms = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
    return _Layer(norms[0], query, key, value, out, norms[1], gate, up, down)


def _rotate(states: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position of (B, n, H, E), in the order of transformers' Llama; `sin` has the sign of its half."""
    return torch.addcmul(states * cos, states.roll(states.shape[-1] // 2, -1), sin)
