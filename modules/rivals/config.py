"""Configuration of the rivals: simple models from text to poses, for the same tables as the chain."""

from __future__ import annotations

from dataclasses import dataclass, field

from modules.errors import UserError
from modules.optim import OptimConfig
from modules.text import TextConfig

KINDS = ("diffusion", "autoregressive")


@dataclass
class RivalNetworkConfig:
    """Size of a rival; by default about that of the director and the interpolator together.

    `diffusion`: dense poses of everybody on the canvas, `frames_per_token` frames a token. `autoregressive`: one key
    pose of one person after another, `bins` bins an axis, a key every `stride` frames; splines give the dense poses.
    """

    width: int = 256
    layers: int = 6
    heads: int = 4
    max_people: int = 3
    max_keys: int = 20  # durations: whole keys
    stride: int = 10  # dense frames a key
    frames_per_token: int = 5
    bins: int = 256
    fps: float = 30.0
    text: TextConfig = field(default_factory=lambda: TextConfig(width=128))

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise UserError(f"network.width is {self.width}; it must be a multiple of twice network.heads")
        if self.stride % self.frames_per_token:
            raise UserError(
                f"network.frames_per_token is {self.frames_per_token}; it must divide network.stride ({self.stride})"
            )


@dataclass
class RivalsConfig:
    """A rival and how it samples."""

    kind: str = "diffusion"
    network: RivalNetworkConfig = field(default_factory=RivalNetworkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    text_drop: float = 0.1  # diffusion: share of captions dropped, for classifier-free guidance
    velocity_weight: float = 1.0  # diffusion
    steps: int = 50  # diffusion: network evaluations
    guidance_scale: float = 2.0  # diffusion
    temperature: float = 0.7  # autoregressive

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"kind is {self.kind!r}; allowed: {', '.join(KINDS)}")
        if not 0 <= self.text_drop < 1:
            raise UserError(f"text_drop is {self.text_drop}; it must be from 0 to below 1")
        if self.steps < 1 or self.guidance_scale < 0 or self.temperature <= 0:
            raise UserError("steps must be at least 1, guidance_scale 0 or more, and temperature above 0")
