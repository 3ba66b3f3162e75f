"""Clips to training items of the base: the renderer's windows of frames, with hints where the training uses them."""

from __future__ import annotations

from modules.base.config import BaseConfig
from modules.controlnet.data import Encode, collate

__all__ = ["Encode", "collate", "make_encode"]


def make_encode(config: BaseConfig) -> Encode:
    """The encoder for this configuration's canvas and clock."""
    network = config.network
    return Encode(
        width=network.width,
        height=network.height,
        num_frames=network.num_frames,
        clock=config.clock,
        with_hint=config.hint_share > 0,
        with_mask="always" if config.figure_weight else "never",
    )
