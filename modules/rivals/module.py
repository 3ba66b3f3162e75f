"""Training of the rivals."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from modules.checkpoint import save_export
from modules.errors import UserError
from modules.optim import build_optimizer
from modules.pose.draw import pose_strip, with_label
from modules.pose.scene import Clip
from modules.rivals.config import RivalsConfig
from modules.rivals.data import Encode, collate
from modules.rivals.diffusion import DiffusionRival
from modules.rivals.network import build, from_plain

_FIT_CLIPS = 300  # clips from which the scale of the motion is fitted


class RivalsModule(L.LightningModule):
    """Text to dense poses without the chain, by diffusion or by an autoregressive transformer."""

    monitor = ("val/loss", "min")
    columns: tuple[str, ...] = ("pose",)

    def __init__(self, config: dict[str, Any] | RivalsConfig, max_steps: int) -> None:
        super().__init__()
        self.config = copy.deepcopy(config) if isinstance(config, RivalsConfig) else from_plain(copy.deepcopy(config))
        self.max_steps = max_steps
        self.save_hyperparameters({"config": dataclasses.asdict(self.config), "max_steps": max_steps})
        self.network = build(self.config)
        self.encode, self.collate = Encode(self.config.network), collate

    def setup_data(self, clips: Callable[[], Iterable[Clip]]) -> None:
        """The vocabulary of the captions, the canvas of the first clip, and the scale of the motion."""
        captions: list[str] = []
        items: list[dict[str, Any]] = []
        for clip in clips():
            if not captions:
                self.network.canvas.copy_(torch.tensor([clip.scene.width, clip.scene.height]))
            captions.append(clip.caption)
            if len(items) < _FIT_CLIPS:
                items += self.encode(clip, np.random.default_rng(0), False)
        self.network.text.fit_vocabulary(captions)
        if not items:
            raise UserError(f"no clip has 1 to {self.config.network.max_people} people; raise network.max_people")
        if isinstance(self.network, DiffusionRival):
            self.network.fit_scale(collate(items))

    def setup(self, stage: str) -> None:
        self.network.text.load_pretrained()

    def model_step(self, batch: dict[str, Any], generator: torch.Generator | None = None) -> dict[str, Tensor]:
        """All losses, and their sum as "loss"."""
        found = self.network.losses(batch, generator)  # type: ignore[operator]
        return found | {"loss": found["motion"] + found["people"] + found["keys"]}

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        found = self.model_step(batch)
        self.log_dict({f"train/{name}": value for name, value in found.items()}, batch_size=len(batch["captions"]))
        return found["loss"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        found = self.model_step(batch, torch.Generator().manual_seed(batch_idx))
        values = {f"val/{name}": value for name, value in found.items()}
        self.log_dict(values, batch_size=len(batch["captions"]), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.network.named_parameters(), self.config.optim, self.max_steps)

    def sample_images(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """What it makes of the first caption, as a strip."""
        scenes = self.network.generate(batch["captions"][:1], [0])  # type: ignore[operator]
        return {"poses": with_label(pose_strip(scenes[0]), batch["captions"][0])} if scenes[0].persons else {}

    def export(self, directory: Path, info: dict[str, Any]) -> None:
        network = dataclasses.replace(self.config.network, text=self.network.text.export_config())
        config = dataclasses.asdict(dataclasses.replace(self.config, network=network))
        save_export(directory, stage="rivals", config=config, state=self.network.state_dict(), info=info)
