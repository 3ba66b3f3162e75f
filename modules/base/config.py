"""Configuration of the base: the text-to-video model that the ControlNet is trained on."""

from __future__ import annotations

from dataclasses import dataclass, field

from modules.controlnet.config import ClockConfig, ScheduleConfig, UNetConfig
from modules.errors import UserError
from modules.optim import OptimConfig
from modules.text import TextConfig


@dataclass
class VAEConfig:
    """Shape of the autoencoder (diffusers' AutoencoderKL). The defaults are Stable Diffusion's."""

    block_out_channels: list[int] = field(default_factory=lambda: [128, 256, 512, 512])
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_num_groups: int = 32
    mid_attention: bool = True

    @property
    def factor(self) -> int:
        """Pixels per latent pixel on each axis."""
        return 2 ** (len(self.block_out_channels) - 1)


@dataclass
class BaseNetworkConfig:
    """The whole text-to-video model: what an export needs to build it."""

    width: int = 512  # px
    height: int = 320
    num_frames: int = 16
    vae: VAEConfig = field(default_factory=VAEConfig)
    unet: UNetConfig = field(default_factory=UNetConfig)
    text: TextConfig = field(default_factory=TextConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)

    def __post_init__(self) -> None:
        if self.width % self.vae.factor or self.height % self.vae.factor:
            raise UserError(
                f"network.width and height are {self.width} x {self.height}; they must be multiples of the "
                f"autoencoder's factor {self.vae.factor}"
            )


@dataclass
class BaseConfig:
    """Training of the base in two phases: the autoencoder alone, then UNet and text tower on its frozen latents."""

    network: BaseNetworkConfig = field(default_factory=BaseNetworkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)  # UNet and text tower
    clock: ClockConfig = field(default_factory=ClockConfig)
    vae_steps: int = 1000  # steps of the first phase
    vae_optim: OptimConfig = field(default_factory=OptimConfig)
    vae_frames: int = 32  # frames of a batch that a step of the first phase uses
    kl_weight: float = 1e-5
    detail_weight: float = 0.0  # additional weight of pixels that differ from their neighbourhood: edges, thin limbs
    caption_dropout: float = 0.1  # share of the captions replaced by the empty prompt
    # Colours, people and places are learned from short windows of many clips, motion from whole ones of fewer: the
    # first `short_share` of the second phase sees `short_frames` frames of every clip of the batch, the rest sees all
    # frames of its first `long_clips` clips.
    short_share: float = 0.0
    short_frames: int = 2
    long_clips: int = 8
    # Share of the clips of the second phase that are shown with their drawn poses, through one layer that is thrown
    # away afterwards. Words about people's looks are hard to learn as long as the place of the people is unknown: with
    # that hint they are learned in a few hundred steps, and the rest of the clips keeps the network one of text alone.
    hint_share: float = 0.0
    figure_weight: float = 0.0  # additional weight of the loss of those clips where people are
    timestep_bias: float = 1.0  # > 1 draws more of the noisy timesteps: t = T * u^(1/bias)
    sampling_steps: int = 20
    sampling_guidance: float = 4.0

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1:
            raise UserError(f"caption_dropout is {self.caption_dropout}; it must be from 0 to 1")
        if not 0 <= self.hint_share <= 1 or self.figure_weight < 0:
            raise UserError("hint_share must be from 0 to 1, figure_weight 0 or more")
        if self.figure_weight and not self.hint_share:
            raise UserError("figure_weight acts on clips that are shown with their poses: set hint_share above 0")
        if not 0 <= self.short_share <= 1 or self.short_frames < 1 or self.long_clips < 1:
            raise UserError("short_share must be from 0 to 1, short_frames and long_clips at least 1")
        if self.timestep_bias <= 0:
            raise UserError(f"timestep_bias is {self.timestep_bias}; it must be above 0, 1 for uniform timesteps")
