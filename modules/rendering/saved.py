"""A renderer as a folder in the layout of diffusers: one folder a component, and `model_index.json`.

Unlike an export of stage `controlnet`, which names its base, it holds everything.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from modules.base.network import BaseNetwork, network_config
from modules.controlnet.config import ControlNetworkConfig
from modules.controlnet.network import PoseRenderer
from modules.errors import UserError
from modules.files import atomic_path, atomic_write

MODEL_INDEX = "model_index.json"
_CLASS = "PoseVideoPipeline"
_WEIGHTS = "diffusion_pytorch_model.safetensors"  # as diffusers calls it


def is_saved(directory: str | Path) -> bool:
    """Whether a folder is one of `save_renderer`."""
    return (Path(directory) / MODEL_INDEX).is_file()


def save_renderer(renderer: PoseRenderer, components: Mapping[str, nn.Module], folder: Path) -> None:
    """Write the components; diffusers' own classes with their `config.json`, so that they load alone, too."""
    base = renderer.base
    for name, module in components.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        if hasattr(module, "save_pretrained"):
            module.save_pretrained(folder / name)  # pyright: ignore[reportCallIssue]
            continue
        state = {key: value.detach().cpu().contiguous().clone() for key, value in module.state_dict().items()}
        with atomic_path(folder / name / _WEIGHTS) as path:
            save_file(state, path, metadata={"format": "pt"})
    index = {
        "_class_name": _CLASS,
        "network": dataclasses.asdict(base.export_config()),
        "controlnet": dataclasses.asdict(renderer.control.config),
        "latent_shift": base.latent_shift.tolist(),
        "latent_scale": base.latent_scale.tolist(),
    }
    with atomic_write(folder / MODEL_INDEX) as file:
        json.dump(index, file, indent=2)


def load_renderer(folder: Path) -> PoseRenderer:
    """The renderer of a folder of `save_renderer`.

    Raises:
        UserError: a file is missing or damaged, or does not fit the others.
    """
    try:
        index = json.loads((folder / MODEL_INDEX).read_text(encoding="utf-8"))
        if index.get("_class_name") != _CLASS:
            raise UserError(f"{folder} is a pipeline of class {index.get('_class_name')}, only {_CLASS} is known here")
        base = BaseNetwork(network_config(index["network"]))
        base.latent_shift.copy_(torch.tensor(index["latent_shift"]))
        base.latent_scale.copy_(torch.tensor(index["latent_scale"]))
        for name, module in (("vae", base.vae), ("text_encoder", base.text), ("unet", base.unet)):
            module.load_state_dict(load_file(folder / name / _WEIGHTS))
        base.text.load_pretrained()
        renderer = PoseRenderer(base, ControlNetworkConfig(**index["controlnet"]))
        renderer.control.load_state_dict(load_file(folder / "controlnet" / _WEIGHTS))
    except UserError:
        raise
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{folder} cannot be read as a saved renderer ({reason}); save it again") from None
    return renderer
