"""The noise schedule of training and sampling: VideoCrafter2's, and one with zero signal at the end.

Letters: B batch; a noisy latent at timestep t is sqrt(a_t) * s_t * x0 + sqrt(1 - a_t) * noise, with s_t = 1 where
dynamic rescale is off.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from modules.controlnet.config import ScheduleConfig


class NoiseSchedule(nn.Module):
    """Diffusion over `config.steps` timesteps with betas that are linear in their square root (DDPM, DDIM).

    Sources: DDIM (arXiv 2010.02502), v-prediction (arXiv 2202.00512), zero terminal SNR (arXiv 2305.08891), dynamic
    rescale (arXiv 2310.12190). The tables are buffers outside of the state dict: the config makes them.
    """

    signal: Tensor  # (T,) sqrt(a_t)
    sigma: Tensor  # (T,) sqrt(1 - a_t)
    scale: Tensor  # (T,) s_t

    def __init__(self, config: ScheduleConfig) -> None:
        super().__init__()
        self.config = config
        # The tables are made on the CPU also when the networks are built on the meta device.
        with torch.device("cpu"):
            betas = torch.linspace(config.beta_start**0.5, config.beta_end**0.5, config.steps, dtype=torch.float64) ** 2
            signal = (1 - betas).cumprod(0).sqrt()
            if config.zero_terminal_snr:
                signal = (signal - signal[-1]) * signal[0] / (signal[0] - signal[-1])
            scale = torch.ones(config.steps, dtype=torch.float64)
            if config.rescale:
                ramp = torch.linspace(1, config.rescale_end, config.rescale_steps, dtype=torch.float64)
                scale[:] = config.rescale_end
                scale[: len(ramp)] = ramp[: config.steps]
            self.register_buffer("signal", signal.float(), persistent=False)
            self.register_buffer("sigma", (1 - signal.square()).sqrt().float(), persistent=False)
            self.register_buffer("scale", scale.float(), persistent=False)

    def tables(self, timestep: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """sqrt(a_t), sqrt(1 - a_t) and s_t of timesteps () or (B,), in the shape that multiplies `like` (B, ...)."""
        shape = (*timestep.shape, *[1] * (like.ndim - timestep.ndim))
        index = timestep.to(self.signal.device)
        signal, sigma, scale = (table[index].reshape(shape) for table in (self.signal, self.sigma, self.scale))
        return signal.to(like), sigma.to(like), scale.to(like)

    def add_noise(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """Noisy latents at `timestep` (B,)."""
        signal, sigma, scale = self.tables(timestep, clean)
        return signal * scale * clean + sigma * noise

    def target(self, clean: Tensor, noise: Tensor, timestep: Tensor) -> Tensor:
        """What the network has to predict: the noise, or v = sqrt(a) * noise - sqrt(1 - a) * s * x0."""
        if self.config.prediction == "epsilon":
            return noise
        signal, sigma, scale = self.tables(timestep, clean)
        return signal * noise - sigma * scale * clean

    def split(self, prediction: Tensor, noisy: Tensor, timestep: Tensor) -> tuple[Tensor, Tensor]:
        """Clean latents (without the rescale) and noise that a prediction stands for."""
        signal, sigma, scale = self.tables(timestep, noisy)
        if self.config.prediction == "epsilon":
            return (noisy - sigma * prediction) / (signal * scale), prediction
        return (signal * noisy - sigma * prediction) / scale, signal * prediction + sigma * noisy

    def timesteps(self, count: int) -> list[int]:
        """`count` timesteps from noisy to clean, evenly spread.

        With zero signal at the end they start at the last one ("trailing"); VideoCrafter2's are "leading" with an
        offset of 1: the same as its own for counts that divide the number of steps.
        """
        total = self.config.steps
        if not 1 <= count < total:
            raise ValueError(f"sampling steps are {count}; allowed: 1 to {total - 1}")
        if self.config.zero_terminal_snr:
            return [round(total - index * total / count) - 1 for index in range(count)]
        return [index * total // count + 1 for index in reversed(range(count))]

    def step(
        self,
        prediction: Tensor,
        noisy: Tensor,
        timestep: int,
        next_timestep: int | None,
        eta: float = 0.0,
        noise: Tensor | None = None,
    ) -> Tensor:
        """One DDIM step to the next (cleaner) timestep; None: to the end.

        Args:
            prediction, noisy: (B, C, F, H, W).
            eta: 0 is deterministic, 1 adds as much noise as DDPM (`noise` is needed).
        """
        clean, eps = self.split(prediction, noisy, torch.tensor(timestep))
        if next_timestep is None and self.config.zero_terminal_snr:
            return clean
        # VideoCrafter2 ends at the noise level of timestep 0, not at none (diffusers: set_alpha_to_one=False).
        signal, sigma, scale = self.tables(torch.tensor(next_timestep or 0), noisy)
        fresh = torch.zeros((), dtype=noisy.dtype, device=noisy.device)
        if eta > 0:
            before_signal, before_sigma, _ = self.tables(torch.tensor(timestep), noisy)
            ratio = (1 - before_signal.square() / signal.square()).clamp_min(0).sqrt()
            fresh = eta * sigma / before_sigma * ratio
        direction = (sigma.square() - fresh.square()).clamp_min(0).sqrt()
        result = signal * scale * clean + direction * eps
        if eta > 0:
            if noise is None:
                raise ValueError("eta is above 0: give the noise of this step")
            result = result + fresh * noise
        return result
