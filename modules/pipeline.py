"""The whole chain, without Lightning: prompt -> plan (boxes and key poses) -> dense poses -> video.

Letters: P persons, K key poses, T dense frames, F rendered frames, J joints (18).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import torch

from modules.checkpoint import fingerprint, load_frozen, read_export
from modules.controlnet.config import AnimateDiffConfig, RenderConfig
from modules.errors import UserError
from modules.interp.config import SamplingConfig as InterpSampling
from modules.pose.boxes import box_to_tokens, denormalise, normalise
from modules.pose.io import Plan
from modules.pose.scene import Person, Scene
from modules.text import check_prompt

if TYPE_CHECKING:
    from modules.controlnet.sampler import Predictions
    from modules.evaluator.network import Evaluator
    from modules.llm.decoding import SamplingConfig
    from modules.llm.director import Director
    from modules.llm.tokens import ScenePlan

# What each step of the chain reads.
PLAN_STAGES = ("vqvae", "llm")
DENSE_STAGES = ("interp",)
RENDER_STAGES = ("controlnet",)

Report = Callable[[int, int], None]  # how much is done, how much there is


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
            if stage == "controlnet" and (Path(self.controlnet) / "model_index.json").is_file():  # `save_pretrained`
                continue
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
class PipelineConfig:
    """Exports, canvas of new plans, and sampling settings of the chain."""

    exports: Exports = field(default_factory=Exports)
    width: int = 64  # px
    height: int = 64
    director: DirectorSampling = field(default_factory=DirectorSampling)
    interp: InterpSampling = field(default_factory=InterpSampling)
    render: RenderConfig = field(default_factory=RenderConfig)
    backend: str = "controlnet"  # or animatediff: Stable Diffusion 1.5 with a motion adapter and a pose ControlNet
    animatediff: AnimateDiffConfig = field(default_factory=AnimateDiffConfig)

    def __post_init__(self) -> None:
        if self.backend not in ("controlnet", "animatediff"):
            raise UserError(f"pipeline.backend is {self.backend!r}; allowed: controlnet, animatediff")


class Renderer(Protocol):
    """Anything that draws dense scenes."""

    def render(
        self,
        scenes: Sequence[Scene],
        prompts: Sequence[str | Sequence[str]],
        seeds: Sequence[int],
        settings: RenderConfig,
        *,
        on_step: Report | None = None,
        kept: Predictions | None = None,
    ) -> np.ndarray:
        """(B, F, H, W, 3) uint8, F = ceil(T / settings.frame_stride); scenes of one call are equally long."""
        ...


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
        if config.backend != "controlnet":
            stages = [stage for stage in stages if stage not in RENDER_STAGES]
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
    def renderer(self) -> Renderer:
        """What draws videos: the ControlNet with the base that it was trained on, or AnimateDiff."""
        config = self.config
        if config.backend == "animatediff":
            from modules.rendering.animatediff import AnimateDiffRenderer

            return AnimateDiffRenderer.from_pretrained(config.animatediff, config.width, config.height)
        from modules.rendering.pipeline import PoseVideoPipeline

        return PoseVideoPipeline.from_pretrained(config.exports.controlnet)

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
        on_key: Callable[[Plan], None] | None = None,
    ) -> list[Plan]:
        """Boxes and key poses of each prompt.

        Args:
            prompts, seeds: one seed a prompt.
            num_people, num_keys: forced for all prompts; None leaves it to the director.
            boxes: for each prompt (P, 4) px in the order of the left edges, or None.
            on_key: for a single prompt: called with what there is of the plan after each key pose, so that it can be
                shown; it may raise, to stop. The last key poses of a preview still change a little.

        Raises:
            UserError: an empty prompt, one that is too long, or a constraint that cannot be fulfilled.
        """
        for prompt in prompts:
            check_prompt(prompt)
        width, height = self.config.width, self.config.height
        edges = None
        if boxes is not None:
            edges = [None if box is None else box_to_tokens(np.asarray(box), width, height) for box in boxes]
        preview = None if on_key is None else lambda plan: on_key(self.plan_of(plan, seeds[0], width, height))
        plans = self.director.plan(
            list(prompts),
            seeds=list(seeds),
            num_people=num_people,
            num_keys=num_keys,
            boxes=edges,
            sampling=self.token_sampling,
            on_key=preview,
        )
        return [self.plan_of(plan, seed, width, height) for plan, seed in zip(plans, seeds, strict=True)]

    @property
    def token_sampling(self) -> SamplingConfig:
        """How the director draws its tokens."""
        from modules.llm.decoding import Sampling, SamplingConfig

        settings = dataclasses.asdict(self.config.director)
        return SamplingConfig(**{kind: Sampling(**values) for kind, values in settings.items()})

    @cached_property
    def tokenizer_name(self) -> str:
        """Fingerprint of the pose tokenizer."""
        return fingerprint(self.config.exports.vqvae)

    def plan_of(self, found: ScenePlan, seed: int, width: int, height: int) -> Plan:
        """Key poses in px of what the director wrote."""
        from modules.llm.scenes import scene_from_plan

        stride, fps = self.director.stride, self.director.fps
        scene = scene_from_plan(found, self.tokenizer, width=width, height=height, fps=fps, stride=stride)
        return Plan(scene, seed, stride, found.codes, self.tokenizer_name)

    def dense(self, plan: Plan, *, on_step: Report | None = None) -> Scene:
        """Dense poses of a plan, K * stride of them: the last key stands for as much time as the others.

        Boxes stay those of the plan, the frame of reference of its key poses. A person's motion depends on that
        person's key poses, on the prompts, on the seed and on the person's id: not on who else is there.

        Args:
            on_step: called with (people done, people in all) after each; it may raise, to stop.

        Raises:
            UserError: nobody is in the plan, or its rate is not the interpolator's.
        """
        keys, count = plan.scene_keys, len(plan.scene_keys.persons)
        if not count or not keys.num_frames:
            raise UserError("the plan has nobody in it, or no key poses; give it at least one person with one key")
        if keys.fps != self.interpolator.fps:
            raise UserError(
                f"the plan is at {keys.fps:g} fps, the interpolator of {self.config.exports.interp} at "
                f"{self.interpolator.fps:g}; set 'fps' of the plan to that, and 'stride' and the times to match"
            )
        persons = []
        for person, number in zip(keys.persons, plan.ids, strict=True):
            persons.append(self._dense_person(plan, person, number))
            if on_step is not None:
                on_step(len(persons), count)
        return dataclasses.replace(keys, times=np.arange(keys.num_frames * plan.stride) / keys.fps, persons=persons)

    def _dense_person(self, plan: Plan, person: Person, number: int) -> Person:
        """Dense poses of one person. One at a time: in a batch the others' number would change the last bits."""
        from modules.interp.sampler import sample

        keys = plan.scene_keys
        coords = normalise(person.joints, person.box, person.visibility).astype(np.float32)  # (K, J, 2)
        found = sample(
            self.interpolator,
            torch.from_numpy(coords)[None].to(self.device),
            torch.from_numpy(person.visibility)[None].to(self.device),
            torch.ones(1, keys.num_frames, dtype=torch.bool, device=self.device),
            torch.from_numpy(keys.times)[None].to(self.device),
            keys.num_frames * plan.stride,
            [[keys.prompt_at(time) for time in keys.times.tolist()]],
            sampling=self.config.interp,
            generator=torch.Generator().manual_seed((plan.seed + 1_000_003 * number) % 2**63),
        )
        seen = found.visibility[0].cpu().numpy()
        joints = denormalise(found.joints[0].cpu().numpy(), person.box, seen).astype(np.float32)
        return Person(joints, seen, person.box)

    def render(
        self,
        scenes: Sequence[Scene],
        seeds: Sequence[int],
        *,
        settings: RenderConfig | None = None,
        progress: Callable[[int], None] | None = None,
        on_step: Report | None = None,
        kept: Predictions | None = None,
    ) -> list[np.ndarray]:
        """Videos of dense scenes, one by one: (F, H, W, 3) uint8 at `video_fps(scene)`, F = ceil(T / frame_stride).

        Args:
            settings: instead of those of the configuration.
            progress: called with 1 after each video.
            on_step: called with (steps done, steps in all) within each video; it may raise, to stop.
            kept: what was predicted for the video before; where an edit does not reach, it is used again. The video
                is the same with and without.
        """
        settings = settings or self.config.render
        videos = []
        for scene, seed in zip(scenes, seeds, strict=True):
            prompts = [scene.prompt_at(time) for time in scene.times[:: settings.frame_stride].tolist()]
            told = prompts if scene.later else scene.prompt
            videos.append(
                self.renderer.render([scene], [told], [seed], settings, on_step=on_step, kept=kept)[0]
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
