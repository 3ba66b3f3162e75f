"""Encoders and decoders of the pose tokenizer: sequences of vectors over the key poses to sequences of vectors.

Letters: B batch, K key poses, C channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

# The causal stack is audio2photoreal's, as its paper and config describe it (Ng et al., 2024): this many keys back.
CAUSAL_DILATIONS = (1, 2, 3, 1)


class ResidualBlock(nn.Module):
    """x + mix(gelu(conv(norm(x)))): a dilated convolution over the keys, then a mix of the channels.

    Args:
        linear: without norm and gelu, so that the block is a linear map.
    """

    def __init__(self, *, width: int, kernel_size: int, dilation: int, linear: bool = False) -> None:
        super().__init__()
        self.linear = linear
        self.norm = nn.Identity() if linear else nn.LayerNorm(width)
        padding = dilation * (kernel_size // 2)
        self.conv = nn.Conv1d(width, width, kernel_size, padding=padding, dilation=dilation)
        self.mix = nn.Linear(width, width)
        # The block starts as the identity.
        nn.init.zeros_(self.mix.weight)
        nn.init.zeros_(self.mix.bias)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, K, C), mask (B, K, 1) of 0 and 1 -> (B, K, C)."""
        hidden = self.conv((self.norm(x) * mask).transpose(1, 2)).transpose(1, 2)  # (B, K, C)
        return x + self.mix(hidden if self.linear else F.gelu(hidden))


class TemporalStack(nn.Module):
    """Linear in, residual blocks over time, linear out.

    The convolutions look both ways in time; padding is zeroed before each of them.
    """

    def __init__(
        self, *, in_features: int, out_features: int, width: int, dilations: list[int], kernel_size: int,
        linear: bool = False,
    ) -> None:  # fmt: skip
        super().__init__()
        self.stem = nn.Linear(in_features, width)
        self.blocks = nn.ModuleList(
            ResidualBlock(width=width, kernel_size=kernel_size, dilation=dilation, linear=linear)
            for dilation in dilations
        )
        self.norm = nn.Identity() if linear else nn.LayerNorm(width)
        self.head = nn.Linear(width, out_features)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, K, in), mask (B, K, 1) -> (B, K, out)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, mask)
        return self.head(self.norm(x))


class CausalStack(nn.Module):
    """A 1 x 1 convolution, then convolutions of two taps that look back alone, with leaky ReLUs between.

    The reference of `configs/vqvae/reference.yaml`; reversed, with the 1 x 1 convolution last, it is the decoder.
    """

    def __init__(self, *, in_features: int, out_features: int, width: int, reverse: bool) -> None:
        super().__init__()
        self.reverse = reverse
        dilations = CAUSAL_DILATIONS[::-1] if reverse else CAUSAL_DILATIONS
        inner = (in_features if reverse else width, out_features if not reverse else width)
        widths = [inner[0], *[width] * (len(dilations) - 1), inner[1]]
        self.blocks = nn.ModuleList(
            nn.Conv1d(a, b, 2, dilation=dilation)
            for a, b, dilation in zip(widths[:-1], widths[1:], dilations, strict=True)
        )
        self.stem = nn.Linear(width if reverse else in_features, out_features if reverse else width)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        """(B, K, in), mask (B, K, 1) -> (B, K, out)."""
        if not self.reverse:
            x = F.leaky_relu(self.stem(x), 0.2)
        for number, conv in enumerate(self.blocks):
            assert isinstance(conv, nn.Conv1d)
            hidden = F.pad((x * mask).transpose(1, 2), (conv.dilation[0], 0))
            x = conv(hidden).transpose(1, 2)
            if self.reverse or number < len(self.blocks) - 1:
                x = F.leaky_relu(x, 0.2)
        return self.stem(x) if self.reverse else x


def make_stack(
    architecture: str, *, in_features: int, out_features: int, width: int, dilations: list[int], kernel_size: int,
    decoder: bool,
) -> nn.Module:  # fmt: skip
    """Encoder or decoder of an architecture; see `NetworkConfig`."""
    sizes = {"in_features": in_features, "out_features": out_features, "width": width}
    if architecture == "causal":
        return CausalStack(**sizes, reverse=decoder)
    dilations = dilations[::-1] if decoder else dilations
    return TemporalStack(**sizes, dilations=dilations, kernel_size=kernel_size, linear=architecture == "linear")


def dtype_of(stack: nn.Module) -> torch.dtype:
    """The precision in which a stack computes."""
    return next(stack.parameters()).dtype
