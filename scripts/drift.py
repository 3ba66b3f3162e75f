"""How far clothes drift in colour over videos longer than the network's window: python scripts/drift.py [key=value ...]

Renders long test clips from their own poses in several ways and compares the colours of shirts and trousers in later
windows with those in the first one.

  export=runs/controlnet/demo/export   data=data/sample split=test
  clips=8 frames=32 frame_stride=4     the first clips that are long enough
  steps=8 guidance=2.0 seed=0 precision=auto
"""

from __future__ import annotations

import dataclasses
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # a script finds the packages beside its own folder only

from configs.cli import run_script, split_arguments  # noqa: E402
from configs.loader import load_typed  # noqa: E402
from datamodules.webdataset import iter_clips  # noqa: E402
from modules.controlnet.config import RenderConfig  # noqa: E402
from modules.errors import UserError  # noqa: E402
from modules.evaluation.controlnet import Sample, gather  # noqa: E402
from modules.metrics.video import clothes_over_time, segment  # noqa: E402
from modules.rendering.pipeline import PoseVideoPipeline  # noqa: E402

# How long videos are covered.
WAYS: dict[str, dict[str, object]] = {
    "windows one after another": {"overlap": 0.0},
    "one after another, shared noise": {"overlap": 0.0, "shared_noise": True},
    "overlapping by half": {"overlap": 0.5},
    "overlapping by half, shared noise": {"overlap": 0.5, "shared_noise": True},
}


@dataclass
class DriftConfig:
    export: str = "runs/controlnet/demo/export"
    data: str = "data/sample"
    split: str = "test"
    clips: int = 8
    frames: int = 32
    frame_stride: int = 4
    steps: int = 8
    guidance: float = 2.0
    seed: int = 0
    precision: str = "auto"


def drift(video: np.ndarray, sample: Sample, window: int) -> tuple[float, float]:
    """CIELAB distances of clothes: of later windows to the first one, and of each frame to the one before."""
    scene = sample.scene
    scale = np.array([video.shape[2] / scene.width, video.shape[1] / scene.height])
    colours = clothes_over_time(
        video, segment(video), scene.joints.transpose(1, 0, 2, 3) * scale, scene.visibility.transpose(1, 0, 2)
    )  # (F, P, 2, 3)
    blocks = [np.nanmedian(colours[i : i + window], axis=0) for i in range(0, len(colours), window)]
    far = [np.linalg.norm(block - blocks[0], axis=-1) for block in blocks[1:]]
    return float(np.nanmean(far)), float(np.nanmean(np.linalg.norm(np.diff(colours, axis=0), axis=-1)))


def main(arguments: list[str]) -> None:
    _, items, _ = split_arguments(arguments)
    cfg = load_typed(DriftConfig, [], items)
    pipe = PoseVideoPipeline.from_pretrained(cfg.export)
    config = pipe.base.config
    if cfg.frames <= config.num_frames:
        raise UserError(f"frames is {cfg.frames}; more than the network's window of {config.num_frames} are needed")
    clips = iter_clips(cfg.data, cfg.split, ("pose", "video"), num_frames=10_000)
    samples = gather(list(clips), cfg.clips, cfg.frame_stride, cfg.frames, (config.height, config.width))
    fps = samples[0].clip.scene.fps / cfg.frame_stride
    settings = RenderConfig(frame_stride=1, steps=cfg.steps, guidance_scale=cfg.guidance, precision=cfg.precision)
    rows = {"real video": [s.frames for s in samples]}
    for name, way in WAYS.items():
        rows[name] = list(
            pipe.render(
                [dataclasses.replace(s.scene, fps=fps) for s in samples], [s.clip.caption for s in samples],
                range(cfg.seed, cfg.seed + len(samples)), dataclasses.replace(settings, **way),
            )  # fmt: skip
        )
        print(f"{name}: done", flush=True)
    print(f"\n{len(samples)} videos of {cfg.frames} frames, window {config.num_frames}; CIELAB units\n")
    print("| | later windows to the first | frame to frame |\n|---|--:|--:|")
    for name, videos in rows.items():
        found = np.array([drift(video, s, config.num_frames) for video, s in zip(videos, samples, strict=True)])
        far, step = np.nanmean(found, axis=0)
        print(f"| {name} | {far:.1f} | {step:.1f} |")


if __name__ == "__main__":
    run_script(main, __doc__)
