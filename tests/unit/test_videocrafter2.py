"""The networks are VideoCrafter2's: outputs of the reference with random weights, and its full configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from modules.base.convert import convert_unet, convert_vae, load_text
from modules.base.reference import TEXT, VAE, network_config_of, schedule_config, unet_config, unet_key
from modules.controlnet.config import ScheduleConfig
from modules.controlnet.scheduler import NoiseSchedule
from modules.controlnet.unet import ControlResiduals, VideoUNet
from modules.text import TextConfig, TextEncoder
from tests.reference_names import unet_shapes


@pytest.fixture
def golden(shared_dir: Path) -> Path:
    folder = shared_dir / "golden/videocrafter2"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there: it holds outputs of the reference")
    return folder


def read(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / f"{name}.json").read_text())


def worst(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max())


@torch.no_grad()
def test_unet_is_the_references(golden: Path) -> None:
    params = read(golden, "golden_A")["unet_config_params"]
    unet = convert_unet(load_file(golden / "golden_A.weights.safetensors"), params).eval()
    io, control = load_file(golden / "golden_A.io.safetensors"), load_file(golden / "golden_A.control.safetensors")
    x, timesteps, context = io["x"], io["timesteps"], io["context"]
    assert worst(unet(x, timesteps, context, fps=io["fps"]), io["out"]) <= 1e-5
    assert worst(unet(x, timesteps, context), io["out_default_fps16"]) <= 1e-5
    down = [control[f"down.{index:02d}"].float() for index in range(4)]
    residuals = ControlResiduals(down, control["mid"].float())
    assert worst(unet(x, timesteps, context, fps=io["fps"], control=residuals), control["out_control"]) <= 1e-5
    assert worst(io["out"], control["out_control"]) > 1e-3  # they do something
    assert worst(unet.double()(x.double(), timesteps, context.double(), fps=io["fps"]), io["out_fp64"]) <= 1e-9


@torch.no_grad()
def test_a_saved_unet_is_the_same(golden: Path, tmp_path: Path) -> None:
    params = read(golden, "golden_A")["unet_config_params"]
    unet = convert_unet(load_file(golden / "golden_A.weights.safetensors"), params).eval()
    unet.save_pretrained(tmp_path)
    loaded = VideoUNet.from_pretrained(tmp_path)
    io = load_file(golden / "golden_A.io.safetensors")
    inputs = (io["x"], io["timesteps"], io["context"], io["fps"])
    assert torch.equal(loaded(*inputs), unet(*inputs))


@torch.no_grad()
def test_autoencoder_is_the_references(golden: Path) -> None:
    tensors = load_file(golden / "golden_vae.safetensors")
    vae: Any = convert_vae(stored(tensors, VAE), read(golden, "golden_vae")).eval()
    assert worst(vae.encode(tensors["image"]).latent_dist.mode(), tensors["latent_mode"]) <= 1e-5
    assert worst(vae.decode(tensors["latent_mode"]).sample, tensors["decoded_from_latent_mode"]) <= 1e-5


def stored(tensors: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    found = {name.removeprefix("sd."): value for name, value in tensors.items() if name.startswith("sd.")}
    return {name: value for name, value in found.items() if name.startswith(prefix)}


def tiny_clip(folder: Path, values: dict[str, Any], embed: int, monkeypatch: pytest.MonkeyPatch) -> str:
    """Make a text tower of the given sizes known to open_clip; its name."""
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIG_PATHS", [*open_clip.factory._MODEL_CONFIG_PATHS])
    monkeypatch.setattr(open_clip.factory, "_MODEL_CONFIGS", {**open_clip.factory._MODEL_CONFIGS})
    text = {"context_length": 77, "vocab_size": 49408, **{key: values[key] for key in ("width", "heads", "layers")}}
    vision = {"image_size": 32, "layers": 1, "width": 32, "patch_size": 16}
    path = folder / "golden-text.json"
    path.write_text(json.dumps({"embed_dim": embed, "vision_cfg": vision, "text_cfg": text}))
    open_clip.add_model_config(path)
    return "golden-text"


@torch.no_grad()
def test_text_is_the_references(golden: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    values, tensors = read(golden, "golden_text"), load_file(golden / "golden_text.safetensors")
    state = stored(tensors, TEXT)
    rows = tensors["token_embedding.row_ids"]
    table = torch.zeros(values["vocab"], values["width"])  # the file has the rows that these prompts use
    table[rows] = tensors["token_embedding.rows"]
    state[f"{TEXT}token_embedding.weight"] = table
    name = tiny_clip(tmp_path, values, state[f"{TEXT}text_projection"].shape[1], monkeypatch)
    text = TextEncoder(TextConfig(model=name, trainable=False, layer="penultimate"))
    load_text(text.tower, state)
    assert torch.equal(text.tokenize(values["prompts"]), tensors["token_ids"])
    assert worst(text(values["prompts"]).tokens, tensors["z"]) <= 1e-5


SCHEDULE = {"timesteps": 1000, "linear_start": 0.00085, "linear_end": 0.012, "scale_b": 0.7}


def test_schedule_is_the_references(golden: Path) -> None:
    tensors = load_file(golden / "golden_ddim.safetensors")
    schedule = NoiseSchedule(schedule_config({**SCHEDULE, "use_scale": True}))
    assert worst(schedule.signal.square(), tensors["alphas_cumprod"]) <= 1e-6
    assert worst(schedule.scale, tensors["scale_arr"][:1000]) <= 1e-6
    for steps in (10, 20, 25, 50, 100):
        assert schedule.timesteps(steps) == [t + 1 for t in range(0, 1000, 1000 // steps)][::-1]
    for steps in (1, 7, 16, 30, 999):
        assert len(set(schedule.timesteps(steps))) == steps


def test_ddim_steps_are_the_references(golden: Path) -> None:
    tensors, cases = load_file(golden / "golden_ddim.safetensors"), read(golden, "golden_ddim")["cases"]
    assert len(cases) == 28
    for case in cases:
        schedule = NoiseSchedule(schedule_config({**SCHEDULE, "use_scale": case["use_scale"]}))
        steps = schedule.timesteps(case["ddim_steps"])
        place = steps.index(case["t"])
        assert len(steps) - 1 - place == case["index"]
        after = steps[place + 1] if place + 1 < len(steps) else None
        prediction, noisy = tensors["eps"], tensors["x_t"]
        clean, _ = schedule.split(prediction, noisy, torch.tensor(case["t"]))
        expected = tensors[f"{case['key']}.pred_x0"]
        assert worst(clean, expected) <= 1e-5 * float(expected.abs().max())
        found = schedule.step(prediction, noisy, case["t"], after, case["eta"], tensors["noise"])
        assert worst(found, tensors[f"{case['key']}.x_prev"]) <= 1e-5, case["key"]


def test_noising_is_the_references(golden: Path) -> None:
    tensors = load_file(golden / "golden_ddim.safetensors")
    schedule = NoiseSchedule(ScheduleConfig())
    # The reference was given x_t as clean latents here.
    found = schedule.add_noise(tensors["x_t"], tensors["noise"], tensors["q_sample.t"])
    assert worst(found, tensors["q_sample.x_t"]) <= 1e-5


def test_fifty_steps_are_the_references(golden: Path) -> None:
    tensors = load_file(golden / "golden_ddim.safetensors")
    schedule = NoiseSchedule(ScheduleConfig())
    steps, latents = schedule.timesteps(50), tensors["x_t"]
    for timestep, after in zip(steps, [*steps[1:], None], strict=True):
        latents = schedule.step(0.7 * latents.tanh(), latents, timestep, after)
    expected = tensors["traj50.final_eps_is_0.7tanh"]
    assert worst(latents, expected) <= 1e-5 * float(expected.abs().max())


def test_the_full_configuration_has_all_keys(golden: Path) -> None:
    config = read(golden, "full_config")["vc2_params"]
    params = config["unet_config"]["params"]
    shapes = unet_shapes(params)
    known = load_file(golden / "golden_A.weights.safetensors")
    assert {name: tuple(value.shape) for name, value in known.items()} == unet_shapes(
        read(golden, "golden_A")["unet_config_params"]
    )
    with torch.device("meta"):
        unet = convert_unet({name: torch.empty(shape) for name, shape in shapes.items()}, params)
    assert len(unet.state_dict()) == len(shapes) == 1484
    assert {unet_key(name, unet_config(params)) for name in unet.state_dict()} == set(shapes)
    assert round(sum(parameter.numel() for parameter in unet.parameters()) / 1e6, 1) == 1413.3
    network = network_config_of(config)
    assert (network.width, network.height, network.num_frames) == (512, 320, 16)
    assert network.schedule == ScheduleConfig()
