"""The two encoders of a base, on arrays: what `prepare.py latents` keeps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from modules.checkpoint import fingerprint, load_frozen
from modules.hardware import native_bfloat16


def load_encoders(base: str, *, batch: int, device: str = "auto", precision: str = "32") -> dict[str, Any]:
    """Functions of a base's export.

    Returns:
        frames: (T, H, W, 3) uint8 at the base's size -> (T, C, h, w) float16, normalised latents (posterior means);
        captions: texts -> (texts, L, D) float16; width and height in px; fingerprint of the base.

    Raises:
        UserError: no such export.
    """
    network: Any = load_frozen(base, "base")
    device = device if device != "auto" else "cuda" if torch.cuda.is_available() else "cpu"
    network.to(device)
    network.frames_at_once = batch
    half = precision == "auto" and native_bfloat16(torch.device(device).type)

    def run(function: Callable[[], torch.Tensor]) -> np.ndarray:
        with torch.no_grad(), torch.autocast(torch.device(device).type, torch.bfloat16, enabled=half):
            return function().float().cpu().numpy().astype(np.float16)

    def frames(pictures: np.ndarray) -> np.ndarray:
        pixels = torch.from_numpy(pictures).to(device).permute(0, 3, 1, 2)[None].float() / 127.5 - 1
        return run(lambda: network.encode_frames(pixels)[0].transpose(0, 1))

    def captions(texts: Sequence[str]) -> np.ndarray:
        return run(lambda: network.encode_text(texts))

    return {
        "frames": frames, "captions": captions, "width": network.config.width, "height": network.config.height,
        "fingerprint": fingerprint(base),
    }  # fmt: skip
