"""Configuration of the evaluator stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from modules.errors import UserError
from modules.optim import OptimConfig
from modules.text import TextConfig


@dataclass
class EvaluatorNetworkConfig:
    """Size of the evaluator. `labels` is filled from the training split before training.

    `embedding` is the width of the space that captions and motions share. FID needs ten independent held-out windows a
    dimension: 24 dimensions go with the 256 clips of the sample data's test split.
    """

    rate: float = 10.0  # poses per second that the network sees
    width: int = 96
    layers: int = 4
    kernel_size: int = 5
    dropout: float = 0.1
    embedding: int = 24
    place: bool = True  # reads where on the canvas people are and how large, for captions that say so
    max_labels: int = 128  # rows of the classification head; the first len(labels) are used
    labels: list[str] = field(default_factory=list)
    text: TextConfig = field(default_factory=TextConfig)

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise UserError(f"network.rate is {self.rate}; it must be above 0 poses per second, for example 10")
        if self.kernel_size % 2 == 0:
            raise UserError(f"network.kernel_size is {self.kernel_size}; it must be odd, for example 5")
        if self.embedding < 2:
            raise UserError(f"network.embedding is {self.embedding}; it must be at least 2, for example 24")
        if len(self.labels) > self.max_labels:
            raise UserError(
                f"the training split has {len(self.labels)} actions; raise network.max_labels ({self.max_labels})"
            )


@dataclass
class EvaluatorConfig:
    """The evaluator: does a motion fit a caption, and which action does a person do?"""

    network: EvaluatorNetworkConfig = field(default_factory=EvaluatorNetworkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    key_stride: int = 10  # dense frames per key pose of the sparse scenes that it must judge as well
    sparse_share: float = 0.5  # share of the training items that are reduced to key poses first
    jitter: float = 0.01  # noise on the training joints, in box units
    hide_share: float = 0.2  # share of the training items in which some joints are hidden
    label_smoothing: float = 0.05
    action_weight: float = 1.0  # of the loss of the action classifier beside the contrastive one

    def __post_init__(self) -> None:
        for name in ("sparse_share", "hide_share", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if self.key_stride < 1:
            raise UserError(f"key_stride is {self.key_stride}; it must be at least 1")
        if self.action_weight < 0:
            raise UserError(f"action_weight is {self.action_weight}; it must be 0 or more")
