"""From a plan (boxes and codes) to key poses in pixels.

Letters: P persons, K key poses, J joints, Q quantisers.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from modules.llm.tokens import ScenePlan
from modules.pose.boxes import denormalise, tokens_to_box
from modules.pose.scene import Person, Scene


@torch.inference_mode()
def scene_from_plan(
    plan: ScenePlan, vqvae_network: Any, *, width: int, height: int, fps: float, stride: int
) -> Scene:
    """Key poses of a plan.

    Args:
        vqvae_network: the pose tokenizer that the director was trained with (`load_frozen(..., "vqvae")`).
        width, height: canvas in px.
        fps: of the dense frames.
        stride: dense frames per key pose.
    """
    device = next(vqvae_network.parameters()).device
    codes = torch.from_numpy(plan.codes).to(device)  # (P, K, Q)
    coords, visibility = decode_codes(vqvae_network, codes)
    boxes = tokens_to_box(plan.boxes, width, height)  # (P, 4)
    joints = denormalise(coords, boxes, visibility).astype(np.float32)  # (P, K, J, 2)
    persons = [Person(*parts) for parts in zip(joints, visibility, boxes, strict=True)]
    times = np.arange(plan.num_keys) * stride / fps
    return Scene(width=width, height=height, fps=fps, times=times, persons=persons, prompt=plan.prompt)


def decode_codes(vqvae_network: Any, codes: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Codes (P, K, Q) to box coordinates (P, K, J, 2) float32 and visibility (P, K, J) bool."""
    key_mask = torch.ones(codes.shape[:2], dtype=torch.bool, device=codes.device)
    decoded = vqvae_network.decode(codes, key_mask)
    return decoded.poses.float().cpu().numpy(), (decoded.visibility_logits > 0).cpu().numpy()
