"""The renderer: a frozen text-to-video base and the ControlNet that makes its people follow poses.

Letters: B batch, F frames, C channels, L tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor, nn

from modules.checkpoint import fingerprint, load_frozen, read_export
from modules.controlnet.config import ControlNetworkConfig
from modules.controlnet.controlnet import PoseControlNet
from modules.controlnet.data import draw_hint, hint_tensor
from modules.errors import UserError
from modules.pose.scene import Scene

if TYPE_CHECKING:
    from modules.base.network import BaseNetwork

_BASE = "base."


class PoseRenderer(nn.Module):
    """Base and ControlNet. The base is always in eval mode, never trained, and never part of the state dict."""

    def __init__(self, base: BaseNetwork, config: ControlNetworkConfig) -> None:
        super().__init__()
        halvings = len(config.hint_channels) - 1
        if 2**halvings != base.config.vae.factor:
            raise UserError(
                f"network.hint_channels has {halvings + 1} entries, which makes {halvings} halvings; the autoencoder "
                f"of the base makes pictures {base.config.vae.factor} times smaller: give "
                f"{base.config.vae.factor.bit_length()} entries"
            )
        self.base = base.requires_grad_(False).eval()
        self.control = PoseControlNet.from_unet(base.unet, config)
        self.register_state_dict_post_hook(_drop_base)
        self.register_load_state_dict_pre_hook(_keep_base)

    def train(self, mode: bool = True) -> PoseRenderer:
        super().train(mode)
        self.base.eval()  # its dropout stays off, whoever calls train()
        return self

    def predict(
        self, noisy: Tensor, timestep: Tensor, text: Tensor, fps: Tensor, hint: Tensor | None, scale: float = 1.0
    ) -> Tensor:
        """The base's prediction (B, C, F, h, w) under control of drawn poses (B, F, 3, H, W); None: without control."""
        if hint is None:
            return self.base(noisy, timestep, text, fps)
        residuals = self.control(noisy, timestep, text, hint=hint, fps=fps, scale=scale)
        return self.base(noisy, timestep, text, fps, residuals)

    def hints(self, scenes: Sequence[Scene], indices: Sequence[Sequence[int]]) -> Tensor:
        """Drawn poses (B, F, 3, H, W) of some dense frames of scenes, at the renderer's pixel size."""
        size = (self.base.config.height, self.base.config.width)
        boxes = self.control.config.hint_boxes
        drawn = [draw_hint(scene, chosen, size, boxes) for scene, chosen in zip(scenes, indices, strict=True)]
        return hint_tensor(np.stack(drawn)).to(self.base.latent_scale.device)


def _drop_base(module: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
    for key in [key for key in state if key.startswith(prefix + _BASE)]:
        del state[key]


def _keep_base(module: nn.Module, state: dict[str, Any], prefix: str, *_: Any) -> None:
    assert isinstance(module, PoseRenderer)
    state.update({f"{prefix}{_BASE}{key}": value for key, value in module.base.state_dict().items()})


def load_base(directory: str | Path) -> BaseNetwork:
    """The frozen base of an export, its checksums verified.

    Raises:
        UserError: no such export (`make train-base` makes one), or a damaged one.
    """
    return load_frozen(directory, "base")  # pyright: ignore[reportReturnType]


def from_export(directory: str | Path) -> PoseRenderer:
    """The renderer of an export, with the base that it was trained on.

    Raises:
        UserError: no export there, its base is missing, or it is another base than that of the training.
    """
    found = read_export(directory, "controlnet")
    path, trained_on = found.config["base"], found.config["base_fingerprint"]
    base = load_base(path)
    if fingerprint(path) != trained_on:
        raise UserError(
            f"{path} is another base than {directory} was trained on (sha256 {trained_on[:12]}...): restore it, "
            "or train again with `make train-controlnet`"
        )
    renderer = PoseRenderer(base, ControlNetworkConfig(**copy.deepcopy(found.config["network"])))
    renderer.load_state_dict(found.load_state())
    return renderer
