"""What the training of base and ControlNet share: timesteps, noise, caption dropout and the loss."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from modules.controlnet.scheduler import NoiseSchedule


def draw_timesteps(batch: int, steps: int, bias: float) -> Tensor:
    """Random timesteps (B,), spread over the batch (stratified); `bias` above 1 draws more of the noisy ones."""
    places = (torch.randperm(batch) + torch.rand(batch)) / batch
    return (places ** (1 / bias) * steps).long().clamp_max(steps - 1)


def fixed_noise(shape: Sequence[int], steps: int, seed: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Timesteps (B,), evenly spread, and noise of `shape` for validation: the same at every call."""
    generator = torch.Generator().manual_seed(seed)
    timestep = ((torch.arange(shape[0]) + 0.5) / shape[0] * steps).long()
    return timestep.to(device), torch.randn(*shape, generator=generator).to(device)


def drop_captions(captions: Sequence[str], share: float) -> list[str]:
    """Captions with about `share` of them replaced by the empty prompt, for classifier-free guidance."""
    drop = torch.rand(len(captions)) < share
    return ["" if dropped else caption for caption, dropped in zip(captions, drop.tolist(), strict=True)]


def figure_weights(figure: Tensor, size: tuple[int, int], extra: float | Tensor) -> Tensor:
    """Weights (B, 1, F, h, w) of a loss on latents of `size`: 1 + `extra` where figures are, scaled to 1 on average.

    Only for clips whose poses the network is shown: where it has to guess the place of people, a larger weight on
    people makes it draw too many of them.

    Args:
        figure: (B, F, H, W) coverage by figures in [0, 1], at pixel size.
        extra: one for all clips, or (B,).
    """
    small = nn.functional.adaptive_max_pool2d(figure, size)[:, None]
    weight = 1 + torch.as_tensor(extra, device=figure.device).reshape(-1, 1, 1, 1, 1) * small
    return weight / weight.mean()


def diffusion_loss(
    schedule: NoiseSchedule,
    prediction: Tensor,
    clean: Tensor,
    noise: Tensor,
    timestep: Tensor,
    weight: Tensor | None = None,
) -> dict[str, Tensor]:
    """Mean squared error of a prediction (B, C, F, h, w).

    Args:
        weight: weights that broadcast to the prediction.

    Returns:
        "loss", plain; "weighted", what is trained on.
    """
    error = (prediction.float() - schedule.target(clean, noise, timestep)).square()
    loss = error.mean()
    if weight is not None:
        error = error * weight
    return {"loss": loss, "weighted": error.mean()}


def is_hidden(name: str) -> bool:
    """Which of a renderer's matrices and kernels Muon is for: not embeddings, nor the first and last layers."""
    first_or_last = ("token_embedding", "position", "conv_in", "conv_out", "scaffold", "hint_encoder.body.0.")
    return not any(part in name for part in first_or_last)
