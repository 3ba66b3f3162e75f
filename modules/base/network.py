"""The text-to-video model: autoencoder, text tower, video UNet and noise schedule.

Letters: B batch, F frames, C channels, L tokens, D width of the text states.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from modules.base.config import BaseNetworkConfig, VAEConfig
from modules.checkpoint import WEIGHTS_FILE, read_export
from modules.controlnet.config import ScheduleConfig, UNetConfig
from modules.controlnet.scheduler import NoiseSchedule
from modules.controlnet.unet import ControlResiduals, PlainAttention, VideoUNet
from modules.errors import UserError
from modules.text import TextConfig, TextEncoder

_SMALL_WIDTH = 128  # channels of the first level up to which plain attention beats the fused kernels on a CPU
SUMS_FILE = "SHA256SUMS"
SCALE_FACTOR = 0.18215  # of the latents of Stable Diffusion and VideoCrafter2
_LOG_VARIANCE = -6.0  # of the posterior at the start of training
_CHUNK = 32  # frames that the autoencoder takes at once outside of training, where nobody says otherwise


def build_vae(config: VAEConfig) -> AutoencoderKL:
    """diffusers' autoencoder for single frames."""
    levels = len(config.block_out_channels)
    arguments: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * levels,
        "up_block_types": ("UpDecoderBlock2D",) * levels,
        "block_out_channels": tuple(config.block_out_channels),
        "layers_per_block": config.layers_per_block,
        "latent_channels": config.latent_channels,
        "norm_num_groups": config.norm_num_groups,
        "mid_block_add_attention": config.mid_attention,
    }
    vae = AutoencoderKL(in_channels=3, out_channels=3, **arguments)
    with torch.no_grad():
        # The second half of these outputs is the log variance: with the usual start at 0 the noise drowns the latents,
        # and a short training does not get rid of it.
        vae.quant_conv.bias[config.latent_channels :] = _LOG_VARIANCE  # pyright: ignore
    return vae


class BaseNetwork(nn.Module):
    """Text-to-video diffusion in the latent space of a frame-wise autoencoder.

    Latents outside of this class are normalised: (latent - `latent_shift`) * `latent_scale`, per channel. The defaults
    are Stable Diffusion's single factor; the demo's are fitted in training and stored with the weights.
    """

    latent_shift: Tensor  # (C,)
    latent_scale: Tensor  # (C,)

    def __init__(self, config: BaseNetworkConfig) -> None:
        super().__init__()
        self.config = config
        channels = config.vae.latent_channels
        self.vae = build_vae(config.vae)
        self.text = TextEncoder(config.text)
        self.unet = VideoUNet(**config.unet.arguments(latent_channels=channels, text_width=self.text.width))
        if config.unet.block_out_channels[0] <= _SMALL_WIDTH:
            self.unet.set_attn_processor(PlainAttention())  # pyright: ignore[reportArgumentType]
        self.schedule = NoiseSchedule(config.schedule)
        self.frames_at_once = _CHUNK
        self.register_buffer("latent_shift", torch.zeros(channels))
        self.register_buffer("latent_scale", torch.full((channels,), SCALE_FACTOR))

    @property
    def latent_size(self) -> tuple[int, int]:
        """Height and width of the latents."""
        return self.config.height // self.config.vae.factor, self.config.width // self.config.vae.factor

    @property
    def _vae_dtype(self) -> torch.dtype:
        return next(self.vae.parameters()).dtype

    def encode_text(self, captions: Sequence[str]) -> Tensor:
        """Text states (B, L, D), always of the tower's whole context: a caption's do not depend on its batch."""
        return self.text(captions, whole_context=True).tokens.to(self.latent_scale.dtype)

    def posterior(self, frames: Tensor) -> DiagonalGaussianDistribution:
        """Distribution of the raw latents of frames (N, 3, H, W) in [-1, 1]."""
        return self.vae.encode(frames.to(self._vae_dtype)).latent_dist  # pyright: ignore[reportAttributeAccessIssue]

    def normalise(self, latents: Tensor, inverse: bool = False) -> Tensor:
        """Raw latents (..., C, h, w) to those that the UNet sees, or back."""
        shift, scale = self.latent_shift[:, None, None], self.latent_scale[:, None, None]
        return latents / scale + shift if inverse else (latents - shift) * scale

    @torch.no_grad()
    def encode_frames(self, frames: Tensor) -> Tensor:
        """Frames (B, F, 3, H, W) in [-1, 1] to normalised latents (B, C, F, h, w): the mean of the posterior."""
        chunks = [self.posterior(chunk).mean for chunk in frames.flatten(0, 1).split(self.frames_at_once)]
        latents = self.normalise(torch.cat(chunks).to(self.latent_scale.dtype))  # (B * F, C, h, w)
        return latents.unflatten(0, frames.shape[:2]).transpose(1, 2)

    @torch.no_grad()
    def decode_latents(self, latents: Tensor) -> Tensor:
        """Normalised latents (B, C, F, h, w) to frames (B, F, 3, H, W), about [-1, 1]."""
        raw = self.normalise(latents.transpose(1, 2), inverse=True)  # (B, F, C, h, w)
        chunks = raw.flatten(0, 1).to(self._vae_dtype).split(self.frames_at_once)
        parts = [self.vae.decode(chunk).sample for chunk in chunks]  # pyright: ignore
        return torch.cat(parts).unflatten(0, raw.shape[:2])

    def forward(
        self,
        noisy: Tensor,
        timestep: Tensor,
        text: Tensor,
        fps: Tensor,
        control: ControlResiduals | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        """Prediction of the UNet in the precision of `noisy`; see `VideoUNet.forward`."""
        dtype = next(self.unet.parameters()).dtype
        if control is not None:
            control = ControlResiduals([residual.to(dtype) for residual in control.down], control.mid.to(dtype))
        found = self.unet(noisy.to(dtype), timestep, text.to(dtype), fps=fps, control=control, extra=extra)
        return found.to(noisy.dtype)

    def set_precision(self, dtype: torch.dtype) -> None:
        """Store the networks in another precision. What goes in and out, and the statistics, stay as they are."""
        for part in (self.vae, self.text, self.unet):
            nn.Module.to(part, dtype)

    def export_config(self) -> BaseNetworkConfig:
        """The configuration that an export stores."""
        config = copy.deepcopy(self.config)
        config.text = self.text.export_config()
        return config


def network_config(values: dict[str, Any]) -> BaseNetworkConfig:
    """The typed configuration from plain dicts."""
    parts = {"vae": VAEConfig, "unet": UNetConfig, "text": TextConfig, "schedule": ScheduleConfig}
    values = copy.deepcopy(values)
    return BaseNetworkConfig(**{key: parts[key](**value) if key in parts else value for key, value in values.items()})


def from_export(directory: str | Path) -> BaseNetwork:
    """The network of an export; stored at half precision, computed at single.

    Raises:
        UserError: no export there, or its weights are not those that its checksums name.
    """
    found = read_export(directory, "base")
    network = BaseNetwork(network_config(found.config["network"]))
    if network.latent_scale.is_meta:  # sizes are asked for, not weights
        return network
    if not (found.directory / WEIGHTS_FILE).is_file():
        raise UserError(
            f"{directory} holds the shape of a network but no {WEIGHTS_FILE}: put converted weights there, or set "
            "model.base to another export (`make train-base` makes one)"
        )
    check_sums(found.directory)
    network.load_state_dict(found.load_state())
    network.text.load_pretrained()
    return network


def check_sums(directory: Path) -> None:
    """Compare the files of an export with its SHA256SUMS, where it has one.

    Raises:
        UserError: a file is missing or differs, for example after an interrupted download or checkout.
    """
    sums = directory / SUMS_FILE
    if not sums.is_file():
        return
    for line in sums.read_text().splitlines():
        expected, name = line.split(maxsplit=1)
        path = directory / name
        if not path.is_file() or file_sha256(path) != expected:
            state = "differs from its checksum" if path.is_file() else "is missing"
            raise UserError(f"{path} {state}: restore it (git checkout {directory}), or run `make train-base`")


def write_sums(directory: Path, names: Sequence[str]) -> None:
    """Write SHA256SUMS (the format of sha256sum) for some files of a folder."""
    (directory / SUMS_FILE).write_text("".join(f"{file_sha256(directory / name)}  {name}\n" for name in names))


def file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
