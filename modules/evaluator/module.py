"""Training of the evaluator."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor, nn
from torchmetrics import MeanMetric

from modules.checkpoint import save_export
from modules.errors import UserError
from modules.evaluator.config import EvaluatorConfig, EvaluatorNetworkConfig
from modules.evaluator.data import Encode, collate
from modules.evaluator.network import Evaluator
from modules.optim import OptimConfig, build_optimizer
from modules.pose.actors import clip_actors
from modules.pose.scene import Clip


class EvaluatorModule(L.LightningModule):
    """Action classification by cross-entropy; every person of a clip is a sample."""

    monitor = ("val/accuracy", "max")
    columns: tuple[str, ...] = ("pose",)

    def __init__(self, config: dict[str, Any] | EvaluatorConfig, max_steps: int) -> None:
        super().__init__()
        # A copy: the labels found in the data are written into it.
        self.config = copy.deepcopy(config) if isinstance(config, EvaluatorConfig) else _from_plain(config)
        self.max_steps = max_steps
        self.save_hyperparameters({"config": dataclasses.asdict(self.config), "max_steps": max_steps})
        self.network = Evaluator(self.config.network)
        self.encode, self.collate = Encode(self.config), collate
        self.accuracy = MeanMetric()

    def setup_data(self, clips: Callable[[], Iterable[Clip]]) -> None:
        """The actions of the training split, in the order of the alphabet."""
        self._set_labels(sorted({actor.action for clip in clips() for actor in clip_actors(clip)} - {""}))

    def _set_labels(self, labels: list[str]) -> None:
        if len(labels) < 2:
            raise UserError(
                f"the training split has {len(labels)} different actions, at least 2 are needed; "
                "give clips a 'label', or 'actors' with an 'action' each"
            )
        # The network and the encoder share this config.
        self.config.network.labels[:] = labels
        dataclasses.replace(self.config.network)  # checks the number of labels

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["labels"] = list(self.config.network.labels)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._set_labels(checkpoint["labels"])

    def model_step(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Loss, and which persons are recognised (B,)."""
        logits = self.network(batch["poses"], batch["visibility"], batch["frame_mask"]).logits
        label = batch["label"]
        smoothing = self.config.label_smoothing
        total = nn.functional.cross_entropy(logits, label, ignore_index=-1, label_smoothing=smoothing, reduction="sum")
        # A validation batch may hold nothing but actions that are not in the training split.
        return total / (label >= 0).sum().clamp_min(1), (logits.argmax(-1) == label).float()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        loss, right = self.model_step(batch)
        self.log_dict({"train/loss": loss, "train/accuracy": right.mean()})
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        loss, right = self.model_step(batch)
        self.accuracy.update(right)
        self.log("val/loss", loss, batch_size=len(right), sync_dist=True)
        self.log("val/accuracy", self.accuracy, batch_size=len(right))

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.network.named_parameters(), self.config.optim, self.max_steps)

    def sample_images(self, batch: dict[str, Tensor]) -> dict[str, np.ndarray]:
        """A classifier draws nothing."""
        return {}

    def export(self, directory: Path, info: dict[str, Any]) -> None:
        save_export(
            directory,
            stage="evaluator",
            config=dataclasses.asdict(self.config),
            state=self.network.state_dict(),
            info=info,
        )


def _from_plain(values: dict[str, Any]) -> EvaluatorConfig:
    network, optim = EvaluatorNetworkConfig(**copy.deepcopy(values["network"])), OptimConfig(**values["optim"])
    return EvaluatorConfig(**{**copy.deepcopy(values), "network": network, "optim": optim})
