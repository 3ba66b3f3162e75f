"""The pose tokenizer: K key poses of one person <-> K x Q codes.

An encoder over the key poses gives one latent per key, a residual quantiser codes it, the decoder mirrors the encoder.
The codes of a clip do not depend on what it was padded with or how far.

The paper names a "residual linear VQ-VAE that is aware of time" and gives no layers. By default this is read as linear
layers in residual blocks, with convolutions over the keys and a nonlinearity; `architecture: linear` is the literal
reading, without any. docs/VQVAE.md has the error of both.
Letters: B batch, K key poses, J joints (18), Q quantisers, V codebook size, C channels, D width of a latent.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from modules.checkpoint import misfit_explained, read_export
from modules.pose.skeleton import NUM_JOINTS
from modules.vqvae.config import NetworkConfig, QuantizerConfig
from modules.vqvae.quantizer import ResidualQuantizer
from modules.vqvae.stacks import dtype_of, make_stack

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


class PoseTokenizer(nn.Module):
    """Residual VQ autoencoder of the key poses of one person in box coordinates (paper: the motion tokenizer).

    Codes are time-major: (B, K, Q) read row by row is the order of the pose tokens, depth inside a key.

        tokenizer = PoseTokenizer.from_pretrained("runs/vqvae/demo/export")
        codes = tokenizer.encode(poses, visibility)  # (B, K, 18, 2), (B, K, 18) -> (B, K, Q)
        poses = tokenizer.decode(codes).poses
    """

    def __init__(self, config: NetworkConfig, quantizer: QuantizerConfig | None = None) -> None:
        super().__init__()
        self.config = config
        learning = quantizer or QuantizerConfig()
        sizes = {"width": config.width, "dilations": config.dilations, "kernel_size": config.kernel_size}
        self.encoder = make_stack(
            config.architecture, in_features=NUM_FEATURES, out_features=config.latent_dim, **sizes, decoder=False
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
        self.decoder = make_stack(
            config.architecture, in_features=config.latent_dim, out_features=NUM_FEATURES, **sizes, decoder=True
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

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> PoseTokenizer:
        """The tokenizer of an export, in eval mode; it can be trained further.

        Raises:
            UserError: no export of the stage vqvae there, or its weights do not fit.
        """
        found = read_export(directory, "vqvae")
        with misfit_explained(found):
            network = cls(NetworkConfig(**found.config["network"]), QuantizerConfig(**found.config["quantizer"]))
            network.load_state_dict(found.load_state())
        return network.eval()

    def encode(self, poses: Tensor, visibility: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Codes of key poses; arguments as `forward`, without a mask every key is real. Any number of keys.

        Returns:
            (B, K, Q) int64 in 0..V-1; 0 in padding.
        """
        key_mask = visibility.new_ones(visibility.shape[:2]) if key_mask is None else key_mask
        return self.quantizer.encode(self._latents(poses, visibility, key_mask), key_mask)

    def decode(
        self, codes: Tensor, key_mask: Tensor | None = None, num_quantizers: int | None = None
    ) -> DecodedPoses:
        """Key poses of codes.

        Args:
            codes: (B, K, Q) int64, or fewer depths.
            key_mask: (B, K) bool, False for padding; None: every key is real.
            num_quantizers: only the first depths count; None for all that are given.

        Raises:
            ValueError: a code or `num_quantizers` is out of range.
        """
        if key_mask is None:
            key_mask = torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device)
        return self._decode(self.quantizer.lookup(codes, num_quantizers), key_mask)

    def _latents(self, poses: Tensor, visibility: Tensor, key_mask: Tensor) -> Tensor:
        """(B, K, D)"""
        seen = visibility & key_mask[..., None]
        dtype = dtype_of(self.encoder)
        # torch.where, not a product: an unseen joint may hold anything, also NaN.
        coords = torch.where(seen[..., None], poses.to(dtype), 0).flatten(2)  # (B, K, 2J)
        features = torch.cat([coords, seen.to(dtype)], -1)  # (B, K, 3J)
        return self.encoder(features, key_mask[..., None].to(dtype))

    def _decode(self, latents: Tensor, key_mask: Tensor) -> DecodedPoses:
        latents = latents.to(dtype_of(self.decoder))
        decoded = self.decoder(latents, key_mask[..., None].to(latents.dtype))  # (B, K, 3J)
        poses, logits = decoded.split([2 * NUM_JOINTS, NUM_JOINTS], -1)
        return DecodedPoses(poses.unflatten(-1, (NUM_JOINTS, 2)), logits)


def from_export(directory: Path) -> PoseTokenizer:
    """As every stage offers it to `load_frozen`."""
    return PoseTokenizer.from_pretrained(directory)
