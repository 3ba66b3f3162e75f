"""How well the codebooks of a residual quantiser are used.

Letters: Q quantisers (depths), V codebook size.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


def code_counts(codes: Tensor, mask: Tensor, codebook_size: int) -> Tensor:
    """How often each entry is used.

    Args:
        codes: (..., Q) int64.
        mask: (...) bool; codes of padding, where it is False, do not count.
        codebook_size: V.

    Returns:
        (Q, V) int64.
    """
    real = codes[mask]  # (N, Q)
    depths = codes.shape[-1]
    offsets = torch.arange(depths, device=codes.device) * codebook_size
    return torch.bincount((real + offsets).flatten(), minlength=depths * codebook_size).view(depths, codebook_size)


def perplexity(counts: Tensor) -> Tensor:
    """exp of the entropy of the use of each depth: (Q, V) -> (Q,); V where all are used alike, 1 where one is."""
    share = counts.double() / counts.sum(-1, keepdim=True).clamp(min=1)
    return torch.exp(torch.special.entr(share).sum(-1)).float()


def dead_share(counts: Tensor) -> Tensor:
    """Share of the entries of each depth that are never used: (Q, V) -> (Q,)."""
    return (counts == 0).float().mean(-1)


class CodebookUsage(Metric):
    """Use of the codes since the last reset.

    `compute()` gives perplexity_<depth>, dead_<depth> (share of entries never used; it means something over many
    times V codes), and their averages over the depths, perplexity and dead. `counts` is the histogram.
    """

    full_state_update = False
    counts: Tensor  # (Q, V) int64

    def __init__(self, num_quantizers: int, codebook_size: int, prefix: str = "", **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.prefix = prefix
        counts = torch.zeros(num_quantizers, codebook_size, dtype=torch.int64)
        self.add_state("counts", counts, dist_reduce_fx="sum")

    def update(self, codes: Tensor, mask: Tensor) -> None:
        """Count codes (..., Q) where mask (...) is True."""
        self.counts += code_counts(codes, mask, self.counts.shape[-1])

    def compute(self) -> dict[str, Tensor]:
        figures = {"perplexity": perplexity(self.counts), "dead": dead_share(self.counts)}
        result = {f"{self.prefix}{name}": values.mean() for name, values in figures.items()}
        for name, values in figures.items():
            result.update({f"{self.prefix}{name}_{depth}": value for depth, value in enumerate(values)})
        return result
