"""Configuration of the evaluator stage."""

from __future__ import annotations

from dataclasses import dataclass, field

from modules.errors import UserError
from modules.optim import OptimConfig


@dataclass
class EvaluatorNetworkConfig:
    """Size of the action classifier. `labels` is filled from the training split before training."""

    rate: float = 10.0  # poses per second that the network sees
    width: int = 96
    layers: int = 4
    kernel_size: int = 5
    dropout: float = 0.1
    max_labels: int = 128  # rows of the classification head; the first len(labels) are used
    labels: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise UserError(f"network.rate is {self.rate}; it must be above 0 poses per second, for example 10")
        if self.kernel_size % 2 == 0:
            raise UserError(f"network.kernel_size is {self.kernel_size}; it must be odd, for example 5")
        if len(self.labels) > self.max_labels:
            raise UserError(
                f"the training split has {len(self.labels)} actions; raise network.max_labels ({self.max_labels})"
            )


@dataclass
class EvaluatorConfig:
    """The evaluator: which action does a person do?"""

    network: EvaluatorNetworkConfig = field(default_factory=EvaluatorNetworkConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    key_stride: int = 10  # dense frames per key pose of the sparse scenes that it must judge as well
    sparse_share: float = 0.5  # share of the training items that are reduced to key poses first
    jitter: float = 0.01  # noise on the training joints, in box units
    hide_share: float = 0.2  # share of the training items in which some joints are hidden
    label_smoothing: float = 0.05

    def __post_init__(self) -> None:
        for name in ("sparse_share", "hide_share", "label_smoothing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if self.key_stride < 1:
            raise UserError(f"key_stride is {self.key_stride}; it must be at least 1")
