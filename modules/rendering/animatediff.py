"""A second renderer, to which the director is nothing new: AnimateDiff on Stable Diffusion 1.5 with a pose ControlNet.

All of it is diffusers' `AnimateDiffControlNetPipeline`; here the dense poses become its conditioning frames.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_motion_model import MotionAdapter
from diffusers.pipelines.animatediff.pipeline_animatediff_controlnet import AnimateDiffControlNetPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from PIL import Image

from modules.controlnet.config import AnimateDiffConfig, RenderConfig
from modules.controlnet.data import draw_hint
from modules.controlnet.sampler import Caption, Predictions
from modules.errors import UserError
from modules.pose.scene import Scene


class AnimateDiffRenderer:
    """Draws dense scenes with a pipeline of diffusers, at a canvas of its own."""

    def __init__(self, pipe: AnimateDiffControlNetPipeline, config: AnimateDiffConfig, width: int, height: int) -> None:
        """Args:
        width, height: px of the videos; multiples of 8, 512 on each side is what the weights were trained on.
        """
        factor = pipe.vae_scale_factor
        if width % factor or height % factor:
            raise UserError(f"the canvas is {width} x {height}, AnimateDiff needs multiples of {factor}: 512 x 512")
        self.pipe: Any = pipe
        self.config, self.size = config, (height, width)
        pipe.set_progress_bar_config(disable=True)

    @classmethod
    def from_pretrained(cls, config: AnimateDiffConfig, width: int, height: int) -> AnimateDiffRenderer:
        """From folders or the local cache of the Hugging Face hub; nothing is downloaded unless `download` says so.

        Raises:
            UserError: weights are not there.
        """
        local = {"local_files_only": not config.download}
        name = ""
        try:
            name = config.motion_adapter
            adapter = MotionAdapter.from_pretrained(name, **local)
            name = config.controlnet
            control = ControlNetModel.from_pretrained(name, **local)
            name = config.base
            # AnimateDiff's noise schedule: linear betas, as its authors publish it.
            scheduler = DDIMScheduler.from_pretrained(
                name, subfolder="scheduler", beta_schedule="linear", clip_sample=False, timestep_spacing="linspace",
                steps_offset=1, **local,
            )  # fmt: skip
            pipe = AnimateDiffControlNetPipeline.from_pretrained(
                name, motion_adapter=adapter, controlnet=control, scheduler=scheduler, **local
            )
        except (OSError, ValueError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise UserError(
                f"AnimateDiff: {name} cannot be loaded ({reason}); name a folder in pipeline.animatediff, or add "
                "pipeline.animatediff.download=true to take it from the hub"
            ) from None
        return cls(pipe, config, width, height)

    def prepare(self, settings: RenderConfig, num_frames: int) -> None:
        """Take on the settings of memory and device, and windows for a long video."""
        pipe, device = self.pipe, settings.device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        if settings.vae_slicing:
            pipe.vae.enable_slicing()
        if settings.vae_tiling:
            pipe.vae.enable_tiling()
        if settings.offload:
            pipe.enable_model_cpu_offload(device=device)
        elif pipe.device != torch.device(device):
            pipe.to(device)
        window = self.config.window
        if num_frames > window:
            stride = max(round(window * (1 - settings.overlap)), 1)
            noise = "shuffle_context" if settings.shared_noise else "random"
            pipe.enable_free_noise(context_length=window, context_stride=stride, noise_type=noise)
        elif pipe.free_noise_enabled:
            pipe.disable_free_noise()

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
        """Videos of whole scenes, (B, F, H, W, 3) uint8: rendered frame i shows dense pose i * frame_stride.

        `kept` is left as it is: a single window sees the whole video, and an edit changes all of it.

        A prompt that changes within a video is told by the frame at which it changes; within a single window, that of
        its middle frame holds for all.
        """
        videos = []
        for scene, prompt, seed in zip(scenes, prompts, seeds, strict=True):
            indices = range(0, scene.num_frames, settings.frame_stride)
            self.prepare(settings, len(indices))
            hints = [Image.fromarray(hint) for hint in draw_hint(scene, indices, self.size)]
            # Stable Diffusion has a safety checker only where the folder brings one; AnimateDiff's pipeline has none.
            found: Any = self.pipe(
                prompt=self._told(prompt), negative_prompt=self.config.negative_prompt, num_frames=len(hints),
                conditioning_frames=hints, height=self.size[0], width=self.size[1], generator=_generator(seed),
                num_inference_steps=settings.steps, guidance_scale=settings.guidance_scale, eta=settings.eta,
                controlnet_conditioning_scale=settings.control_scale, control_guidance_start=settings.control_start,
                control_guidance_end=settings.control_end, output_type="np",
                callback_on_step_end=None if on_step is None else _callback(on_step, settings.steps),
            )  # fmt: skip
            videos.append((np.asarray(found.frames[0]).clip(0, 1) * 255).round().astype(np.uint8))
        return np.stack(videos)

    def _told(self, prompt: Caption) -> str | dict[int, str]:
        """A prompt, or in windows the prompts by the frames at which they change (FreeNoise's own form)."""
        if isinstance(prompt, str):
            return prompt
        if len(prompt) <= self.config.window or len(set(prompt)) == 1:
            return prompt[len(prompt) // 2]
        last = len(prompt) - 1
        return {i: text for i, text in enumerate(prompt) if i in (0, last) or text != prompt[i - 1]}


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _callback(on_step: Callable[[int, int], None], steps: int) -> Callable[..., dict[str, Any]]:
    def tell(pipe: Any, step: int, timestep: int, values: dict[str, Any]) -> dict[str, Any]:
        on_step(step + 1, steps)
        return values

    return tell
