"""Training of the evaluator."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn
from torchmetrics import MeanMetric

from modules.checkpoint import save_export
from modules.errors import UserError
from modules.evaluator.config import EvaluatorConfig
from modules.evaluator.data import Encode, collate
from modules.evaluator.network import Evaluator, network_config
from modules.optim import OptimConfig, build_optimizer
from modules.pose.actors import clip_actors
from modules.pose.scene import Clip


class EvaluatorModule(L.LightningModule):
    """Contrastive learning of motions and captions, and action classification of every person.

    Clips of one caption are never negatives of each other. `val/retrieval` is the share of motions of a validation
    batch that are nearest to their own caption; it decides which checkpoint is best.
    """

    monitor = ("val/retrieval", "max")
    columns: tuple[str, ...] = ("pose",)

    def __init__(self, config: dict[str, Any] | EvaluatorConfig, max_steps: int) -> None:
        super().__init__()
        # A copy: the labels found in the data are written into it.
        self.config = copy.deepcopy(config) if isinstance(config, EvaluatorConfig) else _from_plain(config)
        self.max_steps = max_steps
        self.save_hyperparameters({"config": dataclasses.asdict(self.config), "max_steps": max_steps})
        self.network = Evaluator(self.config.network)
        self.encode, self.collate = Encode(self.config), collate
        self.accuracy, self.retrieval = MeanMetric(), MeanMetric()

    def setup_data(self, clips: Callable[[], Iterable[Clip]]) -> None:
        """The actions of the training split, in the order of the alphabet, and the words of its captions."""
        labels: set[str] = set()
        captions: list[str] = []
        for clip in clips():
            labels |= {actor.action for actor in clip_actors(clip)}
            captions.append(clip.caption)
        if len(set(captions)) < 2:
            raise UserError(
                f"the training split has {len(set(captions))} different captions, at least 2 are needed; "
                "the evaluator learns which motion goes with which caption"
            )
        self.network.text.fit_vocabulary(captions)
        self._set_labels(sorted(labels - {""}))

    def _set_labels(self, labels: list[str]) -> None:
        # With one action there is nothing to tell apart. The network and the encoder share this config.
        self.config.network.labels[:] = labels if len(labels) > 1 else []
        dataclasses.replace(self.config.network)  # checks the number of labels

    def setup(self, stage: str) -> None:
        self.network.text.load_pretrained()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["labels"] = list(self.config.network.labels)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._set_labels(checkpoint["labels"])

    def model_step(self, batch: dict[str, Any]) -> dict[str, Tensor]:
        """Losses; `right` (N,): whose action is recognised; `first` (B,): which motions find their caption."""
        output = self.network(batch)
        text = self.network.embed_captions(batch["captions"])
        matching, first = contrast(output.embedding, text, batch["captions"], self.network.log_scale)
        found = {"matching": matching, "loss": matching, "first": first}
        label = batch["label"]
        if self.config.network.labels and self.config.action_weight:
            smoothing = self.config.label_smoothing
            total = nn.functional.cross_entropy(
                output.logits, label, ignore_index=-1, label_smoothing=smoothing, reduction="sum"
            )
            # A validation batch may hold nothing but actions that are not in the training split.
            found["action"] = total / (label >= 0).sum().clamp_min(1)
            found["loss"] = matching + self.config.action_weight * found["action"]
            found["right"] = (output.logits.argmax(-1) == label).float()
        return found

    def training_step(self, batch: dict[str, Any], batch_idx: int) -> Tensor:
        found = self.model_step(batch)
        size = len(batch["captions"])
        self.log_dict({f"train/{name}": value.mean() for name, value in found.items()}, batch_size=size)
        return found["loss"]

    def validation_step(self, batch: dict[str, Any], batch_idx: int) -> None:
        found = self.model_step(batch)
        size = len(batch["captions"])
        self.retrieval.update(found["first"])
        if "right" in found:
            self.accuracy.update(found["right"])
            self.log("val/accuracy", self.accuracy, batch_size=size)
        losses = {f"val/{name}": value for name, value in found.items() if value.ndim == 0}
        self.log_dict(losses, batch_size=size, sync_dist=True)
        self.log("val/retrieval", self.retrieval, batch_size=size)

    def configure_optimizers(self) -> Any:
        return build_optimizer(self.network.named_parameters(), self.config.optim, self.max_steps)

    def sample_images(self, batch: dict[str, Any]) -> dict[str, np.ndarray]:
        """An evaluator draws nothing."""
        return {}

    def export(self, directory: Path, info: dict[str, Any]) -> None:
        network = dataclasses.replace(self.config.network, text=self.network.text.export_config())
        save_export(
            directory,
            stage="evaluator",
            config=dataclasses.asdict(dataclasses.replace(self.config, network=network)),
            state=self.network.state_dict(),
            info=info,
        )


def _from_plain(values: dict[str, Any]) -> EvaluatorConfig:
    network, optim = network_config(values["network"]), OptimConfig(**values["optim"])
    return EvaluatorConfig(**{**copy.deepcopy(values), "network": network, "optim": optim})


def contrast(motion: Tensor, text: Tensor, captions: Sequence[str], log_scale: Tensor) -> tuple[Tensor, Tensor]:
    """Symmetric cross-entropy between motions and captions of a batch; equal captions share the target.

    Args:
        motion, text: (B, E) of length 1.
        log_scale: () logarithm of the inverse temperature; at most 100 is used.

    Returns:
        () loss, and (B,) 1 where a motion is nearest to its own caption.
    """
    numbers = {caption: number for number, caption in enumerate(dict.fromkeys(captions))}
    caption = torch.tensor([numbers[name] for name in captions], device=motion.device)
    same = (caption[:, None] == caption).to(motion.dtype)  # (B, B)
    target = same / same.sum(1, keepdim=True)
    logits = log_scale.exp().clamp_max(100.0) * motion @ text.T
    loss = (nn.functional.cross_entropy(logits, target) + nn.functional.cross_entropy(logits.T, target)) / 2
    return loss, same.gather(1, logits.argmax(1, keepdim=True))[:, 0]
