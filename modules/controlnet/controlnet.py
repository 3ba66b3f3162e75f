"""The pose ControlNet: a trainable copy of the UNet's first half that reads drawn poses and corrects the frozen UNet.

Letters: B batch, F frames, C channels, L tokens, D width of the text states.
Source: ControlNet (arXiv 2302.05543), on a video UNet.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

from torch import Tensor, nn

from modules.controlnet.config import ControlNetworkConfig
from modules.controlnet.unet import (
    ControlResiduals,
    EncoderForward,
    NoTemporalAttention,
    VideoUNet,
    drop_temporal_attention,
    drop_temporal_convs,
)


def zero_conv(channels: int, out_channels: int | None = None) -> nn.Conv2d:
    """1 x 1 convolution that starts at zero: it changes nothing until it has learned something."""
    conv = nn.Conv2d(channels, out_channels or channels, 1)
    nn.init.zeros_(conv.weight)
    nn.init.zeros_(conv.bias)  # pyright: ignore[reportArgumentType]
    return conv


class HintEncoder(nn.Module):
    """Drawn poses at pixel size to features at the size of the latents.

    Convolutions at the resolution of the pixels, then one halving for each further entry of `channels`, and a zero
    convolution to the width of the UNet.
    """

    def __init__(self, *, channels: Sequence[int], layers: int, out_channels: int) -> None:
        super().__init__()
        parts: list[nn.Module] = [nn.Conv2d(3, channels[0], 3, padding=1), nn.SiLU()]
        for index, width in enumerate(channels):
            if index:
                parts += [nn.Conv2d(channels[index - 1], width, 3, stride=2, padding=1), nn.SiLU()]
            for _ in range(layers):
                parts += [nn.Conv2d(width, width, 3, padding=1), nn.SiLU()]
        self.body = nn.Sequential(*parts)
        self.out = zero_conv(channels[-1], out_channels)

    def forward(self, hint: Tensor) -> Tensor:
        """(N, 3, H, W) in [0, 1] to (N, C, h, w)."""
        return self.out(self.body(hint))


class PoseControlNet(EncoderForward, nn.Module):
    """Copy of a `VideoUNet`'s embeddings, init attention, encoder and middle; zero convolutions on all outputs.

    At the start every output is exactly zero. Gradients reach the zero convolutions in the first step, the copy in the
    second, the hint encoder's body in the third.
    """

    def __init__(self, unet: VideoUNet, config: ControlNetworkConfig) -> None:
        """Copies the weights of `unet` (see `from_unet`)."""
        super().__init__()
        self.config = config
        for name in (
            "conv_in", "time_proj", "time_embedding", "fps_embedding", "transformer_in", "down_blocks", "mid_block"
        ):  # fmt: skip
            setattr(self, name, copy.deepcopy(getattr(unet, name)))
        self.default_fps = unet.default_fps
        if not config.temporal:
            self._drop_temporal_layers()
        self.hint_encoder = HintEncoder(
            channels=config.hint_channels, layers=config.hint_layers, out_channels=unet.config["block_out_channels"][0]
        )
        self.down_zero_convs = nn.ModuleList(zero_conv(channels) for channels in skip_channels(unet))
        self.mid_zero_conv = zero_conv(unet.config["block_out_channels"][-1])
        self.requires_grad_(True)

    @classmethod
    def from_unet(cls, unet: VideoUNet, config: ControlNetworkConfig) -> PoseControlNet:
        """A ControlNet that starts as a copy of `unet`."""
        return cls(unet, config)

    def _drop_temporal_layers(self) -> None:
        self.transformer_in = NoTemporalAttention()
        blocks = [*self.down_blocks, self.mid_block]
        drop_temporal_convs(blocks)
        drop_temporal_attention(blocks)

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | int,
        encoder_hidden_states: Tensor,
        *,
        hint: Tensor,
        fps: Tensor | float | None = None,
        scale: float = 1.0,
    ) -> ControlResiduals:
        """Corrections for the UNet at the same noisy latents.

        Args:
            sample: (B, C, F, h, w) noisy latents.
            timestep: () or (B,).
            encoder_hidden_states: (B, L, D) text states.
            hint: (B, F, 3, H, W) drawn poses in [0, 1], H = 2^halvings * h.
            fps: () or (B,) frames per second.
            scale: how strongly the poses count; 0 is the frozen UNet.
        """
        frames = sample.shape[2]
        features = self.hint_encoder(hint.flatten(0, 1))  # (B * F, C0, h, w)
        if features.shape[-2:] != sample.shape[-2:]:
            halvings = len(self.config.hint_channels) - 1
            raise ValueError(
                f"the hint of {tuple(hint.shape[-2:])} px becomes {tuple(features.shape[-2:])}, the latents are "
                f"{tuple(sample.shape[-2:])}: hint_channels makes {halvings} halvings, the autoencoder has others"
            )
        text = encoder_hidden_states.repeat_interleave(frames, dim=0)  # (B * F, L, D)
        emb = self.embed_condition(timestep, self.default_fps if fps is None else fps, sample)
        x, skips = self.encode(self.embed_frames(sample, extra=features), emb, text, frames)
        x = self.middle(x, emb, text, frames)
        down = [conv(skip) * scale for conv, skip in zip(self.down_zero_convs, skips, strict=True)]
        return ControlResiduals(down=down, mid=self.mid_zero_conv(x) * scale)


def skip_channels(unet: VideoUNet) -> list[int]:
    """Channels of the UNet's skip connections, the input's features first."""
    channels = [unet.config["block_out_channels"][0]]
    for width, block in zip(unet.config["block_out_channels"], unet.down_blocks, strict=True):
        halves = block.downsamplers is not None
        channels += [width] * (len(block.resnets) + halves)  # pyright: ignore[reportArgumentType]
    return channels


def control_parameters(control: PoseControlNet) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Parameters in two groups: "fresh" (hint encoder and zero convolutions) and "copied" (from the UNet)."""
    fresh = ("hint_encoder.", "down_zero_convs.", "mid_zero_conv.")
    groups: dict[str, list[tuple[str, nn.Parameter]]] = {"fresh": [], "copied": []}
    for name, parameter in control.named_parameters():
        groups["fresh" if name.startswith(fresh) else "copied"].append((name, parameter))
    return groups
