"""Use of codebooks: known perplexities, dead entries, padding."""

from __future__ import annotations

import pytest
import torch

from modules.metrics.codebook import CodebookUsage, code_counts, dead_share, perplexity


def test_uniform_use_has_the_perplexity_of_the_size_and_collapse_has_one() -> None:
    codes = torch.stack([torch.arange(8), torch.full((8,), 3)], -1)[None]  # (1, 8, 2)
    counts = code_counts(codes, torch.ones(1, 8, dtype=torch.bool), 8)
    assert perplexity(counts).tolist() == pytest.approx([8, 1])
    assert dead_share(counts).tolist() == pytest.approx([0, 7 / 8])


def test_padding_does_not_count() -> None:
    codes = torch.randint(1, 16, (4, 10, 3))
    mask = torch.arange(10) < torch.tensor([[10], [7], [3], [1]])
    padded = codes.masked_fill(~mask[..., None], 0)
    metric = CodebookUsage(3, 16)
    metric.update(padded, mask)
    assert metric.counts.sum() == 3 * 21
    assert metric.counts[:, 0].sum() == 0
    assert torch.equal(metric.counts, code_counts(codes, mask, 16))


def test_batches_add_up() -> None:
    codes, mask = torch.randint(0, 16, (6, 5, 2)), torch.ones(6, 5, dtype=torch.bool)
    whole, parts = CodebookUsage(2, 16, prefix="val/"), CodebookUsage(2, 16, prefix="val/")
    whole.update(codes, mask)
    for i in range(6):
        parts.update(codes[i : i + 1], mask[i : i + 1])
    assert parts.compute() == whole.compute()
    assert {"val/perplexity", "val/dead", "val/perplexity_0", "val/dead_1"} <= set(whole.compute())
    assert whole._reductions["counts"].__name__ == "dim_zero_sum"
