"""Configuration of the pose tokenizer."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from modules.errors import UserError
from modules.optim import OptimConfig


@dataclass
class NetworkConfig:
    """Size of the autoencoder. Encoder and decoder have the same blocks, one dilation each."""

    # residual: blocks of convolutions over the keys; linear: the same without nonlinearities (the literal reading of
    # the paper's "residual linear"); causal: audio2photoreal's, which has dilations and kernel size of its own.
    architecture: Literal["residual", "linear", "causal"] = "residual"
    num_quantizers: int = 4  # Q, codes of a pose
    codebook_size: int = 256  # V
    latent_dim: int = 32
    width: int = 192
    dilations: list[int] = field(default_factory=lambda: [1, 2, 4, 1])  # keys between the taps of each convolution
    kernel_size: int = 3

    def __post_init__(self) -> None:
        for name in ("num_quantizers", "codebook_size", "latent_dim", "width", "kernel_size"):
            if getattr(self, name) < 1:
                raise UserError(f"network.{name} is {getattr(self, name)}; it must be at least 1")
        if self.kernel_size % 2 == 0:
            raise UserError(f"network.kernel_size is {self.kernel_size}; it must be odd, for example 3")
        if not self.dilations or min(self.dilations) < 1:
            raise UserError(f"network.dilations is {self.dilations}; it needs at least one number, each 1 or more")


@dataclass
class QuantizerConfig:
    """How the codebooks are learned; see `ResidualQuantizer`."""

    decay: float = 0.95
    dropout: float = 0.2
    dead_below: float = 0.2
    revive_every: int = 10
    kmeans_iterations: int = 10
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("decay", "dropout", "dead_below"):
            if not 0 <= getattr(self, name) < 1:
                raise UserError(f"quantizer.{name} is {getattr(self, name)}; it must be from 0 to below 1")
        for name in ("revive_every", "kmeans_iterations"):
            if getattr(self, name) < 1:
                raise UserError(f"quantizer.{name} is {getattr(self, name)}; it must be at least 1")


@dataclass
class VQVAEConfig:
    """The pose tokenizer and its training.

    Everything that a consumer must agree on is in here, so that it is exported: shape of the codes, `stride` (dense
    frames per key pose), `num_keys` (key poses of a full clip; others work as well) and `fps` of the dense frames.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    quantizer: QuantizerConfig = field(default_factory=QuantizerConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    stride: int = 10
    num_keys: int = 20
    fps: float = 30.0
    # Losses, beside the error of the joints in box coordinates: their mean distance, or the reference's smooth L1.
    position_loss: Literal["distance", "smooth_l1"] = "distance"
    velocity_weight: float = 0.5  # distance between the differences of successive key poses
    commitment_weight: float = 0.1
    visibility_weight: float = 0.02  # binary cross-entropy
    bone_weight: float = 0.0  # difference of the limbs' lengths
    # Augmentation in training.
    mirror_share: float = 0.5  # items with left and right exchanged
    hide_share: float = 0.1  # items in which joints, or the whole person, are hidden for some time
    rotate: float = 0.0  # degrees, standard deviation of a turn of the picture
    stretch: float = 0.0  # standard deviation of the logarithm of height over width
    tempo: float = 0.0  # the time between keys is up to this share longer or shorter

    def __post_init__(self) -> None:
        if self.stride < 1 or self.num_keys < 1:
            raise UserError(f"stride is {self.stride} and num_keys {self.num_keys}; both must be at least 1")
        if self.fps <= 0:
            raise UserError(f"fps is {self.fps}; it must be above 0, for example 30")
        for name in ("velocity_weight", "commitment_weight", "visibility_weight", "bone_weight"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("rotate", "stretch"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more")
        for name in ("mirror_share", "hide_share", "tempo"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be a share from 0 to 1")
