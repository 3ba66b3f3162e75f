"""The action classifier: which action does one person do, from 2D poses alone.

Letters: B batch, T poses in time, J joints (18), C channels, D width, A actions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from modules.checkpoint import read_export
from modules.evaluator.config import EvaluatorNetworkConfig
from modules.evaluator.data import collate, person_item
from modules.pose.scene import Scene
from modules.pose.skeleton import NUM_JOINTS

# Joints (x, y, seen), then the path of the body: x, y, change of size, any joint seen.
NUM_FEATURES = 3 * NUM_JOINTS + 4
_BATCH = 64  # persons judged at once


@dataclass
class EvaluatorOutput:
    """What the network says of each person."""

    embedding: Tensor  # (B, D) motion embedding
    logits: Tensor  # (B, A) one column an action, in the order of `labels`


def body_features(poses: Tensor, visibility: Tensor, frame_mask: Tensor) -> Tensor:
    """Body pose and body path, which do not change with the place and the size of the person in the frame.

    Args:
        poses: (B, T, J, 2) any unit.
        visibility: (B, T, J) bool.
        frame_mask: (B, T) bool, False for padding.

    Returns:
        (B, T, C): the joints about their own centre and the centre's way from its mean, both in units of the body's
        mean spread; the logarithm of the spread; zeros where nothing is seen.
    """
    seen = (visibility & frame_mask[..., None]).to(poses.dtype)[..., None]  # (B, T, J, 1)
    count = seen.sum(2).clamp_min(1)  # (B, T, 1)
    centre = (poses * seen).sum(2) / count  # (B, T, 2)
    offset = (poses - centre[:, :, None]) * seen  # (B, T, J, 2)
    spread = (offset.square().sum((2, 3)) / count[..., 0]).sqrt()  # (B, T)
    any_seen = seen.amax(2)  # (B, T, 1)
    frames = any_seen.sum(1, keepdim=True).clamp_min(1)  # (B, 1, 1)
    size = (spread[..., None] * any_seen).sum(1, keepdim=True) / frames + 1e-6  # (B, 1, 1)
    middle = (centre * any_seen).sum(1, keepdim=True) / frames  # (B, 1, 2)
    path = (centre - middle) / size * any_seen
    growth = (spread[..., None] / size + 1e-2).log() * any_seen
    joints = (offset / size[..., None]).flatten(2)  # (B, T, 2J)
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
    """Dilated 1-d convolutions over body features, mean and maximum over time, then a linear head.

    It reads any number of poses at `config.rate` per second. The head has room for `max_labels` actions, so that its
    size is known before the data are read.
    """

    def __init__(self, config: EvaluatorNetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Linear(NUM_FEATURES, config.width)
        self.blocks = nn.ModuleList(
            _Block(width=config.width, kernel_size=config.kernel_size, dilation=2**i, dropout=config.dropout)
            for i in range(config.layers)
        )
        self.to_embedding = nn.Sequential(nn.LayerNorm(2 * config.width), nn.Linear(2 * config.width, config.width))
        self.head = nn.Linear(config.width, config.max_labels)

    @property
    def labels(self) -> list[str]:
        """The actions it knows, in the order of the logits."""
        return self.config.labels

    def forward(self, poses: Tensor, visibility: Tensor, frame_mask: Tensor) -> EvaluatorOutput:
        """Poses (B, T, J, 2) in box coordinates, visibility (B, T, J), frame_mask (B, T), at `config.rate`."""
        mask = frame_mask[..., None].to(poses.dtype)  # (B, T, 1)
        x = self.stem(body_features(poses, visibility, frame_mask)) * mask
        for block in self.blocks:
            x = block(x, mask)
        mean = x.sum(1) / mask.sum(1).clamp_min(1)
        peak = x.masked_fill(mask == 0, float("-inf")).amax(1)
        embedding = self.to_embedding(torch.cat([mean, peak], -1))
        logits = self.head(nn.functional.gelu(embedding))[:, : len(self.labels)]
        return EvaluatorOutput(embedding, logits)

    @torch.inference_mode()
    def classify(self, scenes: Sequence[Scene]) -> list[list[str]]:
        """The action of every person of every scene. Dense scenes and key poses are judged alike."""
        items = [person_item(person, scene.times, self.config.rate) for scene in scenes for person in scene.persons]
        device = self.head.weight.device
        found: list[str] = []
        for start in range(0, len(items), _BATCH):
            batch = collate(items[start : start + _BATCH])
            output = self(*(batch[name].to(device) for name in ("poses", "visibility", "frame_mask")))
            found += [self.labels[i] for i in output.logits.argmax(-1).tolist()]
        names = iter(found)
        return [[next(names) for _ in scene.persons] for scene in scenes]


def from_export(directory: Path) -> Evaluator:
    """The network of an export."""
    found = read_export(directory, "evaluator")
    network = Evaluator(EvaluatorNetworkConfig(**found.config["network"]))
    network.load_state_dict(found.load_state())
    return network
