"""The evaluator: captions and 2D motions in one space, and an action classifier.

Letters: B scenes, N people of all scenes, T poses in time, J joints (18), C channels, W width, E width of the shared
space, A actions.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from modules.checkpoint import read_export
from modules.errors import UserError
from modules.evaluator.config import EvaluatorNetworkConfig
from modules.evaluator.data import NUM_PLACES, collate, scene_item
from modules.pose.scene import Scene
from modules.pose.skeleton import NUM_JOINTS
from modules.text import TextConfig, TextEncoder

# Joints (x, y, seen), then the path of the body: x, y, change of size, any joint seen.
NUM_FEATURES = 3 * NUM_JOINTS + 4
_BATCH = 32  # scenes judged at once
_SLOTS = 8  # people that are told apart by their place from left to right


@dataclass
class EvaluatorOutput:
    """What the network says of a batch."""

    embedding: Tensor  # (B, E) each scene in the shared space, of length 1
    logits: Tensor  # (N, A) of each person; one column an action, in the order of `labels`


def body_features(poses: Tensor, visibility: Tensor, frame_mask: Tensor) -> Tensor:
    """Body pose and body path, which do not change with the place and the size of the person in the frame.

    Args:
        poses: (N, T, J, 2) any unit.
        visibility: (N, T, J) bool.
        frame_mask: (N, T) bool, False for padding.

    Returns:
        (N, T, C): the joints about their own centre and the centre's way from its mean, both in units of the body's
        mean spread; the logarithm of the spread; zeros where nothing is seen.
    """
    seen = (visibility & frame_mask[..., None]).to(poses.dtype)[..., None]  # (N, T, J, 1)
    count = seen.sum(2).clamp_min(1)  # (N, T, 1)
    centre = (poses * seen).sum(2) / count  # (N, T, 2)
    offset = (poses - centre[:, :, None]) * seen  # (N, T, J, 2)
    spread = (offset.square().sum((2, 3)) / count[..., 0]).sqrt()  # (N, T)
    any_seen = seen.amax(2)  # (N, T, 1)
    frames = any_seen.sum(1, keepdim=True).clamp_min(1)  # (N, 1, 1)
    size = (spread[..., None] * any_seen).sum(1, keepdim=True) / frames + 1e-6  # (N, 1, 1)
    middle = (centre * any_seen).sum(1, keepdim=True) / frames  # (N, 1, 2)
    path = (centre - middle) / size * any_seen
    growth = (spread[..., None] / size + 1e-2).log() * any_seen
    joints = (offset / size[..., None]).flatten(2)  # (N, T, 2J)
    return torch.cat([joints, seen[..., 0], path, growth, any_seen], -1)


class _Block(nn.Module):
    """Residual dilated convolution over time; padding stays zero."""

    def __init__(self, *, width: int, kernel_size: int, dilation: int, dropout: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.conv = nn.Conv1d(width, width, kernel_size, padding=dilation * (kernel_size // 2), dilation=dilation)
        self.mix = nn.Linear(width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        hidden = (self.norm(x) * mask).transpose(1, 2)  # (B, D, T)
        hidden = nn.functional.gelu(self.conv(hidden)).transpose(1, 2)  # (B, T, D)
        return (x + self.dropout(self.mix(hidden))) * mask


class Evaluator(nn.Module):
    """Captions and motions in one space, and the action of every person.

    Each person: dilated 1-d convolutions over body features, mean and maximum over time. A scene: the sum over its
    people, each with its place from left to right. A caption: the text tower. It reads any number of poses at
    `config.rate` per second. The action head has room for `max_labels` actions, so that its size is known before the
    data are read.
    """

    def __init__(self, config: EvaluatorNetworkConfig) -> None:
        super().__init__()
        self.config = config
        width = config.width
        self.stem = nn.Linear(NUM_FEATURES, width)
        self.blocks = nn.ModuleList(
            _Block(width=width, kernel_size=config.kernel_size, dilation=2**i, dropout=config.dropout)
            for i in range(config.layers)
        )
        self.to_embedding = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, width))
        self.head = nn.Linear(width, config.max_labels)
        self.slots = nn.Embedding(_SLOTS, width)
        self.place_in = nn.Linear(NUM_PLACES, width)
        self.in_scene = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.GELU())
        self.to_scene = nn.Sequential(nn.LayerNorm(2 * width), nn.Linear(2 * width, config.embedding))
        self.text = TextEncoder(config.text)
        self.to_text = nn.Sequential(
            nn.Linear(self.text.pooled_width, 2 * width), nn.GELU(), nn.Linear(2 * width, config.embedding)
        )
        self.log_scale = nn.Parameter(torch.tensor(math.log(10.0)))  # inverse temperature of the contrastive loss

    @property
    def labels(self) -> list[str]:
        """The actions it knows, in the order of the logits."""
        return self.config.labels

    def forward(self, batch: dict[str, Any]) -> EvaluatorOutput:
        """All people and scenes of a batch of `collate`; poses in box coordinates, at `config.rate`."""
        poses, frame_mask = batch["poses"], batch["frame_mask"]
        mask = frame_mask[..., None].to(poses.dtype)  # (N, T, 1)
        x = self.stem(body_features(poses, batch["visibility"], frame_mask)) * mask
        for block in self.blocks:
            x = block(x, mask)
        mean = x.sum(1) / mask.sum(1).clamp_min(1)
        peak = x.masked_fill(mask == 0, float("-inf")).amax(1)
        person = self.to_embedding(torch.cat([mean, peak], -1))  # (N, W)
        logits = self.head(nn.functional.gelu(person))[:, : len(self.labels)]
        placed = person + self.slots(batch["slot"].clamp_max(_SLOTS - 1))
        if self.config.place:
            placed = placed + self.place_in(batch["place"].to(person.dtype))
        count = int(batch["scene"][-1]) + 1 if len(person) else 0
        total = person.new_zeros(count, 2 * person.shape[1])
        total = total.index_add(0, batch["scene"], self.in_scene(placed).to(total.dtype))
        return EvaluatorOutput(nn.functional.normalize(self.to_scene(total).float(), dim=-1), logits)

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """Captions in the shared space: (B, E), of length 1."""
        return nn.functional.normalize(self.to_text(self.text(captions).pooled).float(), dim=-1)

    def _batches(self, scenes: Sequence[Scene]) -> Iterator[tuple[list[int], dict[str, Any]]]:
        """Scenes that have people, a few at a time: (people's places within each scene, batch on the device)."""
        items = [scene_item(scene, self.config.rate) for scene in scenes if scene.persons]
        for start in range(0, len(items), _BATCH):
            part = items[start : start + _BATCH]
            batch = collate(part)
            yield (
                [index for item in part for index in item["order"]],
                {name: value.to(self.head.weight.device) for name, value in batch.items()},
            )

    @torch.inference_mode()
    def classify(self, scenes: Sequence[Scene]) -> list[list[str]]:
        """The action of every person of every scene; "" where the evaluator was trained without actions.

        Dense scenes and key poses are judged alike.
        """
        found: list[str] = []
        orders: list[int] = []
        for order, batch in self._batches(scenes):
            orders += order
            likeliest = self(batch).logits.argmax(-1).tolist() if self.labels else []
            found += [self.labels[i] for i in likeliest] or [""] * len(order)
        result: list[list[str]] = []
        start = 0
        for scene in scenes:
            stop = start + len(scene.persons)
            names = dict(zip(orders[start:stop], found[start:stop], strict=True))
            result.append([names[index] for index in range(len(scene.persons))])
            start = stop
        return result

    @torch.inference_mode()
    def embed_scenes(self, scenes: Sequence[Scene]) -> Tensor:
        """Scenes in the shared space: (len(scenes), E) on the CPU, of length 1; zeros for a scene without people."""
        result = torch.zeros(len(scenes), self.config.embedding)
        found = [self(batch).embedding.cpu() for _, batch in self._batches(scenes)]
        if found:
            result[[i for i, scene in enumerate(scenes) if scene.persons]] = torch.cat(found)
        return result

    @torch.inference_mode()
    def embed_texts(self, captions: Sequence[str]) -> Tensor:
        """`embed_captions`, a few at a time, on the CPU."""
        parts = [self.embed_captions(captions[i : i + _BATCH]).cpu() for i in range(0, len(captions), _BATCH)]
        return torch.cat(parts) if parts else torch.zeros(0, self.config.embedding)


def network_config(values: dict[str, Any]) -> EvaluatorNetworkConfig:
    """The configuration from plain values."""
    return EvaluatorNetworkConfig(**{**values, "labels": list(values["labels"]), "text": TextConfig(**values["text"])})


def from_export(directory: Path) -> Evaluator:
    """The network of an export.

    Raises:
        UserError: it was exported before the evaluator read captions.
    """
    found = read_export(directory, "evaluator")
    if "text" not in found.config["network"]:
        raise UserError(f"{directory} is an action classifier that reads no captions; `make train-evaluator` anew")
    network = Evaluator(network_config(found.config["network"]))
    network.load_state_dict(found.load_state())
    network.text.load_pretrained()
    return network
