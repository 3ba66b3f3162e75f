"""Training of the pose tokenizer."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from modules.checkpoint import save_export
from modules.metrics.codebook import CodebookUsage
from modules.metrics.pose import PoseError
from modules.optim import OptimConfig, build_optimizer
from modules.pose.draw import pose_strip
from modules.pose.scene import Clip, Person, Scene
from modules.vqvae.config import NetworkConfig, QuantizerConfig, VQVAEConfig
from modules.vqvae.data import Encode, collate
from modules.vqvae.losses import Losses, tokenizer_losses
from modules.vqvae.network import AutoencoderOutput, PoseTokenizer

NUM_SAMPLES = 4  # people shown
_PICTURE = 128  # px, side of a pose in the pictures


class VQVAEModule(L.LightningModule):
    """Residual VQ autoencoder of key poses; every person of a clip is a sample."""

    # Not the perplexity of a codebook, which rewards collapse.
    monitor = ("val/mpjpe", "min")
    columns: tuple[str, ...] = ("pose",)

    def __init__(self, config: dict[str, Any] | VQVAEConfig, max_steps: int) -> None:
        super().__init__()
        self.config = config if isinstance(config, VQVAEConfig) else config_from_plain(config)
        self.max_steps = max_steps
        self.save_hyperparameters({"config": dataclasses.asdict(self.config), "max_steps": max_steps})
        self.network = PoseTokenizer(self.config.network, self.config.quantizer)
        self.encode, self.collate = Encode(self.config), collate
        shape = self.config.network
        self.pose_error = PoseError(prefix="val/")
        self.usage = CodebookUsage(shape.num_quantizers, shape.codebook_size)

    def setup_data(self, clips: Callable[[], Iterable[Clip]]) -> None:
        """Nothing: the codebooks start from the first training batch."""

    def model_step(self, batch: dict[str, Tensor]) -> tuple[Tensor, Losses, AutoencoderOutput]:
        """Weighted loss (), its parts, and the reconstruction."""
        inputs = batch["poses"], batch["visibility"], batch["key_mask"]
        output = self.network(*inputs)
        parts = tokenizer_losses(output, *inputs, position=self.config.position_loss)
        loss = (
            parts.position
            + self.config.velocity_weight * parts.velocity
            + self.config.commitment_weight * parts.commitment
            + self.config.visibility_weight * parts.visibility
            + self.config.bone_weight * parts.bone
        )
        return loss, parts, output

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss, parts, _ = self.model_step(batch)
        self.log("train/loss", loss)
        self.log_dict({f"train/{field.name}": getattr(parts, field.name) for field in dataclasses.fields(parts)})
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        loss, parts, output = self.model_step(batch)
        seen = batch["visibility"] & batch["key_mask"][..., None]
        self.pose_error.update(output.poses, batch["poses"], seen, batch["boxes"])
        self.usage.update(output.codes, batch["key_mask"])
        size = len(batch["poses"])
        self.log("val/loss", loss, batch_size=size, sync_dist=True)
        self.log("val/visibility", parts.visibility, batch_size=size, sync_dist=True)

    def on_validation_epoch_end(self) -> None:
        self.log_dict(self.pose_error.compute())
        for name, value in self.usage.compute().items():
            self.log(f"codebook/{name}" if name[-1].isdigit() else f"val/{name}", value)
        self.pose_error.reset()
        self.usage.reset()

    def configure_optimizers(self) -> Any:
        def is_hidden(name: str) -> bool:
            return ".blocks." in name

        return build_optimizer(self.network.named_parameters(), self.config.optim, self.max_steps, is_hidden)

    @torch.no_grad()
    def sample_images(self, batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """The first people of a batch: true key poses above the reconstruction."""
        batch = {name: value[:NUM_SAMPLES] for name, value in batch.items()}
        output = self.network(batch["poses"], batch["visibility"], batch["key_mask"])
        images = {}
        for i, real in enumerate(batch["key_mask"]):
            strips = [
                self._strip(poses[i][real], visibility[i][real])
                for poses, visibility in ((batch["poses"], batch["visibility"]), (output.poses, output.visibility))
            ]
            images[f"person{i}"] = np.concatenate(strips)
        return images

    def _strip(self, poses: Tensor, visibility: Tensor) -> np.ndarray:
        """Poses (K, J, 2) in box coordinates side by side, the box filling most of each picture."""
        joints = ((poses.float().cpu().numpy() + 1.1) / 2.2 * _PICTURE).astype(np.float32)
        person = Person(joints, visibility.cpu().numpy(), np.array([0, 0, _PICTURE, _PICTURE], np.float32))
        times = np.arange(len(joints)) * self.config.stride / self.config.fps
        scene = Scene(_PICTURE, _PICTURE, self.config.fps, times, [person])
        return pose_strip(scene, count=10, size=(_PICTURE, _PICTURE), boxes=False)

    def export(self, directory: Path, info: dict[str, Any]) -> None:
        config, state = dataclasses.asdict(self.config), self.network.state_dict()
        save_export(directory, stage="vqvae", config=config, state=state, info=info)


def config_from_plain(values: dict[str, Any]) -> VQVAEConfig:
    """The configuration from a plain dict, as in checkpoints and exports."""
    network, quantizer = NetworkConfig(**values["network"]), QuantizerConfig(**values["quantizer"])
    optim = OptimConfig(**values["optim"])
    return VQVAEConfig(**{**values, "network": network, "quantizer": quantizer, "optim": optim})
