"""VideoCrafter2's own configuration and key names, beside those of this project.

`unet_key`, `vae_key` and `text_key` say what the reference calls a weight of ours. They hold for every configuration
that `network_config_of` accepts; all others it refuses, naming the option.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

from modules.base.config import BaseNetworkConfig, VAEConfig
from modules.controlnet.config import ScheduleConfig, UNetConfig
from modules.errors import UserError
from modules.text import TextConfig

UNET, VAE, TEXT = "model.diffusion_model.", "first_stage_model.", "cond_stage_model.model."

# Options of the reference that change nothing of what is computed without gradients, or have one meaning here.
_WITHOUT_EFFECT = {"use_checkpoint", "use_fp16", "temporal_length", "dropout", "image_size"}
# Options with the one value that diffusers' blocks compute.
_ONE_VALUE: dict[str, Any] = {
    "dims": 2, "conv_resample": True, "use_scale_shift_norm": False, "resblock_updown": False,
    "tempspatial_aware": False, "temporal_selfatt_only": True, "use_relative_position": False,
    "use_causal_attention": False, "use_image_attention": False, "temporal_transformer_depth": 1,
}  # fmt: skip
# What the reference takes where the configuration is silent, if it is not the value above.
_REFERENCE_DEFAULTS: dict[str, Any] = {"use_relative_position": True}
_NAMED = {
    "in_channels", "out_channels", "model_channels", "attention_resolutions", "num_res_blocks", "channel_mult",
    "num_heads", "num_head_channels", "transformer_depth", "context_dim", "use_linear", "temporal_conv",
    "temporal_attention", "addition_attention", "fps_cond",
}  # fmt: skip
_VAE_FIXED: dict[str, Any] = {"double_z": True, "in_channels": 3, "out_ch": 3, "attn_resolutions": []}


def _refuse(option: str, value: Any, allowed: str) -> NoReturn:
    raise UserError(f"the checkpoint's configuration has {option} = {value!r}, which cannot be converted: {allowed}")


def unet_config(params: dict[str, Any]) -> UNetConfig:
    """Shape of the UNet from `unet_config.params` of the reference.

    Raises:
        UserError: an option that is unknown, or has a value that these blocks do not compute.
    """
    for option in params.keys() - _NAMED - _WITHOUT_EFFECT - _ONE_VALUE.keys():
        _refuse(option, params[option], "this option is unknown")
    for option, value in _ONE_VALUE.items():
        found = params.get(option, _REFERENCE_DEFAULTS.get(option, value))
        if found != value:
            _refuse(option, found, f"only {value!r} can")
    width, multiples = params["model_channels"], list(params.get("channel_mult", (1, 2, 4, 8)))
    if multiples[0] != 1:
        _refuse("channel_mult", multiples, "the first entry must be 1")
    heads, head_channels = params.get("num_heads", -1), params.get("num_head_channels", -1)
    init_attention = params.get("addition_attention", False)
    if head_channels == -1 and (heads == -1 or init_attention):
        _refuse("num_head_channels", -1, "it is needed" + (" with addition_attention" if init_attention else ""))
    resolutions = {int(factor) for factor in params["attention_resolutions"]}
    return UNetConfig(
        block_out_channels=[width * multiple for multiple in multiples],
        cross_attention=[2**level in resolutions for level in range(len(multiples))],
        layers_per_block=params["num_res_blocks"],
        attention_head_dim=head_channels if head_channels != -1 else width // heads,
        num_attention_heads=None if head_channels != -1 else heads,
        transformer_layers=params.get("transformer_depth", 1),
        linear_projection=params.get("use_linear", False),
        init_attention=init_attention,
        temporal_convs=params.get("temporal_conv", False),
        temporal_attention=params.get("temporal_attention", True),
        fps_condition=params.get("fps_cond", False),
    )


def vae_config(params: dict[str, Any]) -> VAEConfig:
    """Shape of the autoencoder from `first_stage_config.params` of the reference."""
    shape = params["ddconfig"]
    for option, value in _VAE_FIXED.items():
        if list(shape.get(option, value)) != value if option == "attn_resolutions" else shape.get(option) != value:
            _refuse(option, shape.get(option), f"only {value!r} can")
    if params["embed_dim"] != shape["z_channels"]:
        _refuse("embed_dim", params["embed_dim"], f"only that of z_channels = {shape['z_channels']} can")
    return VAEConfig(
        block_out_channels=[shape["ch"] * multiple for multiple in shape["ch_mult"]],
        layers_per_block=shape["num_res_blocks"],
        latent_channels=shape["z_channels"],
    )


def schedule_config(params: dict[str, Any]) -> ScheduleConfig:
    """Noise schedule from `model.params` of the reference."""
    for option, value in {"beta_schedule": "linear", "scale_a": 1, "v_posterior": 0.0}.items():
        if params.get(option, value) != value:
            _refuse(option, params[option], f"only {value!r} can")
    names = {"eps": "epsilon", "v": "v"}
    kind = params.get("parameterization", "eps")
    if kind not in names:
        _refuse("parameterization", kind, "only 'eps' and 'v' can")
    return ScheduleConfig(
        steps=params.get("timesteps", 1000),
        beta_start=params.get("linear_start", 1e-4),
        beta_end=params.get("linear_end", 2e-2),
        prediction=names[kind],  # pyright: ignore[reportArgumentType]
        zero_terminal_snr=params.get("rescale_betas_zero_snr", False),
        rescale=params.get("use_scale", False),
        rescale_end=params.get("scale_b", 0.7),
        rescale_steps=params.get("mid_step", 400),
    )


def network_config_of(config: dict[str, Any]) -> BaseNetworkConfig:
    """The whole network from a configuration of the reference: the content of its YAML, or `model.params` of it.

    Raises:
        UserError: a part is missing, or cannot be converted.
    """
    params = config.get("model", {}).get("params", config)
    try:
        unet, first = params["unet_config"]["params"], params["first_stage_config"]["params"]
        text = params["cond_stage_config"].get("params", {})
        vae = vae_config(first)
        for option in ("in_channels", "out_channels"):
            if unet[option] != vae.latent_channels:
                _refuse(option, unet[option], f"only z_channels = {vae.latent_channels} of the autoencoder can")
        height, width = (side * vae.factor for side in params["image_size"])
        return BaseNetworkConfig(
            width=width,
            height=height,
            num_frames=unet.get("temporal_length") or 16,
            vae=vae,
            unet=unet_config(unet),
            text=TextConfig(
                model=text.get("arch", "ViT-H-14"), trainable=False, layer=text.get("layer", "last")
            ),
            schedule=schedule_config(params),
        )
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise UserError(
            f"this is no configuration of VideoCrafter2 ({type(error).__name__}: {error}); give its YAML or JSON, "
            "which has unet_config, first_stage_config, cond_stage_config and image_size under model.params"
        ) from None


_RESNET = {
    "norm1": "in_layers.0", "conv1": "in_layers.2", "time_emb_proj": "emb_layers.1", "norm2": "out_layers.0",
    "conv2": "out_layers.3", "conv_shortcut": "skip_connection",
}  # fmt: skip
_FIRST_AND_LAST = {
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "fps_embedding.linear_1": "fps_embedding.0", "fps_embedding.linear_2": "fps_embedding.2",
    "conv_in": "input_blocks.0.0", "transformer_in": "init_attn.0", "conv_norm_out": "out.0", "conv_out": "out.2",
}  # fmt: skip


def unet_key(name: str, config: UNetConfig) -> str:
    """What the reference calls a weight of `VideoUNet`."""
    for ours, theirs in _FIRST_AND_LAST.items():
        if name.startswith(f"{ours}."):
            return theirs + name.removeprefix(ours)
    found = re.fullmatch(r"(down_blocks|up_blocks|mid_block)\.(?:(\d+)\.)?(\w+)\.(\d+)\.(.*)", name)
    assert found is not None, name
    where, level, kind, index, rest = found[1], int(found[2] or 0), found[3], int(found[4]), found[5]
    layers, levels = config.layers_per_block, len(config.block_out_channels)
    temporal = config.temporal_attention
    if where == "mid_block":
        block = "middle_block"
        places = {"resnets": (2 + temporal) * index, "attentions": 1, "temp_attentions": 2}
    else:
        number = level * (layers + 1) + index
        block = f"input_blocks.{1 + number}" if where == "down_blocks" else f"output_blocks.{number}"
        places = {"resnets": 0, "attentions": 1, "temp_attentions": 2}
    if kind == "downsamplers":
        return f"input_blocks.{(level + 1) * (layers + 1)}.0.{rest.replace('conv', 'op', 1)}"
    if kind == "upsamplers":
        attention = config.cross_attention[levels - 1 - level]
        return f"output_blocks.{level * (layers + 1) + layers}.{1 + attention * (1 + temporal)}.{rest}"
    if kind == "temp_convs":
        return f"{block}.{places['resnets']}.temopral_conv.{rest}"  # sic
    if kind == "resnets":
        part, _, last = rest.rpartition(".")
        rest = f"{_RESNET[part]}.{last}"
    return f"{block}.{places[kind]}.{rest}"


_VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def vae_key(name: str, config: VAEConfig) -> str:
    """What the reference (and Stable Diffusion) calls a weight of diffusers' `AutoencoderKL`."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    name = re.sub(
        r"mid_block\.attentions\.0\.(\w+(?:\.0)?)\.(\w+)$", lambda m: f"mid.attn_1.{_VAE_ATTENTION[m[1]]}.{m[2]}", name
    )
    name = re.sub(r"down_blocks\.(\d+)\.resnets\.(\d+)", r"down.\1.block.\2", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    last = len(config.block_out_channels) - 1
    name = re.sub(r"up_blocks\.(\d+)\.resnets\.(\d+)", lambda m: f"up.{last - int(m[1])}.block.{m[2]}", name)
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{last - int(m[1])}.upsample", name)
