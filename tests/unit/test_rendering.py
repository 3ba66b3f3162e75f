"""The renderer as a pipeline: settings of control and memory, long videos, saving, and AnimateDiff beside it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modules.controlnet.config import AnimateDiffConfig, RenderConfig
from modules.controlnet.data import draw_hint
from modules.controlnet.sampler import Control, initial_noise, windows
from modules.errors import UserError
from modules.pipeline import Exports, Pipeline, PipelineConfig
from modules.pose.scene import Scene
from modules.rendering.animatediff import AnimateDiffRenderer
from modules.rendering.pipeline import PoseVideoPipeline
from tests.unit.test_controlnet import moving, tiny_renderer
from tests.unit.test_unet import tiny_base

SETTINGS = RenderConfig(frame_stride=5, steps=4, guidance_scale=2.0, device="cpu")


@pytest.fixture
def scene(make_scene: Callable[..., Scene]) -> Scene:
    return make_scene(width=16, height=16, frames=30)


def tiny_pipeline(**changes: Any) -> PoseVideoPipeline:
    return PoseVideoPipeline(moving(tiny_renderer(**changes)))


def draw(pipe: PoseVideoPipeline, scene: Scene, **changes: Any) -> np.ndarray:
    return pipe.render([scene], ["two people"], [2], RenderConfig(**{**vars(SETTINGS), **changes}))[0]


def test_control_acts_between_start_and_end(scene: Scene) -> None:
    acting = Control(None, torch.zeros(0), 1.0, 0.25, 0.75)  # pyright: ignore[reportArgumentType]
    assert [acting.acts(step, 8) for step in range(8)] == [False] * 2 + [True] * 4 + [False] * 2
    pipe = tiny_pipeline()
    whole, off = draw(pipe, scene), draw(pipe, scene, control_scale=0.0)
    assert not np.array_equal(whole, off)
    assert np.array_equal(draw(pipe, scene, control_end=0.0), off)
    assert np.array_equal(draw(pipe, scene, control_start=1.0), off)
    half = draw(pipe, scene, control_end=0.5)
    assert not np.array_equal(half, off)
    assert not np.array_equal(half, whole)
    with pytest.raises(UserError, match="control_start is 0.6 and control_end 0.5"):
        RenderConfig(control_start=0.6, control_end=0.5)


def test_boxes_are_drawn_where_they_are_asked_for(scene: Scene) -> None:
    plain, boxed = draw_hint(scene, [0, 3], (64, 64)), draw_hint(scene, [0, 3], (64, 64), boxes=True)
    assert (plain != boxed).any((1, 2, 3)).all()
    assert torch.equal(tiny_renderer().hints([scene], [[0]]), tiny_renderer().hints([scene], [[0]]))
    assert not torch.equal(tiny_renderer().hints([scene], [[0]]), tiny_renderer(hint_boxes=True).hints([scene], [[0]]))


def test_slicing_changes_nothing_and_tiling_little(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = tiny_pipeline()
    whole = draw(pipe, scene).astype(int)
    pipe.enable_vae_slicing()
    assert pipe.base.frames_at_once == 1
    assert np.abs(draw(pipe, scene) - whole).max() <= 1
    latents = torch.randn(1, 4, 2, 16, 16)
    expected = pipe.base.decode_latents(latents)
    monkeypatch.setattr("modules.rendering.pipeline._TILE", 32)
    pipe.enable_vae_tiling()
    tiled = pipe.base.decode_latents(latents)
    assert tiled.shape == expected.shape
    error = (tiled - expected).square().mean() / expected.var()
    assert 0 < error < 0.2  # the norms see a tile, not the frame


def test_offload_gives_the_same_video_and_takes_parts_in_turn(scene: Scene) -> None:
    pipe = tiny_pipeline()
    whole = draw(pipe, scene)
    pipe.enable_model_cpu_offload("cpu")
    for module in (pipe.base.text, pipe.base.unet, pipe.renderer.control, pipe.base.vae):
        assert hasattr(module, "_hf_hook")
    before_vae = pipe.base.vae._hf_hook.prev_module_hook.model
    assert set(before_vae.children()) == {pipe.base.unet, pipe.renderer.control}
    assert np.array_equal(draw(pipe, scene), whole)
    pipe.enable_model_cpu_offload("cpu")  # once is enough
    assert np.array_equal(draw(pipe, scene, offload=True), whole)


def test_later_windows_share_the_first_ones_noise() -> None:
    noise = initial_noise([3], 4, 11, (2, 2), shared=4)[0]
    frames = [noise[:, index] for index in range(11)]
    for start in (4, 8):
        block = frames[start : start + 4]
        assert all(any(torch.equal(frame, first) for first in frames[:4]) for frame in block)
    assert torch.equal(noise[:, :4], initial_noise([3], 4, 4, (2, 2))[0])
    assert torch.equal(noise, initial_noise([3], 4, 20, (2, 2), shared=4)[0][:, :11])
    assert windows(16, 8, 0.0) == [range(0, 8), range(8, 16)]
    assert windows(20, 8, 0.75)[:3] == [range(0, 8), range(2, 10), range(4, 12)]


def test_a_saved_pipeline_is_the_same(scene: Scene, tmp_path: Path) -> None:
    pipe = tiny_pipeline()
    pipe.save_pretrained(tmp_path / "saved")
    loaded = PoseVideoPipeline.from_pretrained(tmp_path / "saved")
    assert np.array_equal(draw(loaded, scene), draw(pipe, scene))
    found = loaded(
        "two people", scene, seed=2, frame_stride=5, num_inference_steps=4, guidance_scale=2.0,
        controlnet_conditioning_scale=1.0,
    )  # fmt: skip
    assert found.fps == 6
    assert np.array_equal(found.frames[0], draw(pipe, scene))
    both = loaded(["two people"] * 2, [scene] * 2, frame_stride=5, num_inference_steps=2, guidance_scale=1.0)
    assert both.frames.shape == (2, 6, 16, 16, 3)
    # The chain takes such a folder in the place of an export.
    config = PipelineConfig(Exports(controlnet=str(tmp_path / "saved")), render=SETTINGS)
    chain = Pipeline.from_exports(config, stages=["controlnet"])
    assert np.array_equal(chain.render([scene], [2])[0].shape, found.frames[0].shape)
    (tmp_path / "saved/unet/diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(UserError, match="cannot be read as a saved renderer"):
        PoseVideoPipeline.from_pretrained(tmp_path / "saved")
    index = tmp_path / "saved/model_index.json"
    index.write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    with pytest.raises(UserError, match="pipeline of class StableDiffusionPipeline"):
        PoseVideoPipeline.from_pretrained(tmp_path / "saved")


def test_a_base_at_half_precision_draws_nearly_the_same(scene: Scene) -> None:
    pipe = tiny_pipeline()
    whole = draw(pipe, scene).astype(int)
    pipe.base.set_precision(torch.bfloat16)
    assert {parameter.dtype for parameter in pipe.renderer.control.parameters()} == {torch.float32}
    difference = np.abs(draw(pipe, scene) - whole)
    assert 0 < difference.mean() < 8


# AnimateDiff


def tiny_animatediff(folder: Path) -> AnimateDiffConfig:
    """A Stable Diffusion, a motion adapter and a ControlNet with random weights, as folders in the hub's layout."""
    from diffusers import (
        AutoencoderKL,
        ControlNetModel,
        DDIMScheduler,
        MotionAdapter,
        StableDiffusionPipeline,
        UNet2DConditionModel,
    )
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

    torch.manual_seed(0)
    shape: dict[str, Any] = {
        "block_out_channels": (8, 8), "layers_per_block": 1, "cross_attention_dim": 16, "norm_num_groups": 4,
        "attention_head_dim": 4, "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    }  # fmt: skip
    unet = UNet2DConditionModel(sample_size=8, up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), **shape)
    control = ControlNetModel(conditioning_embedding_out_channels=(8, 8), **shape)
    for parameter in control.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.1)
    adapter = MotionAdapter(
        block_out_channels=(8, 8), motion_layers_per_block=1, motion_norm_num_groups=4, motion_num_attention_heads=2,
        motion_max_seq_length=8,
    )  # fmt: skip
    vae = AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
    )  # fmt: skip
    letters = [chr(code) for code in range(33, 127)]
    words = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
    (folder / "vocab.json").write_text(json.dumps({word: index for index, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=77)
    text = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(words), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=77, bos_token_id=0, eos_token_id=1,
        )
    )  # fmt: skip
    pipe = StableDiffusionPipeline(
        vae=vae, text_encoder=text, tokenizer=tokenizer, unet=unet, scheduler=DDIMScheduler(), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # pyright: ignore  # fmt: skip
    config = AnimateDiffConfig(str(folder / "base"), str(folder / "motion"), str(folder / "pose"), window=4)
    pipe.save_pretrained(config.base)
    adapter.save_pretrained(config.motion_adapter)
    control.save_pretrained(config.controlnet)
    return config


def test_animatediff_draws_the_directors_poses(scene: Scene, tmp_path: Path) -> None:
    config = PipelineConfig(width=32, height=16, backend="animatediff", animatediff=tiny_animatediff(tmp_path))
    config.render = RenderConfig(frame_stride=10, steps=2, guidance_scale=2.0, device="cpu")
    chain = Pipeline.from_exports(config, stages=["controlnet"])  # no export of ours is needed
    assert isinstance(chain.renderer, AnimateDiffRenderer)
    steps: list[tuple[int, int]] = []
    (video,) = chain.render([scene], [1], on_step=lambda *step: steps.append(step))
    assert (video.shape, video.dtype) == ((3, 16, 32, 3), np.uint8)
    assert steps == [(1, 2), (2, 2)]
    assert np.array_equal(chain.render([scene], [1])[0], video)
    assert not np.array_equal(chain.render([scene], [2])[0], video)
    config.render.control_scale = 0.0
    assert not np.array_equal(chain.render([scene], [1])[0], video)  # the poses count
    config.render.frame_stride, config.render.shared_noise = 5, True
    scene.later = ((0.6, "A man claps."),)
    assert chain.render([scene], [1])[0].shape == (6, 16, 32, 3)  # longer than the window of 4


def test_animatediff_says_what_is_missing(tmp_path: Path) -> None:
    config = AnimateDiffConfig(motion_adapter=str(tmp_path / "nothing"))
    with pytest.raises(UserError, match="AnimateDiff: .*nothing cannot be loaded .*download=true"):
        AnimateDiffRenderer.from_pretrained(config, 512, 512)
    with pytest.raises(UserError, match="pipeline.backend is 'sora'"):
        PipelineConfig(backend="sora")
    assert tiny_base().frames_at_once > 1
