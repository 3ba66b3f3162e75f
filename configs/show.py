"""What `train.py --show` prints: the resolved configuration, the size of the network and a memory estimate."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import nn

from configs.loader import to_plain
from configs.run import to_yaml
from configs.schema import RunConfig, TrainerConfig, stage_module
from modules.errors import UserError
from modules.zero import BUCKET

GIB = 2**30


def show(cfg: RunConfig) -> str:
    """The report, as text. The network is built on the meta device: no memory, no weights."""
    lines = [to_yaml(cfg)]
    try:
        trainable, frozen = count_parameters(build_on_meta(cfg))
    except UserError as error:
        return "\n".join([*lines, f"# parameters: not known yet: {error}"])
    lines.append(f"# parameters: {trainable:,} trainable, {frozen:,} frozen")
    lines.append(f"# memory of each device: {memory_line(trainable, frozen, cfg.trainer)}")
    if cfg.trainer.strategy.startswith("deepspeed"):
        for world in (1, 8, 16):
            other = dataclasses.replace(cfg.trainer, devices=world, num_nodes=1)
            lines.append(f"#   of {world:2d} devices: {memory_line(trainable, frozen, other)}")
    lines.append("# and activations, which grow with data.batch_size (halve it and double trainer.accumulate to save)")
    return "\n".join(lines)


def memory_line(trainable: int, frozen: int, trainer: TrainerConfig) -> str:
    """The sum of `estimate_memory`, and its parts."""
    memory = estimate_memory(trainable, frozen, trainer)
    unit, name = (GIB, "GiB") if sum(memory.values()) >= GIB else (GIB / 1024, "MiB")
    parts = " + ".join(f"{part} {size / unit:.1f}" for part, size in memory.items() if size)
    return f"{sum(memory.values()) / unit:.1f} {name} = {parts}"


def build_on_meta(cfg: RunConfig) -> nn.Module:
    """The stage's module, without memory for its weights."""
    with torch.device("meta"):
        return stage_module(cfg.stage)(to_plain(cfg.model), max_steps=cfg.trainer.max_steps)


def count_parameters(module: nn.Module) -> tuple[int, int]:
    """Trainable and frozen parameters."""
    trainable = sum(param.numel() for param in module.parameters() if param.requires_grad)
    return trainable, sum(param.numel() for param in module.parameters()) - trainable


def estimate_memory(trainable: int, frozen: int, trainer: TrainerConfig) -> dict[str, float]:
    """Bytes on each device for weights, gradients and AdamW's state (two moments; without activations).

    DeepSpeed with 16-bit precision keeps a float32 copy of the weights beside the moments; ZeRO stages 1, 2 and 3 share
    out the optimiser state, then the gradients, then the weights over all devices. Its buffers hold gradients that are
    being reduced, float32 gradients of the weights that are being updated, and (stage 3) weights that are gathered.
    """
    world = trainer.devices * trainer.num_nodes
    half = trainer.precision in ("16-true", "bf16-true")
    zero = int(trainer.strategy[-1]) if trainer.strategy.startswith("deepspeed_stage_") else 0
    width: float = 2 if half or zero and "16" in trainer.precision else 4
    moments: float = 12 if zero and width == 2 else 2 * width
    bucket = min(BUCKET, trainable)
    parts: dict[str, Any] = {
        "weights": (trainable + frozen) * width / (world if zero == 3 else 1),
        "gradients": trainable * width / (world if zero >= 2 else 1),
        "optimiser state": trainable * moments / (world if zero >= 1 else 1),
        "buffers": (bucket * (3 if zero == 3 else 1) * width + 4 * min(bucket, trainable / world)) if zero else 0,
        "averaged weights": trainable * 4 if trainer.ema_decay else 0,
    }
    if trainer.offload:
        parts["optimiser state"] = 0
        parts["weights"] = 0 if zero == 3 else parts["weights"]
    return parts
