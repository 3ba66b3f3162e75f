"""Optimiser and learning-rate schedule, the same for every stage."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from modules.errors import UserError
from modules.muon import Muon
from modules.sharding import full_shape


@dataclass
class OptimConfig:
    """AdamW with a linear warm-up; with `muon_lr` above 0, Muon for the matrices that the stage names.

    `min_lr_ratio` is the learning rate at the last step as a share of `lr` (only `schedule="cosine"` reaches it).
    """

    lr: float = 1e-3
    muon_lr: float = 0.0  # 0: AdamW for everything
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)
    warmup_steps: int = 100
    schedule: Literal["cosine", "constant"] = "cosine"
    min_lr_ratio: float = 0.05

    def __post_init__(self) -> None:
        if self.lr <= 0:
            raise UserError(f"optim.lr is {self.lr}; it must be above 0, for example 1e-3")
        if self.muon_lr < 0:
            raise UserError(f"optim.muon_lr is {self.muon_lr}; it must be 0 (AdamW alone) or more, for example 0.02")
        if self.warmup_steps < 0:
            raise UserError(f"optim.warmup_steps is {self.warmup_steps}; it must be 0 or more")
        if not 0 <= self.min_lr_ratio <= 1:
            raise UserError(f"optim.min_lr_ratio is {self.min_lr_ratio}; it must be from 0 to 1")


def lr_factor(step: int, cfg: OptimConfig, max_steps: int) -> float:
    """Learning rate of optimiser step `step` (from 0) as a share of `cfg.lr`."""
    if step < cfg.warmup_steps:
        return (step + 1) / cfg.warmup_steps
    if cfg.schedule == "constant":
        return 1.0
    progress = min((step - cfg.warmup_steps) / max(max_steps - cfg.warmup_steps, 1), 1.0)
    return cfg.min_lr_ratio + (1 - cfg.min_lr_ratio) * 0.5 * (1 + math.cos(math.pi * progress))


def param_groups(
    named_params: Iterable[tuple[str, nn.Parameter]],
    cfg: OptimConfig,
    is_hidden: Callable[[str], bool] = lambda name: False,
    scale: float = 1.0,
) -> list[dict[str, Any]]:
    """Groups of the parameters that are trained: hidden matrices for Muon, other matrices, vectors.

    Weight decay acts on matrices and kernels alone: vectors (biases, the scales of norms) are not decayed.

    Args:
        is_hidden: which parameters, by name, `cfg.muon_lr` is for where they are matrices or kernels: those of hidden
            layers, not embeddings, not the first layer, not the head.
        scale: of the learning rates.
    """
    hidden, matrices, vectors = [], [], []
    for name, param in named_params:
        if param.requires_grad:
            is_matrix = len(full_shape(param)) >= 2
            by_muon = cfg.muon_lr > 0 and is_matrix and is_hidden(name)
            (hidden if by_muon else matrices if is_matrix else vectors).append(param)
    shared = {"betas": cfg.betas, "weight_decay": cfg.weight_decay}
    groups = [
        {**shared, "params": matrices, "lr": scale * cfg.lr},
        {**shared, "params": vectors, "lr": scale * cfg.lr, "weight_decay": 0.0},
        {**shared, "params": hidden, "lr": scale * cfg.muon_lr, "muon": True},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(groups: list[dict[str, Any]]) -> torch.optim.Optimizer:
    """AdamW, or Muon where a group asks for it."""
    if not groups:
        raise UserError("there is nothing to train: every parameter is frozen")
    return Muon(groups) if any(group.get("muon") for group in groups) else torch.optim.AdamW(groups)


def build_optimizer(
    named_params: Iterable[tuple[str, nn.Parameter]],
    cfg: OptimConfig,
    max_steps: int,
    is_hidden: Callable[[str], bool] = lambda name: False,
) -> dict[str, Any]:
    """What `LightningModule.configure_optimizers` returns: the optimiser and a schedule, stepped every optimiser step.

    Args:
        is_hidden: see `param_groups`.
    """
    optimizer = make_optimizer(param_groups(named_params, cfg, is_hidden))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: lr_factor(step, cfg, max_steps))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
