"""Checkpoints of the reference: any configuration, strict both ways, and nothing of a pickle but tensors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from modules.base.config import BaseNetworkConfig
from modules.base.convert import convert, convert_unet, read_checkpoint, unwrap, write_base
from modules.base.network import BaseNetwork, from_export
from modules.base.reference import TEXT, UNET, VAE, network_config_of, unet_config, unet_key, vae_key
from modules.errors import UserError
from scripts import convert as script
from tests.reference_names import random_state, unet_shapes
from tests.unit.test_videocrafter2 import tiny_clip

PARAMS: dict[str, Any] = {
    "in_channels": 4, "out_channels": 4, "model_channels": 32, "attention_resolutions": [2, 1], "num_res_blocks": 1,
    "channel_mult": [1, 2], "num_head_channels": 16, "transformer_depth": 1, "context_dim": 32, "use_linear": True,
    "use_checkpoint": True, "temporal_conv": True, "temporal_attention": True, "temporal_selfatt_only": True,
    "use_relative_position": False, "use_causal_attention": False, "temporal_length": 4, "addition_attention": True,
    "fps_cond": True,
}  # fmt: skip
CONFIG: dict[str, Any] = {
    "linear_start": 0.00085, "linear_end": 0.012, "timesteps": 1000, "image_size": [8, 8], "use_scale": True,
    "scale_b": 0.7, "scale_factor": 0.18215,
    "unet_config": {"params": PARAMS},
    "first_stage_config": {"params": {"embed_dim": 4, "ddconfig": {
        "double_z": True, "z_channels": 4, "in_channels": 3, "out_ch": 3, "ch": 32, "ch_mult": [1, 2],
        "num_res_blocks": 1, "attn_resolutions": [],
    }}},
    "cond_stage_config": {"params": {"layer": "penultimate", "arch": "golden-text"}},
}  # fmt: skip

OTHERS = {
    "three levels, attention in the middle ones": {
        "channel_mult": [1, 2, 4], "num_res_blocks": 2, "attention_resolutions": [4, 2]
    },
    "one level": {"channel_mult": [1], "attention_resolutions": [1]},
    "no fps, no init attention": {"fps_cond": False, "addition_attention": False},
    "no temporal convolutions": {"temporal_conv": False},
    "no temporal attention": {"temporal_attention": False},
    "deeper, with convolutions as projections": {"transformer_depth": 2, "use_linear": False},
    "a number of heads": {"num_head_channels": -1, "num_heads": 4, "addition_attention": False},
    "attention nowhere but in the middle": {"attention_resolutions": []},
    "other channels": {"in_channels": 8, "out_channels": 6, "model_channels": 64, "context_dim": 48},
}  # fmt: skip


@pytest.mark.parametrize("change", OTHERS.values(), ids=OTHERS)
@torch.no_grad()
def test_any_configuration(change: dict[str, Any]) -> None:
    params = {**PARAMS, **change}
    state = random_state(unet_shapes(params), UNET)
    unet = convert_unet(state, params).eval()
    config = unet_config(params)
    for name, value in unet.state_dict().items():
        assert torch.equal(value.flatten(), state[UNET + unet_key(name, config)].flatten()), name
    x, text = torch.randn(1, params["in_channels"], 3, 8, 8), torch.randn(1, 5, params["context_dim"])
    found = unet(x, 500, text, fps=8.0)
    assert found.shape == (1, params["out_channels"], 3, 8, 8)
    assert torch.equal(found, unet(x, 500, text, fps=20.0)) == (not params["fps_cond"])
    frames = unet(x.flip(2), 500, text, fps=8.0).flip(2)  # without temporal layers, frames do not know their order
    still = not (params["temporal_conv"])
    assert torch.allclose(found, frames, atol=1e-4) == still


def test_heads_are_counted_as_the_reference_counts_them() -> None:
    params = {**PARAMS, **OTHERS["a number of heads"]}
    unet: Any = convert_unet(random_state(unet_shapes(params)), params)
    for level, width in enumerate((32, 64)):
        attention = unet.down_blocks[level].attentions[0].transformer_blocks[0].attn1
        assert (attention.heads, attention.scale) == (4, (width // 4) ** -0.5)
    assert convert_unet(random_state(unet_shapes(PARAMS)), PARAMS).transformer_in.transformer_blocks[0].attn1.heads == 8  # pyright: ignore


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"use_relative_position": True}, "use_relative_position = True, .* only False"),
        ({"temporal_selfatt_only": False}, "temporal_selfatt_only = False"),
        ({"use_scale_shift_norm": True}, "use_scale_shift_norm"),
        ({"channel_mult": [2, 4]}, "the first entry must be 1"),
        ({"num_head_channels": -1, "num_heads": 4}, "it is needed with addition_attention"),
        ({"motion_cond": True}, "motion_cond = True, .* this option is unknown"),
    ],
)
def test_what_cannot_be_converted_is_named(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        unet_config({**PARAMS, **change})
    silent = {key: value for key, value in PARAMS.items() if key != "use_relative_position"}
    with pytest.raises(UserError, match="use_relative_position = True"):  # the reference's own default
        unet_config(silent)


def test_it_is_strict_both_ways() -> None:
    state = random_state(unet_shapes(PARAMS))
    state["input_blocks.9.0.weight"] = torch.zeros(2)
    del state["out.2.bias"]
    state["out.2.weight"] = torch.zeros(4, 32, 1, 1)
    with pytest.raises(UserError) as raised:
        convert_unet(state, PARAMS)
    text = str(raised.value)
    assert "1 missing: out.2.bias" in text
    assert "1 left over: input_blocks.9.0.weight" in text
    assert "1 misshapen: out.2.weight (4, 32, 1, 1) for (4, 32, 3, 3)" in text


@pytest.fixture
def checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """A whole checkpoint with the reference's names; the tiny text tower is known to open_clip."""
    tiny_clip(tmp_path, {"width": 32, "heads": 2, "layers": 2}, 16, monkeypatch)
    state = random_state(unet_shapes(PARAMS), UNET)
    config: BaseNetworkConfig = network_config_of(CONFIG)
    torch.manual_seed(0)
    network = BaseNetwork(config)
    for name, value in network.vae.state_dict().items():
        matrix = "mid_block.attentions" in name and value.ndim == 2
        state[VAE + vae_key(name, config.vae)] = value[..., None, None] if matrix else value
    state |= {TEXT + name: value for name, value in network.text.tower.state_dict().items()}
    state[f"{TEXT}logit_scale"] = torch.tensor(1.0)
    state["scale_arr"] = torch.cat([torch.linspace(1, 0.7, 400), torch.full((1000,), 0.7)])
    state["alphas_cumprod"] = network.schedule.signal.square()
    state["posterior_variance"] = torch.zeros(1000)
    return state


def test_the_whole_checkpoint(checkpoint: dict[str, Tensor], tmp_path: Path) -> None:
    network = convert(checkpoint, {"model": {"params": CONFIG}}).eval()
    assert (network.config.width, network.config.num_frames, network.config.schedule.rescale) == (16, 4, True)
    torch.testing.assert_close(network.latent_scale, torch.full((4,), 0.18215))
    assert torch.equal(network.text.tower.ln_final.bias, checkpoint[f"{TEXT}ln_final.bias"])
    key = "decoder.up.0.block.0.conv1.weight"
    assert torch.equal(network.vae.state_dict()["decoder.up_blocks.1.resnets.0.conv1.weight"], checkpoint[VAE + key])
    write_base(network, tmp_path / "base", {})
    loaded = from_export(tmp_path / "base").eval()
    latents, text = torch.randn(1, 4, 4, 8, 8), network.encode_text(["a person"])
    with torch.no_grad():
        torch.testing.assert_close(
            loaded(latents, torch.tensor(9), text, torch.tensor([8.0])),
            network(latents, torch.tensor(9), text, torch.tensor([8.0])), atol=2e-2, rtol=2e-2,
        )  # fmt: skip


def test_errors_of_the_whole_checkpoint(checkpoint: dict[str, Tensor]) -> None:
    with pytest.raises(UserError, match=r"no part that is known: 1 left over: control_model.x"):
        convert({**checkpoint, "control_model.x": torch.zeros(1)}, CONFIG)
    lacking = {name: value for name, value in checkpoint.items() if name != f"{TEXT}ln_final.bias"}
    with pytest.raises(UserError, match=r"text tower: .* 1 missing: ln_final.bias"):
        convert(lacking, CONFIG)
    with pytest.raises(UserError, match="scale_arr is not that of its configuration"):
        convert(checkpoint, {**CONFIG, "use_scale": False})
    with pytest.raises(UserError, match="this is no configuration of VideoCrafter2"):
        convert(checkpoint, {"model": {}})
    changed = copy.deepcopy(CONFIG)
    changed["first_stage_config"]["params"]["ddconfig"]["attn_resolutions"] = [16]
    with pytest.raises(UserError, match="attn_resolutions"):
        convert(checkpoint, changed)


@pytest.mark.parametrize("kind", ["bare", "lightning", "deepspeed", "safetensors"])
def test_wrappings(kind: str, tmp_path: Path) -> None:
    state = {"model.diffusion_model.out.2.bias": torch.ones(4), "betas": torch.ones(2)}
    path = tmp_path / f"model.{'safetensors' if kind == 'safetensors' else 'ckpt'}"
    if kind == "safetensors":
        save_file(state, path)
    else:
        inner = {f"_forward_module.{name}": value for name, value in state.items()}
        content = {"bare": state, "lightning": {"state_dict": state, "epoch": 3}, "deepspeed": {"module": inner}}[kind]
        torch.save(content, path)
    found = read_checkpoint(path)
    assert {name: value.tolist() for name, value in found.items()} == {n: v.tolist() for n, v in state.items()}


def test_unreadable_checkpoints(tmp_path: Path) -> None:
    torch.save({"state_dict": {"a": torch.ones(1)}, "callback": Path("x")}, tmp_path / "unsafe.ckpt")
    with pytest.raises(UserError, match="holds more than tensors .*pathlib.* can run code"):
        read_checkpoint(tmp_path / "unsafe.ckpt")
    (tmp_path / "cut.ckpt").write_bytes(b"PK\x03\x04 not a checkpoint")
    with pytest.raises(UserError, match="cannot be read as a checkpoint"):
        read_checkpoint(tmp_path / "cut.ckpt")
    with pytest.raises(UserError, match="does not exist"):
        read_checkpoint(tmp_path / "none.ckpt")
    with pytest.raises(UserError, match="holds no weights"):
        unwrap({"epoch": 3})


def test_the_command(checkpoint: dict[str, Tensor], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"state_dict": checkpoint}, tmp_path / "model.ckpt")
    (tmp_path / "config.json").write_text(json.dumps({"model": {"params": CONFIG}}))
    arguments = [f"checkpoint={tmp_path}/model.ckpt", f"config={tmp_path}/config.json", f"out={tmp_path}/base"]
    script.main(arguments)
    assert "weights" in capsys.readouterr().out
    assert from_export(tmp_path / "base").config.width == 16
    with pytest.raises(UserError, match="overwrite=true"):
        script.main(arguments)
