"""Configuration of the interpolator: key poses -> dense poses."""

from __future__ import annotations

from dataclasses import dataclass, field

from modules.errors import UserError
from modules.optim import OptimConfig
from modules.text import TextConfig

ARCHITECTURES = ("attention", "linear")
BASES = ("pchip", "linear", "none")
SOLVERS = ("dpmsolver++", "ddim")


@dataclass
class NetworkConfig:
    """The denoising transformer.

    `architecture`: "attention" over the frames and to the key poses, or "linear", the literal reading of the paper's
    linear diffusion: linear layers alone. `frames_per_token`: 1 is the finest; larger tokens cost less. `outline_*`:
    the MLPs that say what the keys let expect. `base`: the spline whose residual is diffused; "none" diffuses the pose
    itself, without an outline. `fps`: rate of the dense frames.
    """

    width: int = 96
    layers: int = 3
    heads: int = 4
    mlp_ratio: float = 2.0
    frames_per_token: int = 1
    architecture: str = "attention"
    outline_width: int = 256
    outline_layers: int = 3
    base: str = "pchip"
    fps: float = 30.0
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        if self.width % self.heads or self.width % 2:
            raise UserError(
                f"network.width is {self.width}; it must be even and a multiple of network.heads = {self.heads}."
            )
        if self.architecture not in ARCHITECTURES:
            raise UserError(
                f"network.architecture is {self.architecture!r}; allowed: {', '.join(ARCHITECTURES)}."
            )
        if self.frames_per_token < 1:
            raise UserError(f"network.frames_per_token is {self.frames_per_token}; it must be 1 or more.")
        if self.base not in BASES:
            raise UserError(f"network.base is {self.base!r}; allowed: {', '.join(BASES)}.")
        if self.fps <= 0:
            raise UserError(f"network.fps is {self.fps}; it must be above 0, for example 30.")


@dataclass
class SamplingConfig:
    """How dense poses are drawn.

    `guidance_scale` 1 is plain sampling; above it, the difference between the prediction with all conditions and with
    none is exaggerated (twice the network evaluations). `temperature` scales the starting noise: 1 draws a sample, 0
    gives the likeliest motion; `jitter` scales its quickest parts alone, of which a network that is not trained to the
    end leaves too much. `keep_keys`: 1 puts every key pose exactly into the result, 0 leaves it where the outline
    puts it. `key_error` tells the network how far off the key poses are (root of the mean square, box coordinates; 0:
    exact), as it was told in training.
    """

    solver: str = "dpmsolver++"
    steps: int = 8
    guidance_scale: float = 1.0
    temperature: float = 1.0
    jitter: float = 1.0
    keep_keys: float = 1.0
    key_error: float = 0.0

    def __post_init__(self) -> None:
        if self.solver not in SOLVERS:
            raise UserError(f"sampling.solver is {self.solver!r}; allowed: {', '.join(SOLVERS)}.")
        if self.steps < 1:
            raise UserError(f"sampling.steps is {self.steps}; it must be at least 1, for example 8.")
        if not 0 <= self.keep_keys <= 1:
            raise UserError(f"sampling.keep_keys is {self.keep_keys}; it must be from 0 to 1.")
        if not 0 <= self.jitter <= 10:
            raise UserError(f"sampling.jitter is {self.jitter}; it must be from 0 to 10.")
        for name in ("temperature", "key_error"):
            if getattr(self, name) < 0:
                raise UserError(f"sampling.{name} is {getattr(self, name)}; it must be 0 or more.")


@dataclass
class InterpConfig:
    """The interpolator and its training.

    Shares of dropped conditions (`key_drop`, `text_drop`) are for classifier-free guidance, each drawn on its own.
    `strides`: dense frames between keys; one is drawn for every training clip, the first is the one of validation.
    `windows_per_clip`: windows drawn from a clip at a training step for the transformer (0: all); the outline, which
    costs little, learns from all of them. `end_share`: segments whose outline loses the key before, and after, as at
    the ends of a clip. `key_noise`: standard deviation, in box coordinates, of noise on key poses in training, drawn
    between 0 and this for a share `noise_share` of the clips. `vqvae`: an export whose reconstructions replace the key
    poses of a share `vqvae_share` of the clips with keys at its stride. The network is told how far off the keys of a
    clip are. `rotate` (degrees), `stretch`: standard deviations of a turn of the picture and of the logarithm of height
    over width.
    """

    network: NetworkConfig = field(default_factory=NetworkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    outline_weight: float = 1.0
    outline_velocity_weight: float = 0.5
    velocity_weight: float = 0.5
    spread_weight: float = 0.1
    visibility_weight: float = 0.1
    key_drop: float = 0.1
    text_drop: float = 0.1
    strides: list[int] = field(default_factory=lambda: [10])
    windows_per_clip: int = 0
    end_share: float = 0.1
    key_noise: float = 0.0
    noise_share: float = 0.5
    rotate: float = 0.0
    stretch: float = 0.0
    vqvae: str | None = None
    vqvae_share: float = 0.5

    def __post_init__(self) -> None:
        for name in ("key_drop", "text_drop", "vqvae_share", "noise_share", "end_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be a share from 0 to 1.")
        weights = ("outline_weight", "outline_velocity_weight", "velocity_weight", "spread_weight", "visibility_weight")
        for name in (*weights, "key_noise", "rotate", "stretch"):
            if getattr(self, name) < 0:
                raise UserError(f"{name} is {getattr(self, name)}; it must be 0 or more.")
        if self.windows_per_clip < 0:
            raise UserError(f"windows_per_clip is {self.windows_per_clip}; it must be 0 (all) or more.")
        if not self.strides or min(self.strides) < 2:
            raise UserError(f"strides is {self.strides}; it needs at least one stride, each 2 frames or more.")
