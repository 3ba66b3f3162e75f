"""VideoCrafter2's checkpoint to the networks of this project: UNet, autoencoder and text tower.

Strict both ways: a weight that is missing, left over or of another shape is an error that lists it. Of a pickle, only
tensors and plain containers are read.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from modules.base.config import BaseNetworkConfig, VAEConfig
from modules.base.network import SCALE_FACTOR, BaseNetwork, build_vae, write_sums
from modules.base.reference import TEXT, UNET, VAE, network_config_of, unet_config, unet_key, vae_config, vae_key
from modules.checkpoint import WEIGHTS_FILE, save_export
from modules.controlnet.config import ScheduleConfig
from modules.controlnet.scheduler import NoiseSchedule
from modules.controlnet.unet import VideoUNet
from modules.errors import UserError

_LISTED = 8  # keys of each kind in a message
_WRAPPERS = ("_forward_module.", "module.")  # of DeepSpeed and DistributedDataParallel
# Tables that follow from the schedule; those below are compared, the rest is made of the first.
_TABLES = {
    "betas", "alphas_cumprod", "alphas_cumprod_prev", "sqrt_alphas_cumprod", "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod", "posterior_variance",
    "posterior_log_variance_clipped", "posterior_mean_coef1", "posterior_mean_coef2", "lvlb_weights", "logvar",
    "scale_arr", "scale_arr_prev", "scale_factor",
}  # fmt: skip
_NOT_OF_THE_TOWER = {f"{TEXT}logit_scale", f"{TEXT}attn_mask"}


def read_checkpoint(path: str | Path) -> dict[str, Tensor]:
    """All tensors of a checkpoint by the reference's names, without the wrappers around them.

    Knows `{"state_dict": ...}` (Lightning), `{"module": ...}` with `_forward_module.` (DeepSpeed), a bare state dict,
    and safetensors.

    Raises:
        UserError: no such file, no checkpoint, or a pickle that holds more than tensors.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist: name VideoCrafter2's checkpoint (model.ckpt), or a .safetensors")
    try:
        content: Any
        if path.suffix == ".safetensors":
            content = load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, SafetensorError, *_UNPICKLING) as error:
        reason = str(error).strip().splitlines()[0] if "weights_only" not in str(error) else _unsafe(str(error))
        raise UserError(f"{path} cannot be read as a checkpoint: {reason}") from None
    return unwrap(content)


_UNPICKLING = (  # what torch raises where it refuses, or stumbles over, a pickle
    torch.serialization.pickle.UnpicklingError, KeyError, AttributeError, UnicodeDecodeError,  # pyright: ignore
)  # fmt: skip


def _unsafe(message: str) -> str:
    """What torch says of a pickle that it refuses, without its advice to trust the file."""
    what = next((line.strip() for line in message.splitlines() if "GLOBAL" in line or "Unsupported" in line), "")
    what = what.removeprefix("WeightsUnpickler error: ").split(" was not an allowed")[0].split(". Please")[0]
    return (
        f"it is a pickle that holds more than tensors ({what or 'other objects'}), and such objects can run code; "
        "save its state_dict alone, best as .safetensors"
    )


def unwrap(content: Any) -> dict[str, Tensor]:
    """The state dict within what a checkpoint holds.

    Raises:
        UserError: there is none.
    """
    for outer in ("module", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(outer), Mapping):
            content = content[outer]
    if not isinstance(content, Mapping) or not any(isinstance(value, Tensor) for value in content.values()):
        raise UserError("the checkpoint holds no weights: neither a state_dict nor DeepSpeed's module is in it")
    state = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    for wrapper in _WRAPPERS:
        if all(name.startswith(wrapper) for name in state):
            state = {name.removeprefix(wrapper): value for name, value in state.items()}
    return state


def read_config(path: str | Path) -> dict[str, Any]:
    """A configuration of the reference, YAML or JSON.

    Raises:
        UserError: it cannot be read.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
        content = json.loads(text) if str(path).endswith(".json") else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise UserError(f"{path} cannot be read ({error}); give the checkpoint's own YAML or JSON") from None
    if not isinstance(content, dict):
        raise UserError(f"{path} is no configuration: it holds {type(content).__name__}, not key: value")
    return content


def under(state: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The weights below a prefix, without it; all of them where nothing has a prefix of the whole checkpoint."""
    if not any(name.startswith((UNET, VAE, TEXT)) for name in state):
        return dict(state)
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def load_renamed(
    network: nn.Module, state: Mapping[str, Tensor], key_of: Callable[[str], str], what: str
) -> None:
    """Load weights in the reference's names into a network, all of them and nothing else.

    A projection may be a 1 x 1 convolution there and a matrix here. A network on the meta device is compared alone.

    Args:
        key_of: a weight's name here to its name there.

    Raises:
        UserError: lists what is missing, left over or of another shape.
    """
    wanted, found, misshapen = network.state_dict(), {}, []
    names = {name: key_of(name) for name in wanted}
    assert len(set(names.values())) == len(names)
    for name, value in wanted.items():
        given = state.get(names[name])
        if given is None:
            continue
        # Kernels of one place: (out, in, 1) or (out, in, 1, 1) for (out, in).
        plain = given.reshape(given.shape[:2]) if given.ndim > 2 == value.ndim and given[0, 0].numel() == 1 else given
        if plain.shape != value.shape:
            misshapen.append(f"{names[name]} {tuple(given.shape)} for {tuple(value.shape)}")
        found[name] = plain
    missing = [key for key in names.values() if key not in state]
    surplus = sorted(state.keys() - names.values())
    if missing or surplus or misshapen:
        raise UserError(
            f"{what}: the checkpoint does not fit its configuration: "
            + "; ".join(_tell(kind, keys) for kind, keys in
                        (("missing", missing), ("left over", surplus), ("misshapen", misshapen)) if keys)
        )  # fmt: skip
    if not any(value.is_meta for value in wanted.values()):
        network.load_state_dict(found)


def _tell(kind: str, keys: Iterable[str]) -> str:
    keys = list(keys)
    more = f", and {len(keys) - _LISTED} more" if len(keys) > _LISTED else ""
    return f"{len(keys)} {kind}: {', '.join(keys[:_LISTED])}{more}"


def convert_unet(state: Mapping[str, Tensor], params: dict[str, Any]) -> VideoUNet:
    """The UNet of any state dict and configuration (`unet_config.params`) of the reference.

    Args:
        state: with or without the prefix `model.diffusion_model.`.

    Raises:
        UserError: the configuration cannot be converted, or the weights do not fit it.
    """
    config = unet_config(params)
    arguments = config.arguments(latent_channels=params["in_channels"], text_width=params["context_dim"])
    unet = VideoUNet(**{**arguments, "out_channels": params["out_channels"]})
    load_renamed(unet, under(state, UNET), lambda name: unet_key(name, config), "UNet")
    return unet


def convert_vae(state: Mapping[str, Tensor], params: dict[str, Any]) -> nn.Module:
    """diffusers' AutoencoderKL of any state dict and configuration (`first_stage_config.params`) of the reference."""
    config: VAEConfig = vae_config(params)
    vae = build_vae(config)
    load_renamed(vae, under(state, VAE), lambda name: vae_key(name, config), "autoencoder")
    return vae


def load_text(tower: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load the text tower of the reference, whose names are open_clip's."""
    rest = {name: value for name, value in state.items() if name not in _NOT_OF_THE_TOWER}
    load_renamed(tower, under(rest, TEXT), lambda name: name, "text tower")


def convert(state: Mapping[str, Tensor], config: dict[str, Any]) -> BaseNetwork:
    """The whole text-to-video network of any checkpoint and configuration of the reference.

    Args:
        state: see `read_checkpoint`.
        config: see `read_config`.

    Raises:
        UserError: the configuration cannot be converted, or any weight is missing, left over or misshapen.
    """
    params = config.get("model", {}).get("params", config)
    return convert_to(state, network_config_of(config), scale_factor=params.get("scale_factor", 1.0))


def convert_to(
    state: Mapping[str, Tensor], config: BaseNetworkConfig, *, scale_factor: float = SCALE_FACTOR
) -> BaseNetwork:
    """The network of a configuration of ours with the weights of the reference."""
    unknown = [name for name in state if not name.startswith((UNET, VAE, TEXT)) and name not in _TABLES]
    if unknown:
        raise UserError(f"the checkpoint has weights of no part that is known: {_tell('left over', unknown)}")
    network = BaseNetwork(config)
    load_renamed(network.unet, under(state, UNET), lambda name: unet_key(name, config.unet), "UNet")
    load_renamed(network.vae, under(state, VAE), lambda name: vae_key(name, config.vae), "autoencoder")
    load_text(network.text.tower, state)
    check_schedule(state, config.schedule)
    if not network.latent_scale.is_meta:
        network.latent_scale.fill_(float(state.get("scale_factor", scale_factor)))
    return network


def check_schedule(state: Mapping[str, Tensor], config: ScheduleConfig) -> None:
    """Compare the tables that a checkpoint may hold with those of the configuration.

    Raises:
        UserError: they differ.
    """
    schedule = NoiseSchedule(config)
    ours = {"alphas_cumprod": schedule.signal.square(), "scale_arr": schedule.scale}
    for name, table in ours.items():
        given = state.get(name, table)
        if not given.is_meta and not torch.allclose(given[: len(table)].float(), table, atol=1e-5):
            raise UserError(f"the checkpoint's {name} is not that of its configuration: name the configuration it has")


def write_base(network: BaseNetwork, directory: str | Path, info: dict[str, Any]) -> None:
    """An export of stage `base`, as the ControlNet's training and the chain read it; weights at half precision."""
    full = network.state_dict()
    state = {name: value.half() if value.is_floating_point() else value for name, value in full.items()}
    save_export(
        directory, stage="base", config={"network": dataclasses.asdict(network.export_config())}, state=state,
        info=info, extra=lambda folder: write_sums(folder, [WEIGHTS_FILE]),
    )  # fmt: skip
