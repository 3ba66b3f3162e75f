"""The whole chain, without Lightning: prompt -> plan (boxes and key poses) -> dense poses -> video.

Letters: P persons, K key poses, T dense frames, F rendered frames, J joints (18).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from modules.checkpoint import fingerprint, load_frozen, read_export
from modules.errors import UserError
from modules.interp.config import SamplingConfig as InterpSampling
from modules.pose.boxes import box_to_tokens, denormalise, normalise
from modules.pose.io import Plan
from modules.pose.scene import Person, Scene
from modules.text import check_prompt

if TYPE_CHECKING:
    from modules.controlnet.network import PoseRenderer
    from modules.evaluator.network import Evaluator
    from modules.llm.director import Director

# What each step of the chain reads.
PLAN_STAGES = ("vqvae", "llm")
DENSE_STAGES = ("interp",)
RENDER_STAGES = ("controlnet",)


@dataclass
class Exports:
    """Folders of the exports that the chain is made of."""

    vqvae: str = "runs/vqvae/demo/export"
    llm: str = "runs/llm/demo/export"
    interp: str = "runs/interp/demo/export"
    controlnet: str = "runs/controlnet/demo/export"
    evaluator: str = "runs/evaluator/demo/export"

    def check(self, stages: Sequence[str]) -> None:
        """Look at the exports of some stages before anything is computed.

        Raises:
            UserError: one is missing, or is of another stage.
        """
        for stage in stages:
            found = read_export(getattr(self, stage), stage)
            if stage == "controlnet":
                read_export(found.config["base"], "base")


@dataclass
class TokenSampling:
    """How the director draws one kind of token; temperature 0 takes the likeliest."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0: all


@dataclass
class DirectorSampling:
    """Settings for each kind of token: `pose` is depth 0 of a key pose, `residual` the depths after it."""

    people: TokenSampling = field(default_factory=TokenSampling)
    duration: TokenSampling = field(default_factory=TokenSampling)
    box: TokenSampling = field(default_factory=TokenSampling)
    pose: TokenSampling = field(default_factory=TokenSampling)
    residual: TokenSampling = field(default_factory=TokenSampling)


@dataclass
class RenderConfig:
    """How videos are drawn."""

    frame_stride: int = 4  # rendered frame i shows dense pose i * frame_stride
    steps: int = 20
    guidance_scale: float = 4.0
    guidance_rescale: float = 0.0
    control_scale: float = 1.0  # 0 turns the poses off
    eta: float = 0.0
    precision: str = "32"  # "auto": bfloat16 where the hardware computes in it, about twice as fast

    def __post_init__(self) -> None:
        if self.precision not in ("32", "auto"):
            raise UserError(f"precision is {self.precision!r}; allowed: 32, auto")
        if self.frame_stride < 1 or self.steps < 1:
            raise UserError(f"frame_stride is {self.frame_stride} and steps {self.steps}; both must be at least 1")


@dataclass
class PipelineConfig:
    """Exports, canvas of new plans, and sampling settings of the chain."""

    exports: Exports = field(default_factory=Exports)
    width: int = 64  # px
    height: int = 64
    director: DirectorSampling = field(default_factory=DirectorSampling)
    interp: InterpSampling = field(default_factory=InterpSampling)
    render: RenderConfig = field(default_factory=RenderConfig)


@dataclass(eq=False)
class Result:
    """All that the chain makes of a prompt or a plan."""

    plan: Plan
    dense: Scene
    frames: np.ndarray  # (F, H, W, 3) uint8
    fps: float  # of the frames


class Pipeline:
    """Networks of the chain; each is loaded when it is first used and stays in memory.

    Every step depends on its own seed alone: not on the batch, and not on what was made before.
    """

    def __init__(self, config: PipelineConfig, *, device: str = "cpu") -> None:
        self.config = config
        self.device = device

    @classmethod
    def from_exports(cls, config: PipelineConfig, *, stages: Sequence[str], device: str = "cpu") -> Pipeline:
        """A pipeline of which the named stages will be used.

        Raises:
            UserError: an export is missing or of another stage, or two do not belong together.
        """
        exports = config.exports
        exports.check(stages)
        if "llm" in stages and "vqvae" in stages:
            _check_tokenizer(exports)
        return cls(config, device=device)

    @cached_property
    def director(self) -> Director:
        from transformers.utils import logging

        from modules.llm.director import Director

        logging.disable_progress_bar()  # loading takes a moment and has nothing to tell
        return Director.from_export(self.config.exports.llm, device=self.device)

    @cached_property
    def tokenizer(self) -> Any:
        """The pose tokenizer (`vqvae`)."""
        return load_frozen(self.config.exports.vqvae, "vqvae").to(self.device)

    @cached_property
    def interpolator(self) -> Any:
        return load_frozen(self.config.exports.interp, "interp").to(self.device)

    @cached_property
    def renderer(self) -> PoseRenderer:
        """The ControlNet with the base that it was trained on."""
        return load_frozen(self.config.exports.controlnet, "controlnet").to(self.device)  # type: ignore[return-value]

    @cached_property
    def evaluator(self) -> Evaluator:
        return load_frozen(self.config.exports.evaluator, "evaluator").to(self.device)  # type: ignore[return-value]

    def plan(
        self,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        num_people: int | None = None,
        num_keys: int | None = None,
        boxes: Sequence[np.ndarray | None] | None = None,
    ) -> list[Plan]:
        """Boxes and key poses of each prompt.

        Args:
            prompts, seeds: one seed a prompt.
            num_people, num_keys: forced for all prompts; None leaves it to the director.
            boxes: for each prompt (P, 4) px in the order of the left edges, or None.

        Raises:
            UserError: an empty prompt, one that is too long, or a constraint that cannot be fulfilled.
        """
        from modules.llm.decoding import Sampling, SamplingConfig
        from modules.llm.scenes import scene_from_plan

        for prompt in prompts:
            check_prompt(prompt)
        width, height = self.config.width, self.config.height
        edges = None
        if boxes is not None:
            edges = [None if box is None else box_to_tokens(np.asarray(box), width, height) for box in boxes]
        settings = dataclasses.asdict(self.config.director)
        plans = self.director.plan(
            list(prompts),
            seeds=list(seeds),
            num_people=num_people,
            num_keys=num_keys,
            boxes=edges,
            sampling=SamplingConfig(**{kind: Sampling(**values) for kind, values in settings.items()}),
        )
        tokenizer, stride, fps = fingerprint(self.config.exports.vqvae), self.director.stride, self.director.fps
        result = []
        for plan, seed in zip(plans, seeds, strict=True):
            scene = scene_from_plan(plan, self.tokenizer, width=width, height=height, fps=fps, stride=stride)
            result.append(Plan(scene, seed, stride, plan.codes, tokenizer))
        return result

    def dense(self, plan: Plan) -> Scene:
        """Dense poses of a plan, K * stride of them: the last key stands for as much time as the others.

        Boxes stay those of the plan, the frame of reference of its key poses.

        Raises:
            UserError: nobody is in the plan, or its rate is not the interpolator's.
        """
        from modules.interp.sampler import sample

        keys, count = plan.scene_keys, len(plan.scene_keys.persons)
        if not count or not keys.num_frames:
            raise UserError("the plan has nobody in it, or no key poses; give it at least one person with one key")
        if keys.fps != self.interpolator.fps:
            raise UserError(
                f"the plan is at {keys.fps:g} fps, the interpolator of {self.config.exports.interp} at "
                f"{self.interpolator.fps:g}; set 'fps' of the plan to that, and 'stride' and the times to match"
            )
        num_frames = keys.num_frames * plan.stride
        visibility = keys.visibility
        coords = normalise(keys.joints, keys.boxes, visibility)  # (P, K, J, 2)
        found = sample(
            self.interpolator,
            torch.from_numpy(coords.astype(np.float32)).to(self.device),
            torch.from_numpy(visibility).to(self.device),
            torch.ones(count, keys.num_frames, dtype=torch.bool, device=self.device),
            torch.from_numpy(keys.times).expand(count, -1).to(self.device),
            num_frames,
            [keys.prompt] * count,
            sampling=self.config.interp,
            generator=torch.Generator().manual_seed(plan.seed),
        )
        seen = found.visibility.cpu().numpy()
        joints = denormalise(found.joints.cpu().numpy(), keys.boxes, seen).astype(np.float32)
        persons = [Person(*parts) for parts in zip(joints, seen, keys.boxes, strict=True)]
        return dataclasses.replace(keys, times=np.arange(num_frames) / keys.fps, persons=persons)

    def render(
        self, scenes: Sequence[Scene], seeds: Sequence[int], *, progress: Callable[[int], None] | None = None
    ) -> list[np.ndarray]:
        """Videos of dense scenes, one by one: (F, H, W, 3) uint8 at `video_fps(scene)`, F = ceil(T / frame_stride).

        Args:
            progress: called with 1 after each video.
        """
        videos = []
        for scene, seed in zip(scenes, seeds, strict=True):
            videos.append(
                self.renderer.render([scene], [scene.prompt], [seed], **dataclasses.asdict(self.config.render))[0]
            )
            if progress is not None:
                progress(1)
        return videos

    def video_fps(self, scene: Scene) -> float:
        """Frames per second of a rendered scene."""
        return scene.fps / self.config.render.frame_stride

    def from_plan(self, plan: Plan) -> Result:
        """Dense poses and video of a plan, for example of an edited one."""
        dense = self.dense(plan)
        return Result(plan, dense, self.render([dense], [plan.seed])[0], self.video_fps(dense))

    def generate(self, prompt: str, seed: int = 0) -> Result:
        """The whole chain for one prompt."""
        return self.from_plan(self.plan([prompt], [seed])[0])


def _check_tokenizer(exports: Exports) -> None:
    """The codes of a director mean something only to the pose tokenizer that it was trained with."""
    wanted = read_export(exports.llm, "llm").config["vqvae"]["sha256"]
    if wanted != fingerprint(exports.vqvae):
        raise UserError(
            f"{exports.llm} was trained with another pose tokenizer than {exports.vqvae}; name that one as "
            "exports.vqvae, or train the director again: `make train-llm`"
        )
