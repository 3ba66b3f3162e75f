"""Configuration of the video UNet, its noise schedule and the pose ControlNet."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from modules.errors import UserError
from modules.optim import OptimConfig

# Options that `UNetConfig` and `VideoUNet` call the same.
_SAME_NAMES = (
    "attention_head_dim", "default_fps", "temporal_dropout", "num_attention_heads", "transformer_layers",
    "linear_projection", "init_attention", "temporal_convs", "temporal_attention", "fps_condition",
)  # fmt: skip


@dataclass
class UNetConfig:
    """Shape of the video UNet. The defaults are VideoCrafter2's (1,413 M parameters)."""

    block_out_channels: list[int] = field(default_factory=lambda: [320, 640, 1280, 1280])
    cross_attention: list[bool] = field(default_factory=lambda: [True, True, True, False])  # per level
    layers_per_block: int = 2
    norm_num_groups: int = 32
    attention_head_dim: int = 64
    default_fps: float = 16.0  # where none is given
    temporal_dropout: float = 0.1  # in the temporal convolutions
    # What other networks of VideoCrafter2's family do otherwise, see `VideoUNet`.
    num_attention_heads: int | None = None
    transformer_layers: int = 1
    linear_projection: bool = True
    init_attention: bool = True
    temporal_convs: bool = True
    temporal_attention: bool = True
    fps_condition: bool = True

    def __post_init__(self) -> None:
        if len(self.cross_attention) != len(self.block_out_channels):
            raise UserError(
                f"unet.cross_attention has {len(self.cross_attention)} entries and unet.block_out_channels has "
                f"{len(self.block_out_channels)}: give one entry a level"
            )
        for channels in self.block_out_channels:
            if channels % self.norm_num_groups or channels % self.attention_head_dim:
                raise UserError(
                    f"unet.block_out_channels has {channels}, which must be a multiple of unet.norm_num_groups = "
                    f"{self.norm_num_groups} and of unet.attention_head_dim = {self.attention_head_dim}"
                )

    def arguments(self, *, latent_channels: int, text_width: int) -> dict[str, Any]:
        """Keyword arguments of `VideoUNet`, which are diffusers' own names."""
        down = ["CrossAttnDownBlock3D" if attention else "DownBlock3D" for attention in self.cross_attention]
        up = ["CrossAttnUpBlock3D" if attention else "UpBlock3D" for attention in reversed(self.cross_attention)]
        return {
            "in_channels": latent_channels,
            "out_channels": latent_channels,
            "down_block_types": down,
            "up_block_types": up,
            "block_out_channels": list(self.block_out_channels),
            "layers_per_block": self.layers_per_block,
            "norm_num_groups": self.norm_num_groups,
            "cross_attention_dim": text_width,
            **{name: getattr(self, name) for name in _SAME_NAMES},
        }


@dataclass
class ScheduleConfig:
    """Noise schedule. The defaults are VideoCrafter2's."""

    steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    prediction: Literal["epsilon", "v"] = "epsilon"
    # Pure noise at the last step, so that sampling starts where training ended (arXiv 2305.08891). Needs "v".
    zero_terminal_snr: bool = False
    # Dynamic rescale (`use_scale`): clean latents are multiplied by 1 .. rescale_end over the first steps, then by it.
    rescale: bool = True
    rescale_end: float = 0.7
    rescale_steps: int = 400

    def __post_init__(self) -> None:
        if self.zero_terminal_snr and self.prediction != "v":
            raise UserError(
                "schedule.zero_terminal_snr needs schedule.prediction=v: noise says nothing at the last step"
            )
        if not 0 < self.beta_start < self.beta_end < 1:
            raise UserError(
                f"schedule.beta_start and beta_end are {self.beta_start} and {self.beta_end}; "
                "0 < start < end < 1 is needed"
            )


@dataclass
class ClockConfig:
    """Which frames of a clip a training item shows. Rendered frame i shows dense pose i * `frame_stride`."""

    min_stride: int = 2
    max_stride: int = 8
    val_stride: int = 4
    # 0: training windows are drawn anew in every pass. Otherwise each clip has this many, drawn once, whose decoded
    # frames stay in memory (of each loader process): on a CPU, decoding is a good part of a step.
    windows: int = 0

    def __post_init__(self) -> None:
        if not 1 <= self.min_stride <= self.max_stride or self.val_stride < 1:
            raise UserError(
                f"clock strides are {self.min_stride} to {self.max_stride} and {self.val_stride}; "
                "they must be at least 1, the smallest first"
            )


@dataclass
class ControlNetworkConfig:
    """Shape of the ControlNet beyond the part that it copies from the base."""

    # Channels of the hint encoder, each next entry at half the resolution: as many halvings as the autoencoder has.
    hint_channels: list[int] = field(default_factory=lambda: [16, 32, 96, 256])
    hint_layers: int = 1  # further convolutions at each resolution
    temporal: bool = True  # copy the temporal layers too; without, each frame is controlled by its own pose alone
    hint_boxes: bool = False  # draw the people's boxes on the hint, too


@dataclass
class RenderConfig:
    """How videos are drawn."""

    frame_stride: int = 4  # rendered frame i shows dense pose i * frame_stride
    steps: int = 20
    guidance_scale: float = 4.0
    guidance_rescale: float = 0.0
    control_scale: float = 1.0  # 0 turns the poses off
    # The poses count from this share of the steps to that one. The first steps decide where people are; to leave the
    # poses off in the last ones lets the base draw details as it has learned them.
    control_start: float = 0.0
    control_end: float = 1.0
    eta: float = 0.0
    precision: str = "32"  # "auto": bfloat16 where the hardware computes in it, about twice as fast
    # Videos longer than the network's window: share of a window that the next one covers, too, and whether later
    # windows start from the first one's noise in another order (appearance changes less).
    overlap: float = 0.5
    shared_noise: bool = False
    # Memory at full size: decode frame by frame, and in parts of a frame; keep on the device only the part that works.
    vae_slicing: bool = False
    vae_tiling: bool = False
    offload: bool = False
    device: str = "auto"  # cuda where there is one

    def __post_init__(self) -> None:
        if self.precision not in ("32", "auto"):
            raise UserError(f"precision is {self.precision!r}; allowed: 32, auto")
        if self.frame_stride < 1 or self.steps < 1:
            raise UserError(f"frame_stride is {self.frame_stride} and steps {self.steps}; both must be at least 1")
        if not 0 <= self.control_start <= self.control_end <= 1:
            raise UserError(
                f"control_start is {self.control_start} and control_end {self.control_end}; they are shares of the "
                "steps, 0 <= start <= end <= 1"
            )
        if not 0 <= self.overlap < 1:
            raise UserError(f"overlap is {self.overlap}; it must be from 0 to below 1, for example 0.5")


@dataclass
class AnimateDiffConfig:
    """Weights of the second renderer: folders, or names on the Hugging Face hub that are in the local cache."""

    base: str = "stable-diffusion-v1-5/stable-diffusion-v1-5"
    motion_adapter: str = "guoyww/animatediff-motion-adapter-v1-5-2"
    controlnet: str = "lllyasviel/control_v11p_sd15_openpose"
    download: bool = False  # take what is not in the cache from the hub
    negative_prompt: str = "bad quality, worse quality, low resolution"
    window: int = 16  # frames that the motion adapter was trained on; longer videos are covered by windows (FreeNoise)


@dataclass
class ControlNetConfig:
    """Training of the pose ControlNet on a frozen base."""

    base: str = "assets/demo_base"  # export of stage `base`
    network: ControlNetworkConfig = field(default_factory=ControlNetworkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    fresh_lr_scale: float = 1.0  # of the learning rate of hint encoder and zero convolutions
    clock: ClockConfig = field(default_factory=ClockConfig)
    caption_dropout: float = 0.1  # share of the captions replaced by the empty prompt
    # Layout is decided in the first denoising steps: > 1 draws more of the noisy timesteps, t = T * u^(1/bias).
    timestep_bias: float = 1.0
    gradient_checkpointing: bool = False
    base_precision: Literal["float32", "bfloat16"] = "float32"  # of the frozen base; what is trained is in float32
    cached: bool = False  # train on latents and text states of `prepare.py latents`
    figure_weight: float = 0.0  # additional weight of the loss on the figures' pixels
    sampling_steps: int = 10  # of the videos that are scored and shown at validation
    sampling_guidance: float = 1.0
    sampled_clips: int = 8

    def __post_init__(self) -> None:
        if not 0 <= self.caption_dropout <= 1:
            raise UserError(f"caption_dropout is {self.caption_dropout}; it must be from 0 to 1")
        if self.timestep_bias <= 0:
            raise UserError(f"timestep_bias is {self.timestep_bias}; it must be above 0, 1 for uniform timesteps")
