"""Residual vector quantiser: k-means start, EMA codebooks, dead-code revival, quantiser dropout.

All running state is in buffers, and every random choice follows from the seed and the step buffer: a run that was
interrupted continues as if it had not been.
Letters: N vectors, D width of a latent, Q quantisers (depths), V codebook size.

Residual quantisation and quantiser dropout: Zeghidour et al., SoundStream (2021); EMA codebooks: van den Oord et al.,
VQ-VAE (2017), appendix A; budget of 6 x 512 codes a pose: the paper, section on the motion tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

# Laplace smoothing of the EMA counts, as a share of the mean count.
COUNT_SMOOTHING = 1e-5


@dataclass
class Quantized:
    """What the quantiser makes of a batch of latents."""

    latents: Tensor  # (..., D) sum of the chosen entries; in training the gradient passes straight through to the input
    codes: Tensor  # (..., Q) int64; 0 where the mask is False, and at depths that quantiser dropout left out
    commitment: Tensor  # () mean squared distance between the latents and their partial sums


class ResidualQuantizer(nn.Module):
    """Q codebooks of V entries; depth q codes what the depths before it left over.

    Args:
        num_quantizers: Q.
        codebook_size: V.
        dim: D.
        decay: of the exponential moving averages, per step.
        dropout: share of training samples that are quantised with a random smaller number of depths.
        dead_below: an entry is replaced by a random residual of the batch when its average use falls below this share
            of uniform use.
        revive_every: steps between two looks for dead entries.
        kmeans_iterations: of the start, on the first training batch.
        seed: of the k-means start, the dropout and the revivals.
    """

    codebooks: Tensor  # (Q, V, D)
    ema_counts: Tensor  # (Q, V)
    ema_sums: Tensor  # (Q, V, D)
    steps: Tensor  # () int64, training batches seen
    initialised: Tensor  # () bool

    def __init__(
        self,
        *,
        num_quantizers: int,
        codebook_size: int,
        dim: int,
        decay: float = 0.95,
        dropout: float = 0.2,
        dead_below: float = 0.2,
        revive_every: int = 10,
        kmeans_iterations: int = 10,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.num_quantizers = num_quantizers
        self.codebook_size = codebook_size
        self.dim = dim
        self.decay = decay
        self.dropout = dropout
        self.dead_below = dead_below
        self.revive_every = revive_every
        self.kmeans_iterations = kmeans_iterations
        self.seed = seed
        self.register_buffer("codebooks", torch.zeros(num_quantizers, codebook_size, dim))
        self.register_buffer("ema_counts", torch.zeros(num_quantizers, codebook_size))
        self.register_buffer("ema_sums", torch.zeros(num_quantizers, codebook_size, dim))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.register_buffer("initialised", torch.zeros((), dtype=torch.bool))

    def forward(self, latents: Tensor, mask: Tensor) -> Quantized:
        """Quantise, and in training learn the codebooks.

        Args:
            latents: (B, K, D).
            mask: (B, K) bool; what is False has codes 0, latents 0, and no part in any statistic.
        """
        with torch.autocast(latents.device.type, enabled=False):
            latents = latents.float()
            if not self.training:
                return self._quantize(latents, mask, depths=None)
            step = int(self.steps)
            self.steps += 1
            if not self.initialised:
                self._start(latents.detach()[mask], step)
            return self._quantize(latents, mask, self._draw_depths(len(latents), step), step)

    def encode(self, latents: Tensor, mask: Tensor) -> Tensor:
        """Codes of latents: (B, K, D), (B, K) bool -> (B, K, Q) int64, 0 where the mask is False."""
        with torch.autocast(latents.device.type, enabled=False):
            return self._quantize(latents.float(), mask, depths=None).codes

    def lookup(self, codes: Tensor, num_quantizers: int | None = None) -> Tensor:
        """Latents of codes: (..., Q') int64 -> (..., D), the sum over the first `num_quantizers` depths.

        Raises:
            ValueError: `num_quantizers` is not from 1 to the number of depths in `codes`, or a code is out of range.
        """
        given = codes.shape[-1]
        depth = given if num_quantizers is None else num_quantizers
        if not 1 <= depth <= given or given > self.num_quantizers:
            raise ValueError(
                f"num_quantizers is {depth} for codes of depth {given}; it must be from 1 to that depth, "
                f"and this tokenizer has {self.num_quantizers} depths"
            )
        codes = codes[..., :depth]
        if codes.numel() and (int(codes.min()) < 0 or int(codes.max()) >= self.codebook_size):
            raise ValueError(
                f"pose codes range over {int(codes.min())}..{int(codes.max())}; "
                f"this tokenizer has codes 0..{self.codebook_size - 1}"
            )
        offsets = torch.arange(depth, device=codes.device) * self.codebook_size
        return F.embedding(codes + offsets, self.codebooks.flatten(0, 1)).sum(-2)

    def _quantize(self, latents: Tensor, mask: Tensor, depths: Tensor | None, step: int = 0) -> Quantized:
        """`depths` (B,): number of depths used by each sample; None for all of them, without learning."""
        learn = depths is not None
        flat = latents.detach().flatten(0, 1)  # (B * K, D)
        real = mask.flatten()  # (B * K,)
        residual = flat
        total = torch.zeros_like(flat)
        commitment = latents.new_zeros(())
        weight_sum = latents.new_zeros(())
        codes, residuals, weights = [], [], []
        for depth in range(self.num_quantizers):
            used = real if depths is None else real & (depths > depth).repeat_interleave(latents.shape[1])
            weight = used.to(flat.dtype)
            code = nearest(residual, self.codebooks[depth]) * used
            if learn:
                residuals.append(residual)
                weights.append(weight)
            entry = self.codebooks[depth][code] * weight[:, None]
            total = total + entry
            residual = residual - entry
            codes.append(code)
            if learn:
                distance = (latents.flatten(0, 1) - total).square().mean(-1)
                commitment = commitment + (distance * weight).sum()
                weight_sum = weight_sum + weight.sum()
        if learn:
            self._update(codes, residuals, weights, step)
        kept = latents * mask[..., None]
        quantized = total.view_as(latents)
        if learn:
            quantized = kept + (quantized - kept).detach()
        return Quantized(
            quantized,
            torch.stack(codes, -1).view(*mask.shape, -1),  # (B, K, Q)
            commitment / weight_sum.clamp(min=1),
        )

    def _draw_depths(self, batch: int, step: int) -> Tensor:
        """Depths used by each training sample: (B,) int64 in 1..Q."""
        generator = self._generator(step, stream=0, shared=False)
        partial = torch.rand(batch, generator=generator) < self.dropout
        depths = torch.randint(1, self.num_quantizers + 1, (batch,), generator=generator)
        return torch.where(partial, depths, self.num_quantizers).to(self.codebooks.device)

    @torch.no_grad()
    def _update(self, codes: list[Tensor], residuals: list[Tensor], weights: list[Tensor], step: int) -> None:
        """One EMA step of all codebooks, from the residuals that each depth has just seen."""
        statistics = self.codebooks.new_zeros(self.num_quantizers, self.codebook_size, self.dim + 1)
        for depth, (code, residual, weight) in enumerate(zip(codes, residuals, weights, strict=True)):
            statistics[depth, :, 0].index_add_(0, code, weight)
            statistics[depth, :, 1:].index_add_(0, code, residual * weight[:, None])
        if _distributed():
            dist.all_reduce(statistics)
        if not bool(statistics.isfinite().all()):  # the step is skipped, and the codebooks have no optimiser to do so
            return
        self.ema_counts.lerp_(statistics[..., 0], 1 - self.decay)
        self.ema_sums.lerp_(statistics[..., 1:], 1 - self.decay)
        if step % self.revive_every == 0:
            self._revive(residuals, weights, step)
        mean_count = self.ema_counts.mean(-1, keepdim=True)  # (Q, 1)
        smooth = (self.ema_counts + COUNT_SMOOTHING * mean_count).clamp(min=1e-12)
        self.codebooks.copy_(self.ema_sums / smooth[..., None])

    def _revive(self, residuals: list[Tensor], weights: list[Tensor], step: int) -> None:
        """Give entries that are hardly used the place of random residuals; rank 0 chooses for all ranks."""
        mean_counts = self.ema_counts.mean(-1)  # (Q,)
        dead = self.ema_counts < self.dead_below * mean_counts[:, None]
        if not bool(dead.any()):
            return
        generator = self._generator(step, stream=1)
        fresh = torch.cat(
            [
                _draw_rows(residual, weight, int(gone.sum()), generator)
                for residual, weight, gone in zip(residuals, weights, dead, strict=True)
            ]
        )
        if _distributed():
            dist.broadcast(fresh, src=0)
        counts = mean_counts[:, None].expand_as(dead)[dead]
        self.ema_counts[dead] = counts
        self.ema_sums[dead] = fresh * counts[:, None]

    @torch.no_grad()
    def _start(self, vectors: Tensor, step: int) -> None:
        """k-means, depth after depth, on the vectors (N, D) of one batch; rank 0's for all ranks."""
        generator = self._generator(step, stream=2)
        residual = vectors[vectors.isfinite().all(-1)]
        for depth in range(self.num_quantizers):
            self.codebooks[depth] = kmeans(residual, self.codebook_size, self.kmeans_iterations, generator)
            if _distributed():
                dist.broadcast(self.codebooks[depth], src=0)
            residual = residual - self.codebooks[depth][nearest(residual, self.codebooks[depth])]
        # As if every entry had been used equally by batches of this size.
        count = torch.tensor(len(vectors) / self.codebook_size, device=vectors.device)
        if _distributed():
            dist.all_reduce(count)
        self.ema_counts.fill_(count)
        self.ema_sums.copy_(self.codebooks * count)
        self.initialised.fill_(True)

    def _generator(self, step: int, stream: int, shared: bool = True) -> torch.Generator:
        """Random numbers of a step; `shared`: the same on all ranks."""
        rank = dist.get_rank() if _distributed() and not shared else 0
        return torch.Generator().manual_seed(hash((self.seed, step, stream, rank)) & (2**63 - 1))


def nearest(vectors: Tensor, entries: Tensor) -> Tensor:
    """Index of the nearest entry by Euclidean distance: (N, D), (V, D) -> (N,) int64."""
    # |x - e|^2 without |x|^2, which is the same for all entries.
    return torch.addmm(entries.square().sum(-1), vectors, entries.t(), alpha=-2).argmin(-1)


def kmeans(vectors: Tensor, num_clusters: int, iterations: int, generator: torch.Generator) -> Tensor:
    """Lloyd's algorithm: (N, D) -> centres (num_clusters, D). Clusters that lose all their vectors start anew."""
    ones = vectors.new_ones(len(vectors))
    centres = _draw_rows(vectors, ones, num_clusters, generator)
    for _ in range(iterations):
        code = nearest(vectors, centres)
        counts = vectors.new_zeros(num_clusters).index_add_(0, code, ones)
        sums = torch.zeros_like(centres).index_add_(0, code, vectors)
        empty = counts == 0
        centres = sums / counts.clamp(min=1)[:, None]
        centres[empty] = _draw_rows(vectors, ones, int(empty.sum()), generator)
    return centres


def _draw_rows(vectors: Tensor, weights: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """`count` random rows of those with a weight: without repetition as long as there are enough."""
    candidates = weights.nonzero()[:, 0].cpu()
    if count == 0 or len(candidates) == 0:
        return vectors.new_zeros(count, vectors.shape[-1])
    order = torch.randperm(len(candidates), generator=generator)
    chosen = candidates[order.repeat(-(-count // len(order)))[:count]]
    return vectors[chosen.to(vectors.device)]


def _distributed() -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
