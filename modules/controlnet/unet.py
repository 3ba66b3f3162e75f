"""VideoCrafter2's text-to-video UNet on the blocks of diffusers.

`VideoUNet` is diffusers' `UNet3DConditionModel` (the same modules in the same order: resnet, temporal convolution,
spatial transformer, temporal transformer) with the one thing that VideoCrafter2 adds: a second embedding MLP, of the
frames per second, summed with that of the timestep. The forward pass is cut into named parts, because the ControlNet
runs the first ones on its own copy of the weights.

Letters: B batch, F frames, C channels, L tokens, D width of the text states.
Source: VideoCrafter2 (arXiv 2401.09047), built on the blocks of ModelScopeT2V (arXiv 2308.06571).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.configuration_utils import register_to_config
from diffusers.models.attention_processor import Attention
from diffusers.models.embeddings import TimestepEmbedding
from diffusers.models.resnet import TemporalConvLayer
from diffusers.models.unets.unet_3d_condition import UNet3DConditionModel
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


@dataclass
class ControlResiduals:
    """What a ControlNet adds to the UNet: one map for each skip connection and one for the middle block."""

    down: list[Tensor]  # each (B * F, C, H, W), in the order of the encoder's skips
    mid: Tensor  # (B * F, C, H, W)


class EncoderForward:
    """The first half of the UNet's forward pass, shared by `VideoUNet` and `PoseControlNet`.

    The class that mixes this in has the attributes `conv_in`, `time_proj`, `time_embedding`, `fps_embedding`,
    `transformer_in`, `down_blocks` and `mid_block`.
    """

    conv_in: nn.Module
    time_proj: nn.Module
    time_embedding: nn.Module
    fps_embedding: nn.Module | None
    transformer_in: nn.Module
    down_blocks: nn.ModuleList
    mid_block: nn.Module
    training: bool
    checkpoint_blocks: bool = False

    def run_block(self, block: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Call one block; with `checkpoint_blocks`, keep its input only and compute it again for the gradient."""
        # Also in eval mode: gradients pass through the decoder of a frozen base, which never trains.
        if self.checkpoint_blocks and torch.is_grad_enabled():
            return checkpoint(block, *args, use_reentrant=False, **kwargs)
        return block(*args, **kwargs)

    def embed_condition(self, timestep: Tensor | int, fps: Tensor | float, like: Tensor) -> Tensor:
        """Embedding of timestep and frame rate for each frame, (B * F, 4 * C), for `like` (B, C, F, H, W)."""
        batch, frames = like.shape[0], like.shape[2]
        dtype = next(self.time_embedding.parameters()).dtype
        total = torch.zeros((), device=like.device, dtype=dtype)
        for value, mlp in ((timestep, self.time_embedding), (fps, self.fps_embedding)):
            if mlp is not None:
                values = torch.as_tensor(value, device=like.device).expand(batch)
                total = total + mlp(self.time_proj(values).to(dtype))
        return total.repeat_interleave(frames, dim=0)  # (B * F, 4 * C)

    def embed_frames(self, sample: Tensor, extra: Tensor | None = None) -> Tensor:
        """Latents (B, C, F, H, W) to features (B * F, C0, H, W); `extra` is added after the first convolution."""
        frames = sample.shape[2]
        x = sample.transpose(1, 2).flatten(0, 1)  # (B * F, C, H, W)
        x = self.conv_in(x)
        if extra is not None:
            x = x + extra
        return self.run_block(self.transformer_in, x, num_frames=frames, return_dict=False)[0]

    def encode(self, x: Tensor, emb: Tensor, text: Tensor, frames: int) -> tuple[Tensor, list[Tensor]]:
        """Down blocks. `text` is (B * F, L, D). Returns the features and all skips, the input's features first."""
        skips = [x]
        for block in self.down_blocks:
            cross = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            x, block_skips = self.run_block(block, x, temb=emb, num_frames=frames, **cross)
            skips.extend(block_skips)
        return x, skips

    def middle(self, x: Tensor, emb: Tensor, text: Tensor, frames: int) -> Tensor:
        return self.run_block(self.mid_block, x, emb, encoder_hidden_states=text, num_frames=frames)


class PlainAttention:
    """Attention as two matrix products, a processor for diffusers' `Attention`.

    For the short sequences of small models on a CPU (8 frames, 64 places) it is faster than the fused kernels.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """(N, L, C) queries, (N, M, C') keys (default: the queries) to (N, L, C)."""
        context = hidden_states if encoder_hidden_states is None else encoder_hidden_states
        query, key, value = (
            x.unflatten(-1, (attn.heads, -1)).transpose(1, 2)  # (N, heads, L or M, C / heads)
            for x in (attn.to_q(hidden_states), attn.to_k(context), attn.to_v(context))
        )
        scores = torch.matmul(query * attn.scale, key.transpose(-1, -2))  # (N, heads, L, M)
        if attention_mask is not None:
            scores = scores + attention_mask.unflatten(0, (len(query), -1))
        mixed = torch.matmul(scores.softmax(-1).to(value.dtype), value)
        result = mixed.transpose(1, 2).flatten(2)  # (N, L, C)
        return attn.to_out[1](attn.to_out[0](result))


class TimeConv(nn.Conv3d):
    """The (3, 1, 1) convolution over frames, computed as a 2D one of (3, 1) on frames x places: the same values.

    On a CPU, oneDNN's bf16 weight gradient of the 3D form is not a number for two frames, and it is no faster.
    """

    def forward(self, input: Tensor) -> Tensor:
        flat = nn.functional.conv2d(input.flatten(3), self.weight.squeeze(-1), self.bias, padding=(1, 0))
        return flat.unflatten(3, input.shape[3:])  # (B, C, F, H * W) to (B, C, F, H, W)


class NoTemporalConv(nn.Module):
    """Stands where there is no temporal convolution."""

    def forward(self, hidden_states: Tensor, num_frames: int = 1) -> Tensor:
        return hidden_states


class NoTemporalAttention(nn.Module):
    """Stands where there is no temporal transformer."""

    def forward(self, hidden_states: Tensor, **_: Any) -> tuple[Tensor]:
        return (hidden_states,)


def drop_temporal_convs(blocks: Iterable[nn.Module]) -> None:
    """Take the temporal convolutions out of some blocks."""
    for block in blocks:
        block.temp_convs = nn.ModuleList(NoTemporalConv() for _ in range(len(block.temp_convs)))  # pyright: ignore[reportArgumentType]


def drop_temporal_attention(blocks: Iterable[nn.Module]) -> None:
    """Take the temporal transformers out of some blocks."""
    for block in blocks:
        attentions = getattr(block, "temp_attentions", [])
        if len(attentions):
            block.temp_attentions = nn.ModuleList(NoTemporalAttention() for _ in range(len(attentions)))


def _adapt_temporal_conv(layer: TemporalConvLayer, dropout: float) -> None:
    for name, child in list(layer.named_modules()):
        if isinstance(child, nn.Dropout):
            child.p = dropout
        elif isinstance(child, nn.Conv3d):
            conv = TimeConv(child.in_channels, child.out_channels, (3, 1, 1), padding=(1, 0, 0))
            conv.weight, conv.bias = child.weight, child.bias
            parent, _, index = name.rpartition(".")
            layer.get_submodule(parent)[int(index)] = conv  # pyright: ignore[reportIndexIssue]


def _remade(transformer: Any, **changes: Any) -> nn.Module:
    """A new transformer with some arguments changed. (Its `from_config` forgets arguments that were positional.)"""
    arguments = {name: value for name, value in transformer.config.items() if not name.startswith("_")}
    return type(transformer)(**{**arguments, **changes})


class VideoUNet(EncoderForward, UNet3DConditionModel):
    """Noise (or velocity) prediction for latent video, conditioned on text and on the frame rate.

    Width and height may have any size: each up block is told the size of the skip that it meets.
    """

    _supports_gradient_checkpointing = False  # diffusers' own switch; this project's is `checkpoint_blocks`
    ignore_for_config = (  # arguments of the parent that always have their defaults
        "act_fn", "downsample_padding", "mid_block_scale_factor", "norm_eps", "sample_size", "time_cond_proj_dim",
    )  # fmt: skip

    @register_to_config
    def __init__(
        self,
        *,
        in_channels: int = 4,
        out_channels: int = 4,
        down_block_types: Sequence[str] = (*["CrossAttnDownBlock3D"] * 3, "DownBlock3D"),
        up_block_types: Sequence[str] = ("UpBlock3D", *["CrossAttnUpBlock3D"] * 3),
        block_out_channels: Sequence[int] = (320, 640, 1280, 1280),
        layers_per_block: int = 2,
        norm_num_groups: int = 32,
        cross_attention_dim: int = 1024,
        attention_head_dim: int = 64,
        num_attention_heads: int | None = None,
        transformer_layers: int = 1,
        linear_projection: bool = True,
        init_attention: bool = True,
        temporal_convs: bool = True,
        temporal_attention: bool = True,
        fps_condition: bool = True,
        default_fps: float = 16,
        temporal_dropout: float = 0.1,
    ) -> None:
        """The defaults are VideoCrafter2's.

        Args:
            num_attention_heads: the same number on every level, instead of heads of `attention_head_dim` channels.
            transformer_layers: blocks of each spatial transformer and of the init attention.
            linear_projection: False: the spatial transformers project with 1 x 1 convolutions.
            init_attention: a temporal transformer after the first convolution.
        """
        super().__init__(
            in_channels=in_channels,
            out_channels=out_channels,
            down_block_types=tuple(down_block_types),
            up_block_types=tuple(up_block_types),
            block_out_channels=tuple(block_out_channels),
            layers_per_block=layers_per_block,
            norm_num_groups=norm_num_groups,
            cross_attention_dim=cross_attention_dim,
            attention_head_dim=attention_head_dim,
        )
        width = block_out_channels[0]
        self.fps_embedding = TimestepEmbedding(width, width * 4, act_fn="silu") if fps_condition else None
        self.default_fps = default_fps
        self._adapt_transformers(transformer_layers, linear_projection, num_attention_heads)
        if not init_attention:
            self.transformer_in = NoTemporalAttention()
        if not temporal_convs:
            drop_temporal_convs(self.blocks)
        if not temporal_attention:
            drop_temporal_attention(self.blocks)
        for module in self.modules():
            if isinstance(module, TemporalConvLayer):
                _adapt_temporal_conv(module, temporal_dropout)

    @property
    def blocks(self) -> list[nn.Module]:
        """Blocks of the encoder, the middle and the decoder."""
        return [*self.down_blocks, self.mid_block, *self.up_blocks]

    def _adapt_transformers(self, layers: int, linear: bool, heads: int | None) -> None:
        """What diffusers' blocks do not take as arguments."""
        if layers != 1 or not linear:
            for block in self.blocks:
                for index, old in enumerate(getattr(block, "attentions", [])):
                    block.attentions[index] = _remade(old, num_layers=layers, use_linear_projection=linear)  # pyright: ignore
            self.transformer_in = _remade(self.transformer_in, num_layers=layers)
        if heads is not None:
            for module in self.modules():
                if isinstance(module, Attention):
                    module.heads = module.sliceable_head_dim = heads
                    module.scale = (module.inner_dim // heads) ** -0.5

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        sample: Tensor,
        timestep: Tensor | int,
        encoder_hidden_states: Tensor,
        fps: Tensor | float | None = None,
        control: ControlResiduals | None = None,
        extra: Tensor | None = None,
    ) -> Tensor:
        """Predict from noisy latents.

        Args:
            sample: (B, C, F, H, W) noisy latents.
            timestep: () or (B,), 0 .. steps - 1.
            encoder_hidden_states: (B, L, D) text states.
            fps: () or (B,) frames per second; None is the network's default.
            control: residuals of a ControlNet, already scaled.
            extra: (B * F, C0, H, W) features that are added after the first convolution.

        Returns:
            (B, C, F, H, W).
        """
        frames = sample.shape[2]
        text = encoder_hidden_states.repeat_interleave(frames, dim=0)  # (B * F, L, D)
        emb = self.embed_condition(timestep, self.default_fps if fps is None else fps, sample)
        x, skips = self.encode(self.embed_frames(sample, extra), emb, text, frames)
        if control is not None:
            if len(control.down) != len(skips):
                raise ValueError(
                    f"control has {len(control.down)} residuals, this UNet has {len(skips)} skip connections: "
                    "build the ControlNet from this UNet with `from_unet`"
                )
            skips = [skip + residual for skip, residual in zip(skips, control.down, strict=True)]
        x = self.middle(x, emb, text, frames)
        if control is not None:
            x = x + control.mid
        x = self.decode(x, skips, emb, text, frames)
        return x.unflatten(0, (-1, frames)).transpose(1, 2)  # (B, C, F, H, W)

    def decode(self, x: Tensor, skips: list[Tensor], emb: Tensor, text: Tensor, frames: int) -> Tensor:
        """Up blocks and the output convolution, (B * F, C, H, W)."""
        rest = list(skips)
        for block in self.up_blocks:
            count = len(block.resnets)  # pyright: ignore[reportArgumentType]
            taken, rest = rest[-count:], rest[:-count]
            size = tuple(rest[-1].shape[-2:]) if rest else None  # the next skip's height and width
            cross = {"encoder_hidden_states": text} if getattr(block, "has_cross_attention", False) else {}
            x = self.run_block(
                block,
                x,
                temb=emb,
                res_hidden_states_tuple=tuple(taken),
                upsample_size=size,
                num_frames=frames,
                **cross,
            )
        x = self.conv_act(self.conv_norm_out(x))  # pyright: ignore[reportOptionalCall]
        return self.conv_out(x)
