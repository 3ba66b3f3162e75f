"""FVD, CLIPScore and poses of rendered videos, by foreign networks that the user names; nothing is downloaded."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from modules.errors import UserError
from modules.metrics.embedding import FrechetDistance
from modules.metrics.matching import WINDOWS_A_DIMENSION
from modules.pose.skeleton import NUM_JOINTS

_FRAMES, _SIDE = 16, 224  # what I3D, the usual network, takes


def _load(option: str, path: str, what: str) -> torch.jit.ScriptModule:
    """A TorchScript network that the user names by `option=path`."""
    if not Path(path).is_file():
        raise UserError(f"{option}={path}: no such file; name a TorchScript file that {what}, or leave {option} out")
    try:
        return torch.jit.load(path, map_location="cpu").eval()
    except RuntimeError as error:
        raise UserError(f"{option}={path} is not TorchScript ({str(error).splitlines()[0]})") from None


def _apply(network: torch.jit.ScriptModule, inputs: Tensor, named: str, shape: str) -> Any:
    """What the network makes of inputs that should have this shape; `named` is how the user named it."""
    try:
        return network(inputs)
    except RuntimeError as error:
        raise UserError(f"{named} does not take {shape}: {str(error).splitlines()[-1]}") from None


class VideoFeatures:
    """A TorchScript network: (B, 3, F, H, W) in [-1, 1] -> (B, D), as the I3D that FVD is quoted with.

    Raises:
        UserError: no such file, or not TorchScript.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.network = _load("fvd", path, "makes features of videos, for example i3d_torchscript.pt")

    @torch.inference_mode()
    def __call__(self, videos: Sequence[np.ndarray]) -> Tensor:
        """(B, D) of videos (F, H, W, 3) uint8: 16 frames spread over each, at 224 x 224.

        Raises:
            UserError: the network takes other shapes.
        """
        batch = []
        for video in videos:
            frames = video[np.linspace(0, len(video) - 1, _FRAMES).round().astype(int)]
            pixels = torch.from_numpy(frames).permute(0, 3, 1, 2).float() / 127.5 - 1  # (F, 3, H, W)
            batch.append(torch.nn.functional.interpolate(pixels, (_SIDE, _SIDE), mode="bilinear"))
        found = _apply(self.network, torch.stack(batch).transpose(1, 2), f"fvd={self.path}", "(B, 3, 16, 224, 224)")
        if not isinstance(found, Tensor) or found.ndim != 2:
            raise UserError(f"fvd={self.path} gives no (B, D) features")
        return found.double()


class FrechetVideoDistance:
    """FVD of videos that come one by one: `FrechetDistance` of their features.

    Args:
        features: the network.
    """

    def __init__(self, features: VideoFeatures) -> None:
        self.features = features
        self.distance = FrechetDistance(features([np.zeros((2, 8, 8, 3), np.uint8)]).shape[1])

    def update(self, found: np.ndarray, real: np.ndarray) -> None:
        """A generated and a real video."""
        for video, is_real in ((found, False), (real, True)):
            self.distance.update(self.features([video]), real=is_real)

    def compute(self) -> tuple[float | None, str | None]:
        """The distance, or None and why not: under ten videos a dimension. All processes must call it together."""
        count, dimensions = total(self.distance), self.distance.sums.shape[1]
        value = self.distance.compute()
        if count < WINDOWS_A_DIMENSION * dimensions:
            needed = WINDOWS_A_DIMENSION * dimensions
            return None, f"No FVD: {count} videos, and {dimensions} dimensions need {needed} (videos=)."
        return value, None


class PoseEstimator:
    """A TorchScript network: (B, 3, H, W) RGB in [0, 1] -> (B, P, 18, 3), x and y in px of the picture and confidence.

    Joints are the 18 of OpenPose in the order of `modules/pose/skeleton.py`; x = 0.5 is the middle of the first pixel.

    Raises:
        UserError: no such file, or not TorchScript.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.network = _load("estimator", path, "finds the 18 joints of people in pictures")

    @torch.inference_mode()
    def __call__(self, video: np.ndarray) -> np.ndarray:
        """(F, P, 18, 3) of a video (F, H, W, 3) uint8.

        Raises:
            UserError: the network takes or gives other shapes.
        """
        pixels = torch.from_numpy(video).permute(0, 3, 1, 2).float() / 255
        found = _apply(self.network, pixels, f"estimator={self.path}", "(B, 3, H, W)")
        shape = tuple(found.shape) if isinstance(found, Tensor) else type(found).__name__
        fits = isinstance(found, Tensor) and found.ndim == 4 and found.shape[0] == len(video)
        if not fits or found.shape[2:] != (NUM_JOINTS, 3):
            raise UserError(f"estimator={self.path} gives {shape} for {len(video)} frames; it must give "
                            f"({len(video)}, P, {NUM_JOINTS}, 3): x, y and confidence")  # fmt: skip
        return found.float().numpy()


def total(distance: FrechetDistance) -> int:
    """Videos on the generated side, over all processes."""
    with distance.sync_context():
        return int(distance.counts[0])


def clip_score(path: str) -> Metric:
    """torchmetrics' CLIPScore of a local model.

    Raises:
        UserError: no such folder, or no CLIP in it.
    """
    if not (Path(path) / "config.json").is_file():
        raise UserError(f"clip={path}: no folder with a CLIP model (config.json); name one that was saved by "
                        "transformers, for example openai/clip-vit-base-patch16, or leave clip out")  # fmt: skip
    from torchmetrics.multimodal.clip_score import CLIPScore

    try:
        return CLIPScore(model_name_or_path=path)  # type: ignore[arg-type]  # any name or folder
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise UserError(f"clip={path} cannot be read as a CLIP model: {str(error).splitlines()[0]}") from None
