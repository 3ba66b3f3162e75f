"""What a report shows besides its figures."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from modules.pose.scene import Scene


@dataclass
class Shown:
    """One caption with what each method made of it, for people to look at."""

    caption: str
    scenes: dict[str, Scene] = field(default_factory=dict)
    video: np.ndarray | None = None  # (F, H, W, 3) uint8
    fps: float = 10.0  # of the video
