"""Names and shapes of the weights of VideoCrafter2's networks, written down from the order of their layers.

Independent of `modules/base/reference.py`: it starts from the reference's side, that one from ours.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Shapes = dict[str, tuple[int, ...]]


def affine(name: str, *weight: int) -> Shapes:
    return {f"{name}.weight": weight, f"{name}.bias": weight[:1]}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def resnet(name: str, width: int, out: int, emb: int, temporal: bool) -> Shapes:
    found = norm(f"{name}.in_layers.0", width) | affine(f"{name}.in_layers.2", out, width, 3, 3)
    found |= affine(f"{name}.emb_layers.1", out, emb)
    found |= norm(f"{name}.out_layers.0", out) | affine(f"{name}.out_layers.3", out, out, 3, 3)
    found |= affine(f"{name}.skip_connection", out, width, 1, 1) if width != out else {}
    for number in range(1, 5) if temporal else ():
        part = f"{name}.temopral_conv.conv{number}"
        found |= norm(f"{part}.0", out) | affine(f"{part}.{2 if number == 1 else 3}", out, out, 3, 1, 1)
    return found


def transformer(name: str, width: int, inner: int, context: int, depth: int, kernel: tuple[int, ...]) -> Shapes:
    found = norm(f"{name}.norm", width)
    found |= affine(f"{name}.proj_in", inner, width, *kernel) | affine(f"{name}.proj_out", width, inner, *kernel)
    for index in range(depth):
        block = f"{name}.transformer_blocks.{index}"
        for attention, source in (("attn1", inner), ("attn2", context)):
            for part, size in (("to_q", inner), ("to_k", source), ("to_v", source)):
                found[f"{block}.{attention}.{part}.weight"] = (inner, size)
            found |= affine(f"{block}.{attention}.to_out.0", inner, inner)
        found |= affine(f"{block}.ff.net.0.proj", inner * 8, inner) | affine(f"{block}.ff.net.2", inner, inner * 4)
        for number in (1, 2, 3):
            found |= norm(f"{block}.norm{number}", inner)
    return found


def unet_shapes(params: dict[str, Any]) -> Shapes:
    """Every weight of the reference's UNet for `unet_config.params`."""
    width, context, depth = params["model_channels"], params["context_dim"], params.get("transformer_depth", 1)
    emb, linear, temporal_conv = width * 4, params.get("use_linear", False), params.get("temporal_conv", False)
    temporal, layers = params.get("temporal_attention", True), params["num_res_blocks"]
    found = affine("time_embed.0", emb, width) | affine("time_embed.2", emb, emb)
    if params.get("fps_cond"):
        found |= affine("fps_embedding.0", emb, width) | affine("fps_embedding.2", emb, emb)
    found |= affine("input_blocks.0.0", width, params["in_channels"], 3, 3)
    if params.get("addition_attention"):
        inner = 8 * params["num_head_channels"]
        found |= transformer("init_attn.0", width, inner, inner, depth, (1,))

    def stack(name: str, channels: int, attention: bool) -> Shapes:
        found = transformer(f"{name}.1", channels, channels, context, depth, () if linear else (1, 1))
        if temporal:
            found |= transformer(f"{name}.2", channels, channels, channels, 1, () if linear else (1,))
        return found if attention else {}

    skips, channels, factor, number = [width], width, 1, 1
    multiples = params["channel_mult"]
    for level, multiple in enumerate(multiples):
        for _ in range(layers):
            found |= resnet(f"input_blocks.{number}.0", channels, multiple * width, emb, temporal_conv)
            channels = multiple * width
            found |= stack(f"input_blocks.{number}", channels, factor in params["attention_resolutions"])
            skips.append(channels)
            number += 1
        if level + 1 < len(multiples):
            found |= affine(f"input_blocks.{number}.0.op", channels, channels, 3, 3)
            skips.append(channels)
            number, factor = number + 1, factor * 2
    found |= resnet("middle_block.0", channels, channels, emb, temporal_conv)
    found |= stack("middle_block", channels, True)
    found |= resnet(f"middle_block.{2 + temporal}", channels, channels, emb, temporal_conv)
    number = 0
    for level, multiple in reversed(list(enumerate(multiples))):
        for index in range(layers + 1):
            name, attention = f"output_blocks.{number}", factor in params["attention_resolutions"]
            found |= resnet(f"{name}.0", channels + skips.pop(), multiple * width, emb, temporal_conv)
            channels = multiple * width
            found |= stack(name, channels, attention)
            if level and index == layers:
                found |= affine(f"{name}.{1 + attention * (1 + temporal)}.conv", channels, channels, 3, 3)
                factor //= 2
            number += 1
    return found | norm("out.0", channels) | affine("out.2", params["out_channels"], width, 3, 3)


def random_state(shapes: Shapes, prefix: str = "", device: str = "cpu") -> dict[str, Tensor]:
    return {f"{prefix}{name}": torch.randn(shape, device=device) * 0.05 for name, shape in shapes.items()}
