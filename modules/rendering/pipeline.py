"""The renderer as users of diffusers know pipelines: `from_pretrained`, a call, `save_pretrained`.

Letters: B videos, F rendered frames, T dense frames, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import cpu_offload_with_hook
from accelerate.hooks import CpuOffload, UserCpuOffloadHook
from torch import nn

from modules.checkpoint import load_frozen
from modules.controlnet.config import RenderConfig
from modules.controlnet.network import PoseRenderer
from modules.controlnet.sampler import Caption, Control, Guidance, Predictions, Windows, sample
from modules.hardware import native_bfloat16
from modules.pose.scene import Scene
from modules.rendering.saved import is_saved, load_renderer, save_renderer

_TILE = 256  # px: side of the tiles that the autoencoder takes


@dataclass
class PoseVideoOutput:
    """What a call gives."""

    frames: np.ndarray  # (B, F, H, W, 3) uint8
    fps: float  # of the frames


class PoseVideoPipeline:
    """Base and ControlNet of a renderer, with the settings of memory that diffusers' pipelines have.

    Components: `vae` (AutoencoderKL), `text_encoder`, `unet` (VideoUNet), `controlnet` (PoseControlNet).
    """

    def __init__(self, renderer: PoseRenderer) -> None:
        self.renderer = renderer.eval().requires_grad_(False)
        self._offloaded = False

    @classmethod
    def from_pretrained(cls, directory: str | Path) -> PoseVideoPipeline:
        """The pipeline of an export of stage `controlnet`, or of a folder of `save_pretrained`, on the CPU.

        Raises:
            UserError: neither is there, or its weights do not fit.
        """
        if is_saved(directory):
            return cls(load_renderer(Path(directory)))
        renderer = load_frozen(directory, "controlnet")
        assert isinstance(renderer, PoseRenderer)
        return cls(renderer)

    def save_pretrained(self, directory: str | Path) -> None:
        """Write all components, one folder each, and `model_index.json`: self-contained, safetensors alone."""
        save_renderer(self.renderer, self.components, Path(directory))

    @property
    def base(self) -> Any:
        return self.renderer.base

    @property
    def components(self) -> dict[str, nn.Module]:
        base = self.base
        return {
            "vae": base.vae, "text_encoder": base.text, "unet": base.unet, "controlnet": self.renderer.control
        }  # fmt: skip

    @property
    def device(self) -> torch.device:
        return self.base.latent_scale.device

    def to(self, device: str | torch.device) -> PoseVideoPipeline:
        """Move everything."""
        self.renderer.to(device)
        return self

    def enable_vae_slicing(self, frames: int = 1) -> None:
        """Encode and decode so many frames at once."""
        self.base.frames_at_once = frames

    def enable_vae_tiling(self) -> None:
        """Encode and decode frames in overlapping tiles where they are larger than one."""
        vae, factor = self.base.vae, self.base.config.vae.factor
        vae.tile_sample_min_size, vae.tile_latent_min_size = _TILE, _TILE // factor
        vae.enable_tiling()

    def enable_model_cpu_offload(self, device: str | torch.device = "cuda") -> None:
        """Keep the components on the CPU, and each on `device` only while it works.

        UNet and ControlNet take turns in every step, so they come and go together.
        """
        if self._offloaded:
            return
        base, control = self.base, self.renderer.control
        self.renderer.to("cpu")
        _, text = cpu_offload_with_hook(base.text, device)
        for part in (control, base.unet):
            cpu_offload_with_hook(part, device, prev_module_hook=text)
        both = UserCpuOffloadHook(nn.ModuleList([control, base.unet]), CpuOffload(device))
        _, vae = cpu_offload_with_hook(base.vae, device, prev_module_hook=both)
        text.hook.prev_module_hook = vae  # the next video begins with the text again
        base.latent_scale, base.latent_shift = base.latent_scale.to(device), base.latent_shift.to(device)
        self._offloaded = True

    def prepare(self, settings: RenderConfig) -> None:
        """Take on the settings of memory and device."""
        device = settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if settings.vae_slicing:
            self.enable_vae_slicing()
        if settings.vae_tiling:
            self.enable_vae_tiling()
        if settings.offload:
            self.enable_model_cpu_offload(device)
        elif not self._offloaded and self.device != torch.device(device):
            self.to(device)

    def render(
        self,
        scenes: Sequence[Scene],
        prompts: Sequence[Caption],
        seeds: Sequence[int],
        settings: RenderConfig,
        *,
        on_step: Callable[[int, int], None] | None = None,
        kept: Predictions | None = None,
    ) -> np.ndarray:
        """Videos of whole scenes: rendered frame i shows dense pose i * `settings.frame_stride`.

        Args:
            scenes: dense, all of the same number of frames.
            prompts, seeds: one a scene; a prompt may also be a list, one for each rendered frame.
            on_step: called with (steps done, steps in all); it may raise, to stop.
            kept: what was predicted for the video before.

        Returns:
            (B, F, H, W, 3) uint8 at fps / frame_stride frames per second, F = ceil(T / frame_stride).
        """
        stride = settings.frame_stride
        chosen = [range(0, scene.num_frames, stride) for scene in scenes]
        if len(set(map(len, chosen))) > 1:
            raise ValueError("scenes of one call must have the same number of frames: render them one by one")
        self.prepare(settings)
        control = None
        if settings.control_scale:
            hints = self.renderer.hints(scenes, chosen)
            network, scale = self.renderer.control, settings.control_scale
            control = Control(network, hints, scale, settings.control_start, settings.control_end)
        half = settings.precision == "auto" and native_bfloat16(self.device.type)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=half):
            return sample(
                self.base, list(prompts), list(seeds), num_frames=len(chosen[0]),
                fps=torch.tensor([scene.fps / stride for scene in scenes]), steps=settings.steps,
                guidance=Guidance(settings.guidance_scale, settings.guidance_rescale), control=control,
                eta=settings.eta, long=Windows(settings.overlap, settings.shared_noise), on_step=on_step,
                kept=kept,
            )  # fmt: skip

    def __call__(
        self,
        prompt: Caption | Sequence[Caption],
        poses: Scene | Sequence[Scene],
        *,
        seed: int = 0,
        frame_stride: int = 4,
        num_inference_steps: int = 50,
        guidance_scale: float = 12.0,
        guidance_rescale: float = 0.0,
        controlnet_conditioning_scale: float = 1.0,
        control_guidance_start: float = 0.0,
        control_guidance_end: float = 1.0,
        eta: float = 0.0,
        callback_on_step_end: Callable[[int, int], None] | None = None,
    ) -> PoseVideoOutput:
        """Videos of dense poses, under the names that diffusers' pipelines use, on the device of the pipeline.

        Args:
            prompt, poses: one, or a list of each; `modules.pose.importing.read_poses` reads OpenPose's files.
            seed: of the first video; the others have the following ones.
            frame_stride: rendered frame i shows pose i * frame_stride.
        """
        scenes = [poses] if isinstance(poses, Scene) else list(poses)
        prompts = [prompt] if isinstance(poses, Scene) else list(prompt)
        settings = RenderConfig(
            frame_stride=frame_stride, steps=num_inference_steps, guidance_scale=guidance_scale,
            guidance_rescale=guidance_rescale, control_scale=controlnet_conditioning_scale,
            control_start=control_guidance_start, control_end=control_guidance_end, eta=eta, device=str(self.device),
        )  # fmt: skip
        seeds = range(seed, seed + len(scenes))
        frames = self.render(scenes, prompts, seeds, settings, on_step=callback_on_step_end)  # pyright: ignore
        return PoseVideoOutput(frames, scenes[0].fps / frame_stride)
