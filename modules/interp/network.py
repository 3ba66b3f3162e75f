"""The interpolator's network: a diffusion transformer over the frames of a window between key poses.

`Outline` says in one cheap step which motion the keys let expect, and how sure that is. What is diffused is the
residual around it, in a unit that follows the motion of each joint (`Base`): a person who stands still gets little
noise.

N windows, M frames of a window, J joints, L tokens of a window, F frames of a token, W width, E width of the text.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from modules.checkpoint import read_export
from modules.interp.config import NetworkConfig
from modules.interp.noise import noise_schedule
from modules.interp.outline import ERROR_UNIT, POSE, Outline, Segments, key_motion
from modules.interp.splines import window_spline
from modules.interp.windows import Windows
from modules.pose.skeleton import NUM_JOINTS
from modules.text import TextConfig, TextEncoder

# The unit of the residual vanishes towards the keys like a sine; there, key poses with noise leave a rest.
AT_KEYS = 0.2
KEY_TOKENS = 4  # the three keys of a window, and "no key"


@dataclass
class Base:
    """What the residual of a window is measured from, and its unit."""

    spline: Tensor  # (N, M, J, 2) through the three keys, box coordinates
    course: Tensor  # (N, M, J, 2) expected poses, box coordinates: the residual is measured from here
    keys: Tensor  # (N, 3, J, 2) keys with their unseen joints filled in
    motion: Tensor  # (N, J) typical size of what happens between the keys, box coordinates
    unit: Tensor  # (N, M, J, 1) expected size of the residual on this side of the centre key
    profile: Tensor  # (N, M, J, 1) its course over time; what is diffused is in units of unit * profile
    visibility: Tensor  # (N, M, J) the keys' visibility, interpolated, 0..1
    between: Tensor  # (N, M, J) bool: keys show the joint on both sides of the frame
    anchored: Tensor  # (N, J) bool: joints that at least one key shows; the others cannot be known

    @property
    def scale(self) -> Tensor:
        """(N, M, J, 1) unit of the residual at each frame."""
        return self.unit * self.profile

    def encode(self, joints: Tensor) -> Tensor:
        """Dense poses (N, M, J, 2) -> scaled residual, about unit variance."""
        return (joints - self.course) / self.scale

    def decode(self, residual: Tensor) -> Tensor:
        """Inverse of `encode`."""
        return self.course + residual * self.scale


@dataclass
class Conditions:
    """What the denoiser is told about each window; the same for all steps of a sampling."""

    course: Tensor  # (N, M, J, 2) the spline from the centre key on, box coordinates
    keys: Tensor  # (N, 4, W) tokens of the three keys and of "no key"
    key_mask: Tensor  # (N, 4) bool
    visibility: Tensor  # (N, M, J) of the keys, 0..1, zeros where dropped
    text: Tensor  # (N, W)
    keep_keys: Tensor  # (N,) bool


@dataclass
class Prediction:
    """Output of the denoiser."""

    residual: Tensor  # (N, M, J, 2) clean scaled residual
    visibility: Tensor  # (N, M, J) logits


def sinusoids(values: Tensor, width: int, longest: float, shortest: float) -> Tensor:
    """Sines and cosines of `values` with periods from `shortest` to `longest`: (...) -> (..., width)."""
    exponents = torch.linspace(0, 1, width // 2, device=values.device, dtype=values.dtype)
    angles = values[..., None] * (2 * math.pi / shortest) * (shortest / longest) ** exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)


@dataclass
class Gains:
    """Factors of a preconditioned denoiser, (N, 1, 1, 1)."""

    skip: Tensor  # of the noisy residual in the output
    outward: Tensor  # of the network's output


def preconditioning(timesteps: Tensor) -> Gains:
    """Gains for a residual of unit variance at diffusion steps (N,); the noisy one has unit variance as well."""
    signal = noise_schedule().alphas_cumprod.to(timesteps.device)[timesteps.long()][:, None, None, None]
    return Gains(skip=signal.sqrt(), outward=(1 - signal).sqrt())


class Attention(nn.Module):
    """Multi-head attention of `x` to `context`."""

    def __init__(self, *, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """x: (N, M, W); context: (N, L, W); mask: (N, L) bool, True where there is something to see."""
        query = self.query(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)  # (N, H, M, W/H)
        key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(1, 2) for part in self.key_value(context).chunk(2, dim=-1)
        )
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask[:, None, None, :])
        return self.out(seen.transpose(1, 2).flatten(2))


class LinearKeys(nn.Module):
    """The key poses through one linear layer, the same for every token: what stands in for cross-attention to them."""

    def __init__(self, *, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(KEY_TOKENS * width, width)

    def forward(self, x: Tensor, context: Tensor, mask: Tensor) -> Tensor:
        """x: (N, M, W); context: (N, 4, W); mask: (N, 4) bool. Returns (N, 1, W)."""
        return self.out((context * mask[..., None]).flatten(1))[:, None]


class Block(nn.Module):
    """Self-attention over time, cross-attention to the key poses, MLP; each modulated and gated (adaLN-zero).

    With `architecture` "linear" there is no attention: tokens see the keys by a linear layer, and each other not at
    all.
    """

    def __init__(self, *, width: int, heads: int, mlp_ratio: float, architecture: str) -> None:
        super().__init__()
        hidden = int(width * mlp_ratio)
        attends = architecture == "attention"
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.time = Attention(width=width, heads=heads) if attends else None
        self.keys = Attention(width=width, heads=heads) if attends else LinearKeys(width=width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.GELU(approximate="tanh"), nn.Linear(hidden, width))
        self.modulation = nn.Linear(width, (9 if attends else 6) * width)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, x: Tensor, mask: Tensor, keys: Tensor, key_mask: Tensor, condition: Tensor) -> Tensor:
        """x: (N, M, W); mask: (N, M); keys: (N, 4, W); key_mask: (N, 4); condition: (N, W)."""
        modulation = list(self.modulation(condition)[:, None].split(x.shape[-1], dim=-1))  # each (N, 1, W)
        if self.time is not None:
            shift, scale, gate, *modulation = modulation
            y = self.norm(x) * (1 + scale) + shift
            x = x + gate * self.time(y, y, mask)
        shift, scale, gate, *modulation = modulation
        x = x + gate * self.keys(self.norm(x) * (1 + scale) + shift, keys, key_mask)
        shift, scale, gate = modulation
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class InterpNetwork(nn.Module):
    """Text tower, residual coding and denoiser."""

    residual_ratio: Tensor

    def __init__(
        self,
        *,
        width: int,
        layers: int,
        heads: int,
        mlp_ratio: float = 2.0,
        frames_per_token: int = 1,
        architecture: str = "attention",
        outline_width: int = 256,
        outline_layers: int = 3,
        base: str = "pchip",
        fps: float = 30.0,
        text: TextConfig | None = None,
    ) -> None:
        super().__init__()
        self.base_kind, self.fps, self.width, self.frames_per_token = base, fps, width, frames_per_token
        self.text = TextEncoder(text or TextConfig())
        # Typical residual of each joint as a share of its motion, between keys and beyond the ends; fitted to data.
        self.register_buffer("residual_ratio", torch.ones(2, NUM_JOINTS))
        frame_features = POSE + POSE + NUM_JOINTS + 3
        self.outline = Outline(width=outline_width, layers=outline_layers, text_width=self.text.pooled_width)
        self.frame_in = nn.Linear(frames_per_token * frame_features, width)
        self.key_in = nn.Linear(2 * POSE + NUM_JOINTS, width)
        self.null_key = nn.Parameter(torch.zeros(width))  # what there is to see where no key is
        self.step_in = nn.Sequential(nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width))
        self.text_in = nn.Linear(self.text.pooled_width + 1, width)  # and the error of the keys
        self.blocks = nn.ModuleList(
            Block(width=width, heads=heads, mlp_ratio=mlp_ratio, architecture=architecture) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.residual_out = nn.Linear(width, frames_per_token * POSE)
        self.visibility_out = nn.Linear(width, frames_per_token * NUM_JOINTS)
        for head in (self.residual_out, self.visibility_out):
            nn.init.zeros_(head.weight)
            nn.init.zeros_(head.bias)

    @classmethod
    def from_config(cls, config: NetworkConfig) -> InterpNetwork:
        return cls(
            width=config.width,
            layers=config.layers,
            heads=config.heads,
            mlp_ratio=config.mlp_ratio,
            frames_per_token=config.frames_per_token,
            architecture=config.architecture,
            outline_width=config.outline_width,
            outline_layers=config.outline_layers,
            base=config.base,
            fps=config.fps,
            text=config.text,
        )

    def embed_text(self, captions: Sequence[str]) -> Tensor:
        """Pooled embeddings (B, E) of the captions."""
        return self.text(captions).pooled

    def course(self, segments: Segments, text: Tensor) -> Tensor:
        """Expected poses (S, M, J, 2) between keys, box coordinates. text: (N, E) of the windows cut into segments."""
        return self.outline(segments, text[segments.before], text[segments.before + 1])

    def spread(self, windows: Windows, text: Tensor) -> Tensor:
        """How large the residual of each joint is, as a multiple of what is typical of its motion: (N, J).

        Args:
            text: (N, E), zeros where it is dropped.
        """
        return self.outline.keys(windows, text).spread

    def base(self, windows: Windows, course: Tensor | None = None, spread: Tensor | None = None) -> Base:
        """What the residual of each window is measured from, and its unit.

        Args:
            course: (N, M, J, 2) expected poses, box coordinates, used between keys alone; None for the spline's.
            spread: (N, J), see `spread`; None for ones.
        """
        filled = windows.fill()
        if self.base_kind == "none":
            spline = course = filled.joints.new_zeros(*windows.times.shape, NUM_JOINTS, 2)
            motion, profile = torch.ones_like(filled.joints[:, 0, :, 0]), torch.ones_like(windows.times)
        else:
            spline = window_spline(filled, windows.key_times, windows.times, self.base_kind)
            motion = key_motion(filled.joints, windows)
            profile = (torch.pi * windows.phase).sin().clamp_min(AT_KEYS)
            course = spline if course is None else course
        on_left = windows.times[..., None] < 0  # (N, M, 1)
        between = torch.where(on_left, filled.left_known[:, None], filled.right_known[:, None])  # (N, M, J)
        ratio = torch.where(between, self.residual_ratio[0], self.residual_ratio[1])  # (N, M, J)
        seen = windows.key_visibility.to(spline.dtype)  # (N, 3, J)
        other = torch.where(on_left, seen[:, :1], seen[:, 2:])  # (N, M, J)
        # Beyond the first or the last key of a clip the visibility of that key is all there is to go by.
        other = torch.where(windows.between[..., None], other, seen[:, 1:2])
        return Base(
            spline=spline,
            course=torch.where(windows.between[..., None, None], course, spline),
            keys=filled.joints,
            motion=motion,
            unit=((motion if spread is None else motion * spread)[:, None] * ratio)[..., None],
            profile=torch.where(between, profile[..., None], 1.0)[..., None],
            visibility=torch.lerp(seen[:, 1:2], other, windows.phase[..., None]),
            between=between,
            anchored=filled.anchored,
        )

    @torch.no_grad()
    def fit_scale(self, windows: Windows, joints: Tensor, visibility: Tensor) -> None:
        """Set the unit of the residual from training windows: dense `joints` (N, M, J, 2), `visibility` (N, M, J)."""
        self.residual_ratio.fill_(1.0)
        base = self.base(windows)
        counted = visibility & windows.frame_mask[..., None] & base.anchored[:, None]
        square = base.encode(joints).square().mean(-1)  # (N, M, J)
        for row, where in enumerate((base.between, ~base.between)):
            chosen = counted & where
            count, total = chosen.sum((0, 1)), (square * chosen).sum((0, 1))  # (J,)
            if count.sum() > 0:
                mean = torch.where(count >= 100, total / count.clamp_min(1), total.sum() / count.sum())
                self.residual_ratio[row] = mean.sqrt().clamp_min(1e-3)

    def condition(
        self, windows: Windows, base: Base, text: Tensor, keep_keys: Tensor, keep_text: Tensor
    ) -> Conditions:
        """Prepare what the denoiser is told.

        It sees the three keys of its window alone and not the outline, which knows one key more on each side: so an
        edited key reaches no further than two keys.

        Args:
            text: (N, E) pooled embedding of each window's caption.
            keep_keys, keep_text: (N,) bool; False drops the condition to zeros (classifier-free guidance).
        """
        text = text * keep_text[:, None]
        kept = keep_keys[:, None, None]  # (N, 1, 1)
        keys, key_mask = self._key_tokens(windows, base, keep_keys)
        return Conditions(
            course=(base.spline - base.keys[:, 1:2]) * kept[..., None],
            keys=keys,
            key_mask=key_mask,
            visibility=base.visibility * kept,
            text=self.text_in(torch.cat([text, ERROR_UNIT * windows.key_error[:, None].to(text.dtype)], dim=1)),
            keep_keys=keep_keys,
        )

    def forward(self, noisy: Tensor, timesteps: Tensor, windows: Windows, conditions: Conditions) -> Prediction:
        """Predict the clean residual and the visibility.

        Preconditioned as in Karras et al. (2022): with a last layer of zeros this is the best denoiser of a normal
        distribution around the outline with the spread it gives; the layers learn what is left, the v-prediction of
        Salimans and Ho (2022) but for its sign.

        Args:
            noisy: (N, M, J, 2) noisy scaled residual.
            timesteps: (N,) diffusion steps, 0..999.
        """
        gains = preconditioning(timesteps)
        features = torch.cat(
            [
                noisy.flatten(2),
                conditions.course.flatten(2),
                conditions.visibility,
                torch.where(windows.times < 0, -windows.phase, windows.phase)[..., None],
                windows.between[..., None].to(noisy.dtype),
                windows.gap[..., None].log(),
            ],
            dim=-1,
        )  # (N, M, C)
        x = self.frame_in(self._to_tokens(features))  # (N, L, W)
        x = x + sinusoids(windows.times[:, :: self.frames_per_token] * self.fps, self.width, 256.0, 4.0)
        mask = windows.frame_mask[:, :: self.frames_per_token]
        condition = self.step_in(sinusoids(timesteps.to(x.dtype), self.width, 10000.0, 10.0))
        condition = F.silu(condition + conditions.text)  # (N, W)
        for block in self.blocks:
            x = block(x, mask, conditions.keys, conditions.key_mask, condition)
        x = self.norm(x)
        length = noisy.shape[1]
        correction = self._to_frames(self.residual_out(x), length).unflatten(-1, (NUM_JOINTS, 2))  # (N, M, J, 2)
        # The keys' own visibility is right almost everywhere: the network says where it is not.
        known = 4 * (2 * conditions.visibility - 1) * conditions.keep_keys[:, None, None]
        return Prediction(
            residual=gains.skip * noisy + gains.outward * correction,
            visibility=self._to_frames(self.visibility_out(x), length) + known,
        )

    def _to_tokens(self, features: Tensor) -> Tensor:
        """(N, M, C) -> (N, L, F * C): runs of F frames, the last one padded with zeros."""
        padding = -features.shape[1] % self.frames_per_token
        return F.pad(features, (0, 0, 0, padding)).unflatten(1, (-1, self.frames_per_token)).flatten(2)

    def _to_frames(self, tokens: Tensor, length: int) -> Tensor:
        """(N, L, F * C) -> (N, M, C)."""
        return tokens.unflatten(-1, (self.frames_per_token, -1)).flatten(1, 2)[:, :length]

    def _key_tokens(self, windows: Windows, base: Base, keep_keys: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N, 4, W) of the three keys and of "no key", and which of them may be seen (N, 4)."""
        visible = windows.key_visibility  # (N, 3, J)
        keys = torch.where(visible[..., None], windows.keys, torch.zeros_like(windows.keys))
        moved = torch.where(visible[..., None], keys - base.keys[:, 1:2], torch.zeros_like(keys))
        tokens = self.key_in(torch.cat([keys.flatten(2), moved.flatten(2), visible.to(keys.dtype)], dim=-1))
        tokens = tokens + sinusoids(windows.key_times * self.fps, self.width, 256.0, 4.0)
        null = self.null_key.expand(len(tokens), 1, -1)
        mask = windows.key_mask & keep_keys[:, None]
        return torch.cat([tokens, null], dim=1), F.pad(mask, (0, 1), value=True)


def from_export(directory: Path) -> InterpNetwork:
    """The network of an export.

    Raises:
        UserError: not an export of this stage, or frozen text weights that cannot be found.
    """
    info = read_export(directory, "interp")
    network = InterpNetwork.from_config(network_config(info.config["network"]))
    network.load_state_dict(info.load_state())
    network.text.load_pretrained()
    return network


def network_config(values: dict[str, Any]) -> NetworkConfig:
    """A `NetworkConfig` from its plain dict."""
    return NetworkConfig(**{**values, "text": TextConfig(**values["text"])})
