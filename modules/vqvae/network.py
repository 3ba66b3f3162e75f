"""The pose tokenizer: K key poses of one person <-> K x Q codes.

A residual convolutional encoder over the key poses gives one latent per key, a residual quantiser codes it, the
decoder mirrors the encoder. The convolutions look both ways in time; padding is zeroed before each of them, so that the
codes of a clip do not depend on what it was padded with or how far.
Letters: B batch, K key poses, J joints (18), Q quantisers, V codebook size, C channels, D width of a latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from modules.checkpoint import read_export
from modules.pose.skeleton import NUM_JOINTS
from modules.vqvae.config import NetworkConfig, QuantizerConfig
from modules.vqvae.quantizer import ResidualQuantizer

NUM_FEATURES = 3 * NUM_JOINTS  # x, y and whether it is seen


@dataclass
class DecodedPoses:
    """What the decoder makes of latents or codes."""

    poses: Tensor  # (B, K, J, 2) box coordinates, also of joints that are not seen
    visibility_logits: Tensor  # (B, K, J) above 0: seen

    @property
    def visibility(self) -> Tensor:
        """(B, K, J) bool."""
        return self.visibility_logits > 0


@dataclass
class AutoencoderOutput(DecodedPoses):
    """What training and validation look at."""

    codes: Tensor  # (B, K, Q) int64
    commitment: Tensor  # () distance of the latents from their codes


class ResidualBlock(nn.Module):
    """x + mix(gelu(conv(norm(x)))): a dilated convolution over the keys, then a mix of the channels."""

    def __init__(self, *, width: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv1d(width, width, kernel_size, padding=padding, dilation=dilation)
        self.mix = nn.Linear(width, width)
        # The block starts as the identity.
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, K, C), mask (B, K, 1) of 0 and 1 -> (B, K, C)."""
        hidden = (self.norm(x) * mask).transpose(1, 2)  # (B, C, K)
        return x + self.mix(F.gelu(self.conv(hidden)).transpose(1, 2))


class TemporalStack(nn.Module):
    """Linear in, residual blocks over time, linear out."""

    def __init__(
        self, *, in_features: int, out_features: int, width: int, dilations: list[int], kernel_size: int
    ) -> None:
        super().__init__()
        self.stem = nn.Linear(in_features, width)
        self.blocks = nn.ModuleList(
            ResidualBlock(width=width, kernel_size=kernel_size, dilation=dilation) for dilation in dilations
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, out_features)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, K, in), mask (B, K, 1) -> (B, K, out)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


class PoseTokenizer(nn.Module):
    """Residual VQ autoencoder of the key poses of one person in box coordinates (paper: the motion tokenizer).

    Codes are time-major: (B, K, Q) read row by row is the order of the pose tokens, depth inside a key.
    """

    def __init__(self, config: NetworkConfig, quantizer: QuantizerConfig | None = None) -> None:
        super().__init__()
        self.config = config
        learning = quantizer or QuantizerConfig()
        self.encoder = TemporalStack(
            in_features=NUM_FEATURES,
            out_features=config.latent_dim,
            width=config.width,
            dilations=config.dilations,
            kernel_size=config.kernel_size,
        )
        self.quantizer = ResidualQuantizer(
            num_quantizers=config.num_quantizers,
            codebook_size=config.codebook_size,
            dim=config.latent_dim,
            decay=learning.decay,
            dropout=learning.dropout,
            dead_below=learning.dead_below,
            revive_every=learning.revive_every,
            kmeans_iterations=learning.kmeans_iterations,
            seed=learning.seed,
        )
        self.decoder = TemporalStack(
            in_features=config.latent_dim,
            out_features=NUM_FEATURES,
            width=config.width,
            dilations=config.dilations[::-1],
            kernel_size=config.kernel_size,
        )

    def forward(self, poses: Tensor, visibility: Tensor, key_mask: Tensor) -> AutoencoderOutput:
        """Encode, quantise (in training: with dropout of depths, and the codebooks learn) and decode.

        Args:
            poses: (B, K, J, 2) box coordinates; what stands at unseen joints does not matter.
            visibility: (B, K, J) bool; a key at which no joint is seen has codes as well.
            key_mask: (B, K) bool, False for padding.
        """
        latents = self._latents(poses, visibility, key_mask)
        quantized = self.quantizer(latents, key_mask)
        decoded = self._decode(quantized.latents, key_mask)
        return AutoencoderOutput(
            decoded.poses, decoded.visibility_logits, codes=quantized.codes, commitment=quantized.commitment
        )

    def encode(self, poses: Tensor, visibility: Tensor, key_mask: Tensor) -> Tensor:
        """Codes of key poses; arguments as `forward`. Any number of keys.

        Returns:
            (B, K, Q) int64 in 0..V-1; 0 in padding.
        """
        return self.quantizer.encode(self._latents(poses, visibility, key_mask), key_mask)

    def decode(self, codes: Tensor, key_mask: Tensor, num_quantizers: int | None = None) -> DecodedPoses:
        """Key poses of codes.

        Args:
            codes: (B, K, Q) int64, or fewer depths.
            key_mask: (B, K) bool, False for padding.
            num_quantizers: only the first depths count; None for all that are given.

        Raises:
            ValueError: a code or `num_quantizers` is out of range.
        """
        return self._decode(self.quantizer.lookup(codes, num_quantizers), key_mask)

    def _latents(self, poses: Tensor, visibility: Tensor, key_mask: Tensor) -> Tensor:
        """(B, K, D)"""
        seen = visibility & key_mask[..., None]
        weight = self.encoder.stem.weight
        # torch.where, not a product: an unseen joint may hold anything, also NaN.
        coords = torch.where(seen[..., None], poses.to(weight.dtype), 0).flatten(2)  # (B, K, 2J)
        features = torch.cat([coords, seen.to(weight.dtype)], -1)  # (B, K, 3J)
        return self.encoder(features, key_mask[..., None].to(weight.dtype))

    def _decode(self, latents: Tensor, key_mask: Tensor) -> DecodedPoses:
        latents = latents.to(self.decoder.stem.weight.dtype)
        decoded = self.decoder(latents, key_mask[..., None].to(latents.dtype))  # (B, K, 3J)
        poses, logits = decoded.split([2 * NUM_JOINTS, NUM_JOINTS], -1)
        return DecodedPoses(poses.unflatten(-1, (NUM_JOINTS, 2)), logits)


def from_export(directory: Path) -> PoseTokenizer:
    """The tokenizer of an export, to be used or trained further."""
    found = read_export(directory, "vqvae")
    network = PoseTokenizer(NetworkConfig(**found.config["network"]), QuantizerConfig(**found.config["quantizer"]))
    network.load_state_dict(found.load_state())
    return network
